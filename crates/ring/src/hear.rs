//! Which rings to take off the bell before the next sleep.
//!
//! Who sleeps in [`wait`](crate::wait), or is told that the bell's descriptor is ready, takes all
//! of them and has everyone else look again. But there are also event loops that only watch the
//! descriptor and try what they wish when it is ready. For them the bell must be quiet again once
//! they have seen all, whatever rang, and must not be while one direction was rung for and only
//! the other has been tried since.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError, TryLockError};

use hvsock_sys::doorbell;

use crate::End;
use crate::waiters::Seat;

/// What is known of the bell without a look at it.
#[derive(Debug, Default)]
pub(crate) struct Hearing {
    /// The bell was rung for what has been taken note of.
    rung: AtomicBool,
    /// Rings were taken off the bell of which nobody may have taken note yet.
    heard: AtomicBool,
    /// The last thing done was to ask to be woken: if it is done again, somebody may have rung
    /// for nothing.
    in_vain: AtomicBool,
    /// Held while rings are taken: two who count them and take them could take too many.
    taking: Mutex<()>,
}

impl Hearing {
    /// Takes note that somebody asked to be woken.
    pub(crate) fn asked(&self) {
        self.in_vain.store(true, Ordering::Relaxed);
    }
}

impl End {
    /// Takes note that there is something to do, and of the wish to be woken that stood for it:
    /// whether the bell was rung, or `None`.
    pub(crate) fn awoken(&self, wish: Option<bool>) {
        let hearing = &self.hearing;
        if hearing.in_vain.load(Ordering::Relaxed) {
            hearing.in_vain.store(false, Ordering::Relaxed);
        }
        match wish {
            None => {}
            Some(true) => {
                let heard = hearing.heard.swap(false, Ordering::Relaxed);
                if !heard {
                    hearing.rung.store(true, Ordering::Relaxed);
                }
            }
            // Another thread may sleep on the same wish, which is gone now.
            Some(false) => self.waiters.wake(None),
        }
    }

    /// Takes all rings and has everyone else of this process who waits here look again.
    pub(crate) fn clear_bell(&self, but: Option<&Seat<'_>>) {
        self.clear_own_bell();
        self.waiters.wake(but);
    }

    /// Takes all rings, and finds out whether the other end has hung up.
    pub(crate) fn clear_own_bell(&self) {
        self.take_rings(true);
    }

    /// Takes all rings; finds out whether the other end has hung up only if asked to.
    pub(crate) fn take_rings(&self, or_end: bool) {
        let _taking = self
            .hearing
            .taking
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        self.hearing.rung.store(false, Ordering::Relaxed);
        self.hearing.heard.store(true, Ordering::Relaxed);
        if !or_end {
            // An error is for the next look to find.
            let _ = doorbell::clear_few(&self.bells.own);
        } else if let Ok(false) = doorbell::clear(&self.bells.own) {
            self.hung_up.store(true, Ordering::Release);
        }
    }

    /// Before a sleep: takes the rings of which there is nothing more to be learnt. One stays for
    /// each direction that was rung for and has not been tried since, so the bell's descriptor
    /// stays ready.
    pub(crate) fn tidy_bell(&self, but: Option<&Seat<'_>>) {
        let hearing = &self.hearing;
        if !hearing.rung.load(Ordering::Relaxed) && !hearing.in_vain.load(Ordering::Relaxed) {
            return;
        }
        let taking = hearing
            .taking
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        hearing.rung.store(false, Ordering::Relaxed);
        hearing.heard.store(false, Ordering::Relaxed);
        let Ok(heard) = doorbell::look(&self.bells.own) else {
            return;
        };
        if heard.hung_up {
            self.hung_up.store(true, Ordering::Release);
        }
        // Counted before the wishes: who rings says so first, so none that is to stay is missed.
        let idle = heard.rings.saturating_sub(self.wishes_rung_for());
        if idle > 0 {
            let _ = doorbell::take(&self.bells.own, idle);
        }
        drop(taking);
        if idle > 0 || heard.hung_up {
            self.waiters.wake(but);
        }
    }

    fn wishes_rung_for(&self) -> usize {
        // Who holds a direction now has not asked yet; its ring stays.
        let read = match self.incoming.try_lock() {
            Ok(incoming) => incoming.is_rung_for(self.words_in()),
            Err(TryLockError::Poisoned(incoming)) => {
                incoming.into_inner().is_rung_for(self.words_in())
            }
            Err(TryLockError::WouldBlock) => true,
        };
        let write = match self.outgoing.try_lock() {
            Ok(outgoing) => outgoing.is_rung_for(self.words_out()),
            Err(TryLockError::Poisoned(outgoing)) => {
                outgoing.into_inner().is_rung_for(self.words_out())
            }
            Err(TryLockError::WouldBlock) => true,
        };
        usize::from(read) + usize::from(write)
    }
}
