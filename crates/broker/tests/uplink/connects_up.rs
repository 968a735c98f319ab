//! Connections from containers in a VM, and from the VM itself by its broker, to the host.

use std::io::ErrorKind;

use hvsock::{HvListener, ServiceId, VmId};
use hvsock_endpoint::Refused;
use hvsock_endpoint::uplink::{ChildId, GuestFrame, HostFrame};
use hvsock_testkit::guest::{CloseReason, Guest, GuestStream};
use hvsock_testkit::wait::TIMEOUT;
use hvsock_testkit::world::{PORT, World, accept, bounded, service_ref};

use crate::guest_broker::{BOX, GuestBroker};
use crate::traffic::{exchange, ping};

/// A listener of the host for the container with this id.
#[track_caller]
fn listen_for(world: &World, id: VmId) -> HvListener {
    world.host().listen(id, PORT).expect("listening")
}

/// Connects a container to the host. Returns both ends.
#[track_caller]
fn pair(
    broker: &mut GuestBroker,
    guest: &Guest,
    listener: &HvListener,
) -> (GuestStream, hvsock::HvStream) {
    let host = broker.welcome.host;
    let port = broker.connect(BOX, host, PORT).expect("allowed");
    let inside = bounded(guest.connect(port).expect("connected"));
    (inside, accept(listener))
}

#[test]
fn a_container_in_a_vm_reaches_the_host_and_its_bytes_are_counted() {
    let world = World::with_web(|_| ());
    let guest = world.guest();
    let mut broker = GuestBroker::open(&guest);
    let id = broker.announce_box();
    let listener = listen_for(&world, id);
    let host = broker.welcome.host;
    let port = broker.connect(BOX, host, PORT).expect("allowed");
    assert!(port >= 1 << 24);
    let inside = bounded(guest.connect(port).unwrap());
    let (outside, peer) = listener.accept().unwrap();
    assert_eq!(peer.vm, id);
    exchange(&inside, &outside, 3 << 20, 10_000);
    let shown = world.connection();
    assert_eq!(shown.from.partition.to_string(), "web/box");
    assert!(shown.from.guest && shown.from.user.is_none());
    assert_eq!(shown.from.vm_id, id);
    assert_eq!(
        (shown.bytes_sent, shown.bytes_received),
        (Some(3 << 20), Some(3 << 20))
    );
    drop(outside);
    assert_eq!(inside.close(TIMEOUT).unwrap(), CloseReason::Clean);
    world.has_connections(0);
    assert_eq!(guest.protocol_violations(), [""; 0]);
}

#[test]
fn a_port_is_for_one_connection_of_its_own_vm() {
    let world = World::with_web(|_| ());
    world.vm("db", 44, &[]);
    let guest = world.guest();
    let other = world.guest_of("db", hvsock_testkit::guest::Options::new(44));
    let mut broker = GuestBroker::open(&guest);
    let id = broker.announce_box();
    let listener = listen_for(&world, id);
    let host = broker.welcome.host;
    let port = broker.connect(BOX, host, PORT).expect("allowed");
    let refused = |guest: &Guest, port| {
        let error = guest.connect(port).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    };
    refused(&other, port);
    let inside = bounded(guest.connect(port).unwrap());
    ping(&inside, &accept(&listener));
    refused(&guest, port);
    // One that is given up is of no use, either.
    let port = broker.connect(BOX, host, PORT).expect("allowed");
    let request = hvsock_endpoint::uplink::Request(2);
    broker.client.send(&GuestFrame::Cancel { request });
    broker.sync();
    refused(&guest, port);
    // Nor is one that nobody has asked for.
    refused(&guest, 1 << 25);
}

#[test]
fn the_vm_itself_reaches_the_host_by_any_guid_and_by_the_hosts_id() {
    let world = World::with_web(|_| ());
    let guest = world.guest();
    let mut broker = GuestBroker::open(&guest);
    let listener = world.listen();
    for target in [VmId::PARENT, VmId::WILDCARD, broker.welcome.host] {
        let port = broker
            .connect(ChildId::MACHINE, target, PORT)
            .expect("allowed");
        let inside = bounded(guest.connect(port).unwrap());
        let (outside, peer) = listener.accept().unwrap();
        assert_eq!(peer.vm, broker.welcome.machine);
        ping(&inside, &outside);
    }
}

#[test]
fn refusals_name_the_check_that_failed_and_nothing_else_of_the_host() {
    let world = World::with_web(|_| ());
    world.vm("db", 44, &[]);
    let guest = world.guest();
    let mut broker = GuestBroker::open(&guest);
    let id = broker.announce_box();
    let host = broker.welcome.host;
    let db = world.partition("db").id;
    let mut refused = |child, target, port, code: u32| {
        let Refused { code: got, .. } = broker.connect(child, target, port).unwrap_err();
        assert_eq!(got, code, "{child:?} to {target} port {port}");
    };
    use hvsock::Refusal;
    refused(BOX, host, 9999, Refusal::Unregistered.code());
    refused(BOX, host, PORT, Refusal::NoListener.code());
    refused(
        ChildId::MACHINE,
        VmId::PARENT,
        9999,
        Refusal::Unregistered.code(),
    );
    let unreachable = Refusal::NotReachable.code();
    // Partitions beside the VM, ids that nobody has, itself, and containers that were not announced.
    refused(BOX, db, PORT, unreachable);
    refused(BOX, VmId::of_container("nobody"), PORT, unreachable);
    refused(BOX, id, PORT, unreachable);
    refused(ChildId::MACHINE, db, PORT, unreachable);
    refused(ChildId(99), host, PORT, unreachable);
    // Its parent is the VM, which the uplink does not lead to.
    refused(BOX, VmId::PARENT, PORT, unreachable);
    refused(ChildId::MACHINE, id, PORT, unreachable);
    let handle = world.handle();
    handle.set_enabled(&service_ref(PORT), false, None).unwrap();
    let error = broker.connect(BOX, host, PORT).unwrap_err();
    assert_eq!(error.code, Refusal::Disabled { by: String::new() }.code());
}

