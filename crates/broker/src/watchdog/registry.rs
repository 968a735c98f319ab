//! The watched threads of one broker.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::Thread;
use std::time::{Duration, Instant};

use hvsock_fabric::PartitionKey;
use hvsock_sys::sync::lock;

use super::faults::Fault;
use super::heartbeat::{Heartbeat, Step};
use super::judgement::{Judgement, Sample, ThreadId};
use super::notify::{OnFatal, WatchdogConfig};
use crate::model::BrokerThread;

/// A thread without a name.
pub(super) const UNNAMED: &str = "(unnamed)";

/// What depends on a thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// The whole broker: nobody can replace this thread alone.
    Broker,
    /// One VM, of which this is the name.
    Vm(PartitionKey, Arc<str>),
    /// Something that the others go on without: files, logs.
    Helper,
}

/// The threads of a broker. Clones refer to the same ones.
#[derive(Clone)]
pub(crate) struct Watchdog(Arc<Shared>);

pub(super) struct Shared {
    awake: Awake,
    threads: Mutex<BTreeMap<ThreadId, Entry>>,
    next: AtomicU64,
    pub(super) judgement: Mutex<Judgement>,
    limit: Duration,
    /// How often a thread got stuck.
    hangs: AtomicU64,
    /// How often a thread went on after a panic.
    panics: AtomicU64,
    on_fatal: Option<OnFatal>,
}

/// Read by every thread at each turn, so nothing that changes often is beside it.
#[derive(Default)]
#[repr(align(128))]
struct Awake {
    /// The supervisor looks by itself.
    is_armed: AtomicBool,
    supervisor: OnceLock<Thread>,
}

/// A watched thread.
#[derive(Clone)]
pub(super) struct Entry {
    pub(super) heartbeat: Arc<Heartbeat>,
    pub(super) name: Arc<str>,
    pub(super) role: Role,
    /// Its number in `/proc`.
    pub(super) tid: u32,
    limit: Duration,
}

impl Entry {
    pub(super) fn sample(&self, thread: ThreadId) -> Sample {
        let (turn, works, limit) = self.heartbeat.read();
        Sample {
            thread,
            turn,
            works,
            limit: limit.unwrap_or(self.limit),
        }
    }
}

impl fmt::Debug for Watchdog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watchdog").finish_non_exhaustive()
    }
}

impl Watchdog {
    pub(crate) fn new(config: &WatchdogConfig) -> Self {
        Self(Arc::new(Shared {
            awake: Awake::default(),
            threads: Mutex::default(),
            next: AtomicU64::new(0),
            judgement: Mutex::default(),
            limit: config.limit,
            hangs: AtomicU64::new(0),
            panics: AtomicU64::new(0),
            on_fatal: config.on_fatal.clone(),
        }))
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.0
    }

    /// How often a thread got stuck.
    pub(crate) fn hangs(&self) -> u64 {
        self.0.hangs.load(Ordering::Relaxed)
    }

    /// How often a thread went on after a panic.
    pub(crate) fn panics(&self) -> u64 {
        self.0.panics.load(Ordering::Relaxed)
    }

    /// All threads, by name, as they are now.
    pub(crate) fn threads(&self) -> Vec<BrokerThread> {
        let now = Instant::now();
        let judgement = lock(&self.0.judgement);
        let threads = lock(&self.0.threads);
        let mut reports: Vec<_> = threads
            .iter()
            .map(|(id, entry)| {
                let sample = entry.sample(*id);
                let turn = judgement.in_turn(&sample, now);
                let is_stuck = judgement.is_stuck(&sample);
                BrokerThread {
                    name: entry.name.to_string(),
                    tid: entry.tid,
                    vm: match &entry.role {
                        Role::Vm(_, name) => Some(name.to_string()),
                        Role::Broker | Role::Helper => None,
                    },
                    critical: entry.role == Role::Broker,
                    stuck: is_stuck,
                    turn_seconds: turn.map_or(0.0, |turn| turn.as_secs_f64()),
                    limit_seconds: sample.limit.as_secs_f64(),
                    step: turn.map(|_| entry.heartbeat.last_step().label().to_owned()),
                }
            })
            .collect();
        reports.sort_by(|one, other| (&one.name, one.tid).cmp(&(&other.name, other.tid)));
        reports
    }
}

impl Shared {
    pub(super) fn samples(&self) -> Vec<Sample> {
        let threads = lock(&self.threads);
        threads
            .iter()
            .map(|(id, entry)| entry.sample(*id))
            .collect()
    }

    pub(super) fn entry(&self, thread: ThreadId) -> Option<Entry> {
        lock(&self.threads).get(&thread).cloned()
    }

    pub(super) fn limit(&self) -> Duration {
        self.limit
    }

    pub(super) fn count_hang(&self) {
        self.hangs.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_panic(&self) {
        self.panics.fetch_add(1, Ordering::Relaxed);
    }

    /// The broker cannot go on. Returns if nobody ends the process for that.
    pub(super) fn fatal(&self, why: &str) {
        if let Some(on_fatal) = &self.on_fatal {
            (on_fatal.0)(why);
        }
    }

    /// Has this thread be woken by others from now on.
    pub(super) fn set_supervisor(&self, thread: Thread) {
        let _ = self.awake.supervisor.set(thread);
    }

    pub(super) fn is_armed(&self) -> bool {
        self.awake.is_armed.load(Ordering::SeqCst)
    }

    pub(super) fn set_armed(&self, is_armed: bool) {
        self.awake.is_armed.store(is_armed, Ordering::SeqCst);
    }

    #[cold]
    fn arm(&self) {
        if !self.awake.is_armed.swap(true, Ordering::SeqCst)
            && let Some(supervisor) = self.awake.supervisor.get()
        {
            supervisor.unpark();
        }
    }
}

/// A thread is watched until this is dropped.
pub(super) struct Registration {
    heartbeat: Arc<Heartbeat>,
    shared: Arc<Shared>,
    id: ThreadId,
    fault: Option<Fault>,
}

impl Registration {
    pub(super) fn new(watchdog: &Watchdog, role: Role) -> Self {
        let shared = Arc::clone(&watchdog.0);
        let heartbeat = Arc::new(Heartbeat::default());
        let thread = std::thread::current();
        let name = thread.name().unwrap_or(UNNAMED);
        let entry = Entry {
            heartbeat: Arc::clone(&heartbeat),
            name: name.into(),
            role,
            tid: rustix::thread::gettid().as_raw_pid().unsigned_abs(),
            limit: shared.limit,
        };
        let id = shared.next.fetch_add(1, Ordering::Relaxed);
        lock(&shared.threads).insert(id, entry);
        let fault = Fault::of(name);
        Self {
            heartbeat,
            shared,
            id,
            fault,
        }
    }

    pub(super) fn heartbeat(&self) -> &Heartbeat {
        &self.heartbeat
    }

    #[inline]
    pub(super) fn begin(&self, step: Step) {
        self.heartbeat.begin(step);
        if !self.shared.awake.is_armed.load(Ordering::Relaxed) {
            self.shared.arm();
        }
        if let Some(fault) = &self.fault {
            fault.act();
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        lock(&self.shared.threads).remove(&self.id);
    }
}
