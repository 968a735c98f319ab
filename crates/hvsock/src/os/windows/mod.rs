//! Windows: the system's own Hyper-V sockets, `AF_HYPERV` of Winsock.
//!
//! There is no broker: the system decides, and keeps the registrations in its registry. What it
//! says in error numbers is told here in the words of refusals, with what its registry and its
//! virtual machines say beside.

pub(crate) mod backend;
mod sockets;
pub(crate) mod stdio;
#[cfg(feature = "tokio")]
pub(crate) mod tokio;
pub(crate) mod wait;
mod zero_copy;

/// A socket to watch.
pub(crate) type Descriptor<'a> = std::os::windows::io::BorrowedSocket<'a>;

/// What the library has on this system.
pub mod exports {
    pub use super::zero_copy::{Bytes, Filled, Reserved, RingStats};
}
