//! The ring transport: the bytes go through memory that both processes share. Neither the kernel
//! nor the broker copies them.
//!
//! Flags in the ring report the end of the data. They cannot report why a connection was reset, nor
//! that the peer was killed. [`Control`](super::super::control::Control) reports these; a waiting
//! end watches it together with its doorbell, and a busy end polls it now and then.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hvsock_fabric::Refusal;
use hvsock_ring::{
    Doorbells, Filled, Reserved, ResetCause, RingEnd, RingError, RingSide, RingSize, Woken,
};
use hvsock_sys::event;

use super::super::arena::SlotReadiness;
use super::link::{Channel, Link};
use crate::backend::{ReadInto, WriteFrom, errors};
use crate::os::backend::Received;
use crate::{Interest, Readiness};

/// Bytes in one direction after which a busy end polls the control channel. At many GB/s that takes
/// some hundred microseconds, and costs a thousandth of the time.
const POLL_CONTROL_AFTER: u64 = 4 * 1024 * 1024;

/// How long to wait for the broker's message about a peer that is gone. The broker detects it at
/// once.
const END_STATUS_TIMEOUT: Duration = Duration::from_secs(1);

/// One end of a ring.
#[derive(Debug)]
pub(crate) struct Ring {
    /// The descriptor to watch. Dropped before the end, whose slot in an arena may be used again then.
    readiness: RingReadiness,
    end: RingEnd,
    /// Bytes read and bytes written since the control channel was last polled.
    since_poll: [AtomicU64; 2],
}

/// The descriptor that a program watches.
#[derive(Debug)]
enum RingReadiness {
    /// Doorbell and control channel of the connection itself.
    Own {
        /// An epoll instance over both, created when a caller first requests a descriptor to watch.
        epoll: OnceLock<OwnedFd>,
        /// The peer's half of the doorbell is closed, so the doorbell was removed from `epoll`.
        doorbell_removed: AtomicBool,
    },
    /// An event that is set by the watcher of the arena.
    Slot(SlotReadiness),
}

const READ: usize = 0;
const WRITE: usize = 1;
const INTEREST: [hvsock_ring::Interest; 2] =
    [hvsock_ring::Interest::READ, hvsock_ring::Interest::WRITE];

impl Ring {
    /// Opens an end with memory and doorbells of its own.
    pub(super) fn new(side: RingSide, memory: impl AsFd, doorbells: Doorbells) -> io::Result<Self> {
        let readiness = RingReadiness::Own {
            epoll: OnceLock::new(),
            doorbell_removed: AtomicBool::new(false),
        };
        Ok(Self::with(
            RingEnd::open(side, memory, doorbells)?,
            readiness,
        ))
    }

    /// Takes an end in an arena.
    pub(super) fn in_arena(end: RingEnd, readiness: SlotReadiness) -> Self {
        Self::with(end, RingReadiness::Slot(readiness))
    }

    fn with(end: RingEnd, readiness: RingReadiness) -> Self {
        // Nobody has asked for a size: only a long stream uses all of it.
        if end.size() == RingSize::DEFAULT {
            end.set_window(RingSize::SMALL.bytes());
        }
        Self {
            readiness,
            end,
            since_poll: [AtomicU64::new(0), AtomicU64::new(0)],
        }
    }

    pub(crate) fn end(&self) -> &RingEnd {
        &self.end
    }

