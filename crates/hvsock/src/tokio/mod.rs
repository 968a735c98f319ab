//! Connections and listeners for the tokio runtime.
//!
//! They behave as [`crate::HvStream`] and [`crate::HvListener`] do, and need a runtime with I/O
//! and time enabled. Connections of both kinds can be turned into each other.
//!
//! ```no_run
//! use hvsock::tokio::{HvListener, HvStream};
//! use tokio::io::{AsyncReadExt, AsyncWriteExt};
//!
//! # async fn service() -> std::io::Result<()> {
//! let listener = HvListener::bind(("children", "HV Socket Demo")).await?;
//! loop {
//!     let (mut stream, _) = listener.accept().await?;
//!     tokio::spawn(async move { stream.write_all(b"hello").await });
//! }
//! # }
//! # async fn user() -> std::io::Result<()> {
//! let mut stream = HvStream::connect(("parent", "HV Socket Demo")).await?;
//! let mut text = String::new();
//! stream.read_to_string(&mut text).await?;
//! # Ok(())
//! # }
//! ```

mod listener;
mod split;
mod stream;

pub use listener::HvListener;
pub use split::{OwnedReadHalf, OwnedWriteHalf, ReadHalf, ReuniteError, WriteHalf};
pub use stream::HvStream;
