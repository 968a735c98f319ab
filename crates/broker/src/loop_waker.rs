//! Wakes the event loop of a thread for what other threads queue for it.
//!
//! A wakeup costs a system call, and the loop one return of `epoll_wait`. So there is one only if the
//! loop is parked, and only for the first of several items: the loop drains its queues after each
//! wakeup, and looks for requests before it parks.

use std::io;
use std::sync::atomic::{AtomicU8, Ordering};

use mio::{Registry, Token, Waker};

/// Something was queued that the loop has not drained.
const REQUESTED: u8 = 1;
/// The loop is parked, or about to park.
const PARKED: u8 = 2;

/// Wakes one event loop. The loop calls [`prepare_park`](Self::prepare_park) before it parks and
/// [`take`](Self::take) before it drains its queues.
#[derive(Debug)]
pub(crate) struct LoopWaker {
    waker: Waker,
    state: AtomicU8,
}

impl LoopWaker {
    /// A waker of the loop that polls `registry`.
    pub(crate) fn new(registry: &Registry, token: Token) -> io::Result<Self> {
        Ok(Self {
            waker: Waker::new(registry, token)?,
            state: AtomicU8::new(0),
        })
    }

    /// Wakes the loop if it is parked. Call it after something was queued.
    pub(crate) fn wake(&self) {
        // Only one thread finds this state, so there is one system call for one park.
        if self.state.fetch_or(REQUESTED, Ordering::AcqRel) == PARKED {
            // An eventfd that is in an epoll set accepts every write.
            let _ = self.waker.wake();
        }
    }

    /// Announces that the loop parks. Returns `false` if something was queued meanwhile: the loop must
    /// not park then.
    pub(crate) fn prepare_park(&self) -> bool {
        self.state.fetch_or(PARKED, Ordering::AcqRel) & REQUESTED == 0
    }

    /// Whether something was queued since the last call. The loop does not park from now on.
    pub(crate) fn take(&self) -> bool {
        self.state.swap(0, Ordering::AcqRel) & REQUESTED != 0
    }

    /// Whether something was queued since the last [`take`](Self::take).
    pub(crate) fn is_requested(&self) -> bool {
        self.state.load(Ordering::Relaxed) & REQUESTED != 0
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::mpsc;
    use std::time::Duration;

    use mio::{Events, Poll};

    use super::*;

    fn is_woken(poll: &mut Poll) -> bool {
        let mut events = Events::with_capacity(4);
        poll.poll(&mut events, Some(Duration::ZERO)).unwrap();
        !events.is_empty()
    }

    #[test]
    fn a_running_loop_gets_no_wakeup_and_a_parked_one_gets_one_for_many_items() {
        let mut poll = Poll::new().unwrap();
        let waker = LoopWaker::new(poll.registry(), Token(0)).unwrap();
        waker.wake();
        assert!(!is_woken(&mut poll));
        assert!(waker.is_requested() && !waker.prepare_park());
        assert!(waker.take() && !waker.take());
        assert!(waker.prepare_park());
        (0..3).for_each(|_| waker.wake());
        assert!(is_woken(&mut poll) && !is_woken(&mut poll));
        assert!(waker.take());
    }

    #[test]
    fn a_loop_that_parks_between_items_misses_none() {
        const ITEMS: u32 = 20_000;
        let mut poll = Poll::new().unwrap();
        let waker = Arc::new(LoopWaker::new(poll.registry(), Token(0)).unwrap());
        let (sender, queue) = mpsc::channel();
        let senders = [0, 1].map(|_| {
            let (sender, waker) = (sender.clone(), Arc::clone(&waker));
            std::thread::spawn(move || {
                for item in 0..ITEMS {
                    sender.send(item).unwrap();
                    waker.wake();
                }
            })
        });
        let mut events = Events::with_capacity(4);
        let mut drained = 0;
        while drained < 2 * ITEMS {
            let limit = match waker.prepare_park() {
                true => Duration::from_secs(10),
                false => Duration::ZERO,
            };
            poll.poll(&mut events, Some(limit)).unwrap();
            let was_requested = waker.take();
            assert!(
                was_requested || limit.is_zero() || events.is_empty(),
                "a wakeup has a cause"
            );
            let before = drained;
            drained += u32::try_from(queue.try_iter().count()).unwrap();
            assert!(
                drained > before || limit.is_zero() || !events.is_empty(),
                "a wakeup was lost"
            );
        }
        for sender in senders {
            sender.join().unwrap();
        }
    }
}
