//! The data thread of one VM.
//!
//! It goes round for as long as there is something to do: packets from the guest, news of
//! connections, packets to the guest. When there is nothing, it looks on for a moment, since what
//! comes next often comes at once; then it asks everyone whom it waits for to wake it, looks once
//! more, and sleeps.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

use hvsock_fabric::{PartitionState, Refusal};
use hvsock_sys::shared_memory::SharedBytes;
use hvsock_virtio::queue::{Chain, GuestMemory, QueueFault};
use hvsock_virtio::{
    Config, Event as Happened, HEADER_LEN, Handle, Header, MessageEnd, Muxer, Received, Transmit,
};
use mio::{Events, Poll, Token, Waker};

use super::link::Filled;
use super::links::{Links, MAX_WATCHED};
use super::queues::{Order, Queues, RX, TX};
use super::sibling::{Doorstep, NotTaken};
use super::{Command, Linked, VmNews, VmSettings};
use crate::pump::{Report, Reports};

const WAKE: Token = Token(0);
/// The kicks of the queues.
const KICKS: [Token; 2] = [Token(1), Token(2)];

/// Packets that are taken from the guest, and given to it, before the other way has its turn.
const TURN: usize = 128;
/// Connections that the guest asks for and the core has not answered.
const MAX_ASKED: usize = 256;
/// The longest that the thread looks on before it sleeps.
const MAX_LOOK: Duration = Duration::from_micros(20);
/// A sleep shorter than this should have been a look.
const SHORT_SLEEP: Duration = Duration::from_micros(60);

/// The data thread's state.
pub(super) struct Worker {
    settings: VmSettings,
    poll: Poll,
    waker: Arc<Waker>,
    door: Arc<Doorstep>,
    commands: Receiver<Command>,
    reports: Reports,
    queues: Queues,
    mux: Muxer,
    links: Links,
    state: PartitionState,
    /// Requests that the core has not answered.
    asked: usize,
    /// Links without bytes for the guest, that were not asked to tell yet.
    idle: Vec<usize>,
    chain: Chain,
    look: Duration,
    may_look: bool,
    bad_chains_told: u64,
    stopping: bool,
}