#[test]
fn a_rule_of_the_host_for_the_vm_covers_its_containers_and_one_for_a_container_only_that() {
    let world = World::with_web(|_| ());
    let guest = world.guest();
    let mut broker = GuestBroker::open(&guest);
    let id = broker.announce_box();
    let host = broker.welcome.host;
    let handle = world.handle();
    let set = |enabled, partition: &str| {
        let partition = partition.parse().unwrap();
        handle
            .set_enabled(&service_ref(PORT), enabled, Some(&partition))
            .unwrap();
    };
    set(false, "web");
    assert!(broker.connect(BOX, host, PORT).is_err());
    assert!(broker.connect(ChildId::MACHINE, host, PORT).is_err());
    set(true, "web");
    let listener = listen_for(&world, id);
    let (inside, outside) = pair(&mut broker, &guest, &listener);
    ping(&inside, &outside);
    let _of_vm = world.listen();
    set(false, "web/box");
    assert!(broker.connect(BOX, host, PORT).is_err());
    assert!(broker.connect(ChildId::MACHINE, host, PORT).is_ok());
}

#[test]
fn a_connect_is_judged_again_when_its_stream_arrives() {
    let world = World::with_web(|_| ());
    let guest = world.guest();
    let mut broker = GuestBroker::open(&guest);
    let id = broker.announce_box();
    let listener = listen_for(&world, id);
    let host = broker.welcome.host;
    let port = broker.connect(BOX, host, PORT).expect("allowed");
    drop(listener);
    hvsock_testkit::wait::eventually("the listener is gone", || {
        world.handle().listeners().unwrap().is_empty()
    });
    let error = guest.connect(port).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    let Some(HostFrame::ConnectRefused { reason, .. }) = broker.next() else {
        panic!("no reason");
    };
    assert_eq!(reason.code, hvsock::Refusal::NoListener.code());
}

#[test]
fn connections_of_a_container_end_with_it_and_those_of_others_stay() {
    let world = World::with_web(|_| ());
    let guest = world.guest();
    let mut broker = GuestBroker::open(&guest);
    let id = broker.announce_box();
    let listener = listen_for(&world, id);
    let (of_vm_listener, _) = (world.listen(), ());
    let (of_vm, of_vm_outside) = world.pair(&guest, &of_vm_listener);
    let (_inside, mut outside) = pair(&mut broker, &guest, &listener);
    broker.client.send(&GuestFrame::Withdraw { child: BOX });
    let error = std::io::Read::read(&mut outside, &mut [0; 8]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    let refusal = hvsock::refusal_of(&error);
    assert_eq!(refusal, Some(&hvsock::Refusal::PartitionOff), "{error}");
    ping(&of_vm, &of_vm_outside);
    world.has_connections(1);
}

#[test]
fn a_container_that_is_paused_loses_its_connections_unless_they_are_suspended() {
    let world = World::with_web(|_| ());
    let guest = world.guest();
    let mut broker = GuestBroker::open(&guest);
    let id = broker.announce_box();
    let listener = listen_for(&world, id);
    let (inside, outside) = pair(&mut broker, &guest, &listener);
    outside.set_connected_suspend(true).unwrap();
    ping(&inside, &outside);
    hvsock_testkit::wait::eventually("the option has arrived", || {
        world.connection().to.connected_suspend
    });
    let (_reset, mut reset_outside) = pair(&mut broker, &guest, &listener);
    broker.state(BOX, hvsock_endpoint::uplink::ChildState::Paused);
    broker.sync();
    let error = std::io::Read::read(&mut reset_outside, &mut [0; 8]).unwrap_err();
    assert_eq!(
        hvsock::refusal_of(&error),
        Some(&hvsock::Refusal::PartitionPaused)
    );
    let shown = world.connection();
    assert_eq!(
        shown.state,
        hvsock_broker::model::ConnectionState::Suspended
    );
    assert!(broker.connect(BOX, broker.welcome.host, PORT).is_err());
    broker.state(BOX, hvsock_endpoint::uplink::ChildState::Running);
    broker.sync();
    ping(&inside, &outside);
}

#[test]
fn an_operator_closes_a_connection_of_a_container_as_any_other() {
    let world = World::with_web(|_| ());
    let guest = world.guest();
    let mut broker = GuestBroker::open(&guest);
    let id = broker.announce_box();
    let listener = listen_for(&world, id);
    let (inside, _outside) = pair(&mut broker, &guest, &listener);
    world
        .handle()
        .close_connection(world.connection().id)
        .unwrap();
    let error = std::io::Read::read(&mut &inside, &mut [0; 8]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    world.has_connections(0);
    let service = ServiceId::from_port(PORT);
    assert_eq!(
        world.handle().service(&service.into()).unwrap().connections,
        0
    );
}
