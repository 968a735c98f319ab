//! Every packet in every state, with the section of the virtio specification (1.3) that defines the
//! outcome.

use std::time::{Duration, Instant};

use hvsock_virtio::{
    Cid, Closed, Config, Event, GuestCid, Handle, Header, Key, Muxer, Operation, Received,
    SocketKind, Transmit, shutdown,
};

use crate::guest::CID;

const STREAM: u16 = SocketKind::Stream as u16;
const ALLOC: u32 = 64 * 1024;

const BUFFER_SPACE: &str = "5.10.6.3 Buffer Space Management";
const RECEIVE_AND_TRANSMIT: &str = "5.10.6.4 Receive and Transmit";
const STREAM_SOCKETS: &str = "5.10.6.5 Stream Sockets";
const SEQPACKET_SOCKETS: &str = "5.10.6.6 Seqpacket Sockets";
const LINUX: &str = "no section: what Linux does";

/// The state of a connection when a packet arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Before {
    Unknown,
    /// The guest's REQUEST waits for the owner.
    Requested,
    /// Accepted, but the RESPONSE is not in the rx queue.
    Accepted,
    /// The owner connects, but the REQUEST is not in the rx queue.
    ConnectingUnsent,
    /// The owner's REQUEST waits for the guest.
    Connecting,
    Open,
    /// The guest has shut down sending.
    GuestFinished,
    /// The guest has shut down receiving.
    GuestClosedRead,
    /// The owner has shut down sending, and the SHUTDOWN was sent.
    Finished,
    /// The owner has closed it, and the SHUTDOWN was sent.
    Closing,
    /// The owner has closed it, but the SHUTDOWN is not in the rx queue.
    ClosingUnsent,
    /// The owner has reset it, but the RST is not in the rx queue.
    Ended,
}
use Before::*;

const EVERY: [Before; 12] = [
    Unknown,
    Requested,
    Accepted,
    ConnectingUnsent,
    Connecting,
    Open,
    GuestFinished,
    GuestClosedRead,
    Finished,
    Closing,
    ClosingUnsent,
    Ended,
];

const NEW: u16 = Operation::Request as u16;
const RESPONSE: u16 = Operation::Response as u16;
const RST: u16 = Operation::Reset as u16;
const SHUTDOWN: u16 = Operation::Shutdown as u16;
const RW: u16 = Operation::Data as u16;
const UPDATE: u16 = Operation::CreditUpdate as u16;
const ASK: u16 = Operation::CreditRequest as u16;

fn header(op: u16) -> Header {
    Header {
        src_cid: CID,
        dst_cid: Cid::HOST.0,
        src_port: 100,
        dst_port: 5000,
        kind: STREAM,
        op,
        buf_alloc: ALLOC,
        ..Header::default()
    }
}

fn muxer() -> Muxer {
    Muxer::new(Config::new(GuestCid::try_from(CID).expect("a guest's CID")))
}

fn packet(muxer: &mut Muxer) -> Option<Header> {
    match muxer.poll_transmit(4096)? {
        Transmit::Packet(header) => Some(header),
        Transmit::Data { .. } => panic!("no link has data"),
    }
}

fn requested(muxer: &mut Muxer) -> Handle {
    let _ = muxer.handle_packet(&header(NEW), 0);
    match muxer.poll_event() {
        Some(Event::Request { handle, .. }) => handle,
        other => panic!("{other:?}"),
    }
}

fn open(muxer: &mut Muxer) -> Handle {
    let handle = requested(muxer);
    muxer.accept(handle, ALLOC);
    assert_eq!(packet(muxer).map(|it| it.op), Some(RESPONSE));
    handle
}

fn shut(muxer: &mut Muxer, flags: u32) {
    let _ = muxer.handle_packet(
        &Header {
            flags,
            ..header(SHUTDOWN)
        },
        0,
    );
    while muxer.poll_event().is_some() {}
}

fn key() -> Key {
    Key {
        guest_port: 100,
        peer: Cid::HOST,
        peer_port: 5000,
        kind: SocketKind::Stream,
    }
}

