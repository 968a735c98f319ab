//! The broker of a virtual machine, with a host that the test plays: see [`script`].

mod joined;
mod script;

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::thread;

use hvsock::{HvStream, ServiceId, VmId};
use hvsock_endpoint::LookupKind;
use hvsock_endpoint::uplink::{
    ChildId, ChildState, FIRST_TOKEN_PORT, GuestFrame, HostFrame, Incoming, Request,
};
use hvsock_fabric::Refusal;
use hvsock_testkit::wait::TIMEOUT;
use hvsock_testkit::world::wire::{Wire, WireHost};
use hvsock_testkit::world::{accept, refusal};

use script::{DEMO, Session, joined, machine, refused, service};

/// A port of the host that is good for one connect.
const TOKEN: u32 = FIRST_TOKEN_PORT + 77;

/// Sends bytes both ways, to the end of each direction.
fn talk(mut process: HvStream, mut host: UnixStream) {
    host.set_read_timeout(Some(TIMEOUT)).unwrap();
    process.write_all(b"to the host").unwrap();
    process.shutdown(Shutdown::Write).unwrap();
    let mut text = String::new();
    host.read_to_string(&mut text).unwrap();
    assert_eq!(text, "to the host");
    host.write_all(b"to the process").unwrap();
    host.shutdown(Shutdown::Both).unwrap();
    let mut text = String::new();
    process.read_to_string(&mut text).unwrap();
    assert_eq!(text, "to the process");
}

fn gives_port(session: &Session, host: &WireHost, request: Request) -> UnixStream {
    let port = TOKEN;
    session.send(HostFrame::ConnectPort { request, port });
    let arrived = host.accept(TIMEOUT).unwrap();
    assert_eq!(arrived.port, TOKEN);
    arrived.stream
}

fn incoming(number: u64, child: ChildId, port: u32) -> HostFrame {
    HostFrame::Incoming(Incoming {
        request: Request(number),
        child,
        timeout_ms: 5000,
        service: ServiceId::from_port(port),
    })
}

#[test]
fn a_process_reaches_the_host_by_the_name_of_its_service_there() {
    let (world, host, mut session, _wire) = joined();
    let process = world.host();
    let connect = thread::spawn(move || process.options().connect(("parent", "Demo")));
    let up = session.next_connect();
    assert_eq!(up.child, ChildId::MACHINE);
    assert_eq!(up.address.service, ServiceId::from_port(DEMO));
    let stream = gives_port(&session, &host, up.request);
    let process = connect.join().unwrap().unwrap();
    let seen = world.connection();
    assert_eq!(
        (seen.from.partition.as_str(), seen.to.partition.as_str()),
        ("testhost", "machine")
    );
    talk(process, stream);
    world.settles_at(0, 0);
}

#[test]
fn a_refusal_of_the_host_has_its_reason() {
    let (world, _host, mut session, _wire) = joined();
    let process = world.host();
    let connect = thread::spawn(move || process.options().connect(("machine", "Demo")));
    let up = session.next_connect();
    let rule = "partitions = []".to_owned();
    session.send(HostFrame::ConnectRefused {
        request: up.request,
        reason: refused(&Refusal::Denied { rule: rule.clone() }),
    });
    let error = connect.join().unwrap().unwrap_err();
    assert_eq!(refusal(&error), Refusal::Denied { rule });
}

#[test]
fn a_container_reaches_the_host_by_name_where_the_machine_allows_and_the_machine_as_parent() {
    let (world, host, mut session, _wire) = joined();
    let inside = world.container("box", None);
    let child = session.next_announce();
    assert_eq!((&*child.name, child.state), ("box", ChildState::Unknown));
    // Its own registry has no such service.
    let error = inside.options().connect(("machine", DEMO)).unwrap_err();
    assert_eq!(refusal(&error), Refusal::Unregistered);
    world.register(DEMO);
    let connecting = inside.clone();
    let connect = thread::spawn(move || connecting.options().connect(("machine", DEMO)));
    let up = session.next_connect();
    assert_eq!(up.child, child.child);
    assert_eq!(up.address.vm, VmId::of_container("the machine"));
    let stream = gives_port(&session, &host, up.request);
    talk(connect.join().unwrap().unwrap(), stream);
    // The host has no part in this.
    let listener = world.host().listen(VmId::CHILDREN, DEMO).unwrap();
    for address in [VmId::PARENT, VmId::SILOHOST] {
        let _pair = inside.pair(address, DEMO, &listener);
    }
    session.is_quiet();
}

