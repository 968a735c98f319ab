//! The ready set: the slots in which a process has something to do, as bits, with one doorbell for all.

use super::words::{ReadyWords, SLOTS};
use crate::sync::{Ordering, fence};

/// Adds a slot. Returns whether to notify the process by its doorbell.
pub(crate) fn add(words: &ReadyWords, slot: u32) -> bool {
    mark(words, slot);
    words.pending.0.load(Ordering::Relaxed) == 0 && words.pending.0.swap(1, Ordering::AcqRel) == 0
}

/// Adds a slot without a notification: the process is told by other means, and drains the set then.
pub(crate) fn mark(words: &ReadyWords, slot: u32) {
    let slot = slot as usize % SLOTS;
    words.slots.0[slot / 64].fetch_or(1 << (slot % 64), Ordering::Release);
    fence(Ordering::SeqCst);
}

/// Whether a slot is in the set.
pub(crate) fn has_any(words: &ReadyWords) -> bool {
    let slots = &words.slots.0;
    slots.iter().any(|word| word.load(Ordering::Relaxed) != 0)
}

/// Requests a notification for the next slot. Returns whether there is none yet.
pub(crate) fn arm(words: &ReadyWords) -> bool {
    words.pending.0.swap(0, Ordering::AcqRel);
    fence(Ordering::SeqCst);
    !has_any(words)
}

/// Empties the set, and calls `each` for every slot that was in it. Called after the doorbell was drained.
pub(crate) fn drain(words: &ReadyWords, each: impl FnMut(u32)) {
    words.pending.0.swap(0, Ordering::AcqRel);
    fence(Ordering::SeqCst);
    take(words, each);
}

/// As [`drain`], without a request for further notifications.
pub(crate) fn take(words: &ReadyWords, mut each: impl FnMut(u32)) {
    for (word, first) in words.slots.0.iter().zip((0..).step_by(64)) {
        if word.load(Ordering::Relaxed) == 0 {
            continue;
        }
        let mut bits = word.swap(0, Ordering::Acquire);
        while bits != 0 {
            each(first + bits.trailing_zeros());
            bits &= bits - 1;
        }
    }
}
