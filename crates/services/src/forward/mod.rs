//! What both halves of forwarding have in common: addresses, the messages that begin a
//! connection, the records that carry a socket's bytes, and the sockets themselves.
//!
//! A socket here and a socket there become one: bytes, half-closes and failures of either are
//! those of the other. What fails is never shown as an end. `proto/hvsock/forward.proto` has the
//! format.

mod address;
pub(crate) mod message;
mod records;
mod socket;
mod splice;

pub use address::{Address, ParseAddressError};
pub use socket::{Listener, Socket};
pub use splice::{Far, Fault, Moved, splice};

/// The longest reason that is told or taken, in bytes.
pub(crate) const LONGEST_REASON: usize = 1024;

/// `text` with at most `limit` bytes.
pub(crate) fn shortened(mut text: String, limit: usize) -> String {
    let mut end = limit.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text
}
