//! The thread that serves the arenas of this process while no other thread waits at them: it receives the
//! broker's messages, passes notifications on to connections that are watched as descriptors, and ends
//! arenas that are idle.
//!
//! It starts with the first arena and does nothing while nothing happens.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::{Duration, Instant};

use hvsock_sys::event::{Event, Ready, Set};
use hvsock_sys::signals::spawn_without_signals;
use hvsock_sys::sync::lock;

use super::per_process::PerProcess;

/// The size in bytes of the thread's stack. The largest thing on it is a message.
const STACK: usize = 128 * 1024;
/// How often arenas are checked for having been idle. One ends after once to twice this time.
const TICK: Duration = Duration::from_secs(30);
/// Descriptors that are handled in one round.
const ROUND: usize = 64;

/// What the thread serves. It keeps none of it alive.
pub(super) trait Served: Send + Sync {
    /// The socket with the broker's messages.
    fn control(&self) -> BorrowedFd<'_>;
    /// The doorbell of this process.
    fn doorbell(&self) -> BorrowedFd<'_>;
    /// Receives messages. Returns false after the last one.
    fn control_ready(&self) -> bool;
    /// Passes notifications on.
    fn doorbell_ready(&self);
}

/// The thread, and what it serves by number.
pub(super) struct Watcher {
    set: Set,
    served: Mutex<HashMap<u64, Weak<dyn Served>>>,
    next: AtomicU64,
    /// Called now and then.
    on_tick: OnceLock<fn()>,
    /// Readable at all times, for a caller that is owed a descriptor when there is none.
    ready: Event,
}

/// The registration of something that is served. Dropping it ends that.
#[derive(Debug)]
pub(super) struct Registration {
    watcher: &'static Watcher,
    number: u64,
}

#[derive(Default)]
struct OfProcess {
    watcher: OnceLock<Watcher>,
    /// Held while it is started. A child that is forked meanwhile has one that nobody holds.
    starting: Mutex<()>,
}

static WATCHERS: PerProcess<OfProcess> = PerProcess::new();

impl Watcher {
    /// The watcher of this process, which is started if it does not run.
    ///
    /// # Errors
    ///
    /// The error of the system if there is no descriptor or thread for it.
    pub(super) fn of_process() -> io::Result<&'static Self> {
        let of_process = WATCHERS.of(std::process::id());
        if let Some(watcher) = of_process.watcher.get() {
            return Ok(watcher);
        }
        let _starting = lock(&of_process.starting);
        if let Some(watcher) = of_process.watcher.get() {
            return Ok(watcher);
        }
        let (set, ready) = (Set::new()?, Event::new()?);
        ready.set();
        let (started, start) = std::sync::mpsc::channel::<&'static Self>();
        spawn_without_signals("hvsock-arenas", STACK, move || {
            if let Ok(watcher) = start.recv() {
                watcher.run();
            }
        })?;
        let watcher = of_process.watcher.get_or_init(|| Self {
            set,
            served: Mutex::default(),
            next: AtomicU64::new(0),
            on_tick: OnceLock::new(),
            ready,
        });
        // The thread waits for it.
        let _ = started.send(watcher);
        Ok(watcher)
    }

    /// Calls `tick` now and then.
    pub(super) fn on_tick(&self, tick: fn()) {
        self.on_tick.get_or_init(|| tick);
    }

    /// A descriptor that is readable at all times.
    pub(super) fn always_readable(&self) -> BorrowedFd<'_> {
        self.ready.as_fd()
    }

    /// Serves the messages of `served`.
    pub(super) fn serve(
        &'static self,
        served: &Arc<impl Served + 'static>,
    ) -> io::Result<Registration> {
        let number = self.next.fetch_add(2, Ordering::Relaxed);
        let weak: Weak<dyn Served> = Arc::downgrade(served) as Weak<dyn Served>;
        lock(&self.served).insert(number, weak);
        let registration = Registration {
            watcher: self,
            number,
        };
        self.set.add(served.control(), number)?;
        Ok(registration)
    }

    fn run(&self) {
        let mut ready = Vec::with_capacity(ROUND);
        let mut next_tick = Instant::now() + TICK;
        loop {
            let left = next_tick.saturating_duration_since(Instant::now());
            if self.set.wait(&mut ready, Some(left)).is_err() {
                // No error is possible; if there were one, the thread must not use a processor.
                std::thread::sleep(Duration::from_millis(100));
            }
            for ready in &ready {
                self.handle(*ready);
            }
            if next_tick <= Instant::now() {
                next_tick = Instant::now() + TICK;
                if let Some(tick) = self.on_tick.get() {
                    tick();
                }
            }
        }
    }

    fn handle(&self, ready: Ready) {
        let number = ready.number & !1;
        let served = lock(&self.served).get(&number).and_then(Weak::upgrade);
        let Some(served) = served else {
            // It is being dropped, and closes its descriptors.
            std::thread::yield_now();
            return;
        };
        if ready.number == number {
            if !served.control_ready() {
                let _ = self.set.remove(served.control());
            }
        } else {
            served.doorbell_ready();
            // A doorbell that has hung up stays ready. What is to be known comes from the broker.
            if ready.hung_up {
                let _ = self.set.remove(served.doorbell());
            }
        }
    }
}

impl Registration {
    /// Serves the doorbell, too, or no longer.
    pub(super) fn serve_doorbell(&self, doorbell: BorrowedFd<'_>, on: bool) -> io::Result<()> {
        let set = &self.watcher.set;
        match on {
            true => set.add(doorbell, self.number | 1),
            // It may have been removed when it hung up.
            false => {
                let _ = set.remove(doorbell);
                Ok(())
            }
        }
    }

    /// A descriptor that is readable at all times.
    pub(super) fn always_readable(&self) -> BorrowedFd<'static> {
        self.watcher.always_readable()
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        lock(&self.watcher.served).remove(&self.number);
    }
}

impl fmt::Debug for Watcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watcher").finish_non_exhaustive()
    }
}
