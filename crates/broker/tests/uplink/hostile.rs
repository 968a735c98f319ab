//! Brokers in guests that violate the protocol: each harms its own uplink alone.

use std::io::{ErrorKind, Write};

use hvsock::VmId;
use hvsock_endpoint::Refused;
use hvsock_endpoint::uplink::{
    ChildId, ChildState, ConnectUp, GuestFrame, HostFrame, Request, UPLINK_PORT,
};
use hvsock_testkit::guest::{Guest, Options};
use hvsock_testkit::wait;
use hvsock_testkit::world::{PORT, World, partition_ref};

use crate::guest_broker::{BOX, GuestBroker, announcement, connect_from, hello};
use crate::traffic::ping;

/// A world with a second VM, whose uplink and connection stay whatever the first one does.
struct Bystander {
    guest: Guest,
    broker: GuestBroker,
}

impl Bystander {
    fn new(world: &World) -> Self {
        world.vm("db", 44, &[]);
        let guest = world.guest_of("db", Options::new(44));
        let mut broker = GuestBroker::open(&guest);
        broker.announce_box();
        Self { guest, broker }
    }

    #[track_caller]
    fn assert_unharmed(mut self, world: &World) {
        self.broker.sync();
        world.partition("db/box");
        let listener = world.listen();
        let (inside, outside) = world.pair(&self.guest, &listener);
        ping(&inside, &outside);
    }
}

#[test]
fn an_uplink_from_an_unprivileged_port_is_refused() {
    let world = World::with_web(|_| ());
    let guest = world.guest();
    let mut client = connect_from(&guest, 1024);
    let HostFrame::Refused(refused) = client.ask(&hello()) else {
        panic!("not refused");
    };
    assert!(refused.detail.contains("below 1024"), "{refused:?}");
    assert_eq!(client.receive(), None);
    assert!(world.partition("web").broker.is_none());
}

#[test]
fn a_frame_that_breaks_a_rule_ends_that_uplink_only() {
    let world = World::with_web(|_| ());
    let bystander = Bystander::new(&world);
    let guest = world.guest();
    let request = Request(9999);
    let reason = Refused {
        code: 1,
        errno: 1,
        detail: String::new(),
    };
    let connect = GuestFrame::Connect(ConnectUp {
        request,
        child: ChildId::MACHINE,
        timeout_ms: 0,
        address: hvsock::SockAddrHv::new(VmId::PARENT, hvsock::ServiceId::from_port(PORT)),
    });
    let listener = world.listen();
    let wrong: Vec<Vec<GuestFrame>> = vec![
        vec![hello()],
        vec![GuestFrame::Announce(announcement(BOX, "box")); 2],
        vec![GuestFrame::IncomingPort {
            request,
            port: 5000,
        }],
        vec![GuestFrame::IncomingRefused {
            request,
            reason: reason.clone(),
        }],
        vec![GuestFrame::Explained {
            request: Request(0),
            explanation: reason,
        }],
        vec![GuestFrame::Lookup {
            kind: hvsock_endpoint::LookupKind::Service,
            name: "x".into(),
        }],
        vec![connect; 2],
    ];
    for frames in wrong {
        let mut broker = GuestBroker::open(&guest);
        for frame in &frames {
            broker.client.send(frame);
        }
        while broker.next().is_some() {}
        assert!(world.partition("web").broker.is_none(), "{frames:?}");
        assert!(world.handle().partition(&partition_ref("web/box")).is_err());
    }
    drop(listener);
    bystander.assert_unharmed(&world);
}

#[test]
fn bytes_that_are_no_frames_end_that_uplink_only() {
    let world = World::with_web(|_| ());
    let bystander = Bystander::new(&world);
    let guest = world.guest();
    for bytes in [
        &b"\xff\xff\xff\xff"[..],
        b"\x01\0\0\0\x01",
        b"\x04\0\0\0\x01\x77\0\0",
        b"\0\0\0\0",
        &[0xff; 5000],
    ] {
        let mut broker = GuestBroker::open(&guest);
        broker.announce_box();
        broker.client.stream.write_all(bytes).unwrap();
        while broker.next().is_some() {}
        assert!(world.partition("web").broker.is_none(), "{bytes:?}");
    }
    bystander.assert_unharmed(&world);
}

