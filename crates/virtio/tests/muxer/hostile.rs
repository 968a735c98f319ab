//! A hostile guest. Nothing panics, memory stays bounded, and a well-behaved connection is not
//! affected.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use hvsock_virtio::{
    Cid, Closed, Config, Event, GuestCid, Handle, Header, Key, MessageEnd, Muxer, Operation,
    Received, SocketKind, Transmit,
};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::guest::CID;
use crate::recorded::Recorded;

const ALLOC: u32 = 4096;
pub const CONNECTIONS: usize = 8;
const REPLIES: usize = 4;
/// Port of the well-behaved connection.
const HONEST: u32 = 7777;

pub fn config(max_connections: usize) -> Config {
    Config {
        max_connections,
        max_replies: REPLIES,
        ..Config::new(GuestCid::try_from(CID).expect("a guest's CID"))
    }
}

fn muxer(max_connections: usize) -> Muxer {
    Muxer::new(config(max_connections))
}

pub fn header(port: u32, op: Operation) -> Header {
    Header {
        src_cid: CID,
        dst_cid: Cid::HOST.0,
        src_port: port,
        dst_port: 5000,
        kind: 1,
        op: op as u16,
        buf_alloc: ALLOC,
        ..Header::default()
    }
}

#[derive(Clone, Copy, Debug)]
pub enum Action {
    Packet(Header, usize),
    /// A packet of an existing connection. Its `fwd_cnt` is valid unless the header has one.
    Known(usize, Header, usize),
    Connect(u32),
    Command(usize, Command),
    Transmit {
        packets: usize,
        space: usize,
        bytes: usize,
    },
    Pass(u64),
    /// The well-behaved connection sends data.
    Honest(usize),
}

#[derive(Clone, Copy, Debug)]
pub enum Command {
    Accept,
    Refuse,
    Readable,
    Freed(u32),
    Finish,
    CloseRead,
    Close,
    Reset,
}

/// Any field may have any value, but most have plausible ones.
fn any_header(usual_op: u16) -> impl Strategy<Value = Header> {
    let cid = |usual: u64| prop_oneof![40 => Just(usual), 1 => 0..50u64, 1 => any::<u64>()];
    let count = || prop_oneof![12 => Just(0), 1 => 0..5000u32, 1 => any::<u32>()];
    let buf_alloc = prop_oneof![6 => Just(ALLOC), 3 => 0..5000u32, 1 => any::<u32>()];
    let len = prop_oneof![2 => Just(0), 6 => 0..ALLOC / 2, 1 => any::<u32>()];
    let port = prop_oneof![30 => 100..103u32, 1 => any::<u32>().prop_map(|it| it | 1 << 31)];
    let kind = prop_oneof![30 => Just(1), 10 => Just(2), 1 => any::<u16>()];
    let op = prop_oneof![30 => Just(usual_op), 10 => 1..=7u16, 1 => any::<u16>()];
    let flags = prop_oneof![3 => 0..3u32, 1 => any::<u32>()];
    let ends = (cid(CID), cid(Cid::HOST.0), port);
    let rest = (len, kind, op, flags, buf_alloc, count());
    (ends, rest).prop_map(|(ends, rest)| Header {
        src_cid: ends.0,
        dst_cid: ends.1,
        src_port: ends.2,
        dst_port: 5000,
        len: rest.0,
        kind: rest.1,
        op: rest.2,
        flags: rest.3,
        buf_alloc: rest.4,
        fwd_cnt: rest.5,
    })
}

fn command() -> impl Strategy<Value = Command> {
    prop_oneof![
        16 => Just(Command::Accept),
        2 => Just(Command::Refuse),
        4 => Just(Command::Readable),
        4 => (0..ALLOC).prop_map(Command::Freed),
        2 => Just(Command::Finish),
        2 => Just(Command::CloseRead),
        2 => Just(Command::Close),
        1 => Just(Command::Reset),
    ]
}

pub fn action() -> impl Strategy<Value = Action> {
    use Action::*;
    let payload = || prop_oneof![20 => Just(1 << 20), 1 => 0..5000usize];
    let which = || prop_oneof![4 => 0..4usize, 1 => 0..64usize];
    prop_oneof![
        10 => (any_header(1), payload()).prop_map(|(header, payload)| Packet(header, payload)),
        40 => (which(), any_header(5), payload()).prop_map(|(it, header, len)| Known(it, header, len)),
        3 => (100..103u32).prop_map(Connect),
        25 => (which(), command()).prop_map(|(which, command)| Command(which, command)),
        20 => (0..40usize, prop_oneof![Just(0), 1..70_000usize], 0..70_000usize)
            .prop_map(|(packets, space, bytes)| Transmit { packets, space, bytes }),
        1 => (0..9000u64).prop_map(Pass),
        5 => (1..2000usize).prop_map(Honest),
    ]
}

