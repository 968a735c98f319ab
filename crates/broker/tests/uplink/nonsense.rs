//! Brokers in guests that send valid frames which make no sense: about the machine itself, at the wrong time,
//! and in the middle of what others do.

use std::io::{ErrorKind, Read, Write};

use hvsock::{Refusal, VmId, refusal_of};
use hvsock_broker::model::PartitionState;
use hvsock_endpoint::Refused;
use hvsock_endpoint::uplink::{
    ChildId, ChildState, ConnectUp, GuestFrame, HostFrame, MAX_CHILDREN, Request,
};
use hvsock_testkit::guest::GuestStream;
use hvsock_testkit::wait::eventually;
use hvsock_testkit::world::{PORT, World, accept, bounded, partition_ref};

use crate::guest_broker::{BOX, GuestBroker, announcement, connect_from, hello};
use crate::traffic::ping;

fn connect(request: u64, child: ChildId, target: VmId) -> GuestFrame {
    GuestFrame::Connect(ConnectUp {
        request: Request(request),
        child,
        timeout_ms: 0,
        address: hvsock::SockAddrHv::new(target, hvsock::ServiceId::from_port(PORT)),
    })
}

fn bytes(frames: &[GuestFrame]) -> Vec<u8> {
    let mut all = Vec::new();
    for frame in frames {
        frame.append(&mut all);
    }
    all
}

#[test]
fn frames_about_the_machine_itself_change_nothing_of_it() {
    let world = World::with_web(|_| ());
    let guest = world.guest();
    let before = world.partition("web");
    for state in ChildState::ALL {
        let mut broker = GuestBroker::open(&guest);
        broker.state(ChildId::MACHINE, state);
        let _ = broker.client.stream.write_all(&bytes(&[
            GuestFrame::Withdraw {
                child: ChildId::MACHINE,
            },
            GuestFrame::Sync { number: 1 },
        ]));
        while broker
            .next()
            .is_some_and(|frame| frame != HostFrame::Synced { number: 1 })
        {}
        let now = world.partition("web");
        assert_eq!((now.state, now.id), (before.state, before.id), "{state:?}");
    }
    // A container with its number is none.
    let mut broker = GuestBroker::open(&guest);
    broker
        .client
        .send(&GuestFrame::Announce(announcement(ChildId::MACHINE, "box")));
    while let Some(frame) = broker.next() {
        if let HostFrame::Announced(announced) = frame {
            assert_ne!(announced.answer.code, 0);
            break;
        }
    }
    assert!(world.handle().partition(&partition_ref("web/box")).is_err());
    assert_eq!(world.partition("web").id, before.id);
}

#[test]
fn a_container_may_have_the_name_of_any_partition_and_any_id_of_the_host() {
    let world = World::with_web(|_| ());
    let guest = world.guest();
    let mut broker = GuestBroker::open(&guest);
    let (host, machine) = (broker.welcome.host, broker.welcome.machine);
    let ids = [
        host,
        machine,
        VmId::PARENT,
        VmId::LOOPBACK,
        VmId::CHILDREN,
        VmId::BROADCAST,
        VmId::SILOHOST,
        VmId::of_container("web"),
    ];
    for (number, id) in (1..).zip(ids) {
        let name = ["testhost", "web", "c", "d", "e", "f", "g", "h"];
        let mut announce = announcement(ChildId(number), name[number as usize - 1]);
        announce.id = id;
        let announced = broker.announce(announce);
        let accepted = announced.answer.code == 0;
        assert!(!accepted || announced.id == VmId::of_nested(machine, id));
        assert_ne!(announced.id, id);
    }
    // None of them is taken for the partition whose name or id it has.
    assert_eq!(world.partition("testhost").id, host);
    assert_eq!(world.partition("web").id, machine);
    for (id, name) in [(host, "testhost"), (machine, "web")] {
        let found = world.handle().partition(&id.into()).unwrap();
        assert_eq!(found.name.as_str(), name);
    }
    broker.sync();
}

#[test]
fn the_container_after_the_last_one_is_refused_and_has_room_when_one_is_withdrawn() {
    let world = World::with_web(|_| ());
    let guest = world.guest();
    let mut broker = GuestBroker::open(&guest);
    let last = u32::try_from(MAX_CHILDREN).unwrap();
    let all: Vec<GuestFrame> = (1..=last + 1)
        .map(|number| GuestFrame::Announce(announcement(ChildId(number), &format!("c{number}"))))
        .collect();
    broker.client.stream.write_all(&bytes(&all)).unwrap();
    let mut codes = Vec::new();
    while codes.len() < all.len() {
        match broker.next() {
            Some(HostFrame::Announced(announced)) => codes.push(announced.answer.code),
            other => panic!("{other:?}"),
        }
    }
    let refused: Vec<usize> = (1..)
        .zip(&codes)
        .filter(|(_, code)| **code != 0)
        .map(|(at, _)| at)
        .collect();
    assert_eq!(refused, [MAX_CHILDREN + 1]);
    // The one that was refused has no state and is not withdrawn.
    broker.state(ChildId(last + 1), ChildState::Paused);
    broker.client.send(&GuestFrame::Withdraw {
        child: ChildId(last + 1),
    });
    broker
        .client
        .send(&GuestFrame::Withdraw { child: ChildId(3) });
    let announced = broker.announce(announcement(ChildId(last + 1), "another"));
    assert_eq!(announced.answer.code, 0, "{announced:?}");
}

