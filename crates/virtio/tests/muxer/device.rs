//! The owner of a muxer, as a broker is one, with byte queues as links.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use hvsock_virtio::{
    Cid, Closed, Config, Event, Handle, Key, MessageEnd, Operation, Received, SocketKind, Transmit,
};

use crate::flows::{Direction, Flows, Packet};
use crate::recorded::Recorded;

/// A connection's link: the data buffered in each direction.
#[derive(Debug)]
pub struct Link {
    pub flow: usize,
    pub key: Key,
    /// Bytes for the guest, message by message.
    to_guest: VecDeque<(VecDeque<u8>, MessageEnd)>,
    /// Data from the guest that is unread.
    from_guest: VecDeque<(Vec<u8>, MessageEnd)>,
    alloc: u32,
    pub is_open: bool,
    /// Half-close when everything for the guest is sent.
    pub finish: bool,
    pub close: bool,
    pub has_shut_read: bool,
    pub guest_reads_no_more: bool,
    pub is_closing: bool,
}

#[derive(Debug)]
pub struct Device {
    pub muxer: Recorded,
    pub links: BTreeMap<usize, Link>,
    pub handles: BTreeMap<usize, Handle>,
    /// Requests that are not answered yet.
    pub requests: VecDeque<(usize, Handle)>,
    /// Buffer size of later links, in bytes.
    pub alloc: u32,
    /// How connections ended.
    pub closed: Vec<(usize, Closed)>,
    close_timeout: Duration,
}

impl Device {
    pub fn new(config: Config, first_count: u32, now: Instant) -> Self {
        Self {
            close_timeout: config.close_timeout,
            muxer: Recorded::new(config, first_count, now),
            links: BTreeMap::new(),
            handles: BTreeMap::new(),
            requests: VecDeque::new(),
            alloc: 64 * 1024,
            closed: Vec::new(),
        }
    }

    fn add(&mut self, flow: usize, key: Key, handle: Handle) {
        let link = Link {
            flow,
            key,
            to_guest: VecDeque::new(),
            from_guest: VecDeque::new(),
            alloc: self.alloc,
            is_open: false,
            finish: false,
            close: false,
            has_shut_read: false,
            guest_reads_no_more: false,
            is_closing: false,
        };
        self.links.insert(flow, link);
        assert!(
            self.handles
                .values()
                .all(|other| other.index() != handle.index())
        );
        self.handles.insert(flow, handle);
    }

    // Actions of the programs behind the links.

    pub fn connect(&mut self, now: Instant, flow: usize, key: Key, timeout: Duration) -> bool {
        match self.muxer.connect(now, key, self.alloc, timeout) {
            Ok(handle) => {
                self.add(flow, key, handle);
                true
            }
            Err(_) => false,
        }
    }

    pub fn answer(&mut self, flows: &mut Flows, which: usize, accept: bool) {
        if self.requests.is_empty() {
            return;
        }
        let which = which % self.requests.len();
        let (flow, handle) = self.requests.remove(which).expect("within");
        if accept {
            let alloc = self.links[&flow].alloc;
            self.muxer.accept(handle, alloc);
            self.links.get_mut(&flow).expect("requested").is_open = true;
        } else {
            self.muxer.refuse(handle);
            self.forget(flows, flow);
        }
    }

    /// Writes bytes, or one message of at most `longest`.
    pub fn write(
        &mut self,
        flows: &mut Flows,
        flow: usize,
        len: usize,
        record: bool,
        longest: usize,
    ) {
        let Some(link) = self.links.get_mut(&flow) else {
            return;
        };
        let buffered: usize = link.to_guest.iter().map(|(bytes, _)| bytes.len()).sum();
        let is_shut = link.finish || link.close || link.is_closing || link.guest_reads_no_more;
        if !link.is_open || is_shut || buffered > 512 * 1024 {
            return;
        }
        let (len, end) = match link.key.kind {
            SocketKind::Stream => (len, MessageEnd::default()),
            SocketKind::Seqpacket => (
                len.min(longest),
                MessageEnd {
                    message: true,
                    record,
                },
            ),
        };
        let bytes = flows.write(flow, Direction::ToGuest, len, end);
        link.to_guest.push_back((bytes.into(), end));
        self.muxer.readable(self.handles[&flow]);
    }