/// The owner, with its view of the connections.
pub struct Owner {
    pub muxer: Recorded,
    now: Instant,
    handles: Vec<(Handle, bool)>,
    /// Unread bytes, by handle.
    waiting: HashMap<Handle, u32>,
    /// Sent bytes, by handle.
    sent: HashMap<Handle, u32>,
    honest: Handle,
    honest_sent: u32,
    /// Accepts every connection at once; the rx queue always has buffers.
    is_prompt: bool,
}

impl Owner {
    pub fn new(is_prompt: bool) -> Self {
        let now = Instant::now();
        let mut muxer = Recorded::new(config(CONNECTIONS), 0, now);
        let _ = muxer.handle_packet(&header(HONEST, Operation::Request), 0);
        let Some(Event::Request { handle: honest, .. }) = muxer.poll_event() else {
            panic!("no Request");
        };
        muxer.accept(honest, ALLOC);
        let _ = muxer.poll_transmit(0);
        Self {
            muxer,
            now,
            handles: Vec::new(),
            waiting: HashMap::new(),
            sent: HashMap::new(),
            honest,
            honest_sent: 0,
            is_prompt,
        }
    }

    /// A handle for a command, possibly one of a connection that is gone.
    fn at(&self, which: usize) -> Option<Handle> {
        let latest = self.handles.len().checked_sub(1 + which);
        latest.map(|at| self.handles[at].0)
    }

    pub fn act(&mut self, what: &Action) {
        let it = &mut self.muxer;
        match *what {
            Action::Packet(header, payload) => self.receive(&header, payload),
            Action::Known(which, mut header, payload) => {
                let handle = self.at(which);
                if let Some((handle, key)) = handle.and_then(|it| Some((it, self.muxer.key(it)?))) {
                    header.src_port = key.guest_port;
                    header.dst_cid = key.peer.0;
                    header.dst_port = key.peer_port;
                    header.kind = key.kind as u16;
                    if header.fwd_cnt == 0 {
                        header.fwd_cnt = self.sent.get(&handle).copied().unwrap_or_default();
                    }
                    self.receive(&header, payload);
                }
            }
            Action::Connect(port) => {
                let key = Key {
                    guest_port: port,
                    peer: Cid::HOST,
                    peer_port: 5000,
                    kind: SocketKind::Stream,
                };
                if let Ok(handle) = it.connect(self.now, key, ALLOC, Duration::from_secs(2)) {
                    self.handles.push((handle, true));
                }
            }
            Action::Transmit {
                packets,
                space,
                bytes,
            } => {
                for _ in 0..packets {
                    self.transmit(space, bytes);
                }
            }
            Action::Pass(millis) => {
                self.now += Duration::from_millis(millis);
                self.muxer.handle_timeout(self.now);
                assert!(self.muxer.poll_timeout().is_none_or(|at| at > self.now));
            }
            Action::Honest(len) => {
                let sent = Header {
                    len: len as u32,
                    ..header(HONEST, Operation::Data)
                };
                if self.muxer.may_receive() {
                    let received = self.muxer.handle_packet(&sent, len);
                    let end = MessageEnd::default();
                    let handle = self.honest;
                    assert_eq!(received, Received::Payload { handle, len, end });
                    self.muxer.freed(handle, len as u32);
                    self.honest_sent += len as u32;
                }
            }
            Action::Command(which, command) => {
                if let Some(handle) = self.at(which) {
                    self.command(handle, command);
                }
            }
        }
        while let Some(event) = self.muxer.poll_event() {
            self.handle_event(event);
        }
        for _ in 0..if self.is_prompt { 4 } else { 0 } {
            self.transmit(3732, 3000);
        }
        assert!(self.muxer.connections() <= CONNECTIONS);
        assert!(self.muxer.key(self.honest).is_some());
    }

    fn receive(&mut self, header: &Header, payload: usize) {
        if !self.muxer.may_receive() {
            return;
        }
        if let Received::Payload { handle, len, .. } = self.muxer.handle_packet(header, payload) {
            assert!(len <= payload);
            let waits = self.waiting.entry(handle).or_default();
            *waits += len as u32;
            assert!(*waits <= ALLOC, "credit overrun");
        }
    }