/// A muxer whose one connection is in this state, with no packets pending but those of the state.
fn prepare(before: Before) -> Muxer {
    let mut it = muxer();
    let now = Instant::now();
    match before {
        Unknown => {}
        Requested => _ = requested(&mut it),
        Accepted => {
            let handle = requested(&mut it);
            it.accept(handle, ALLOC);
        }
        ConnectingUnsent | Connecting => {
            it.connect(now, key(), ALLOC, Duration::from_secs(2))
                .expect("a free key");
            if before == Connecting {
                assert_eq!(packet(&mut it).map(|it| it.op), Some(NEW));
            }
        }
        Open => _ = open(&mut it),
        GuestFinished | GuestClosedRead => {
            open(&mut it);
            let finished = before == GuestFinished;
            shut(
                &mut it,
                if finished {
                    shutdown::SEND
                } else {
                    shutdown::RECEIVE
                },
            );
        }
        Finished => {
            let handle = open(&mut it);
            it.finish(handle);
            assert_eq!(packet(&mut it).map(|it| it.flags), Some(shutdown::SEND));
        }
        Closing | ClosingUnsent => {
            let handle = open(&mut it);
            it.close(now, handle);
            if before == Closing {
                assert_eq!(packet(&mut it).map(|it| it.flags), Some(shutdown::BOTH));
            }
        }
        Ended => {
            let handle = open(&mut it);
            it.reset(handle);
        }
    }
    it
}

/// The outcome of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// Nothing happens; pending packets are sent.
    Ignored,
    /// The answer is RST; an existing connection is not affected.
    Stray,
    /// The connection ends for this reason; the guest gets only RST.
    Reset(Closed),
    /// The connection is reset for a protocol violation; the guest gets RST.
    Fault,
    /// The connection ends for this reason; the guest gets nothing.
    Over(Closed),
    /// The connection, which has no handle any more, ends without an event or an RST.
    Forgotten,
    /// A new connection, after the end of the old one if that had a handle.
    NewOne,
    Connected,
    Payload,
    /// The answer is a CREDIT_UPDATE.
    Credit,
    GuestFinishes,
    GuestClosesRead,
}
use Outcome::*;

fn run(before: Before, header: &Header, payload: usize) -> Outcome {
    let mut it = prepare(before);
    let had = it.connections();
    let received = it.handle_packet(header, payload);
    let events: Vec<Event> = std::iter::from_fn(|| it.poll_event()).collect();
    let sent: Vec<u16> = std::iter::from_fn(|| packet(&mut it))
        .map(|it| it.op)
        .collect();
    let owed: &[u16] = match before {
        Accepted => &[RESPONSE],
        ConnectingUnsent => &[NEW],
        ClosingUnsent => &[SHUTDOWN],
        Ended => &[RST],
        _ => &[],
    };
    let last = events.last().copied();
    if matches!(received, Received::Payload { .. }) {
        assert_eq!((sent.as_slice(), last), (owed, None));
        return Payload;
    }
    match last {
        Some(Event::Closed { reason, .. }) => {
            assert_eq!(it.connections(), had - 1);
            let is_fault = matches!(
                reason,
                Closed::Protocol(_) | Closed::CreditOverrun | Closed::CreditViolation
            );
            assert_eq!(it.counters().faults, u64::from(is_fault));
            match sent.as_slice() {
                [] => Over(reason),
                [RST] if is_fault && matches!(reason, Closed::Protocol(_)) => Fault,
                [RST] => Reset(reason),
                other => panic!("{other:?}"),
            }
        }
        Some(Event::Request { .. }) => {
            assert!(sent.is_empty(), "{sent:?}");
            assert_eq!(events.len(), 1 + had);
            NewOne
        }
        Some(Event::Connected { .. }) => {
            assert!(sent.is_empty());
            Connected
        }
        Some(Event::Finished { .. }) => GuestFinishes,
        Some(Event::ClosedRead { .. }) => GuestClosesRead,
        None if sent == owed => Ignored,
        None if sent.is_empty() => Forgotten,
        None if sent.len() > owed.len() && sent.contains(&RST) => Stray,
        None if sent.contains(&UPDATE) => Credit,
        None => panic!("{sent:?}"),
    }
}

/// The outcomes of a packet in each state.
struct Rule {
    section: &'static str,
    packet: Header,
    payload: usize,
    outcomes: [Outcome; 12],
}

fn rule(section: &'static str, packet: Header, outcomes: [Outcome; 12]) -> Rule {
    let payload = packet.len as usize;
    Rule {
        section,
        packet,
        payload,
        outcomes,
    }
}

