//! Addresses of listeners that this process has just closed.
//!
//! A program closes a listener and takes its address again, and the broker may get the request before it knows that the
//! descriptor is closed.

use std::io;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use hvsock::{Refusal, refusal_of};
use hvsock_sys::sync::lock;

/// When this process has closed a listener.
static LAST_CLOSE: Mutex<Option<Instant>> = Mutex::new(None);

/// How long after the close of a listener its address may be in use by it.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a request waits for that, on a busy machine. An address that another listener has is reported after it.
const WAIT: Duration = Duration::from_secs(1);

/// Notes that this process closes a listener.
pub(crate) fn note_close() {
    *lock(&LAST_CLOSE) = Some(Instant::now());
}

/// Makes a request for an address. While it is in use by a listener that this process has just closed, waits until the
/// broker knows that. `sweep` looks once for listeners that were closed in another way.
pub(crate) fn retried<T>(
    sweep: impl FnOnce(),
    mut request: impl FnMut() -> io::Result<T>,
) -> io::Result<T> {
    let is_in_use = |result: &io::Result<T>| {
        let refusal = result.as_ref().err().and_then(refusal_of);
        refusal == Some(&Refusal::AddressInUse)
    };
    let mut result = request();
    if is_in_use(&result) {
        sweep();
    }
    let has_closed = lock(&LAST_CLOSE).is_some_and(|at| at.elapsed() < CLOSE_TIMEOUT);
    let deadline = Instant::now() + WAIT;
    while is_in_use(&result) && has_closed && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(2));
        result = request();
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_asked_for_again_only_after_a_close_of_this_process() {
        let mut asked = 0;
        let mut in_use = || {
            asked += 1;
            Err::<(), _>(io::Error::from(Refusal::AddressInUse))
        };
        assert!(retried(|| (), &mut in_use).is_err());
        assert_eq!(asked, 1);
        let mut asked = 0;
        let freed = || {
            asked += 1;
            match asked {
                1..=3 => Err(io::Error::from(Refusal::AddressInUse)),
                _ => Ok(()),
            }
        };
        assert!(retried(note_close, freed).is_ok());
        assert_eq!(asked, 4);
    }
}