#[test]
fn the_host_reaches_a_container_where_the_machine_allows() {
    let (world, _host, mut session, wire) = joined();
    let inside = world.container("box", None);
    let child = session.next_announce().child;
    session.send(incoming(1, child, DEMO));
    let answer = session.next();
    let request = Request(1);
    let reason = refused(&Refusal::Unregistered);
    assert_eq!(answer, GuestFrame::IncomingRefused { request, reason });
    world.register(DEMO);
    session.send(incoming(2, child, DEMO));
    let request = Request(2);
    let reason = refused(&Refusal::NoListener);
    assert_eq!(
        session.next(),
        GuestFrame::IncomingRefused { request, reason }
    );
    let listener = inside.listen(VmId::WILDCARD, DEMO).unwrap();
    session.send(incoming(3, child, DEMO));
    let GuestFrame::IncomingPort { request, port } = session.next() else {
        panic!("no port");
    };
    assert_eq!(request, Request(3));
    // Nobody else may take it.
    let mut stranger = wire.connect_from(1, port).unwrap();
    let mut byte = [0];
    stranger.set_read_timeout(Some(TIMEOUT)).unwrap();
    assert!(matches!(stranger.read(&mut byte), Ok(0) | Err(_)));
    let stream = wire.connect_from(2, port).unwrap();
    let process = accept(&listener);
    talk(process, stream);
    // And it was for one.
    let again = wire.connect_from(2, port).unwrap_err();
    assert_eq!(again.kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn the_host_reaches_a_process_of_the_machine_at_its_port() {
    let (world, _host, session, wire) = joined();
    let listener = world.host().listen(VmId::PARENT, DEMO).unwrap();
    let stream = wire.connect_from(2, DEMO).unwrap();
    talk(accept(&listener), stream);
    // A process of this machine has the endpoint.
    let mut own = wire.connect_from(1, DEMO).unwrap();
    own.set_read_timeout(Some(TIMEOUT)).unwrap();
    let mut byte = [0];
    assert!(matches!(own.read(&mut byte), Ok(0) | Err(_)));
    drop(listener);
    hvsock_testkit::wait::eventually("the port is free", || wire.connect_from(2, DEMO).is_err());
    drop(session);
}

#[test]
fn a_port_that_another_program_has_is_an_address_in_use() {
    let (world, _host, _session, wire) = joined();
    let (_taken, _) = wire.guest().listen(Some(DEMO)).unwrap();
    for address in [VmId::PARENT, VmId::WILDCARD] {
        let error = world.host().listen(address, DEMO).unwrap_err();
        assert_eq!(refusal(&error), Refusal::AddressInUse);
    }
    world.settles_at(0, 0);
    let _within = world.host().listen(VmId::LOOPBACK, DEMO).unwrap();
}

#[test]
fn a_name_that_the_host_has_just_made_is_found() {
    let (world, host, mut session, _wire) = joined();
    let process = world.host();
    let connect = thread::spawn(move || process.options().connect(("parent", "New")));
    let GuestFrame::Sync { number } = session.next() else {
        panic!("not asked");
    };
    session.send(HostFrame::Service(service(8000, "New")));
    session.send(HostFrame::Synced { number });
    let up = session.next_connect();
    assert_eq!(up.address.service, ServiceId::from_port(8000));
    let stream = gives_port(&session, &host, up.request);
    talk(connect.join().unwrap().unwrap(), stream);
    // One that is not made is refused once the host has said so.
    let process = world.host();
    let connect = thread::spawn(move || process.options().connect(("parent", "Other")));
    let GuestFrame::Sync { number } = session.next() else {
        panic!("not asked");
    };
    session.send(HostFrame::Synced { number });
    let error = connect.join().unwrap().unwrap_err();
    assert_eq!(refusal(&error), Refusal::Unregistered);
}

#[test]
fn a_listener_that_the_host_has_just_allowed_is_accepted() {
    let (world, _host, mut session, _wire) = joined();
    let process = world.host();
    let listen = thread::spawn(move || process.listen(VmId::PARENT, 8000));
    let GuestFrame::Sync { number } = session.next() else {
        panic!("not asked");
    };
    session.send(HostFrame::Service(service(8000, "New")));
    session.send(HostFrame::Synced { number });
    let listener = listen.join().unwrap().unwrap();
    // The host takes it back.
    session.send(HostFrame::ServiceGone {
        service: ServiceId::from_port(8000),
    });
    let error = listener.accept_timeout(TIMEOUT).unwrap_err();
    assert_eq!(refusal(&error), Refusal::Unregistered);
}

#[test]
fn without_a_broker_at_the_host_the_machine_connects_by_port_and_a_container_does_not() {
    let wire = Wire::new();
    let world = machine(&wire);
    world.register(DEMO);
    let inside = world.container("box", None);
    hvsock_testkit::wait::eventually("the attempt has failed", || {
        let answer = inside.connect(VmId::of_container("the host of testhost"), DEMO);
        refusal(&answer.unwrap_err()) == Refusal::PartitionOff
    });
    let error = world.host().connect(VmId::PARENT, DEMO).unwrap_err();
    assert_eq!(refusal(&error), Refusal::NoListener);
    // A program of the host that knows nothing of hvsock.
    let host = wire.host().unwrap();
    let process = world.host();
    let connect = thread::spawn(move || process.connect(VmId::PARENT, DEMO));
    let stream = loop {
        // The broker tries its uplink, too.
        let arrived = host.accept(TIMEOUT).unwrap();
        if arrived.port == DEMO {
            break arrived.stream;
        }
    };
    talk(connect.join().unwrap().unwrap(), stream);
}

#[test]
fn a_host_that_restarts_is_told_all_again_and_connects_wait_for_it() {
    let (world, host, mut session, wire) = joined();
    let _inside = world.container("box", None);
    session.next_announce();
    drop((session, host));
    let process = world.host();
    let connect = thread::spawn(move || process.connect(VmId::PARENT, DEMO));
    let host = wire.host().unwrap();
    let mut session = Session::open(&host, &[service(DEMO, "Demo")]);
    assert_eq!(session.next_announce().name, "box");
    let up = session.next_connect();
    let stream = gives_port(&session, &host, up.request);
    talk(connect.join().unwrap().unwrap(), stream);
}

#[test]
fn a_virtual_machine_can_be_the_host_of_others_and_its_host_is_told_of_containers_only() {
    let (world, _host, mut session, _wire) = joined();
    world.vm("inner", 42, &[]);
    let _inside = world.container("box", None);
    assert_eq!(session.next_announce().name, "box");
    let inner = hvsock_testkit::world::partition_ref("inner");
    world.handle().remove_partition(&inner).unwrap();
    session.is_quiet();
}

#[test]
fn a_broker_without_root_says_what_it_lacks() {
    let wire = Wire::new();
    let _host = wire.host().unwrap();
    wire.set_privileged(false);
    let world = machine(&wire);
    hvsock_testkit::wait::eventually("a problem", || {
        let problems = world.handle().status().unwrap().problems;
        problems.iter().any(|one| one.text.contains("below 1024"))
    });
}

#[test]
fn a_broker_without_root_looks_names_up_and_connects_by_port() {
    let wire = Wire::new();
    let host = wire.host().unwrap();
    wire.set_privileged(false);
    let world = machine(&wire);
    hvsock_testkit::wait::eventually("a problem", || {
        !world.handle().status().unwrap().problems.is_empty()
    });
    for known in [true, false] {
        let process = world.host();
        let connect = thread::spawn(move || process.options().connect(("parent", "Demo")));
        let asks = host.accept(TIMEOUT).unwrap();
        let mut session = Session::of(asks.stream);
        assert_eq!(
            session.next(),
            GuestFrame::Lookup {
                kind: LookupKind::Service,
                name: "Demo".into()
            }
        );
        let guid = ServiceId::from_port(DEMO).to_guid_bytes();
        session.send(match known {
            true => HostFrame::Found { guid },
            false => HostFrame::Refused(refused(&Refusal::Unregistered)),
        });
        if known {
            let arrived = host.accept(TIMEOUT).unwrap();
            assert_eq!(arrived.port, DEMO);
            talk(connect.join().unwrap().unwrap(), arrived.stream);
        } else {
            let error = connect.join().unwrap().unwrap_err();
            assert_eq!(refusal(&error), Refusal::Unregistered);
        }
    }
}

#[test]
fn garbage_of_the_host_ends_the_uplink_and_nothing_else() {
    let (world, host, session, _wire) = joined();
    session.send_bytes(&[0xff; 64]);
    let mut session = Session::open(&host, &[]);
    let listener = world.host().listen(VmId::LOOPBACK, 5).unwrap();
    let _pair = world.host().pair(VmId::LOOPBACK, 5, &listener);
    session.send(HostFrame::ServicesEnd);
    assert!(session.try_next().is_none());
    let _again = Session::open(&host, &[]);
}
