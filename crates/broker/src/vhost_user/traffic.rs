//! The traffic of one VM: packets between the guest's queues, the vsock protocol's state and the links to
//! the connections' peers.
//!
//! Every method does a bounded amount of work and blocks on nothing. When they are called, and when the
//! data thread waits, is the event loop's decision.

pub(super) mod snapshot;

use std::collections::HashMap;
use std::time::Instant;

use hvsock_fabric::Refusal;
use hvsock_virtio::queue::{Chain, GuestMemory, QueueFault};
use hvsock_virtio::{
    self as virtio, Cid, Event as MuxerEvent, HEADER_LEN, Handle, Header, Key, Muxer, Received,
    Transmit,
};

use super::links::{Links, MAX_WATCHED};
use super::memory::Chunks;
use super::queues::{Queues, RX, TX};
use super::reports::Reports;
use super::transport_reset::TransportReset;
use crate::guest_link::{
    DeliverError, Destination, FillOutcome, GuestArena, GuestRequest, LinkEvent, MessageEnd,
    RequestId, Service, SocketKind,
};

/// Packets processed in one direction before the other direction gets its turn.
const BATCH: usize = 128;
/// Bytes of data in one direction that are written to the rx queue before they are published, so that the
/// guest reads them while the next ones are written.
const PUBLISH: usize = 16 * 1024;
/// The most requests of the guest that may await the core's answer. With that many the thread
/// stops reading the tx queue (backpressure).
const MAX_PENDING_REQUESTS: usize = 256;

/// The state of a VM's queues and connections.
pub(super) struct Traffic {
    pub(super) queues: Queues,
    pub(super) mux: Muxer,
    pub(super) links: Links,
    pub(super) reports: Reports,
    pub(super) transport_reset: TransportReset,
    /// Requests that the core has not answered.
    pub(super) requests: HashMap<RequestId, Handle>,
    next_request: u64,
    /// The last request of the guest's driver before this one.
    last_of_past_driver: RequestId,
    /// Links without bytes for the guest that are polled and not armed for a wakeup.
    idle: Vec<usize>,
    chain: Chain,
    invalid_chains_reported: u64,
    /// Links of another process whose connections the core does not know, until the thread begins.
    unknown: Vec<usize>,
    /// The requests are those of another process: the core gets them again when the thread begins.
    asks_again: bool,
}

impl Traffic {
    /// No queue is set up, and there are no connections.
    pub(super) fn new(mux: Muxer, links: Links, reports: Reports) -> Self {
        Self {
            queues: Queues::default(),
            mux,
            links,
            reports,
            transport_reset: TransportReset::default(),
            requests: HashMap::new(),
            next_request: 0,
            last_of_past_driver: RequestId(0),
            idle: Vec::new(),
            chain: Chain::default(),
            invalid_chains_reported: 0,
            unknown: Vec::new(),
            asks_again: false,
        }
    }

    /// Goes on with the same queues and without connections, whatever the state was.
    pub(super) fn begin_again(&mut self, mux: Muxer, links: Links) {
        let reports = Reports::new(self.reports.events().clone());
        let queues = std::mem::take(&mut self.queues);
        let next_request = self.next_request;
        *self = Self {
            queues,
            next_request,
            // The core may still answer those before.
            last_of_past_driver: RequestId(next_request),
            ..Self::new(mux, links, reports)
        };
    }

