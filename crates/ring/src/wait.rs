//! Blocking at an end: spins for a moment, then parks. While a stream fills the ring,
//! [`wait_mode`](crate::wait_mode) chooses whether to spin.
//!
//! A wakeup request comes before the last check and the park. [`producer`](crate::producer)
//! explains why no wakeup is lost between the two processes, and [`waiters`](crate::waiters) why
//! none is lost between the threads of one process.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::Ordering as Local;
use std::sync::{Mutex, MutexGuard, TryLockError};
use std::task::Waker;
use std::time::{Duration, Instant};

use hvsock_sys::poll::{self, PollFd, PollFlags};
use hvsock_sys::sync::lock;

use crate::arena::SlotLink;
use crate::consumer::Consumer;
use crate::end::chunk;
use crate::layout::{RESET, SUSPENDED};
use crate::link::{Link, Pipes};
use crate::memory::Place;
use crate::producer::Producer;
use crate::stats::count;
use crate::sync::Ordering;
use crate::wait_mode::WaitMode;
use crate::waiters::WaitGuard;
use crate::{RingEnd, RingError};

/// The operations to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interest {
    /// Bytes to read, the end of the stream or an error.
    pub read: bool,
    /// Free space to write, or an error.
    pub write: bool,
}

impl Interest {
    /// Reading only.
    pub const READ: Self = Self {
        read: true,
        write: false,
    };
    /// Writing only.
    pub const WRITE: Self = Self {
        read: false,
        write: true,
    };
    /// Reading or writing.
    pub const EITHER: Self = Self {
        read: true,
        write: true,
    };
}

/// How a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Woken {
    /// The end may be ready. Wakeups can be spurious.
    Ready,
    /// The watched descriptor is readable.
    Watched,
    /// The deadline has passed.
    TimedOut,
}

/// Indices of the directions.
const READING: usize = 0;
const WRITING: usize = 1;

/// Bytes that were written with waits for space and without a pause, after which a stream is long: using
/// more of the ring pays from then on.
const LONG_STREAM: u64 = 32 << 20;

/// The longest park of a thread that no other thread of its process can wake.
const MAX_UNWAKEABLE_PARK: Duration = Duration::from_millis(20);

impl RingEnd {
    /// Whether reading or writing, per `interest`, would return something other than
    /// [`RingError::WouldBlock`].
    pub fn is_ready(&self, interest: Interest) -> bool {
        interest.read && self.is_readable() || interest.write && self.is_writable()
    }

    /// Blocks until [`RingEnd::is_ready`] may be true, `watch` is readable, or `deadline` passes.
    ///
    /// Wakeups can be spurious: retry the operation, and wait again. Through `watch` a third
    /// process, such as a broker, can report the end of the connection. Without it only a hung-up
    /// doorbell reports the end of the peer's process.
    ///
    /// # Errors
    ///
    /// The error of `poll`.
    #[doc(alias = "park")]
    pub fn wait(
        &self,
        interest: Interest,
        watch: Option<BorrowedFd<'_>>,
        deadline: Option<Instant>,
    ) -> io::Result<Woken> {
        if self.spin(interest) {
            count(&self.counters.spins);
            return Ok(Woken::Ready);
        }
        match &self.link {
            Link::Pipes(pipes) => self.park_in_poll(pipes, interest, watch, deadline),
            Link::Slot(slot) => self.park_on_futex(slot, interest, watch, deadline),
        }
    }

