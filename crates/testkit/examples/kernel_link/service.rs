//! A program on the host that uses the library and its broker.

use std::io::{self, Write};
use std::path::Path;
use std::thread;

use hvsock::{Endpoint, HvListener, HvStream};

use crate::tell::Answer;
use crate::{bridge, host, load};

/// Listens for a service of the broker in this folder. Returns only if that fails.
pub fn serve(folder: &str, service: &str, how: &str) -> Answer {
    let endpoint = Endpoint::at(Path::new(folder).join("endpoint"));
    let options = HvListener::options().endpoint(endpoint);
    let listener = options.listen(("any", service));
    let listener = listener.map_err(|error| error.to_string())?;
    println!("listening");
    let how = how.to_owned();
    for stream in listener.incoming() {
        let stream = stream.map_err(|error| error.to_string())?;
        let how = how.clone();
        thread::spawn(move || {
            if let Err(error) = act(&stream, &how) {
                println!("a connection: {error}");
            }
        });
    }
    Ok(String::new())
}

fn act(stream: &HvStream, how: &str) -> io::Result<()> {
    let (mut reader, mut writer) = (stream, stream);
    match how {
        // Tells the peer's partition, and what socket the connection is.
        "whoami" => {
            let peer = stream.peer().map(|peer| peer.partition().to_string());
            let peer = peer.unwrap_or_default();
            let transport = stream.transport().name();
            writeln!(writer, "{peer} by {transport}: {}", host::described(stream))
        }
        "echo" => bridge::pump(&mut reader, &mut writer),
        "sink" => load::count(&mut reader).map(drop),
        _ => Err(io::ErrorKind::InvalidInput.into()),
    }
}
