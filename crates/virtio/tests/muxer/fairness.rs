//! The share and the latency of each of many busy connections (round robin, credit).

use std::time::{Duration, Instant};

use hvsock_virtio::{
    Cid, Config, Event, GuestCid, Handle, Header, Key, MessageEnd, Muxer, Operation, SocketKind,
    Transmit, shutdown,
};

use crate::guest::CID;

const ALLOC: u32 = 256 * 1024;

fn muxer() -> Muxer {
    Muxer::new(Config::new(GuestCid::try_from(CID).expect("a guest's CID")))
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

fn open(muxer: &mut Muxer, port: u32) -> Handle {
    let _ = muxer.handle_packet(&header(port, Operation::Request), 0);
    let Some(Event::Request { handle, .. }) = muxer.poll_event() else {
        panic!("no Request");
    };
    muxer.accept(handle, ALLOC);
    assert!(matches!(muxer.poll_transmit(0), Some(Transmit::Packet(_))));
    handle
}

/// Shares of 100 connections in 100 MB, in bytes. Links send `chunk(at)` bytes at a time, and readers in
/// the guest read everything at once.
fn shares(buffer_len: usize, chunk: impl Fn(usize) -> usize) -> Vec<u64> {
    let mut it = muxer();
    let handles: Vec<Handle> = (0..100).map(|port| open(&mut it, port)).collect();
    for handle in &handles {
        it.readable(*handle);
    }
    let mut shares = vec![0_u64; handles.len()];
    let mut total = 0;
    while total < 100_000_000 {
        match it.poll_transmit(buffer_len).expect("there is always more") {
            Transmit::Packet(_) => {}
            Transmit::Data { handle, max, .. } => {
                let at = handles.iter().position(|it| *it == handle).expect("known");
                let len = max.min(chunk(at));
                it.sent(handle, len, MessageEnd::default(), true);
                shares[at] += len as u64;
                total += len as u64;
                let update = Header {
                    fwd_cnt: shares[at] as u32,
                    ..header(at as u32, Operation::CreditUpdate)
                };
                let _ = it.handle_packet(&update, 0);
            }
        }
    }
    shares
}

fn ratio(shares: &[u64]) -> f64 {
    let most = shares.iter().max().copied().unwrap_or_default();
    let least = shares.iter().min().copied().unwrap_or_default();
    most as f64 / least as f64
}

#[test]
fn busy_connections_get_the_same_share_of_bytes() {
    for buffer_len in [3732, 65_536] {
        let ratio = ratio(&shares(buffer_len, |_| usize::MAX));
        assert!(ratio <= 1.1, "{buffer_len}: {ratio}");
    }
}

#[test]
fn small_and_big_writes_get_the_same_share_of_bytes() {
    let shares = shares(65_536, |at| [64, 1500, 16_000, 65_536][at % 4]);
    assert!(ratio(&shares) <= 1.2, "{}", ratio(&shares));
}

#[test]
fn a_quiet_connection_waits_at_most_one_turn_of_each_busy_one() {
    let mut it = muxer();
    let busy: Vec<Handle> = (0..10).map(|port| open(&mut it, port)).collect();
    let quiet = open(&mut it, 99);
    for handle in &busy {
        it.readable(*handle);
    }
    it.readable(quiet);
    let mut before = 0;
    loop {
        let Some(Transmit::Data { handle, max, .. }) = it.poll_transmit(3732) else {
            panic!("there is always more");
        };
        it.sent(handle, max, MessageEnd::default(), handle != quiet);
        if handle == quiet {
            break;
        }
        before += max;
    }
    assert!(before <= 10 * (65_536 + 3732), "{before}");
}

#[test]
fn a_response_is_sent_before_all_data() {
    let mut it = muxer();
    let busy = open(&mut it, 1);
    it.readable(busy);
    assert!(matches!(
        it.poll_transmit(4096),
        Some(Transmit::Data { .. })
    ));
    let _ = it.handle_packet(&header(2, Operation::Request), 0);
    let Some(Event::Request { handle, .. }) = it.poll_event() else {
        panic!("no Request");
    };
    it.accept(handle, ALLOC);
    let Some(Transmit::Packet(response)) = it.poll_transmit(4096) else {
        panic!("no RESPONSE");
    };
    assert_eq!(response.operation(), Some(Operation::Response));
    assert_eq!((response.buf_alloc, response.fwd_cnt), (ALLOC, 0));
}

/// Sends everything that may be sent. Returns the bytes and the number of CREDIT_REQUESTs.
fn drain(it: &mut Muxer) -> (usize, usize) {
    let (mut bytes, mut requests) = (0, 0);
    while let Some(transmit) = it.poll_transmit(65_536) {
        match transmit {
            Transmit::Packet(header) => {
                assert_eq!(header.operation(), Some(Operation::CreditRequest));
                requests += 1;
            }
            Transmit::Data { handle, max, .. } => {
                it.sent(handle, max, MessageEnd::default(), true);
                bytes += max;
            }
        }
    }
    (bytes, requests)
}

#[test]
fn a_connection_without_credit_sends_one_credit_request() {
    let mut it = muxer();
    let handle = open(&mut it, 1);
    it.readable(handle);
    assert_eq!(drain(&mut it), (ALLOC as usize, 1));
    // A small update is used but allows no new request; one above the low watermark does.
    for (fwd_cnt, expected) in [(0, (0, 0)), (10, (10, 0)), (100_010, (100_000, 1))] {
        let update = Header {
            fwd_cnt,
            ..header(1, Operation::CreditUpdate)
        };
        let _ = it.handle_packet(&update, 0);
        assert_eq!(drain(&mut it), expected, "{fwd_cnt}");
        it.readable(handle);
        assert!(!it.has_transmit());
    }
}

#[test]
fn a_connect_without_answer_times_out() {
    for is_sent in [false, true] {
        let mut it = muxer();
        let now = Instant::now();
        let key = Key {
            guest_port: 22,
            peer: Cid::HOST,
            peer_port: 5000,
            kind: SocketKind::Stream,
        };
        let timeout = Duration::from_secs(2);
        it.connect(now, key, ALLOC, timeout).expect("a free key");
        if is_sent {
            assert!(it.poll_transmit(0).is_some());
        }
        assert_eq!(it.poll_timeout(), Some(now + timeout));
        it.handle_timeout(now + timeout / 2);
        assert_eq!(it.poll_event(), None);
        it.handle_timeout(now + timeout);
        assert!(matches!(it.poll_event(), Some(Event::Closed { .. })));
        assert_eq!(it.poll_timeout(), None);
        // The guest gets an RST only if it got the REQUEST.
        assert_eq!(it.has_transmit(), is_sent);
    }
}

#[test]
fn no_data_is_sent_after_a_shutdown_in_its_direction_or_before_accept() {
    let mut it = muxer();
    let (finished, unread) = (open(&mut it, 1), open(&mut it, 2));
    it.finish(finished);
    it.readable(finished);
    it.readable(unread);
    let shut = Header {
        flags: shutdown::RECEIVE,
        ..header(2, Operation::Shutdown)
    };
    let _ = it.handle_packet(&shut, 0);
    it.readable(unread);
    while let Some(transmit) = it.poll_transmit(4096) {
        assert!(matches!(transmit, Transmit::Packet(_)), "{transmit:?}");
    }
    assert_eq!(it.poll_event(), Some(Event::ClosedRead { handle: unread }));
    assert_eq!(it.connections(), 2);
    // Nor on a connection that is not accepted yet.
    let _ = it.handle_packet(&header(3, Operation::Request), 0);
    while let Some(event) = it.poll_event() {
        if let Event::Request { handle, .. } = event {
            it.readable(handle);
            assert!(!it.has_transmit());
            it.accept(handle, ALLOC);
            assert!(matches!(it.poll_transmit(0), Some(Transmit::Packet(_))));
            assert!(matches!(it.poll_transmit(1), Some(Transmit::Data { .. })));
        }
    }
}

/// Sends packets of one byte until the muxer stops. Returns their number.
fn trickle(muxer: &mut Muxer) -> u32 {
    let mut sent = 0;
    while let Some(Transmit::Data { handle, .. }) = muxer.poll_transmit(3732) {
        muxer.sent(handle, 1, MessageEnd::default(), true);
        sent += 1;
    }
    sent
}

fn next_operation(muxer: &mut Muxer) -> Option<Operation> {
    match muxer.poll_transmit(3732)? {
        Transmit::Packet(header) => header.operation(),
        Transmit::Data { .. } => None,
    }
}

/// Linux before 6.8 sends no credit update for a few bytes, so a writer that the packet limit stops
/// would wait for ever.
#[test]
fn a_writer_stopped_by_the_packet_limit_repeats_its_credit_request() {
    let (mut it, start) = (muxer(), Instant::now());
    it.handle_timeout(start);
    let handle = open(&mut it, 1);
    it.readable(handle);
    let mut sent = 0;
    // A CREDIT_REQUEST comes in between.
    while it.has_transmit() {
        sent += trickle(&mut it);
    }
    assert!((100..10_000).contains(&sent), "{sent}");
    // The answer: nothing is read yet.
    let update = |fwd_cnt| Header {
        fwd_cnt,
        ..header(1, Operation::CreditUpdate)
    };
    let _ = it.handle_packet(&update(0), 0);
    assert!(!it.has_transmit());
    let again = it.poll_timeout().expect("a time for the next request");
    assert!(again > start && again < start + Duration::from_secs(1));
    it.handle_timeout(again);
    assert_eq!(next_operation(&mut it), Some(Operation::CreditRequest));
    assert!(!it.has_transmit());
    let _ = it.handle_packet(&update(sent), 0);
    assert_eq!(it.poll_timeout(), None);
    assert!(trickle(&mut it) > 0);
    it.nothing_to_send(handle);
    assert_eq!(it.poll_timeout(), None);
}
