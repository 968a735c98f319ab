//! Access to a connection for a third process: byte counts, suspend and reset, but no data.

use std::io;
use std::os::fd::AsFd;

use crate::RingSide;
use crate::layout::{READER_GONE, RESET, SUSPENDED};
use crate::memory::HeaderMapping;
use crate::sync::{Ordering, fence};

/// Maps the header of a connection, for the process that created it and handed out both ends.
///
/// The ends can write the same words. So values read here are the ends' own claims: use them for
/// display and for decisions about this connection only. A busy end sees a change made here at its
/// next read or write. A parked end needs a wakeup by other means, such as the descriptor that it
/// watches beside its doorbell.
#[derive(Debug)]
pub struct Monitor {
    mapping: HeaderMapping,
}

impl Monitor {
    /// Maps the header page of a connection's memory. Keeps no descriptor.
    ///
    /// # Errors
    ///
    /// `InvalidData` if the memory is not sealed or smaller than a page; otherwise the error of
    /// `mmap`.
    pub fn new(memory: impl AsFd) -> io::Result<Self> {
        HeaderMapping::open(memory).map(|mapping| Self { mapping })
    }

    /// The number of bytes that `side` claims to have written, modulo 2^64.
    pub fn written(&self, side: RingSide) -> u64 {
        self.direction(side).head.0.load(Ordering::Acquire)
    }

    /// Whether `side` shut down its writing direction (half-close).
    pub fn has_ended(&self, side: RingSide) -> bool {
        let close = &self.direction(side).close.0;
        close.ended.load(Ordering::Acquire) != 0
    }

    /// Whether bytes were written that `side` did not read.
    pub fn leaves_unread(&self, side: RingSide) -> bool {
        let words = self.direction(side.other());
        words.head.0.load(Ordering::Acquire) != words.tail.0.load(Ordering::Acquire)
    }

    /// Closes the reading direction of `side` on its behalf, after its process is gone.
    ///
    /// The peer's later writes fail. [`leaves_unread`](Self::leaves_unread), called after this,
    /// sees every earlier write.
    pub fn close(&self, side: RingSide) {
        let close = &self.direction(side.other()).close.0;
        close.closed.store(READER_GONE, Ordering::Release);
        fence(Ordering::SeqCst);
    }

    /// Resets the connection: both ends can read the bytes written so far, then get an error.
    #[doc(alias = "abort")]
    pub fn reset(&self) {
        let state = &self.mapping.header().state.0;
        state.fetch_or(RESET, Ordering::Release);
    }

    /// Suspends the connection, so that neither end reads, or resumes it. Each end can still write
    /// until its ring is full.
    #[doc(alias = "resume")]
    pub fn suspend(&self, suspended: bool) {
        let state = &self.mapping.header().state.0;
        if suspended {
            state.fetch_or(SUSPENDED, Ordering::Release);
        } else {
            state.fetch_and(!SUSPENDED, Ordering::Release);
        }
    }

    /// The words of the direction that `side` writes.
    fn direction(&self, side: RingSide) -> &crate::layout::Direction {
        &self.mapping.header().directions[side.index()]
    }
}
