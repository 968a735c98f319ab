//! What belongs to one connection of an arena, besides its bytes.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Instant;

use hvsock_ring::{Interest, RingEnd, SlotId};
use hvsock_sys::event::Event;
use hvsock_sys::poll::{self, PollFd, PollFlags};
use hvsock_sys::seqpacket;
use hvsock_sys::sync::lock;

use super::super::control::ResetReason;
use super::end::Arena;
use super::watcher::Served;

/// The broker's messages about one connection.
#[derive(Debug)]
pub(crate) struct SlotControl {
    arena: Arc<Arena>,
    id: SlotId,
    /// The other ends of the descriptors of [`SlotControl::stand_in`].
    stand_ins: Mutex<Vec<OwnedFd>>,
}

impl SlotControl {
    pub(crate) fn new(arena: &Arc<Arena>, id: SlotId) -> Self {
        Self {
            arena: Arc::clone(arena),
            id,
            stand_ins: Mutex::default(),
        }
    }

    /// Why the connection was reset, as far as messages were received.
    pub(crate) fn reason(&self) -> Option<ResetReason> {
        self.arena.reason(self.id)
    }

    /// Receives the pending messages, and returns why the connection was reset. For an end that sees that
    /// it was: the reason came before.
    pub(crate) fn receive_reason(&self) -> Option<ResetReason> {
        self.arena.receive();
        self.reason()
    }

    /// As [`receive_reason`](Self::receive_reason), and waits for it until `deadline`.
    pub(crate) fn wait_for_reason(&self, deadline: Option<Instant>) -> Option<ResetReason> {
        loop {
            if let Some(reason) = self.receive_reason() {
                return Some(reason);
            }
            let control = Served::control(&*self.arena);
            let mut fds = [PollFd::new(&control, PollFlags::IN)];
            let has_message = deadline.is_some() && poll::wait(&mut fds, deadline).ok()?;
            if !has_message {
                // The watcher may have received it meanwhile.
                return self.reason();
            }
        }
    }

    /// A descriptor in place of that of a control channel, for a program that does not use this library:
    /// it hangs up when the connection is closed here. The arena's own one has messages of others.
    pub(crate) fn stand_in(&self) -> io::Result<OwnedFd> {
        let (ours, theirs) = seqpacket::pair()?;
        lock(&self.stand_ins).push(ours);
        Ok(theirs)
    }
}

impl Drop for SlotControl {
    fn drop(&mut self) {
        self.arena.forget(self.id);
    }
}

/// The descriptor of a connection, which has none until somebody asks for it.
///
/// It is readable if something has happened since reading or writing last returned `WouldBlock`. The
/// notifications of all connections come by one doorbell, and the watcher passes them on.
#[derive(Debug)]
pub(crate) struct SlotReadiness {
    arena: Arc<Arena>,
    slot: u32,
    event: OnceLock<Arc<Event>>,
    /// The directions that were blocked when they were last tried. A new connection counts as one from
    /// which reading was tried, so that a program may wait first.
    blocked: AtomicU8,
}

const READ: u8 = 1;
const WRITE: u8 = 2;

fn bits(interest: Interest) -> u8 {
    (u8::from(interest.read) * READ) | (u8::from(interest.write) * WRITE)
}

impl SlotReadiness {
    pub(crate) fn new(arena: &Arc<Arena>, slot: u32) -> Self {
        Self {
            arena: Arc::clone(arena),
            slot,
            event: OnceLock::new(),
            blocked: AtomicU8::new(READ),
        }
    }

    /// The descriptor. One that is readable at all times if no other can be made: a program that waits
    /// for it tries in vain then, but misses nothing.
    pub(crate) fn fd(&self, end: &RingEnd) -> BorrowedFd<'_> {
        if let Some(event) = self.event.get() {
            return event.as_fd();
        }
        let Ok(event) = self.arena.watch(self.slot) else {
            return self.arena.always_readable();
        };
        end.set_signals(true);
        // Earlier wakeup requests had no signal.
        for interest in [Interest::READ, Interest::WRITE] {
            let is_blocked = self.blocked.load(Ordering::Relaxed) & bits(interest) != 0;
            if is_blocked && !end.try_arm(interest) {
                event.set();
            }
        }
        self.event.get_or_init(|| event).as_fd()
    }

    /// Notes that an operation was tried and did not block.
    pub(crate) fn settled(&self, interest: Interest) {
        let bits = bits(interest);
        if self.blocked.load(Ordering::Relaxed) & bits != 0 {
            self.blocked.fetch_and(!bits, Ordering::Relaxed);
        }
    }

    /// Requests a wakeup for `interest`. Returns false if the operation must be tried again.
    pub(crate) fn would_block(&self, end: &RingEnd, interest: Interest) -> bool {
        let before = self.blocked.fetch_or(bits(interest), Ordering::Relaxed);
        if let Some(event) = self.event.get() {
            event.clear();
            // What it signalled may have been for the other direction, which was not tried since.
            let other = Interest {
                read: !interest.read,
                write: !interest.write,
            };
            if before & bits(other) != 0 && !end.try_arm(other) {
                event.set();
            }
        }
        end.arm(interest)
    }
}

impl Drop for SlotReadiness {
    fn drop(&mut self) {
        if self.event.get().is_some() {
            self.arena.unwatch(self.slot);
        }
    }
}
