//! The words of an arena, as they lie in its memory. [`arena`](crate::arena) has the table of offsets.

use crate::layout::{CachePadded, Header};
use crate::sync::{AtomicU32, AtomicU64, FutexWord};

/// The most slots that an arena has. Every arena has the words of this many.
#[cfg(not(loom))]
pub(crate) const SLOTS: usize = 1024;
#[cfg(loom)]
pub(crate) const SLOTS: usize = 2;

/// The number of different sequence numbers, which are 1 to this number.
pub(crate) const SEQUENCE: u64 = (1 << 20) - 1;

/// All words of an arena. The rings follow them.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct ArenaWords {
    pub(crate) queue: QueueWords,
    /// 1: the broker wants a message at the next change. Who stores 0 in its place sends it.
    pub(crate) broker_request: CachePadded<AtomicU32>,
    /// What each process counts.
    pub(crate) totals: [CachePadded<EndTotals>; 2],
    /// The slots in which each process has something to do.
    pub(crate) ready: [ReadyWords; 2],
    pub(crate) entries: Page<[AtomicU64; SLOTS]>,
    /// The client's entry of each slot.
    pub(crate) opened: Page<[ClientEntry; SLOTS]>,
    /// The server's entry of each slot.
    pub(crate) accepted: Page<[ServerEntry; SLOTS]>,
    pub(crate) slots: Page<[SlotWords; SLOTS]>,
}

/// The counters of the connect queue.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct QueueWords {
    /// Connections ever opened. Stored by the client.
    pub(crate) published: CachePadded<AtomicU64>,
    /// Connections ever taken from the queue. Stored by the server.
    pub(crate) taken: CachePadded<AtomicU64>,
    /// 1: an acceptor found the queue empty and wants a notification. Who stores 0 in its place
    /// notifies.
    pub(crate) accept_request: CachePadded<AtomicU32>,
}

/// What a process counts of its closed ends.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct EndTotals {
    pub(crate) closed: AtomicU64,
    /// Bytes that it wrote to connections that it has closed.
    pub(crate) closed_bytes: AtomicU64,
}

/// The slots in which a process has something to do.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct ReadyWords {
    /// 1: the process was notified by its doorbell since it last drained the set.
    pub(crate) pending: CachePadded<AtomicU32>,
    /// One bit per slot.
    pub(crate) slots: CachePadded<[AtomicU64; SLOTS.div_ceil(64)]>,
}

/// What the client says about a slot.
#[repr(C, align(32))]
#[derive(Debug)]
pub(crate) struct ClientEntry {
    /// The sequence number of the last connection (high half), and [`FREE`], [`OPEN`] or [`CLOSING`].
    pub(crate) life: AtomicU64,
    /// When it was opened, in microseconds of `CLOCK_MONOTONIC`.
    pub(crate) opened_at: AtomicU64,
    /// 1: keep the connection while a partition is suspended.
    pub(crate) keep: AtomicU32,
}

/// What the server says about a slot.
#[repr(C, align(16))]
#[derive(Debug)]
pub(crate) struct ServerEntry {
    /// The sequence number of the last accepted connection.
    pub(crate) accepted: AtomicU32,
    /// The sequence number of the last connection that the server has closed or not accepted.
    pub(crate) done: AtomicU32,
    /// As [`ClientEntry::keep`].
    pub(crate) keep: AtomicU32,
}

/// The slot is not in use: a value of [`ClientEntry::life`].
pub(crate) const FREE: u64 = 0;
/// The client's end is open: a value of [`ClientEntry::life`].
pub(crate) const OPEN: u64 = 1;
/// The client's end is closed: a value of [`ClientEntry::life`].
pub(crate) const CLOSING: u64 = 2;

/// The header of a connection, and its futexes.
#[repr(C, align(2048))]
#[derive(Debug)]
pub(crate) struct SlotWords {
    pub(crate) header: Header,
    /// Of each end.
    pub(crate) wakeups: [CachePadded<Wakeups>; 2],
}

