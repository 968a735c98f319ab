//! One end of a connection: non-blocking reads and writes. [`wait`](crate::wait) adds blocking.

mod snapshot;

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering as Local};
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::time::Duration;

pub(crate) use snapshot::ViolationState;
pub use snapshot::{RING_END_SNAPSHOT_VERSION, RingEndSnapshot};

use hvsock_sys::processor;
use hvsock_sys::sync::lock;

use crate::arena::{Finished, ResetCause, SlotId, SlotLink};
use crate::consumer::Consumer;
use crate::layout::{Direction, FOLLOWS, READER_GONE, READER_SHUT, RESET, SUSPENDED};
use crate::link::Link;
use crate::memory::{Memory, Place};
use crate::producer::{self, Producer};
use crate::spin::Spin;
use crate::stats::{Counters, count};
use crate::sync::Ordering;
use crate::wait_mode::Choice;
use crate::{Doorbells, RingError, RingSide, RingSize, RingStats, Violation};

/// One end of a bidirectional byte stream through shared memory.
///
/// All methods take `&self`: threads may read and write at the same time. If several threads use the
/// same direction, the bytes of each call stay contiguous in the stream.
///
/// Dropping an end without [`RingEnd::shutdown_write`] is no clean end of the stream: the peer reads
/// the bytes written so far and then gets an error.
#[derive(Debug)]
pub struct RingEnd {
    pub(crate) memory: Memory,
    side: RingSide,
    pub(crate) outgoing: Mutex<Producer>,
    pub(crate) incoming: Mutex<Consumer>,
    /// Bytes ever written, for threads that do not hold `outgoing`.
    pub(crate) written: AtomicU64,
    pub(crate) link: Link,
    /// The high half of the state word: 0, or the sequence number of a connection in an arena.
    epoch: u64,
    /// How to wait for bytes of a stream, and for free space.
    pub(crate) choices: [Mutex<Choice>; 2],
    /// The results of the last choices: this end parks at once when it finds the ring empty, or full.
    pub(crate) parks: [AtomicBool; 2],
    /// Bytes ever read when this end last waited for more.
    pub(crate) read_before: AtomicU64,
    /// This end shut down reading.
    read_shut: AtomicBool,
    /// This end has published its processor, and that it follows the window.
    has_published: AtomicBool,
    /// This end has reset the connection or seen the reset.
    is_reset: AtomicBool,
    violation: OnceLock<Violation>,
    /// A copy of an end that may go on: dropping it does nothing.
    is_dormant: AtomicBool,
    pub(crate) spins: [Spin; 2],
    pub(crate) counters: Counters,
}

/// The bits of a processor's word that are its number plus 1.
const NUMBER: u32 = !FOLLOWS;

/// The least number of bytes in one write after which more of a stream is likely to follow.
const STREAMED: usize = 8192;

/// How far ahead of a stream's bytes the processor gets the memory for further ones.
const AHEAD: u64 = 8192;

/// Bytes that are copied before the processor gets memory for as many further ones.
const PIECE: usize = 4096;

/// The largest number of bytes copied before they are published or freed.
pub(crate) fn chunk(window: u64) -> u64 {
    (window / 8).clamp(4096, 64 * 1024)
}

impl RingEnd {
    /// Opens an end of a new connection. Maps the memory after checking that its size is sealed.
    ///
    /// # Errors
    ///
    /// `InvalidData` if the memory is not sealed or its length is not that of a ring; otherwise the
    /// error of `mmap`.
    pub fn open(side: RingSide, memory: impl AsFd, doorbells: Doorbells) -> io::Result<Self> {
        Self::open_at(side, memory, doorbells, [0, 0])
    }

