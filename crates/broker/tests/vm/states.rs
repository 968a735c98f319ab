//! The states of a VM, as operators see them.

use std::io::{ErrorKind, Read};
use std::os::fd::AsFd;
use std::time::Duration;

use hvsock::HvListener;
use hvsock_broker::model::{EventKind, PartitionState};
use hvsock_testkit::guest::vmm::{Vmm, protocol, request};
use hvsock_testkit::guest::{Driver, FrontEnd, Options};
use hvsock_testkit::wait::TIMEOUT;
use hvsock_testkit::world::{PORT, WEB, World};
use hvsock_virtio::features;

use crate::traffic::ping;

#[test]
fn a_vm_is_defined_until_its_vmm_connects_and_connected_until_its_driver_starts() {
    let world = World::with_web(|_| ());
    assert_eq!(world.partition("web").state, PartitionState::Defined);
    let mut vmm = Vmm::connect(&world.socket("web"), TIMEOUT).unwrap();
    world.is("web", PartitionState::Connected);
    vmm.negotiate(
        features::VERSION_1,
        protocol::REPLY_ACK | protocol::RESET_DEVICE,
    )
    .unwrap();
    // QEMU resets each device when the machine starts.
    vmm.send_acked(request::RESET_DEVICE, &[], &[]).unwrap();
    assert_eq!(world.partition("web").state, PartitionState::Connected);
    drop(vmm);
    world.is("web", PartitionState::Off);
    let guest = world.guest();
    drop(guest);
    world.is("web", PartitionState::Off);
}

/// A listener whose connections survive a pause.
fn listen_suspendable(world: &World) -> HvListener {
    let listener = HvListener::options()
        .endpoint(world.host().endpoint())
        .connected_suspend(true)
        .listen((hvsock::VmId::CHILDREN, hvsock::ServiceId::from_port(PORT)));
    listener.expect("listening")
}

