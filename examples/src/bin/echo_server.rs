//! An echo service with one thread per connection.
//!
//! ```sh
//! hvsock service register "HV Socket Demo"
//! echo_server "HV Socket Demo" any
//! ```

use std::io;
use std::thread;

use hvsock::{HvListener, HvStream};

fn main() -> io::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let service = arguments
        .next()
        .unwrap_or_else(|| "HV Socket Demo".to_owned());
    let partitions = arguments.next().unwrap_or_else(|| "any".to_owned());

    let listener = HvListener::bind((partitions, service))?;
    println!("listening at {}", listener.local_addr()?);
    for stream in listener.incoming() {
        let stream = stream?;
        thread::spawn(move || {
            if let Err(error) = echo(&stream) {
                eprintln!("connection {}: {error}", stream.connection_id());
            }
        });
    }
    Ok(())
}

/// Echoes until end of file. Dropping the stream then closes the connection.
fn echo(stream: &HvStream) -> io::Result<()> {
    if let Some(peer) = stream.peer() {
        let user = peer.uid().map_or("?".to_owned(), |uid| uid.to_string());
        println!("connection from {}, user {user}", peer.partition());
    }
    let (mut reader, mut writer) = (stream, stream);
    let count = io::copy(&mut reader, &mut writer)?;
    println!("{count} bytes echoed");
    Ok(())
}