/// How the threads of one end want to be woken.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Wakeups {
    /// The word that its threads wait on.
    pub(crate) futex: FutexWord,
    /// [`BY_FUTEX`] and [`BY_SIGNAL`]. Stored by this end.
    pub(crate) modes: AtomicU32,
}

/// Threads of this end may wait on its futex: a bit of [`Wakeups::modes`].
pub(crate) const BY_FUTEX: u32 = 1;
/// This end wants its bit in the ready set: a bit of [`Wakeups::modes`].
pub(crate) const BY_SIGNAL: u32 = 2;

/// The words of the grant page.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct GrantWords {
    /// [`Grant`](super::Grant) as a number.
    pub(crate) state: AtomicU32,
    /// The number of slots that may be used.
    pub(crate) granted: AtomicU32,
    /// The most connections that the server has not taken from the queue.
    pub(crate) backlog: AtomicU32,
    /// The size of each ring. Never changes.
    pub(crate) ring: AtomicU32,
    /// The most slots that may ever be granted. Never changes.
    pub(crate) slots: AtomicU32,
    /// The number of connections in the queue, ever, when the client's process was found gone; the
    /// largest number before. The server accepts those also after the grant is revoked.
    pub(crate) left: AtomicU64,
}

/// Lets a table begin at a page.
#[repr(C, align(4096))]
#[derive(Debug)]
pub(crate) struct Page<T>(pub(crate) T);

#[cfg(not(loom))]
const _: () = {
    use std::mem::{offset_of, size_of};
    assert!(offset_of!(ArenaWords, broker_request) == 384);
    assert!(offset_of!(ArenaWords, totals) == 512);
    assert!(offset_of!(ArenaWords, ready) == 768);
    assert!(size_of::<ReadyWords>() == 256);
    assert!(offset_of!(ArenaWords, entries) == 0x1000);
    assert!(offset_of!(ArenaWords, opened) == 0x3000);
    assert!(size_of::<ClientEntry>() == 32);
    assert!(offset_of!(ArenaWords, accepted) == 0xB000);
    assert!(size_of::<ServerEntry>() == 16);
    assert!(offset_of!(ArenaWords, slots) == 0xF000);
    assert!(size_of::<SlotWords>() == 2048);
    assert!(offset_of!(SlotWords, wakeups) == 1664);
    assert!(size_of::<ArenaWords>() == 0x20_F000);
};

#[cfg(loom)]
mod loom_words {
    //! New words in this process's own memory.

    use super::*;

    fn word() -> AtomicU32 {
        AtomicU32::new(0)
    }

    fn long() -> AtomicU64 {
        AtomicU64::new(0)
    }

    impl QueueWords {
        pub(crate) fn new() -> Self {
            Self {
                published: CachePadded(long()),
                taken: CachePadded(long()),
                accept_request: CachePadded(word()),
            }
        }
    }

    impl ReadyWords {
        pub(crate) fn new() -> Self {
            Self {
                pending: CachePadded(word()),
                slots: CachePadded([(); SLOTS.div_ceil(64)].map(|()| long())),
            }
        }
    }

    impl ClientEntry {
        pub(crate) fn new() -> Self {
            Self {
                life: long(),
                opened_at: long(),
                keep: word(),
            }
        }
    }

    impl ServerEntry {
        pub(crate) fn new() -> Self {
            Self {
                accepted: word(),
                done: word(),
                keep: word(),
            }
        }
    }

    impl Wakeups {
        pub(crate) fn new() -> Self {
            Self {
                futex: FutexWord::default(),
                modes: word(),
            }
        }
    }

    impl GrantWords {
        /// A page that grants every slot.
        pub(crate) fn new() -> Self {
            Self {
                state: AtomicU32::new(1),
                granted: AtomicU32::new(SLOTS as u32),
                backlog: AtomicU32::new(SLOTS as u32),
                ring: AtomicU32::new(4096),
                slots: AtomicU32::new(SLOTS as u32),
                left: AtomicU64::new(u64::MAX),
            }
        }
    }

    impl EndTotals {
        pub(crate) fn new() -> Self {
            Self {
                closed: long(),
                closed_bytes: long(),
            }
        }
    }
}
