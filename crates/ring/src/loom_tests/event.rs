//! A bell and an event in loom's world, and waiting for both as poll does.

use std::os::fd::{AsFd, BorrowedFd};

use loom::sync::atomic::{AtomicBool, Ordering};
use loom::sync::{Arc, Condvar, Mutex};

/// Stands for [`hvsock_sys::event::Event`].
#[derive(Debug)]
pub(crate) struct Event {
    set: AtomicBool,
    /// Where its thread waits for it and for a bell.
    place: Mutex<Option<Arc<Place>>>,
}

impl Event {
    pub(crate) fn new() -> std::io::Result<Self> {
        Ok(Self {
            set: AtomicBool::new(false),
            place: Mutex::new(None),
        })
    }

    pub(crate) fn set(&self) {
        self.set.swap(true, Ordering::SeqCst);
        let place = self.place.lock().unwrap().clone();
        if let Some(place) = place {
            // Not between a look and the sleep after it.
            drop(place.rings.lock().unwrap());
            place.changed.notify_all();
        }
    }

    pub(crate) fn clear(&self) {
        self.set.swap(false, Ordering::SeqCst);
    }

    fn is_set(&self) -> bool {
        // Not a load, which may be an old one: the kernel's events are never late.
        self.set.fetch_or(false, Ordering::SeqCst)
    }
}

impl AsFd for Event {
    fn as_fd(&self) -> BorrowedFd<'_> {
        unreachable!("loom's threads do not poll descriptors")
    }
}

/// Stands for a doorbell.
#[derive(Debug, Default)]
pub(super) struct Bell(Arc<Place>);

#[derive(Debug, Default)]
struct Place {
    rings: Mutex<Rings>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Rings {
    /// Not taken yet.
    now: usize,
    /// In all.
    ever: usize,
}

impl Bell {
    pub(super) fn ring(&self) {
        let mut rings = self.0.rings.lock().unwrap();
        rings.now += 1;
        rings.ever += 1;
        drop(rings);
        self.0.changed.notify_all();
    }

    /// How many have come in all.
    pub(super) fn ever(&self) -> usize {
        self.0.rings.lock().unwrap().ever
    }

    /// How many have come and were not taken.
    pub(super) fn now(&self) -> usize {
        self.0.rings.lock().unwrap().now
    }

    pub(super) fn take(&self, most: usize) {
        let mut rings = self.0.rings.lock().unwrap();
        rings.now -= rings.now.min(most);
    }

    /// Waits for a ring. Loom tells of one who waits for ever.
    pub(super) fn wait(&self) {
        let mut rings = self.0.rings.lock().unwrap();
        while rings.now == 0 {
            rings = self.0.changed.wait(rings).unwrap();
        }
    }

    /// Waits for a ring or the event; whether there is a ring.
    pub(super) fn wait_or(&self, event: &Event) -> bool {
        *event.place.lock().unwrap() = Some(Arc::clone(&self.0));
        let mut rings = self.0.rings.lock().unwrap();
        loop {
            if rings.now > 0 {
                return true;
            }
            if event.is_set() {
                return false;
            }
            rings = self.0.changed.wait(rings).unwrap();
        }
    }

    /// Waits for a ring and takes all.
    pub(super) fn hear(&self) {
        self.wait();
        self.take(usize::MAX);
    }
}
