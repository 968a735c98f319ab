//! Linux: the broker's endpoint sockets, shared memory, and the kernel's `AF_VSOCK`.

mod abandon;
mod absent;
pub(crate) mod backend;
mod descriptors;
mod plain;
pub(crate) mod stdio;
#[cfg(feature = "tokio")]
pub(crate) mod tokio;
mod wait;

pub(crate) use wait::ready;

/// A descriptor to watch.
pub(crate) type Descriptor<'a> = std::os::fd::BorrowedFd<'a>;

/// What the library has on this system.
pub mod exports {
    pub use super::absent::{NoBroker, NoRegistry};
    pub use super::plain::Plain;
    pub use hvsock_ring::{Bytes, Filled, Reserved, RingStats};
}
