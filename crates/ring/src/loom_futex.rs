//! The loom model of a futex.

use std::io;
use std::time::Instant;

use loom::sync::atomic::{AtomicU32, Ordering};
use loom::sync::{Condvar, Mutex};

/// Models [`crate::futex_word::FutexWord`]. The lock is the kernel's: it orders the comparison of a waiting
/// thread with the wake-ups.
#[derive(Debug, Default)]
pub(crate) struct FutexWord {
    word: AtomicU32,
    queue: Mutex<()>,
    changed: Condvar,
}

impl FutexWord {
    pub(crate) fn seen(&self) -> u32 {
        self.word.load(Ordering::Acquire)
    }

    /// Waits without a deadline. Loom reports a thread that waits for ever.
    pub(crate) fn wait(&self, seen: u32, _deadline: Option<Instant>) -> io::Result<()> {
        let queue = self.queue.lock().unwrap();
        if self.word.load(Ordering::Relaxed) == seen {
            drop(self.changed.wait(queue).unwrap());
        }
        Ok(())
    }

    pub(crate) fn wake(&self) {
        self.word.fetch_add(1, Ordering::AcqRel);
        drop(self.queue.lock().unwrap());
        self.changed.notify_all();
    }
}