    fn park_in_poll(
        &self,
        pipes: &Pipes,
        interest: Interest,
        watch: Option<BorrowedFd<'_>>,
        deadline: Option<Instant>,
    ) -> io::Result<Woken> {
        let guard = pipes.waiters.join();
        // A doorbell that has hung up is readable for ever, so it is not polled. Loaded before the
        // request, which returns false for a hung-up doorbell, except for reading while the
        // connection is suspended.
        let has_hung_up = self.has_hung_up();
        if !self.request_wakeup(interest, guard.as_ref()) {
            return Ok(Woken::Ready);
        }
        count(&self.counters.parks);
        let doorbell = self.doorbell();
        let mut fds = Vec::with_capacity(3);
        let mut add = |fd| {
            fds.push(PollFd::from_borrowed_fd(fd, PollFlags::IN));
            fds.len() - 1
        };
        let doorbell_at = (!has_hung_up).then(|| add(doorbell));
        let watch_at = watch.map(&mut add);
        let event_at = guard.as_ref().map(|guard| add(guard.event().as_fd()));
        let until = match &guard {
            Some(_) => deadline,
            None => {
                let latest = Instant::now() + MAX_UNWAKEABLE_PARK;
                Some(deadline.map_or(latest, |deadline| deadline.min(latest)))
            }
        };
        poll::wait(&mut fds, until)?;
        let is_ready = |at: Option<usize>| at.is_some_and(|at| !fds[at].revents().is_empty());
        if let Some(guard) = &guard
            && is_ready(event_at)
        {
            guard.event().clear();
        }
        if let Some(at) = doorbell_at.filter(|at| is_ready(Some(*at))) {
            self.drain(fds[at].revents().contains(PollFlags::HUP));
            pipes.waiters.wake(guard.as_ref());
        }
        Ok(match is_ready(watch_at) {
            true => Woken::Watched,
            false => self.woken_by(interest, deadline),
        })
    }

    fn park_on_futex(
        &self,
        slot: &SlotLink,
        interest: Interest,
        watch: Option<BorrowedFd<'_>>,
        deadline: Option<Instant>,
    ) -> io::Result<Woken> {
        // A thread cannot wait on a futex and a descriptor at once, so it looks at the latter now and
        // then.
        let is_watched = |watch| {
            let mut fds = [PollFd::from_borrowed_fd(watch, PollFlags::IN)];
            poll::wait(&mut fds, Some(Instant::now()))
        };
        let until = match watch {
            None => deadline,
            Some(watch) if is_watched(watch)? => return Ok(Woken::Watched),
            Some(_) => {
                let latest = Instant::now() + MAX_UNWAKEABLE_PARK;
                Some(deadline.map_or(latest, |deadline| deadline.min(latest)))
            }
        };
        let park = slot.prepare_park();
        if !self.request_wakeup(interest, None) {
            return Ok(Woken::Ready);
        }
        count(&self.counters.parks);
        park.wait(until)?;
        Ok(match watch {
            Some(watch) if is_watched(watch)? => Woken::Watched,
            _ => self.woken_by(interest, deadline),
        })
    }

    /// How a park has ended, unless by the watched descriptor.
    fn woken_by(&self, interest: Interest, deadline: Option<Instant>) -> Woken {
        // Spurious notifications must not postpone the deadline.
        let is_late = deadline.is_some_and(|at| at <= Instant::now());
        match is_late && !self.is_ready(interest) {
            true => Woken::TimedOut,
            false => Woken::Ready,
        }
    }

    /// A writer waits for space: chooses how, and whether the stream is long enough for the whole ring.
    fn found_full(&self) {
        let (now, position) = (Instant::now(), self.written.load(Ordering::Relaxed));
        self.choose(WRITING, now, position);
        if lock(&self.choices[WRITING]).streamed(position) >= LONG_STREAM {
            self.outgoing().use_whole();
        }
    }

    /// Chooses how to wait in one direction. Without spinning there is no choice.
    fn choose(&self, direction: usize, now: Instant, position: u64) {
        let mode = lock(&self.choices[direction]).wait(now, position);
        let parks = mode == WaitMode::Park && self.spins[direction].is_enabled();
        self.parks[direction].store(parks, Local::Relaxed);
    }

    /// The low watermark: the free space in bytes at which a writer that found none is woken.
    fn low_watermark(&self, outgoing: &Producer) -> u64 {
        let window = outgoing.window();
        match self.parks[WRITING].load(Local::Relaxed) {
            // It changes while the ring is empty.
            _ if outgoing.is_changing_window() && self.peer_follows() => window,
            true => window / 2,
            false => window / 4,
        }
    }

