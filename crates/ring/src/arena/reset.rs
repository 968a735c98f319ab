//! Why a connection was reset, as bits of its state word.

use crate::layout::RESET;
use crate::sync::{AtomicU64, Ordering};

/// Why a connection in an arena was reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ResetCause {
    /// By the broker, which tells the reason on the control connection.
    Control,
    /// The peer closed its end, or its process ended, without ending its data.
    PeerGone,
    /// The peer closed its end without reading all data.
    UnreadData,
    /// An end aborted the connection.
    Aborted,
}

const PEER_GONE: u64 = 1 << 8;
const UNREAD_DATA: u64 = 1 << 9;
const ABORTED: u64 = 1 << 10;

/// How often a compare-and-swap is tried against a process that changes the word all the time.
const MAX_TRIES: u32 = 64;

impl ResetCause {
    /// The bits of the state word.
    pub(crate) const fn bits(self) -> u64 {
        match self {
            Self::Control => 0,
            Self::PeerGone => PEER_GONE,
            Self::UnreadData => UNREAD_DATA,
            Self::Aborted => ABORTED,
        }
    }

    /// The cause of the state word. Two ends that reset at once may set the bits of both.
    pub(crate) const fn of(state: u64) -> Self {
        match () {
            () if state & PEER_GONE != 0 => Self::PeerGone,
            () if state & UNREAD_DATA != 0 => Self::UnreadData,
            () if state & ABORTED != 0 => Self::Aborted,
            () => Self::Control,
        }
    }
}

/// Whether the connection with this state word was reset by the broker.
pub(crate) const fn is_by_broker(state: u64) -> bool {
    state & RESET != 0 && matches!(ResetCause::of(state), ResetCause::Control)
}

/// Begins a connection in a slot that was used before. By a read-modify-write, as all changes of the word: so
/// it is ordered with those of the broker for the connection before.
pub(crate) fn begin(state: &AtomicU64, seq: u32) {
    state.swap(u64::from(seq) << 32, Ordering::AcqRel);
}

/// Sets and clears flags of the state word of the connection `seq`, unless the word is another
/// connection's by now. Returns the word before, if it was changed.
///
/// If other processes keep changing the word, that fails at some time; it harms only them.
pub(crate) fn change(state: &AtomicU64, seq: u32, set: u64, clear: u64) -> Option<u64> {
    let mut old = state.load(Ordering::Relaxed);
    for _ in 0..MAX_TRIES {
        let new = (old | set) & !clear;
        if old >> 32 != u64::from(seq) || new == old {
            return None;
        }
        match state.compare_exchange(old, new, Ordering::AcqRel, Ordering::Relaxed) {
            Ok(old) => return Some(old),
            Err(found) => old = found,
        }
    }
    None
}
