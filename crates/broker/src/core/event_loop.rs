//! The event loop of the core thread.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError};
use std::time::{Duration, Instant};

use hvsock_fabric::{Operators, Refusal};
use hvsock_registry::store::Loaded;
use hvsock_sys::limits::is_shortage;
use mio::{Events, Poll};

use super::endpoints::EndpointKind;
use super::freeze::HandOver;
use super::hand_over::CoreDocument;
use super::reports::{ReportQueue, ThreadReport};
use super::state::Core;
use super::tokens::{Source, WAKE};
use crate::config::HostLink;
use crate::handover::{HandoverError, Imports, LinkDocument};
use crate::loop_waker::LoopWaker;
use crate::watchdog::{self, Role, Step, Watchdog};
use crate::{BrokerConfig, StartError};

/// Most reports of other threads that are handled in one turn, so that one thread that reports all the time
/// does not stop the others' work.
const MAX_REPORTS: usize = 1024;

/// How long a handover waits for requests that are nearly done: they cost less if they end here. New clients
/// wait meanwhile.
const DRAIN: Duration = Duration::from_millis(100);
/// How often to look whether they are done.
const DRAIN_POLL: Duration = Duration::from_millis(1);

/// Delay before the next poll when the kernel lacks memory for one.
const RETRY_DELAY: Duration = Duration::from_millis(100);

/// A message of a [`Handle`](crate::Handle) to the core thread.
pub(crate) enum CoreCall {
    /// A closure to run.
    Run(Box<dyn FnOnce(&mut Core) + Send>),
    /// Hands the broker over to another process.
    HandOver(Box<HandOver>),
    /// Ends the loop.
    Stop,
}

/// What follows after the queued calls.
enum Next {
    Turn,
    HandOver(Box<HandOver>),
    Stop,
}

/// The sending side of the core thread's call queue.
#[derive(Clone)]
pub(crate) struct CoreLink {
    calls: Sender<CoreCall>,
    waker: Arc<LoopWaker>,
    watchdog: Watchdog,
}

/// The core thread has ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CoreGone;

impl CoreLink {
    /// Queues a call.
    pub(crate) fn send(&self, call: CoreCall) -> Result<(), CoreGone> {
        self.calls.send(call).map_err(|_| CoreGone)?;
        self.waker.wake();
        Ok(())
    }

    /// The broker's threads.
    pub(crate) fn watchdog(&self) -> &Watchdog {
        &self.watchdog
    }
}

/// The core with its event sources.
pub(crate) struct Loop {
    core: Core,
    poll: Poll,
    waker: Arc<LoopWaker>,
    calls: Receiver<CoreCall>,
    reports: Receiver<ThreadReport>,
    watchdog: Watchdog,
    /// It has been taken over from another process, and has not begun.
    is_taken_over: bool,
}

impl Loop {
    /// Creates the core, its data threads, and the endpoint of the broker's own partition.
    pub(crate) fn open(
        config: BrokerConfig,
        loaded: Loaded,
    ) -> Result<(Self, CoreLink), StartError> {
        let (mut event_loop, link, host) = Self::make(config, loaded)?;
        let core = &mut event_loop.core;
        core.find_left_folders();
        let own = core.fabric.root();
        core.endpoints
            .open(EndpointKind::Endpoint, own, core.dirs.endpoint())?;
        core.endpoints
            .open(EndpointKind::Text, own, core.dirs.text())?;
        if let Some(host) = host {
            core.open_outer(host)?;
        }
        Ok((event_loop, link))
    }

    /// Creates a core that takes over the state of another process ([`resume`](Self::resume)). Nobody can see it.
    pub(crate) fn prepare(
        config: BrokerConfig,
        loaded: Loaded,
    ) -> Result<(Self, CoreLink), StartError> {
        let (event_loop, link, _host) = Self::make(config, loaded)?;
        Ok((event_loop, link))
    }

