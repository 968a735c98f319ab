//! What lies where in the shared memory.
//!
//! One page of words, then the bytes from the first end to the second, then those back:
//!
//! ```text
//! 0        state                         the broker's word: cut, suspended
//! 128      words of first → second:      +0 head, +128 tail, +256 awake, +384 space, +512 ended, +516 closed
//! 768      words of second → first       likewise
//! 1408     where the first end runs       its processor's number and 1; 0 is unknown
//! 1536     where the second end runs      likewise
//! 4096     bytes of first → second       as many as the ring's size
//! 4096+n   bytes of second → first
//! ```
//!
//! Every word that one side writes often has a cache line of its own (128 bytes: processors fetch
//! lines in pairs). All zero is the state of a new connection, so nobody has to touch the memory
//! to make one. Both sides may write everything; each believes nothing but its own copies.

use crate::sync::{AtomicU32, AtomicU64};

/// The bytes before the first ring.
pub(crate) const HEADER: usize = 4096;

/// The connection is cut: [`Header::state`].
pub(crate) const CUT: u32 = 1;
/// The connection stands still: [`Header::state`].
pub(crate) const SUSPENDED: u32 = 2;

/// The reader has shut its direction down and lives on: [`Direction::closed`].
pub(crate) const SHUT: u32 = 1;
/// The reader is gone for good: [`Direction::closed`].
pub(crate) const GONE: u32 = 2;

/// The first page.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Header {
    /// [`CUT`] and [`SUSPENDED`], as bits.
    pub(crate) state: Line<AtomicU32>,
    /// The words of each direction.
    pub(crate) directions: [Direction; 2],
    /// By each end, now and then: the number of the processor that runs it, and 1; 0 is unknown.
    /// Whoever runs on the same one need not look whether the other does something.
    pub(crate) processors: [Line<AtomicU32>; 2],
}

/// The words of one direction. "Writer" is the end that writes its bytes.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Direction {
    /// By the writer: bytes ever written, modulo 2^64.
    pub(crate) head: Line<AtomicU64>,
    /// By the reader: bytes ever read, modulo 2^64.
    pub(crate) tail: Line<AtomicU64>,
    /// 0 by a reader that sleeps and wants its bell rung when there is data or an end; 1 by
    /// whoever rings it, and by a reader that has woken up by itself.
    pub(crate) awake: Line<AtomicU32>,
    /// By a writer that sleeps: the free bytes at which it wants its bell rung; 0 by whoever
    /// rings it, and by a writer that has woken up by itself.
    pub(crate) space: Line<AtomicU64>,
    /// Words that change once.
    pub(crate) ends: Line<Ends>,
}

/// How a direction ended.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Ends {
    /// By the writer: 1 after its last byte.
    pub(crate) ended: AtomicU32,
    /// By the reader: [`SHUT`] or [`GONE`].
    pub(crate) closed: AtomicU32,
}

/// Something with cache lines of its own.
#[repr(C, align(128))]
#[derive(Debug)]
pub(crate) struct Line<T>(pub(crate) T);

#[cfg(not(loom))]
const _: () = {
    use std::mem::{offset_of, size_of};
    assert!(size_of::<Header>() <= HEADER);
    assert!(offset_of!(Header, directions) == 128);
    assert!(offset_of!(Header, processors) == 1408);
    assert!(size_of::<Direction>() == 640);
    assert!(offset_of!(Direction, tail) == 128);
    assert!(offset_of!(Direction, awake) == 256);
    assert!(offset_of!(Direction, space) == 384);
    assert!(offset_of!(Direction, ends) == 512);
};

#[cfg(loom)]
impl Header {
    /// A new connection's words, in this process's own memory.
    pub(crate) fn new() -> Self {
        Self {
            state: Line(AtomicU32::new(0)),
            directions: [Direction::new(), Direction::new()],
            processors: [Line(AtomicU32::new(0)), Line(AtomicU32::new(0))],
        }
    }
}

#[cfg(loom)]
impl Direction {
    fn new() -> Self {
        Self {
            head: Line(AtomicU64::new(0)),
            tail: Line(AtomicU64::new(0)),
            awake: Line(AtomicU32::new(0)),
            space: Line(AtomicU64::new(0)),
            ends: Line(Ends {
                ended: AtomicU32::new(0),
                closed: AtomicU32::new(0),
            }),
        }
    }
}
