//! The thread that looks at the heartbeats of all others.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hvsock_sys::sync::lock;

use super::dump;
use super::judgement::{Finding, Schedule, ThreadId};
use super::notify::ServiceManager;
use super::registry::{Role, Shared, Watchdog};

/// A thread that is stuck, or was.
#[derive(Clone, Debug)]
pub(crate) struct Stuck {
    name: Arc<str>,
    role: Role,
    tid: u32,
    step: &'static str,
    /// How long its turn has taken.
    took: Duration,
}

impl Stuck {
    /// The thread and what it serves, in words.
    fn what(&self) -> String {
        match &self.role {
            Role::Vm(_, vm) => format!("the thread {} of the VM {vm}", self.name),
            Role::Broker | Role::Helper => format!("the thread {}", self.name),
        }
    }

    /// What no other thread has.
    pub(crate) fn object(&self) -> String {
        format!("{} {}", self.name, self.tid)
    }

    /// The problem as one sentence. It does not change while the thread is stuck.
    pub(crate) fn problem(&self) -> String {
        format!("{} is stuck ({})", self.what(), self.step)
    }
}

/// Who is told of what the supervisor finds. None of these may block.
pub(crate) trait Reports: Send {
    /// A thread is stuck.
    fn stuck(&self, stuck: &Stuck);
    /// It goes on, or has ended.
    fn recovered(&self, stuck: &Stuck);
}

/// The running thread. Dropping it ends it.
pub(crate) struct Supervisor {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Supervisor {
    pub(crate) fn start(
        watchdog: &Watchdog,
        manager: Option<ServiceManager>,
        reports: Box<dyn Reports>,
    ) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut run = Run {
            shared: Arc::clone(watchdog.shared()),
            stop: Arc::clone(&stop),
            pulse: manager.map(Pulse::new),
            reports,
            stuck: Vec::new(),
        };
        let thread = std::thread::Builder::new()
            .name("hvsock-watchdog".into())
            .spawn(move || run.run())?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

/// What is told to a service manager, and when.
struct Pulse {
    manager: ServiceManager,
    next: Instant,
    was_silent: bool,
}

impl Pulse {
    fn new(manager: ServiceManager) -> Self {
        Self {
            next: Instant::now() + manager.interval,
            manager,
            was_silent: false,
        }
    }

    /// Tells the service manager, if that is due and the broker is alive.
    fn beat(&mut self, now: Instant, is_alive: bool) {
        if self.next > now {
            return;
        }
        self.next = now + self.manager.interval;
        if is_alive {
            (self.manager.alive)();
        }
        if is_alive == self.was_silent {
            match is_alive {
                true => {
                    tracing::info!("the service manager is told again that the broker is alive");
                }
                false => tracing::error!(
                    "the service manager is no longer told that the broker is alive, so it restarts the broker"
                ),
            }
        }
        self.was_silent = !is_alive;
    }
}

struct Run {
    shared: Arc<Shared>,
    stop: Arc<AtomicBool>,
    pulse: Option<Pulse>,
    reports: Box<dyn Reports>,
    /// The threads that are stuck now.
    stuck: Vec<(ThreadId, Stuck)>,
}

impl Run {
    fn run(&mut self) {
        self.shared.set_supervisor(std::thread::current());
        let interval = Schedule::interval(self.shared.limit());
        let mut schedule = Schedule::Armed {
            next: Instant::now(),
        };
        loop {
            let was_woken = !schedule.is_armed() && self.shared.is_armed();
            let now = Instant::now();
            let late = schedule
                .next()
                .map_or(Duration::ZERO, |next| now.saturating_duration_since(next));
            let is_active = self.look(now, late);
            schedule = schedule.after(is_active, was_woken, now, interval);
            self.shared.set_armed(schedule.is_armed());
            let is_alive = !self.stuck.iter().any(|(_, one)| one.role == Role::Broker);
            if let Some(pulse) = &mut self.pulse {
                pulse.beat(now, is_alive);
            }
            let pulse = self.pulse.as_ref().map(|pulse| pulse.next);
            let next = schedule.next().into_iter().chain(pulse).min();
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
            match next {
                Some(next) => {
                    let left = next.saturating_duration_since(Instant::now());
                    std::thread::park_timeout(left);
                }
                None => std::thread::park(),
            }
        }
    }

    /// Looks at all threads. Returns whether there is a reason to look again.
    fn look(&mut self, now: Instant, late: Duration) -> bool {
        let samples = self.shared.samples();
        let (findings, is_active) = lock(&self.shared.judgement).look(now, late, &samples);
        for finding in findings {
            match finding {
                Finding::Stuck(thread, _) | Finding::Fatal(thread, _)
                    if self.is_stopped(thread) =>
                {
                    lock(&self.shared.judgement).excuse(finding, now);
                }
                Finding::Stuck(thread, took) => self.found(thread, took),
                Finding::Fatal(thread, took) => self.given_up(thread, took),
                Finding::Recovered(thread, took) => self.recovered(thread, took),
            }
        }
        is_active
    }

    fn is_stopped(&self, thread: ThreadId) -> bool {
        let entry = self.shared.entry(thread);
        entry.is_some_and(|entry| dump::is_stopped(entry.tid))
    }

    fn found(&mut self, thread: ThreadId, took: Duration) {
        let Some(entry) = self.shared.entry(thread) else {
            return;
        };
        let stuck = Stuck {
            name: entry.name,
            role: entry.role,
            tid: entry.tid,
            step: entry.heartbeat.last_step().label(),
            took,
        };
        let (problem, seconds) = (stuck.problem(), took.as_secs_f64());
        let state = dump::of(stuck.tid);
        tracing::error!(tid = stuck.tid, "{problem} for {seconds:.1} s; {state}");
        self.shared.count_hang();
        self.reports.stuck(&stuck);
        self.stuck.push((thread, stuck));
    }

    /// A thread has been stuck for too long. All VMs of a broker are not given up for one of them.
    fn given_up(&self, thread: ThreadId, took: Duration) {
        let stuck = self.stuck.iter().find(|(id, _)| *id == thread);
        let Some((_, stuck)) = stuck.filter(|(_, one)| one.role == Role::Broker) else {
            return;
        };
        let seconds = took.as_secs_f64();
        let (what, tid) = (stuck.what(), stuck.tid);
        tracing::error!(
            "{what} is still stuck after {seconds:.1} s; {}",
            dump::of(tid)
        );
        self.shared
            .fatal(&format!("{what} has been stuck for {seconds:.1} s"));
    }

    fn recovered(&mut self, thread: ThreadId, took: Duration) {
        let Some(index) = self.stuck.iter().position(|(id, _)| *id == thread) else {
            return;
        };
        let (_, mut stuck) = self.stuck.swap_remove(index);
        stuck.took = took;
        let seconds = took.as_secs_f64();
        tracing::warn!("{} goes on after {seconds:.1} s", stuck.what());
        self.reports.recovered(&stuck);
    }
}
