//! Where a thread leaves its state while it is frozen, and finds it when it goes on.
//!
//! The thread calls [`Gate::pass`] when it has seen that the gate is [closed](Gate::is_closed). While its state is
//! here, another thread may look at it and change it. A gate that is made with a state is closed: the thread that
//! [enters](Gate::enter) begins with that state when the gate is opened.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Instant;

use hvsock_sys::sync::lock;

use crate::watchdog::{self, Step};

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Gate<T> {
    /// As in `place`, for a look without the lock.
    is_closed: AtomicBool,
    place: Mutex<Place<T>>,
    changed: Condvar,
}

#[derive(Debug)]
struct Place<T> {
    is_closed: bool,
    state: Option<Box<T>>,
}

impl<T> Gate<T> {
    /// An open gate, for a thread that begins with this state.
    pub(crate) fn open_with(state: Box<T>) -> Self {
        Self::with_state(Some(state), false)
    }

    /// A closed gate with the state of a thread.
    pub(crate) fn closed_with(state: Box<T>) -> Self {
        Self::with_state(Some(state), true)
    }

    /// A closed gate for the state of a thread that does not run yet.
    pub(crate) fn closed() -> Self {
        Self::with_state(None, true)
    }

    /// Leaves the state of a thread that does not run yet.
    pub(crate) fn put(&self, state: Box<T>) {
        lock(&self.place).state = Some(state);
    }

    fn with_state(state: Option<Box<T>>, is_closed: bool) -> Self {
        let place = Place { is_closed, state };
        Self {
            is_closed: AtomicBool::new(is_closed),
            place: Mutex::new(place),
            changed: Condvar::new(),
        }
    }

    /// Whether the thread is to leave its state.
    pub(crate) fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::Acquire)
    }

    /// Closes the gate. The thread has to be woken.
    pub(crate) fn close(&self) {
        self.set_closed(true);
    }

    /// Opens the gate: the thread goes on with its state, or ends if that was taken.
    pub(crate) fn open(&self) {
        self.set_closed(false);
    }

    fn set_closed(&self, is_closed: bool) {
        let mut place = lock(&self.place);
        place.is_closed = is_closed;
        self.is_closed.store(is_closed, Ordering::Release);
        self.changed.notify_all();
    }

    /// Waits until the thread has left its state. Returns whether it has, by the deadline.
    pub(crate) fn wait(&self, deadline: Instant) -> bool {
        let mut place = lock(&self.place);
        while place.state.is_none() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let waited = self.changed.wait_timeout(place, left);
            place = waited.map_or_else(|poisoned| poisoned.into_inner().0, |(place, _)| place);
        }
        true
    }

    /// Gives `to` the state, if it is here.
    pub(crate) fn with<R>(&self, to: impl FnOnce(&mut T) -> R) -> Option<R> {
        lock(&self.place).state.as_deref_mut().map(to)
    }

    /// Takes the state for good, if it is here.
    pub(crate) fn take(&self) -> Option<Box<T>> {
        lock(&self.place).state.take()
    }

    /// Leaves the state here while the gate is closed. `left` is called first, unless the gate is open again.
    /// Returns `None` if the state was taken: the thread ends.
    pub(crate) fn pass(&self, state: Box<T>, left: impl FnOnce()) -> Option<Box<T>> {
        let mut place = lock(&self.place);
        if place.is_closed {
            left();
        }
        place.state = Some(state);
        self.changed.notify_all();
        self.wait_until_open(place)
    }

    /// Waits until the gate is open. Returns the state, or `None` if it was taken.
    pub(crate) fn enter(&self) -> Option<Box<T>> {
        self.wait_until_open(lock(&self.place))
    }

    fn wait_until_open(&self, mut place: MutexGuard<'_, Place<T>>) -> Option<Box<T>> {
        watchdog::wait();
        while place.is_closed {
            let waited = self.changed.wait(place);
            place = waited.unwrap_or_else(std::sync::PoisonError::into_inner);
        }
        watchdog::begin(Step::Turn);
        place.state.take()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    #[test]
    fn a_thread_leaves_its_state_while_its_gate_is_closed_and_goes_on_with_it() {
        let gate = Arc::new(Gate::open_with(Box::new(0)));
        let shared = Arc::clone(&gate);
        let thread = std::thread::spawn(move || {
            let mut state = shared.enter().unwrap();
            while *state < 1000 {
                if shared.is_closed() {
                    state = shared.pass(state, || {}).unwrap();
                }
                std::thread::yield_now();
            }
        });
        for _ in 0..20 {
            gate.close();
            assert!(gate.wait(soon()));
            let before = gate.with(|state| *state).unwrap();
            assert_eq!(gate.with(|state| *state), Some(before));
            gate.with(|state| *state += 10);
            gate.open();
        }
        gate.close();
        assert!(gate.wait(soon()));
        assert_eq!(gate.with(|state| std::mem::replace(state, 1000)), Some(200));
        gate.open();
        thread.join().unwrap();
    }

    #[test]
    fn a_gate_that_is_opened_before_the_thread_comes_does_not_stop_it() {
        let gate = Gate::open_with(Box::new(1));
        let state = gate.enter().unwrap();
        gate.close();
        assert!(!gate.wait(Instant::now()));
        gate.open();
        let left = gate.pass(state, || panic!("it is open"));
        assert_eq!(left, Some(Box::new(1)));
    }

    #[test]
    fn a_thread_whose_state_is_taken_ends() {
        let gate = Gate::closed_with(Box::new(1));
        assert_eq!(gate.take(), Some(Box::new(1)));
        gate.open();
        assert_eq!(gate.enter(), None);
    }
}
