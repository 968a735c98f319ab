//! What is under way to a command's standard input: never more than the window, whatever the
//! parent sends, so that the rest of its messages can always be read.

use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use tokio::sync::Notify;

use crate::host::session::WINDOW;

/// Bytes on their way to the command.
#[derive(Debug, Default)]
pub(super) struct Stdin {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    waiting: BytesMut,
    /// Received, and the parent does not know yet that they are taken.
    under_way: usize,
    ended: bool,
    /// Nobody takes any more.
    closed: bool,
}

/// The parent sent more than it may.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Overrun;

impl Stdin {
    /// Adds what the parent sent.
    pub(super) fn push(&self, bytes: &[u8]) -> Result<(), Overrun> {
        let mut state = self.state();
        let under_way = state.under_way.checked_add(bytes.len()).ok_or(Overrun)?;
        if under_way > WINDOW {
            return Err(Overrun);
        }
        state.under_way = under_way;
        if !state.ended && !state.closed {
            state.waiting.extend_from_slice(bytes);
            self.changed.notify_one();
        }
        Ok(())
    }

    /// There will be no more.
    pub(super) fn end(&self) {
        self.state().ended = true;
        self.changed.notify_one();
    }

    /// Forgets what waits, and all that comes.
    pub(super) fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        state.waiting = BytesMut::new();
    }

    /// Waits for bytes and takes up to `most`; `None` at their end.
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

    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.state().waiting.is_empty()
    }

    /// The parent may send so many more.
    pub(super) fn credit(&self, count: usize) {
        let mut state = self.state();
        state.under_way = state.under_way.saturating_sub(count);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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
    fn the_end_comes_after_the_last_byte_and_stays() {
        let stdin = Stdin::default();
        assert_eq!(take(&stdin, 9), None);
        stdin.push(b"hello").unwrap();
        stdin.end();
        // Too late.
        stdin.push(b"more").unwrap();
        assert_eq!(take(&stdin, 3), Some(Some("hel".into())));
        assert_eq!(take(&stdin, 3), Some(Some("lo".into())));
        assert_eq!(take(&stdin, 3), Some(None));
        assert_eq!(take(&stdin, 3), Some(None));
    }

    #[test]
    fn what_nobody_takes_is_not_kept() {
        let stdin = Stdin::default();
        stdin.push(b"hello").unwrap();
        stdin.close();
        stdin.push(b"more").unwrap();
        assert_eq!(take(&stdin, 9), None);
        assert_eq!(stdin.push(&vec![0; WINDOW]), Err(Overrun));
    }

    proptest! {
        /// Whoever keeps to the window is never turned down, and who does not always is.
        #[test]
        fn the_window_is_what_it_says(steps in prop::collection::vec((any::<bool>(), 0..WINDOW), 1..60)) {
            let stdin = Stdin::default();
            let (mut under_way, mut waiting) = (0, 0);
            for (push, count) in steps {
                if push {
                    let fits = under_way + count <= WINDOW;
                    prop_assert_eq!(stdin.push(&vec![7; count]).is_ok(), fits);
                    if fits {
                        under_way += count;
                        waiting += count;
                    }
                } else if let Some(taken) = take(&stdin, count.max(1)) {
                    let taken = taken.map_or(0, |bytes| bytes.len());
                    waiting -= taken;
                    under_way -= taken;
                    stdin.credit(taken);
                } else {
                    prop_assert_eq!(waiting, 0);
                }
            }
        }
    }
}
