//! The data thread of one VM.
//!
//! It is an event loop that runs while there is work: packets from the guest, events of
//! connections, packets to the guest. When there is no work it spins for a moment, since the next
//! packet often follows at once. Then it requests wakeups from all that it waits for (enables
//! kicks, arms the rings), checks once more for work, and parks in `epoll_wait`.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

use hvsock_fabric::{PartitionState, Refusal};
use hvsock_virtio::queue::{Chain, GuestMemory, QueueFault};
use hvsock_virtio::{
    self as virtio, Cid, Config, Event as MuxerEvent, HEADER_LEN, Handle, Header, Key, Muxer,
    Received, Transmit,
};
use mio::{Events, Poll, Token};

use super::arenas::Arenas;
use super::command::{Command, ConnectCommand, DeviceState};
use super::links::{Links, MAX_WATCHED};
use super::memory::Chunks;
use super::queues::{QueueCommand, Queues, RX, TX};
use super::reports::Reports;
use super::spin::SpinLimit;
use super::wake::WakeQueue;
use crate::guest_link::{
    ConnectionId, DeliverError, Destination, EventSender, FillOutcome, GuestRequest, LinkEnd,
    LinkEvent, MessageEnd, RequestId, Service, SocketKind,
};
use crate::loop_waker::LoopWaker;

/// The local ports of the host's connections to the guest: IANA's dynamic ports (RFC 6335), above
/// the ports of services.
const FIRST_PORT: u32 = 49_152;
const LAST_PORT: u32 = 65_535;

const WAKE: Token = Token(0);
/// The kick eventfds of the queues.
const KICKS: [Token; 2] = [Token(1), Token(2)];