#[test]
fn each_packet_has_its_outcome_in_each_state() {
    let over = Over(Closed::Reset);
    let clean = Reset(Closed::Clean);
    let inval = Reset(Closed::CreditViolation);
    let overrun = Reset(Closed::CreditOverrun);
    let shut = |flags| Header {
        flags,
        ..header(SHUTDOWN)
    };
    let data = |len| Header { len, ..header(RW) };
    let invalid = |op| Header {
        fwd_cnt: 1,
        ..header(op)
    };
    #[rustfmt::skip]
    let rules = [
        //                                              Unknown    Requested Accepted  ConnectingUnsent     Connecting            Open          GuestFin. GuestCl.R. Finished  Closing               Unsent   Ended
        rule(STREAM_SOCKETS, header(NEW),               [NewOne,   NewOne,   NewOne,   NewOne,    NewOne,               NewOne,       NewOne,   NewOne,    NewOne,   NewOne,               NewOne,  NewOne]),
        rule(STREAM_SOCKETS, header(RESPONSE),          [Stray,    Fault,    Fault,    Stray,     Connected,            Fault,        Fault,    Fault,     Fault,    Ignored,              Ignored, Ignored]),
        rule(STREAM_SOCKETS, header(RST),               [Ignored,  over,     over,     Ignored,   Over(Closed::Refused), over,        over,     over,      over,     Over(Closed::Clean),  over,    Forgotten]),
        rule(STREAM_SOCKETS, shut(shutdown::SEND),      [Stray,    Fault,    Fault,    Stray,     Fault,                GuestFinishes, Ignored, clean,     GuestFinishes, Ignored,         Ignored, Ignored]),
        rule(STREAM_SOCKETS, shut(shutdown::RECEIVE),   [Stray,    Fault,    Fault,    Stray,     Fault,                GuestClosesRead, clean, Ignored,   GuestClosesRead, Ignored,       Ignored, Ignored]),
        rule(STREAM_SOCKETS, shut(shutdown::BOTH),      [Stray,    Fault,    Fault,    Stray,     Fault,                clean,        clean,    clean,     clean,    clean,                clean,   Ignored]),
        rule(STREAM_SOCKETS, shut(0),                   [Stray,    Fault,    Fault,    Stray,     Fault,                Ignored,      Ignored,  Ignored,   Ignored,  Ignored,              Ignored, Ignored]),
        rule(STREAM_SOCKETS, data(10),                  [Stray,    Fault,    Fault,    Stray,     Fault,                Payload,      Fault,    Payload,   Payload,  Ignored,              Ignored, Ignored]),
        rule(LINUX, data(0),                            [Stray,    Fault,    Fault,    Stray,     Fault,                Ignored,      Fault,    Ignored,   Ignored,  Ignored,              Ignored, Ignored]),
        rule(BUFFER_SPACE, header(UPDATE),              [Stray,    Ignored,  Ignored,  Stray,     Fault,                Ignored,      Ignored,  Ignored,   Ignored,  Ignored,              Ignored, Ignored]),
        rule(BUFFER_SPACE, header(ASK),                 [Stray,    Ignored,  Credit,   Stray,     Fault,                Credit,       Credit,   Credit,    Credit,   Ignored,              Ignored, Ignored]),
        rule(BUFFER_SPACE, data(ALLOC + 1),             [Stray,    Fault,    Fault,    Stray,     Fault,                overrun,      Fault,    overrun,   overrun,  Ignored,              Ignored, Ignored]),
        rule(BUFFER_SPACE, invalid(UPDATE),             [Stray,    inval,    inval,    Stray,     inval,                inval,        inval,    inval,     inval,    Ignored,              Ignored, Ignored]),
        rule(LINUX, header(0),                          [Stray,    Fault,    Fault,    Stray,     Fault,                Fault,        Fault,    Fault,     Fault,    Ignored,              Ignored, Ignored]),
        rule(LINUX, header(8),                          [Stray,    Fault,    Fault,    Stray,     Fault,                Fault,        Fault,    Fault,     Fault,    Ignored,              Ignored, Ignored]),
        rule(RECEIVE_AND_TRANSMIT, Header { kind: 3, ..header(RW) }, [Stray; 12]),
        rule(RECEIVE_AND_TRANSMIT, Header { kind: 0, ..header(NEW) }, [Stray; 12]),
        rule(RECEIVE_AND_TRANSMIT, Header { src_cid: CID + 1, ..header(RW) }, [Ignored; 12]),
        rule(SEQPACKET_SOCKETS, Header { kind: 2, ..header(RW) }, [Stray; 12]),
    ];
    for rule in &rules {
        for (before, expected) in EVERY.into_iter().zip(rule.outcomes) {
            let outcome = run(before, &rule.packet, rule.payload);
            let Rule {
                section, packet, ..
            } = rule;
            assert_eq!(outcome, expected, "{section}: {before:?} gets {packet:?}");
        }
    }
}

