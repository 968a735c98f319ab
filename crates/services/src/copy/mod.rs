//! The copy protocol: one end sends and the other receives. Both ends use the same code, whichever
//! of them is the guest.
//!
//! The [`Sender`] walks the sources and the [`Receiver`] recreates them, over any [`Link`].
//! `proto/hvsock/copy.proto` defines the interface.
//!
//! **Neither end trusts the other.** A received name must be a single path component ([`Name`]), or
//! the copy ends. Folders are entered by descriptor and never through a symbolic link, so nothing
//! can escape the destination (no TOCTOU race). Content is written to a temporary name beside the
//! final one, and renamed when its checksum is right. Every table and message has a limit.
//!
//! **The checksum is XXH3-128, which is not cryptographic.** It detects faults: bad memory, a file
//! that changes while it is read, a resumed copy that does not fit. No checksum helps against a
//! hostile peer, because the peer computes it.

mod error;
mod identity;
mod message_stream;
mod name;
mod note;
mod own_descriptor;
mod receive;
mod send;
mod sum;
mod tally;
#[cfg(test)]
mod tests;

pub use error::CopyError;
#[cfg(feature = "guest")]
pub(crate) use message_stream::KEEPALIVE;
pub use message_stream::{IDLE_TIMEOUT, Link, MessageStream};
pub use name::{BadName, Name};
pub use note::{CopyCounters, Note, Observer, Unobserved};

pub use receive::{Destination, Receiver, Trust};
pub use send::{Sender, Source};

/// The largest message, in bytes.
const MESSAGE: usize = 64 * 1024;

/// The largest chunk of a file, in bytes.
const CHUNK: usize = 1 << 20;

/// The I/O buffer size, in bytes: read, hashed and written at once while it is in the CPU cache.
const BUFFER: usize = 256 * 1024;

/// The deepest nesting of folders; each level holds a file descriptor.
const DEPTH: usize = 256;

/// The smallest file that is resumed after an interrupted copy, in bytes.
const RESUME_SIZE: u64 = 1 << 20;

/// The most notes that a receiver sends, so that sending notes can never block it. Further failures
/// are only counted.
const NOTES: u64 = 128;
