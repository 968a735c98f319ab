//! The state machine, one situation at a time.

use hvsock_endpoint::uplink::{BindScope, Incoming as IncomingFrame, ServiceFlags};

use super::*;
use crate::reply::refused;

const SERVICE: ServiceId = ServiceId::from_port(7);

/// A client with its clock.
struct Driver {
    client: Client,
    now: Instant,
}

impl Driver {
    /// A client that is being connected.
    fn new() -> Self {
        let now = Instant::now();
        let mut driver = Self {
            client: Client::new([7; 16], 7, now),
            now,
        };
        assert_eq!(driver.after(Duration::ZERO), [Output::Dial]);
        driver
    }

    /// A client with an uplink, whose host has one service.
    fn open() -> Self {
        let mut driver = Self::new();
        driver.opens();
        driver
    }

    fn opens(&mut self) {
        self.client.connected(self.now);
        let sent = self.outputs();
        assert!(
            matches!(sent[..], [Output::Send(GuestFrame::Hello(_))]),
            "{sent:?}"
        );
        self.gets(HostFrame::Welcome(welcome()));
        self.gets(HostFrame::Service(service(SERVICE)));
        self.gets(HostFrame::ServicesEnd);
        assert!(self.client.is_open());
    }

    fn outputs(&mut self) -> Vec<Output> {
        std::iter::from_fn(|| self.client.next()).collect()
    }

    fn after(&mut self, wait: Duration) -> Vec<Output> {
        self.now += wait;
        self.client.timeout(self.now);
        self.outputs()
    }

    fn gets(&mut self, frame: HostFrame) -> Vec<Output> {
        self.client.frame(self.now, frame);
        self.outputs()
    }

    fn connects(&mut self, number: u64, child: Option<VmId>, seconds: u64) -> Vec<Output> {
        let deadline = self.now + Duration::from_secs(seconds);
        let id = ConnectionId::from_u64(number);
        self.client.connect(self.now, id, child, SERVICE, deadline);
        self.outputs()
    }

    fn loses(&mut self) -> Vec<Output> {
        self.client.lost(self.now, failed());
        self.outputs()
    }
}

fn failed() -> WhyDown {
    WhyDown::Failed("it ended".into())
}

fn welcome() -> Welcome {
    Welcome {
        features: 0,
        host: VmId::of_container("machine"),
        machine: VmId::of_container("web"),
        host_name: "machine".into(),
        machine_name: "web".into(),
    }
}

fn service(service: ServiceId) -> Service {
    Service {
        service,
        flags: ServiceFlags {
            enabled: true,
            may_connect: true,
            bind: BindScope::Everyone,
            wildcard: true,
        },
        name: format!("Service {service}"),
    }
}

fn box_id() -> VmId {
    VmId::of_container("box")
}

fn connect_port(number: u64, port: u32) -> HostFrame {
    HostFrame::ConnectPort {
        request: Request(number),
        port,
    }
}

fn incoming(number: u64, child: u32) -> HostFrame {
    HostFrame::Incoming(IncomingFrame {
        request: Request(number),
        child: ChildId(child),
        timeout_ms: 1000,
        service: SERVICE,
    })
}

/// The one frame among these outputs.
fn frame(outputs: &[Output]) -> &GuestFrame {
    match outputs {
        [Output::Send(frame)] => frame,
        other => panic!("{other:?}"),
    }
}

