//! A service on tokio: it answers each line with who sent it, and ends a connection that is
//! silent for too long.
//!
//! ```sh
//! tokio_service "Who am I"
//! echo hello | hvsock connect loopback "Who am I"
//! ```

use std::io;
use std::time::Duration;

use hvsock::tokio::{HvListener, HvStream};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::time::timeout;

const SILENCE: Duration = Duration::from_secs(60);

#[tokio::main]
async fn main() -> io::Result<()> {
    let service = std::env::args()
        .nth(1)
        .unwrap_or_else(|| "Who am I".to_owned());
    let listener = HvListener::bind(("any", service)).await?;
    println!("listening at {}", listener.local_addr()?);
    loop {
        // An error here is final: it says why nobody can connect any more.
        let (stream, _) = listener.accept().await?;
        tokio::spawn(async move {
            let number = stream.connection_id();
            if let Err(error) = serve(stream).await {
                eprintln!("connection {number}: {error}");
            }
        });
    }
}

async fn serve(stream: HvStream) -> io::Result<()> {
    let who = match stream.peer() {
        Some(peer) => match (peer.pid(), peer.uid()) {
            (Some(pid), Some(uid)) => format!("{}, process {pid} of user {uid}", peer.partition()),
            _ => peer.partition().to_owned(),
        },
        None => "nobody known".to_owned(),
    };
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read).lines();
    while let Some(line) = timeout(SILENCE, lines.next_line()).await?? {
        write
            .write_all(format!("{who}: {line}\n").as_bytes())
            .await?;
    }
    write.shutdown().await
}
