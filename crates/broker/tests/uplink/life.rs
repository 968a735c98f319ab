//! Uplinks that end: by their broker, its VM, a newer one, and a restart of the host's broker.

use std::io::{ErrorKind, Read};

use hvsock::refusal_of;
use hvsock_broker::model::PartitionState;
use hvsock_testkit::wait::eventually;
use hvsock_testkit::world::{PORT, World, accept, bounded, partition_ref};

use crate::guest_broker::{BOX, GuestBroker};
use crate::traffic::ping;

#[track_caller]
fn is_gone(world: &World, name: &str) {
    eventually(&format!("{name} is gone"), || {
        world.handle().partition(&partition_ref(name)).is_err()
    });
}

#[test]
fn a_broker_that_ends_takes_its_containers_and_their_connections_along() {
    let world = World::with_web(|_| ());
    let guest = world.guest();
    let mut broker = GuestBroker::open(&guest);
    let id = broker.announce_box();
    let listener = world.host().listen(id, PORT).unwrap();
    let port = broker.connect(BOX, broker.welcome.host, PORT).unwrap();
    let _inside = bounded(guest.connect(port).unwrap());
    let mut outside = accept(&listener);
    let connecting = std::thread::scope(|scope| {
        let connecting = scope.spawn(|| world.connect_to("web/box", PORT));
        broker.incoming();
        // As a broker that is killed.
        broker.client.stream.reset();
        connecting.join().unwrap().unwrap_err()
    });
    assert_eq!(
        refusal_of(&connecting),
        Some(&hvsock::Refusal::PartitionOff)
    );
    let error = outside.read(&mut [0; 8]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert_eq!(refusal_of(&error), Some(&hvsock::Refusal::PartitionOff));
    is_gone(&world, "web/box");
    world.has_connections(0);
    // Its listener had nobody to accept from any more.
    assert!(
        listener
            .accept_timeout(hvsock_testkit::wait::TIMEOUT)
            .is_err()
    );
    // It comes back, with the same containers.
    let mut broker = GuestBroker::open(&guest);
    assert_eq!(broker.announce_box(), id);
    let _ = broker;
}

#[test]
fn a_newer_broker_of_a_vm_replaces_the_older_one() {
    let world = World::with_web(|_| ());
    let guest = world.guest();
    let mut old = GuestBroker::open(&guest);
    old.announce_box();
    let mut new = GuestBroker::open(&guest);
    let why = old.ended();
    assert!(why.contains("another broker"), "{why}");
    is_gone(&world, "web/box");
    new.announce_box();
    new.sync();
    assert_eq!(world.partition("web").broker.unwrap().containers, 1);
}

#[test]
fn an_uplink_ends_with_its_vm_and_lasts_through_a_pause() {
    let world = World::with_web(|_| ());
    let guest = world.guest();
    let mut broker = GuestBroker::open(&guest);
    let id = broker.announce_box();
    let listener = world.host().listen(id, PORT).unwrap();
    let port = broker.connect(BOX, broker.welcome.host, PORT).unwrap();
    let inside = bounded(guest.connect(port).unwrap());
    let outside = accept(&listener);
    outside.set_connected_suspend(true).unwrap();
    ping(&inside, &outside);
    eventually("the option has arrived", || {
        world.connection().to.connected_suspend
    });
    let web = partition_ref("web");
    let handle = world.handle();
    handle.set_state(&web, PartitionState::Paused).unwrap();
    let suspended = hvsock_broker::model::ConnectionState::Suspended;
    assert_eq!(world.connection().state, suspended);
    let error = world.connect_to("web/box", PORT).unwrap_err();
    assert_eq!(
        refusal_of(&error),
        Some(&hvsock::Refusal::PartitionPaused),
        "{error}"
    );
    // The broker still speaks, and may still not connect.
    broker.sync();
    assert!(broker.connect(BOX, broker.welcome.host, PORT).is_err());
    handle.set_state(&web, PartitionState::Running).unwrap();
    ping(&inside, &outside);
    drop((broker, inside, guest));
    is_gone(&world, "web/box");
    world.is("web", PartitionState::Off);
    world.has_connections(0);
}

#[test]
fn a_vm_that_is_removed_takes_its_uplink_along() {
    let world = World::with_web(|_| ());
    let guest = world.guest();
    let mut broker = GuestBroker::open(&guest);
    broker.announce_box();
    world
        .handle()
        .remove_partition(&partition_ref("web"))
        .unwrap();
    is_gone(&world, "web/box");
    is_gone(&world, "web");
    world.vm("web", 42, &[]);
}

#[test]
fn a_guest_that_reboots_has_no_containers_until_its_broker_is_back() {
    let world = World::with_web(|_| ());
    let guest = world.guest();
    let mut broker = GuestBroker::open(&guest);
    broker.announce_box();
    guest.reboot().unwrap();
    is_gone(&world, "web/box");
    world.is("web", PartitionState::Running);
    let mut broker = GuestBroker::open(&guest);
    broker.announce_box();
}

#[test]
fn after_a_restart_of_the_hosts_broker_the_guests_connects_again() {
    let world = World::with_web(|_| ());
    let guest = world.guest();
    let mut broker = GuestBroker::open(&guest);
    let id = broker.announce_box();
    let world = world.restarted();
    assert!(world.handle().partition(&partition_ref("web/box")).is_err());
    guest.reconnect().unwrap();
    world.is("web", PartitionState::Running);
    let mut broker = GuestBroker::open(&guest);
    assert_eq!(broker.announce_box(), id);
}