    /// Chooses how to wait for space or for more of a stream. Returns whether to spin. A wait for both
    /// directions always may. `place` is that of the next byte to read. A reader that has read less than a
    /// chunk since its last wait waits for a message, for which it spins; otherwise it reads a stream.
    fn may_spin(&self, interest: Interest, place: Option<Place>) -> bool {
        let reads_stream = place.is_some_and(|Place { position, window }| {
            let before = self.read_before.swap(position, Local::Relaxed);
            position.wrapping_sub(before) >= chunk(window)
        });
        match (interest, place) {
            (Interest::WRITE, _) => {
                self.found_full();
                !self.parks[WRITING].load(Local::Relaxed)
            }
            (Interest::READ, Some(place)) if reads_stream => {
                self.choose(READING, Instant::now(), place.position);
                !self.parks[READING].load(Local::Relaxed)
            }
            _ => true,
        }
    }

    /// Spins until the end may be ready. Returns whether it may be.
    fn spin(&self, interest: Interest) -> bool {
        let state = self.state();
        let same_processor = self.shares_processor();
        // Locks only the direction to wait for: the caller may have borrowed bytes of the other one.
        let seen = interest.read.then(|| {
            let incoming = self.incoming();
            (incoming.seen(), incoming.place())
        });
        let (seen, place) = seen.unzip();
        if state & SUSPENDED != 0 || !self.may_spin(interest, place) {
            return false;
        }
        let head = self.written.load(Ordering::Relaxed);
        let (window, wanted) = match interest.write {
            true => {
                let outgoing = self.outgoing();
                (outgoing.window(), self.low_watermark(&outgoing))
            }
            false => (0, 0),
        };
        let (read, write) = (self.words_in(), self.words_out());
        let has_data = || {
            Some(read.head.0.load(Ordering::Relaxed)) != seen
                || read.close.0.ended.load(Ordering::Relaxed) != 0
        };
        let has_space = || {
            let unread = head.wrapping_sub(write.tail.0.load(Ordering::Relaxed));
            window.saturating_sub(unread) >= wanted
                || write.close.0.closed.load(Ordering::Relaxed) != 0
        };
        let spin = &self.spins[usize::from(!interest.read)];
        spin.until(same_processor, || {
            seen.is_some() && has_data()
                || interest.write && has_space()
                || self.state_differs(state)
        })
    }

    /// Requests a notification when [`RingEnd::is_ready`] becomes true. Returns `true` if the caller
    /// may park until then, and `false` if it must retry its operation now.
    ///
    /// An event loop that polls the doorbell's descriptor may request one direction after the
    /// other. It need not call [`RingEnd::drain_notifications`] if it tries both directions after
    /// each wakeup: the descriptor is readable only if either direction was notified since then.
    /// There can be one such loop per direction. Threads that share a direction use
    /// [`RingEnd::wait`], tasks [`RingEnd::arm_task`].
    #[doc(alias = "wakeup request")]
    pub fn arm(&self, interest: Interest) -> bool {
        self.request_wakeup(interest, None)
    }

    /// As [`RingEnd::arm`], for a caller that must not wait for a lock: returns `false`, too, if another
    /// thread is reading or writing, or has borrowed bytes.
    pub fn try_arm(&self, interest: Interest) -> bool {
        if interest.read {
            let Some(mut incoming) = try_lock(&self.incoming) else {
                return false;
            };
            if !self.request_to_read(&mut incoming) {
                return false;
            }
        }
        if interest.write {
            let Some(mut outgoing) = try_lock(&self.outgoing) else {
                return false;
            };
            if !self.request_to_write(&mut outgoing) {
                return false;
            }
        }
        self.requested();
        true
    }