    /// Restores the state of another process. Nobody can see that until [`run`](Self::run).
    ///
    /// # Errors
    ///
    /// If the state is damaged, or exceeds a limit. This core is useless then, and must not be dropped while the
    /// other process goes on.
    pub(crate) fn resume(
        &mut self,
        document: CoreDocument,
        links: BTreeMap<u64, LinkDocument>,
        events: Option<String>,
        imports: &mut Imports,
        operators: Operators,
    ) -> Result<(), HandoverError> {
        self.is_taken_over = true;
        if let Some(resume) = events {
            self.core.keep_events(resume);
        }
        self.core
            .resume(document, links, imports, operators, Instant::now())
    }

    fn make(
        config: BrokerConfig,
        loaded: Loaded,
    ) -> Result<(Self, CoreLink, Option<HostLink>), StartError> {
        let poll = Poll::new().map_err(StartError::io("create an epoll descriptor"))?;
        let waker = LoopWaker::new(poll.registry(), WAKE)
            .map(Arc::new)
            .map_err(StartError::io("create an eventfd"))?;
        let registry = poll
            .registry()
            .try_clone()
            .map_err(StartError::io("duplicate a descriptor"))?;
        let watchdog = Watchdog::new(&config.watchdog);
        let (queue, reports) = ReportQueue::new(Arc::clone(&waker), watchdog.clone());
        let host = config.uplink.open()?;
        let core = Core::new(config, loaded, registry, queue, host.is_some())?;
        let (calls, queue) = std::sync::mpsc::channel();
        let event_loop = Self {
            core,
            poll,
            waker: Arc::clone(&waker),
            calls: queue,
            reports,
            watchdog: watchdog.clone(),
            is_taken_over: false,
        };
        let link = CoreLink {
            calls,
            waker,
            watchdog,
        };
        Ok((event_loop, link, host))
    }

    /// Runs until [`CoreCall::Stop`], or until all [`CoreLink`]s are dropped.
    pub(crate) fn run(mut self) {
        let _watched = self.watchdog.of(Role::Broker).enter();
        watchdog::begin(Step::Turn);
        let mut events = Events::with_capacity(1024);
        // A handover that waits for what is under way, and until when.
        let mut handing_over: Option<(Box<HandOver>, Instant)> = None;
        if self.is_taken_over {
            self.core.begin();
        }
        loop {
            let is_idle = events.is_empty();
            self.core.data_threads.spare().work(Instant::now(), is_idle);
            let timeout = match (self.waker.prepare_park(), &handing_over) {
                (true, None) => self.timeout(),
                (true, Some(_)) => Some(DRAIN_POLL),
                (false, _) => Some(Duration::ZERO),
            };
            watchdog::wait();
            let polled = self.poll.poll(&mut events, timeout);
            watchdog::begin(Step::Events);
            match polled {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if is_shortage(&error) => {
                    tracing::warn!(%error, "cannot poll for events; trying again");
                    std::thread::sleep(RETRY_DELAY);
                    continue;
                }
                Err(error) => {
                    tracing::error!(%error, "cannot poll for events; stopping the broker");
                    return;
                }
            }
            for event in &events {
                match Source::from(event.token()) {
                    Source::Waker => {}
                    Source::Connection => self.core.data_threads.handle_event(event),
                    Source::Endpoint(index) => self.core.endpoints.mark(index),
                    // It is read when no handover waits.
                    Source::Session(index) if handing_over.is_some() => {
                        self.core.sessions.enqueue(index);
                    }
                    Source::Session(index) => self.core.session_event(index),
                    Source::Text(index) => self.core.text_listener_event(index),
                    Source::Attaching(index) => self.core.attaching_ready(index),
                    Source::Uplink(index) => self.core.uplink_client_ready(index),
                }
            }
            // Before the queues are drained: what is queued later wakes the loop again.
            self.waker.take();
            watchdog::step(Step::Reports);
            self.drain_reports();
            watchdog::step(Step::Clients);
            if handing_over.is_none() {
                self.core.accept_clients();
                self.core.resume_sessions();
            }
            self.core.serve_uplink_clients();
            watchdog::step(Step::Connections);
            self.core.data_threads.run_turns();
            watchdog::step(Step::Timers);
            let now = Instant::now();
            self.core.expire_sessions(now);
            self.core.expire_liveness(now);
            self.core.expire_pending(now);
            self.core.expire_attaching(now);
            self.core.expire_uplink_clients(now);
            self.core.expire_uplink_connects(now);
            self.core.expire_outer_waits(now);
            self.core.check_shortage(now);
            self.core.retry_parked(now);
            self.core.scan_due_arenas(now);
            self.core.in_flight.sweep(now);
            self.core.judge_arenas();
            watchdog::step(Step::Calls);
            let next = self.run_calls();
            // The calls may have closed connections, whose reports may close others.
            while let Some(report) = self.core.data_threads.next_report() {
                self.core.handle_report(report);
            }
            match next {
                Next::Turn => {}
                Next::HandOver(hand_over) => {
                    handing_over = Some((hand_over, Instant::now() + DRAIN));
                }
                Next::Stop => break,
            }
            let is_due = handing_over
                .as_ref()
                .is_some_and(|(_, until)| self.core.is_drained() || Instant::now() >= *until);
            if is_due && let Some((hand_over, _)) = handing_over.take() {
                // It has limits of its own.
                watchdog::wait();
                let reports = &self.reports;
                let mut apply = |core: &mut Core| apply_reports(core, reports);
                if hand_over.run(&mut self.core, &mut apply) {
                    // Callers learn that this broker has stopped.
                    drop(self.calls);
                    return self.core.leave();
                }
            }
        }
        self.core.data_threads.reset_all(&Refusal::Reset {
            cause: "the broker has stopped".into(),
        });
        self.core.endpoints.close_all();
    }

