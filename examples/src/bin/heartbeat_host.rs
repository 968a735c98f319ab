//! The host half of the service that docs/tutorial.md builds: it hears the heartbeats of guests.
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

/// A guest that is silent for longer has lost its heart.
const SILENCE: Duration = Duration::from_secs(10);

fn main() -> io::Result<()> {
    let listener = HvListener::bind(("children", SERVICE))?;
    println!("listening for heartbeats");
    for stream in listener.incoming() {
        let stream = stream?;
        thread::spawn(move || {
            let guest = stream.peer().map_or("?", |peer| peer.partition());
            match serve(&stream, guest) {
                Ok(beats) => println!("{guest}: ended well, {beats} heard"),
                Err(error) => println!("{guest}: lost, {error}"),
            }
        });
    }
    Ok(())
}

fn serve(mut stream: &HvStream, guest: &str) -> io::Result<u64> {
    stream.set_read_timeout(Some(SILENCE))?;
    let mut beats = 0;
    for line in BufReader::new(stream).lines() {
        println!("{guest}: {}", line?);
        beats += 1;
        writeln!(stream, "heard {beats}")?;
    }
    // The guest has ended its half of the connection. Ours still works.
    writeln!(stream, "goodbye")?;
    Ok(beats)
}
