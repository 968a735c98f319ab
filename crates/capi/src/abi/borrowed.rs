//! Which thread has borrowed the bytes of a connection in place.

use std::cell::Cell;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

/// Which thread has borrowed a direction: its number, or 0.
#[derive(Debug, Default)]
pub(super) struct Borrowed(AtomicU64);

impl Borrowed {
    /// Fails if this thread has borrowed the direction: the call would wait for itself.
    pub(super) fn check(&self) -> io::Result<()> {
        if self.0.load(Ordering::Relaxed) == this_thread() {
            return Err(io::Error::from_raw_os_error(libc::EDEADLK));
        }
        Ok(())
    }

    /// Fails in a thread that has not begun the borrow: a lock is released where it was taken.
    pub(super) fn check_own(&self) -> io::Result<()> {
        match self.0.load(Ordering::Relaxed) == this_thread() {
            true => Ok(()),
            false => Err(io::Error::from_raw_os_error(libc::EPERM)),
        }
    }

    /// This thread has the lock of the direction.
    pub(super) fn begin(&self) {
        self.0.store(this_thread(), Ordering::Relaxed);
    }

    /// This thread is about to release it.
    pub(super) fn end(&self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

/// A number of this thread that no other has had.
fn this_thread() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    thread_local!(static NUMBER: Cell<u64> = const { Cell::new(0) });
    let number = NUMBER.try_with(|number| {
        if number.get() == 0 {
            number.set(NEXT.fetch_add(1, Ordering::Relaxed));
        }
        number.get()
    });
    number.unwrap_or(u64::MAX)
}
