//! The data thread of one VM.
//!
//! It is an event loop that runs while there is work: packets from the guest, events of
//! connections, packets to the guest. When there is no work it spins for a moment, since the next
//! packet often follows at once. Then it requests wakeups from all that it waits for (enables
//! kicks, arms the rings), checks once more for work, and parks in `epoll_wait`.

pub(super) mod snapshot;

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

use hvsock_fabric::Refusal;
use hvsock_virtio::{Config, Handle, Key, Muxer};
use mio::{Events, Poll, Token};

use super::arenas::Arenas;
use super::command::{Command, ConnectCommand, DeviceState, Phase};
use super::links::Links;
use super::pause_check::PauseCheck;
use super::queues::{QUEUES, RX, TX};
use super::reports::Reports;
use super::restarts::Restarts;
use super::spin::SpinLimit;
use super::traffic::{Traffic, request_of};
use super::wake::WakeQueue;
use crate::gate::Gate;
use crate::guest_link::{ConnectionId, EventSender, LinkEnd, LinkEvent};
use crate::loop_waker::LoopWaker;
use crate::watchdog::{self, Step};

/// The local ports of the host's connections to the guest: IANA's dynamic ports (RFC 6335), above
/// the ports of services.
const FIRST_PORT: u32 = 49_152;
const LAST_PORT: u32 = 65_535;

const WAKE: Token = Token(0);
/// The kick eventfds of the queues.
pub(super) const KICKS: [Token; QUEUES] = [Token(1), Token(2), Token(3)];

/// Why the data thread has stopped for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pause {
    /// It ends.
    Stopped,
    /// It leaves its state at its gate.
    Frozen,
}

/// The data thread's state.
pub(super) struct Worker {
    pub(super) poll: Poll,
    waker: Arc<LoopWaker>,
    wake_queue: Arc<WakeQueue>,
    commands: Receiver<Command>,
    pub(super) traffic: Traffic,
    pub(super) state: DeviceState,
    /// The VM's phase. A pause is [reported](DeviceState) a moment later.
    pub(super) phase: Phase,
    /// While the VM counts as paused.
    pub(super) pause_check: Option<PauseCheck>,
    /// The next local port for a connection of the host to the guest.
    next_port: u32,
    spin_limit: SpinLimit,
    stopping: bool,
}