    pub fn read(&mut self, flows: &mut Flows, flow: usize, limit: usize) -> usize {
        let Some(link) = self.links.get_mut(&flow) else {
            return 0;
        };
        let mut total = 0;
        while let Some((mut bytes, end)) = link.from_guest.pop_front() {
            if bytes.len() > limit - total {
                let rest = bytes.split_off(limit - total);
                flows.read(flow, Direction::ToDevice, &bytes, MessageEnd::default());
                total = limit;
                link.from_guest.push_front((rest, end));
                break;
            }
            flows.read(flow, Direction::ToDevice, &bytes, end);
            total += bytes.len();
        }
        if let Some(handle) = self.handles.get(&flow)
            && total > 0
        {
            self.muxer.freed(*handle, total as u32);
        }
        total
    }

    /// Half-closes it once everything for the guest is sent.
    pub fn finish(&mut self, now: Instant, flows: &mut Flows, flow: usize) {
        if let Some(link) = self.links.get_mut(&flow)
            && link.is_open
            && !link.close
        {
            link.finish = true;
            flows.stream(flow, Direction::ToGuest).is_finished = true;
            self.finish_if_empty(now, flow);
        }
    }

    pub fn close_read(&mut self, flows: &mut Flows, flow: usize) {
        if let Some(link) = self.links.get_mut(&flow)
            && link.is_open
        {
            link.has_shut_read = true;
            flows.abort(flow);
            self.muxer.close_read(self.handles[&flow]);
        }
    }

    /// Closes it once everything for the guest is sent.
    pub fn close(&mut self, now: Instant, flows: &mut Flows, flow: usize) {
        if let Some(link) = self.links.get_mut(&flow)
            && link.is_open
        {
            link.close = true;
            if !flows.is_over(flow, Direction::ToDevice) {
                flows.abort(flow);
            }
            flows.stream(flow, Direction::ToGuest).is_finished = true;
            self.finish_if_empty(now, flow);
        }
    }

    pub fn reset(&mut self, flows: &mut Flows, flow: usize) {
        if let Some(handle) = self.handles.get(&flow) {
            self.muxer.reset(*handle);
            self.requests.retain(|(requested, _)| *requested != flow);
            self.forget(flows, flow);
        }
    }

    fn forget(&mut self, flows: &mut Flows, flow: usize) {
        flows.abort(flow);
        self.handles.remove(&flow);
        self.links.remove(&flow);
    }

    fn finish_if_empty(&mut self, now: Instant, flow: usize) {
        let Some(link) = self.links.get_mut(&flow) else {
            return;
        };
        if !link.to_guest.is_empty() && !link.guest_reads_no_more {
            return;
        }
        let handle = self.handles[&flow];
        if link.close && !link.is_closing {
            link.is_closing = true;
            self.muxer.close(now, handle);
            let within = now + self.close_timeout;
            let is_timed = self.muxer.poll_timeout().is_some_and(|at| at <= within);
            assert!(is_timed || self.muxer.key(handle).is_none());
        } else if link.finish {
            self.muxer.finish(handle);
        }
    }

    // Packets.

    pub fn receive(&mut self, now: Instant, flows: &mut Flows, packet: &Packet) {
        let received = self
            .muxer
            .handle_packet(&packet.header, packet.payload.len());
        if let Received::Payload { handle, len, end } = received {
            let flow = self.flow_of(handle);
            let link = self.links.get_mut(&flow).expect("payload of a link");
            assert!(
                !link.has_shut_read && !link.is_closing,
                "payload after close_read"
            );
            let buffered: usize = link.from_guest.iter().map(|(bytes, _)| bytes.len()).sum();
            assert!(
                buffered + len <= link.alloc as usize,
                "the link has no free space"
            );
            link.from_guest
                .push_back((packet.payload[..len].to_vec(), end));
        }
        self.take_events(now, flows, packet.flow);
    }

    pub fn handle_timeout(&mut self, now: Instant, flows: &mut Flows) {
        self.muxer.handle_timeout(now);
        self.take_events(now, flows, None);
    }

