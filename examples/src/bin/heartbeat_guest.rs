//! The guest half of the service that docs/tutorial.md builds: it tells the host that it lives.
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
    let mut answers = BufReader::new(stream.try_clone()?).lines();
    for beat in 1..=beats {
        writeln!(stream, "beat {beat}")?;
        match answers.next() {
            Some(answer) => println!("host: {}", answer?),
            None => return Err(io::ErrorKind::UnexpectedEof.into()),
        }
        thread::sleep(Duration::from_millis(200));
    }

    // No more beats. The host sees the end after the last one, and may still answer.
    stream.shutdown(Shutdown::Write)?;
    for answer in answers {
        println!("host: {}", answer?);
    }
    Ok(())
}