    /// Handles queued reports, at most [`MAX_REPORTS`].
    fn drain_reports(&mut self) {
        for _ in 0..MAX_REPORTS {
            if !apply_report(&mut self.core, &self.reports) {
                return;
            }
        }
        // The rest is for the next turn.
        self.waker.wake();
    }

    /// Runs the queued calls, until one has another consequence.
    fn run_calls(&mut self) -> Next {
        loop {
            match self.calls.try_recv() {
                Ok(CoreCall::Run(call)) => {
                    call(&mut self.core);
                    self.core.judge_arenas();
                }
                Ok(CoreCall::HandOver(hand_over)) => return Next::HandOver(hand_over),
                Err(TryRecvError::Empty) => return Next::Turn,
                Ok(CoreCall::Stop) | Err(TryRecvError::Disconnected) => return Next::Stop,
            }
        }
    }

    /// The timeout of the next poll.
    fn timeout(&self) -> Option<Duration> {
        let core = &self.core;
        let busy = core.endpoints.has_busy() || core.sessions.has_unfinished();
        let threads = &core.data_threads;
        let turns = core.uplink_clients.has_turns() || threads.has_ready();
        if busy || turns || threads.has_closing() {
            return Some(Duration::ZERO);
        }
        let deadlines = [
            core.sessions.next_deadline(),
            core.endpoints.retry_at(),
            core.endpoints.shortage().map(|(_, ends)| ends),
            core.liveness.next_deadline(),
            core.connections.next_deadline(),
            core.attaching.next_deadline(),
            core.uplink_clients.next_deadline(),
            core.next_uplink_deadline(),
            core.parked.next_try(),
            core.next_outer_deadline(),
            core.arenas.next_scan(),
            core.in_flight.next_sweep(),
            core.data_threads.spare_due(),
        ];
        let next = deadlines.into_iter().flatten().min()?;
        Some(next.saturating_duration_since(Instant::now()))
    }
}

/// Handles all queued reports, and those of the core's own connections. Returns whether there were any.
fn apply_reports(core: &mut Core, reports: &Receiver<ThreadReport>) -> bool {
    let mut any = false;
    loop {
        let mut more = apply_report(core, reports);
        while let Some(report) = core.data_threads.next_report() {
            core.handle_report(report);
            more = true;
        }
        if !more {
            return any;
        }
        any = true;
    }
}

/// Handles the oldest queued report. Returns whether there was one.
fn apply_report(core: &mut Core, reports: &Receiver<ThreadReport>) -> bool {
    match reports.try_recv() {
        Ok(ThreadReport::Data(report)) => core.handle_report(report),
        Ok(ThreadReport::Link(vm, event)) => core.handle_link_event(vm, event),
        Ok(ThreadReport::Uplink(event)) => core.handle_uplink_event(event),
        Err(_) => return false,
    }
    true
}
