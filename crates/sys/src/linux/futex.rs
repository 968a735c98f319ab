//! Futexes between processes: threads wait for a change of a word in shared memory.
//!
//! The kernel finds the waiting threads by the page that holds the word and not by its address, so every
//! process that maps the page may wait and wake. A hostile process can change the word and wake threads
//! at any time. So a waiter treats every return as spurious, and checks its condition again.

use std::io;
use std::sync::atomic::AtomicU32;
use std::time::Instant;

use rustix::io::Errno;
use rustix::thread::futex::{self, Flags, Timespec};

/// Waits until another thread calls [`wake_all`] for `word`, and returns `true`, or until `deadline` (for
/// ever if `None`), and returns `false`. Returns `true` at once if the word is not `seen`.
///
/// # Errors
///
/// Those of `futex`, except `EAGAIN` and `EINTR`.
pub fn wait(word: &AtomicU32, seen: u32, deadline: Option<Instant>) -> io::Result<bool> {
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        match futex::wait(word, Flags::empty(), seen, timeout.as_ref()) {
            Ok(()) | Err(Errno::AGAIN) => return Ok(true),
            Err(Errno::TIMEDOUT) => return Ok(false),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Wakes every thread that waits for `word`. Returns the number of threads woken.
pub fn wake_all(word: &AtomicU32) -> usize {
    // Fails only for an address that is not mapped, and the word is.
    futex::wake(word, Flags::empty(), i32::MAX.cast_unsigned()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;
    use std::thread;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_wait_ends_at_its_deadline_or_if_the_word_has_changed() {
        let word = AtomicU32::new(7);
        let start = Instant::now();
        let deadline = start + Duration::from_millis(20);
        assert!(!wait(&word, 7, Some(deadline)).unwrap());
        assert!(start.elapsed() >= Duration::from_millis(20));
        assert!(!wait(&word, 7, Some(start)).unwrap());
        assert!(wait(&word, 6, None).unwrap());
        assert!(wait(&word, 6, Some(start)).unwrap());
    }

    #[test]
    fn a_wake_reaches_every_waiting_thread() {
        let (word, waiting) = (AtomicU32::new(0), AtomicU32::new(0));
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    waiting.fetch_add(1, Ordering::SeqCst);
                    while word.load(Ordering::SeqCst) == 0 {
                        assert!(wait(&word, 0, None).unwrap());
                    }
                });
            }
            while waiting.load(Ordering::SeqCst) < 3 {
                thread::yield_now();
            }
            word.store(1, Ordering::SeqCst);
            wake_all(&word);
        });
        assert_eq!(wake_all(&word), 0);
    }
}
