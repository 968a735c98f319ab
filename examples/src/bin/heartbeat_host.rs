//! The host half of the service in docs/tutorial.md: receives heartbeats from guests.
//!
//! ```sh
//! hvsock service register "HV Socket Demo"
//! heartbeat_host
//! ```

use std::io::{self, BufRead, BufReader, Write};
use std::thread;
use std::time::Duration;

use hvsock::{HvListener, HvStream};

const SERVICE: &str = "HV Socket Demo";

/// A guest that sends nothing for longer is lost.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);

fn main() -> io::Result<()> {
    let listener = HvListener::bind(("children", SERVICE))?;
    println!("listening for heartbeats");
    for stream in listener.incoming() {
        let stream = stream?;
        thread::spawn(move || {
            let guest = stream.peer().map_or("?", |peer| peer.partition());
            match serve(&stream, guest) {
                Ok(beats) => println!("{guest}: closed after {beats} beats"),
                Err(error) => println!("{guest}: lost, {error}"),
            }
        });
    }
    Ok(())
}

fn serve(mut stream: &HvStream, guest: &str) -> io::Result<u64> {
    stream.set_read_timeout(Some(IDLE_TIMEOUT))?;
    let mut beats = 0;
    for line in BufReader::new(stream).lines() {
        println!("{guest}: {}", line?);
        beats += 1;
        writeln!(stream, "reply {beats}")?;
    }
    // End of file: the guest has shut down its direction. Ours is still open.
    writeln!(stream, "goodbye")?;
    Ok(beats)
}
