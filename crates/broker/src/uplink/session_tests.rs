use std::collections::VecDeque;

use hvsock_address::ServiceId;
use hvsock_endpoint::uplink::{ChildId, ChildState, ConnectUp, Hello, Incoming, Service, Welcome};
use hvsock_endpoint::uplink::{ServiceFlags, UPLINK_PORT};
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

fn incoming(request: u64) -> HostFrame {
    HostFrame::Incoming(Incoming {
        request: Request(request),
        child: ChildId(1),
        timeout_ms: 1000,
        service: ServiceId::from_port(UPLINK_PORT),
    })
}

fn cancel(request: u64) -> HostFrame {
    HostFrame::Cancel {
        request: Request(request),
    }
}

fn service(number: u32) -> Service {
    Service {
        service: ServiceId::from_port(number),
        flags: ServiceFlags::default(),
        name: number.to_string(),
    }
}

fn withdraw() -> GuestFrame {
    GuestFrame::Withdraw { child: ChildId(1) }
}

fn drain(session: &mut UplinkSession) -> Vec<HostFrame> {
    std::iter::from_fn(|| session.next_frame()).collect()
}

#[test]
fn a_guest_is_welcomed_before_it_is_told_of_services_and_told_of_them_before_later_answers() {
    let mut session = UplinkSession::new(Instant::now());
    let welcome = HostFrame::Welcome(Welcome {
        features: 0,
        host: hvsock_address::VmId::of_container("host"),
        machine: hvsock_address::VmId::of_container("web"),
        host_name: "host".into(),
        machine_name: "web".into(),
    });
    session.send(welcome.clone()).unwrap();
    session
        .mirror
        .set(ServiceId::from_port(7), Some(service(7)));
    session.send(HostFrame::ServicesEnd).unwrap();
    let synced = HostFrame::Synced { number: 3 };
    session.send(synced.clone()).unwrap();
    let told = HostFrame::Service(service(7));
    assert_eq!(
        drain(&mut session),
        [welcome, told, HostFrame::ServicesEnd, synced]
    );
}

#[test]
fn a_frame_that_an_uplink_does_not_have_ends_it() {
    let now = Instant::now();
    let mut session = UplinkSession::new(now);
    let hello = GuestFrame::Hello(Hello {
        features: 0,
        instance: [0; 16],
    });
    let lookup = GuestFrame::Lookup {
        kind: hvsock_endpoint::LookupKind::Service,
        name: "a".into(),
    };
    for frame in [hello, lookup] {
        let end = session.receive(frame, now).unwrap_err();
        assert!(matches!(end, SessionEnd::Violation(_)), "{end}");
    }
}

#[test]
fn a_request_that_is_cancelled_before_it_was_sent_is_not_sent() {
    let mut session = UplinkSession::new(Instant::now());
    session.send(incoming(1)).unwrap();
    assert_eq!(session.next_frame(), Some(incoming(1)));
    session.send(incoming(2)).unwrap();
    session.send(cancel(1)).unwrap();
    session.send(cancel(2)).unwrap();
    assert_eq!(drain(&mut session), [cancel(1)]);
}

#[test]
fn a_guest_that_does_not_read_is_not_read_and_then_given_up() {
    let now = Instant::now();
    let mut session = UplinkSession::new(now);
    let mut read = 0;
    while session.may_read(now) {
        session.receive(GuestFrame::Ping, now).unwrap();
        read += 1;
    }
    assert_eq!(read, READ_BELOW);
    // What the core has to say is bounded, too, however long the guest does not read.
    let full = (0..).map(|number| session.send(HostFrame::Synced { number }));
    let end = full.take(10_000).find_map(Result::err);
    assert_eq!(end, Some(SessionEnd::NotReading));
    assert_eq!(drain(&mut session).len(), MAX_QUEUED);
    session.wrote(10, 100, now);
    session.wrote(11, 99, now + SILENCE / 2);
    session.last_received = now + SILENCE;
    assert_eq!(session.expire(now + SILENCE), Ok(()));
    let end = session.expire(now + SILENCE / 2 + SILENCE);
    assert_eq!(end, Err(SessionEnd::NotReading));
    session.wrote(110, 0, now + SILENCE);
    assert_eq!(session.stuck, None);
}

#[test]
fn a_guest_that_changes_its_containers_too_fast_is_read_later() {
    let now = Instant::now();
    let mut session = UplinkSession::new(now);
    let mut taken = 0;
    while session.may_read(now) {
        session.receive(withdraw(), now).unwrap();
        taken += 1;
        assert!(taken < 10_000);
    }
    let again = session.reads_again_at(now).unwrap();
    assert!(again > now && session.next_deadline(now) == Some(again));
    assert!(session.may_read(again));
    // It is not silent meanwhile.
    assert_eq!(session.expire(now), Ok(()));
}