fn fails(outputs: &[Output], number: u64) -> &Refusal {
    match outputs {
        [.., Output::Fail(id, refusal)] if id.as_u64() == number => refusal,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_services_are_told_at_once_and_then_each_change() {
    let mut driver = Driver::new();
    driver.client.connected(driver.now);
    driver.outputs();
    let state = driver.gets(HostFrame::Welcome(welcome()));
    let open = UplinkEvent::State(UplinkState::Open(welcome()));
    assert_eq!(state, [Output::Tell(open)]);
    let [first, second] = [1, 2].map(|port| service(ServiceId::from_port(port)));
    for one in [&first, &second] {
        assert!(driver.gets(HostFrame::Service(one.clone())).is_empty());
    }
    let all = UplinkEvent::Services(vec![first.clone(), second]);
    assert_eq!(driver.gets(HostFrame::ServicesEnd), [Output::Tell(all)]);
    let change = UplinkEvent::Service(first.clone());
    assert_eq!(
        driver.gets(HostFrame::Service(first.clone())),
        [Output::Tell(change)]
    );
    let service = first.service;
    let gone = UplinkEvent::ServiceGone(service);
    assert_eq!(
        driver.gets(HostFrame::ServiceGone { service }),
        [Output::Tell(gone)]
    );
    assert!(driver.gets(HostFrame::ServiceGone { service }).is_empty());
}

#[test]
fn a_connect_of_the_machine_gets_the_port_that_the_host_names() {
    let mut driver = Driver::open();
    let sent = driver.connects(1, None, 5);
    let GuestFrame::Connect(up) = frame(&sent) else {
        panic!("{sent:?}");
    };
    assert_eq!((up.child, up.timeout_ms), (ChildId::MACHINE, 5000));
    assert_eq!(up.address, SockAddrHv::new(VmId::PARENT, SERVICE));
    let told = driver.gets(connect_port(1, 1 << 24));
    let deadline = driver.now + Duration::from_secs(5);
    let id = ConnectionId::from_u64(1);
    let port = 1 << 24;
    assert_eq!(told, [Output::Connect { id, port, deadline }]);
    driver.client.stream_done(driver.now, id);
    // A late or invented answer concerns nothing.
    assert!(driver.gets(connect_port(1, 5)).is_empty());
    assert!(driver.after(Duration::from_secs(5)).is_empty());
}

#[test]
fn a_refusal_of_the_host_reaches_the_process_with_its_reason() {
    let mut driver = Driver::open();
    driver.connects(1, None, 5);
    let refusal = Refusal::Denied {
        rule: "partitions = []".into(),
    };
    let told = driver.gets(HostFrame::ConnectRefused {
        request: Request(1),
        reason: refused(&refusal),
    });
    assert_eq!(fails(&told, 1), &refusal);
}

#[test]
fn a_stream_that_the_host_refuses_has_its_reason_whichever_comes_first() {
    let refusal = || Refusal::BacklogFull;
    let answer = |number| HostFrame::ConnectRefused {
        request: Request(number),
        reason: refused(&refusal()),
    };
    let mut driver = Driver::open();
    let id = ConnectionId::from_u64;
    for number in 1..=4 {
        driver.connects(number, None, 5);
        driver.gets(connect_port(number, 1 << 24));
    }
    // The reason, before the kernel says anything.
    let told = driver.gets(answer(1));
    assert_eq!(told[0], Output::Abort(id(1)));
    assert_eq!(fails(&told, 1), &refusal());
    // The kernel, then the reason.
    let now = driver.now;
    driver.client.stream_failed(now, id(2), Refusal::NoListener);
    assert!(driver.outputs().is_empty());
    assert_eq!(fails(&driver.gets(answer(2)), 2), &refusal());
    // The kernel, and no reason.
    driver.client.stream_failed(now, id(3), Refusal::NoListener);
    assert!(driver.outputs().is_empty());
    assert_eq!(fails(&driver.after(REASON_WAIT), 3), &Refusal::NoListener);
    // A stream that was connected and then closed.
    driver.client.stream_done(now, id(4));
    let told = UplinkEvent::StreamRefused(id(4), refusal());
    assert_eq!(driver.gets(answer(4)), [Output::Tell(told)]);
}

#[test]
fn a_host_that_ends_the_uplink_says_why() {
    let mut driver = Driver::open();
    let rule = "a rule".to_owned();
    let outputs = driver.gets(HostFrame::Refused(refused(&Refusal::Denied { rule })));
    assert_eq!(outputs[0], Output::HangUp);
    assert!(
        matches!(
            &outputs[1],
            Output::Tell(UplinkEvent::State(UplinkState::Down(WhyDown::Refused(why))))
                if why.contains("a rule")
        ),
        "{outputs:?}"
    );
}

#[test]
fn a_connect_without_an_answer_times_out_and_the_host_is_told() {
    let mut driver = Driver::open();
    driver.connects(1, None, 5);
    assert!(driver.after(Duration::from_millis(4999)).is_empty());
    let told = driver.after(Duration::from_millis(1));
    let request = Request(1);
    let cancel = Output::Send(GuestFrame::Cancel { request });
    assert_eq!(told[0], cancel);
    assert_eq!(fails(&told, 1), &Refusal::TimedOut);
}

#[test]
fn a_connect_that_is_given_up_stops_its_stream() {
    let mut driver = Driver::open();
    driver.connects(1, None, 5);
    driver.gets(connect_port(1, 1 << 24));
    let id = ConnectionId::from_u64(1);
    driver.client.cancel(driver.now, id);
    let request = Request(1);
    let cancel = Output::Send(GuestFrame::Cancel { request });
    assert_eq!(driver.outputs(), [Output::Abort(id), cancel]);
}

#[test]
fn the_host_is_asked_for_no_more_than_it_counts_and_in_order() {
    let mut driver = Driver::open();
    let most = MAX_PENDING as u64;
    for number in 1..=most {
        assert_eq!(driver.connects(number, None, 5).len(), 1);
    }
    assert!(driver.connects(most + 1, None, 5).is_empty());
    assert!(driver.connects(most + 2, None, 5).is_empty());
    // One with a port counts until its stream is there.
    assert!(matches!(
        driver.gets(connect_port(1, 1 << 24))[..],
        [Output::Connect { .. }]
    ));
    driver
        .client
        .stream_done(driver.now, ConnectionId::from_u64(1));
    let sent = driver.outputs();
    assert!(
        matches!(frame(&sent), GuestFrame::Connect(up) if up.request == Request(most + 1)),
        "{sent:?}"
    );
}

#[test]
fn without_an_uplink_the_machine_connects_by_port_and_a_container_is_refused() {
    let mut driver = Driver::new();
    // They wait for the first attempt.
    assert!(driver.connects(1, None, 5).is_empty());
    driver
        .client
        .add_child(box_id(), "box".into(), ChildState::Unknown);
    assert!(driver.connects(2, Some(box_id()), 5).is_empty());
    driver.client.dial_failed(driver.now, WhyDown::NoBroker);
    let outputs = driver.outputs();
    let down = UplinkEvent::State(UplinkState::Down(WhyDown::NoBroker));
    assert_eq!(outputs[0], Output::Tell(down));
    assert!(
        matches!(outputs[1], Output::Connect { port: 7, .. }),
        "{outputs:?}"
    );
    assert_eq!(fails(&outputs, 2), &Refusal::PartitionOff);
    // Later ones do not wait.
    assert!(matches!(
        driver.connects(3, None, 5)[..],
        [Output::Connect { port: 7, .. }]
    ));
}

#[test]
fn what_a_lost_uplink_was_asked_for_is_asked_again_and_connects_wait_a_while() {
    let mut driver = Driver::open();
    driver.connects(1, None, 30);
    let outputs = driver.loses();
    assert!(
        matches!(outputs[..], [Output::Tell(UplinkEvent::State(_))]),
        "{outputs:?}"
    );
    assert!(driver.connects(2, None, 30).is_empty());
    // It comes back in time.
    let wait = driver.client.deadline().unwrap() - driver.now;
    assert!(wait >= RETRY[0] && wait <= RETRY[0] * 2, "{wait:?}");
    assert_eq!(driver.after(wait), [Output::Dial]);
    driver.client.dial_failed(driver.now, WhyDown::NoBroker);
    driver.outputs();
    let wait = driver.client.deadline().unwrap() - driver.now;
    assert_eq!(driver.after(wait), [Output::Dial]);
    driver.client.connected(driver.now);
    driver.outputs();
    let outputs = driver.gets(HostFrame::Welcome(welcome()));
    let asked = outputs.iter().filter_map(|output| match output {
        Output::Send(GuestFrame::Connect(up)) => Some(up.request.0),
        _ => None,
    });
    assert!(asked.eq([1, 2]), "{outputs:?}");
    // Or it does not.
    driver.gets(HostFrame::ServicesEnd);
    driver.loses();
    assert!(driver.connects(3, None, 30).is_empty());
    let outputs = driver.after(SETTLE);
    assert!(
        outputs
            .iter()
            .any(|output| matches!(output, Output::Connect { port: 7, .. })),
        "{outputs:?}"
    );
}

#[test]
fn containers_are_announced_on_every_uplink_and_their_changes_on_this_one() {
    let mut driver = Driver::new();
    let state = ChildState::Defined;
    driver.client.add_child(box_id(), "box".into(), state);
    driver.client.set_child_state(box_id(), ChildState::Running);
    assert!(driver.outputs().is_empty());
    for _ in 0..2 {
        driver.client.connected(driver.now);
        driver.outputs();
        let outputs = driver.gets(HostFrame::Welcome(welcome()));
        let [
            Output::Tell(_),
            Output::Send(GuestFrame::Announce(announce)),
        ] = &outputs[..]
        else {
            panic!("{outputs:?}");
        };
        assert_eq!(
            (announce.state, announce.id, &*announce.name),
            (ChildState::Running, box_id(), "box")
        );
        driver.client.set_child_state(box_id(), ChildState::Running);
        assert!(driver.outputs().is_empty());
        driver.loses();
        let wait = driver.client.deadline().unwrap() - driver.now;
        driver.after(wait);
    }
    driver.opens();
    driver.client.set_child_state(box_id(), ChildState::Paused);
    assert!(matches!(
        frame(&driver.outputs()),
        GuestFrame::ChildState {
            state: ChildState::Paused,
            ..
        }
    ));
    driver.client.remove_child(box_id());
    assert!(matches!(
        frame(&driver.outputs()),
        GuestFrame::Withdraw { child: ChildId(1) }
    ));
}

#[test]
fn a_container_that_the_host_refuses_is_reported_and_not_spoken_of_again() {
    let mut driver = Driver::open();
    let state = ChildState::Running;
    driver.client.add_child(box_id(), "box".into(), state);
    driver.outputs();
    let told = driver.gets(HostFrame::Announced(Announced {
        child: ChildId(1),
        id: VmId::ZERO,
        answer: Refused {
            code: 3,
            errno: 13,
            detail: "the name is taken".into(),
        },
    }));
    let why = Err("the name is taken".to_owned());
    assert_eq!(told, [Output::Tell(UplinkEvent::Announced(box_id(), why))]);
    driver.client.set_child_state(box_id(), ChildState::Paused);
    driver.client.remove_child(box_id());
    assert!(driver.outputs().is_empty());
}

#[test]
fn a_request_of_the_host_is_judged_and_then_expected_at_a_port() {
    let mut driver = Driver::open();
    let state = ChildState::Running;
    driver.client.add_child(box_id(), "box".into(), state);
    driver.outputs();
    let told = driver.gets(incoming(5, 1));
    let [Output::Tell(UplinkEvent::Incoming(asked))] = &told[..] else {
        panic!("{told:?}");
    };
    assert_eq!((asked.child, asked.service), (Some(box_id()), SERVICE));
    let request = Request(5);
    driver.client.expect(request);
    assert_eq!(driver.outputs(), [Output::Listen { request }]);
    driver.client.listening(request, Ok(99));
    let answer = GuestFrame::IncomingPort { request, port: 99 };
    assert_eq!(driver.outputs(), [Output::Send(answer)]);
    assert_eq!(
        driver.client.arrived(request),
        Some((Some(box_id()), SERVICE))
    );
    assert_eq!(driver.client.arrived(request), None);
    // The machine itself, refused.
    driver.gets(incoming(6, 0));
    let request = Request(6);
    driver.client.refuse_incoming(request, &Refusal::NoListener);
    let reason = refused(&Refusal::NoListener);
    let answer = GuestFrame::IncomingRefused { request, reason };
    assert_eq!(driver.outputs(), [Output::Send(answer)]);
}

#[test]
fn a_request_that_nobody_answers_or_fetches_is_forgotten() {
    let mut driver = Driver::open();
    driver.gets(incoming(1, 0));
    driver.gets(incoming(2, 0));
    let [first, second] = [Request(1), Request(2)];
    driver.client.expect(second);
    driver.client.listening(second, Ok(99));
    driver.outputs();
    let outputs = driver.after(Duration::from_secs(1));
    let reason = refused(&Refusal::TimedOut);
    let answer = Output::Send(GuestFrame::IncomingRefused {
        request: first,
        reason,
    });
    assert_eq!(outputs, [answer, Output::StopListening(second)]);
    // The answers of the core come too late.
    driver.client.expect(first);
    driver.client.listening(second, Ok(100));
    assert_eq!(driver.outputs(), [Output::StopListening(second)]);
}

#[test]
fn a_request_that_the_host_gives_up_is_not_listened_for() {
    let mut driver = Driver::open();
    for cancelled in [1, 2] {
        driver.gets(incoming(cancelled, 0));
    }
    let request = Request(2);
    driver.client.expect(request);
    driver.outputs();
    let cancel = |request| HostFrame::Cancel { request };
    assert!(driver.gets(cancel(Request(1))).is_empty());
    assert_eq!(
        driver.gets(cancel(request)),
        [Output::StopListening(request)]
    );
    driver.client.expect(Request(1));
    assert!(driver.outputs().is_empty());
}

#[test]
fn a_flood_of_requests_is_refused_and_a_number_twice_ends_the_uplink() {
    let mut driver = Driver::open();
    for number in 1..=MAX_PENDING as u64 {
        assert_eq!(driver.gets(incoming(number, 0)).len(), 1);
    }
    let full = driver.gets(incoming(1000, 0));
    assert!(
        matches!(frame(&full), GuestFrame::IncomingRefused { reason, .. } if reason.code == 16),
        "{full:?}"
    );
    let ended = driver.gets(incoming(1, 0));
    assert_eq!(ended[0], Output::HangUp);
    assert!(!driver.client.is_open());
}

#[test]
fn a_host_that_does_not_keep_to_the_protocol_loses_the_uplink_only() {
    let found = HostFrame::Found { guid: [0; 16] };
    for (before, frame) in [
        (true, found.clone()),
        (true, HostFrame::ServicesEnd),
        (true, incoming(1, 0)),
        (false, HostFrame::Welcome(welcome())),
        (false, HostFrame::ServicesEnd),
        (false, found),
    ] {
        let mut driver = match before {
            true => {
                let mut driver = Driver::new();
                driver.client.connected(driver.now);
                driver.outputs();
                driver
            }
            false => Driver::open(),
        };
        let outputs = driver.gets(frame.clone());
        assert_eq!(outputs[0], Output::HangUp, "{frame:?}");
        let wait = driver.client.deadline().unwrap() - driver.now;
        assert_eq!(driver.after(wait), [Output::Dial]);
    }
}

#[test]
fn a_host_that_refuses_the_uplink_is_asked_again_later() {
    let mut driver = Driver::new();
    driver.client.connected(driver.now);
    driver.outputs();
    let rule = "a port below 1024 is required".to_owned();
    let outputs = driver.gets(HostFrame::Refused(refused(&Refusal::Denied { rule })));
    assert_eq!(outputs[0], Output::HangUp);
    assert!(
        matches!(
            &outputs[1],
            Output::Tell(UplinkEvent::State(UplinkState::Down(WhyDown::Refused(why))))
                if why.contains("below 1024")
        ),
        "{outputs:?}"
    );
    // The same again is not told again.
    let wait = driver.client.deadline().unwrap() - driver.now;
    driver.after(wait);
    driver.client.connected(driver.now);
    driver.outputs();
    let rule = "a port below 1024 is required".to_owned();
    let outputs = driver.gets(HostFrame::Refused(refused(&Refusal::Denied { rule })));
    assert_eq!(outputs, [Output::HangUp]);
}

#[test]
fn a_silent_host_is_pinged_and_then_given_up() {
    let mut driver = Driver::open();
    let ping = Output::Send(GuestFrame::Ping);
    assert!(driver.after(millis(PING_MS - 1)).is_empty());
    assert_eq!(driver.after(millis(1)), std::slice::from_ref(&ping));
    driver.gets(HostFrame::Pong);
    assert!(driver.after(millis(PING_MS - 1)).is_empty());
    assert_eq!(driver.after(millis(1)), std::slice::from_ref(&ping));
    assert_eq!(driver.after(millis(PING_MS)), [ping]);
    let ended = driver.after(millis(PING_MS));
    assert_eq!(ended[0], Output::HangUp);
    // Its own PING is answered.
    let mut driver = Driver::open();
    let pong = Output::Send(GuestFrame::Pong);
    assert_eq!(driver.gets(HostFrame::Ping), [pong]);
}

#[test]
fn an_attempt_that_hangs_is_given_up_and_the_wait_grows_to_its_bound() {
    let mut driver = Driver::new();
    let mut waits = Vec::new();
    for _ in 0..9 {
        let outputs = driver.after(DIAL_TIMEOUT);
        assert_eq!(outputs[0], Output::HangUp);
        let wait = driver.client.deadline().unwrap() - driver.now;
        waits.push(wait);
        assert_eq!(driver.after(wait), [Output::Dial]);
    }
    for (n, wait) in waits.iter().enumerate() {
        let least = (RETRY[0] * 2_u32.pow(n as u32)).min(RETRY[1]);
        assert!(*wait >= least && *wait <= least.mul_f64(1.5), "{waits:?}");
    }
}

#[test]
fn an_explanation_comes_for_its_question_only() {
    let mut driver = Driver::open();
    let address = SockAddrHv::new(VmId::PARENT, SERVICE);
    let ask =
        |driver: &mut Driver, number| driver.client.explain(number, None, What::Connect, address);
    assert!(ask(&mut driver, 1));
    let sent = driver.outputs();
    let GuestFrame::Explain(explain) = frame(&sent) else {
        panic!("{sent:?}");
    };
    let request = explain.request;
    let explanation = refused(&Refusal::NoListener);
    let answer = |request| HostFrame::Explained {
        request,
        explanation: explanation.clone(),
    };
    assert!(driver.gets(answer(Request(1))).is_empty());
    assert_eq!(driver.gets(answer(request)).len(), 1);
    assert!(driver.gets(answer(request)).is_empty());
    // A container that nobody has added cannot ask, and so can nobody without an uplink.
    assert!(
        !driver
            .client
            .explain(2, Some(box_id()), What::Connect, address)
    );
    driver.loses();
    assert!(!ask(&mut driver, 3));
}

#[test]
fn a_host_with_more_services_than_the_limit_is_heard_up_to_it() {
    let mut driver = Driver::new();
    driver.client.connected(driver.now);
    driver.outputs();
    driver.gets(HostFrame::Welcome(welcome()));
    for port in 0..MAX_SERVICES as u32 + 10 {
        let one = service(ServiceId::from_port(port));
        assert!(driver.gets(HostFrame::Service(one)).is_empty());
    }
    let told = driver.gets(HostFrame::ServicesEnd);
    let [Output::Tell(UplinkEvent::Services(all))] = &told[..] else {
        panic!("not all at once");
    };
    assert_eq!(all.len(), MAX_SERVICES);
    let other = service(ServiceId::from_port(1 << 30));
    assert!(driver.gets(HostFrame::Service(other)).is_empty());
}
