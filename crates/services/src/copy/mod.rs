//! Copying files: one end sends, the other receives, and which of them is the guest makes no
//! difference to either.
//!
//! [`send`](Sender) walks what is to be copied and [`receive`](Receiver) makes it again, over
//! anything that is a [`Link`]. The interface is in `proto/hvsock/copy.proto`.
//!
//! **Neither end believes the other.** A name that comes is one component of a path or the copy
//! ends ([`Name`]); a folder is entered by its descriptor and never through a symbolic link, so
//! there is no way out of the destination, whatever was sent before. What comes is written beside
//! its final name, which it gets once its checksum is right. Every table and message has a limit.
//!
//! **The checksum is XXH3-128 and not cryptographic**: it is there against faults (of memory, of a
//! file that changes while it is read, of a broken copy that goes on), which it finds as surely.
//! Against the other end no checksum helps, since that end computes it.

mod error;
mod line;
mod name;
mod note;
mod receive;
mod send;
mod sum;
#[cfg(test)]
mod tests;

pub use error::CopyError;
pub use line::{Line, Link, PATIENCE};
pub use name::{BadName, Name};
pub use note::{Note, Observer, Tally, Unobserved};
pub use receive::{Destination, Receiver, Trust};
pub use send::{Sender, Source};

/// The most bytes of a message.
const MESSAGE: usize = 64 * 1024;

/// The most bytes of one piece of a file.
const PIECE: usize = 1 << 20;

/// Bytes that are read, hashed and written at once: they stay in the processor's cache meanwhile.
const CHUNK: usize = 256 * 1024;

/// How many folders may be in one another: as many descriptors are open.
const DEPTH: usize = 256;

/// From this size on a broken copy of a file goes on where it stopped.
const RESUMED: u64 = 1 << 20;

/// The most notes that a receiver tells of, so that telling them can never hold it up; more are
/// counted.
const NOTES: u64 = 128;
