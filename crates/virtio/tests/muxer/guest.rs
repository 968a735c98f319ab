//! A guest: a simple model of Linux's driver, independent of the code under test.
//!
//! It behaves like the driver:
//!
//! - It waits 8 seconds for a close and 2 for a connect.
//! - It sends a CREDIT_UPDATE when less than 64 KiB of advertised space are left, or nothing is unread.
//! - It answers unknown packets with RST.
//! - It sends a message in chunks as credit allows.
//! - It removes a socket from its table once the peer has shut down both directions.
//! - It resets a connection whose packets cost more than its buffer.
//!
//! Where Linux would reset a connection for a fault of the device, the model fails the test.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use hvsock_virtio::{Header, MessageEnd, Operation, SocketKind, message, shutdown};

use crate::flows::{Direction, Flows, Packet};

pub const CID: u64 = 42;

/// Memory that Linux charges for a packet besides its bytes (`SKB_TRUESIZE(0)`).
const PACKET_COST: usize = 576;
const MAX_PACKET: u32 = 64 * 1024;

/// A connection's key on the guest's side: own port, peer, peer's port, type.
pub type Name = (u32, u64, u32, u16);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Connecting,
    Established,
    /// The program closed it; the driver waits for RST.
    Closing,
    /// Reset, or shut down by the device in both directions; the program may still read.
    Done,
}

#[derive(Debug)]
pub struct Socket {
    pub flow: usize,
    pub name: Name,
    pub state: State,
    unread: VecDeque<(Vec<u8>, u32)>,
    buffer: u32,
    unread_bytes: u32,
    fwd_cnt: u32,
    advertised_fwd_cnt: u32,
    tx_cnt: u32,
    peer_alloc: u32,
    peer_fwd_cnt: u32,
    pub own_shut: u32,
    pub peer_shut: u32,
    deadline: Option<Instant>,
    /// The rest of a write that waits for credit.
    blocked: Option<(u32, MessageEnd)>,
    /// In the table: packets are dispatched to it.
    is_listed: bool,
    /// A later socket has used its name. Linux would still send this one's CREDIT_UPDATE and RST, which
    /// would hit the later one; no device can prevent that.
    is_succeeded: bool,
}

#[derive(Debug)]
pub struct Guest {
    pub sockets: BTreeMap<usize, Socket>,
    /// Packets on their way to the tx queue.
    pub outgoing: VecDeque<Packet>,
    pub accepts: bool,
    /// Buffer size of later sockets, in bytes.
    pub buffer: u32,
    first_count: u32,
    retired: BTreeSet<Name>,
}

impl Guest {
    pub fn new(first_count: u32) -> Self {
        Self {
            sockets: BTreeMap::new(),
            outgoing: VecDeque::new(),
            accepts: true,
            buffer: 256 * 1024,
            first_count,
            retired: BTreeSet::new(),
        }
    }

    fn socket(&self, flow: usize, name: Name, state: State) -> Socket {
        Socket {
            flow,
            name,
            state,
            unread: VecDeque::new(),
            buffer: self.buffer,
            unread_bytes: 0,
            fwd_cnt: self.first_count,
            advertised_fwd_cnt: self.first_count,
            tx_cnt: self.first_count,
            peer_alloc: 0,
            peer_fwd_cnt: self.first_count,
            own_shut: 0,
            peer_shut: 0,
            deadline: None,
            blocked: None,
            is_listed: true,
            is_succeeded: false,
        }
    }

    // Actions of programs.

    /// Connects. Returns `false` if the name is in use.
    pub fn connect(&mut self, now: Instant, flow: usize, name: Name) -> bool {
        if self.find(name).is_some() || self.retired.contains(&name) {
            return false;
        }
        for older in self.sockets.values_mut().filter(|it| it.name == name) {
            older.is_succeeded = true;
        }
        let mut socket = self.socket(flow, name, State::Connecting);
        socket.deadline = Some(now + Duration::from_secs(2));
        self.sockets.insert(flow, socket);
        self.send(flow, Operation::Request, 0, Vec::new());
        true
    }

    /// Writes `len` bytes in packets as Linux makes them, as credit allows. A later write is ignored until
    /// all of them are sent.
    pub fn write(&mut self, flows: &mut Flows, flow: usize, len: u32, end: MessageEnd) {
        if let Some(socket) = self.sockets.get_mut(&flow)
            && socket.state == State::Established
            && socket.blocked.is_none()
        {
            socket.blocked = Some((len, end));
            self.continue_write(flows, flow);
        }
    }

