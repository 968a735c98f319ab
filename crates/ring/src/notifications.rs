//! Drains the doorbell, and decides which pending notifications are stale.
//!
//! A thread that parks in [`wait`](crate::wait), or an event loop that calls
//! [`RingEnd::drain_notifications`], drains all notifications and wakes every other waiter to check
//! again. Other event loops only poll the doorbell's descriptor and retry their operation when it is
//! readable; they never drain. For them the descriptor must stop being readable once they have
//! handled every notification. It must stay readable while one direction has a notification and only
//! the other direction was tried since.
//!
//! An end in an arena has no doorbell of its own, so nothing of this concerns it but waking its waiters.

use std::sync::TryLockError;
use std::sync::atomic::Ordering;

use hvsock_sys::doorbell;
use hvsock_sys::sync::unpoisoned;

use crate::RingEnd;
use crate::link::{Link, Pipes};
use crate::waiters::WaitGuard;

impl RingEnd {
    /// Notes that an operation can make progress. `request` is the result of withdrawing its wakeup
    /// request: whether the peer had notified for it, or `None` if there was no request.
    pub(crate) fn woken(&self, request: Option<bool>) {
        if let Link::Pipes(Pipes { pending, .. }) = &self.link {
            if pending.requested_last.load(Ordering::Relaxed) {
                pending.requested_last.store(false, Ordering::Relaxed);
            }
            if request == Some(true) && !pending.is_drained.swap(false, Ordering::Relaxed) {
                pending.is_stale.store(true, Ordering::Relaxed);
            }
        }
        if request == Some(false) {
            // Another thread may be parked on the same request, which is withdrawn now.
            self.link.wake(None, None);
        }
    }

    /// Drains the doorbell, and wakes every other waiter of this process to check again.
    pub(crate) fn drain_and_wake(&self, except: Option<&WaitGuard<'_>>) {
        self.drain_doorbell();
        self.link.wake(except, None);
    }

    /// Drains the doorbell, and checks whether the peer has hung up.
    pub(crate) fn drain_doorbell(&self) {
        self.drain(true);
    }

    /// Drains the doorbell. Checks whether the peer has hung up only if `check_hangup`.
    pub(crate) fn drain(&self, check_hangup: bool) {
        let Link::Pipes(pipes) = &self.link else {
            return;
        };
        let _draining = unpoisoned(pipes.pending.draining.lock());
        pipes.pending.is_stale.store(false, Ordering::Relaxed);
        pipes.pending.is_drained.store(true, Ordering::Relaxed);
        if !check_hangup {
            // The next poll reports the error, if there is one.
            let _ = doorbell::drain_few(&pipes.doorbells.own);
        } else if let Ok(false) = doorbell::drain(&pipes.doorbells.own) {
            pipes.hung_up.store(true, Ordering::Release);
        }
    }

    /// Drains stale notifications, before a park. One notification stays for each direction that
    /// was notified and has not been tried since, so the doorbell's descriptor stays readable.
    pub(crate) fn drain_stale(&self, except: Option<&WaitGuard<'_>>) {
        let Link::Pipes(pipes) = &self.link else {
            return;
        };
        let pending = &pipes.pending;
        if !pending.is_stale.load(Ordering::Relaxed)
            && !pending.requested_last.load(Ordering::Relaxed)
        {
            return;
        }
        let draining = unpoisoned(pending.draining.lock());
        pending.is_stale.store(false, Ordering::Relaxed);
        pending.is_drained.store(false, Ordering::Relaxed);
        let Ok(doorbell_state) = doorbell::pending(&pipes.doorbells.own) else {
            return;
        };
        if doorbell_state.hung_up {
            pipes.hung_up.store(true, Ordering::Release);
        }
        // Counted before the requests are checked: the peer takes a request before it notifies, so
        // no notification that must stay is missed.
        let stale = doorbell_state
            .notifications
            .saturating_sub(self.notified_directions());
        if stale > 0 {
            let _ = doorbell::drain_up_to(&pipes.doorbells.own, stale);
        }
        drop(draining);
        if stale > 0 || doorbell_state.hung_up {
            pipes.waiters.wake(except);
        }
    }

    /// Notes that a wakeup request was made.
    pub(crate) fn requested(&self) {
        if let Link::Pipes(pipes) = &self.link {
            pipes.pending.requested();
        }
    }

    /// The number of directions (0 to 2) whose wakeup request was answered by a notification.
    fn notified_directions(&self) -> usize {
        // A thread that holds a direction's lock has not requested yet; its notification stays.
        let read = match self.incoming.try_lock() {
            Ok(incoming) => incoming.is_notified(self.words_in()),
            Err(TryLockError::Poisoned(incoming)) => {
                incoming.into_inner().is_notified(self.words_in())
            }
            Err(TryLockError::WouldBlock) => true,
        };
        let write = match self.outgoing.try_lock() {
            Ok(outgoing) => outgoing.is_notified(self.words_out()),
            Err(TryLockError::Poisoned(outgoing)) => {
                outgoing.into_inner().is_notified(self.words_out())
            }
            Err(TryLockError::WouldBlock) => true,
        };
        usize::from(read) + usize::from(write)
    }
}
