//! The layout of the shared memory.
//!
//! One header page, then one ring for the bytes from the first end to the second, then one for the
//! bytes from the second to the first:
//!
//! ```text
//! 0        state                         reset bit (an end or the broker), suspended bit (the broker)
//! 128      first → second:               +0 head, +128 tail, +256 awake, +384 space,
//!                                        +512 ended, +516 closed, +520 window
//! 768      second → first                likewise
//! 1408     processor of the first end    its number plus 1; 0 is unknown; bit 31: as a reader it
//!                                        follows the window
//! 1536     processor of the second end   likewise
//! 4096     bytes of first → second       as many as the ring's size
//! 4096+n   bytes of second → first
//! ```
//!
//! Each word that one side writes often has its own cache line, which avoids false sharing. The
//! alignment is 128 bytes because processors prefetch cache lines in pairs. A new connection is all
//! zeros, so creating one touches no page. Both sides can write every word; each trusts only its
//! private copies.

use crate::sync::{AtomicU32, AtomicU64};

/// The size in bytes of the header before the first ring.
pub(crate) const HEADER: usize = 4096;

/// The connection is reset: a bit of [`Header::state`].
pub(crate) const RESET: u64 = 1;
/// The connection is suspended: a bit of [`Header::state`].
pub(crate) const SUSPENDED: u64 = 2;

/// A bit of [`Header::processors`]: as a reader this end follows [`CloseFlags::window`].
pub(crate) const FOLLOWS: u32 = 1 << 31;

/// The reader shut down this direction and is still open: a value of [`CloseFlags::closed`].
pub(crate) const READER_SHUT: u32 = 1;
/// The reader is gone for good: a value of [`CloseFlags::closed`].
pub(crate) const READER_GONE: u32 = 2;

/// The first page.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Header {
    /// [`RESET`], [`SUSPENDED`] and the causes of a reset. The high half is 0, or the connection's
    /// sequence number in its arena ([`crate::arena`]).
    pub(crate) state: CachePadded<AtomicU64>,
    /// The words of each direction.
    pub(crate) directions: [Direction; 2],
    /// The processor that last ran each end: its number plus 1; 0 is unknown. Each end updates its
    /// own now and then. On the peer's processor, spinning cannot help. With [`FOLLOWS`].
    pub(crate) processors: [CachePadded<AtomicU32>; 2],
}

/// The words of one direction. The writer is the end that writes its bytes.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Direction {
    /// Bytes ever written, modulo 2^64. Stored by the writer.
    pub(crate) head: CachePadded<AtomicU64>,
    /// Bytes ever read, modulo 2^64. Stored by the reader.
    pub(crate) tail: CachePadded<AtomicU64>,
    /// The reader's wakeup request. The reader stores 0 to request a notification of data, of the
    /// end of the stream or of a reset. The thread that notifies it stores 1 first. A reader that
    /// withdraws its request stores 1, too.
    pub(crate) awake: CachePadded<AtomicU32>,
    /// The writer's wakeup request: the free space in bytes (low watermark) at which the writer
    /// requests a notification; 0 is no request. The thread that notifies it stores 0 first. A
    /// writer that withdraws its request stores 0, too.
    pub(crate) space: CachePadded<AtomicU64>,
    /// Words that change rarely.
    pub(crate) close: CachePadded<CloseFlags>,
}

/// How each side closed a direction, and the part of the ring in use.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct CloseFlags {
    /// 1 after the last byte. Stored by the writer.
    pub(crate) ended: AtomicU32,
    /// [`READER_SHUT`] or [`READER_GONE`]. Stored by the reader.
    pub(crate) closed: AtomicU32,
    /// The bytes at the start of the ring that the writer uses: a power of two, or 0 for the whole ring.
    /// Stored by the writer, while the reader has read all bytes and before the next one is published.
    pub(crate) window: AtomicU32,
}

/// Gives a value its own pair of cache lines, which avoids false sharing.
#[repr(C, align(128))]
#[derive(Debug)]
pub(crate) struct CachePadded<T>(pub(crate) T);

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
    assert!(offset_of!(Direction, close) == 512);
};

#[cfg(loom)]
impl Header {
    /// The header of a new connection, in this process's own memory.
    pub(crate) fn new() -> Self {
        Self {
            state: CachePadded(AtomicU64::new(0)),
            directions: [Direction::new(), Direction::new()],
            processors: [
                CachePadded(AtomicU32::new(0)),
                CachePadded(AtomicU32::new(0)),
            ],
        }
    }
}

#[cfg(loom)]
impl Direction {
    fn new() -> Self {
        Self {
            head: CachePadded(AtomicU64::new(0)),
            tail: CachePadded(AtomicU64::new(0)),
            awake: CachePadded(AtomicU32::new(0)),
            space: CachePadded(AtomicU64::new(0)),
            close: CachePadded(CloseFlags {
                ended: AtomicU32::new(0),
                closed: AtomicU32::new(0),
                window: AtomicU32::new(0),
            }),
        }
    }
}
