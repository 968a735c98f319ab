//! Waits that Python's signal handlers interrupt.

use std::io::{self, ErrorKind};
use std::time::{Duration, Instant};

use pyo3::prelude::*;

use crate::failure;

/// The longest wait before Python's signal handlers run.
pub(crate) const SLICE: Duration = Duration::from_millis(100);

thread_local! {
    /// Whether this is the first thread of the process, on which Python runs signal handlers.
    static IS_MAIN: bool = {
        // The kernel names the folder of the thread by both ids: `1234/task/1234`.
        let path = std::fs::read_link("/proc/thread-self").unwrap_or_default();
        let mut ids = path.iter();
        ids.next() == ids.nth(1)
    };
}

/// Whether Python's signal handlers run on this thread.
pub(crate) fn is_main_thread() -> bool {
    IS_MAIN.with(|is_main| *is_main)
}

/// When a wait ends.
#[derive(Clone, Copy)]
pub(crate) enum Until {
    /// It must not wait.
    Now,
    Deadline(Instant),
    Ever,
}

impl Until {
    /// A timeout of Python: `None` is for ever, 0 must not wait.
    pub(crate) fn after(seconds: Option<f64>) -> Self {
        match seconds {
            None => Self::Ever,
            Some(seconds) if seconds <= 0.0 => Self::Now,
            Some(seconds) => {
                let timeout = Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
                let deadline = Instant::now().checked_add(timeout);
                deadline.map_or(Self::Ever, Self::Deadline)
            }
        }
    }
}

/// Repeats `attempt`, which waits for [`SLICE`] at most, until it succeeds or fails otherwise.
pub(crate) fn wait<T>(
    py: Python<'_>,
    until: Until,
    mut attempt: impl FnMut() -> io::Result<T>,
) -> PyResult<T> {
    loop {
        let error = match attempt() {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        let is_slice = matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock);
        let is_refusal = hvsock::refusal_of(&error).is_some();
        match until {
            _ if !is_slice || is_refusal => return Err(failure::of(error)),
            Until::Now => return Err(failure::of(ErrorKind::WouldBlock.into())),
            Until::Deadline(deadline) if deadline <= Instant::now() => {
                return Err(failure::of(ErrorKind::TimedOut.into()));
            }
            Until::Deadline(_) | Until::Ever => py.check_signals()?,
        }
    }
}
