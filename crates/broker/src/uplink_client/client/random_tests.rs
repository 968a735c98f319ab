//! Random orders of everything that can happen, with a host that keeps to no protocol.
//!
//! Whatever happens, the client keeps to its own: a stream begins with one HELLO, nothing is sent without one,
//! each connect and each request ends once and in time, and no table grows beyond its limit.

use std::collections::{BTreeMap, BTreeSet};

use hvsock_endpoint::uplink::{Incoming as IncomingFrame, MAX_CHILDREN, ServiceFlags};
use proptest::prelude::*;

use super::*;

/// Something that happens. Numbers choose among what there is.
#[derive(Clone, Debug)]
enum Event {
    Passes(u16),
    Dialed(bool),
    Ends,
    Arrives(HostFrame),
    Connects { child: bool, seconds: u8 },
    Cancels(usize),
    Streams(usize, bool),
    AddsChild(u8),
    ChangesChild(u8, usize),
    RemovesChild(u8),
    Judges(usize, bool),
    Listens(usize, bool),
    Fetches(usize),
    Syncs,
    Explains,
}

/// The stream to the host, as the owner has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    None,
    Dialing,
    /// Whether HELLO was sent.
    Open(bool),
}

struct Model {
    client: Client,
    now: Instant,
    link: Link,
    next_connect: u64,
    /// The connects without an end, with their deadlines.
    connects: BTreeMap<ConnectionId, Instant>,
    /// Those whose streams are being connected.
    streams: BTreeSet<ConnectionId>,
    /// The requests that the core was told of and has not answered.
    asked: Vec<Request>,
    /// Those that a port is wanted for, and that have one.
    wanted: Vec<Request>,
    listening: BTreeSet<Request>,
}

impl Model {
    fn new() -> Self {
        let now = Instant::now();
        Self {
            client: Client::new([1; 16], 5, now),
            now,
            link: Link::None,
            next_connect: 0,
            connects: BTreeMap::new(),
            streams: BTreeSet::new(),
            asked: Vec::new(),
            wanted: Vec::new(),
            listening: BTreeSet::new(),
        }
    }

    fn happens(&mut self, event: Event) {
        let now = self.now;
        match event {
            Event::Passes(ms) => {
                self.now += millis(ms.into());
                self.client.timeout(self.now);
            }
            Event::Dialed(true) if self.link == Link::Dialing => {
                self.link = Link::Open(false);
                self.client.connected(now);
            }
            Event::Dialed(false) if self.link == Link::Dialing => {
                self.link = Link::None;
                self.client.dial_failed(now, WhyDown::NoBroker);
            }
            Event::Ends if matches!(self.link, Link::Open(_)) => {
                self.link = Link::None;
                self.client.lost(now, WhyDown::Failed("ended".into()));
            }
            Event::Arrives(frame) if matches!(self.link, Link::Open(_)) => {
                self.client.frame(now, frame);
            }
            Event::Connects { child, seconds } => {
                self.next_connect += 1;
                let id = ConnectionId::from_u64(self.next_connect);
                let deadline = now + Duration::from_secs(seconds.into());
                self.connects.insert(id, deadline);
                let child = child.then(|| child_id(0));
                let service = ServiceId::from_port(7);
                self.client.connect(now, id, child, service, deadline);
            }
            Event::Cancels(n) => {
                if let Some(id) = nth(self.connects.keys(), n) {
                    self.connects.remove(&id);
                    self.client.cancel(now, id);
                }
            }
            Event::Streams(n, works) => {
                if let Some(id) = nth(self.streams.iter(), n) {
                    self.streams.remove(&id);
                    if works {
                        self.connects.remove(&id).expect("it had no end");
                        self.client.stream_done(now, id);
                    } else {
                        self.client.stream_failed(now, id, Refusal::NoListener);
                    }
                }
            }
            Event::AddsChild(n) => {
                let state = ChildState::Running;
                if self.client.children.number(child_id(n)).is_none() {
                    self.client.add_child(child_id(n), n.to_string(), state);
                }
            }
            Event::ChangesChild(n, state) => {
                let state = ChildState::ALL[state % ChildState::ALL.len()];
                self.client.set_child_state(child_id(n), state);
            }
            Event::RemovesChild(n) => self.client.remove_child(child_id(n)),
            Event::Judges(n, accepts) if !self.asked.is_empty() => {
                let request = self.asked.swap_remove(n % self.asked.len());
                match accepts {
                    true => self.client.expect(request),
                    false => self.client.refuse_incoming(request, &Refusal::NoListener),
                }
            }
            Event::Listens(n, works) if !self.wanted.is_empty() => {
                let request = self.wanted.swap_remove(n % self.wanted.len());
                let port = match works {
                    true => Ok(99),
                    false => Err(Refusal::AddressInUse),
                };
                if works {
                    self.listening.insert(request);
                }
                self.client.listening(request, port);
            }
            Event::Fetches(n) => {
                if let Some(request) = nth(self.listening.iter(), n) {
                    self.listening.remove(&request);
                    self.client.arrived(request);
                }
            }
            Event::Syncs => assert!(!self.client.sync(1) || self.client.is_open()),
            Event::Explains => {
                let address = SockAddrHv::new(VmId::PARENT, ServiceId::from_port(7));
                self.client.explain(3, None, What::Connect, address);
            }
            _ => {}
        }
        self.act();
    }

