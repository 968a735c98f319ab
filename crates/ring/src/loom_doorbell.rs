//! Loom models of a doorbell and of an event, and of `poll` on both.

use std::os::fd::{AsFd, BorrowedFd};

use loom::sync::atomic::{AtomicBool, Ordering};
use loom::sync::{Arc, Condvar, Mutex};

/// Models [`hvsock_sys::event::Event`].
#[derive(Debug)]
pub(crate) struct Event {
    set: AtomicBool,
    /// The doorbell that this event's thread polls together with it.
    polled_with: Mutex<Option<Arc<Pipe>>>,
}

impl Event {
    pub(crate) fn new() -> std::io::Result<Self> {
        Ok(Self {
            set: AtomicBool::new(false),
            polled_with: Mutex::new(None),
        })
    }

    pub(crate) fn set(&self) {
        self.set.swap(true, Ordering::SeqCst);
        let pipe = self.polled_with.lock().unwrap().clone();
        if let Some(pipe) = pipe {
            // Not between the waiter's check and its park.
            drop(pipe.notifications.lock().unwrap());
            pipe.changed.notify_all();
        }
    }

    pub(crate) fn clear(&self) {
        self.set.swap(false, Ordering::SeqCst);
    }

    fn is_set(&self) -> bool {
        // A load could return a stale value. The kernel's events never do.
        self.set.fetch_or(false, Ordering::SeqCst)
    }
}

impl AsFd for Event {
    fn as_fd(&self) -> BorrowedFd<'_> {
        unreachable!("loom's threads do not poll descriptors")
    }
}

/// Models a doorbell.
#[derive(Debug, Default)]
pub(crate) struct Doorbell(Arc<Pipe>);

#[derive(Debug, Default)]
struct Pipe {
    notifications: Mutex<Notifications>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Notifications {
    pending: usize,
    total: usize,
}

impl Doorbell {
    pub(crate) fn notify(&self) {
        let mut notifications = self.0.notifications.lock().unwrap();
        notifications.pending += 1;
        notifications.total += 1;
        drop(notifications);
        self.0.changed.notify_all();
    }

    /// The number of notifications sent, drained or not.
    pub(crate) fn total(&self) -> usize {
        self.0.notifications.lock().unwrap().total
    }

    /// The number of notifications that were not drained.
    pub(crate) fn pending(&self) -> usize {
        self.0.notifications.lock().unwrap().pending
    }

    pub(crate) fn drain(&self, most: usize) {
        let mut notifications = self.0.notifications.lock().unwrap();
        notifications.pending -= notifications.pending.min(most);
    }

    /// Waits for a notification. Loom reports a thread that waits for ever.
    pub(crate) fn wait(&self) {
        let mut notifications = self.0.notifications.lock().unwrap();
        while notifications.pending == 0 {
            notifications = self.0.changed.wait(notifications).unwrap();
        }
    }

    /// Waits for a notification or the event. Returns whether there is a notification.
    pub(crate) fn wait_or(&self, event: &Event) -> bool {
        *event.polled_with.lock().unwrap() = Some(Arc::clone(&self.0));
        let mut notifications = self.0.notifications.lock().unwrap();
        loop {
            if notifications.pending > 0 {
                return true;
            }
            if event.is_set() {
                return false;
            }
            notifications = self.0.changed.wait(notifications).unwrap();
        }
    }

    /// Waits for a notification, and drains all.
    pub(crate) fn wait_and_drain(&self) {
        self.wait();
        self.drain(usize::MAX);
    }
}
