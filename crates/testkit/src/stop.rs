//! Ends threads of a test.

use std::sync::atomic::{AtomicBool, Ordering};

/// Sets a flag when dropped, also by a panic, so that the threads that it stops always end.
#[derive(Debug)]
pub struct StopOnDrop<'a>(pub &'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