impl Worker {
    pub(super) fn new(
        config: Config,
        state: DeviceState,
        commands: Receiver<Command>,
        events: EventSender,
    ) -> io::Result<Self> {
        let poll = Poll::new()?;
        let waker = Arc::new(LoopWaker::new(poll.registry(), WAKE)?);
        let wake_queue = Arc::new(WakeQueue::new(Arc::clone(&waker)));
        let registry = || poll.registry().try_clone();
        let arenas = Arenas::new(registry()?);
        let links = Links::new(registry()?, Arc::clone(&wake_queue), arenas);
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Self {
            poll,
            waker,
            wake_queue,
            commands,
            traffic: Traffic::new(Muxer::new(config), links, Reports::new(events)),
            phase: state.phase(),
            state,
            pause_check: None,
            next_port: FIRST_PORT,
            spin_limit: SpinLimit::new(processors > 1),
            stopping: false,
        })
    }

    pub(super) fn waker(&self) -> Arc<LoopWaker> {
        Arc::clone(&self.waker)
    }

    pub(super) fn events(&self) -> &EventSender {
        self.traffic.reports.events()
    }

    pub(super) fn wake_queue(&self) -> Arc<WakeQueue> {
        Arc::clone(&self.wake_queue)
    }

    /// The thread: runs until [`Command::Stop`], then resets all connections.
    pub(super) fn run(gate: &Gate<Self>) {
        let mut restarts = Restarts::default();
        let mut next = gate.enter();
        while let Some(mut worker) = next {
            // What may be inconsistent afterwards is thrown away.
            let served = catch_unwind(AssertUnwindSafe(|| worker.serve(gate)));
            next = match served {
                Ok(Pause::Stopped) => return worker.end(),
                Ok(Pause::Frozen) => gate.pass(worker, || {}),
                Err(_) => worker.restart(&mut restarts),
            };
        }
    }

    /// Runs until it is stopped or the gate is closed: then it is between two rounds.
    fn serve(&mut self, gate: &Gate<Self>) -> Pause {
        let mut events = Events::with_capacity(256);
        let mut awake = true;
        self.wake_all(Instant::now());
        while !self.stopping {
            if gate.is_closed() {
                return Pause::Frozen;
            }
            awake = awake || !self.waker.prepare_park();
            let timeout = if awake {
                Some(Duration::ZERO)
            } else {
                self.timeout()
            };
            let parked = Instant::now();
            watchdog::wait();
            let polled = self.poll.poll(&mut events, timeout);
            watchdog::begin(Step::Events);
            match polled {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                // Any other error of epoll_wait means that the descriptor is no epoll instance.
                Err(_) => break,
            }
            let now = Instant::now();
            if !awake {
                self.unpark(now.duration_since(parked));
            }
            for event in &events {
                if Arenas::owns(event.token()) {
                    self.traffic
                        .links
                        .arena_ready(event.token(), &mut self.traffic.mux, now);
                } else if Links::owns(event.token())
                    && let Some(slot) = self.traffic.links.record_readiness(event)
                {
                    self.traffic.update(slot, now);
                }
            }
            self.traffic.mux.handle_timeout(now);
            if self.traffic.links.next_sweep().is_some_and(|at| at <= now) {
                self.traffic.links.sweep(now);
            }
            self.traffic.reports.flush_due(now);
            // Up to 16 turns for one epoll_wait, so that the system call costs little.
            for _ in 0..16 {
                awake = self.turn(now);
                if !awake {
                    break;
                }
            }
            if !awake {
                awake = self.spin() || self.prepare_park();
            }
        }
        Pause::Stopped
    }

    fn end(mut self: Box<Self>) {
        let refusal = Refusal::Reset {
            cause: "the broker has stopped".into(),
        };
        self.reset_all(&refusal);
        self.traffic.report();
        self.traffic.reports.flush();
    }

    /// Handles the core's commands while the thread is frozen, and reports what they lead to. Nothing is read from a
    /// queue or a connection, and nothing written to a queue.
    pub(super) fn settle(&mut self) {
        self.waker.take();
        self.handle_commands(Instant::now());
        self.traffic.process_events();
        self.traffic.report();
        self.traffic.reports.flush();
    }

    /// Looks at everything once: events that came while the thread was frozen, or that another process has consumed,
    /// come again from nowhere.
    fn wake_all(&mut self, now: Instant) {
        self.traffic.begin();
        self.traffic.links.wake_all(&mut self.traffic.mux, now);
    }

    fn timeout(&self) -> Option<Duration> {
        let timers = [
            self.traffic.mux.poll_timeout(),
            self.traffic.reports.next_flush(),
            self.traffic.links.next_sweep(),
            self.traffic.transport_reset.timeout(),
            self.pause_check.as_ref().map(PauseCheck::next),
        ];
        let at = timers.into_iter().flatten().min()?;
        Some(at.saturating_duration_since(Instant::now()))
    }

    /// Adapts the spin limit after a park. Disables kicks.
    fn unpark(&mut self, parked: Duration) {
        self.spin_limit.parked(parked);
        for queue in [RX, TX] {
            if let Err(fault) = self.traffic.queues.disable_notification(queue) {
                self.traffic.fault(queue, fault);
            }
        }
    }

    /// Runs one turn of the event loop. Returns whether there was work.
    fn turn(&mut self, now: Instant) -> bool {
        let mut busy = false;
        if self.waker.take() {
            self.handle_commands(now);
            busy = true;
        }
        // After the VMM's requests: one that starts the rings ends the check.
        self.check_pause(now);
        match self.traffic.process_tx() {
            Ok(moved) => busy |= moved,
            Err(fault) => self.traffic.fault(TX, fault),
        }
        busy |= self.traffic.links.poll_controls(&mut self.traffic.mux, now);
        busy |= self.traffic.links.poll_arenas(&mut self.traffic.mux, now);
        busy |= self.traffic.process_events();
        busy |= self.traffic.poll_links();
        busy |= self.process_transport_reset(now);
        // Before anything reaches the guest, so that the core knows a connection first.
        self.traffic.report();
        match self.traffic.process_rx(now) {
            Ok(moved) => busy |= moved,
            Err(fault) => self.traffic.fault(RX, fault),
        }
        for queue in [RX, TX] {
            if let Err(fault) = self.traffic.queues.publish(queue) {
                self.traffic.fault(queue, fault);
            }
        }
        self.traffic.report();
        busy | self.check_memory(now)
    }

    /// Busy-polls for up to the spin limit. Returns whether there is work.
    fn spin(&mut self) -> bool {
        let Some(limit) = self.spin_limit.get() else {
            return false;
        };
        let found = self.spin_until(Instant::now() + limit);
        self.spin_limit.spun(found);
        found
    }

    fn spin_until(&mut self, until: Instant) -> bool {
        loop {
            for _ in 0..8 {
                if self.waker.is_requested()
                    || self.traffic.links.arenas.have_ready()
                    || self.traffic.may_receive() && self.traffic.queues.has_available(TX)
                    || self.traffic.may_transmit() && self.traffic.queues.has_available(RX)
                    || self.traffic.poll_links()
                {
                    return true;
                }
                std::hint::spin_loop();
            }
            if Instant::now() >= until {
                return false;
            }
        }
    }

    /// Requests wakeups from everything that can bring work. Returns whether there is some already.
    fn prepare_park(&mut self) -> bool {
        let mut found = self.traffic.arm_idle_links();
        found |= self.traffic.links.arm_credit(&mut self.traffic.mux);
        found |= !self.traffic.links.arenas.arm();
        if self.traffic.may_receive() {
            match self.traffic.queues.enable_notification(TX) {
                Ok(available) => found |= available,
                Err(fault) => self.traffic.fault(TX, fault),
            }
        }
        found |= self.arm_transport_reset();
        if self.traffic.may_transmit() {
            match self.traffic.queues.enable_notification(RX) {
                Ok(available) => found |= available,
                Err(fault) => self.traffic.fault(RX, fault),
            }
        }
        found
    }

    /// Updates the notified sibling links and handles the core's commands.
    fn handle_commands(&mut self, now: Instant) {
        for connection in self.wake_queue.take() {
            if let Some(slot) = self.traffic.links.slot_of_id(connection) {
                self.traffic.update(slot, now);
            }
        }
        loop {
            match self.commands.try_recv() {
                Ok(command) => self.handle_command(command, now),
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => {
                    self.stopping = true;
                    return;
                }
            }
        }
    }

    fn handle_command(&mut self, command: Command, now: Instant) {
        match command {
            Command::Accept(request, connection, end) => {
                let handle = self.traffic.requests.remove(&request);
                self.accept(handle, connection, *end, now);
            }
            Command::Refuse(request) => {
                if let Some(handle) = self.traffic.requests.remove(&request) {
                    self.traffic.mux.refuse(handle);
                }
            }
            Command::OpenArena(arena, request) => self.traffic.open_arena(*arena, request),
            Command::AcceptInArena(request) => {
                let handle = self.traffic.requests.get(&request).copied();
                let key = handle.and_then(|handle| Some((handle, self.traffic.mux.key(handle)?)));
                match key {
                    Some((handle, key)) if !self.traffic.accept_in_arena(handle, &key) => {
                        self.traffic
                            .send(LinkEvent::NoSlot(request, request_of(&key)));
                    }
                    // Accepted or refused, or the guest has reset it meanwhile.
                    _ => {
                        self.traffic.requests.remove(&request);
                    }
                }
            }
            Command::CloseArena(arena, refusal) => {
                self.traffic
                    .links
                    .close_arena(arena, &refusal, &mut self.traffic.mux);
            }
            Command::Connect(connect) => self.connect(*connect, now),
            Command::Establish(connection, control) => {
                let Some(slot) = self.traffic.links.slot_of_id(connection) else {
                    return;
                };
                if let Some(link) = self.traffic.links.at(slot) {
                    link.peer.set_control(*control);
                }
                if let Err(error) = self.traffic.links.watch(slot) {
                    return self.watch_failed(slot, &error);
                }
                self.traffic.update(slot, now);
            }
            Command::Close(connection, refusal) => {
                if let Some(slot) = self.traffic.links.slot_of_id(connection) {
                    self.traffic.reset(slot, &refusal);
                }
            }
            Command::Suspend(connection, suspended) => {
                self.traffic
                    .links
                    .suspend(connection, suspended, &mut self.traffic.mux);
            }
            Command::Vmm(command, reply) => {
                let result = self.handle_vmm(command, now);
                // The VMM thread may have stopped waiting.
                let _ = reply.send(result);
            }
            Command::Stop => self.stopping = true,
        }
    }

    fn connect(&mut self, connect: ConnectCommand, now: Instant) {
        let ConnectCommand {
            connection,
            guest_port,
            peer,
            peer_port,
            kind,
            timeout,
            mut end,
        } = connect;
        let key = Key {
            guest_port,
            peer,
            peer_port: peer_port.unwrap_or_else(|| self.next_port()),
            kind,
        };
        match self.traffic.mux.connect(now, key, end.buffer, timeout) {
            Ok(handle) => {
                let slot = self
                    .traffic
                    .links
                    .insert(handle, key.kind, connection, end, false);
                if let Err(error) = self.traffic.links.watch(slot) {
                    self.watch_failed(slot, &error);
                }
            }
            Err(error) => {
                let which = error.to_string();
                let refusal = Refusal::LimitReached { which };
                end.peer.reset(&refusal, true);
                if end.reports {
                    self.traffic.send(LinkEvent::Failed(connection, refusal));
                }
            }
        }
    }

    /// The next local port for a connection to the guest. Ports wrap around.
    fn next_port(&mut self) -> u32 {
        let port = self.next_port;
        self.next_port = if port == LAST_PORT {
            FIRST_PORT
        } else {
            port + 1
        };
        port
    }

    /// Accepts a request. `handle` is `None` if the core has named none of the guest's.
    fn accept(
        &mut self,
        handle: Option<Handle>,
        connection: ConnectionId,
        mut end: LinkEnd,
        now: Instant,
    ) {
        let key = handle.and_then(|handle| Some((handle, self.traffic.mux.key(handle)?)));
        let Some((handle, key)) = key else {
            // The guest has reset its request meanwhile.
            let cause = "the guest reset the connection before it was accepted".into();
            let refusal = Refusal::Reset { cause };
            end.peer.reset(&refusal, true);
            if end.reports {
                self.traffic
                    .send(LinkEvent::Closed(connection, Some(refusal)));
            }
            return;
        };
        let is_process = end.peer.sibling_end().is_none();
        let alloc = end.buffer;
        let slot = self
            .traffic
            .links
            .insert(handle, key.kind, connection, end, true);
        if is_process {
            self.traffic.mux.accept(handle, alloc);
        }
        if let Err(error) = self.traffic.links.watch(slot) {
            return self.watch_failed(slot, &error);
        }
        self.traffic.update(slot, now);
    }

    fn watch_failed(&mut self, slot: usize, error: &io::Error) {
        let which = format!("descriptors that epoll can watch ({error})");
        let refusal = Refusal::LimitReached { which };
        self.traffic.reset(slot, &refusal);
    }
}