    /// Whether a program waits for credit that the device may still give.
    pub fn is_blocked(&self, flow: usize) -> bool {
        let waits = |it: &Socket| it.blocked.is_some() && it.state == State::Established;
        self.sockets.get(&flow).is_some_and(waits)
    }

    fn continue_write(&mut self, flows: &mut Flows, flow: usize) {
        let Some(socket) = self.sockets.get_mut(&flow) else {
            return;
        };
        let Some((mut rest, end)) = socket.blocked.take() else {
            return;
        };
        let is_shut = (socket.own_shut & shutdown::SEND) | (socket.peer_shut & shutdown::RECEIVE);
        if socket.state != State::Established || is_shut != 0 {
            return;
        }
        let used = socket.tx_cnt.wrapping_sub(socket.peer_fwd_cnt);
        let mut credit = socket.peer_alloc.saturating_sub(used);
        while rest > 0 && credit > 0 {
            let part = rest.min(MAX_PACKET).min(credit);
            rest -= part;
            credit -= part;
            let is_end = rest == 0 && end.message && flows.kind(flow) == SocketKind::Seqpacket;
            let end = MessageEnd {
                message: is_end,
                record: is_end && end.record,
            };
            let payload = flows.write(flow, Direction::ToDevice, part as usize, end);
            let flags = if end.message { message::END } else { 0 }
                | if end.record { message::RECORD } else { 0 };
            self.send(flow, Operation::Data, flags, payload);
        }
        if let Some(socket) = self.sockets.get_mut(&flow) {
            socket.blocked = (rest > 0).then_some((rest, end));
        }
    }

    /// Reads `limit` bytes at most, or the packets of one message.
    pub fn read(&mut self, flows: &mut Flows, flow: usize, limit: usize) -> usize {
        let Some(socket) = self.sockets.get_mut(&flow) else {
            return 0;
        };
        let is_stream = socket.name.3 == SocketKind::Stream as u16;
        let is_complete = |(_, flags): &(Vec<u8>, u32)| flags & message::END != 0;
        if !is_stream && !socket.unread.iter().any(is_complete) {
            // Linux delivers complete messages only.
            return 0;
        }
        let mut total = 0;
        while let Some((mut bytes, flags)) = socket.unread.pop_front() {
            if is_stream && bytes.len() > limit - total {
                // Linux frees the credit of a packet with its last byte.
                let rest = bytes.split_off(limit - total);
                flows.read(flow, Direction::ToGuest, &bytes, MessageEnd::default());
                total = limit;
                let whole = flags + bytes.len() as u32;
                socket.unread.push_front((rest, whole));
                break;
            }
            let end = MessageEnd {
                message: !is_stream && flags & message::END != 0,
                record: !is_stream && flags & message::RECORD != 0,
            };
            flows.read(flow, Direction::ToGuest, &bytes, end);
            total += bytes.len();
            // Bytes of this packet that earlier reads took count now.
            let read_before = if is_stream { flags } else { 0 };
            let freed = bytes.len() as u32 + read_before;
            socket.unread_bytes -= freed;
            socket.fwd_cnt = socket.fwd_cnt.wrapping_add(freed);
            if end.message {
                break;
            }
        }
        let unadvertised = socket.fwd_cnt.wrapping_sub(socket.advertised_fwd_cnt);
        let is_low =
            socket.buffer.saturating_sub(unadvertised) < MAX_PACKET || socket.unread.is_empty();
        let needs_update = unadvertised > 0 && (is_low || !is_stream);
        if needs_update && matches!(socket.state, State::Established | State::Done) {
            self.send(flow, Operation::CreditUpdate, 0, Vec::new());
        }
        total
    }

    pub fn shut_down(&mut self, flows: &mut Flows, flow: usize, directions: u32) {
        let Some(socket) = self.sockets.get_mut(&flow) else {
            return;
        };
        if socket.state == State::Established && socket.own_shut & directions != directions {
            socket.own_shut |= directions;
            let flags = socket.own_shut;
            self.finish(flows, flow, directions);
            self.send(flow, Operation::Shutdown, flags, Vec::new());
        }
    }

    fn finish(&self, flows: &mut Flows, flow: usize, directions: u32) {
        if directions & shutdown::SEND != 0 {
            flows.stream(flow, Direction::ToDevice).is_finished = true;
        }
        if directions & shutdown::RECEIVE != 0 {
            flows.abort(flow);
        }
    }

