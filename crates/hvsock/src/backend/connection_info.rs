//! The addresses, peer and id of a connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hvsock_address::SockAddrHv;

use crate::Peer;

/// The two ends of a connection, as seen from one of them.
#[derive(Debug)]
pub(crate) struct ConnectionInfo {
    pub(crate) local: SockAddrHv,
    pub(crate) peer: SockAddrHv,
    /// The process that connected; set on the accepting end only.
    pub(crate) peer_process: Option<Arc<Peer>>,
    /// The id of the connection.
    pub(crate) id: u64,
}

impl ConnectionInfo {
    /// A connection without a broker.
    pub(crate) fn local(local: SockAddrHv, peer: SockAddrHv, peer_process: Option<Peer>) -> Self {
        Self {
            local,
            peer,
            peer_process: peer_process.map(Arc::new),
            id: next_local_id(),
        }
    }
}

/// Returns an id that is unique in this process, for a connection or listener without a broker.
pub(crate) fn next_local_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}
