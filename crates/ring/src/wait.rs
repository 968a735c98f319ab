//! Waiting at an end: looking for a moment, then asleep.
//!
//! Asking to be woken comes before the last look and the sleep after it; see
//! [`producer`](crate::producer) for why no wake-up is lost between the two processes, and
//! [`waiters`](crate::waiters) for why none is between the threads of one.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::task::Waker;
use std::time::{Duration, Instant};

use hvsock_sys::poll::{self, PollFd, PollFlags};

use crate::layout::{CUT, SUSPENDED};
use crate::producer::Producer;
use crate::stats::count;
use crate::sync::Ordering;
use crate::waiters::Seat;
use crate::{End, Stop};

/// What to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interest {
    /// Bytes to read, an end or an error.
    pub read: bool,
    /// Room to write, or an error.
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
    /// Either.
    pub const EITHER: Self = Self {
        read: true,
        write: true,
    };
}

/// How a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Woken {
    /// What was waited for may be there.
    Ready,
    /// The descriptor that was watched as well is ready for reading.
    Watched,
    /// The deadline has passed.
    TimedOut,
}

/// How long a thread sleeps that nobody of its process can wake.
const BLIND: Duration = Duration::from_millis(20);

impl End {
    /// Whether reading or writing, as asked, would give something other than
    /// [`Stop::WouldBlock`].
    pub fn is_ready(&self, interest: Interest) -> bool {
        interest.read && self.is_readable() || interest.write && self.is_writable()
    }

    /// Waits until [`End::is_ready`] may be so, until `watch` is ready for reading, or until
    /// `deadline`. It may return early: look, and wait again.
    ///
    /// A process beside the peer that may end the connection, such as a broker, is heard through
    /// `watch`. Without it the end of the peer's process is heard through the bell alone.
    pub fn wait(
        &self,
        interest: Interest,
        watch: Option<BorrowedFd<'_>>,
        deadline: Option<Instant>,
    ) -> io::Result<Woken> {
        if self.look(interest) {
            count(&self.counts.spins);
            return Ok(Woken::Ready);
        }
        let seat = self.waiters.join();
        // A bell whose other half is closed would be ready for ever. Looked at before the asking,
        // to which a closed bell is an answer, unless the connection stands still.
        let has_hung_up = self.has_hung_up();
        if !self.ask(interest, seat.as_ref()) {
            return Ok(Woken::Ready);
        }
        count(&self.counts.sleeps);
        let bell = self.bell();
        let mut fds = Vec::with_capacity(3);
        let mut place = |fd| {
            fds.push(PollFd::from_borrowed_fd(fd, PollFlags::IN));
            fds.len() - 1
        };
        let bell_at = (!has_hung_up).then(|| place(bell));
        let watch_at = watch.map(&mut place);
        let event_at = seat.as_ref().map(|seat| place(seat.event().as_fd()));
        let until = match &seat {
            Some(_) => deadline,
            None => {
                let blind = Instant::now() + BLIND;
                Some(deadline.map_or(blind, |deadline| deadline.min(blind)))
            }
        };
        poll::wait(&mut fds, until)?;
        let is_ready = |at: Option<usize>| at.is_some_and(|at| !fds[at].revents().is_empty());
        if let Some(seat) = &seat
            && is_ready(event_at)
        {
            seat.event().clear();
        }
        if let Some(at) = bell_at.filter(|at| is_ready(Some(*at))) {
            self.take_rings(fds[at].revents().contains(PollFlags::HUP));
            self.waiters.wake(seat.as_ref());
        }
        // A bell that is rung for nothing must not put the deadline off.
        let is_late = deadline.is_some_and(|at| at <= Instant::now());
        Ok(match () {
            () if is_ready(watch_at) => Woken::Watched,
            () if is_late && !self.is_ready(interest) => Woken::TimedOut,
            () => Woken::Ready,
        })
    }

    /// Looks for a moment whether it need sleep; whether it need not.
    fn look(&self, interest: Interest) -> bool {
        let state = self.state();
        let together = self.runs_here();
        if state & SUSPENDED != 0 {
            return false;
        }
        // Only what is waited for is locked: the caller may hold the other direction's bytes.
        let seen = interest.read.then(|| self.incoming().seen());
        let (enough, ours) = (self.room_wanted, self.written.load(Ordering::Relaxed));
        let capacity = u64::from(self.size().bytes());
        let (read, write) = (self.words_in(), self.words_out());
        let word = &self.memory.header().state.0;
        let data = || {
            Some(read.head.0.load(Ordering::Relaxed)) != seen
                || read.ends.0.ended.load(Ordering::Relaxed) != 0
        };
        let room = || {
            let unread = ours.wrapping_sub(write.tail.0.load(Ordering::Relaxed));
            capacity.saturating_sub(unread) >= enough
                || write.ends.0.closed.load(Ordering::Relaxed) != 0
        };
        let spin = &self.spins[usize::from(!interest.read)];
        spin.until(together, || {
            seen.is_some() && data()
                || interest.write && room()
                || word.load(Ordering::Relaxed) != state & !CUT
        })
    }

