//! Tells the broker that connections were opened or closed, if it asked.

use super::words::{ArenaWords, EndTotals};
use crate::sync::{AtomicU32, Ordering, fence};

/// Counts a connection that a process has closed.
pub(crate) fn count_closed(totals: &EndTotals, bytes: u64) {
    totals.closed_bytes.fetch_add(bytes, Ordering::Relaxed);
    totals.closed.fetch_add(1, Ordering::Release);
    fence(Ordering::SeqCst);
}

/// Takes the request of a word that one side sets to 1. Returns whether to notify that side: only one
/// thread takes a request. A `SeqCst` fence precedes it.
pub(crate) fn take_request(word: &AtomicU32) -> bool {
    word.load(Ordering::Relaxed) != 0 && word.swap(0, Ordering::Relaxed) != 0
}

/// Asks for a message at the next change. Returns `false`, without a request, if `is_unchanged` does.
pub(crate) fn request(word: &AtomicU32, is_unchanged: impl FnOnce() -> bool) -> bool {
    word.swap(1, Ordering::Relaxed);
    fence(Ordering::SeqCst);
    let is_unchanged = is_unchanged();
    if !is_unchanged {
        word.swap(0, Ordering::Relaxed);
    }
    is_unchanged
}

/// The counters of opened, taken and closed connections.
pub(crate) fn counters(words: &ArenaWords) -> [u64; 4] {
    let closed = |at: usize| words.totals[at].0.closed.load(Ordering::Acquire);
    [
        words.queue.published.0.load(Ordering::Acquire),
        words.queue.taken.0.load(Ordering::Acquire),
        closed(0),
        closed(1),
    ]
}