#[test]
fn silence_is_asked_about_and_ends_the_uplink_unless_the_machine_is_paused() {
    let start = Instant::now();
    let mut session = UplinkSession::new(start);
    assert_eq!(session.next_deadline(start), Some(start + PING_AFTER));
    assert_eq!(session.expire(start + PING_AFTER), Ok(()));
    assert_eq!(drain(&mut session), [HostFrame::Ping]);
    assert_eq!(session.next_deadline(start), Some(start + SILENCE));
    session
        .receive(GuestFrame::Pong, start + PING_AFTER * 2)
        .unwrap();
    assert_eq!(session.expire(start + SILENCE), Ok(()));
    session.suspend(true, start + SILENCE);
    let later = start + SILENCE * 10;
    assert_eq!(session.next_deadline(later), None);
    assert_eq!(session.expire(later), Ok(()));
    session.suspend(false, later);
    assert_eq!(session.expire(later + SILENCE / 2), Ok(()));
    assert_eq!(session.expire(later + SILENCE), Err(SessionEnd::Silent));
}

#[derive(Clone, Debug)]
enum Op {
    Ping,
    Withdraw,
    Connect(u64),
    Ask(u64),
    Cancel(u64),
    Answer(u64),
    Service(u32, bool),
    Suspend(bool),
    /// So many frames are taken, and so many of their bytes are accepted.
    Read(usize),
    Wait(u64),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        1 => Just(Op::Ping),
        3 => Just(Op::Withdraw),
        1 => (0..9_u64).prop_map(Op::Connect),
        4 => (0..20_u64).prop_map(Op::Ask),
        4 => (0..20_u64).prop_map(Op::Cancel),
        1 => (0..9_u64).prop_map(Op::Answer),
        1 => (0..9_u32, any::<bool>()).prop_map(|(number, is_there)| Op::Service(number, is_there)),
        1 => any::<bool>().prop_map(Op::Suspend),
        2 => (0..40_usize).prop_map(Op::Read),
        1 => (0..40_000_u64).prop_map(Op::Wait),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn an_uplink_stays_bounded_and_in_order_whatever_happens(ops in vec(op(), 0..300)) {
        let mut now = Instant::now();
        let mut session = UplinkSession::new(now);
        // What the guest has to be sent, in order.
        let mut expected = VecDeque::new();
        let mut asked = 0;
        for op in ops {
            match op {
                Op::Ping | Op::Withdraw | Op::Connect(_) if !session.may_read(now) => {}
                Op::Ping => {
                    prop_assert_eq!(session.receive(GuestFrame::Ping, now), Ok(None));
                    expected.push_back(HostFrame::Pong);
                }
                Op::Withdraw => {
                    let state = GuestFrame::ChildState {
                        child: ChildId(1),
                        state: ChildState::Paused,
                    };
                    prop_assert_eq!(session.receive(state.clone(), now), Ok(Some(state)));
                }
                Op::Connect(number) => {
                    let connect = GuestFrame::Connect(ConnectUp {
                        request: Request(number),
                        child: ChildId(1),
                        timeout_ms: 1,
                        address: hvsock_address::SockAddrHv::new(
                            hvsock_address::VmId::PARENT,
                            ServiceId::from_port(1),
                        ),
                    });
                    prop_assert_eq!(session.receive(connect.clone(), now), Ok(Some(connect)));
                }
                Op::Ask(number) => {
                    asked += 1;
                    if session.send(incoming(number)).is_ok() {
                        expected.push_back(incoming(number));
                    }
                }
                Op::Cancel(number) => {
                    let at = expected.iter().position(|frame| *frame == incoming(number));
                    let sent = session.send(cancel(number));
                    match at {
                        Some(at) => drop(expected.remove(at)),
                        None if sent.is_ok() => expected.push_back(cancel(number)),
                        None => {}
                    }
                }
                Op::Answer(number) => {
                    if session.send(HostFrame::Synced { number }).is_ok() {
                        expected.push_back(HostFrame::Synced { number });
                    }
                }
                Op::Service(number, is_there) => {
                    let settings = is_there.then(|| service(number));
                    session.mirror.set(ServiceId::from_port(number), settings);
                }
                Op::Suspend(suspended) => session.suspend(suspended, now),
                Op::Read(frames) => {
                    for _ in 0..frames {
                        match session.next_frame() {
                            Some(HostFrame::Service(_) | HostFrame::ServiceGone { .. }) => {}
                            Some(HostFrame::Ping) => {}
                            frame => {
                                let next = expected.pop_front();
                                prop_assert_eq!(frame, next);
                            }
                        }
                    }
                }
                Op::Wait(ms) => {
                    now += Duration::from_millis(ms);
                    if let Err(end) = session.expire(now) {
                        prop_assert_eq!(end, SessionEnd::Silent);
                        session.receive(GuestFrame::Pong, now).unwrap();
                    }
                }
            }
            prop_assert!(session.queue.len() <= MAX_QUEUED);
            // It never expires again at once.
            if session.expire(now).is_ok() {
                prop_assert!(session.next_deadline(now).is_none_or(|at| at > now));
            }
            let _ = asked;
        }
    }
}
