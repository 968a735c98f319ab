//! The device's answer to a packet of no connection.

use crate::Header;

/// An RST to a packet of no connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reply {
    pub(super) header: Header,
    /// The packet was a REQUEST, whose answer the guest waits for.
    pub(super) refuses: bool,
}