    /// Receives up to [`BATCH`] packets from the tx queue. Returns whether there were any.
    pub(super) fn process_tx(&mut self) -> Result<bool, QueueFault> {
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
            return self.reset(slot, &refusal);
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
                return self.reset(slot, &refusal);
            }
        }
        link.count_delivered(len);
        self.links.watch_credit(slot, &self.mux);
    }

    /// Writes up to [`BATCH`] packets to the rx queue. Returns whether there were any.
    pub(super) fn process_rx(&mut self, now: Instant) -> Result<bool, QueueFault> {
        let mut left = BATCH;
        while left > 0 && self.may_transmit() {
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
                self.reset(slot, &refusal);
            }
            RunEnd::Stopped(FillOutcome::Failed(refusal)) => {
                self.reset(slot, &refusal);
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
    pub(super) fn watch_idle(&mut self, slot: usize) {
        if let Some(link) = self.links.at(slot)
            && !link.idle
        {
            link.idle = true;
            self.idle.push(slot);
        }
    }

    /// Polls the idle links for bytes and the links with low credit for free space. Returns
    /// whether one has some. With more than [`MAX_WATCHED`] of them it arms them instead.
    pub(super) fn poll_links(&mut self) -> bool {
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
    pub(super) fn arm_idle_links(&mut self) -> bool {
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

    /// Whether packets of the guest may be read from the tx queue.
    pub(super) fn may_receive(&self) -> bool {
        self.mux.may_receive() && self.requests.len() < MAX_PENDING_REQUESTS
    }

    /// Whether there is a packet that may be sent to the guest.
    pub(super) fn may_transmit(&self) -> bool {
        self.mux.has_transmit() && !self.transport_reset.holds_packets()
    }

    /// Drains the muxer's events. Returns whether there were any.
    pub(super) fn process_events(&mut self) -> bool {
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
    pub(super) fn accept_in_arena(&mut self, handle: Handle, key: &Key) -> bool {
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

    /// Updates a link after a notification.
    pub(super) fn update(&mut self, slot: usize, now: Instant) {
        self.links.update(slot, &mut self.mux, now);
    }

    /// Resets a link's connection and reports the refusal to both ends.
    pub(super) fn reset(&mut self, slot: usize, refusal: &Refusal) {
        self.links.reset(slot, &mut self.mux, refusal);
    }

    /// Resets the connections that are established and reports the refusal to both ends.
    pub(super) fn reset_established(&mut self, refusal: &Refusal) {
        for slot in self.links.established() {
            self.reset(slot, refusal);
        }
    }

    /// Opens connections in an arena from now on, unless the driver of the request that it is made for is gone:
    /// the core is about to end all arenas of that driver, also with what the next one has opened in them.
    pub(super) fn open_arena(&mut self, arena: GuestArena, request: RequestId) {
        let opened = match request <= self.last_of_past_driver {
            true => Err((arena, Refusal::NoDriver)),
            false => self.links.arenas.add(arena).map_err(|(arena, error)| {
                let which = format!("arenas of one guest ({error})");
                (arena, Refusal::LimitReached { which })
            }),
        };
        if let Err((arena, refusal)) = opened {
            arena.end(&refusal);
            self.send(LinkEvent::ArenaEnded(arena.id()));
        }
    }

    /// Ends all arenas and resets their connections. Those that the core makes for earlier requests are
    /// [not opened](Self::open_arena) any more.
    pub(super) fn close_arenas(&mut self, refusal: &Refusal) {
        self.last_of_past_driver = RequestId(self.next_request);
        for arena in self.links.arenas.ids() {
            self.links.close_arena(arena, refusal, &mut self.mux);
        }
    }

    /// Sends an event to the core, after those of the links.
    pub(super) fn send(&mut self, event: LinkEvent) {
        self.reports.send(self.links.drain().chain([event]));
    }

    /// Stops a queue whose rings are invalid until the driver is reset.
    pub(super) fn fault(&mut self, queue: usize, fault: QueueFault) {
        self.queues.mark_broken(queue);
        let name = match queue {
            RX => "rx",
            TX => "tx",
            _ => "event",
        };
        self.send(LinkEvent::Fault(format!(
            "the guest's {name} queue is stopped until its driver is reset: {fault}"
        )));
    }

    /// Sends the events of the links to the core, and the first invalid chain of the guest.
    pub(super) fn report(&mut self) {
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
pub(super) fn request_of(key: &Key) -> GuestRequest {
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
