//! A service that accepts its connections as a `Stream`, at most 64 at a time. It counts the bytes of
//! each connection.
//!
//! ```sh
//! stream_service "Byte Count"
//! echo hello | hvsock connect loopback "Byte Count"
//! ```

use std::io;

use futures_util::StreamExt;
use hvsock::tokio::{HvListener, HvStream};
use tokio::io::AsyncWriteExt;

const CONNECTIONS: usize = 64;

#[tokio::main]
async fn main() -> io::Result<()> {
    let service = std::env::args().nth(1);
    let listener = HvListener::bind(("any", service.as_deref().unwrap_or("Byte Count"))).await?;
    println!("listening at {}", listener.local_addr()?);
    listener
        .into_incoming()
        .for_each_concurrent(CONNECTIONS, |accepted| async {
            let served = match accepted {
                Ok(stream) => count(stream).await,
                Err(error) => Err(error),
            };
            if let Err(error) = served {
                eprintln!("{error}");
            }
        })
        .await;
    Ok(())
}

async fn count(mut stream: HvStream) -> io::Result<()> {
    let count = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await?;
    stream
        .write_all(format!("{count} bytes\n").as_bytes())
        .await?;
    stream.shutdown().await
}