    /// A descriptor that is readable if something has happened since reading or writing last
    /// returned `WouldBlock`.
    pub(super) fn readiness_fd(&self, link: &Link) -> BorrowedFd<'_> {
        let epoll = match &self.readiness {
            RingReadiness::Own { epoll, .. } => epoll,
            RingReadiness::Slot(slot) => return slot.fd(&self.end),
        };
        if let Some(epoll) = epoll.get() {
            return epoll.as_fd();
        }
        let doorbell = self.end.doorbell();
        let control = link.control.watched().unwrap_or(doorbell);
        match event::any_of(&[doorbell, control]) {
            Ok(any) => epoll.get_or_init(|| any).as_fd(),
            // No descriptor is left. Without the control channel the reason of a reset is not
            // signalled.
            Err(_) => doorbell,
        }
    }

    pub(super) fn recv(&self, link: &Link, mut into: ReadInto<'_, '_>) -> io::Result<usize> {
        let received = self.read_until(link, || self.try_recv(link, &mut into))?;
        Ok(received.unwrap_or(0))
    }

    /// Borrows the received bytes in place, waiting as receiving does; `None` at the end.
    pub(super) fn fill(&self, link: &Link) -> io::Result<Option<Filled<'_>>> {
        let filled = self.read_until(link, || self.tried(READ, self.end.try_fill()))?;
        if let Some(filled) = &filled {
            self.count_bytes(link, READ, filled.len());
        }
        Ok(filled)
    }

    /// Repeats `attempt` while it returns `WouldBlock`. Waits as long as the mode and the timeout
    /// of the socket permit. `None` at the end.
    fn read_until<T>(
        &self,
        link: &Link,
        mut attempt: impl FnMut() -> Result<T, RingError>,
    ) -> io::Result<Option<T>> {
        let mut deadline = None;
        loop {
            match attempt() {
                Ok(read) => return Ok(Some(read)),
                Err(RingError::WouldBlock) => {}
                Err(RingError::PeerGone) => return self.wait_for_end(link).map(|_| None),
                Err(stop) => return self.stopped(link, stop).map(|_| None),
            }
            let interest = hvsock_ring::Interest::READ;
            if link.end.is_nonblocking() {
                self.would_block(link, interest)?;
                continue;
            }
            let deadline = *deadline.get_or_insert_with(|| link.end.read_deadline());
            self.wait(link, interest, deadline)?;
        }
    }

    /// Receives the available bytes; `WouldBlock` if there are none, in any mode.
    pub(super) fn recv_once(
        &self,
        link: &Link,
        into: &mut ReadInto<'_, '_>,
    ) -> io::Result<Received> {
        match self.try_recv(link, into) {
            Ok(count) => Ok(Received::Bytes(count)),
            Err(RingError::WouldBlock) => Err(io::ErrorKind::WouldBlock.into()),
            Err(RingError::PeerGone) => link.read_end(&link.control.drain()),
            Err(stop) => self.stopped(link, stop).map(Received::Bytes),
        }
    }

    fn try_recv(&self, link: &Link, into: &mut ReadInto<'_, '_>) -> Result<usize, RingError> {
        let result = match into {
            ReadInto::One(buffer) => self.end.try_read(buffer),
            ReadInto::Many(slices) => self.end.try_read_vectored(slices),
            ReadInto::Peek(buffer) => return self.tried(READ, self.end.try_peek(buffer)),
        };
        let count = self.tried(READ, result)?;
        self.count_bytes(link, READ, count);
        Ok(count)
    }

    pub(super) fn send(&self, link: &Link, from: WriteFrom<'_, '_>) -> io::Result<usize> {
        self.write_until(link, || self.try_send(link, from))
    }

    /// Fails as sending does if the peer reads no more, which no descriptor signals: the control
    /// channel's end is one of several events. Does not block.
    pub(super) fn send_nothing(&self, link: &Link) -> io::Result<usize> {
        self.poll_control(link);
        match self.end.try_write(&[]) {
            Ok(_) | Err(RingError::WouldBlock) => Ok(0),
            Err(stop) => Err(self.error(link, stop)),
        }
    }

    /// Reserves free space, waiting as sending does.
    pub(super) fn reserve(&self, link: &Link, wanted: usize) -> io::Result<Reserved<'_>> {
        let reserve = || self.tried(WRITE, self.end.try_reserve(wanted));
        let reserved = self.write_until(link, reserve)?;
        self.count_bytes(link, WRITE, reserved.len());
        Ok(reserved)
    }

    fn write_until<T>(
        &self,
        link: &Link,
        mut attempt: impl FnMut() -> Result<T, RingError>,
    ) -> io::Result<T> {
        let mut deadline = None;
        loop {
            match attempt() {
                Ok(written) => return Ok(written),
                Err(RingError::WouldBlock) => {}
                Err(stop) => return Err(self.error(link, stop)),
            }
            let interest = hvsock_ring::Interest::WRITE;
            if link.end.is_nonblocking() {
                self.would_block(link, interest)?;
                continue;
            }
            let deadline = *deadline.get_or_insert_with(|| link.end.write_deadline());
            self.wait(link, interest, deadline)?;
        }
    }

    /// Sends as many bytes as there is free space for; `WouldBlock` if there is none, in any mode.
    pub(super) fn send_once(&self, link: &Link, from: WriteFrom<'_, '_>) -> io::Result<usize> {
        match self.try_send(link, from) {
            Ok(count) => Ok(count),
            Err(RingError::WouldBlock) => Err(io::ErrorKind::WouldBlock.into()),
            Err(stop) => Err(self.error(link, stop)),
        }
    }

    fn try_send(&self, link: &Link, from: WriteFrom<'_, '_>) -> Result<usize, RingError> {
        let result = match from {
            WriteFrom::One(bytes) => self.end.try_write(bytes),
            WriteFrom::Many(slices) => self.end.try_write_vectored(slices),
        };
        let count = self.tried(WRITE, result)?;
        self.count_bytes(link, WRITE, count);
        Ok(count)
    }

    /// Notes for which direction the descriptor need not signal anything any more.
    fn tried<T>(&self, direction: usize, result: Result<T, RingError>) -> Result<T, RingError> {
        if let RingReadiness::Slot(slot) = &self.readiness
            && !matches!(result, Err(RingError::WouldBlock))
        {
            slot.settled(INTEREST[direction]);
        }
        result
    }

    /// Counts bytes and polls the control channel now and then. Concurrent updates may lose a
    /// count, which only delays the next poll.
    fn count_bytes(&self, link: &Link, direction: usize, count: usize) {
        let moved = self.since_poll[direction].load(Ordering::Relaxed) + count as u64;
        if moved < POLL_CONTROL_AFTER {
            self.since_poll[direction].store(moved, Ordering::Relaxed);
        } else {
            self.since_poll[direction].store(0, Ordering::Relaxed);
            self.poll_control(link);
        }
    }

    /// Handles pending messages of the control channel.
    pub(super) fn poll_control(&self, link: &Link) {
        let status = link.control.drain();
        if status.reset.is_some() {
            self.end.reset_by_control();
        } else if status.updated {
            // Other threads may wait for the message that this one has received.
            self.end.drain_notifications();
        }
    }

    /// Requests a wakeup for `interest`; `WouldBlock` if there is still nothing to do.
    fn would_block(&self, link: &Link, interest: hvsock_ring::Interest) -> io::Result<()> {
        // The descriptor must not stay readable for a message that is handled.
        self.poll_control(link);
        let (epoll, doorbell_removed) = match &self.readiness {
            RingReadiness::Own {
                epoll,
                doorbell_removed,
            } => (epoll, doorbell_removed),
            RingReadiness::Slot(slot) => {
                return match slot.would_block(&self.end, interest) {
                    true => Err(io::ErrorKind::WouldBlock.into()),
                    false => Ok(()),
                };
            }
        };
        if !self.end.arm(interest) {
            return Ok(());
        }
        // The peer is gone while the connection is suspended. Nothing can be done about it yet, and
        // its doorbell would be readable all the time.
        if self.end.has_hung_up()
            && let Some(epoll) = epoll.get()
            && !doorbell_removed.swap(true, Ordering::Relaxed)
        {
            event::remove(epoll, self.end.doorbell())?;
        }
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn wait(
        &self,
        link: &Link,
        interest: hvsock_ring::Interest,
        deadline: Option<Instant>,
    ) -> io::Result<()> {
        match self.end.wait(interest, link.control.watched(), deadline)? {
            // In an arena the broker's order is a bit that the peer can clear again; its message is not.
            Woken::Ready if matches!(link.control, Channel::Arena(_)) => {
                self.poll_control(link);
                Ok(())
            }
            Woken::Ready => Ok(()),
            Woken::Watched => {
                self.poll_control(link);
                Ok(())
            }
            Woken::TimedOut => Err(errors::timed_out()),
        }
    }

    /// The peer is gone without an end in the ring. Waits for the broker's message.
    fn wait_for_end(&self, link: &Link) -> io::Result<usize> {
        if !link.end.is_nonblocking() {
            let latest = Instant::now() + END_STATUS_TIMEOUT;
            let deadline = link.end.read_deadline().map_or(latest, |at| at.min(latest));
            link.control.wait_for_end(Some(deadline))?;
        }
        match link.read_end(&link.control.drain())? {
            Received::Bytes(count) => Ok(count),
            Received::EndPending if link.end.is_nonblocking() => {
                Err(io::ErrorKind::WouldBlock.into())
            }
            Received::EndPending => Err(reset(RingError::PeerGone)),
        }
    }

    /// The result of a stop that is final for reading: the end, or an error with its reason.
    fn stopped(&self, link: &Link, stop: RingError) -> io::Result<usize> {
        match stop {
            RingError::EndOfStream => Ok(0),
            stop => Err(self.error(link, stop)),
        }
    }

    /// The error for a stop, with its reason.
    fn error(&self, link: &Link, stop: RingError) -> io::Error {
        match stop {
            RingError::WouldBlock => io::ErrorKind::WouldBlock.into(),
            RingError::WriteShutdown => errors::write_shut_down(),
            RingError::PeerClosed => {
                let reason = link.control.drain().reset_reason();
                reason.map_or_else(errors::peer_stopped_reading, super::ResetReason::into_error)
            }
            RingError::Reset | RingError::PeerGone => link
                .reset_reason(self.end.reset_cause())
                .unwrap_or_else(|| self.reset_by_peer(stop)),
            RingError::EndOfStream | RingError::UnreadData | RingError::ProtocolViolation(_) => {
                reset(stop)
            }
        }
    }

    /// The error for a reset without a reason from the broker.
    fn reset_by_peer(&self, stop: RingError) -> io::Error {
        // In an arena the broker reports the end of a process in the memory.
        reset(match self.end.reset_cause() {
            ResetCause::PeerGone => RingError::PeerGone,
            ResetCause::UnreadData => RingError::UnreadData,
            ResetCause::Control | ResetCause::Aborted => stop,
        })
    }

    /// Why the connection was reset, if it was. Does not wait.
    pub(super) fn reset_reason(&self, link: &Link) -> Option<io::Error> {
        let known = match &link.control {
            Channel::Own(control) => control.drain().reset_reason(),
            Channel::Arena(control) => control.receive_reason(),
        };
        if let Some(reason) = known {
            return Some(reason.into_error());
        }
        match self.end.reset_cause() {
            ResetCause::Control => None,
            _ => Some(self.reset_by_peer(RingError::Reset)),
        }
    }

    /// Waits until reading or writing does not block, or until `deadline`.
    pub(super) fn poll(
        &self,
        link: &Link,
        interest: Interest,
        deadline: Option<Instant>,
    ) -> io::Result<Readiness> {
        let interest = hvsock_ring::Interest {
            read: interest.is_readable(),
            write: interest.is_writable(),
        };
        loop {
            let readable = interest.read && self.would_read(link, deadline)?;
            let writable = interest.write && self.end.is_writable();
            if readable || writable {
                return Ok(Readiness::new(readable, writable));
            }
            match self.end.wait(interest, link.control.watched(), deadline)? {
                Woken::Ready => {}
                Woken::Watched => self.poll_control(link),
                Woken::TimedOut => return Ok(Readiness::default()),
            }
        }
    }

    /// Returns true if receiving returns bytes, the end or an error without waiting.
    fn would_read(&self, link: &Link, deadline: Option<Instant>) -> io::Result<bool> {
        match self.end.try_peek(&mut [0]) {
            Err(RingError::WouldBlock) => Ok(false),
            Err(RingError::PeerGone) => {
                let latest = Instant::now() + END_STATUS_TIMEOUT;
                let deadline = deadline.map_or(latest, |at| at.min(latest));
                link.control.wait_for_end(Some(deadline))?;
                Ok(true)
            }
            _ => Ok(true),
        }
    }
}

/// The error for a reset without a reason from the broker.
fn reset(stop: RingError) -> io::Error {
    let cause = match stop {
        // Its own text is that of the refusal.
        RingError::Reset => "the other end aborted it".to_owned(),
        stop => stop.to_string(),
    };
    Refusal::Reset { cause }.into_reset_error()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reset_says_its_cause_once() {
        for stop in [RingError::Reset, RingError::PeerGone, RingError::UnreadData] {
            let text = reset(stop).to_string();
            let cause = text.strip_prefix("the connection was reset: ").unwrap();
            assert!(!cause.contains("reset"), "{text}");
        }
    }
}
