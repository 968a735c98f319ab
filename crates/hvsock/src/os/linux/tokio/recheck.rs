//! A timer for tasks that wait for free space which may never come.
//!
//! An `AF_VSOCK` socket is writable while it has free space. It signals nothing if one of the ends
//! closes that direction while there is none. The kernel wakes a thread that blocks in a write
//! then; a task has to check from time to time.

use std::io;
use std::pin::Pin;
use std::sync::Mutex;
use std::task::{Context, Poll};
use std::time::Duration;

use hvsock_sys::sync::lock;

use tokio::time::{Instant, Sleep};

/// How often a task that waits for free space checks.
const RECHECK_INTERVAL: Duration = Duration::from_millis(100);

/// The time of the next check.
#[derive(Debug, Default)]
pub(super) struct RecheckTimer(Mutex<Option<Pin<Box<Sleep>>>>);

impl RecheckTimer {
    /// Calls `attempt` now and after each interval, until it returns something other than
    /// `WouldBlock`.
    pub(super) fn poll<T>(
        &self,
        cx: &mut Context<'_>,
        mut attempt: impl FnMut() -> io::Result<T>,
    ) -> Poll<io::Result<T>> {
        loop {
            match attempt() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
            let mut next = lock(&self.0);
            let sleep = next.get_or_insert_with(|| Box::pin(tokio::time::sleep(RECHECK_INTERVAL)));
            if sleep.is_elapsed() {
                sleep.as_mut().reset(Instant::now() + RECHECK_INTERVAL);
            }
            if sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }
}