    fn act(&mut self) {
        let mut outputs = 0;
        while let Some(output) = self.client.next() {
            outputs += 1;
            assert!(outputs < 2000, "one event has no end of outputs");
            self.does(output);
        }
        assert!(self.client.upwards.counted() <= MAX_PENDING);
        assert!(self.client.downwards.len() <= MAX_PENDING);
        assert!(self.client.children.numbers().len() <= MAX_CHILDREN);
        assert!(self.client.known.len() <= MAX_SERVICES);
        assert!(self.client.explaining.len() <= MAX_PENDING);
        for (id, deadline) in &self.connects {
            assert!(*deadline >= self.now, "{id:?} has outlived its deadline");
        }
    }

    fn does(&mut self, output: Output) {
        match output {
            Output::Dial => {
                assert_eq!(self.link, Link::None, "a second stream");
                self.link = Link::Dialing;
            }
            Output::HangUp => {
                assert_ne!(self.link, Link::None, "nothing to hang up");
                self.link = Link::None;
            }
            Output::Send(frame) => {
                let is_hello = matches!(frame, GuestFrame::Hello(_));
                assert_eq!(self.link, Link::Open(!is_hello), "{frame:?}");
                self.link = Link::Open(true);
                if let GuestFrame::IncomingPort { request, .. } = frame {
                    assert!(self.listening.contains(&request), "{request:?}");
                }
            }
            Output::Connect { id, deadline, .. } => {
                assert_eq!(self.connects.get(&id), Some(&deadline));
                assert!(self.streams.insert(id), "{id:?} is connected twice");
            }
            Output::Abort(id) => assert!(self.streams.remove(&id), "{id:?} has no stream"),
            Output::Fail(id, _) => {
                assert!(self.connects.remove(&id).is_some(), "{id:?} ends twice");
                assert!(!self.streams.contains(&id), "{id:?} still connects");
            }
            Output::Listen { request } => self.wanted.push(request),
            Output::StopListening(request) => {
                self.listening.remove(&request);
            }
            Output::Tell(UplinkEvent::Incoming(incoming)) => self.asked.push(incoming.request),
            Output::Tell(_) => {}
        }
    }
}

fn child_id(n: u8) -> VmId {
    VmId::of_container(&n.to_string())
}

fn nth<'a, T: Copy + 'a>(all: impl ExactSizeIterator<Item = &'a T>, n: usize) -> Option<T> {
    let len = all.len();
    let mut all = all;
    (len > 0).then(|| all.nth(n % len)).flatten().copied()
}