#[test]
fn what_is_sent_before_the_welcome_is_read_counts_and_what_comes_before_hello_ends_the_stream() {
    let world = World::with_web(|_| ());
    let guest = world.guest();
    let wrong = [
        GuestFrame::Pong,
        GuestFrame::Announce(announcement(BOX, "box")),
        GuestFrame::Withdraw { child: BOX },
        connect(1, ChildId::MACHINE, VmId::PARENT),
        GuestFrame::Sync { number: 1 },
        GuestFrame::Cancel {
            request: Request(1),
        },
    ];
    for (port, wrong) in (500..).zip(wrong) {
        let mut client = connect_from(&guest, port);
        client
            .stream
            .write_all(&bytes(&[wrong.clone(), hello()]))
            .unwrap();
        while client.receive().is_some() {}
        assert!(world.partition("web").broker.is_none(), "{wrong:?}");
    }
    // All at once, byte by byte.
    let mut client = connect_from(&guest, 499);
    let at_once = bytes(&[
        hello(),
        GuestFrame::Announce(announcement(BOX, "box")),
        GuestFrame::Sync { number: 5 },
    ]);
    for byte in at_once {
        client.stream.write_all(&[byte]).unwrap();
    }
    let mut seen = Vec::new();
    loop {
        match client.receive().expect("an open uplink") {
            HostFrame::Synced { number } => {
                assert_eq!(number, 5);
                break;
            }
            frame => seen.push(frame),
        }
    }
    assert!(matches!(seen.first(), Some(HostFrame::Welcome(_))));
    world.partition("web/box");
}

#[test]
fn half_a_frame_keeps_nobody_from_opening_a_new_uplink() {
    let world = World::with_web(|_| ());
    let guest = world.guest();
    let announce = bytes(&[GuestFrame::Announce(announcement(BOX, "box"))]);
    let mut old = Vec::new();
    for len in [1, 3, 4, 5, 8, announce.len() - 1] {
        let mut broker = GuestBroker::open(&guest);
        broker.client.stream.write_all(&announce[..len]).unwrap();
        old.push(broker);
    }
    let mut broker = GuestBroker::open(&guest);
    // The older ones have been ended; their remainders concern nobody.
    for mut broker in old {
        let _ = broker.client.stream.write_all(&announce[4..]);
        while broker.next().is_some() {}
    }
    broker.sync();
    assert_eq!(world.partition("web").broker.unwrap().containers, 0);
    // One that is closed within a frame takes its containers along.
    broker.announce_box();
    broker.client.stream.write_all(&announce[..9]).unwrap();
    drop(broker);
    eventually("it is gone", || {
        world.handle().partition(&partition_ref("web/box")).is_err()
    });
}

