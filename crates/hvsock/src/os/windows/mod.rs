//! Windows: the Hyper-V sockets of the system, `AF_HYPERV` of Winsock.
//!
//! There is no broker. The system decides, and its registry has the registrations. The back-end
//! converts its error numbers to refusals, with the help of its registry and its list of virtual
//! machines.

pub(crate) mod backend;
mod sockets;
pub(crate) mod stdio;
#[cfg(feature = "tokio")]
pub(crate) mod tokio;
pub(crate) mod wait;
mod zero_copy;

/// A socket of the system.
pub(crate) type Socket = std::os::windows::io::OwnedSocket;

/// What would help after an error of this system. Its errors have it themselves.
pub(crate) fn fix_of(_error: &(dyn std::error::Error + 'static)) -> Option<hvsock_fabric::Fix> {
    None
}

/// A borrowed socket to watch.
pub(crate) type Descriptor<'a> = std::os::windows::io::BorrowedSocket<'a>;

/// The public items of this system.
pub mod exports {
    pub use super::zero_copy::{Bytes, Filled, Reserved, RingStats};
}
