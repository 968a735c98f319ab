//! What an end has done to wake its peer and to wait for it.

use std::sync::atomic::{AtomicU64, Ordering};

/// What one end has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RingStats {
    /// Times that it rang the other end's bell: system calls made to wake a sleeper.
    pub rings: u64,
    /// Times that one of its threads slept.
    pub sleeps: u64,
    /// Times that one of its threads looked for a moment and need not sleep.
    pub spins: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) rings: AtomicU64,
    pub(crate) sleeps: AtomicU64,
    pub(crate) spins: AtomicU64,
}

impl Counts {
    pub(crate) fn get(&self) -> RingStats {
        RingStats {
            rings: self.rings.load(Ordering::Relaxed),
            sleeps: self.sleeps.load(Ordering::Relaxed),
            spins: self.spins.load(Ordering::Relaxed),
        }
    }
}

pub(crate) fn count(what: &AtomicU64) {
    what.fetch_add(1, Ordering::Relaxed);
}
