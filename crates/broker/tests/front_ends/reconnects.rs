//! A back end that ends while the guest runs. Cloud Hypervisor connects again; the others do not.

use std::io::{ErrorKind, Read};
use std::time::{Duration, Instant};

use hvsock_broker::model::PartitionState;
use hvsock_testkit::guest::{CloseReason, FrontEnd, Guest, HOST, Options};
use hvsock_testkit::wait::{TIMEOUT, eventually};
use hvsock_testkit::world::{PORT, WEB, World, accept, bounded};
use hvsock_virtio::SocketKind;

use crate::data::{exchange, ping};
use crate::vmms::{assert_reset, guest, world};

const VMM: FrontEnd = FrontEnd::CloudHypervisor;

/// Replaces the back end of a guest of Cloud Hypervisor.
fn replaced(world: World, guest: &Guest) -> World {
    let world = world.restarted();
    guest.reconnect().unwrap();
    world.is("web", PartitionState::Running);
    world
}

#[test]
fn a_guest_of_cloud_hypervisor_learns_of_a_new_back_end_that_its_sockets_are_reset() {
    let world = world(VMM);
    let (listener, guest) = (world.listen(), guest(&world, VMM));
    world.register(5000);
    let inner = guest.listen(5000).unwrap();
    // Connections of each direction, whose readers wait and send nothing: without an event they would hang.
    let mut pairs = Vec::new();
    for _ in 0..20 {
        pairs.push(world.pair(&guest, &listener));
        let outside = world.connect_to("web", 5000).unwrap();
        pairs.push((bounded(inner.accept(TIMEOUT).unwrap()), outside));
    }
    let (insides, outsides): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
    let world = std::thread::scope(|scope| {
        let readers: Vec<_> = insides
            .iter()
            .map(|mut inside| {
                scope.spawn(move || inside.read(&mut [0; 8]).map_err(|error| error.kind()))
            })
            .collect();
        drop(listener);
        let world = replaced(world, &guest);
        for reader in readers {
            assert_eq!(reader.join().unwrap(), Err(ErrorKind::ConnectionReset));
        }
        world
    });
    outsides.into_iter().for_each(assert_reset);
    for inside in insides {
        assert_eq!(inside.close_reason(), Some(CloseReason::TransportReset));
    }
    assert_eq!(guest.transport_resets(), 1);
    // Its listeners stay, and new connections are served.
    let listener = world.listen();
    let (inside, outside) = world.pair(&guest, &listener);
    exchange(&inside, &outside, 1 << 20, 10_000);
    let outside = world.connect_to("web", 5000).unwrap();
    ping(&bounded(inner.accept(TIMEOUT).unwrap()), &outside);
    assert_eq!(guest.protocol_violations(), [""; 0]);
}

#[test]
fn a_new_back_end_loses_no_receive_buffer_of_a_guest_of_cloud_hypervisor() {
    let mut world = world(VMM);
    // With this queue, one lost set of buffers is the end.
    let options = Options {
        queue_size: 16,
        tx_slots: 16,
        ..Options::of(VMM, WEB)
    };
    let guest = world.guest_of("web", options);
    let posted = |guest: &Guest| {
        guest.with_driver(|driver| {
            let rx = driver.rx();
            rx.available_index().wrapping_sub(rx.used_index())
        })
    };
    assert_eq!(posted(&guest), 16);
    for round in 0..5 {
        world = replaced(world, &guest);
        let listener = world.listen();
        // Some of these are answered by a reset for the old ones.
        let (inside, outside) = world.pair(&guest, &listener);
        exchange(&inside, &outside, 200_000, 10_000);
        eventually("all buffers are with the device", || {
            guest.transport_resets();
            posted(&guest) == 16
        });
        assert!(guest.transport_resets() <= round + 1);
        drop((inside, outside, listener));
        world.has_connections(0);
    }
    assert_eq!(guest.protocol_violations(), [""; 0]);
}

#[test]
fn packets_that_a_guest_of_cloud_hypervisor_sent_without_a_back_end_are_answered_by_the_next() {
    let world = world(VMM);
    let (listener, guest) = (world.listen(), guest(&world, VMM));
    let (inside, _outside) = world.pair(&guest, &listener);
    drop(listener);
    let World { broker, folder } = world;
    drop(broker);
    // These stay in the queue, and the kick in its eventfd.
    let mut sent = 0;
    while sent < 20 && inside.try_write(b"lost").is_ok() {
        sent += 1;
    }
    assert_eq!(sent, 20);
    let (world, listener, connected) = std::thread::scope(|scope| {
        let connect = || guest.connect_to(SocketKind::Stream, HOST, PORT, TIMEOUT);
        let connecting = scope.spawn(connect);
        eventually("the request is in the queue", || guest.connections() == 2);
        let world = World::again(folder);
        let listener = world.listen();
        guest.reconnect().unwrap();
        let connected = connecting.join().unwrap();
        (world, listener, connected)
    });
    let error = (&inside).read(&mut [0; 8]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    // The event ends only what was established; the request is answered after it.
    ping(&bounded(connected.unwrap()), &accept(&listener));
    let (inside, outside) = world.pair(&guest, &listener);
    ping(&inside, &outside);
}

#[test]
fn cloud_hypervisor_finds_a_back_end_that_comes_back_late() {
    let world = world(VMM);
    let guest = guest(&world, VMM);
    let World { broker, folder } = world;
    drop(broker);
    let world = std::thread::scope(|scope| {
        let began = Instant::now();
        let back = scope.spawn(|| guest.reconnect());
        // Three of its attempts fail, and it makes the next after 100 ms.
        std::thread::sleep(Duration::from_millis(350));
        let world = World::again(folder);
        back.join().unwrap().unwrap();
        assert!(began.elapsed() >= Duration::from_millis(350));
        world
    });
    world.is("web", PartitionState::Running);
    let listener = world.listen();
    let (inside, outside) = world.pair(&guest, &listener);
    ping(&inside, &outside);
}

#[test]
fn a_guest_of_another_vmm_is_served_again_when_its_vm_is_started_again() {
    for vmm in [FrontEnd::Crosvm, FrontEnd::Libkrun, FrontEnd::OpenVmm] {
        let world = world(vmm);
        let (listener, guest) = (world.listen(), guest(&world, vmm));
        let (_inside, outside) = world.pair(&guest, &listener);
        drop(listener);
        let world = world.restarted();
        assert_reset(outside);
        assert_eq!(
            guest.reconnect().unwrap_err().kind(),
            ErrorKind::Unsupported,
            "{vmm:?}"
        );
        guest.restart_vmm().unwrap();
        world.is("web", PartitionState::Running);
        let listener = world.listen();
        let (inside, outside) = world.pair(&guest, &listener);
        ping(&inside, &outside);
        assert_eq!(guest.transport_resets(), 0, "{vmm:?}");
    }
}
