//! The bytes in flight to a command's standard input. They never exceed the window, even if the
//! parent ignores it. So the parent's other messages can always be read.

use std::sync::{Mutex, MutexGuard};

use bytes::{Bytes, BytesMut};
use hvsock_sys::sync::lock;
use tokio::sync::Notify;

use crate::protocol::session::WINDOW;

/// Bytes on their way to the command.
#[derive(Debug, Default)]
pub(super) struct Stdin {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    waiting: BytesMut,
    /// Received bytes for which no credit has been returned to the parent yet.
    in_flight: usize,
    ended: bool,
    /// The command has closed its standard input.
    closed: bool,
}

/// The parent exceeded the window.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Overrun;

impl Stdin {
    /// Adds received bytes.
    pub(super) fn push(&self, bytes: &[u8]) -> Result<(), Overrun> {
        let mut state = self.state();
        let in_flight = state.in_flight.checked_add(bytes.len()).ok_or(Overrun)?;
        if in_flight > WINDOW {
            return Err(Overrun);
        }
        state.in_flight = in_flight;
        if !state.ended && !state.closed {
            state.waiting.extend_from_slice(bytes);
            self.changed.notify_one();
        }
        Ok(())
    }

    /// Marks the end of the input.
    pub(super) fn end(&self) {
        self.state().ended = true;
        self.changed.notify_one();
    }

    /// Discards the queued bytes, and all further ones.
    pub(super) fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        state.waiting = BytesMut::new();
    }

    /// Waits for bytes and takes up to `most`; `None` at the end.
    pub(super) async fn take(&self, most: usize) -> Option<Bytes> {
        loop {
            let changed = self.changed.notified();
            {
                let mut state = self.state();
                if !state.waiting.is_empty() {
                    let count = state.waiting.len().min(most);
                    return Some(state.waiting.split_to(count).freeze());
                }
                if state.ended {
                    return None;
                }
            }
            changed.await;
        }
    }

    /// Whether no bytes are queued.
    pub(super) fn is_empty(&self) -> bool {
        self.state().waiting.is_empty()
    }

    /// Returns credit to the parent.
    pub(super) fn credit(&self, count: usize) {
        let mut state = self.state();
        state.in_flight = state.in_flight.saturating_sub(count);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use proptest::prelude::*;

    use super::*;

    fn take(stdin: &Stdin, most: usize) -> Option<Option<Bytes>> {
        stdin.take(most).now_or_never()
    }

    #[test]
    fn the_end_comes_after_the_last_byte_and_is_permanent() {
        let stdin = Stdin::default();
        assert_eq!(take(&stdin, 9), None);
        stdin.push(b"hello").unwrap();
        stdin.end();
        // Ignored: it comes after the end.
        stdin.push(b"more").unwrap();
        assert_eq!(take(&stdin, 3), Some(Some("hel".into())));
        assert_eq!(take(&stdin, 3), Some(Some("lo".into())));
        assert_eq!(take(&stdin, 3), Some(None));
        assert_eq!(take(&stdin, 3), Some(None));
    }

    #[test]
    fn bytes_are_discarded_after_close() {
        let stdin = Stdin::default();
        stdin.push(b"hello").unwrap();
        stdin.close();
        stdin.push(b"more").unwrap();
        assert_eq!(take(&stdin, 9), None);
        assert_eq!(stdin.push(&vec![0; WINDOW]), Err(Overrun));
    }

    proptest! {
        /// A parent that respects the window is never rejected, and one that does not is rejected
        /// at once.
        #[test]
        fn the_window_is_enforced_exactly(steps in prop::collection::vec((any::<bool>(), 0..WINDOW), 1..60)) {
            let stdin = Stdin::default();
            let (mut in_flight, mut waiting) = (0, 0);
            for (push, count) in steps {
                if push {
                    let fits = in_flight + count <= WINDOW;
                    prop_assert_eq!(stdin.push(&vec![7; count]).is_ok(), fits);
                    if fits {
                        in_flight += count;
                        waiting += count;
                    }
                } else if let Some(taken) = take(&stdin, count.max(1)) {
                    let taken = taken.map_or(0, |bytes| bytes.len());
                    waiting -= taken;
                    in_flight -= taken;
                    stdin.credit(taken);
                } else {
                    prop_assert_eq!(waiting, 0);
                }
            }
        }
    }
}
