//! The event loop of the core thread.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError};
use std::time::{Duration, Instant};

use hvsock_fabric::Refusal;
use hvsock_registry::store::Loaded;
use hvsock_sys::limits::is_shortage;
use mio::{Events, Poll};

use super::endpoints::EndpointKind;
use super::reports::{ReportQueue, ThreadReport};
use super::state::Core;
use super::tokens::{Source, WAKE};
use crate::loop_waker::LoopWaker;
use crate::{BrokerConfig, StartError};

/// Most reports of other threads that are handled in one turn, so that one thread that reports all the time
/// does not stop the others' work.
const MAX_REPORTS: usize = 1024;

/// Delay before the next poll when the kernel lacks memory for one.
const RETRY_DELAY: Duration = Duration::from_millis(100);

/// A message of a [`Handle`](crate::Handle) to the core thread.
pub(crate) enum CoreCall {
    /// A closure to run.
    Run(Box<dyn FnOnce(&mut Core) + Send>),
    /// Ends the loop.
    Stop,
}

/// The sending side of the core thread's call queue.
#[derive(Clone)]
pub(crate) struct CoreLink {
    calls: Sender<CoreCall>,
    waker: Arc<LoopWaker>,
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
}

/// The core with its event sources.
pub(crate) struct Loop {
    core: Core,
    poll: Poll,
    waker: Arc<LoopWaker>,
    calls: Receiver<CoreCall>,
    reports: Receiver<ThreadReport>,
}

impl Loop {
    /// Creates the core, its data threads, and the endpoint of the broker's own partition.
    pub(crate) fn open(
        config: BrokerConfig,
        loaded: Loaded,
    ) -> Result<(Self, CoreLink), StartError> {
        let poll = Poll::new().map_err(StartError::io("create an epoll descriptor"))?;
        let waker = LoopWaker::new(poll.registry(), WAKE)
            .map(Arc::new)
            .map_err(StartError::io("create an eventfd"))?;
        let registry = poll
            .registry()
            .try_clone()
            .map_err(StartError::io("duplicate a descriptor"))?;
        let (queue, reports) = ReportQueue::new(Arc::clone(&waker));
        let host = config.uplink.open()?;
        let mut core = Core::new(config, loaded, registry, queue, host.is_some())?;
        let own = core.fabric.root();
        core.endpoints
            .open(EndpointKind::Endpoint, own, core.dirs.endpoint())?;
        core.endpoints
            .open(EndpointKind::Text, own, core.dirs.text())?;
        if let Some(host) = host {
            core.open_outer(host)?;
        }
        let (calls, queue) = std::sync::mpsc::channel();
        let event_loop = Self {
            core,
            poll,
            waker: Arc::clone(&waker),
            calls: queue,
            reports,
        };
        Ok((event_loop, CoreLink { calls, waker }))
    }

    /// Runs until [`CoreCall::Stop`], or until all [`CoreLink`]s are dropped.
    pub(crate) fn run(mut self) {
        let mut events = Events::with_capacity(1024);
        let mut stopping = false;
        while !stopping {
            self.core.data_threads.spare().work(Instant::now());
            let timeout = match self.waker.prepare_park() {
                true => self.timeout(),
                false => Some(Duration::ZERO),
            };
            match self.poll.poll(&mut events, timeout) {
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
                    Source::Session(index) => self.core.session_event(index),
                    Source::Text(index) => self.core.text_listener_event(index),
                    Source::Attaching(index) => self.core.attaching_ready(index),
                    Source::Uplink(index) => self.core.uplink_client_ready(index),
                }
            }
            // Before the queues are drained: what is queued later wakes the loop again.
            self.waker.take();
            self.drain_reports();
            self.core.accept_clients();
            self.core.resume_sessions();
            self.core.serve_uplink_clients();
            self.core.data_threads.run_turns();
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
            stopping = self.run_calls();
            // The calls may have closed connections, whose reports may close others.
            while let Some(report) = self.core.data_threads.next_report() {
                self.core.handle_report(report);
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
            match self.reports.try_recv() {
                Ok(ThreadReport::Data(report)) => self.core.handle_report(report),
                Ok(ThreadReport::Link(vm, event)) => self.core.handle_link_event(vm, event),
                Ok(ThreadReport::Uplink(event)) => self.core.handle_uplink_event(event),
                Err(_) => return,
            }
        }
        // The rest is for the next turn.
        self.waker.wake();
    }

    /// Runs the queued calls. Returns whether the loop ends.
    fn run_calls(&mut self) -> bool {
        loop {
            match self.calls.try_recv() {
                Ok(CoreCall::Run(call)) => {
                    call(&mut self.core);
                    self.core.judge_arenas();
                }
                Err(TryRecvError::Empty) => return false,
                Ok(CoreCall::Stop) | Err(TryRecvError::Disconnected) => return true,
            }
        }
    }

    /// The timeout of the next poll.
    fn timeout(&self) -> Option<Duration> {
        let core = &self.core;
        let busy = core.endpoints.has_busy() || core.sessions.has_unfinished();
        if busy || core.uplink_clients.has_turns() || core.data_threads.has_ready() {
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