#[test]
fn a_paused_vm_stays_paused_and_one_whose_driver_goes_away_becomes_connected() {
    let world = World::with_web(|_| ());
    let (listener, guest) = (listen_suspendable(&world), world.guest());
    let (inside, mut outside) = world.pair(&guest, &listener);
    ping(&inside, &outside);
    guest
        .pause(|_| {
            world.is("web", PartitionState::Paused);
            // Several looks at its memory: after 30, 90 and 210 ms.
            std::thread::sleep(Duration::from_millis(250));
            assert_eq!(world.partition("web").state, PartitionState::Paused);
        })
        .unwrap();
    world.is("web", PartitionState::Running);
    ping(&inside, &outside);
    guest
        .pause(|driver| {
            take_a_buffer_back(driver);
            world.is("web", PartitionState::Connected);
            let error = outside.read(&mut [0; 8]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        })
        .unwrap();
}

/// As Linux does for all buffers when the driver is removed.
fn take_a_buffer_back(driver: &mut Driver) {
    let index = driver.rx().available_index();
    driver.rx().set_available_index(index.wrapping_sub(1));
}

#[test]
fn memory_that_changes_while_requests_of_the_vmm_wait_is_no_driver_that_has_gone() {
    let world = World::with_web(|_| ());
    let (listener, guest) = (listen_suspendable(&world), world.guest());
    let (inside, outside) = world.pair(&guest, &listener);
    ping(&inside, &outside);
    // A VMM on a busy machine has sent what starts the rings, and runs the guest, before the device has read it.
    guest
        .pause(|driver| {
            let header = [request::GET_FEATURES, 1, 0].map(u32::to_le_bytes).concat();
            let (first, rest) = header.split_at(5);
            driver.vmm().unwrap().send_bytes(first, &[]).unwrap();
            let index = driver.rx().available_index();
            take_a_buffer_back(driver);
            std::thread::sleep(Duration::from_millis(120));
            // A machine that was slow before the first bytes has let the device report the pause.
            let state = world.partition("web").state;
            assert!(
                matches!(state, PartitionState::Running | PartitionState::Paused),
                "{state:?}"
            );
            driver.rx().set_available_index(index);
            let vmm = driver.vmm().unwrap();
            vmm.send_bytes(rest, &[]).unwrap();
            vmm.receive_reply(request::GET_FEATURES).unwrap();
        })
        .unwrap();
    ping(&inside, &outside);
    world.is("web", PartitionState::Running);
}

#[test]
fn a_driver_that_goes_away_does_not_look_paused_even_for_a_moment() {
    let world = World::with_web(|_| ());
    let events = world.handle().events().unwrap();
    // On a busy machine the driver may take longer than the device waits.
    for _ in 0..20 {
        let mut driver = world.driver(Options::new(WEB));
        world.is("web", PartitionState::Running);
        driver.stop_queues().unwrap();
        take_a_buffer_back(&mut driver);
        world.is("web", PartitionState::Connected);
        drop(driver);
        let mut states = Vec::new();
        while states.last() != Some(&PartitionState::Off) {
            let event = events.recv_timeout(TIMEOUT).unwrap();
            if let EventKind::PartitionState { state, .. } = event.what {
                states.push(state);
            }
        }
        let expected = [
            PartitionState::Connected,
            PartitionState::Running,
            PartitionState::Connected,
            PartitionState::Off,
        ];
        if states == expected {
            return;
        }
        let paused = states
            .iter()
            .position(|state| *state == PartitionState::Paused);
        states.remove(paused.expect("paused"));
        assert_eq!(states, expected);
    }
    panic!("it looked paused each time");
}

#[test]
fn a_vm_whose_memory_is_overwritten_after_its_rings_were_stopped_is_not_paused() {
    let world = World::with_web(|_| ());
    for at in [0, 4096, 0x46c, (1 << 20) - 1] {
        let mut driver = world.driver(Options::new(WEB));
        world.is("web", PartitionState::Running);
        driver.stop_queues().unwrap();
        world.is("web", PartitionState::Paused);
        driver.memory().bytes(at, 1).put(0, &[0xA5]);
        world.is("web", PartitionState::Connected);
        driver.reset_queues();
        driver.start_queues([0, 0]).unwrap();
        world.is("web", PartitionState::Running);
        drop(driver);
        world.is("web", PartitionState::Off);
    }
}

#[test]
fn a_reset_of_the_device_keeps_its_memory_and_is_no_pause() {
    let world = World::with_web(|_| ());
    let listener = world.listen();
    for reset in [request::RESET_DEVICE, request::RESET_OWNER] {
        let mut driver = world.driver(Options::new(WEB));
        world.is("web", PartitionState::Running);
        // As QEMU since 9.1: the queues are stopped, then the device is reset.
        driver.stop_queues().unwrap();
        let vmm = driver.vmm().unwrap();
        vmm.send_acked(reset, &[], &[]).unwrap();
        world.is("web", PartitionState::Connected);
        driver.reset_queues();
        // The memory table is not sent again.
        for index in [0, 1] {
            let queue = if index == 0 { driver.rx() } else { driver.tx() };
            let (size, at) = (queue.size(), queue.addresses());
            let fds = [queue.kick_event(), queue.call_descriptor()];
            let [kick, call] = fds.map(|fd| fd.try_clone_to_owned().unwrap());
            let fds = [kick.as_fd(), call.as_fd()];
            let vmm = driver.vmm().unwrap();
            vmm.start_ring(index, size, 0, at, fds).unwrap();
            vmm.enable_ring(index, true).unwrap();
        }
        driver.refill();
        world.is("web", PartitionState::Running);
        drop(driver);
        world.is("web", PartitionState::Off);
    }
    let guest = world.guest();
    let (inside, outside) = world.pair(&guest, &listener);
    ping(&inside, &outside);
}

#[test]
fn a_vm_of_each_vmm_is_off_after_it_and_running_again_with_it() {
    let world = World::with_web(|_| ());
    let listener = world.listen();
    for front_end in [
        FrontEnd::Qemu,
        FrontEnd::UserModeLinux,
        FrontEnd::CloudHypervisor,
        FrontEnd::Crosvm,
        FrontEnd::Libkrun,
        FrontEnd::OpenVmm,
    ] {
        // Unsealed memory, too.
        let guest = world.guest_of("web", Options::of(front_end, WEB));
        let (inside, outside) = world.pair(&guest, &listener);
        ping(&inside, &outside);
        drop(guest);
        world.is("web", PartitionState::Off);
    }
}
