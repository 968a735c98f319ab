//! The heartbeat of the thread that runs.
//!
//! A thread that is [watched](ThreadWatch::enter) calls [`begin`] before it works and [`wait`] before it waits. Both do
//! nothing on other threads, so code that several kinds of thread share can call them.

use std::cell::OnceCell;
use std::time::Duration;

use super::heartbeat::Step;
use super::registry::{Registration, Role, UNNAMED, Watchdog};

impl Watchdog {
    /// How a thread of this role is watched.
    pub(crate) fn of(&self, role: Role) -> ThreadWatch {
        ThreadWatch(Some((self.clone(), role)))
    }
}

/// How the threads of one owner are watched.
#[derive(Clone, Debug, Default)]
pub(crate) struct ThreadWatch(Option<(Watchdog, Role)>);

impl ThreadWatch {
    /// Has the calling thread be watched until it ends. It waits, until it says otherwise. The result is dropped
    /// when its work ends, so that a panic is seen.
    pub(crate) fn enter(&self) -> Watched {
        if let Some((watchdog, role)) = &self.0 {
            enter(|| Registration::new(watchdog, role.clone()));
        }
        Watched(self.clone())
    }

    /// The calling thread goes on after a panic.
    pub(crate) fn count_panic(&self) {
        if let Some((watchdog, _)) = &self.0 {
            watchdog.shared().count_panic();
        }
    }
}

/// A thread at its work. If a panic ends a thread without which the broker cannot go on, the broker ends.
#[must_use = "a panic is noticed while this exists"]
pub(crate) struct Watched(ThreadWatch);

impl Drop for Watched {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        if let Some((watchdog, Role::Broker)) = &self.0.0 {
            let thread = std::thread::current();
            let name = thread.name().unwrap_or(UNNAMED);
            watchdog
                .shared()
                .fatal(&format!("the thread {name} has panicked"));
        }
    }
}

thread_local! {
    /// The registration of this thread. It ends with the thread.
    static OWN: OnceCell<Registration> = const { OnceCell::new() };
}

/// Has this thread be watched from now on. Does nothing if it is already.
fn enter(register: impl FnOnce() -> Registration) {
    let _ = OWN.try_with(|own| {
        own.get_or_init(register);
    });
}

#[inline]
fn with(to: impl FnOnce(&Registration)) {
    let _ = OWN.try_with(|own| own.get().map(to));
}

/// Notes that this thread begins a turn.
#[inline]
pub(crate) fn begin(step: Step) {
    with(|own| own.begin(step));
}

/// As [`begin`], for a turn that may take this long.
pub(crate) fn begin_within(step: Step, limit: Duration) {
    with(|own| {
        own.heartbeat().limit(limit);
        own.begin(step);
    });
}

/// Notes what this thread does next in its turn.
#[inline]
pub(crate) fn step(step: Step) {
    with(|own| own.heartbeat().step(step));
}

/// Notes that this thread waits until there is something to do, which may be for ever.
#[inline]
pub(crate) fn wait() {
    with(|own| own.heartbeat().wait());
}