/// Packets processed in one direction before the other direction gets its turn.
const BATCH: usize = 128;
/// Bytes of data in one direction that are written to the rx queue before they are published, so that the
/// guest reads them while the next ones are written.
const PUBLISH: usize = 16 * 1024;
/// The most requests of the guest that may await the core's answer. With that many the thread
/// stops reading the tx queue (backpressure).
const MAX_PENDING_REQUESTS: usize = 256;
/// The data thread's state.
pub(super) struct Worker {
    poll: Poll,
    waker: Arc<LoopWaker>,
    wake_queue: Arc<WakeQueue>,
    commands: Receiver<Command>,
    reports: Reports,
    queues: Queues,
    mux: Muxer,
    links: Links,
    state: DeviceState,
    /// Requests that the core has not answered.
    requests: HashMap<RequestId, Handle>,
    next_request: u64,
    /// The next local port for a connection of the host to the guest.
    next_port: u32,
    /// Links without bytes for the guest that are polled and not armed for a wakeup.
    idle: Vec<usize>,
    chain: Chain,
    spin_limit: SpinLimit,
    invalid_chains_reported: u64,
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
            reports: Reports::new(events),
            queues: Queues::default(),
            mux: Muxer::new(config),
            links,
            state,
            requests: HashMap::new(),
            next_request: 0,
            next_port: FIRST_PORT,
            idle: Vec::new(),
            chain: Chain::default(),
            spin_limit: SpinLimit::new(processors > 1),
            invalid_chains_reported: 0,
            stopping: false,
        })
    }

    pub(super) fn waker(&self) -> Arc<LoopWaker> {
        Arc::clone(&self.waker)
    }

    /// Runs until [`Command::Stop`], then resets all connections.
    pub(super) fn run(mut self) {
        let mut events = Events::with_capacity(256);
        let mut awake = true;
        while !self.stopping {
            awake = awake || !self.waker.prepare_park();
            let timeout = if awake {
                Some(Duration::ZERO)
            } else {
                self.timeout()
            };
            let parked = Instant::now();
            match self.poll.poll(&mut events, timeout) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                // Any other error of epoll_wait means that the descriptor is no epoll instance.
                Err(_) => break,
            }
            let now = Instant::now();
            if !awake {
                self.resume(now.duration_since(parked));
            }
            for event in &events {
                if Arenas::owns(event.token()) {
                    self.links.arena_ready(event.token(), &mut self.mux, now);
                } else if Links::owns(event.token())
                    && let Some(slot) = self.links.record_readiness(event)
                {
                    self.links.update(slot, &mut self.mux, now);
                }
            }
            self.mux.handle_timeout(now);
            if self.links.next_sweep().is_some_and(|at| at <= now) {
                self.links.sweep(now);
            }
            self.reports.flush_due(now);
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
        let refusal = Refusal::Reset {
            cause: "the broker has stopped".into(),
        };
        for slot in self.links.slots() {
            self.links.reset(slot, &mut self.mux, &refusal);
        }
        self.close_arenas(&refusal);
        self.report();
        self.reports.flush();
    }

    fn timeout(&self) -> Option<Duration> {
        let timers = [
            self.mux.poll_timeout(),
            self.reports.next_flush(),
            self.links.next_sweep(),
        ];
        let at = timers.into_iter().flatten().min()?;
        Some(at.saturating_duration_since(Instant::now()))
    }

    /// Adapts the spin limit after a park. Disables kicks.
    fn resume(&mut self, parked: Duration) {
        self.spin_limit.parked(parked);
        for queue in [RX, TX] {
            if let Err(fault) = self.queues.disable_notification(queue) {
                self.fault(queue, fault);
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
        match self.process_tx() {
            Ok(moved) => busy |= moved,
            Err(fault) => self.fault(TX, fault),
        }
        busy |= self.links.poll_controls(&mut self.mux, now);
        busy |= self.links.poll_arenas(&mut self.mux, now);
        busy |= self.process_events();
        busy |= self.poll_links();
        // Before anything reaches the guest, so that the core knows a connection first.
        self.report();
        match self.process_rx(now) {
            Ok(moved) => busy |= moved,
            Err(fault) => self.fault(RX, fault),
        }
        for queue in [RX, TX] {
            if let Err(fault) = self.queues.publish(queue) {
                self.fault(queue, fault);
            }
        }
        self.report();
        busy
    }

    /// Receives up to [`BATCH`] packets from the tx queue. Returns whether there were any.
    fn process_tx(&mut self) -> Result<bool, QueueFault> {
        let mut consumed = 0;
        while consumed < BATCH
            && self.mux.may_receive()
            && self.requests.len() < MAX_PENDING_REQUESTS
        {
            if !self.queues.peek(TX, &mut self.chain)? {
                break;
            }
            consumed += 1;
            let mut raw = [0; HEADER_LEN];
            let ram = &self.queues.ram;
            let is_read = match self.chain.readable() {
                [first, ..] if first.len as usize >= HEADER_LEN => {
                    ram.read(first.address, &mut raw)
                }
                segments => ram.read_segments(segments, &mut raw),
            };
            if is_read {
                let header = Header::decode(&raw);
                let payload = self.chain.readable_len() as usize - HEADER_LEN;
                let received = self.mux.handle_packet(&header, payload);
                if let Received::Payload { handle, len, end } = received {
                    self.deliver(handle, len, end);
                }
                // Handle a packet's events before the next packet's bytes.
                while let Some(event) = self.mux.poll_event() {
                    self.on_event(event);
                }
            }
            self.queues.add_used(TX, &self.chain, 0)?;
        }
        Ok(consumed > 0)
    }

    /// Delivers a data packet's payload to the connection's peer.
    fn deliver(&mut self, handle: Handle, len: usize, end: virtio::MessageEnd) {
        let Some(slot) = self.links.slot_of(handle) else {
            self.mux.reset(handle);
            return;
        };
        let mut chunks = Chunks::new();
        let segments = self.chain.readable();
        if !self
            .queues
            .ram
            .gather(segments, HEADER_LEN, len, &mut chunks)
        {
            let cause = "the guest sent a buffer outside its memory".into();
            let refusal = Refusal::Reset { cause };
            return self.links.reset(slot, &mut self.mux, &refusal);
        }
        let Some(link) = self.links.at(slot) else {
            return;
        };
        match link.peer.deliver(&chunks, len, message_end(end)) {
            Ok(()) => {}
            Err(DeliverError::ReadClosed) => {
                return self.links.peer_closed_read(slot, &mut self.mux);
            }
            Err(DeliverError::TooManyMessages) => {
                let which = "messages queued for a sibling".into();
                let refusal = Refusal::LimitReached { which };
                return self.links.reset(slot, &mut self.mux, &refusal);
            }
        }
        link.count_delivered(len);
        self.links.watch_credit(slot, &self.mux);
    }

    /// Writes up to [`BATCH`] packets to the rx queue. Returns whether there were any.
    fn process_rx(&mut self, now: Instant) -> Result<bool, QueueFault> {
        let mut left = BATCH;
        while left > 0 && self.mux.has_transmit() {
            if !self.queues.peek(RX, &mut self.chain)? {
                break;
            }
            left -= 1;
            let space = max_payload(&self.chain);
            let mut next = self.mux.poll_transmit(space);
            if next.is_none() && space > 0 {
                break;
            }
            if next.is_none() {
                // The buffer holds a header only, and all pending packets have data.
                self.queues.add_used(RX, &self.chain, 0)?;
            }
            while let Some(transmit) = next {
                next = match transmit {
                    Transmit::Packet(header) => {
                        write_packet(&mut self.queues, &self.chain, &header)?;
                        None
                    }
                    Transmit::Data { handle, max, .. } => {
                        self.fill_run(handle, max, &mut left, now)?
                    }
                };
            }
        }
        Ok(left < BATCH)
    }

    /// Fills the chain that was read last with data of a connection, and further chains while it is the
    /// connection's turn. `left` counts the packets down. Returns what is to be sent in the chain that was
    /// read last, if that is not of the connection.
    fn fill_run(
        &mut self,
        handle: Handle,
        mut max: usize,
        left: &mut usize,
        now: Instant,
    ) -> Result<Option<Transmit>, QueueFault> {
        let slot = self.links.slot_of(handle);
        let link = slot.and_then(|slot| Some((slot, self.links.at(slot)?)));
        let Some((slot, link)) = link.filter(|(_, link)| link.may_fill()) else {
            self.mux.nothing_to_send(handle);
            return Ok(None);
        };
        let in_messages = link.in_messages;
        let mut run = link.peer.fill_run();
        let (mut filled, mut unpublished) = (0, 0);
        let end = loop {
            let mut chunks = Chunks::new();
            let (ram, segments) = (&self.queues.ram, self.chain.writable());
            if !ram.gather(segments, HEADER_LEN, max, &mut chunks) {
                break Ok(RunEnd::OutsideMemory);
            }
            let (count, end, more) = match run.fill(&chunks, in_messages) {
                FillOutcome::Bytes(0, end, _) if !end.message => break Ok(RunEnd::Next(None)),
                FillOutcome::Bytes(count, end, more) => (count, end, more),
                stopped => break Ok(RunEnd::Stopped(stopped)),
            };
            filled += count;
            unpublished += count;
            let end = virtio::MessageEnd {
                message: end.message,
                record: end.record,
            };
            let Some(header) = self.mux.sent(handle, count, end, more) else {
                break Ok(RunEnd::Next(None));
            };
            if let Err(fault) = write_packet(&mut self.queues, &self.chain, &header) {
                break Err(fault);
            }
            if unpublished >= PUBLISH {
                unpublished = 0;
                if let Err(fault) = self.queues.publish(RX) {
                    break Err(fault);
                }
            }
            if !more {
                break Ok(RunEnd::Idle);
            }
            if *left == 0 {
                break Ok(RunEnd::Next(None));
            }
            match self.queues.peek(RX, &mut self.chain) {
                Ok(true) => *left -= 1,
                Ok(false) => break Ok(RunEnd::Next(None)),
                Err(fault) => break Err(fault),
            }
            match self.mux.poll_transmit(max_payload(&self.chain)) {
                Some(Transmit::Data {
                    handle: next,
                    max: most,
                    ..
                }) if next == handle => max = most,
                other => break Ok(RunEnd::Next(other)),
            }
        };
        drop(run);
        link.count_filled(filled);
        match end? {
            RunEnd::Next(transmit) => return Ok(transmit),
            RunEnd::Idle => self.watch_idle(slot),
            RunEnd::OutsideMemory => {
                let cause = "the guest supplied a buffer outside its memory".into();
                let refusal = Refusal::Reset { cause };
                self.links.reset(slot, &mut self.mux, &refusal);
            }
            RunEnd::Stopped(FillOutcome::Failed(refusal)) => {
                self.links.reset(slot, &mut self.mux, &refusal);
            }
            RunEnd::Stopped(FillOutcome::Ended) => {
                self.mux.nothing_to_send(handle);
                self.links.source_ended(slot, &mut self.mux, now);
            }
            RunEnd::Stopped(_) => {
                self.mux.nothing_to_send(handle);
                self.watch_idle(slot);
            }
        }
        Ok(None)
    }

    /// Polls a link for bytes from now on.
    fn watch_idle(&mut self, slot: usize) {
        if let Some(link) = self.links.at(slot)
            && !link.idle
        {
            link.idle = true;
            self.idle.push(slot);
        }
    }

    /// Polls the idle links for bytes and the links with low credit for free space. Returns
    /// whether one has some. With more than [`MAX_WATCHED`] of them it arms them instead.
    fn poll_links(&mut self) -> bool {
        let mut found = false;
        if self.idle.len() > MAX_WATCHED {
            found |= self.arm_idle_links();
        }
        let mut index = 0;
        while let Some(&slot) = self.idle.get(index) {
            let link = self.links.at(slot);
            let is_done = match link {
                Some(link) if link.peer.may_have_data() => {
                    link.idle = false;
                    if let Some(handle) = link.handle {
                        self.mux.readable(handle);
                    }
                    found = true;
                    true
                }
                Some(_) => false,
                None => true,
            };
            if is_done {
                self.idle.swap_remove(index);
            } else {
                index += 1;
            }
        }
        found | self.links.poll_credit(&mut self.mux)
    }

    /// Requests a wakeup from each idle link for when it has bytes. Returns whether one already has.
    fn arm_idle_links(&mut self) -> bool {
        let mut found = false;
        for slot in std::mem::take(&mut self.idle) {
            let Some(link) = self.links.at(slot) else {
                continue;
            };
            link.idle = false;
            if !link.peer.arm() {
                if let Some(handle) = link.handle {
                    self.mux.readable(handle);
                }
                found = true;
            }
        }
        found
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
                    || self.links.arenas.have_ready()
                    || self.may_receive() && self.queues.has_available(TX)
                    || self.mux.has_transmit() && self.queues.has_available(RX)
                    || self.poll_links()
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

    fn may_receive(&self) -> bool {
        self.mux.may_receive() && self.requests.len() < MAX_PENDING_REQUESTS
    }

    /// Requests wakeups from everything that can bring work. Returns whether there is some already.
    fn prepare_park(&mut self) -> bool {
        let mut found = self.arm_idle_links();
        found |= self.links.arm_credit(&mut self.mux);
        found |= !self.links.arenas.arm();
        if self.may_receive() {
            match self.queues.enable_notification(TX) {
                Ok(available) => found |= available,
                Err(fault) => self.fault(TX, fault),
            }
        }
        if self.mux.has_transmit() {
            match self.queues.enable_notification(RX) {
                Ok(available) => found |= available,
                Err(fault) => self.fault(RX, fault),
            }
        }
        found
    }

    /// Drains the muxer's events. Returns whether there were any.
    fn process_events(&mut self) -> bool {
        let mut any = false;
        while let Some(event) = self.mux.poll_event() {
            self.on_event(event);
            any = true;
        }
        any
    }

    fn on_event(&mut self, event: MuxerEvent) {
        match event {
            MuxerEvent::Request { handle, key } => {
                if !self.accept_in_arena(handle, &key) {
                    self.next_request += 1;
                    let id = RequestId(self.next_request);
                    self.requests.insert(id, handle);
                    self.send(LinkEvent::Request(id, request_of(&key)));
                }
            }
            MuxerEvent::Connected { handle } => self.links.connected(handle, &mut self.mux),
            MuxerEvent::Finished { handle } => self.links.guest_finished(handle),
            MuxerEvent::ClosedRead { handle } => self.links.guest_closed_read(handle),
            MuxerEvent::Closed { handle, reason } => self.links.closed(handle, reason),
        }
    }

    /// Answers a request in an arena. Returns `false` if the core has to decide.
    fn accept_in_arena(&mut self, handle: Handle, key: &Key) -> bool {
        if key.peer != Cid::HOST || key.kind != virtio::SocketKind::Stream {
            return false;
        }
        let port = key.peer_port;
        match self.links.connect_in_arena(handle, port, &mut self.mux) {
            None => return false,
            Some(Ok(slot)) => self.watch_idle(slot),
            Some(Err(refusal)) => {
                self.mux.refuse(handle);
                self.send(LinkEvent::Refused(request_of(key), refusal));
            }
        }
        true
    }

    fn close_arenas(&mut self, refusal: &Refusal) {
        for arena in self.links.arenas.ids() {
            self.links.close_arena(arena, refusal, &mut self.mux);
        }
    }

    /// Sends an event to the core, after those of the links.
    fn send(&mut self, event: LinkEvent) {
        self.reports.send(self.links.drain().chain([event]));
    }

    /// Updates the notified sibling links and handles the core's commands.
    fn handle_commands(&mut self, now: Instant) {
        for connection in self.wake_queue.take() {
            if let Some(slot) = self.links.slot_of_id(connection) {
                self.links.update(slot, &mut self.mux, now);
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
                let handle = self.requests.remove(&request);
                self.accept(handle, connection, *end, now);
            }
            Command::Refuse(request) => {
                if let Some(handle) = self.requests.remove(&request) {
                    self.mux.refuse(handle);
                }
            }
            Command::OpenArena(arena) => {
                if let Err((arena, error)) = self.links.arenas.add(*arena) {
                    let which = format!("arenas of one guest ({error})");
                    arena.end(&Refusal::LimitReached { which });
                    self.send(LinkEvent::ArenaEnded(arena.id()));
                }
            }
            Command::AcceptInArena(request) => {
                let handle = self.requests.get(&request).copied();
                let key = handle.and_then(|handle| Some((handle, self.mux.key(handle)?)));
                match key {
                    Some((handle, key)) if !self.accept_in_arena(handle, &key) => {
                        self.send(LinkEvent::NoSlot(request, request_of(&key)));
                    }
                    // Accepted or refused, or the guest has reset it meanwhile.
                    _ => {
                        self.requests.remove(&request);
                    }
                }
            }
            Command::CloseArena(arena, refusal) => {
                self.links.close_arena(arena, &refusal, &mut self.mux);
            }
            Command::Connect(connect) => self.connect(*connect, now),
            Command::Establish(connection, control) => {
                let Some(slot) = self.links.slot_of_id(connection) else {
                    return;
                };
                if let Some(link) = self.links.at(slot) {
                    link.peer.set_control(*control);
                }
                if let Err(error) = self.links.watch(slot) {
                    return self.watch_failed(slot, &error);
                }
                self.links.update(slot, &mut self.mux, now);
            }
            Command::Close(connection, refusal) => {
                if let Some(slot) = self.links.slot_of_id(connection) {
                    self.links.reset(slot, &mut self.mux, &refusal);
                }
            }
            Command::Suspend(connection, suspended) => {
                self.links.suspend(connection, suspended, &mut self.mux);
            }
            Command::Vmm(command, reply) => {
                let disconnected = matches!(command, QueueCommand::Disconnected);
                let result = self.queues.handle(command, self.poll.registry(), KICKS);
                self.update_state(disconnected);
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
        match self.mux.connect(now, key, end.buffer, timeout) {
            Ok(handle) => {
                let slot = self.links.insert(handle, key.kind, connection, end, false);
                if let Err(error) = self.links.watch(slot) {
                    self.watch_failed(slot, &error);
                }
            }
            Err(error) => {
                let which = error.to_string();
                let refusal = Refusal::LimitReached { which };
                end.peer.reset(&refusal, true);
                if end.reports {
                    self.send(LinkEvent::Failed(connection, refusal));
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
        let key = handle.and_then(|handle| Some((handle, self.mux.key(handle)?)));
        let Some((handle, key)) = key else {
            // The guest has reset its request meanwhile.
            let cause = "the guest reset the connection before it was accepted".into();
            let refusal = Refusal::Reset { cause };
            end.peer.reset(&refusal, true);
            if end.reports {
                self.send(LinkEvent::Closed(connection, Some(refusal)));
            }
            return;
        };
        let is_process = end.peer.sibling_end().is_none();
        let alloc = end.buffer;
        let slot = self.links.insert(handle, key.kind, connection, end, true);
        if is_process {
            self.mux.accept(handle, alloc);
        }
        if let Err(error) = self.links.watch(slot) {
            return self.watch_failed(slot, &error);
        }
        self.links.update(slot, &mut self.mux, now);
    }

    fn watch_failed(&mut self, slot: usize, error: &io::Error) {
        let which = format!("descriptors that epoll can watch ({error})");
        let refusal = Refusal::LimitReached { which };
        self.links.reset(slot, &mut self.mux, &refusal);
    }

    /// Updates the partition's state after a command of the VMM. `disconnected`: the VMM is gone.
    fn update_state(&mut self, disconnected: bool) {
        if disconnected {
            // Before `forget_all`, whose reason would be that the guest has restarted.
            for slot in self.links.slots() {
                self.links
                    .reset(slot, &mut self.mux, &Refusal::PartitionOff);
            }
            self.close_arenas(&Refusal::PartitionOff);
        }
        if self.queues.take_driver_restarted() {
            self.mux.forget_all();
            self.process_events();
        }
        let old = self.state.get();
        let state = match (self.queues.are_running(), old) {
            (true, _) => PartitionState::Running,
            (false, PartitionState::Off) => PartitionState::Off,
            (false, _) if disconnected => PartitionState::Off,
            (false, _) => PartitionState::Paused,
        };
        if state != old {
            self.state.set(state);
            self.send(LinkEvent::State(state));
        }
    }

    /// Stops a queue whose rings are invalid until the driver is reset.
    fn fault(&mut self, queue: usize, fault: QueueFault) {
        self.queues.mark_broken(queue);
        let name = if queue == RX { "rx" } else { "tx" };
        self.send(LinkEvent::Fault(format!(
            "the guest's {name} queue is stopped until its driver is reset: {fault}"
        )));
    }

    fn report(&mut self) {
        self.reports.send(self.links.drain());
        if self.invalid_chains_reported == 0 && self.queues.invalid_chains > 0 {
            self.invalid_chains_reported = self.queues.invalid_chains;
            self.send(LinkEvent::Fault(
                "the guest's driver makes invalid descriptor chains available; they are returned \
                 unprocessed"
                    .into(),
            ));
        }
    }
}

/// Why a run of one connection's packets to the guest has ended.
enum RunEnd {
    /// It is the turn of another packet, which the chain that was read last is for, or of none.
    Next(Option<Transmit>),
    /// All bytes that the link had are sent.
    Idle,
    /// The link has no bytes; it is never [`FillOutcome::Bytes`].
    Stopped(FillOutcome),
    /// A buffer of the guest is outside its memory.
    OutsideMemory,
}

/// Bytes of data that fit into a chain of the rx queue, which is long enough for a header.
fn max_payload(chain: &Chain) -> usize {
    chain.writable_len() as usize - HEADER_LEN
}

/// Writes a header in front of its payload and adds the chain to the used ring.
fn write_packet(queues: &mut Queues, chain: &Chain, header: &Header) -> Result<(), QueueFault> {
    let raw = header.encode();
    let is_written = match chain.writable() {
        [first, ..] if first.len as usize >= HEADER_LEN => queues.ram.write(first.address, &raw),
        segments => queues.ram.write_segments(segments, &raw),
    };
    // The driver loses the packet if its buffer is outside guest memory.
    let written = if is_written {
        HEADER_LEN as u32 + header.len
    } else {
        0
    };
    queues.add_used(RX, chain, written)
}

fn message_end(end: virtio::MessageEnd) -> MessageEnd {
    MessageEnd {
        message: end.message,
        record: end.record,
    }
}

/// A guest's request in the terms of all links.
fn request_of(key: &Key) -> GuestRequest {
    GuestRequest {
        destination: match key.peer {
            Cid::HOST => Destination::Host,
            Cid(number) => Destination::Cid(number),
        },
        service: Service::Port(key.peer_port),
        kind: match key.kind {
            virtio::SocketKind::Stream => SocketKind::Stream,
            virtio::SocketKind::Seqpacket => SocketKind::Seqpacket,
        },
        source_port: Some(key.guest_port),
        identity: None,
        socket: None,
    }
}
