//! One end of a connection: reading and writing without waiting. [`wait`](crate::wait) adds that.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering as Local};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use hvsock_sys::{doorbell, processor};

use crate::consumer::Consumer;
use crate::hear::Hearing;
use crate::layout::{CUT, Direction, GONE, SHUT, SUSPENDED};
use crate::memory::Memory;
use crate::producer::{self, Producer};
use crate::spin::Spin;
use crate::stats::{Counts, count};
use crate::sync::Ordering;
use crate::waiters::Waiters;
use crate::{Bells, RingSize, RingStats, Side, Stop, Violation};

/// One end of a byte stream each way through shared memory.
///
/// All methods take `&self`: threads may read and write at the same time, and even the same
/// direction, in which case each call has its bytes in one piece.
///
/// Dropping it without [`End::shutdown_write`] is no clean end: the peer reads what was written
/// and then an error.
#[derive(Debug)]
pub struct End {
    pub(crate) memory: Memory,
    side: Side,
    pub(crate) outgoing: Mutex<Producer>,
    pub(crate) incoming: Mutex<Consumer>,
    /// Bytes ever written, for threads that do not write.
    pub(crate) written: AtomicU64,
    pub(crate) bells: Bells,
    /// The most bytes that are copied before the other end may have them.
    pub(crate) piece: u64,
    /// The room that a writer without any waits for.
    pub(crate) room_wanted: u64,
    /// This end reads no more, by its own wish.
    read_shut: AtomicBool,
    /// The connection was cut, and this end has seen it or done it.
    cut: AtomicBool,
    violation: OnceLock<Violation>,
    /// The other end's half of the bell is closed.
    pub(crate) hung_up: AtomicBool,
    pub(crate) hearing: Hearing,
    pub(crate) waiters: Waiters,
    pub(crate) spins: [Spin; 2],
    pub(crate) counts: Counts,
}

impl End {
    /// An end of a new connection, whose memory is checked: it cannot change its size.
    pub fn open(side: Side, memory: impl AsFd, bells: Bells) -> io::Result<Self> {
        Self::open_at(side, memory, bells, [0, 0])
    }

    /// An end whose counters begin elsewhere, as those of the other end must: first → second, then
    /// second → first. For tests of counters that wrap.
    #[doc(hidden)]
    pub fn open_at(
        side: Side,
        memory: impl AsFd,
        bells: Bells,
        start: [u64; 2],
    ) -> io::Result<Self> {
        let memory = Memory::open(memory)?;
        let capacity = u64::from(memory.size().bytes());
        let [out, back] = [side, side.other()].map(Side::index);
        let end = Self {
            side,
            outgoing: Mutex::new(Producer::new(capacity, start[out])),
            incoming: Mutex::new(Consumer::new(capacity, start[back])),
            written: AtomicU64::new(start[out]),
            memory,
            bells,
            piece: (capacity / 8).clamp(4096, 64 * 1024),
            room_wanted: capacity / 4,
            read_shut: AtomicBool::new(false),
            cut: AtomicBool::new(false),
            violation: OnceLock::new(),
            hung_up: AtomicBool::new(false),
            hearing: Hearing::default(),
            waiters: Waiters::default(),
            spins: [Spin::new(), Spin::new()],
            counts: Counts::default(),
        };
        if start != [0, 0] {
            end.words_out().head.0.store(start[out], Ordering::Release);
            end.words_in().tail.0.store(start[back], Ordering::Release);
        }
        Ok(end)
    }

    /// How many bytes fit into each direction.
    pub fn size(&self) -> RingSize {
        self.memory.size()
    }

    /// What it has done to wake and to wait.
    pub fn stats(&self) -> RingStats {
        self.counts.get()
    }

    /// The longest that a thread may look for its peer's answer before it sleeps; zero never
    /// looks. 20 µs by default, and never where the process may use one processor only.
    pub fn set_spin(&self, longest: Duration) {
        for spin in &self.spins {
            spin.set_longest(longest);
        }
    }