/// A frame of a host that means well, or does not: its numbers are often those in use.
fn any_frame() -> impl Strategy<Value = HostFrame> {
    let request = (1_u64..40).prop_map(Request);
    let child = (0_u32..4).prop_map(ChildId);
    let service = (1_u32..6).prop_map(ServiceId::from_port);
    let reason = (0_u32..25).prop_map(|code| Refused {
        code,
        errno: 1,
        detail: "why".into(),
    });
    let incoming = (request.clone(), child.clone(), 0_u32..3000, service.clone()).prop_map(
        |(request, child, timeout_ms, service)| IncomingFrame {
            request,
            child,
            timeout_ms,
            service,
        },
    );
    let welcome = Welcome {
        features: 0,
        host: VmId::of_container("machine"),
        machine: VmId::of_container("web"),
        host_name: "machine".into(),
        machine_name: "web".into(),
    };
    prop_oneof![
        4 => Just(HostFrame::Welcome(welcome)),
        1 => Just(HostFrame::Ping),
        1 => Just(HostFrame::Pong),
        2 => Just(HostFrame::ServicesEnd),
        1 => reason.clone().prop_map(HostFrame::Refused),
        4 => service.clone().prop_map(|service| HostFrame::Service(Service {
            service,
            flags: ServiceFlags::default(),
            name: "name".into(),
        })),
        2 => service.prop_map(|service| HostFrame::ServiceGone { service }),
        2 => (child, reason.clone()).prop_map(|(child, answer)| HostFrame::Announced(Announced {
            child,
            id: VmId::ZERO,
            answer,
        })),
        6 => (request.clone(), any::<u32>())
            .prop_map(|(request, port)| HostFrame::ConnectPort { request, port }),
        4 => (request.clone(), reason.clone())
            .prop_map(|(request, reason)| HostFrame::ConnectRefused { request, reason }),
        8 => incoming.clone().prop_map(HostFrame::Incoming),
        1 => incoming.prop_map(HostFrame::Explain),
        3 => request.clone().prop_map(|request| HostFrame::Cancel { request }),
        1 => any::<u64>().prop_map(|number| HostFrame::Synced { number }),
        1 => (any::<u64>().prop_map(Request), reason).prop_map(|(request, explanation)| {
            HostFrame::Explained { request, explanation }
        }),
    ]
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (0_u16..200).prop_map(Event::Passes),
        1 => (200_u16..40_000).prop_map(Event::Passes),
        6 => prop::bool::weighted(0.8).prop_map(Event::Dialed),
        1 => Just(Event::Ends),
        14 => any_frame().prop_map(Event::Arrives),
        6 => (any::<bool>(), 1_u8..20)
            .prop_map(|(child, seconds)| Event::Connects { child, seconds }),
        2 => any::<usize>().prop_map(Event::Cancels),
        3 => (any::<usize>(), any::<bool>()).prop_map(|(n, works)| Event::Streams(n, works)),
        2 => (0_u8..3).prop_map(Event::AddsChild),
        1 => (0_u8..3, any::<usize>()).prop_map(|(n, state)| Event::ChangesChild(n, state)),
        1 => (0_u8..3).prop_map(Event::RemovesChild),
        5 => (any::<usize>(), prop::bool::weighted(0.8))
            .prop_map(|(n, accepts)| Event::Judges(n, accepts)),
        4 => (any::<usize>(), prop::bool::weighted(0.8))
            .prop_map(|(n, works)| Event::Listens(n, works)),
        3 => any::<usize>().prop_map(Event::Fetches),
        1 => Just(Event::Syncs),
        1 => Just(Event::Explains),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(hvsock_testkit::cases(96)))]

    #[test]
    fn whatever_the_host_does_each_connect_ends_once_and_in_time(
        events in prop::collection::vec(any_event(), 1..200),
    ) {
        let mut model = Model::new();
        model.happens(Event::Passes(0));
        for event in events {
            model.happens(event);
        }
        // Nobody does anything any more.
        for _ in 0..8 {
            model.happens(Event::Dialed(false));
            model.happens(Event::Passes(5_000));
        }
        prop_assert!(model.connects.is_empty(), "{:?}", model.connects);
        prop_assert!(model.streams.is_empty());
        model.asked.clear();
        prop_assert_eq!(model.client.downwards.len(), 0);
        let next = model.client.deadline();
        prop_assert!(next.is_some_and(|at| at <= model.now + millis(SILENCE_MS)), "{:?}", next);
    }

    #[test]
    fn a_flood_of_connects_and_requests_stays_within_the_limits(
        ups in 0_u64..200,
        downs in prop::collection::vec((0_u64..300, 0_u32..2), 0..300),
    ) {
        let mut model = Model::new();
        model.happens(Event::Passes(0));
        model.happens(Event::Dialed(true));
        let welcome = Welcome {
            features: 0,
            host: VmId::of_container("machine"),
            machine: VmId::of_container("web"),
            host_name: "machine".into(),
            machine_name: "web".into(),
        };
        model.happens(Event::Arrives(HostFrame::Welcome(welcome)));
        for _ in 0..ups {
            model.happens(Event::Connects { child: false, seconds: 5 });
        }
        for (number, child) in downs {
            let incoming = IncomingFrame {
                request: Request(number),
                child: ChildId(child),
                timeout_ms: 1000,
                service: ServiceId::from_port(7),
            };
            model.happens(Event::Arrives(HostFrame::Incoming(incoming)));
        }
        model.happens(Event::Passes(5_000));
        prop_assert!(model.connects.is_empty());
    }
}