    pub fn take_events(&mut self, now: Instant, flows: &mut Flows, requested: Option<usize>) {
        while let Some(event) = self.muxer.poll_event() {
            match event {
                Event::Request { handle, key } => {
                    let flow = requested.expect("a Request event follows a REQUEST");
                    self.add(flow, key, handle);
                    self.requests.push_back((flow, handle));
                }
                Event::Connected { handle } => {
                    let flow = self.flow_of(handle);
                    self.links.get_mut(&flow).expect("connected").is_open = true;
                }
                Event::Finished { handle } => {
                    let flow = self.flow_of(handle);
                    if !self.links[&flow].has_shut_read {
                        self.read(flows, flow, usize::MAX);
                        flows.end(flow, Direction::ToDevice);
                    }
                }
                Event::ClosedRead { handle } => {
                    let flow = self.flow_of(handle);
                    let link = self.links.get_mut(&flow).expect("a link");
                    link.guest_reads_no_more = true;
                    if !link.to_guest.is_empty() {
                        flows.abort(flow);
                    }
                    self.finish_if_empty(now, flow);
                }
                Event::Closed { handle, reason } => {
                    let flow = self.flow_of(handle);
                    let is_fault = matches!(
                        reason,
                        Closed::CreditViolation | Closed::CreditOverrun | Closed::Protocol(_)
                    );
                    assert!(!is_fault, "flow {flow}: {reason}");
                    self.closed.push((flow, reason));
                    self.requests.retain(|(requested, _)| *requested != flow);
                    let link = self.links.get_mut(&flow).expect("a link");
                    match reason {
                        Closed::Refused => assert!(!link.is_open),
                        Closed::TimedOut => assert!(!link.is_open || link.is_closing),
                        _ => {}
                    }
                    if !link.to_guest.is_empty() || reason != Closed::Clean {
                        flows.abort(flow);
                    }
                    self.read(flows, flow, usize::MAX);
                    self.links.remove(&flow);
                    self.handles.remove(&flow);
                }
            }
        }
    }

    /// The next packet, for a buffer with `space` bytes of data.
    pub fn transmit(&mut self, now: Instant, space: usize) -> Option<Packet> {
        loop {
            match self.muxer.poll_transmit(space)? {
                Transmit::Packet(header) => {
                    let is_request = header.operation() == Some(Operation::Request);
                    let named = |(_, link): &(&usize, &Link)| {
                        let key = link.key;
                        (key.guest_port, key.peer, key.peer_port, key.kind as u16)
                            == (
                                header.dst_port,
                                Cid(header.src_cid),
                                header.src_port,
                                header.kind,
                            )
                    };
                    let flow = self.links.iter().find(named).map(|(flow, _)| *flow);
                    let flow = flow.filter(|_| is_request);
                    assert_eq!(is_request, flow.is_some());
                    let payload = Vec::new();
                    return Some(Packet {
                        header,
                        payload,
                        flow,
                    });
                }
                Transmit::Data { handle, max, kind } => {
                    assert!(max > 0 && max <= space);
                    let flow = self.flow_of(handle);
                    let link = self.links.get_mut(&flow).expect("a link");
                    assert_eq!(link.key.kind, kind);
                    let Some((payload, end)) = link.take(max) else {
                        self.muxer.nothing_to_send(handle);
                        continue;
                    };
                    let more = !link.to_guest.is_empty();
                    let header = self.muxer.sent(handle, payload.len(), end, more);
                    let header = header.expect("the connection exists");
                    if !more {
                        self.finish_if_empty(now, flow);
                    }
                    return Some(Packet {
                        header,
                        payload,
                        flow: None,
                    });
                }
            }
        }
    }

    fn flow_of(&self, handle: Handle) -> usize {
        let found = self.handles.iter().find(|(_, known)| **known == handle);
        *found.expect("a handle that the owner has").0
    }
}

impl Link {
    fn take(&mut self, max: usize) -> Option<(Vec<u8>, MessageEnd)> {
        let mut taken = Vec::new();
        while let Some((bytes, end)) = self.to_guest.front_mut() {
            let len = bytes.len().min(max - taken.len());
            taken.extend(bytes.drain(..len));
            if !bytes.is_empty() {
                break;
            }
            let end = *end;
            self.to_guest.pop_front();
            if self.key.kind == SocketKind::Seqpacket && end.message {
                return Some((taken, end));
            }
        }
        (!taken.is_empty()).then_some((taken, MessageEnd::default()))
    }

    pub fn is_drained(&self) -> bool {
        self.to_guest.is_empty() && self.from_guest.is_empty()
    }
}