    pub fn close(&mut self, now: Instant, flows: &mut Flows, flow: usize) {
        let Some(socket) = self.sockets.get_mut(&flow) else {
            return;
        };
        if !flows.is_over(flow, Direction::ToGuest) {
            flows.abort(flow);
        }
        match socket.state {
            State::Connecting | State::Closing => {
                if socket.state == State::Connecting {
                    self.retire(flow);
                }
            }
            State::Done => {
                if socket.peer_shut == shutdown::BOTH && socket.own_shut != u32::MAX {
                    self.send(flow, Operation::Reset, 0, Vec::new());
                }
                self.sockets.remove(&flow);
            }
            State::Established => {
                socket.state = State::Closing;
                socket.unread.clear();
                socket.deadline = Some(now + Duration::from_secs(8));
                let before = socket.own_shut;
                socket.own_shut = shutdown::BOTH;
                flows.stream(flow, Direction::ToDevice).is_finished = true;
                if before != shutdown::BOTH {
                    self.send(flow, Operation::Shutdown, shutdown::BOTH, Vec::new());
                }
            }
        }
    }

    /// Grows the socket's buffer.
    pub fn grow(&mut self, flow: usize, by: u32) {
        if let Some(socket) = self.sockets.get_mut(&flow)
            && matches!(socket.state, State::Connecting | State::Established)
        {
            socket.buffer += by;
            self.send(flow, Operation::CreditUpdate, 0, Vec::new());
        }
    }

    // Actions of the driver.

    pub fn handle_timeout(&mut self, now: Instant, flows: &mut Flows) {
        let due = |socket: &&Socket| socket.deadline.is_some_and(|at| at <= now);
        let due: Vec<usize> = self
            .sockets
            .values()
            .filter(due)
            .map(|it| it.flow)
            .collect();
        for flow in due {
            flows.abort(flow);
            if self.sockets[&flow].state == State::Closing {
                self.send(flow, Operation::Reset, 0, Vec::new());
            }
            self.retire(flow);
        }
    }

    /// Removes a socket without the device's knowledge. Its name is not reused, because the device's
    /// answer would be taken for one to the new socket.
    fn retire(&mut self, flow: usize) {
        if let Some(socket) = self.sockets.remove(&flow) {
            self.retired.insert(socket.name);
        }
    }

    pub fn next_timeout(&self) -> Option<Instant> {
        self.sockets.values().filter_map(|it| it.deadline).min()
    }

    fn find(&self, name: Name) -> Option<usize> {
        let found = |it: &&Socket| it.name == name && it.is_listed;
        self.sockets.values().find(found).map(|it| it.flow)
    }

    /// Handles a packet of the rx queue.
    pub fn receive(&mut self, flows: &mut Flows, packet: Packet) {
        let header = packet.header;
        assert_eq!(header.dst_cid, CID);
        assert_eq!(header.len as usize, packet.payload.len());
        let name = (
            header.dst_port,
            header.src_cid,
            header.src_port,
            header.kind,
        );
        let operation = header.operation().expect("a known operation");
        let Some(flow) = self.find(name) else {
            match operation {
                Operation::Request if self.accepts => {
                    let flow = packet.flow.expect("the device's REQUEST begins a flow");
                    let mut socket = self.socket(flow, name, State::Established);
                    socket.update_credit(&header);
                    self.sockets.insert(flow, socket);
                    self.send(flow, Operation::Response, 0, Vec::new());
                }
                _ => self.reset_unknown(&header),
            }
            return;
        };
        let socket = self.sockets.get_mut(&flow).expect("it was found");
        if socket.state == State::Done {
            return self.reset_unknown(&header);
        }
        socket.update_credit(&header);
        match (socket.state, operation) {
            (_, Operation::Reset) => {
                if socket.peer_shut != shutdown::BOTH && socket.own_shut != shutdown::BOTH {
                    flows.abort(flow);
                }
                socket.deadline = None;
                if socket.state == State::Established {
                    socket.state = State::Done;
                    // No answer is due when the program closes it.
                    socket.own_shut = u32::MAX;
                } else if socket.state == State::Connecting {
                    self.retire(flow);
                } else {
                    self.sockets.remove(&flow);
                }
            }
            (State::Connecting, Operation::Response) => {
                socket.state = State::Established;
                socket.deadline = None;
            }
            (State::Connecting, other) => panic!("{other:?} to a socket that connects"),
            (State::Closing, Operation::Shutdown) => {
                socket.peer_shut |= header.flags;
                if socket.peer_shut == shutdown::BOTH {
                    self.send(flow, Operation::Reset, 0, Vec::new());
                    self.sockets.remove(&flow);
                }
            }
            (State::Closing, _) => {}
            (_, Operation::Data) => {
                assert_eq!(socket.peer_shut & shutdown::SEND, 0, "data after SHUTDOWN");
                socket.enqueue(&header, packet.payload);
            }
            (_, Operation::CreditRequest) => {
                self.send(flow, Operation::CreditUpdate, 0, Vec::new());
            }
            (_, Operation::CreditUpdate) => {}
            (_, Operation::Shutdown) => {
                socket.peer_shut |= header.flags;
                if socket.peer_shut == shutdown::BOTH {
                    let is_empty = socket.unread.is_empty();
                    socket.state = State::Done;
                    socket.is_listed = false;
                    if is_empty {
                        socket.own_shut = u32::MAX;
                        self.send(flow, Operation::Reset, 0, Vec::new());
                    }
                }
            }
            (_, other @ (Operation::Request | Operation::Response)) => {
                panic!("{other:?} to a connected socket");
            }
        }
        self.continue_write(flows, flow);
    }