#[test]
fn privileged_ports_and_foreign_numbers_are_violations_or_nothing() {
    let world = World::with_web(|_| ());
    let bystander = Bystander::new(&world);
    let guest = world.guest();
    for port in [0, 22, UPLINK_PORT, 1023, u32::MAX] {
        let mut broker = GuestBroker::open(&guest);
        broker.announce_box();
        let error = std::thread::scope(|scope| {
            let connecting = scope.spawn(|| world.connect_to("web/box", PORT));
            let request = broker.incoming().request;
            broker
                .client
                .send(&GuestFrame::IncomingPort { request, port });
            connecting.join().unwrap().unwrap_err()
        });
        let refusal = hvsock::refusal_of(&error);
        assert_eq!(refusal, Some(&hvsock::Refusal::PartitionOff), "{error}");
        while broker.next().is_some() {}
    }
    // Numbers of containers that it does not have, as the other VM does, concern nobody.
    let mut broker = GuestBroker::open(&guest);
    broker.state(BOX, ChildState::Exited);
    broker.client.send(&GuestFrame::Withdraw { child: BOX });
    broker.client.send(&GuestFrame::Cancel {
        request: Request(1),
    });
    broker.sync();
    bystander.assert_unharmed(&world);
}

#[test]
fn a_guest_that_floods_and_does_not_read_is_not_read_and_others_are_served() {
    let world = World::with_web(|_| ());
    let bystander = Bystander::new(&world);
    let guest = world.guest();
    let broker = GuestBroker::open(&guest);
    let stream = broker.client.stream;
    let mut ping_frame = Vec::new();
    GuestFrame::Ping.append(&mut ping_frame);
    let flood = ping_frame.repeat(1000);
    stream.set_write_timeout(Some(std::time::Duration::from_millis(300)));
    // Pongs fill the guest's window and the broker's buffers, and then nothing is taken any more.
    let error = (0..10_000).find_map(|_| (&stream).write_all(&flood).err());
    let kind = error.expect("backpressure").kind();
    assert!(
        matches!(kind, ErrorKind::WouldBlock | ErrorKind::TimedOut),
        "{kind}"
    );
    bystander.assert_unharmed(&world);
    // It is still the uplink of its VM: it may read at last.
    assert!(world.partition("web").broker.is_some());
}

#[test]
fn a_guest_that_changes_its_containers_without_end_is_slowed_down() {
    let world = World::with_web(|_| ());
    let bystander = Bystander::new(&world);
    let guest = world.guest();
    let mut broker = GuestBroker::open(&guest);
    broker.announce_box();
    broker
        .client
        .stream
        .set_write_timeout(Some(std::time::Duration::from_millis(300)));
    let mut frames = Vec::new();
    for state in [ChildState::Paused, ChildState::Running] {
        GuestFrame::ChildState { child: BOX, state }.append(&mut frames);
    }
    let flood = frames.repeat(1000);
    let error = (0..10_000).find_map(|_| (&broker.client.stream).write_all(&flood).err());
    assert!(error.is_some(), "no backpressure");
    bystander.assert_unharmed(&world);
}

#[test]
fn requests_of_a_guest_are_limited_without_harm_to_the_uplink() {
    let world = World::with_web(|_| ());
    let guest = world.guest();
    let mut broker = GuestBroker::open(&guest);
    let _listener = world.listen();
    let mut ports = Vec::new();
    for _ in 0..64 {
        let port = broker.connect(ChildId::MACHINE, VmId::PARENT, PORT);
        ports.push(port.expect("allowed"));
    }
    let refused = broker
        .connect(ChildId::MACHINE, VmId::PARENT, PORT)
        .unwrap_err();
    assert_eq!(refused.errno, 105, "{refused:?}");
    ports.sort_unstable();
    ports.dedup();
    assert_eq!(ports.len(), 64);
    // They are forgotten after a while.
    wait::eventually("there is room again", || {
        broker.connect(ChildId::MACHINE, VmId::PARENT, PORT).is_ok()
    });
}

#[test]
fn connects_to_a_guest_that_does_not_answer_are_limited() {
    let world = World::with_web(|_| ());
    let guest = world.guest();
    let mut broker = GuestBroker::open(&guest);
    broker.announce_box();
    std::thread::scope(|scope| {
        let mut waiting = Vec::new();
        for _ in 0..64 {
            waiting.push(scope.spawn(|| world.connect_to("web/box", PORT)));
        }
        for _ in 0..64 {
            broker.incoming();
        }
        let error = world.connect_to("web/box", PORT).unwrap_err();
        assert!(error.to_string().contains("limit"), "{error}");
        drop(broker);
        for one in waiting {
            assert!(one.join().unwrap().is_err());
        }
    });
}
