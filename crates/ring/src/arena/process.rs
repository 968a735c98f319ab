//! What both ends of an arena need in their process: the mappings, the doorbells and the waiters.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering as Local};
use std::sync::{Arc, OnceLock};

use hvsock_sys::doorbell;
use hvsock_sys::shared_memory::Mapping;

use super::grant::GrantReader;
use super::layout::ArenaLimits;
use super::words::{ArenaWords, ReadyWords, SLOTS, SlotWords};
use super::{changes, ready, wakeups};
use crate::waiters::Waiters;
use crate::{Doorbells, RingSide, copy};

/// Sends the broker a message on the control connection: something has changed in the arena.
pub type TellBroker = Arc<dyn Fn() + Send + Sync>;

/// The number of slots whose waiters are allocated together.
const GROUP: usize = 32;

/// An arena in the process of one of its ends.
pub(crate) struct ArenaProcess {
    side: RingSide,
    mapping: Arc<Mapping>,
    grant: GrantReader,
    doorbells: Doorbells,
    tell_broker: TellBroker,
    /// The control connection is lost.
    ended: AtomicBool,
    waiters: [OnceLock<Box<[Waiters; GROUP]>>; SLOTS.div_ceil(GROUP)],
}

impl fmt::Debug for ArenaProcess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ArenaProcess")
            .field("side", &self.side)
            .field("limits", &self.limits())
            .field("ended", &self.ended)
            .finish_non_exhaustive()
    }
}

impl ArenaProcess {
    /// Maps an arena that the broker has created. Its length is computed from the grant page, which only
    /// the broker can write.
    pub(crate) fn open(
        side: RingSide,
        memory: impl AsFd,
        grant: impl AsFd,
        doorbells: Doorbells,
        tell_broker: TellBroker,
    ) -> io::Result<Self> {
        let grant = GrantReader::open(grant)?;
        let expected = grant.limits().len();
        let mapping = Mapping::whole(memory, expected)?;
        if mapping.len() as u64 != expected {
            let text = format!(
                "the arena has {} bytes instead of {expected}",
                mapping.len()
            );
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        Ok(Self {
            side,
            mapping: Arc::new(mapping),
            grant,
            doorbells,
            tell_broker,
            ended: AtomicBool::new(false),
            waiters: [const { OnceLock::new() }; SLOTS.div_ceil(GROUP)],
        })
    }

    pub(crate) fn side(&self) -> RingSide {
        self.side
    }

    pub(crate) fn limits(&self) -> ArenaLimits {
        self.grant.limits()
    }

    pub(crate) fn grant(&self) -> &GrantReader {
        &self.grant
    }

    pub(crate) fn mapping(&self) -> &Arc<Mapping> {
        &self.mapping
    }

    #[inline]
    pub(crate) fn words(&self) -> &ArenaWords {
        copy::arena(&self.mapping)
    }

    #[inline]
    pub(crate) fn slot(&self, slot: u32) -> &SlotWords {
        &self.words().slots.0[slot as usize % SLOTS]
    }

    pub(crate) fn doorbell(&self) -> BorrowedFd<'_> {
        self.doorbells.own.as_fd()
    }

    /// Those of this process and of the other one.
    pub(crate) fn doorbells(&self) -> [BorrowedFd<'_>; 2] {
        [self.doorbells.own.as_fd(), self.doorbells.peer.as_fd()]
    }

    /// Notifies the other process. It may be gone, which its control connection tells the broker.
    pub(crate) fn notify_peer(&self) {
        let _ = doorbell::notify(&self.doorbells.peer);
    }

    /// Wakes the waiters of the other process in a slot, in the ways that it asked for.
    pub(crate) fn wake_peer(&self, slot: u32) {
        let side = self.side.other();
        let wakeups = &self.slot(slot).wakeups[side.index()].0;
        if wakeups::wake_end(wakeups, self.ready(side), slot) {
            self.notify_peer();
        }
    }

    /// Notifies the other process of a slot if it wants signals, whether or not it has made a wakeup request.
    pub(crate) fn signal_peer(&self, slot: u32) {
        let side = self.side.other();
        let wakeups = &self.slot(slot).wakeups[side.index()].0;
        if wakeups::signal_end(wakeups, self.ready(side), slot) {
            self.notify_peer();
        }
    }

    /// The waiters of this process in a slot, whatever the connection.
    pub(crate) fn waiters(&self, slot: u32) -> &Waiters {
        let slot = slot as usize % SLOTS;
        let group = self.waiters[slot / GROUP].get_or_init(Box::default);
        &group[slot % GROUP]
    }

    /// Wakes the threads and tasks of this process that wait in a slot.
    pub(crate) fn wake_waiters(&self, slot: u32, except_task: Option<usize>) {
        if self.waiters(slot).wake_others(None, except_task) {
            self.slot(slot).wakeups[self.side.index()].0.futex.wake();
        }
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Local::Acquire)
    }

    /// Ends the arena in this process: every connection reads as reset.
    pub(crate) fn mark_ended(&self) {
        self.ended.store(true, Local::SeqCst);
        // Of all slots: the lock of each, and of its allocation, orders this with a thread that registers
        // and then checks.
        (0..self.limits().slots).for_each(|slot| self.wake_waiters(slot, None));
    }

    /// Drains the doorbell, usually with one system call, and the ready set. Returns `false` if the doorbell
    /// was empty and the other process has closed its end.
    pub(crate) fn drain_ready(&self, mut each: impl FnMut(u32)) -> bool {
        // An error is reported by the next poll.
        let is_open = doorbell::drain_or_hung_up(&self.doorbells.own).unwrap_or(true);
        let slots = self.limits().slots;
        ready::drain(self.ready(self.side), |slot| {
            if slot < slots {
                each(slot);
            }
        });
        is_open
    }

    /// As [`drain_ready`](Self::drain_ready), for a loop that looks again before it waits: reads no
    /// doorbell and requests no further notification.
    pub(crate) fn take_ready(&self, mut each: impl FnMut(u32)) {
        let slots = self.limits().slots;
        ready::take(self.ready(self.side), |slot| {
            if slot < slots {
                each(slot);
            }
        });
    }

    pub(crate) fn ready(&self, side: RingSide) -> &ReadyWords {
        &self.words().ready[side.index()]
    }

    /// Whether the broker asked for a message at this change. Whoever gets `true` sends it. A `SeqCst`
    /// fence precedes it.
    pub(crate) fn take_broker_request(&self) -> bool {
        changes::take_request(&self.words().broker_request.0)
    }

    /// Counts a connection that this process has closed.
    pub(crate) fn count_closed(&self, bytes: u64) {
        let totals = &self.words().totals[self.side.index()].0;
        changes::count_closed(totals, bytes);
    }

    pub(crate) fn tell_broker(&self) {
        (self.tell_broker)();
    }
}