#[test]
fn a_packet_with_less_data_than_its_len_resets_the_connection() {
    let claims = Header {
        len: 11,
        ..header(RW)
    };
    assert_eq!(run(Open, &claims, 10), Fault);
    assert_eq!(run(Open, &claims, 11), Payload);
    // Bytes beyond `len` do not count (5.10.6).
    let mut it = muxer();
    open(&mut it);
    let received = it.handle_packet(&claims, 4096);
    assert!(
        matches!(received, Received::Payload { len: 11, .. }),
        "{received:?}"
    );
}

#[test]
fn an_rst_goes_to_the_sender_and_has_the_packets_type() {
    for kind in [0, 1, 2, 3, u16::MAX] {
        let mut it = muxer();
        let _ = it.handle_packet(&Header { kind, ..header(RW) }, 0);
        let expected = Header {
            src_cid: Cid::HOST.0,
            dst_cid: CID,
            src_port: 5000,
            dst_port: 100,
            kind,
            op: RST,
            ..Header::default()
        };
        assert_eq!(packet(&mut it), Some(expected));
        let _ = it.handle_packet(
            &Header {
                kind,
                ..header(RST)
            },
            0,
        );
        assert!(!it.has_transmit(), "RST for RST");
    }
}

#[test]
fn without_the_feature_seqpacket_is_an_unknown_type() {
    let guest = GuestCid::try_from(CID).expect("a guest's CID");
    let mut it = Muxer::new(Config {
        seqpacket: false,
        ..Config::new(guest)
    });
    let _ = it.handle_packet(
        &Header {
            kind: 2,
            ..header(NEW)
        },
        0,
    );
    assert_eq!(packet(&mut it).map(|it| it.op), Some(RST));
    assert_eq!(it.poll_event(), None);
    requested(&mut it);
}

#[test]
fn an_rst_to_a_stray_packet_does_not_hit_the_next_connection() {
    let mut it = muxer();
    let _ = it.handle_packet(&header(RW), 0);
    let handle = requested(&mut it);
    it.accept(handle, ALLOC);
    assert_eq!(packet(&mut it).map(|it| it.op), Some(RESPONSE));
    assert!(!it.has_transmit());
}

#[test]
fn a_request_for_a_known_key_ends_the_old_connection_before_it_begins_the_new_one() {
    let mut it = muxer();
    let old = open(&mut it);
    it.close(Instant::now(), old);
    let _ = it.handle_packet(&header(NEW), 0);
    let reason = Closed::Reset;
    assert_eq!(
        it.poll_event(),
        Some(Event::Closed {
            handle: old,
            reason
        })
    );
    let Some(Event::Request { handle: new, .. }) = it.poll_event() else {
        panic!("no Request");
    };
    assert_ne!(old, new);
    assert_eq!(it.poll_timeout(), None, "the old connection's timer");
    // Commands with the old handle have no effect.
    it.reset(old);
    it.finish(old);
    it.readable(old);
    it.freed(old, 5);
    assert_eq!((it.connections(), it.has_transmit()), (1, false));
    assert_eq!(it.key(new), Some(key()));
}

#[test]
fn two_half_closes_of_the_guest_close_the_connection() {
    let mut it = muxer();
    let handle = open(&mut it);
    let halves = [shutdown::SEND, shutdown::RECEIVE];
    for flags in halves {
        let _ = it.handle_packet(
            &Header {
                flags,
                ..header(SHUTDOWN)
            },
            0,
        );
    }
    let events: Vec<Event> = std::iter::from_fn(|| it.poll_event()).collect();
    let reason = Closed::Clean;
    let expected = [
        Event::Finished { handle },
        Event::ClosedRead { handle },
        Event::Closed { handle, reason },
    ];
    assert_eq!(events, expected);
    assert_eq!(packet(&mut it).map(|it| it.op), Some(RST));
}
