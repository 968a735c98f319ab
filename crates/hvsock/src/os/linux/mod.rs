//! Linux: endpoint sockets of the broker, shared memory, and the kernel's `AF_VSOCK`.

pub(crate) mod backend;
mod descriptors;
mod listen_fds;
mod no_broker;
mod owned_fds;
mod reset;
pub(crate) mod stdio;
#[cfg(feature = "tokio")]
pub(crate) mod tokio;
mod wait;

pub(crate) use no_broker::{fix_of, with_fix};
pub(crate) use wait::ready;

/// A socket of the system.
pub(crate) type Socket = std::os::fd::OwnedFd;

/// A borrowed descriptor to watch.
pub(crate) type Descriptor<'a> = std::os::fd::BorrowedFd<'a>;

/// The public items of this system.
pub mod exports {
    pub use super::listen_fds::{ListenFd, listen_fds};
    pub use super::no_broker::{NoBroker, NoRegistry};
    pub use super::owned_fds::OwnedFds;
    pub use hvsock_ring::{Bytes, Filled, Reserved, RingStats};
}
