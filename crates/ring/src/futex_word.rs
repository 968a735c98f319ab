//! A word in shared memory that threads of both processes wait on.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use hvsock_sys::futex;

/// A word that every wake changes, so that no thread falls asleep after a wake that it has not seen.
#[repr(transparent)]
#[derive(Debug)]
pub(crate) struct FutexWord(AtomicU32);

impl FutexWord {
    /// The value to pass to [`FutexWord::wait`]. Loaded before the condition to wait for is checked.
    pub(crate) fn seen(&self) -> u32 {
        self.0.load(Ordering::Acquire)
    }

    /// Waits for a wake that came after `seen` was loaded, or until `deadline`. May return earlier.
    pub(crate) fn wait(&self, seen: u32, deadline: Option<Instant>) -> io::Result<()> {
        futex::wait(&self.0, seen, deadline).map(drop)
    }

    /// Wakes every waiting thread.
    pub(crate) fn wake(&self) {
        self.0.fetch_add(1, Ordering::AcqRel);
        futex::wake_all(&self.0);
    }
}
