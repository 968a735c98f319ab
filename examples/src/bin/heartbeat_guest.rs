//! The guest half of the service in docs/tutorial.md: sends heartbeats to the host.
//!
//! ```sh
//! heartbeat_guest 3
//! ```

use std::io::{self, BufRead, BufReader, Write};
use std::net::Shutdown;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use hvsock::HvStream;

const SERVICE: &str = "HV Socket Demo";

fn main() -> ExitCode {
    let count = std::env::args().nth(1).and_then(|count| count.parse().ok());
    match beat(count.unwrap_or(u64::MAX)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn beat(beats: u64) -> io::Result<()> {
    let mut stream = HvStream::connect(("parent", SERVICE))?;
    let mut replies = BufReader::new(stream.try_clone()?).lines();
    for beat in 1..=beats {
        writeln!(stream, "beat {beat}")?;
        match replies.next() {
            Some(reply) => println!("host: {}", reply?),
            None => return Err(io::ErrorKind::UnexpectedEof.into()),
        }
        thread::sleep(Duration::from_millis(200));
    }

    // Half-close: the host reads end of file after the last beat, and may still reply.
    stream.shutdown(Shutdown::Write)?;
    for reply in replies {
        println!("host: {}", reply?);
    }
    Ok(())
}
