//! Locks that stay usable after a panic: one failed test must not fail all others of its process.

use std::sync::{LockResult, Mutex, MutexGuard, PoisonError};

/// Locks `mutex`, also if a thread panicked while it held the lock.
pub fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    unpoisoned(mutex.lock())
}

/// The guard of a lock or of a wait, also if a thread panicked while it held the lock.
pub fn unpoisoned<G>(result: LockResult<G>) -> G {
    result.unwrap_or_else(PoisonError::into_inner)
}