    /// As [`RingEnd::open`], with counters that begin at `start` (first → second, second → first)
    /// instead of 0. The peer's must begin at the same values. For tests of counter wraparound.
    ///
    /// # Errors
    ///
    /// As [`RingEnd::open`].
    #[doc(hidden)]
    pub fn open_at(
        side: RingSide,
        memory: impl AsFd,
        doorbells: Doorbells,
        start: [u64; 2],
    ) -> io::Result<Self> {
        let memory = Memory::open(memory)?;
        let capacity = u64::from(memory.size().bytes());
        let [out, back] = [side, side.other()].map(RingSide::index);
        let outgoing = Producer::new(capacity, start[out]);
        let incoming = Consumer::new(capacity, start[back]);
        let link = Link::pipes(doorbells);
        let end = Self::new(side, memory, outgoing, incoming, link, 0);
        if start != [0, 0] {
            end.words_out().head.0.store(start[out], Ordering::Release);
            end.words_in().tail.0.store(start[back], Ordering::Release);
        }
        Ok(end)
    }

    /// Opens an end of a new connection in a slot of an arena, whose words are initialised.
    pub(crate) fn in_slot(memory: Memory, link: SlotLink) -> Self {
        let capacity = u64::from(memory.size().bytes());
        let (side, epoch) = (link.side(), u64::from(link.id().seq) << 32);
        let outgoing = Producer::new(capacity, 0);
        let incoming = Consumer::unarmed(capacity);
        Self::new(side, memory, outgoing, incoming, Link::Slot(link), epoch)
    }

    fn new(
        side: RingSide,
        memory: Memory,
        outgoing: Producer,
        incoming: Consumer,
        link: Link,
        epoch: u64,
    ) -> Self {
        Self {
            side,
            written: AtomicU64::new(outgoing.position()),
            outgoing: Mutex::new(outgoing),
            incoming: Mutex::new(incoming),
            memory,
            link,
            epoch,
            choices: [Mutex::new(Choice::new()), Mutex::new(Choice::new())],
            parks: [AtomicBool::new(false), AtomicBool::new(false)],
            read_before: AtomicU64::new(0),
            read_shut: AtomicBool::new(false),
            has_published: AtomicBool::new(false),
            is_reset: AtomicBool::new(false),
            violation: OnceLock::new(),
            is_dormant: AtomicBool::new(false),
            spins: [Spin::new(), Spin::new()],
            counters: Counters::default(),
        }
    }

    /// The slot and the sequence number of a connection in an arena; `None` for one with memory of its
    /// own.
    pub fn slot(&self) -> Option<SlotId> {
        match &self.link {
            Link::Pipes(_) => None,
            Link::Slot(slot) => Some(slot.id()),
        }
    }

    /// Why the connection was reset: meaningful after [`RingError::Reset`]. The cause is the claim of
    /// the end that reset the connection. One with memory of its own has no cause but
    /// [`ResetCause::Control`].
    pub fn reset_cause(&self) -> ResetCause {
        ResetCause::of(self.memory.header().state.0.load(Ordering::Acquire))
    }

    /// Requests or withdraws signals in the arena's ready set, for an end that an event loop or a task
    /// waits at. Without effect for a connection with memory of its own, whose doorbell is polled.
    ///
    /// After a request, call [`RingEnd::arm`] as usual: the peer signals only after a wakeup request, and
    /// when the connection is reset.
    pub fn set_signals(&self, on: bool) {
        if let Link::Slot(slot) = &self.link {
            slot.set_signals(on);
        }
    }

    /// Publishes whether the connection is to be kept while a partition is suspended
    /// (`HVSOCKET_CONNECTED_SUSPEND`). Without effect for a connection with memory of its own, of which
    /// the broker is told by a message.
    pub fn set_connected_suspend(&self, keep: bool) {
        if let Link::Slot(slot) = &self.link {
            slot.set_keep(keep);
        }
    }

    /// The capacity of each direction.
    pub fn size(&self) -> RingSize {
        self.memory.size()
    }

    /// A snapshot of this end's counters.
    pub fn stats(&self) -> RingStats {
        self.counters.snapshot()
    }

    /// Sets the longest time that a thread spins before it parks; zero disables spinning.
    ///
    /// A thread spins less where spinning does not pay, and not at all while a stream that fills the ring is
    /// faster without: [`RingEnd::wait`] compares both now and then.
    ///
    /// The default is 20 µs. A process that may use one processor only never spins.
    #[doc(alias = "busy_poll")]
    pub fn set_spin(&self, longest: Duration) {
        for spin in &self.spins {
            spin.set_longest(longest);
        }
    }

