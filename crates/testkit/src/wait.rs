//! The one bounded wait of tests.

use std::fmt::Display;
use std::thread;
use std::time::{Duration, Instant};

/// The longest wait for anything that must happen. Longer than any operation takes on a busy machine.
pub const TIMEOUT: Duration = Duration::from_secs(30);

/// Polling interval.
const INTERVAL: Duration = Duration::from_millis(5);

/// Waits until a condition holds.
///
/// # Panics
/// After [`TIMEOUT`], with `what` was waited for.
#[track_caller]
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let attempt = || {
        if holds() {
            Ok(())
        } else {
            Err("it does not hold")
        }
    };
    until_ok(what, attempt);
}

/// Repeats an attempt until it succeeds, and returns its value.
///
/// # Panics
/// After [`TIMEOUT`], with `what` was waited for and the last error.
#[track_caller]
pub fn until_ok<T, E: Display>(what: &str, attempt: impl FnMut() -> Result<T, E>) -> T {
    match within(TIMEOUT, attempt) {
        Ok(value) => value,
        Err(error) => panic!("timed out after {TIMEOUT:?} waiting for: {what}; last: {error}"),
    }
}

/// Repeats an attempt until it succeeds or `limit` has passed. It is made once at least.
///
/// # Errors
/// The error of the last attempt.
pub fn within<T, E>(limit: Duration, mut attempt: impl FnMut() -> Result<T, E>) -> Result<T, E> {
    let deadline = Instant::now() + limit;
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() >= deadline => return Err(error),
            Err(_) => thread::sleep(INTERVAL),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_is_repeated_until_it_succeeds() {
        let mut count = 0;
        let mut third = || {
            count += 1;
            if count < 3 { Err(count) } else { Ok(count) }
        };
        assert_eq!(until_ok("the third attempt", &mut third), 3);
        eventually("at once", || true);
    }

    #[test]
    fn a_wait_ends_with_the_last_error() {
        let mut count = 0;
        let mut never = || {
            count += 1;
            Err::<(), _>(count)
        };
        assert_eq!(within(Duration::ZERO, &mut never), Err(1));
        assert!(within(INTERVAL * 3, &mut never).unwrap_err() > 2);
    }
}