    fn command(&mut self, handle: Handle, command: Command) {
        match command {
            Command::Accept => self.muxer.accept(handle, ALLOC),
            Command::Refuse => self.muxer.refuse(handle),
            Command::Readable => self.muxer.readable(handle),
            Command::Finish => self.muxer.finish(handle),
            Command::CloseRead => self.muxer.close_read(handle),
            Command::Close => self.muxer.close(self.now, handle),
            Command::Reset => self.muxer.reset(handle),
            Command::Freed(bytes) => {
                let waits = self.waiting.entry(handle).or_default();
                let freed = bytes.min(*waits);
                *waits -= freed;
                self.muxer.freed(handle, freed);
            }
        }
    }

    fn handle_event(&mut self, event: Event) {
        match event {
            Event::Request { handle, .. } => {
                let is_new = self.handles.iter().all(|(known, _)| *known != handle);
                assert!(is_new, "a handle is reused");
                self.handles.push((handle, true));
                if self.is_prompt {
                    self.muxer.accept(handle, ALLOC);
                }
            }
            Event::Closed { handle, .. } => {
                assert_ne!(
                    handle, self.honest,
                    "the well-behaved connection was closed"
                );
                let known = self.handles.iter_mut().find(|(known, _)| *known == handle);
                let (_, is_open) = known.expect("Closed of an unknown connection");
                assert!(*is_open, "Closed twice");
                *is_open = false;
                self.waiting.remove(&handle);
            }
            Event::Connected { handle }
            | Event::Finished { handle }
            | Event::ClosedRead { handle } => {
                assert!(
                    self.handles.contains(&(handle, true)),
                    "an event after Closed"
                );
            }
        }
    }

