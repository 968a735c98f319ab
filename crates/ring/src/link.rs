//! How the two ends of a connection wake each other: the seam between connections with memory and doorbells
//! of their own, and those that share an arena.

use std::sync::atomic::AtomicBool;

use hvsock_sys::doorbell;

use crate::Doorbells;
use crate::arena::SlotLink;
use crate::pending::PendingNotifications;
use crate::waiters::{WaitGuard, Waiters};

/// The way in which an end notifies its peer, and in which threads of this process wait at it.
#[derive(Debug)]
pub(crate) enum Link {
    /// Two pipes. Threads wait in `poll`.
    Pipes(Pipes),
    /// Words of an arena's slot. Threads wait on a futex.
    Slot(SlotLink),
}

/// The doorbells of a connection of its own.
#[derive(Debug)]
pub(crate) struct Pipes {
    pub(crate) doorbells: Doorbells,
    /// The peer has closed its end of this end's doorbell.
    pub(crate) hung_up: AtomicBool,
    pub(crate) pending: PendingNotifications,
    pub(crate) waiters: Waiters,
}

impl Link {
    pub(crate) fn pipes(doorbells: Doorbells) -> Self {
        Self::Pipes(Pipes {
            doorbells,
            hung_up: AtomicBool::new(false),
            pending: PendingNotifications::default(),
            waiters: Waiters::default(),
        })
    }

    /// The waiters of this process.
    pub(crate) fn waiters(&self) -> &Waiters {
        match self {
            Self::Pipes(pipes) => &pipes.waiters,
            Self::Slot(slot) => slot.waiters(),
        }
    }

    /// Notifies the peer. Returns whether it has not hung up, as far as that is known.
    pub(crate) fn notify(&self) -> bool {
        match self {
            Self::Pipes(pipes) => !matches!(doorbell::notify(&pipes.doorbells.peer), Ok(false)),
            Self::Slot(slot) => {
                slot.notify_peer();
                true
            }
        }
    }

    /// Wakes every waiter of this process, except the given thread and the task in the given slot.
    pub(crate) fn wake(&self, except: Option<&WaitGuard<'_>>, except_task: Option<usize>) {
        match self {
            Self::Pipes(pipes) => {
                pipes.waiters.wake_others(except, except_task);
            }
            Self::Slot(slot) => slot.wake_waiters(except_task),
        }
    }
}
