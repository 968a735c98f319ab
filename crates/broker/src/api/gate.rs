//! Holds clients of the control API back while the broker is handed over: what they ask is neither lost nor done
//! twice. New ones wait in the listener's queue, which the successor gets.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant};

use hvsock_sys::sync::lock;
use tokio::sync::Notify;

/// Whether clients are served, and how many are.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    closed: AtomicBool,
    left: AtomicBool,
    opened: Notify,
    /// Clients whose request is not answered.
    busy: Mutex<usize>,
    idle: Condvar,
}

/// A client that is being served, and for which [`Gate::close`] waits.
#[derive(Clone, Debug)]
pub(crate) struct Busy(Arc<Mutex<Option<Client>>>);

/// Counts until it is dropped.
#[derive(Debug)]
struct Client(Arc<Gate>);

impl Gate {
    /// Accepts no client from now on. Waits until those that are being served have their answers, at most for
    /// `limit`.
    pub(crate) fn close(&self, limit: Duration) {
        let deadline = Instant::now() + limit;
        let mut busy = lock(&self.busy);
        self.closed.store(true, Ordering::SeqCst);
        while *busy > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let waited = self.idle.wait_timeout(busy, left);
            busy = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Accepts clients again.
    pub(crate) fn open(&self) {
        self.closed.store(false, Ordering::SeqCst);
        self.opened.notify_waiters();
    }

    /// The socket is another process's from now on.
    pub(crate) fn leave(&self) {
        self.left.store(true, Ordering::SeqCst);
    }

    /// Whether the socket is another process's.
    pub(crate) fn has_left(&self) -> bool {
        self.left.load(Ordering::SeqCst)
    }

    /// Whether no client is to be accepted.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// Waits until clients are accepted.
    pub(crate) async fn wait_open(&self) {
        loop {
            let opened = self.opened.notified();
            if !self.is_closed() {
                return;
            }
            opened.await;
        }
    }

    /// Polls `accept`, and counts its client as served until [`Busy::release`]. `None` if no client is to be
    /// accepted: after [`close`](Self::close) none is.
    pub(crate) fn poll_accept<T>(
        self: &Arc<Self>,
        accept: impl FnOnce() -> Poll<io::Result<T>>,
    ) -> Poll<Option<io::Result<(T, Busy)>>> {
        let mut busy = lock(&self.busy);
        if self.is_closed() {
            return Poll::Ready(None);
        }
        accept().map(|accepted| {
            Some(accepted.map(|accepted| {
                *busy += 1;
                let client = Client(Arc::clone(self));
                (accepted, Busy(Arc::new(Mutex::new(Some(client)))))
            }))
        })
    }

    fn exit(&self) {
        let mut busy = lock(&self.busy);
        *busy = busy.saturating_sub(1);
        if *busy == 0 {
            self.idle.notify_all();
        }
    }
}

impl Busy {
    /// Nobody waits for this client any more: it has its answer, or its answer has no end.
    pub(crate) fn release(&self) {
        let client = lock(&self.0).take();
        drop(client);
    }

    /// The client of which `self` is a released clone is waited for again.
    pub(crate) fn resume(&self, gate: &Arc<Gate>) {
        *lock(&gate.busy) += 1;
        let client = Client(Arc::clone(gate));
        *lock(&self.0) = Some(client);
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.0.exit();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_waits_for_those_who_are_served_and_not_for_ever() {
        let gate = Arc::new(Gate::default());
        let enter = || match gate.poll_accept(|| Poll::Ready(Ok(()))) {
            Poll::Ready(accepted) => accepted.map(|accepted| accepted.unwrap().1),
            Poll::Pending => unreachable!("it is ready"),
        };
        let (slow, quick) = (enter().unwrap(), enter().unwrap());
        let closer = {
            let gate = Arc::clone(&gate);
            std::thread::spawn(move || gate.close(Duration::from_secs(60)))
        };
        quick.release();
        // Once more is not one less.
        quick.release();
        assert!(!closer.is_finished());
        slow.release();
        closer.join().unwrap();
        assert!(gate.is_closed() && enter().is_none());
        gate.open();
        let _stuck = enter().unwrap();
        gate.close(Duration::from_millis(1));
        assert!(gate.is_closed() && !gate.has_left());
    }
}