    /// Requests a notification when at least `free` bytes are free to write. Returns `true` if the
    /// caller may park until then, and `false` if it must retry its operation now.
    ///
    /// As [`RingEnd::arm`] for writing, for a writer that did not get [`RingError::WouldBlock`] but
    /// prefers to write later and more. Each write withdraws the request.
    #[doc(alias = "low watermark")]
    pub fn arm_free_space(&self, free: u64) -> bool {
        self.drain_stale(None);
        let is_armed = self.request_space(&mut self.outgoing(), free);
        if is_armed {
            self.requested();
        }
        is_armed
    }

    fn request_wakeup(&self, interest: Interest, guard: Option<&WaitGuard<'_>>) -> bool {
        self.drain_stale(guard);
        let is_armed = !interest.read || self.request_to_read(&mut self.incoming());
        if !is_armed || interest.write && !self.request_to_write(&mut self.outgoing()) {
            return false;
        }
        self.requested();
        true
    }

    /// Requests a wakeup for reading. Returns whether reading would block until then.
    fn request_to_read(&self, incoming: &mut Consumer) -> bool {
        match self.available_to_read(incoming, 1) {
            Err(RingError::WouldBlock) => {}
            _ => return false,
        }
        if self.state() & (SUSPENDED | RESET) == SUSPENDED {
            // The broker reports the resume by other means than the doorbell, after this load of
            // the state.
            return true;
        }
        count(&self.counters.wakeup_requests);
        let armed = incoming.arm(self.words_in(), &self.memory.header().state.0);
        let is_armed = self.validate(armed).unwrap_or(false);
        if !is_armed {
            self.woken(incoming.disarm(self.words_in()));
        }
        is_armed
    }

    /// Requests a wakeup for writing. Returns whether writing would block until then.
    fn request_to_write(&self, outgoing: &mut Producer) -> bool {
        if self.free_to_write(outgoing, 1) != Err(RingError::WouldBlock) {
            return false;
        }
        let wanted = self.low_watermark(outgoing);
        self.request_space(outgoing, wanted)
    }

    fn request_space(&self, outgoing: &mut Producer, free: u64) -> bool {
        let state = &self.memory.header().state.0;
        count(&self.counters.wakeup_requests);
        let armed = outgoing.arm(self.words_out(), state, free);
        let is_armed = self.validate(armed).unwrap_or(false);
        if !is_armed {
            self.woken(outgoing.disarm(self.words_out()));
        }
        is_armed
    }

    /// As [`RingEnd::arm`], for a task. `waker` is woken when another thread or task of this process
    /// drains the doorbell. `interest` is reading or writing, not both; each has a slot for one task.
    pub fn arm_task(&self, interest: Interest, waker: &Waker) -> bool {
        self.link
            .waiters()
            .join_task(usize::from(interest.write), waker);
        self.arm(interest)
    }

    /// As [`RingEnd::drain_notifications`], for a task that called [`RingEnd::arm_task`] with this
    /// `interest`: wakes all other waiters.
    pub fn drain_notifications_as_task(&self, interest: Interest) {
        self.drain_doorbell();
        self.link.wake(None, Some(usize::from(interest.write)));
    }

    /// Drains the doorbell when its descriptor is readable, and wakes every thread and task of this
    /// process that waits at this end.
    pub fn drain_notifications(&self) {
        self.drain_and_wake(None);
    }
}

/// Locks a direction that no thread uses now.
fn try_lock<T>(mutex: &Mutex<T>) -> Option<MutexGuard<'_, T>> {
    match mutex.try_lock() {
        Ok(guard) => Some(guard),
        Err(TryLockError::Poisoned(guard)) => Some(guard.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}

/// Blocks without a deadline. Only the peer and other threads of this process can end the wait.
impl Read for &RingEnd {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            match self.try_read(buffer) {
                Err(RingError::WouldBlock) => self.wait(Interest::READ, None, None)?,
                Err(RingError::EndOfStream) => return Ok(0),
                result => return Ok(result?),
            };
        }
    }
}