    fn transmit(&mut self, space: usize, bytes: usize) -> bool {
        match self.muxer.poll_transmit(space) {
            None => return false,
            Some(Transmit::Packet(header)) => assert_eq!(header.dst_cid, CID),
            Some(Transmit::Data { handle, max, .. }) => {
                assert!(max > 0 && max <= space);
                match bytes.min(max) {
                    0 => self.muxer.nothing_to_send(handle),
                    n => {
                        let end = MessageEnd::default();
                        let header = self.muxer.sent(handle, n, end, bytes.is_multiple_of(2));
                        assert_eq!(header.map(|it| it.len), Some(n as u32));
                        let sent = self.sent.entry(handle).or_default();
                        *sent = sent.wrapping_add(n as u32);
                    }
                }
            }
        }
        true
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: crate::cases(100),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn no_sequence_of_packets_affects_another_connection(
        actions in vec(action(), 1..400),
        is_prompt: bool,
    ) {
        let mut owner = Owner::new(is_prompt);
        for action in &actions {
            owner.act(action);
        }
        // Pending packets are bounded.
        let mut packets = 0;
        while owner.transmit(1 << 16, 0) {
            packets += 1;
            prop_assert!(packets <= REPLIES + 4 * CONNECTIONS);
        }
        prop_assert!(owner.muxer.may_receive());
        let before = owner.honest_sent;
        owner.act(&Action::Honest(100));
        prop_assert_eq!(owner.honest_sent, before + 100);
        // Nothing is left when the guest has restarted.
        owner.muxer.forget_all();
        while let Some(event) = owner.muxer.poll_event() {
            let restarted = matches!(event, Event::Closed { reason: Closed::GuestRestarted, .. });
            prop_assert!(restarted);
        }
        prop_assert_eq!(owner.muxer.connections(), 0);
        prop_assert!(!owner.muxer.has_transmit());
        prop_assert_eq!(owner.muxer.poll_timeout(), None);
    }
}

#[test]
fn a_hundred_thousand_requests_stop_at_the_limit_of_connections() {
    let mut it = muxer(1000);
    let (mut requests, mut refused) = (0, 0);
    for port in 0..100_000 {
        let _ = it.handle_packet(&header(port, Operation::Request), 0);
        while let Some(event) = it.poll_event() {
            assert!(matches!(event, Event::Request { .. }));
            requests += 1;
        }
        while let Some(Transmit::Packet(header)) = it.poll_transmit(4096) {
            assert_eq!(header.operation(), Some(Operation::Reset));
            refused += 1;
        }
    }
    assert_eq!((requests, refused), (1000, 99_000));
    assert_eq!((it.connections(), it.counters().over_limit), (1000, 99_000));
}

#[test]
fn refused_requests_are_bounded_while_the_rx_queue_is_full() {
    let mut it = muxer(1000);
    let mut handled = 0;
    for port in 0..100_000 {
        if !it.may_receive() {
            break;
        }
        let _ = it.handle_packet(&header(port, Operation::Request), 0);
        handled += 1;
        while let Some(event) = it.poll_event() {
            if let Event::Request { handle, .. } = event {
                it.refuse(handle);
            }
        }
    }
    // Each has an RST pending: first as an ended connection, then as a reply.
    assert_eq!(handled, 1000 + REPLIES as u32);
    let resets = std::iter::from_fn(|| it.poll_transmit(4096)).count();
    assert_eq!(resets, 1000 + REPLIES);
    assert!(it.may_receive());
    assert_eq!(it.connections(), 0);
}

#[test]
fn a_flood_of_rst_uses_no_memory_and_gets_no_answer() {
    let mut it = muxer(CONNECTIONS);
    for port in 0..100_000 {
        let _ = it.handle_packet(&header(port, Operation::Reset), 0);
        assert!(it.may_receive());
    }
    assert!(!it.has_transmit());
    assert_eq!(it.poll_event(), None);
}

#[test]
fn stray_packets_meet_backpressure_while_the_rx_queue_is_full() {
    let mut it = muxer(CONNECTIONS);
    let mut handled = 0;
    while it.may_receive() && handled < 100 {
        let _ = it.handle_packet(&header(handled, Operation::Data), 0);
        handled += 1;
    }
    assert_eq!(handled, REPLIES as u32);
    // Each sent reply makes space for another.
    assert!(it.poll_transmit(0).is_some());
    assert!(it.may_receive());
    let _ = it.handle_packet(&header(200, Operation::Data), 0);
    assert!(!it.may_receive());
}

#[test]
fn strays_are_forgotten_and_refusals_are_not() {
    let mut muxer = muxer(CONNECTIONS);
    let restored = |muxer: Muxer| {
        let now = Instant::now();
        Muxer::restore(muxer.snapshot(now), config(CONNECTIONS), now).expect("a muxer")
    };
    let unknown = Header {
        kind: 9,
        ..header(3, Operation::Request)
    };
    assert_eq!(
        muxer.handle_packet(&header(1, Operation::CreditUpdate), 0),
        Received::Nothing
    );
    assert_eq!(muxer.handle_packet(&unknown, 0), Received::Nothing);
    assert_eq!(
        muxer.handle_packet(&header(2, Operation::Data), 0),
        Received::Nothing
    );
    muxer = restored(muxer);
    muxer.forget_strays();
    let Some(Transmit::Packet(reply)) = muxer.poll_transmit(ALLOC as usize) else {
        panic!("no answer to the request");
    };
    assert_eq!((reply.dst_port, reply.kind), (3, 9));
    assert!(muxer.poll_transmit(ALLOC as usize).is_none());
    // What comes later is answered.
    assert_eq!(
        muxer.handle_packet(&header(1, Operation::CreditUpdate), 0),
        Received::Nothing
    );
    assert!(muxer.has_transmit());
}

#[test]
fn a_flood_of_credit_requests_gets_one_update_for_each_poll() {
    let mut owner = Owner::new(false);
    for _ in 0..1000 {
        let _ = owner
            .muxer
            .handle_packet(&header(HONEST, Operation::CreditRequest), 0);
    }
    assert!(owner.transmit(4096, 0));
    assert!(!owner.transmit(4096, 0));
}

#[test]
fn bytes_in_flight_stay_below_half_of_the_counter_range() {
    let mut owner = Owner::new(false);
    let claim = Header {
        buf_alloc: u32::MAX,
        ..header(HONEST, Operation::CreditUpdate)
    };
    let _ = owner.muxer.handle_packet(&claim, 0);
    owner.muxer.readable(owner.honest);
    let mut sent = 0_u64;
    while let Some(Transmit::Data { handle, max, .. }) = owner.muxer.poll_transmit(1 << 20) {
        let _ = owner.muxer.sent(handle, max, MessageEnd::default(), true);
        sent += max as u64;
    }
    assert_eq!(sent, u64::from(i32::MAX as u32));
    // A counter that runs backwards is still detected.
    let back = Header {
        fwd_cnt: u32::MAX,
        ..claim
    };
    let _ = owner.muxer.handle_packet(&back, 0);
    let (handle, reason) = (owner.honest, Closed::CreditViolation);
    assert_eq!(
        owner.muxer.poll_event(),
        Some(Event::Closed { handle, reason })
    );
}
