//! Calls of the program that may block, and the end of them by `closesocket`, as on Windows.
//!
//! A close of a descriptor does not end a call that waits for it in another thread, only `shutdown` does. That concerns the
//! connection for all who have it, such as a process after `fork`, so it is done only if a thread of this process waits.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};

/// How often this process or one before it has forked.
static FORKS: AtomicU32 = AtomicU32::new(0);

/// The number of threads in calls. In a child process the parent's do not count.
#[derive(Debug, Default)]
pub(super) struct Waiters(AtomicU64);

impl Waiters {
    /// The number of threads, with the number of forks in the upper half.
    fn current(packed: u64) -> u64 {
        let forks = u64::from(FORKS.load(Ordering::Relaxed));
        match packed >> 32 == forks {
            true => packed,
            false => forks << 32,
        }
    }

    pub(super) fn enter(&self) {
        let enter = |packed| Some(Self::current(packed) + 1);
        let _ = self
            .0
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, enter);
    }

    pub(super) fn leave(&self) {
        let leave = |packed| Some(Self::current(packed).saturating_sub(1));
        let _ = self
            .0
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, leave);
    }

    pub(super) fn any(&self) -> bool {
        Self::current(self.0.load(Ordering::SeqCst)) as u32 > 0
    }
}

/// What is known of a number without a look at the table.
#[derive(Debug, Default)]
pub(super) struct Slot {
    /// Sending and receiving take more than a system call. It may be out of date: then the table has to be asked.
    pub(super) special: AtomicU8,
    waiters: Waiters,
    /// `closesocket` is under way.
    closing: AtomicBool,
    /// How often `closesocket` has closed it.
    closed: AtomicU32,
}

impl Slot {
    /// A call with the number begins. `None` while it is being closed.
    pub(super) fn begin(&self) -> Option<Call<'_>> {
        // The close looks for calls after it has said that it is under way, so one of the two sees the other.
        self.waiters.enter();
        let call = Call {
            slot: self,
            closed: self.closed.load(Ordering::SeqCst),
        };
        (!self.closing.load(Ordering::SeqCst)).then_some(call)
    }

    /// Runs `close`, after `wake` if there are calls.
    pub(super) fn close<R>(&self, wake: impl FnOnce(), close: impl FnOnce() -> R) -> R {
        self.closing.store(true, Ordering::SeqCst);
        if self.waiters.any() {
            self.closed.fetch_add(1, Ordering::SeqCst);
            wake();
        }
        let result = close();
        self.special.store(0, Ordering::Relaxed);
        self.closing.store(false, Ordering::SeqCst);
        result
    }
}

/// A call of the program with a number, until it is dropped.
#[derive(Debug)]
pub(crate) struct Call<'a> {
    slot: &'a Slot,
    closed: u32,
}

impl Call<'_> {
    /// Whether another thread has closed the number meanwhile.
    pub(crate) fn was_closed(&self) -> bool {
        self.slot.closed.load(Ordering::SeqCst) != self.closed
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        self.slot.waiters.leave();
    }
}

/// This process is the child of a fork.
pub(super) fn forked() {
    FORKS.fetch_add(1, Ordering::Relaxed);
}