/// Blocks without a deadline. Only the peer and other threads of this process can end the wait.
impl Write for &RingEnd {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        loop {
            match self.try_write(bytes) {
                Err(RingError::WouldBlock) => self.wait(Interest::WRITE, None, None)?,
                result => return Ok(result?),
            };
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::{RingSize, pair};

    fn place(position: u64) -> Place {
        let window = RingSize::MIN.bytes().into();
        Place { position, window }
    }

    /// An end whose choice in one direction is to park at once.
    fn parks(end: &RingEnd, direction: usize) {
        let mut now = Instant::now();
        let mut choice = lock(&end.choices[direction]);
        let mut position = 0;
        // Spinning moves 1 MiB in a millisecond, parking 4.
        for _ in 0..1000 {
            let moved = match choice.wait(now, position) {
                WaitMode::Spin => 1 << 20,
                WaitMode::Park => 4 << 20,
            };
            position += moved;
            now += Duration::from_millis(1);
        }
    }

    #[test]
    fn a_reader_that_has_chosen_to_park_parks_for_a_stream_and_spins_for_a_message() {
        let (_writer, reader) = pair(RingSize::MIN).unwrap();
        parks(&reader, READING);
        let mut position = u64::from(RingSize::MIN.bytes());
        assert!(!reader.may_spin(Interest::READ, Some(place(position))));
        for _ in 0..3 {
            position += 64;
            assert!(reader.may_spin(Interest::READ, Some(place(position))));
        }
        // The other direction and a wait for both are not concerned.
        assert!(reader.may_spin(Interest::WRITE, None));
        position += u64::from(RingSize::MIN.bytes());
        assert!(reader.may_spin(Interest::EITHER, Some(place(position))));
    }

    #[test]
    fn a_writer_that_has_chosen_to_park_does_not_spin() {
        let (writer, _reader) = pair(RingSize::MIN).unwrap();
        assert!(writer.may_spin(Interest::WRITE, None));
        parks(&writer, WRITING);
        assert!(!writer.may_spin(Interest::WRITE, None));
    }

    #[test]
    fn a_writer_that_parks_at_once_waits_for_half_of_the_ring() {
        let (writer, reader) = pair(RingSize::MIN).unwrap();
        let capacity = RingSize::MIN.bytes() as usize;
        for (parks, wanted) in [(false, capacity / 4), (true, capacity / 2)] {
            writer.parks[WRITING].store(parks, Local::Relaxed);
            let filled = writer.try_write(&vec![0; capacity]).unwrap_or(0);
            assert_eq!(
                writer.try_write(&[0]),
                Err(RingError::WouldBlock),
                "{filled}"
            );
            assert!(writer.arm(Interest::WRITE));
            let before = reader.stats().notifications;
            reader.try_read(&mut vec![0; wanted - 1]).unwrap();
            assert_eq!(reader.stats().notifications, before);
            reader.try_read(&mut [0]).unwrap();
            assert_eq!(reader.stats().notifications, before + 1);
        }
    }

    #[test]
    fn a_reader_measures_streams_and_not_messages() {
        let (_writer, reader) = pair(RingSize::MIN).unwrap();
        // A choice that was never made counts from the first byte.
        let measured_from = |position| position - lock(&reader.choices[READING]).streamed(position);
        for position in [64, 128, 4000, 8000] {
            assert!(reader.may_spin(Interest::READ, Some(place(position))));
            assert_eq!(measured_from(position), 0);
        }
        assert!(reader.may_spin(Interest::READ, Some(place(20_000))));
        assert_eq!(measured_from(20_000), 20_000);
    }

    #[test]
    fn a_writer_that_never_spins_makes_no_choice() {
        let (writer, _reader) = pair(RingSize::MIN).unwrap();
        writer.set_spin(Duration::ZERO);
        writer.parks[WRITING].store(true, Local::Relaxed);
        writer.found_full();
        assert!(!writer.parks[WRITING].load(Local::Relaxed));
    }
}
