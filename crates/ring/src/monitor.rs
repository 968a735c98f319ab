//! A third party's view of a connection: it counts, stops and cuts, and has no part in the data.

use std::io;
use std::os::fd::AsFd;

use crate::Side;
use crate::layout::{CUT, GONE, SUSPENDED};
use crate::memory::Words;
use crate::sync::{Ordering, fence};

/// The words of a connection, for who made it and handed both ends out.
///
/// The ends can write these words too. So what is read here is what they say of themselves, and
/// good for showing and for deciding about this connection, for nothing else. What is written
/// here a busy end sees at its next read or write; a sleeping one must be woken by other means,
/// such as the descriptor that it watches beside its bell.
#[derive(Debug)]
pub struct Monitor {
    words: Words,
}

impl Monitor {
    /// Maps one page of a connection's memory, and keeps no descriptor.
    pub fn new(memory: impl AsFd) -> io::Result<Self> {
        Words::open(memory).map(|words| Self { words })
    }

    /// Bytes that `side` has written, modulo 2^64, as it says.
    pub fn written(&self, side: Side) -> u64 {
        self.direction(side).head.0.load(Ordering::Acquire)
    }

    /// Whether `side` has said that it writes no more.
    pub fn has_ended(&self, side: Side) -> bool {
        let ends = &self.direction(side).ends.0;
        ends.ended.load(Ordering::Acquire) != 0
    }

    /// Whether something was written that `side` has not read.
    pub fn leaves_unread(&self, side: Side) -> bool {
        let words = self.direction(side.other());
        words.head.0.load(Ordering::Acquire) != words.tail.0.load(Ordering::Acquire)
    }

    /// Says in the place of `side`, which is gone, that it reads no more. What is written from
    /// then on its writer knows to be lost; what was written before,
    /// [`leaves_unread`](Self::leaves_unread) sees afterwards.
    pub fn close(&self, side: Side) {
        let ends = &self.direction(side.other()).ends.0;
        ends.closed.store(GONE, Ordering::Release);
        fence(Ordering::SeqCst);
    }

    /// Ends the connection for both sides: they read what was written by then, and then an error.
    pub fn cut(&self) {
        self.words.header().state.0.fetch_or(CUT, Ordering::Release);
    }

    /// Has both sides read nothing, or read on.
    pub fn suspend(&self, suspended: bool) {
        let state = &self.words.header().state.0;
        if suspended {
            state.fetch_or(SUSPENDED, Ordering::Release);
        } else {
            state.fetch_and(!SUSPENDED, Ordering::Release);
        }
    }

    /// The words of what `side` writes.
    fn direction(&self, side: Side) -> &crate::layout::Direction {
        &self.words.header().directions[side.index()]
    }
}
