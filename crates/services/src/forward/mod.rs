//! The forwarding protocol, shared by both ends: addresses, the messages that begin a connection,
//! the records that contain a socket's bytes, and the sockets.
//!
//! A local socket and a remote socket act as one: bytes, half-closes and failures of either one
//! appear at the other. A failure is a reset at the other end, not an end of file, except to the
//! peer of a Unix socket, which cannot report one. `proto/hvsock/forward.proto` defines the format.

mod address;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
pub(crate) mod message;
mod records;
mod relay;
mod socket;

pub use address::{Address, ParseAddressError};
pub use records::Violation;
pub use relay::{Fault, Remote, Transferred, relay};
pub use socket::{Listener, Socket};

/// The longest reason that is sent or accepted, in bytes.
pub(crate) const MAX_REASON: usize = 1024;