    /// Asks to be woken when [`End::is_ready`] comes to be so, and returns whether it is not so
    /// yet. If it is, nothing was asked for.
    ///
    /// An event loop that watches the bell's descriptor may ask for one direction after the
    /// other, and need not call [`End::hear`] if it then tries both: the descriptor is quiet when
    /// nothing has happened since, and ready when something has for one of them. There can be one
    /// such loop for each direction; threads that use the same direction wait with
    /// [`End::wait`], tasks with [`End::arm_task`].
    pub fn arm(&self, interest: Interest) -> bool {
        self.ask(interest, None)
    }

    /// Asks to be woken when at least `room` bytes can be written, and returns whether that is
    /// not so yet. As [`End::arm`] for writing, for who would rather write later and more: it has
    /// not come to [`Stop::WouldBlock`] yet. Each write takes the wish back.
    pub fn arm_room(&self, room: u64) -> bool {
        self.tidy_bell(None);
        let sleeps = self.ask_for_room(&mut self.outgoing(), room);
        if sleeps {
            self.hearing.asked();
        }
        sleeps
    }

    fn ask(&self, interest: Interest, seat: Option<&Seat<'_>>) -> bool {
        self.tidy_bell(seat);
        let is_asked = !interest.read || self.ask_to_read();
        if !is_asked || interest.write && !self.ask_to_write() {
            return false;
        }
        self.hearing.asked();
        true
    }

    /// Whether there is nothing to read yet.
    fn ask_to_read(&self) -> bool {
        let mut incoming = self.incoming();
        match self.to_read(&mut incoming, 1) {
            Err(Stop::WouldBlock) => {}
            _ => return false,
        }
        if self.state() & (SUSPENDED | CUT) == SUSPENDED {
            // The word that it moves again comes by other means than the bell, later than this
            // look at the state.
            return true;
        }
        let armed = incoming.arm(self.words_in(), &self.memory.header().state.0);
        let sleeps = self.believe(armed).unwrap_or(false);
        if !sleeps {
            self.awoken(incoming.disarm(self.words_in()));
        }
        sleeps
    }

    /// Whether there is no room to write yet.
    fn ask_to_write(&self) -> bool {
        let mut outgoing = self.outgoing();
        if self.to_write(&mut outgoing, 1) != Err(Stop::WouldBlock) {
            return false;
        }
        self.ask_for_room(&mut outgoing, self.room_wanted)
    }

    fn ask_for_room(&self, outgoing: &mut Producer, room: u64) -> bool {
        let state = &self.memory.header().state.0;
        let armed = outgoing.arm(self.words_out(), state, room);
        let sleeps = self.believe(armed).unwrap_or(false);
        if !sleeps {
            self.awoken(outgoing.disarm(self.words_out()));
        }
        sleeps
    }

    /// As [`End::arm`], for a task that is woken when another thread or task of this process
    /// clears the bell. `interest` is one of reading and writing; there is a place for one task
    /// of each.
    pub fn arm_task(&self, interest: Interest, waker: &Waker) -> bool {
        self.waiters.join_task(usize::from(interest.write), waker);
        self.arm(interest)
    }

    /// As [`End::hear`], by the task itself that waits for `interest`.
    pub fn hear_task(&self, interest: Interest) {
        self.clear_own_bell();
        self.waiters.wake_but_task(usize::from(interest.write));
    }

    /// Takes note that the bell's descriptor is ready: clears it, and has everyone of this
    /// process who waits here look again.
    pub fn hear(&self) {
        self.clear_bell(None);
    }
}

/// Waits for as long as it takes, with nobody but the peer to hear from.
impl Read for &End {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            match self.try_read(buffer) {
                Err(Stop::WouldBlock) => self.wait(Interest::READ, None, None)?,
                Err(Stop::End) => return Ok(0),
                result => return Ok(result?),
            };
        }
    }
}

/// Waits for as long as it takes, with nobody but the peer to hear from.
impl Write for &End {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        loop {
            match self.try_write(bytes) {
                Err(Stop::WouldBlock) => self.wait(Interest::WRITE, None, None)?,
                result => return Ok(result?),
            };
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
