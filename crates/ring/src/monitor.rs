//! Access to a connection for a third process: byte counts, suspend and reset, but no data.

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering as Local};

use crate::RingSide;
use crate::layout::{Direction, READER_GONE, RESET, SUSPENDED};
use crate::memory::HeaderMapping;
use crate::sync::{Ordering, fence};

/// Maps the header of a connection, for the process that created it and handed out both ends.
///
/// The ends can write the same words. So values read here are the ends' own claims: use them for
/// display and for decisions about this connection only. A claim that has been read is not taken back:
/// counts do not decrease, and an end of the stream stays. A busy end sees a change made here at its
/// next read or write. A parked end needs a wakeup by other means, such as the descriptor that it
/// watches beside its doorbell.
#[derive(Debug)]
pub struct Monitor {
    mapping: HeaderMapping,
    /// What each side has claimed, as far as it was read.
    claims: [Claims; 2],
    /// The sides whose reading direction was closed here.
    closed: [AtomicBool; 2],
    is_reset: AtomicBool,
    is_suspended: AtomicBool,
}

#[derive(Debug)]
struct Claims {
    /// Bytes, modulo 2^64.
    written: AtomicU64,
    has_ended: AtomicBool,
}

/// What a monitor has read and ordered: all of its state but the mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MonitorState {
    /// Bytes that each side claims to have written, modulo 2^64.
    pub(crate) written: [u64; 2],
    pub(crate) has_ended: [bool; 2],
    pub(crate) closed: [bool; 2],
    pub(crate) is_reset: bool,
    pub(crate) is_suspended: bool,
}

impl Monitor {
    /// Maps the header page of a connection's memory. Keeps no descriptor.
    ///
    /// # Errors
    ///
    /// `InvalidData` if the memory is not sealed or smaller than a page; otherwise the error of
    /// `mmap`.
    pub fn new(memory: impl AsFd) -> io::Result<Self> {
        let mapping = HeaderMapping::open(memory)?;
        let directions = &mapping.header().directions;
        let state = MonitorState {
            // 0, unless the ends have begun.
            written: [0, 1].map(|at: usize| directions[at].head.0.load(Ordering::Acquire)),
            has_ended: [false; 2],
            closed: [false; 2],
            is_reset: false,
            is_suspended: false,
        };
        Ok(Self::with(mapping, state))
    }

    /// Maps the header page of a connection whose ends have not begun: as [`new`](Self::new), but reads
    /// nothing. The page becomes resident in this process only when it is first used.
    ///
    /// # Errors
    ///
    /// As for [`new`](Self::new).
    pub fn of_unused(memory: impl AsFd) -> io::Result<Self> {
        let state = MonitorState {
            written: [0; 2],
            has_ended: [false; 2],
            closed: [false; 2],
            is_reset: false,
            is_suspended: false,
        };
        Ok(Self::with(HeaderMapping::open(memory)?, state))
    }

    /// A monitor of the same connection, in place of one that had this state. Repeats its orders,
    /// which an end may have undone or which may not have been carried out.
    pub(crate) fn resume(memory: impl AsFd, state: MonitorState) -> io::Result<Self> {
        let monitor = Self::with(HeaderMapping::open(memory)?, state);
        for side in RingSide::BOTH {
            if state.closed[side.index()] {
                monitor.close(side);
            }
        }
        if state.is_reset {
            monitor.reset();
        }
        monitor.suspend(state.is_suspended);
        Ok(monitor)
    }

    fn with(mapping: HeaderMapping, state: MonitorState) -> Self {
        Self {
            mapping,
            claims: [0, 1].map(|at: usize| Claims {
                written: AtomicU64::new(state.written[at]),
                has_ended: AtomicBool::new(state.has_ended[at]),
            }),
            closed: state.closed.map(AtomicBool::new),
            is_reset: AtomicBool::new(state.is_reset),
            is_suspended: AtomicBool::new(state.is_suspended),
        }
    }

    pub(crate) fn state(&self) -> MonitorState {
        let claims = [0, 1].map(|at: usize| &self.claims[at]);
        MonitorState {
            written: claims.map(|it| it.written.load(Local::Relaxed)),
            has_ended: claims.map(|it| it.has_ended.load(Local::Relaxed)),
            closed: [0, 1].map(|at: usize| self.closed[at].load(Local::Relaxed)),
            is_reset: self.is_reset.load(Local::Relaxed),
            is_suspended: self.is_suspended.load(Local::Relaxed),
        }
    }

    /// The number of bytes that `side` claims to have written, modulo 2^64. The largest claim so far:
    /// it does not decrease.
    pub fn written(&self, side: RingSide) -> u64 {
        let claimed = self.direction(side).head.0.load(Ordering::Acquire);
        let known = &self.claims[side.index()].written;
        let advance = |known: u64| {
            let is_ahead = claimed.wrapping_sub(known).cast_signed() > 0;
            is_ahead.then_some(claimed)
        };
        match known.fetch_update(Local::Relaxed, Local::Relaxed, advance) {
            Ok(_) => claimed,
            Err(known) => known,
        }
    }

    /// Whether `side` shut down its writing direction (half-close). Stays true.
    pub fn has_ended(&self, side: RingSide) -> bool {
        let known = &self.claims[side.index()].has_ended;
        let close = &self.direction(side).close.0;
        if close.ended.load(Ordering::Acquire) != 0 {
            known.store(true, Local::Relaxed);
        }
        known.load(Local::Relaxed)
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
        self.closed[side.index()].store(true, Local::Relaxed);
        let close = &self.direction(side.other()).close.0;
        close.closed.store(READER_GONE, Ordering::Release);
        fence(Ordering::SeqCst);
    }

    /// Resets the connection: both ends can read the bytes written so far, then get an error.
    #[doc(alias = "abort")]
    pub fn reset(&self) {
        self.is_reset.store(true, Local::Relaxed);
        let state = &self.mapping.header().state.0;
        state.fetch_or(RESET, Ordering::Release);
    }

    /// Suspends the connection, so that neither end reads, or resumes it. Each end can still write
    /// until its ring is full.
    #[doc(alias = "resume")]
    pub fn suspend(&self, suspended: bool) {
        self.is_suspended.store(suspended, Local::Relaxed);
        let state = &self.mapping.header().state.0;
        if suspended {
            state.fetch_or(SUSPENDED, Ordering::Release);
        } else {
            state.fetch_and(!SUSPENDED, Ordering::Release);
        }
    }

    /// The words of the direction that `side` writes.
    fn direction(&self, side: RingSide) -> &Direction {
        &self.mapping.header().directions[side.index()]
    }
}
