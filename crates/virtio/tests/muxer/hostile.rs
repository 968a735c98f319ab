//! A guest that keeps no rule. Nothing panics, memory stays bounded, and a connection that keeps
//! the rules is none the worse.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use hvsock_virtio::{
    Cid, Closed, Config, Event, GuestCid, Handle, Header, Key, MessageEnd, Muxer, Operation,
    Received, SocketKind, Transmit,
};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::guest::CID;

const ALLOC: u32 = 4096;
const CONNECTIONS: usize = 8;
const REPLIES: usize = 4;
/// Where the connection that keeps the rules is.
const HONEST: u32 = 7777;

fn muxer(max_connections: usize) -> Muxer {
    Muxer::new(Config {
        max_connections,
        max_replies: REPLIES,
        ..Config::new(GuestCid::try_from(CID).expect("a guest's CID"))
    })
}

fn header(port: u32, op: Operation) -> Header {
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

#[derive(Clone, Debug)]
enum What {
    Packet(Header, usize),
    /// The same of a connection that is there, which counts rightly what it got unless the header
    /// says something.
    Known(usize, Header, usize),
    Connect(u32),
    Wish(usize, Wish),
    Transmit {
        packets: usize,
        room: usize,
        bytes: usize,
    },
    Pass(u64),
    /// The honest connection says something.
    Honest(usize),
}

#[derive(Clone, Copy, Debug)]
enum Wish {
    Accept,
    Refuse,
    Readable,
    Freed(u32),
    Finish,
    CloseRead,
    Close,
    Reset,
}

/// Any field may be anything, but most are what a connection could have.
fn any_header(usual_op: u16) -> impl Strategy<Value = Header> {
    let cid = |usual: u64| prop_oneof![40 => Just(usual), 1 => 0..50u64, 1 => any::<u64>()];
    let count = || prop_oneof![12 => Just(0), 1 => 0..5000u32, 1 => any::<u32>()];
    let room = prop_oneof![6 => Just(ALLOC), 3 => 0..5000u32, 1 => any::<u32>()];
    let len = prop_oneof![2 => Just(0), 6 => 0..ALLOC / 2, 1 => any::<u32>()];
    let port = prop_oneof![30 => 100..103u32, 1 => any::<u32>().prop_map(|it| it | 1 << 31)];
    let kind = prop_oneof![30 => Just(1), 10 => Just(2), 1 => any::<u16>()];
    let op = prop_oneof![30 => Just(usual_op), 10 => 1..=7u16, 1 => any::<u16>()];
    let flags = prop_oneof![3 => 0..3u32, 1 => any::<u32>()];
    let ends = (cid(CID), cid(Cid::HOST.0), port);
    let rest = (len, kind, op, flags, room, count());
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

fn wish() -> impl Strategy<Value = Wish> {
    prop_oneof![
        16 => Just(Wish::Accept),
        2 => Just(Wish::Refuse),
        4 => Just(Wish::Readable),
        4 => (0..ALLOC).prop_map(Wish::Freed),
        2 => Just(Wish::Finish),
        2 => Just(Wish::CloseRead),
        2 => Just(Wish::Close),
        1 => Just(Wish::Reset),
    ]
}

fn what() -> impl Strategy<Value = What> {
    use What::*;
    let payload = || prop_oneof![20 => Just(1 << 20), 1 => 0..5000usize];
    let which = || prop_oneof![4 => 0..4usize, 1 => 0..64usize];
    prop_oneof![
        10 => (any_header(1), payload()).prop_map(|(header, payload)| Packet(header, payload)),
        40 => (which(), any_header(5), payload()).prop_map(|(it, header, len)| Known(it, header, len)),
        3 => (100..103u32).prop_map(Connect),
        25 => (which(), wish()).prop_map(|(which, wish)| Wish(which, wish)),
        20 => (0..40usize, prop_oneof![Just(0), 1..70_000usize], 0..70_000usize)
            .prop_map(|(packets, room, bytes)| Transmit { packets, room, bytes }),
        1 => (0..9000u64).prop_map(Pass),
        5 => (1..2000usize).prop_map(Honest),
    ]
}

/// What the owner knows of its connections, and of the honest one.
struct Owner {
    muxer: Muxer,
    now: Instant,
    handles: Vec<(Handle, bool)>,
    /// Bytes that came and were not freed, by handle.
    waiting: HashMap<Handle, u32>,
    /// Bytes that were sent, by handle.
    sent: HashMap<Handle, u32>,
    honest: Handle,
    honest_sent: u32,
    /// It accepts every connection at once, and there are always buffers in the rx queue.
    is_prompt: bool,
}

impl Owner {
    fn new(is_prompt: bool) -> Self {
        let mut muxer = muxer(CONNECTIONS);
        let _ = muxer.handle_packet(&header(HONEST, Operation::Request), 0);
        let Some(Event::Request { handle: honest, .. }) = muxer.poll_event() else {
            panic!("no Request");
        };
        muxer.accept(honest, ALLOC);
        let _ = muxer.poll_transmit(0);
        Self {
            muxer,
            now: Instant::now(),
            handles: Vec::new(),
            waiting: HashMap::new(),
            sent: HashMap::new(),
            honest,
            honest_sent: 0,
            is_prompt,
        }
    }

    /// A handle to have a wish for. Those that are gone are used, too.
    fn at(&self, which: usize) -> Option<Handle> {
        let latest = self.handles.len().checked_sub(1 + which);
        latest.map(|at| self.handles[at].0)
    }

    fn act(&mut self, what: &What) {
        let it = &mut self.muxer;
        match *what {
            What::Packet(header, payload) => self.receive(&header, payload),
            What::Known(which, mut header, payload) => {
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
            What::Connect(port) => {
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
            What::Transmit {
                packets,
                room,
                bytes,
            } => {
                for _ in 0..packets {
                    self.transmit(room, bytes);
                }
            }
            What::Pass(millis) => {
                self.now += Duration::from_millis(millis);
                self.muxer.handle_timeout(self.now);
                assert!(self.muxer.poll_timeout().is_none_or(|at| at > self.now));
            }
            What::Honest(len) => {
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
            What::Wish(which, wish) => {
                if let Some(handle) = self.at(which) {
                    self.wish(handle, wish);
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
            assert!(*waits <= ALLOC, "over-run");
        }
    }

    fn wish(&mut self, handle: Handle, wish: Wish) {
        match wish {
            Wish::Accept => self.muxer.accept(handle, ALLOC),
            Wish::Refuse => self.muxer.refuse(handle),
            Wish::Readable => self.muxer.readable(handle),
            Wish::Finish => self.muxer.finish(handle),
            Wish::CloseRead => self.muxer.close_read(handle),
            Wish::Close => self.muxer.close(self.now, handle),
            Wish::Reset => self.muxer.reset(handle),
            Wish::Freed(bytes) => {
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
                assert!(is_new, "a handle again");
                self.handles.push((handle, true));
                if self.is_prompt {
                    self.muxer.accept(handle, ALLOC);
                }
            }
            Event::Closed { handle, .. } => {
                assert_ne!(handle, self.honest, "the honest connection ends");
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

    fn transmit(&mut self, room: usize, bytes: usize) -> bool {
        match self.muxer.poll_transmit(room) {
            None => return false,
            Some(Transmit::Packet(header)) => assert_eq!(header.dst_cid, CID),
            Some(Transmit::Data { handle, max, .. }) => {
                assert!(max > 0 && max <= room);
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
    fn any_packets_in_any_order_harm_nobody_else(
        whats in vec(what(), 1..400),
        is_prompt: bool,
    ) {
        let mut owner = Owner::new(is_prompt);
        for what in &whats {
            owner.act(what);
        }
        // What waits is bounded, and the rest follows when it is sent.
        let mut packets = 0;
        while owner.transmit(1 << 16, 0) {
            packets += 1;
            prop_assert!(packets <= REPLIES + 4 * CONNECTIONS);
        }
        prop_assert!(owner.muxer.may_receive());
        let before = owner.honest_sent;
        owner.act(&What::Honest(100));
        prop_assert_eq!(owner.honest_sent, before + 100);
        // And nothing is left when the guest is gone.
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
fn a_hundred_thousand_requests_get_as_many_connections_as_may_be() {
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
fn requests_that_are_refused_while_nothing_can_be_sent_are_bounded_too() {
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
    // Each owes an RST: first as a connection of its own, then as an answer.
    assert_eq!(handled, 1000 + REPLIES as u32);
    let resets = std::iter::from_fn(|| it.poll_transmit(4096)).count();
    assert_eq!(resets, 1000 + REPLIES);
    assert!(it.may_receive());
    assert_eq!(it.connections(), 0);
}

#[test]
fn a_storm_of_rst_takes_nothing_and_is_not_answered() {
    let mut it = muxer(CONNECTIONS);
    for port in 0..100_000 {
        let _ = it.handle_packet(&header(port, Operation::Reset), 0);
        assert!(it.may_receive());
    }
    assert!(!it.has_transmit());
    assert_eq!(it.poll_event(), None);
}

#[test]
fn a_guest_that_takes_no_packets_cannot_send_strays_for_ever() {
    let mut it = muxer(CONNECTIONS);
    let mut handled = 0;
    while it.may_receive() && handled < 100 {
        let _ = it.handle_packet(&header(handled, Operation::Data), 0);
        handled += 1;
    }
    assert_eq!(handled, REPLIES as u32);
    // Room for one packet is room for one more answer.
    assert!(it.poll_transmit(0).is_some());
    assert!(it.may_receive());
    let _ = it.handle_packet(&header(200, Operation::Data), 0);
    assert!(!it.may_receive());
}

#[test]
fn a_guest_that_asks_for_credit_for_ever_is_answered_once_for_each_look() {
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
fn a_guest_that_claims_all_the_room_there_is_gets_half_of_what_can_be_counted() {
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
    // So a count that runs backwards is seen even now.
    let back = Header {
        fwd_cnt: u32::MAX,
        ..claim
    };
    let _ = owner.muxer.handle_packet(&back, 0);
    let (handle, reason) = (owner.honest, Closed::CreditLie);
    assert_eq!(
        owner.muxer.poll_event(),
        Some(Event::Closed { handle, reason })
    );
}
