//! Tasks that wait for room where the descriptor does not tell that there will be none.
//!
//! An `AF_VSOCK` socket is ready for writing while it has room, and says nothing more once its own
//! end, or the other one, has ended that direction while there was none. A thread that waits in a
//! write is woken then; a task has to look.

use std::io;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

/// How often a task looks that waits for room.
const RECHECK_INTERVAL: Duration = Duration::from_millis(100);

/// The time at which to look next.
#[derive(Debug, Default)]
pub(super) struct RecheckTimer(Mutex<Option<Pin<Box<Sleep>>>>);

impl RecheckTimer {
    /// Tries now, and again whenever it is time to, until that is something other than
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
            let mut next = self.0.lock().unwrap_or_else(PoisonError::into_inner);
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