#[test]
fn connects_that_are_cancelled_at_once_leave_no_port_behind() {
    let world = World::with_web(|_| ());
    let guest = world.guest();
    let mut broker = GuestBroker::open(&guest);
    let _listener = world.listen();
    for round in 0..40_u64 {
        let frames: Vec<GuestFrame> = (0..50)
            .flat_map(|at| {
                let request = 1_000_000 + round * 50 + at;
                [
                    connect(request, ChildId::MACHINE, VmId::PARENT),
                    GuestFrame::Cancel {
                        request: Request(request),
                    },
                    GuestFrame::Cancel {
                        request: Request(request),
                    },
                ]
            })
            .collect();
        broker.client.stream.write_all(&bytes(&frames)).unwrap();
        broker.client.send(&GuestFrame::Sync { number: round });
        let mut ports = 0;
        loop {
            match broker.next().expect("an open uplink") {
                HostFrame::Synced { number } if number == round => break,
                HostFrame::ConnectPort { .. } => ports += 1,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(ports, 50);
    }
    // All 64 places are free.
    for _ in 0..64 {
        broker
            .connect(ChildId::MACHINE, VmId::PARENT, PORT)
            .expect("room");
    }
}

/// Writes until the connection ends.
fn write_to_error(mut stream: &GuestStream) {
    while stream.write_all(&[7; 4096]).is_ok() {}
}

/// Reads until the connection ends.
fn read_to_error(mut stream: impl Read) -> std::io::Result<()> {
    let mut buffer = [0; 4096];
    while stream.read(&mut buffer)? > 0 {}
    Ok(())
}

#[test]
fn a_container_that_is_withdrawn_while_it_transfers_has_its_connections_reset() {
    let world = World::with_web(|_| ());
    let guest = world.guest();
    let mut broker = GuestBroker::open(&guest);
    let id = broker.announce_box();
    let listener = world.host().listen(id, PORT).unwrap();
    let host = broker.welcome.host;
    let port = broker.connect(BOX, host, PORT).unwrap();
    // A second one, whose stream has not been made.
    let unused = broker.connect(BOX, host, PORT).unwrap();
    let up = bounded(guest.connect(port).unwrap());
    let up_outside = accept(&listener);
    let (down, down_outside) = std::thread::scope(|scope| {
        let connecting = scope.spawn(|| world.connect_to("web/box", PORT));
        let request = broker.incoming().request;
        let inside: GuestStream = broker.accept(&guest, request);
        (inside, connecting.join().unwrap().unwrap())
    });
    // A connect of which the stream exists is not cancelled any more.
    broker.client.send(&GuestFrame::Cancel {
        request: Request(1),
    });
    broker.sync();
    ping(&up, &up_outside);
    std::thread::scope(|scope| {
        scope.spawn(|| write_to_error(&up));
        scope.spawn(|| write_to_error(&down));
        let readers =
            [up_outside, down_outside].map(|outside| scope.spawn(|| read_to_error(outside)));
        broker.client.send(&GuestFrame::Withdraw { child: BOX });
        broker.client.send(&GuestFrame::Withdraw { child: BOX });
        broker.state(BOX, ChildState::Running);
        broker.sync();
        for reader in readers {
            let error = reader.join().unwrap().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
            assert_eq!(refusal_of(&error), Some(&Refusal::PartitionOff), "{error}");
        }
    });
    world.has_connections(0);
    assert_eq!(
        guest.connect(unused).unwrap_err().kind(),
        ErrorKind::ConnectionRefused
    );
    assert_eq!(broker.announce_box(), id);
    assert_eq!(guest.protocol_violations(), [""; 0]);
}

#[test]
fn a_container_that_is_paused_or_has_exited_gets_no_connection_even_at_a_port_it_has_got() {
    let world = World::with_web(|_| ());
    let guest = world.guest();
    let mut broker = GuestBroker::open(&guest);
    let id = broker.announce_box();
    let listener = world.host().listen(id, PORT).unwrap();
    let host = broker.welcome.host;
    for state in [ChildState::Paused, ChildState::Exited] {
        let port = broker.connect(BOX, host, PORT).unwrap();
        broker.state(BOX, state);
        broker.sync();
        guest.connect(port).unwrap_err();
        broker.connect(BOX, host, PORT).unwrap_err();
        broker.state(BOX, ChildState::Running);
    }
    let port = broker.connect(BOX, host, PORT).unwrap();
    ping(&bounded(guest.connect(port).unwrap()), &accept(&listener));
    assert_eq!(world.partition("web/box").state, PartitionState::Running);
}

#[test]
fn odd_answers_to_a_connect_of_the_host_fail_that_connect_only() {
    let world = World::with_web(|_| ());
    let guest = world.guest();
    let mut broker = GuestBroker::open(&guest);
    broker.announce_box();
    let reason = |code| Refused {
        code,
        errno: 0,
        detail: "x".repeat(3000),
    };
    let odd: [&dyn Fn(Request) -> Vec<GuestFrame>; 5] = [
        // Nobody listens there.
        &|request| {
            vec![GuestFrame::IncomingPort {
                request,
                port: 50_001,
            }]
        },
        &|request| {
            vec![
                GuestFrame::IncomingPort {
                    request,
                    port: 50_001
                };
                3
            ]
        },
        // A refusal that is none, and one after another.
        &|request| {
            vec![GuestFrame::IncomingRefused {
                request,
                reason: reason(0),
            }]
        },
        &|request| {
            vec![
                GuestFrame::IncomingRefused {
                    request,
                    reason: reason(3)
                };
                3
            ]
        },
        &|request| {
            vec![
                GuestFrame::IncomingRefused {
                    request,
                    reason: reason(u32::MAX),
                },
                GuestFrame::IncomingPort {
                    request,
                    port: 50_001,
                },
            ]
        },
    ];
    for (number, answer) in odd.iter().enumerate() {
        let error = std::thread::scope(|scope| {
            let connecting = scope.spawn(|| world.connect_to("web/box", PORT));
            let request = broker.incoming().request;
            broker
                .client
                .stream
                .write_all(&bytes(&answer(request)))
                .unwrap();
            connecting.join().unwrap().unwrap_err()
        });
        assert!(error.to_string().len() < 2000, "{number}: {error}");
        broker.sync();
    }
    world.has_connections(0);
    world.partition("web/box");
}