    /// The descriptor that is ready for reading when this end's bell was rung.
    ///
    /// It is rung for who has asked for it with [`End::arm`] or slept; an event loop calls that
    /// when it has read or written until [`Stop::WouldBlock`], and [`End::hear`] when the
    /// descriptor is ready.
    pub fn bell(&self) -> BorrowedFd<'_> {
        self.bells.own.as_fd()
    }

    /// Reads what is there.
    pub fn try_read(&self, buffer: &mut [u8]) -> Result<usize, Stop> {
        self.try_read_vectored(&mut [IoSliceMut::new(buffer)])
    }

    /// Reads what is there into several buffers, in their order.
    pub fn try_read_vectored(&self, slices: &mut [IoSliceMut<'_>]) -> Result<usize, Stop> {
        let wanted = slices.iter().map(|slice| slice.len()).sum::<usize>() as u64;
        let mut incoming = self.incoming();
        let mut known = self.to_read(&mut incoming, wanted.min(self.piece))?;
        let mut done = 0;
        'all: for slice in slices {
            let mut rest = &mut **slice;
            while !rest.is_empty() {
                if known == 0 {
                    known = self.believe(incoming.available(self.words_in(), 1))?;
                    if known == 0 {
                        break 'all;
                    }
                }
                let count = known.min(self.piece).min(rest.len() as u64);
                let (now, later) = rest.split_at_mut(count as usize);
                let from = self.side.other();
                self.memory.get(from, incoming.position(), now);
                self.release(&mut incoming, count);
                done += now.len();
                known -= count;
                rest = later;
            }
        }
        Ok(done)
    }

    /// Reads what is there and leaves it to be read.
    pub fn try_peek(&self, buffer: &mut [u8]) -> Result<usize, Stop> {
        let mut incoming = self.incoming();
        let known = self.to_read(&mut incoming, buffer.len() as u64)?;
        let count = known.min(buffer.len() as u64) as usize;
        let from = self.side.other();
        self.memory
            .get(from, incoming.position(), &mut buffer[..count]);
        Ok(count)
    }

    /// Writes what there is room for.
    pub fn try_write(&self, bytes: &[u8]) -> Result<usize, Stop> {
        self.try_write_vectored(&[IoSlice::new(bytes)])
    }

    /// Writes what there is room for of several slices, in their order.
    pub fn try_write_vectored(&self, slices: &[IoSlice<'_>]) -> Result<usize, Stop> {
        let wanted = slices.iter().map(|slice| slice.len()).sum::<usize>() as u64;
        let mut outgoing = self.outgoing();
        let mut room = self.to_write(&mut outgoing, wanted.min(self.piece))?;
        let mut done = 0;
        'all: for slice in slices {
            let mut rest = &**slice;
            while !rest.is_empty() {
                if room == 0 {
                    room = self.believe(outgoing.room(self.words_out(), 1))?;
                    if room == 0 {
                        break 'all;
                    }
                }
                let count = room.min(self.piece).min(rest.len() as u64);
                let (now, later) = rest.split_at(count as usize);
                self.memory.put(self.side, outgoing.position(), now);
                self.publish(&mut outgoing, count);
                done += now.len();
                room -= count;
                rest = later;
            }
        }
        if done > 0 {
            self.still_read()?;
        }
        Ok(done)
    }

    /// Whether what was just published is read or may still be: who closes sees what was written
    /// by then, or is seen here. Nothing is lost in silence.
    pub(crate) fn still_read(&self) -> Result<(), Stop> {
        let words = self.words_out();
        if producer::closed(words) == 0 {
            return Ok(());
        }
        // The peer may have read it all before it closed.
        let read = words.tail.0.load(Ordering::Acquire);
        if read == self.written.load(Local::Relaxed) {
            return Ok(());
        }
        Err(Stop::Closed)
    }

    /// Says that no data follows what was written.
    pub fn shutdown_write(&self) {
        // What was cut has no clean end any more, whatever this end meant to say.
        if self.state() & CUT == 0 {
            let mut outgoing = self.outgoing();
            if !outgoing.has_ended() && outgoing.end(self.words_out()) {
                self.ring_peer();
            }
        }
        self.waiters.wake(None);
    }

    /// Reads no more: reading gives the end, and the other end's writes fail.
    pub fn shutdown_read(&self) {
        self.read_shut.store(true, Local::Release);
        self.close(SHUT);
        self.waiters.wake(None);
    }

    fn close(&self, how: u32) {
        if Consumer::close(self.words_in(), how) {
            self.ring_peer();
        }
    }

    /// Cuts the connection for both ends: what was written by now can be read, then it is
    /// [`Stop::Cut`].
    pub fn cut(&self) {
        self.cut.store(true, Local::Release);
        let state = &self.memory.header().state.0;
        if state.fetch_or(CUT, Ordering::Release) & CUT == 0 {
            self.ring_peer();
        }
        // Also where the word was there before: a thread that sleeps has not seen it.
        self.waiters.wake(None);
    }

    /// Whether reading would give bytes, the end or an error.
    pub fn is_readable(&self) -> bool {
        self.to_read(&mut self.incoming(), 1) != Err(Stop::WouldBlock)
    }

    /// Whether writing would take bytes or give an error.
    pub fn is_writable(&self) -> bool {
        self.to_write(&mut self.outgoing(), 1) != Err(Stop::WouldBlock)
    }

    /// How many of the bytes ever written here the other end has read, modulo 2^64: as it says,
    /// which is believed as far as it can be.
    pub fn read_by_peer(&self) -> Result<u64, Stop> {
        let mut outgoing = self.outgoing();
        let room = self.believe(outgoing.room(self.words_out(), u64::MAX))?;
        let unread = u64::from(self.size().bytes()) - room;
        Ok(outgoing.position().wrapping_sub(unread))
    }

    pub(crate) fn incoming(&self) -> MutexGuard<'_, Consumer> {
        self.incoming.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn outgoing(&self) -> MutexGuard<'_, Producer> {
        self.outgoing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn side(&self) -> Side {
        self.side
    }

    /// The words of what this end writes.
    pub(crate) fn words_out(&self) -> &Direction {
        &self.memory.header().directions[self.side.index()]
    }

    /// The words of what this end reads.
    pub(crate) fn words_in(&self) -> &Direction {
        &self.memory.header().directions[self.side.other().index()]
    }

    pub(crate) fn state(&self) -> u32 {
        let said = self.memory.header().state.0.load(Ordering::Acquire);
        if said & CUT != 0 {
            // It stays so, whatever the peer makes of the word.
            self.cut.store(true, Local::Release);
        } else if self.cut.load(Local::Acquire) {
            return said | CUT;
        }
        said
    }

    /// How many bytes can be read, which is not 0; looks for more only below `wanted`.
    pub(crate) fn to_read(&self, incoming: &mut Consumer, wanted: u64) -> Result<u64, Stop> {
        // Before anything else is looked at: what a peer did before it went is seen after this.
        let hung_up = self.hung_up.load(Local::Acquire);
        let (words, state) = (self.words_in(), self.state());
        if self.read_shut.load(Local::Acquire) {
            return Err(Stop::End);
        }
        if let Some(violation) = self.violation.get() {
            return Err(Stop::Violated(*violation));
        }
        if state & (SUSPENDED | CUT) == SUSPENDED {
            return Err(Stop::WouldBlock);
        }
        if state & CUT != 0 {
            self.believe(incoming.limit(words))?;
        }
        let known = self.believe(incoming.available(words, wanted))?;
        if known > 0 {
            self.awoken(incoming.disarm(words));
            return Ok(known);
        }
        if self.believe(incoming.has_ended(words))? {
            let words = self.words_out();
            // Gone first: what it read before it went is seen after that.
            if producer::is_reader_gone(words)
                && words.tail.0.load(Ordering::Acquire) != self.written.load(Local::Relaxed)
            {
                return Err(Stop::Unread);
            }
            return Err(Stop::End);
        }
        Err(match () {
            () if state & CUT != 0 => Stop::Cut,
            () if hung_up => Stop::Gone,
            () => Stop::WouldBlock,
        })
    }

    /// How many bytes can be written, which is not 0; looks for more room only below `wanted`.
    pub(crate) fn to_write(&self, outgoing: &mut Producer, wanted: u64) -> Result<u64, Stop> {
        let hung_up = self.hung_up.load(Local::Acquire);
        let words = self.words_out();
        if outgoing.has_ended() {
            return Err(Stop::Ended);
        }
        if let Some(violation) = self.violation.get() {
            return Err(Stop::Violated(*violation));
        }
        if self.state() & CUT != 0 {
            return Err(Stop::Cut);
        }
        if producer::closed(words) != 0 {
            return Err(Stop::Closed);
        }
        if hung_up {
            return Err(Stop::Gone);
        }
        let room = self.believe(outgoing.room(words, wanted))?;
        if room == 0 {
            return Err(Stop::WouldBlock);
        }
        self.awoken(outgoing.disarm(words));
        Ok(room)
    }

    /// A violation ends the connection, for this end and, as it did it, for the other one.
    pub(crate) fn believe<T>(&self, said: Result<T, Violation>) -> Result<T, Stop> {
        said.map_err(|violation| {
            let first = *self.violation.get_or_init(|| violation);
            self.cut();
            Stop::Violated(first)
        })
    }

    pub(crate) fn publish(&self, outgoing: &mut Producer, count: u64) {
        let wakes = outgoing.publish(self.words_out(), count);
        self.written.store(outgoing.position(), Local::Relaxed);
        if wakes {
            self.ring_peer();
        }
    }

    pub(crate) fn release(&self, incoming: &mut Consumer, count: u64) {
        if incoming.release(self.words_in(), count) {
            self.ring_peer();
        }
    }

    fn ring_peer(&self) {
        count(&self.counts.rings);
        self.runs_here();
        if let Ok(false) = doorbell::ring(&self.bells.peer) {
            self.hung_up.store(true, Local::Release);
        }
    }

    /// Tells the other end which processor runs this one, and returns whether it says of itself
    /// that it is the same.
    pub(crate) fn runs_here(&self) -> bool {
        let Some(here) = processor::current() else {
            return false;
        };
        let processors = &self.memory.header().processors;
        let said = here.wrapping_add(1);
        let own = &processors[self.side.index()].0;
        if own.load(Ordering::Relaxed) != said {
            own.store(said, Ordering::Relaxed);
        }
        processors[self.side.other().index()]
            .0
            .load(Ordering::Relaxed)
            == said
    }

    /// Whether the other end's process has closed its half of the bell.
    pub fn has_hung_up(&self) -> bool {
        self.hung_up.load(Local::Acquire)
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.close(GONE);
    }
}

/// A pair of ends within one process, for tests and for threads.
pub fn pair(size: RingSize) -> io::Result<(End, End)> {
    let crate::Parts {
        memory,
        first,
        second,
    } = crate::Parts::new(size)?;
    let first = End::open(Side::First, &memory, first)?;
    let second = End::open(Side::Second, &memory, second)?;
    Ok((first, second))
}
