//! Connections from the host to containers in a VM.

use std::io::{ErrorKind, Read};
use std::time::Duration;

use hvsock::{HvStream, Refusal, ServiceId, refusal_of};
use hvsock_endpoint::Refused;
use hvsock_endpoint::uplink::{GuestFrame, HostFrame};
use hvsock_testkit::guest::{Guest, GuestStream};
use hvsock_testkit::world::{PORT, World};

use crate::guest_broker::{BOX, GuestBroker};
use crate::traffic::{exchange, ping};

/// Connects the host to the container. Returns both ends.
#[track_caller]
fn pair(world: &World, broker: &mut GuestBroker, guest: &Guest) -> (GuestStream, HvStream) {
    std::thread::scope(|scope| {
        let connecting = scope.spawn(|| world.connect_to("web/box", PORT));
        let incoming = broker.incoming();
        assert_eq!(incoming.child, BOX);
        assert_eq!(incoming.service, ServiceId::from_port(PORT));
        let inside = broker.accept(guest, incoming.request);
        (
            inside,
            connecting.join().expect("no panic").expect("connected"),
        )
    })
}

#[test]
fn the_host_reaches_a_container_in_a_vm_by_its_name_and_its_bytes_are_counted() {
    let world = World::with_web(|_| ());
    let guest = world.guest();
    let mut broker = GuestBroker::open(&guest);
    let id = broker.announce_box();
    let (inside, outside) = pair(&world, &mut broker, &guest);
    exchange(&inside, &outside, 3 << 20, 10_000);
    let shown = world.connection();
    assert_eq!(shown.to.partition.to_string(), "web/box");
    assert_eq!(shown.to.vm_id, id);
    assert!(shown.to.guest);
    assert_eq!(
        (shown.bytes_sent, shown.bytes_received),
        (Some(3 << 20), Some(3 << 20))
    );
    assert_eq!(world.partition("web/box").connections, 1);
    drop((inside, outside));
    world.has_connections(0);
    assert_eq!(guest.protocol_violations(), [""; 0]);
}

#[test]
fn a_refusal_of_the_guest_arrives_at_the_process_with_its_reason() {
    let world = World::with_web(|_| ());
    let guest = world.guest();
    let mut broker = GuestBroker::open(&guest);
    broker.announce_box();
    for (code, detail, want) in [
        (Refusal::NoListener.code(), "", Refusal::NoListener),
        (
            3,
            "bind.users\u{1b}[2J",
            Refusal::Denied {
                rule: "bind.users\\u{1b}[2J".into(),
            },
        ),
        (
            4711,
            "moon",
            Refusal::Reset {
                cause: "unknown reason 4711: moon".into(),
            },
        ),
    ] {
        let error = std::thread::scope(|scope| {
            let connecting = scope.spawn(|| world.connect_to("web/box", PORT));
            let request = broker.incoming().request;
            let reason = Refused {
                code,
                errno: 0,
                detail: detail.into(),
            };
            broker
                .client
                .send(&GuestFrame::IncomingRefused { request, reason });
            connecting.join().unwrap().unwrap_err()
        });
        assert_eq!(refusal_of(&error), Some(&want), "{error}");
    }
    broker.sync();
    world.has_connections(0);
}

#[test]
fn the_host_judges_before_it_asks_the_guest() {
    let world = World::with_web(|_| ());
    let guest = world.guest();
    let mut broker = GuestBroker::open(&guest);
    broker.announce_box();
    let error = world.connect_to("web/box", 9999).unwrap_err();
    assert_eq!(refusal_of(&error), Some(&Refusal::Unregistered), "{error}");
    let container = world.container("beside", None);
    let id = world.partition("web/box").id;
    let error = container.connect(id, PORT).unwrap_err();
    assert_eq!(refusal_of(&error), Some(&Refusal::NotReachable), "{error}");
    // The guest has been asked nothing.
    broker.sync();
}

#[test]
fn a_process_that_leaves_has_its_request_cancelled() {
    let world = World::with_web(|_| ());
    let guest = world.guest();
    let mut broker = GuestBroker::open(&guest);
    broker.announce_box();
    let host = world.host();
    let options = host.options().timeout(Duration::from_millis(300));
    let id = world.partition("web/box").id;
    let error = options
        .connect((id, ServiceId::from_port(PORT)))
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
    let request = broker.incoming().request;
    assert_eq!(broker.next(), Some(HostFrame::Cancel { request }));
    // An answer that comes too late is no violation, and connects nothing.
    broker.client.send(&GuestFrame::IncomingPort {
        request,
        port: 60_000,
    });
    broker.sync();
    world.has_connections(0);
}

#[test]
fn a_guest_that_does_not_listen_where_it_said_refuses_that_one_connection() {
    let world = World::with_web(|_| ());
    let guest = world.guest();
    let mut broker = GuestBroker::open(&guest);
    broker.announce_box();
    let error = std::thread::scope(|scope| {
        let connecting = scope.spawn(|| world.connect_to("web/box", PORT));
        let request = broker.incoming().request;
        broker.client.send(&GuestFrame::IncomingPort {
            request,
            port: 61_000,
        });
        connecting.join().unwrap().unwrap_err()
    });
    assert_eq!(refusal_of(&error), Some(&Refusal::NoListener), "{error}");
    let (inside, outside) = pair(&world, &mut broker, &guest);
    ping(&inside, &outside);
}

#[test]
fn a_container_that_ends_resets_what_leads_to_it_and_refuses_what_waits() {
    let world = World::with_web(|_| ());
    let guest = world.guest();
    let mut broker = GuestBroker::open(&guest);
    broker.announce_box();
    let (_inside, mut outside) = pair(&world, &mut broker, &guest);
    let error = std::thread::scope(|scope| {
        let connecting = scope.spawn(|| world.connect_to("web/box", PORT));
        broker.incoming();
        broker.state(BOX, hvsock_endpoint::uplink::ChildState::Exited);
        connecting.join().unwrap().unwrap_err()
    });
    let exited = Some(&Refusal::PartitionExited);
    assert_eq!(refusal_of(&error), exited, "{error}");
    let error = outside.read(&mut [0; 8]).unwrap_err();
    assert_eq!(refusal_of(&error), exited, "{error}");
    let error = world.connect_to("web/box", PORT).unwrap_err();
    assert_eq!(refusal_of(&error), exited, "{error}");
}
