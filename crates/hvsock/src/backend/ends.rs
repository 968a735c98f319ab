//! Between whom a connection is.

use std::sync::atomic::{AtomicU64, Ordering};

use hvsock_address::SockAddrHv;

use crate::Peer;

/// The two ends of a connection, as one of them sees them.
#[derive(Debug)]
pub(crate) struct Ends {
    pub(crate) local: SockAddrHv,
    pub(crate) peer: SockAddrHv,
    /// Who connected, on the accepting end.
    pub(crate) caller: Option<Peer>,
    /// The connection's number.
    pub(crate) number: u64,
}

/// A number for a connection or listener that nobody else gives one: this process's own.
pub(crate) fn own_number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}
