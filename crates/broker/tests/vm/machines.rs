//! Life cycle of machines. Covers guests that restart, VMMs that are killed, replaced or rejected,
//! removed machines and a restarted broker.

use std::io::{ErrorKind, Read, Write};

use hvsock_broker::model::PartitionState;
use hvsock_testkit::guest::{Guest, Options};

use crate::traffic::ping;
use hvsock_testkit::wait::eventually;
use hvsock_testkit::world::{PORT, WEB, World, accept, bounded, partition_ref};

/// Asserts that the host's end of a connection was reset.
#[track_caller]
fn assert_reset(mut outside: hvsock::HvStream) {
    let error = outside.read(&mut [0; 8]).expect_err("no end of file");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
}

#[test]
fn a_guest_that_restarts_loses_its_connections_and_connects_again() {
    let world = World::with_web(|_| ());
    let (listener, guest) = (world.listen(), world.guest());
    for _ in 0..10 {
        let (inside, outside) = world.pair(&guest, &listener);
        ping(&inside, &outside);
        guest.reboot().unwrap();
        assert_reset(outside);
        let error = (&inside).read(&mut [0; 8]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }
    world.has_connections(0);
    let (inside, outside) = world.pair(&guest, &listener);
    ping(&inside, &outside);
}

#[test]
fn a_killed_machine_is_off_and_can_be_started_again() {
    let world = World::with_web(|_| ());
    let listener = world.listen();
    for _ in 0..5 {
        let guest = world.guest();
        let (inside, outside) = world.pair(&guest, &listener);
        ping(&inside, &outside);
        drop(guest);
        world.is("web", PartitionState::Off);
        assert_reset(outside);
        drop(inside);
    }
    world.has_connections(0);
}

#[test]
fn a_machine_whose_process_is_replaced_at_once_loses_only_its_connections() {
    let world = World::with_web(|_| ());
    let (listener, guest) = (world.listen(), world.guest());
    let (_inside, outside) = world.pair(&guest, &listener);
    guest.restart_vmm().unwrap();
    assert_reset(outside);
    let (inside, outside) = world.pair(&guest, &listener);
    ping(&inside, &outside);
}

#[test]
fn a_running_machine_can_be_removed_with_its_connections_and_added_again() {
    let world = World::with_web(|_| ());
    let (listener, guest) = (world.listen(), world.guest());
    let (inside, outside) = world.pair(&guest, &listener);
    ping(&inside, &outside);
    world
        .handle()
        .remove_partition(&partition_ref("web"))
        .unwrap();
    assert_reset(outside);
    world.has_connections(0);
    eventually("its socket is gone", || !world.socket("web").exists());
    drop((inside, guest));
    world.vm("web", WEB, &[]);
    let guest = world.guest();
    let (inside, outside) = world.pair(&guest, &listener);
    ping(&inside, &outside);
}

#[test]
fn a_second_vmm_of_one_device_is_rejected() {
    let world = World::with_web(|_| ());
    let (listener, guest) = (world.listen(), world.guest());
    let (inside, outside) = world.pair(&guest, &listener);
    let options = Options {
        timeout: std::time::Duration::from_secs(2),
        ..Options::new(WEB)
    };
    assert!(Guest::start(&world.socket("web"), options).is_err());
    ping(&inside, &outside);
}

#[test]
fn adding_and_removing_machines_does_not_affect_another() {
    let world = World::with_web(|_| ());
    let (listener, guest) = (world.listen(), world.guest());
    let (inside, outside) = world.pair(&guest, &listener);
    for round in 0..20 {
        let (name, cid) = (format!("vm{round}"), 1000 + round);
        world.vm(&name, cid, &[]);
        let other = world.guest_of(&name, Options::new(cid));
        let mut stream = bounded(other.connect(PORT).unwrap());
        let mut host = accept(&listener);
        stream.write_all(b"hello").unwrap();
        let mut bytes = [0; 5];
        host.read_exact(&mut bytes).unwrap();
        ping(&inside, &outside);
        world
            .handle()
            .remove_partition(&partition_ref(&name))
            .unwrap();
        ping(&inside, &outside);
    }
}

#[test]
fn a_machine_survives_its_broker_and_reconnects_to_the_next() {
    let world = World::with_web(|_| ());
    let (listener, guest) = (world.listen(), world.guest());
    let (inside, outside) = world.pair(&guest, &listener);
    ping(&inside, &outside);
    drop(listener);
    let world = world.restarted();
    guest.reconnect().unwrap();
    world.is("web", PartitionState::Running);
    // Both ends see a reset, the guest at the latest when it uses the connection.
    assert_reset(outside);
    let mut stream = &inside;
    let _ = stream.write(b"anybody");
    let error = stream.read(&mut [0; 8]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    let listener = world.listen();
    for _ in 0..300 {
        let (inside, outside) = world.pair(&guest, &listener);
        ping(&inside, &outside);
    }
}
