//! The part of an end that is a slot of an arena: how it notifies, waits, and returns the slot.

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Instant;

use super::SlotId;
use super::process::ArenaProcess;
use super::wakeups::{add_mode, remove_mode};
use super::words::{BY_FUTEX, BY_SIGNAL, Wakeups};
use crate::RingSide;
use crate::sync::{AtomicU32, Ordering};
use crate::waiters::{FutexGuard, Waiters};

/// What an end in an arena belongs to.
pub(crate) struct SlotLink {
    owner: Arc<dyn SlotOwner>,
    id: SlotId,
}

/// An end of an arena, which has handed out a slot and takes it back.
pub(crate) trait SlotOwner: fmt::Debug + Send + Sync {
    fn process(&self) -> &ArenaProcess;

    /// Takes back the slot of an end that is closed. Nothing accesses its memory after this.
    fn finish(&self, id: SlotId, finished: Finished);

    /// The word by which this side says whether to keep a connection while a partition is suspended.
    fn keep(&self, slot: u32) -> &AtomicU32;
}

/// What an end has done when it is closed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Finished {
    /// Bytes written.
    pub(crate) written: u64,
    /// Whether either ring was used.
    pub(crate) moved_bytes: bool,
}

/// A thread that is going to park.
pub(crate) struct Park<'a> {
    wakeups: &'a Wakeups,
    seen: u32,
    _registered: FutexGuard<'a>,
}

impl fmt::Debug for SlotLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SlotLink").field(&self.id).finish()
    }
}

impl SlotLink {
    pub(crate) fn new(owner: Arc<dyn SlotOwner>, id: SlotId) -> Self {
        Self { owner, id }
    }

    fn process(&self) -> &ArenaProcess {
        self.owner.process()
    }

    pub(crate) fn id(&self) -> SlotId {
        self.id
    }

    pub(crate) fn side(&self) -> RingSide {
        self.process().side()
    }

    pub(crate) fn doorbell(&self) -> BorrowedFd<'_> {
        self.process().doorbell()
    }

    pub(crate) fn waiters(&self) -> &Waiters {
        self.process().waiters(self.id.slot)
    }

    /// Whether this process has lost the arena.
    pub(crate) fn has_ended(&self) -> bool {
        self.process().has_ended()
    }

    /// This end's own words.
    fn wakeups(&self) -> &Wakeups {
        &self.process().slot(self.id.slot).wakeups[self.side().index()].0
    }

    /// Notifies the peer in the ways that it asked for.
    pub(crate) fn notify_peer(&self) {
        self.process().wake_peer(self.id.slot);
    }

    /// Notifies the peer that this end is closed, if it wants signals. It has made no wakeup request
    /// for that.
    pub(crate) fn signal_peer(&self) {
        self.process().signal_peer(self.id.slot);
    }

    /// Wakes every thread and task of this process that waits at this end.
    pub(crate) fn wake_waiters(&self, except_task: Option<usize>) {
        self.process().wake_waiters(self.id.slot, except_task);
    }

    /// Prepares the calling thread for a park. It makes its wakeup request after this.
    pub(crate) fn prepare_park(&self) -> Park<'_> {
        let registered = self.waiters().join_futex();
        let wakeups = self.wakeups();
        add_mode(wakeups, BY_FUTEX);
        Park {
            wakeups,
            seen: wakeups.futex.seen(),
            _registered: registered,
        }
    }

    pub(crate) fn set_signals(&self, on: bool) {
        match on {
            true => add_mode(self.wakeups(), BY_SIGNAL),
            false => remove_mode(self.wakeups(), BY_SIGNAL),
        }
    }

    pub(crate) fn set_keep(&self, keep: bool) {
        let word = self.owner.keep(self.id.slot);
        word.store(keep.into(), Ordering::Release);
    }

    /// Returns the slot.
    pub(crate) fn finish(&self, finished: Finished) {
        self.owner.finish(self.id, finished);
    }
}

impl Park<'_> {
    /// Waits for a wake that came after the preparation, or until `deadline`. May return earlier.
    pub(crate) fn wait(&self, deadline: Option<Instant>) -> io::Result<()> {
        self.wakeups.futex.wait(self.seen, deadline)
    }
}
