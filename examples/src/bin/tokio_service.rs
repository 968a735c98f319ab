//! A service with tokio. It echoes each line with the sender's identity, and closes a connection after
//! an idle timeout.
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

const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

#[tokio::main]
async fn main() -> io::Result<()> {
    let service = std::env::args()
        .nth(1)
        .unwrap_or_else(|| "Who am I".to_owned());
    let listener = HvListener::bind(("any", service)).await?;
    println!("listening at {}", listener.local_addr()?);
    loop {
        // An error is final: the listener cannot accept any more. The error contains the reason.
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
    // Verified by the broker. The peer cannot forge it.
    let sender = match stream.peer() {
        Some(peer) => match (peer.pid(), peer.uid()) {
            (Some(pid), Some(uid)) => format!("{}, process {pid} of user {uid}", peer.partition()),
            _ => peer.partition().to_owned(),
        },
        None => "unknown peer".to_owned(),
    };
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read).lines();
    while let Some(line) = timeout(IDLE_TIMEOUT, lines.next_line()).await?? {
        write
            .write_all(format!("{sender}: {line}\n").as_bytes())
            .await?;
    }
    write.shutdown().await
}
