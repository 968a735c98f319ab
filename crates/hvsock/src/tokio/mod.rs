//! Connections and listeners for the tokio runtime.
//!
//! The types behave like [`crate::HvStream`] and [`crate::HvListener`] and implement `AsyncRead`
//! and `AsyncWrite`. They need a runtime with I/O and time enabled. `from_std` and `into_std`
//! convert between the blocking and the async type.
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
//!
//! # Other crates
//!
//! Cargo features of this crate connect these types to the ecosystem:
//!
//! | feature | with it |
//! |---|---|
//! | `stream` | `HvListener::incoming` and `into_incoming` are a `futures_core::Stream` |
//! | `axum` | `axum::serve` takes an [`HvListener`]; handlers get an `HvConnectInfo` |
//! | `hyper` | `HvConnector` connects the clients of hyper-util |
//! | `tonic` | tonic's servers take [`HvStream`]s, its channels an `HvConnector` |
//!
//! # Cancel safety
//!
//! `read`, `write`, [`HvStream::peek`], [`HvStream::readable`], [`HvStream::writable`] and
//! [`HvListener::accept`] are cancel safe: no byte and no connection is lost if their future is
//! dropped. As with every tokio stream, `read_exact` and `write_all` are not. Dropping the future
//! of a connect cancels the connect.

#[cfg(feature = "axum")]
mod axum;
#[cfg(any(feature = "axum", feature = "tonic"))]
mod connect_info;
#[cfg(feature = "hyper")]
mod connector;
#[cfg(feature = "stream")]
mod incoming;
mod io;
mod listener;
mod split;
mod stream;
#[cfg(feature = "tonic")]
mod tonic;

#[cfg(any(feature = "axum", feature = "tonic"))]
pub use connect_info::HvConnectInfo;
#[cfg(feature = "hyper")]
pub use connector::HvConnector;
#[cfg(feature = "stream")]
pub use incoming::{Incoming, IntoIncoming};
pub use listener::HvListener;
pub use split::{OwnedReadHalf, OwnedWriteHalf, ReadHalf, ReuniteError, WriteHalf};
pub use stream::HvStream;