impl Worker {
    pub(super) fn new(
        settings: VmSettings,
        commands: Receiver<Command>,
        reports: Reports,
    ) -> io::Result<Self> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKE)?);
        let door = Arc::new(Doorstep::new(Arc::clone(&waker)));
        let links = Links::new(poll.registry().try_clone()?, Arc::clone(&door));
        let config = Config {
            max_connections: settings.max_connections,
            ..Config::new(settings.cid)
        };
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Self {
            settings,
            poll,
            waker,
            door,
            commands,
            reports,
            queues: Queues::default(),
            mux: Muxer::new(config),
            links,
            state: PartitionState::Off,
            asked: 0,
            idle: Vec::new(),
            chain: Chain::default(),
            look: Duration::ZERO,
            may_look: processors > 1,
            bad_chains_told: 0,
            stopping: false,
        })
    }

    pub(super) fn waker(&self) -> Arc<Waker> {
        Arc::clone(&self.waker)
    }

    /// Runs until it is told to stop.
    pub(super) fn run(mut self) {
        let mut events = Events::with_capacity(256);
        let mut awake = true;
        while !self.stopping {
            let timeout = if awake {
                Some(Duration::ZERO)
            } else {
                self.timeout()
            };
            let slept = Instant::now();
            match self.poll.poll(&mut events, timeout) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                // epoll_wait fails otherwise only for a descriptor that is not an epoll.
                Err(_) => break,
            }
            let now = Instant::now();
            if !awake {
                self.woken(now.duration_since(slept));
            }
            for event in &events {
                match event.token() {
                    WAKE => self.obey(now),
                    token if Links::owns(token) => {
                        if let Some(place) = self.links.note(event) {
                            self.links.attend(place, &mut self.mux, now);
                        }
                    }
                    _ => {}
                }
            }
            self.mux.handle_timeout(now);
            // Between two looks at the descriptors, so many turns that the looks cost little.
            for _ in 0..16 {
                awake = self.turn(now);
                if !awake {
                    break;
                }
            }
            if !awake {
                awake = self.look_on() || self.fall_asleep();
            }
        }
        let refusal = Refusal::Reset {
            cause: "the broker has stopped".into(),
        };
        for place in self.links.places() {
            self.links.reset(place, &mut self.mux, &refusal);
        }
        self.report();
    }

    fn timeout(&self) -> Option<Duration> {
        let at = self.mux.poll_timeout()?;
        Some(at.saturating_duration_since(Instant::now()))
    }

    /// Learns from how long it slept whether to look on longer before the next time.
    fn woken(&mut self, slept: Duration) {
        if slept < SHORT_SLEEP {
            self.look = (self.look * 2).clamp(Duration::from_micros(2), MAX_LOOK);
        } else {
            self.look /= 2;
        }
        for queue in [RX, TX] {
            if let Err(fault) = self.queues.refuse_kicks(queue) {
                self.fault(queue, fault);
            }
        }
    }

    /// One round; whether something was done.
    fn turn(&mut self, now: Instant) -> bool {
        let mut busy = false;
        match self.take_packets() {
            Ok(moved) => busy |= moved,
            Err(fault) => self.fault(TX, fault),
        }
        busy |= self.links.hear_out(&mut self.mux, now);
        busy |= self.happened();
        busy |= self.look_at_links();
        match self.give_packets(now) {
            Ok(moved) => busy |= moved,
            Err(fault) => self.fault(RX, fault),
        }
        if let Err((queue, fault)) = self.queues.publish() {
            self.fault(queue, fault);
        }
        self.report();
        busy
    }

    /// Takes packets of the tx queue.
    fn take_packets(&mut self) -> Result<bool, QueueFault> {
        let mut taken = 0;
        while taken < TURN && self.mux.may_receive() && self.asked < MAX_ASKED {
            if !self.queues.peek(TX, &mut self.chain)? {
                break;
            }
            taken += 1;
            let mut raw = [0; HEADER_LEN];
            let ram = &self.queues.ram;
            let is_read = match self.chain.readable() {
                [first, ..] if first.len as usize >= HEADER_LEN => {
                    ram.read(first.address, &mut raw)
                }
                segments => ram.read_pieces(segments, &mut raw),
            };
            if is_read {
                let header = Header::decode(&raw);
                let payload = self.chain.readable_len() as usize - HEADER_LEN;
                let received = self.mux.handle_packet(&header, payload);
                if let Received::Payload { handle, len, end } = received {
                    self.deliver(handle, len, end);
                }
                // In order: what a packet brings about comes before the next one's bytes.
                while let Some(event) = self.mux.poll_event() {
                    self.on_event(event);
                }
            }
            self.queues.take(TX, &self.chain, 0)?;
        }
        Ok(taken > 0)
    }

    /// Hands bytes of the guest's on.
    fn deliver(&mut self, handle: Handle, len: usize, end: MessageEnd) {
        let Some(place) = self.links.place_of(handle) else {
            self.mux.reset(handle);
            return;
        };
        let mut pieces: Vec<SharedBytes<'_>> = Vec::with_capacity(4);
        let segments = self.chain.readable();
        if !self
            .queues
            .ram
            .gather(segments, HEADER_LEN, len, &mut pieces)
        {
            let cause = "the guest sent bytes that are not in its memory".into();
            let refusal = Refusal::Reset { cause };
            return self.links.reset(place, &mut self.mux, &refusal);
        }
        let Some(link) = self.links.at(place) else {
            return;
        };
        match link.body.deliver(&pieces, len, end) {
            Ok(()) => {}
            Err(NotTaken::ReadsNoMore) => return self.links.reads_no_more(place, &mut self.mux),
            Err(NotTaken::TooManyMessages) => {
                let which = "messages that wait for a sibling".into();
                let refusal = Refusal::LimitReached { which };
                return self.links.reset(place, &mut self.mux, &refusal);
            }
        }
        link.count_delivered(len);
        self.links.watch_room(place, &self.mux);
    }

    /// Gives packets to the rx queue.
    fn give_packets(&mut self, now: Instant) -> Result<bool, QueueFault> {
        let mut given = 0;
        while given < TURN && self.mux.has_transmit() {
            if !self.queues.peek(RX, &mut self.chain)? {
                break;
            }
            given += 1;
            let room = self.chain.writable_len() as usize - HEADER_LEN;
            match self.mux.poll_transmit(room) {
                None => {
                    // A buffer for a header only, and nothing but data: it is of no use.
                    if room == 0 {
                        self.queues.take(RX, &self.chain, 0)?;
                        continue;
                    }
                    break;
                }
                Some(Transmit::Packet(header)) => self.put(&header, 0)?,
                Some(Transmit::Data { handle, max, .. }) => match self.fill(handle, max, now) {
                    Some(header) => self.put(&header, header.len)?,
                    None => continue,
                },
            }
        }
        Ok(given > 0)
    }

    /// Writes a header in front of `len` bytes that are there, and gives the chain back.
    fn put(&mut self, header: &Header, len: u32) -> Result<(), QueueFault> {
        let raw = header.encode();
        let ram = &self.queues.ram;
        let is_written = match self.chain.writable() {
            [first, ..] if first.len as usize >= HEADER_LEN => ram.write(first.address, &raw),
            segments => ram.write_pieces(segments, &raw),
        };
        // A buffer outside of its own memory is the guest's own loss.
        let written = if is_written {
            HEADER_LEN as u32 + len
        } else {
            0
        };
        self.queues.take(RX, &self.chain, written)
    }

    /// Puts bytes for the guest into the chain; their header, if there were any.
    fn fill(&mut self, handle: Handle, max: usize, now: Instant) -> Option<Header> {
        let place = self.links.place_of(handle).filter(|place| {
            let link = self.links.at(*place);
            link.is_some_and(|link| link.may_fill())
        });
        let Some(place) = place else {
            self.mux.nothing_to_send(handle);
            return None;
        };
        let mut pieces: Vec<SharedBytes<'_>> = Vec::with_capacity(4);
        let segments = self.chain.writable();
        if !self
            .queues
            .ram
            .gather(segments, HEADER_LEN, max, &mut pieces)
        {
            let cause = "the guest gave a buffer that is not in its memory".into();
            let refusal = Refusal::Reset { cause };
            self.links.reset(place, &mut self.mux, &refusal);
            return None;
        }
        let link = self.links.at(place)?;
        let in_messages = link.in_messages;
        let (body, control) = link.parts();
        match body.fill(&pieces, in_messages, control) {
            Filled::Bytes(0, end, _) if !end.message => None,
            Filled::Bytes(count, end, more) => {
                link.count_filled(count);
                if !more {
                    self.watch_for_bytes(place);
                }
                self.mux.sent(handle, count, end, more)
            }
            Filled::Empty => {
                self.mux.nothing_to_send(handle);
                self.watch_for_bytes(place);
                None
            }
            Filled::Ended => {
                self.mux.nothing_to_send(handle);
                self.links.ended(place, &mut self.mux, now);
                None
            }
            Filled::Broken(refusal) => {
                self.links.reset(place, &mut self.mux, &refusal);
                None
            }
        }
    }

    fn watch_for_bytes(&mut self, place: usize) {
        if let Some(link) = self.links.at(place)
            && !link.idle
        {
            link.idle = true;
            self.idle.push(place);
        }
    }

    /// Looks at links that have had nothing, or no room, whether they have some; whether one has.
    fn look_at_links(&mut self) -> bool {
        let mut found = false;
        if self.idle.len() > MAX_WATCHED {
            found |= self.arm_idle();
        }
        let mut index = 0;
        while let Some(&place) = self.idle.get(index) {
            let link = self.links.at(place);
            let is_done = match link {
                Some(link) if link.body.has_more() => {
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
        found | self.links.look_for_room(&mut self.mux)
    }

    /// Has links tell when they have bytes; whether one has some already.
    fn arm_idle(&mut self) -> bool {
        let mut found = false;
        for place in std::mem::take(&mut self.idle) {
            let Some(link) = self.links.at(place) else {
                continue;
            };
            link.idle = false;
            if !link.body.arm() {
                if let Some(handle) = link.handle {
                    self.mux.readable(handle);
                }
                found = true;
            }
        }
        found
    }

    /// Looks on for a moment; whether something has come.
    fn look_on(&mut self) -> bool {
        if !self.may_look || self.look.is_zero() {
            return false;
        }
        let until = Instant::now() + self.look;
        loop {
            for _ in 0..8 {
                if self.may_take() && self.queues.has_available(TX)
                    || self.mux.has_transmit() && self.queues.has_available(RX)
                    || self.look_at_links()
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

    fn may_take(&self) -> bool {
        self.mux.may_receive() && self.asked < MAX_ASKED
    }

    /// Asks to be woken; whether there is something to do already.
    fn fall_asleep(&mut self) -> bool {
        let mut found = self.arm_idle();
        found |= self.links.arm_room(&mut self.mux);
        if self.may_take() {
            match self.queues.ask_for_kicks(TX) {
                Ok(available) => found |= available,
                Err(fault) => self.fault(TX, fault),
            }
        }
        if self.mux.has_transmit() {
            match self.queues.ask_for_kicks(RX) {
                Ok(available) => found |= available,
                Err(fault) => self.fault(RX, fault),
            }
        }
        found
    }

    /// Takes note of what has happened on connections; whether anything has.
    fn happened(&mut self) -> bool {
        let mut any = false;
        while let Some(event) = self.mux.poll_event() {
            self.on_event(event);
            any = true;
        }
        any
    }

    fn on_event(&mut self, event: Happened) {
        match event {
            Happened::Request { handle, key } => {
                self.asked += 1;
                self.tell(VmNews::Request { handle, key });
            }
            Happened::Connected { handle } => self.links.connected(handle, &mut self.mux),
            Happened::Finished { handle } => self.links.guest_finished(handle),
            Happened::ClosedRead { handle } => self.links.guest_closed_read(handle),
            Happened::Closed { handle, reason } => self.links.closed(handle, reason),
        }
    }

    /// Carries commands out.
    fn obey(&mut self, now: Instant) {
        for connection in self.door.take() {
            if let Some(place) = self.links.place_of_id(connection) {
                self.links.attend(place, &mut self.mux, now);
            }
        }
        loop {
            match self.commands.try_recv() {
                Ok(command) => self.command(command, now),
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => {
                    self.stopping = true;
                    return;
                }
            }
        }
    }

    fn command(&mut self, command: Command, now: Instant) {
        match command {
            Command::Accept { handle, linked } => {
                self.asked = self.asked.saturating_sub(1);
                self.accept(handle, linked, now);
            }
            Command::Refuse { handle } => {
                self.asked = self.asked.saturating_sub(1);
                self.mux.refuse(handle);
            }
            Command::Connect {
                key,
                linked,
                timeout,
            } => {
                let id = linked.connection;
                match self.mux.connect(now, key, linked.alloc, timeout) {
                    Ok(handle) => {
                        let place = self.links.insert(handle, key.kind, linked, false);
                        if let Err(error) = self.links.watch(place, None) {
                            self.unwatchable(place, &error);
                        }
                    }
                    Err(error) => {
                        let which = error.to_string();
                        let refusal = Refusal::LimitReached { which };
                        linked.refuse(&refusal);
                        if linked.reports {
                            self.tell(VmNews::Failed(id, refusal));
                        }
                    }
                }
            }
            Command::Establish {
                connection,
                control,
            } => {
                let Some(place) = self.links.place_of_id(connection) else {
                    return;
                };
                if let Err(error) = self.links.watch(place, Some(control)) {
                    self.unwatchable(place, &error);
                }
                self.links.attend(place, &mut self.mux, now);
            }
            Command::Cut {
                connection,
                refusal,
            } => {
                if let Some(place) = self.links.place_of_id(connection) {
                    self.links.reset(place, &mut self.mux, &refusal);
                }
            }
            Command::Suspend {
                connection,
                suspended,
            } => self.links.suspend(connection, suspended, &mut self.mux),
            Command::Vmm(order, answer) => {
                let has_gone = matches!(order, Order::Gone);
                let done = self.queues.obey(order, self.poll.registry(), KICKS);
                self.note_state(has_gone);
                // A VMM that has gone in the meantime needs no answer.
                let _ = answer.send(done);
            }
            Command::Stop => self.stopping = true,
        }
    }

    fn accept(&mut self, handle: Handle, mut linked: Linked, now: Instant) {
        let Some(key) = self.mux.key(handle) else {
            // The guest has thought better of it.
            let cause = "the guest gave the connection up".into();
            let refusal = Refusal::Reset { cause };
            linked.refuse(&refusal);
            if linked.reports {
                self.reports.send(Report::Closed {
                    connection: linked.connection,
                    reason: Some(refusal),
                });
            }
            return;
        };
        let control = linked.control.take();
        let is_process = control.is_some();
        let alloc = linked.alloc;
        let place = self.links.insert(handle, key.kind, linked, is_process);
        if is_process {
            self.mux.accept(handle, alloc);
        }
        if let Err(error) = self.links.watch(place, control) {
            return self.unwatchable(place, &error);
        }
        self.links.attend(place, &mut self.mux, now);
    }

    fn unwatchable(&mut self, place: usize, error: &io::Error) {
        let which = format!("descriptors watched by the broker ({error})");
        let refusal = Refusal::LimitReached { which };
        self.links.reset(place, &mut self.mux, &refusal);
    }

    /// Follows what the VMM did with the queues.
    fn note_state(&mut self, has_gone: bool) {
        if has_gone {
            // Else they would hear that the guest has restarted.
            for place in self.links.places() {
                self.links
                    .reset(place, &mut self.mux, &Refusal::PartitionOff);
            }
        }
        if self.queues.take_began_anew() {
            self.mux.forget_all();
            self.happened();
        }
        let state = match (self.queues.are_running(), self.state) {
            (true, _) => PartitionState::Running,
            (false, PartitionState::Off) => PartitionState::Off,
            (false, _) if has_gone => PartitionState::Off,
            (false, _) => PartitionState::Paused,
        };
        if state != self.state {
            self.state = state;
            self.tell(VmNews::State(state));
        }
    }

    /// A queue whose rings cannot be believed stands still until the driver begins anew.
    fn fault(&mut self, queue: usize, fault: QueueFault) {
        self.queues.give_up(queue);
        let name = if queue == RX { "rx" } else { "tx" };
        self.tell(VmNews::Fault(format!(
            "the guest's {name} queue is given up until its driver begins anew: {fault}"
        )));
    }

    fn tell(&self, news: VmNews) {
        self.reports.send(Report::Vm {
            partition: self.settings.partition,
            news,
        });
    }

    fn report(&mut self) {
        let partition = self.settings.partition;
        let (reports, news) = self.links.drain();
        for report in reports {
            self.reports.send(report);
        }
        for news in news {
            self.reports.send(Report::Vm { partition, news });
        }
        if self.bad_chains_told == 0 && self.queues.bad_chains > 0 {
            self.bad_chains_told = self.queues.bad_chains;
            self.tell(VmNews::Fault(
                "the guest's driver makes wrong chains of descriptors available; they are given \
                 back unused"
                    .into(),
            ));
        }
    }
}