    /// Maximum length of a message to a socket whose packets all fit into its buffer, with `space` bytes
    /// in each packet.
    pub fn longest_message(&self, flow: usize, space: usize) -> usize {
        let buffer = self
            .sockets
            .get(&flow)
            .map_or(1024, |it| it.buffer as usize);
        (buffer / 4 * space.min(2048) / 2048).max(1)
    }

    /// Whether the device has shut down sending and everything is read.
    pub fn is_at_end(&self, flow: usize) -> bool {
        let at_end = |it: &Socket| it.peer_shut & shutdown::SEND != 0 && it.unread.is_empty();
        self.sockets.get(&flow).is_some_and(at_end)
    }

    fn reset_unknown(&mut self, header: &Header) {
        if header.operation() != Some(Operation::Reset) {
            let header = Header {
                src_cid: header.dst_cid,
                dst_cid: header.src_cid,
                src_port: header.dst_port,
                dst_port: header.src_port,
                kind: header.kind,
                op: Operation::Reset as u16,
                ..Header::default()
            };
            let payload = Vec::new();
            self.outgoing.push_back(Packet {
                header,
                payload,
                flow: None,
            });
        }
    }

    fn send(&mut self, flow: usize, operation: Operation, flags: u32, payload: Vec<u8>) {
        let Some(socket) = self.sockets.get_mut(&flow).filter(|it| !it.is_succeeded) else {
            return;
        };
        socket.advertised_fwd_cnt = socket.fwd_cnt;
        if operation == Operation::Data {
            socket.tx_cnt = socket.tx_cnt.wrapping_add(payload.len() as u32);
        }
        let (src_port, dst_cid, dst_port, kind) = socket.name;
        let header = Header {
            src_cid: CID,
            dst_cid,
            src_port,
            dst_port,
            len: payload.len() as u32,
            kind,
            op: operation as u16,
            flags,
            buf_alloc: socket.buffer,
            fwd_cnt: socket.fwd_cnt,
        };
        let flow = (operation == Operation::Request).then_some(flow);
        self.outgoing.push_back(Packet {
            header,
            payload,
            flow,
        });
    }
}

impl Socket {
    fn update_credit(&mut self, header: &Header) {
        if header.operation() != Some(Operation::Reset) {
            self.peer_alloc = header.buf_alloc;
            self.peer_fwd_cnt = header.fwd_cnt;
            let used = self.tx_cnt.wrapping_sub(self.peer_fwd_cnt);
            assert!(used < 1 << 31, "the device frees more than was sent");
        }
    }

    fn enqueue(&mut self, header: &Header, payload: Vec<u8>) {
        self.unread_bytes += header.len;
        assert!(self.unread_bytes <= self.buffer, "credit overrun");
        // Packets are never merged: the worst case of a driver.
        let cost = (self.unread.len() + 1) * PACKET_COST;
        assert!(
            cost <= self.buffer as usize,
            "packet overhead of {cost} bytes exceeds the buffer"
        );
        let is_stream = self.name.3 == SocketKind::Stream as u16;
        let flags = if is_stream { 0 } else { header.flags };
        self.unread.push_back((payload, flags));
    }
}