    /// Writes into the first `bytes` of the ring only, a power of two, until a thread that waits for space
    /// writes a long stream; then into the whole ring. Takes effect when the ring is empty. By default
    /// a writer uses the whole ring.
    ///
    /// Every part of the ring that was used takes memory, and using it for the first time takes longer
    /// than copying: some 2 µs a page. A long stream is up to twice as fast with a larger part.
    pub fn set_window(&self, bytes: u32) {
        // As a reader it follows the window of the other end.
        self.has_published.store(true, Local::Relaxed);
        self.shares_processor();
        self.outgoing()
            .use_window(bytes.max(RingSize::MIN.bytes()).into());
    }

    /// The doorbell's descriptor. It becomes readable when the peer notifies this end. A connection in an
    /// arena shares the arena's doorbell, which tells of ready slots ([`RingEnd::set_signals`]).
    ///
    /// The peer notifies only after a wakeup request, and when it resets the connection. An event
    /// loop calls [`RingEnd::arm`] after a read or write returned [`RingError::WouldBlock`], and
    /// [`RingEnd::drain_notifications`] when the descriptor is readable.
    pub fn doorbell(&self) -> BorrowedFd<'_> {
        match &self.link {
            Link::Pipes(pipes) => pipes.doorbells.own.as_fd(),
            Link::Slot(slot) => slot.doorbell(),
        }
    }

    /// The doorbells, for another process that goes on with this end: this end's, and the peer's. `None` in an arena.
    pub fn doorbells(&self) -> Option<[BorrowedFd<'_>; 2]> {
        match &self.link {
            Link::Pipes(pipes) => {
                let doorbells = &pipes.doorbells;
                Some([doorbells.own.as_fd(), doorbells.peer.as_fd()])
            }
            Link::Slot(_) => None,
        }
    }

    /// Reads available bytes into `buffer`. Returns their number.
    ///
    /// # Errors
    ///
    /// [`RingError::WouldBlock`] without bytes, or while the connection is suspended;
    /// [`RingError::EndOfStream`] at the end of the stream or after [`RingEnd::shutdown_read`];
    /// another [`RingError`] if the connection broke.
    pub fn try_read(&self, buffer: &mut [u8]) -> Result<usize, RingError> {
        self.try_read_vectored(&mut [IoSliceMut::new(buffer)])
    }

    /// Reads available bytes into several buffers, in order. Returns their number.
    ///
    /// # Errors
    ///
    /// As [`RingEnd::try_read`].
    pub fn try_read_vectored(&self, slices: &mut [IoSliceMut<'_>]) -> Result<usize, RingError> {
        let wanted = slices.iter().map(|slice| slice.len()).sum::<usize>() as u64;
        let mut incoming = self.incoming();
        let most = chunk(incoming.window());
        let mut known = self.available_to_read(&mut incoming, wanted.min(most))?;
        let mut done = 0;
        'all: for slice in slices {
            let mut rest = &mut **slice;
            while !rest.is_empty() {
                if known == 0 {
                    known = self.validate(incoming.available(self.words_in(), 1))?;
                    if known == 0 {
                        break 'all;
                    }
                }
                let count = known.min(most).min(rest.len() as u64);
                let (now, later) = rest.split_at_mut(count as usize);
                let from = self.side.other();
                self.memory.get(from, incoming.place(), now);
                self.release(&mut incoming, count);
                done += now.len();
                known -= count;
                rest = later;
            }
        }
        Ok(done)
    }

    /// Copies available bytes into `buffer` and leaves them in the ring. Returns their number.
    ///
    /// # Errors
    ///
    /// As [`RingEnd::try_read`].
    #[doc(alias = "MSG_PEEK")]
    pub fn try_peek(&self, buffer: &mut [u8]) -> Result<usize, RingError> {
        let mut incoming = self.incoming();
        let known = self.available_to_read(&mut incoming, buffer.len() as u64)?;
        let count = known.min(buffer.len() as u64) as usize;
        let from = self.side.other();
        self.memory
            .get(from, incoming.place(), &mut buffer[..count]);
        Ok(count)
    }

    /// Writes as many bytes as there is free space for. Returns their number.
    ///
    /// # Errors
    ///
    /// [`RingError::WouldBlock`] without free space; [`RingError::WriteShutdown`] after
    /// [`RingEnd::shutdown_write`]; [`RingError::PeerClosed`] if the peer reads no more; another
    /// [`RingError`] if the connection broke. A suspended connection accepts bytes until the ring
    /// is full.
    pub fn try_write(&self, bytes: &[u8]) -> Result<usize, RingError> {
        self.try_write_vectored(&[IoSlice::new(bytes)])
    }

    /// Writes several slices, in order, as far as there is free space. Returns the number of bytes.
    ///
    /// # Errors
    ///
    /// As [`RingEnd::try_write`].
    pub fn try_write_vectored(&self, slices: &[IoSlice<'_>]) -> Result<usize, RingError> {
        let wanted = slices.iter().map(|slice| slice.len()).sum::<usize>() as u64;
        let mut outgoing = self.outgoing();
        let most = chunk(outgoing.window());
        let mut free = self.free_to_write(&mut outgoing, wanted.min(most))?;
        let mut done = 0;
        'all: for slice in slices {
            let mut rest = &**slice;
            while !rest.is_empty() {
                if free == 0 {
                    free = self.validate(outgoing.free_space(self.words_out(), 1))?;
                    if free == 0 {
                        break 'all;
                    }
                }
                let count = free.min(most).min(rest.len() as u64);
                let (now, later) = rest.split_at(count as usize);
                self.put(outgoing.place(), now, free);
                self.publish(&mut outgoing, count);
                done += now.len();
                free -= count;
                rest = later;
            }
        }
        if done > 0 {
            self.check_not_closed()?;
        }
        Ok(done)
    }

    /// Copies `bytes` into the ring, which has `free` bytes from `place` on.
    #[inline]
    fn put(&self, place: Place, bytes: &[u8], free: u64) {
        match bytes.len() < STREAMED || self.shares_processor() {
            true => self.memory.put(self.side, place, bytes),
            false => self.put_ahead(place, bytes, free),
        }
    }

    /// As [`RingEnd::put`], for a reader on another processor, which has the free space in its cache. A store
    /// waits until the line is here, few do so at a time, and the barrier after publishing waits for all of
    /// them. So the lines of a stream are requested ahead. On one processor they are here already, and the
    /// requests would only cost time.
    #[inline(never)]
    fn put_ahead(&self, place: Place, bytes: &[u8], free: u64) {
        let mut next = place;
        let mut beyond = free.saturating_sub(AHEAD);
        for piece in bytes.chunks(PIECE) {
            let count = beyond.min(piece.len() as u64);
            self.memory
                .prefetch_for_writing(self.side, next.after(AHEAD), count as usize);
            self.memory.put(self.side, next, piece);
            next = next.after(piece.len() as u64);
            beyond -= count;
        }
    }

    /// Checks after publishing that the reader has not closed without reading the bytes.
    ///
    /// A reader that closes sees the bytes published before, or this check sees that it closed. So
    /// no bytes are lost silently.
    pub(crate) fn check_not_closed(&self) -> Result<(), RingError> {
        let words = self.words_out();
        if producer::closed(words) == 0 {
            return Ok(());
        }
        // The peer may have read all bytes before it closed.
        let read = words.tail.0.load(Ordering::Acquire);
        if read == self.written.load(Local::Relaxed) {
            return Ok(());
        }
        Err(RingError::PeerClosed)
    }

    /// Ends the stream that this end writes. The peer reads the bytes written so far, then the end
    /// of the stream. This end can still read.
    #[doc(alias = "half-close")]
    pub fn shutdown_write(&self) {
        // A connection that was reset has no clean end.
        if self.state() & RESET == 0 {
            let mut outgoing = self.outgoing();
            if !outgoing.has_ended() && outgoing.end(self.words_out()) {
                self.notify_peer();
            }
        }
        self.link.wake(None, None);
    }

    /// Stops reading: later reads return [`RingError::EndOfStream`], and the peer's writes fail.
    #[doc(alias = "half-close")]
    pub fn shutdown_read(&self) {
        self.read_shut.store(true, Local::Release);
        self.close(READER_SHUT);
        self.link.wake(None, None);
    }

    /// Closes this end for good: no byte follows, and none is read any more. The peer reads the bytes written
    /// so far, and then the end of the stream, or [`RingError::UnreadData`] if bytes were left unread here.
    ///
    /// In place of [`shutdown_write`](Self::shutdown_write) before an end is dropped: a peer that sees the end
    /// of the stream in between would take it for a clean one.
    #[doc(alias = "close")]
    pub fn finish(&self) {
        let mut outgoing = self.outgoing();
        // Stored before `ended`, so that whoever sees the end sees the close as well.
        let wakes_writer = Consumer::close(self.words_in(), READER_GONE);
        // A connection that was reset has no clean end.
        let ends = self.state() & RESET == 0 && !outgoing.has_ended();
        let wakes_reader = ends && outgoing.end(self.words_out());
        drop(outgoing);
        if wakes_writer || wakes_reader {
            self.notify_peer();
        }
        self.link.wake(None, None);
    }

    fn close(&self, how: u32) {
        if Consumer::close(self.words_in(), how) {
            self.notify_peer();
        }
    }

    /// Resets the connection: both ends can read the bytes written so far, then get
    /// [`RingError::Reset`].
    #[doc(alias = "abort")]
    pub fn reset(&self) {
        self.reset_locally(ResetCause::Aborted);
    }

    /// As [`reset`](Self::reset), after the broker's message or the end of its control connection. The peer,
    /// which may see the reset before it receives its own message, is not told that this end aborted.
    pub fn reset_by_control(&self) {
        self.reset_locally(ResetCause::Control);
    }

    fn reset_locally(&self, cause: ResetCause) {
        self.is_reset.store(true, Local::Release);
        self.reset_for(cause);
        // Also if the bit was set before: a parked thread has not seen it.
        self.link.wake(None, None);
    }

    /// Sets the reset bit, unless it is set, and notifies the peer.
    fn reset_for(&self, cause: ResetCause) {
        let bits = match &self.link {
            Link::Pipes(_) => RESET,
            Link::Slot(_) => RESET | cause.bits(),
        };
        let state = &self.memory.header().state.0;
        if state.load(Ordering::Relaxed) & RESET == 0
            && state.fetch_or(bits, Ordering::Release) & RESET == 0
        {
            self.notify_peer();
        }
    }

    /// Whether a read would return bytes, the end of the stream or an error.
    pub fn is_readable(&self) -> bool {
        self.available_to_read(&mut self.incoming(), 1) != Err(RingError::WouldBlock)
    }

    /// Whether a write would accept bytes or return an error.
    pub fn is_writable(&self) -> bool {
        self.free_to_write(&mut self.outgoing(), 1) != Err(RingError::WouldBlock)
    }

    /// The number of bytes written here that the peer claims to have read, modulo 2^64. It is never
    /// more than was written.
    ///
    /// # Errors
    ///
    /// [`RingError::ProtocolViolation`] if the peer's counter is invalid.
    pub fn read_by_peer(&self) -> Result<u64, RingError> {
        let mut outgoing = self.outgoing();
        let free = self.validate(outgoing.free_space(self.words_out(), u64::MAX))?;
        let unread = outgoing.window() - free;
        Ok(outgoing.position().wrapping_sub(unread))
    }

    pub(crate) fn incoming(&self) -> MutexGuard<'_, Consumer> {
        lock(&self.incoming)
    }

    pub(crate) fn outgoing(&self) -> MutexGuard<'_, Producer> {
        lock(&self.outgoing)
    }

    pub(crate) fn side(&self) -> RingSide {
        self.side
    }

    /// The words of the direction that this end writes.
    pub(crate) fn words_out(&self) -> &Direction {
        &self.memory.header().directions[self.side.index()]
    }

    /// The words of the direction that this end reads.
    pub(crate) fn words_in(&self) -> &Direction {
        &self.memory.header().directions[self.side.other().index()]
    }

    /// The state word's flags. A reset is final: it stays even if the peer clears the bit. A state word of
    /// another connection is a reset, too.
    pub(crate) fn state(&self) -> u64 {
        let state = self.memory.header().state.0.load(Ordering::Acquire) ^ self.epoch;
        let has_ended = match &self.link {
            Link::Pipes(_) => false,
            Link::Slot(slot) => slot.has_ended(),
        };
        if state & RESET != 0 || state >> 32 != 0 || has_ended {
            self.is_reset.store(true, Local::Release);
            return state | RESET;
        }
        if self.is_reset.load(Local::Acquire) {
            return state | RESET;
        }
        state
    }

    /// Whether the state word, loaded without ordering, differs from what [`RingEnd::state`] returned.
    pub(crate) fn state_differs(&self, state: u64) -> bool {
        self.memory.header().state.0.load(Ordering::Relaxed) ^ self.epoch != state & !RESET
    }

    /// The number of readable bytes, at least 1. Loads the peer's counter only if fewer than
    /// `wanted` are known.
    pub(crate) fn available_to_read(
        &self,
        incoming: &mut Consumer,
        wanted: u64,
    ) -> Result<u64, RingError> {
        if !self.has_published.load(Local::Relaxed) {
            self.has_published.store(true, Local::Relaxed);
            self.shares_processor();
        }
        // Loaded first: the loads below then see every store that the peer made before it hung up.
        let hung_up = self.has_hung_up();
        let (words, state) = (self.words_in(), self.state());
        if self.read_shut.load(Local::Acquire) {
            return Err(RingError::EndOfStream);
        }
        if let Some(violation) = self.violation.get() {
            return Err(RingError::ProtocolViolation(*violation));
        }
        if state & (SUSPENDED | RESET) == SUSPENDED {
            return Err(RingError::WouldBlock);
        }
        if state & RESET != 0 {
            self.validate(incoming.limit(words))?;
        }
        let known = self.validate(incoming.available(words, wanted))?;
        if known > 0 {
            self.woken(incoming.disarm(words));
            return Ok(known);
        }
        if self.validate(incoming.has_ended(words))? {
            let words = self.words_out();
            // `closed` is loaded first: `tail` then includes what the peer read before it closed.
            if producer::is_reader_gone(words)
                && words.tail.0.load(Ordering::Acquire) != self.written.load(Local::Relaxed)
            {
                return Err(RingError::UnreadData);
            }
            return Err(RingError::EndOfStream);
        }
        Err(match () {
            () if state & RESET != 0 => RingError::Reset,
            () if hung_up => RingError::PeerGone,
            () => RingError::WouldBlock,
        })
    }

    /// The free space in bytes, at least 1. Loads the peer's counter only if less than `wanted` is
    /// known to be free.
    pub(crate) fn free_to_write(
        &self,
        outgoing: &mut Producer,
        wanted: u64,
    ) -> Result<u64, RingError> {
        let hung_up = self.has_hung_up();
        let words = self.words_out();
        if outgoing.has_ended() {
            return Err(RingError::WriteShutdown);
        }
        if let Some(violation) = self.violation.get() {
            return Err(RingError::ProtocolViolation(*violation));
        }
        if self.state() & RESET != 0 {
            return Err(RingError::Reset);
        }
        if producer::closed(words) != 0 {
            return Err(RingError::PeerClosed);
        }
        if hung_up {
            return Err(RingError::PeerGone);
        }
        if outgoing.is_changing_window() && self.peer_follows() {
            self.validate(outgoing.change_window(words))?;
        }
        let free = self.validate(outgoing.free_space(words, wanted))?;
        if free == 0 {
            return Err(RingError::WouldBlock);
        }
        self.woken(outgoing.disarm(words));
        Ok(free)
    }

    /// Resets the connection if the peer's counter was invalid. Later calls report the first
    /// violation.
    pub(crate) fn validate<T>(&self, counter: Result<T, Violation>) -> Result<T, RingError> {
        counter.map_err(|violation| {
            let first = *self.violation.get_or_init(|| violation);
            self.reset();
            RingError::ProtocolViolation(first)
        })
    }

    pub(crate) fn publish(&self, outgoing: &mut Producer, count: u64) {
        let notifies = outgoing.publish(self.words_out(), count);
        self.written.store(outgoing.position(), Local::Relaxed);
        if notifies {
            self.notify_peer();
        }
    }

    pub(crate) fn release(&self, incoming: &mut Consumer, count: u64) {
        if incoming.release(self.words_in(), count) {
            self.notify_peer();
        }
    }

    fn notify_peer(&self) {
        count(&self.counters.notifications);
        self.shares_processor();
        if !self.link.notify()
            && let Link::Pipes(pipes) = &self.link
        {
            pipes.hung_up.store(true, Local::Release);
        }
    }

    /// Whether the peer has published that it follows the window of this end.
    pub(crate) fn peer_follows(&self) -> bool {
        let processors = &self.memory.header().processors;
        let peer = &processors[self.side.other().index()].0;
        peer.load(Ordering::Relaxed) & FOLLOWS != 0
    }

    /// Publishes which processor runs this end, and returns whether the peer published the same one.
    pub(crate) fn shares_processor(&self) -> bool {
        let here = processor::current().map_or(0, |here| here.wrapping_add(1) & NUMBER);
        let processors = &self.memory.header().processors;
        let own = &processors[self.side.index()].0;
        if own.load(Ordering::Relaxed) != here | FOLLOWS {
            own.store(here | FOLLOWS, Ordering::Relaxed);
        }
        let peer = &processors[self.side.other().index()].0;
        here != 0 && peer.load(Ordering::Relaxed) & NUMBER == here
    }

    /// Whether the peer's process has closed its end of this end's doorbell. Never of a connection in an
    /// arena, which is reset instead.
    pub fn has_hung_up(&self) -> bool {
        match &self.link {
            Link::Pipes(pipes) => pipes.hung_up.load(Local::Acquire),
            Link::Slot(_) => false,
        }
    }

    /// Whether the peer has closed its end, and neither reads nor writes any more. Known only of a
    /// connection in an arena, and by signals ([`RingEnd::set_signals`]) as soon as it is so.
    pub fn is_peer_closed(&self) -> bool {
        // A peer that closes does both, one after the other; a reset takes the place of the end.
        let has_ended = self.words_in().close.0.ended.load(Ordering::Acquire) != 0;
        producer::is_reader_gone(self.words_out()) && (has_ended || self.state() & RESET != 0)
    }

    /// Closes an end in an arena, as the broker does for a process that is gone: without
    /// [`RingEnd::shutdown_write`] the peer sees a reset, and so it does if bytes were left unread.
    fn leave_slot(&mut self) {
        let (written, has_ended) = {
            let outgoing = self.outgoing();
            (outgoing.position(), outgoing.has_ended())
        };
        if !has_ended {
            self.reset_for(ResetCause::PeerGone);
        }
        self.close(READER_GONE);
        if let Link::Slot(slot) = &self.link {
            slot.signal_peer();
        }
        // Loaded after the close: the writer sees that, or these are all its bytes.
        let received = self.words_in().head.0.load(Ordering::Acquire);
        if received != self.incoming().position() {
            self.reset_for(ResetCause::UnreadData);
        }
        if let Link::Slot(slot) = &self.link {
            slot.finish(Finished {
                written,
                moved_bytes: written != 0 || received != 0,
            });
        }
    }
}

impl Drop for RingEnd {
    fn drop(&mut self) {
        if *self.is_dormant.get_mut() {
            return;
        }
        match &self.link {
            Link::Pipes(_) => self.close(READER_GONE),
            Link::Slot(_) => self.leave_slot(),
        }
    }
}

/// Creates both ends of a connection within one process, for tests and for threads.
///
/// # Errors
///
/// As [`Parts::new`](crate::Parts::new) and [`RingEnd::open`].
pub fn pair(size: RingSize) -> io::Result<(RingEnd, RingEnd)> {
    let crate::Parts {
        memory,
        first,
        second,
    } = crate::Parts::new(size)?;
    let first = RingEnd::open(RingSide::First, &memory, first)?;
    let second = RingEnd::open(RingSide::Second, &memory, second)?;
    Ok((first, second))
}
