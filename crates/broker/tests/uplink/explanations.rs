//! `why` about a container in a VM: the host's checks, and then the guest's.

use hvsock::ServiceId;
use hvsock_broker::model::ExplanationReport;
use hvsock_endpoint::Refused;
use hvsock_endpoint::uplink::{GuestFrame, HostFrame};
use hvsock_testkit::world::{PORT, World, partition_ref};

use crate::guest_broker::{BOX, GuestBroker};

fn explain(world: &World, from: Option<&str>, to: &str) -> ExplanationReport {
    let from = from.map(partition_ref);
    let principal = hvsock_registry::Principal::default();
    let service = ServiceId::from_port(PORT).into();
    let handle = world.handle();
    let explained = handle.explain_connect(from.as_ref(), &partition_ref(to), &service, principal);
    explained.unwrap()
}

#[test]
fn the_hosts_checks_are_followed_by_those_of_the_broker_in_the_guest() {
    let world = World::with_web(|_| ());
    let guest = world.guest();
    let mut broker = GuestBroker::open(&guest);
    broker.announce_box();
    let report = std::thread::scope(|scope| {
        let explaining = scope.spawn(|| explain(&world, None, "web/box"));
        let Some(HostFrame::Explain(question)) = broker.next() else {
            panic!("no question");
        };
        assert_eq!(
            (question.child, question.service),
            (BOX, ServiceId::from_port(PORT))
        );
        broker.client.send(&GuestFrame::Explained {
            request: question.request,
            explanation: Refused {
                code: 9,
                errno: 111,
                detail: "\nfail\tWhich listener in box accepts it?\tnone\tcheck=listener\n".into(),
            },
        });
        explaining.join().unwrap()
    });
    let asked = report
        .steps
        .iter()
        .position(|step| step.question.contains("broker in web"));
    let asked = asked.expect("a step");
    assert!(asked >= 3, "{report:?}");
    assert_eq!(
        report.steps[asked + 1].question,
        "in web: Which listener in box accepts it?"
    );
    assert_eq!(report.refusal.unwrap().reason, "no_listener");
}

#[test]
fn a_silent_broker_is_named_and_a_refusal_of_the_host_asks_it_nothing() {
    let world = World::with_web(|_| ());
    let guest = world.guest();
    let mut broker = GuestBroker::open(&guest);
    broker.announce_box();
    let report = explain(&world, None, "web/box");
    let last = report.steps.last().unwrap();
    assert!(last.answer.contains("not answered"), "{report:?}");
    assert_eq!(report.refusal, None);
    let Some(HostFrame::Explain(question)) = broker.next() else {
        panic!("no question");
    };
    let request = question.request;
    assert_eq!(broker.next(), Some(HostFrame::Cancel { request }));
    let service = hvsock_testkit::world::service_ref(PORT);
    world.handle().set_enabled(&service, false, None).unwrap();
    assert_eq!(
        explain(&world, None, "web/box").refusal.unwrap().reason,
        "disabled"
    );
    broker.sync();
}

#[test]
fn from_a_container_the_guest_is_said_to_judge_first() {
    let world = World::with_web(|_| ());
    let guest = world.guest();
    let mut broker = GuestBroker::open(&guest);
    let id = broker.announce_box();
    let _listener = world.host().listen(id, PORT).unwrap();
    let report = explain(&world, Some("web/box"), "testhost");
    assert_eq!(report.refusal, None, "{report:?}");
    let said = report
        .steps
        .iter()
        .any(|step| step.question.contains("registry of web"));
    assert!(said, "{report:?}");
}

#[test]
fn a_process_that_asks_at_its_endpoint_gets_the_guests_part_too() {
    let world = World::with_web(|_| ());
    let guest = world.guest();
    let mut broker = GuestBroker::open(&guest);
    broker.announce_box();
    let id = world.partition("web/box").id;
    let options = world.host().options();
    let address = (id, ServiceId::from_port(PORT));
    let explanation = std::thread::scope(|scope| {
        let explaining = scope.spawn(|| options.explain(address));
        let Some(HostFrame::Explain(question)) = broker.next() else {
            panic!("no question");
        };
        broker.client.send(&GuestFrame::Explained {
            request: question.request,
            explanation: Refused {
                code: 9,
                errno: 111,
                detail: "\nfail\tWhich listener?\tnone\tcheck=listener\n".into(),
            },
        });
        explaining.join().unwrap().unwrap()
    });
    assert_eq!(explanation.refusal(), Some(&hvsock::Refusal::NoListener));
    let last = explanation.steps().last().unwrap();
    assert_eq!(last.question(), "in web: Which listener?");
    // Without an answer, and when the broker ends meanwhile, it gets the host's part.
    let silent = options.explain(address).unwrap();
    assert!(
        silent.to_string().contains("not answered in time"),
        "{silent}"
    );
    assert!(matches!(broker.next(), Some(HostFrame::Explain(_))));
    assert!(matches!(broker.next(), Some(HostFrame::Cancel { .. })));
    let ended = std::thread::scope(|scope| {
        let explaining = scope.spawn(|| options.explain(address));
        assert!(matches!(broker.next(), Some(HostFrame::Explain(_))));
        broker.client.stream.reset();
        explaining.join().unwrap().unwrap()
    });
    assert!(ended.to_string().contains("not answered"), "{ended}");
}
