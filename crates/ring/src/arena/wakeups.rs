//! How the two ends of a slot wake each other.
//!
//! An end states how it wants to be woken before it makes its first wakeup request. Whoever takes a request
//! checks that. The order is that of [`producer`](crate::producer): two full barriers, so no wakeup is lost.

use super::ready;
use super::words::{BY_FUTEX, BY_SIGNAL, ReadyWords, Wakeups};
use crate::sync::{Ordering, fence};

/// Adds a way to be woken, before a wakeup request.
pub(crate) fn add_mode(wakeups: &Wakeups, mode: u32) {
    if wakeups.modes.load(Ordering::Relaxed) & mode == 0 {
        wakeups.modes.fetch_or(mode, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }
}

/// Removes a way to be woken.
pub(crate) fn remove_mode(wakeups: &Wakeups, mode: u32) {
    wakeups.modes.fetch_and(!mode, Ordering::Relaxed);
}

/// Wakes the waiters of an end. Returns whether its process must be notified by its doorbell.
pub(crate) fn wake_end(wakeups: &Wakeups, ready: &ReadyWords, slot: u32) -> bool {
    wake_threads(wakeups) & BY_SIGNAL != 0 && ready::add(ready, slot)
}

/// As [`wake_end`], for a process that wants signals, whatever its wakeup requests are.
pub(crate) fn signal_end(wakeups: &Wakeups, ready: &ReadyWords, slot: u32) -> bool {
    fence(Ordering::SeqCst);
    wakeups.modes.load(Ordering::Relaxed) & BY_SIGNAL != 0 && ready::add(ready, slot)
}

/// As [`wake_end`], for the broker, which has no doorbell: the process drains its ready set when it gets the
/// broker's next message.
pub(crate) fn wake_end_without_doorbell(wakeups: &Wakeups, ready: &ReadyWords, slot: u32) {
    if wake_threads(wakeups) & BY_SIGNAL != 0 {
        ready::mark(ready, slot);
    }
}

/// Wakes the threads that wait at an end. Returns how it wants to be woken.
fn wake_threads(wakeups: &Wakeups) -> u32 {
    // After the caller has taken the wakeup request, or changed the state.
    fence(Ordering::SeqCst);
    let modes = wakeups.modes.load(Ordering::Relaxed);
    if modes & BY_FUTEX != 0 {
        wakeups.futex.wake();
    }
    modes
}
