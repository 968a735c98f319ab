//! The byte counters of a connection.

pub(crate) mod snapshot;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hvsock_ring::Monitor;

/// The byte counters of a connection, one per direction. The core can read them at any time.
///
/// On a relayed connection they count bytes that the sink's socket has accepted. On a ring they are
/// the count that each end has published. A hostile end can publish any value, so the counters are
/// made monotonic.
#[derive(Debug, Default)]
pub(crate) struct ByteCounters {
    counted: [AtomicU64; 2],
    ring: Option<Arc<Monitor>>,
    /// The bytes pass without the broker.
    is_uncounted: bool,
}

impl ByteCounters {
    /// The counters of a ring connection.
    pub(crate) fn of_ring(monitor: Arc<Monitor>) -> Self {
        Self {
            counted: Default::default(),
            ring: Some(monitor),
            is_uncounted: false,
        }
    }

    /// The counters of a direct connection, whose bytes nobody counts.
    pub(crate) fn uncounted() -> Self {
        Self {
            is_uncounted: true,
            ..Self::default()
        }
    }

    /// Counters that go on from these, of a connection without a ring; `None` for one whose bytes nobody counts.
    pub(crate) fn resumed(counted: Option<[u64; 2]>) -> Self {
        Self {
            counted: counted.unwrap_or_default().map(AtomicU64::new),
            ring: None,
            is_uncounted: counted.is_none(),
        }
    }

    /// Bytes from the client and from the server, if they are counted.
    pub(crate) fn counted(&self) -> Option<[u64; 2]> {
        (!self.is_uncounted).then(|| [self.sent(), self.received()])
    }

    /// Bytes from the client to the server.
    pub(crate) fn sent(&self) -> u64 {
        self.read(0, hvsock_ring::RingSide::First)
    }

    /// Bytes from the server to the client.
    pub(crate) fn received(&self) -> u64 {
        self.read(1, hvsock_ring::RingSide::Second)
    }

    fn read(&self, direction: usize, writer: hvsock_ring::RingSide) -> u64 {
        let counted = &self.counted[direction];
        match &self.ring {
            None => counted.load(Ordering::Relaxed),
            Some(monitor) => {
                let published = monitor.written(writer);
                counted
                    .fetch_max(published, Ordering::Relaxed)
                    .max(published)
            }
        }
    }

    /// Counts relayed bytes. `direction` is 0 from the client, 1 from the server.
    pub(crate) fn add(&self, direction: usize, bytes: usize) {
        self.counted[direction & 1].fetch_add(bytes as u64, Ordering::Relaxed);
    }
}
