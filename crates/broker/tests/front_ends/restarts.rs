//! Guests that restart, each in its VMM's manner, and VMMs that end.

use std::io::{ErrorKind, Read};

use hvsock_broker::model::PartitionState;
use hvsock_testkit::guest::{Driver, FrontEnd, Options};
use hvsock_testkit::wait::TIMEOUT;
use hvsock_testkit::world::{WEB, bounded};

use crate::data::{exchange, ping};
use crate::vmms::{VMMS, assert_reset, each, guest, world};

#[test]
fn a_guest_that_restarts_in_its_vmms_manner_loses_its_connections_and_connects_again() {
    // Without libkrun: it waits for no acknowledgement, and on a busy machine the first connection of a guest that has
    // restarted may still be reset for the state before.
    for vmm in VMMS.into_iter().filter(|vmm| *vmm != FrontEnd::Libkrun) {
        let world = world(vmm);
        let (listener, guest) = (world.listen(), guest(&world, vmm));
        world.register(5000);
        let inner = guest.listen(5000).unwrap();
        for _ in 0..5 {
            let (inside, outside) = world.pair(&guest, &listener);
            ping(&inside, &outside);
            guest.reboot().unwrap();
            assert_reset(outside);
            let error = (&inside).read(&mut [0; 8]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        }
        world.has_connections(0);
        world.is("web", PartitionState::Running);
        let (inside, outside) = world.pair(&guest, &listener);
        exchange(&inside, &outside, 1 << 20, 10_000);
        let outside = world.connect_to("web", 5000).unwrap();
        ping(&bounded(inner.accept(TIMEOUT).unwrap()), &outside);
        assert_eq!(guest.protocol_violations(), [""; 0]);
        // The driver was reset, so there was nothing to tell it.
        assert_eq!(guest.transport_resets(), 0);
    }
}

#[test]
fn a_vmm_that_ends_is_off_and_can_be_started_again() {
    each(|vmm| {
        let world = world(vmm);
        let listener = world.listen();
        for _ in 0..3 {
            let guest = guest(&world, vmm);
            let (inside, outside) = world.pair(&guest, &listener);
            ping(&inside, &outside);
            drop(guest);
            world.is("web", PartitionState::Off);
            assert_reset(outside);
            drop(inside);
        }
        world.has_connections(0);
    });
}

#[test]
fn a_vm_may_be_started_by_one_vmm_after_the_other() {
    let world = world(FrontEnd::Libkrun);
    let listener = world.listen();
    for front_end in FrontEnd::ALL
        .into_iter()
        .chain(FrontEnd::ALL.into_iter().rev())
    {
        let guest = world.guest_of("web", Options::of(front_end, WEB));
        let (inside, outside) = world.pair(&guest, &listener);
        ping(&inside, &outside);
        drop(guest);
        world.is("web", PartitionState::Off);
        assert_reset(outside);
    }
}

#[test]
fn the_state_of_a_vm_tells_what_its_vmm_and_its_guest_have_done() {
    each(|vmm| {
        let world = world(vmm);
        world.is("web", PartitionState::Defined);
        let script = vmm.script();
        let mut driver = Driver::new(&world.socket("web"), Options::of(vmm, WEB)).unwrap();
        for _ in 0..2 {
            // The VMM has started, and the guest boots.
            driver.open().unwrap();
            driver.run(script.connect).unwrap();
            world.is("web", PartitionState::Connected);
            // It loads its driver, and removes it again.
            for _ in 0..3 {
                driver.run(script.start).unwrap();
                driver.refill();
                world.is("web", PartitionState::Running);
                driver.run(script.stop).unwrap();
                driver.reset_queues();
                world.is("web", PartitionState::Connected);
            }
            driver.run(script.start).unwrap();
            driver.refill();
            world.is("web", PartitionState::Running);
            if !script.pause.is_empty() {
                driver.stop_queues().unwrap();
                world.is("web", PartitionState::Paused);
                driver.resume_queues().unwrap();
                world.is("web", PartitionState::Running);
            }
            driver.end_vmm();
            driver.reset_queues();
            world.is("web", PartitionState::Off);
        }
    });
}

#[test]
fn a_driver_that_has_taken_its_rings_back_before_they_are_stopped_is_no_pause() {
    let vmm = FrontEnd::Libkrun;
    let world = world(vmm);
    let (listener, guest) = (world.listen(), guest(&world, vmm));
    let (inside, outside) = world.pair(&guest, &listener);
    ping(&inside, &outside);
    // Its messages are not acknowledged, so the guest may be faster than the device.
    guest.with_driver(|driver| {
        driver.rx().used_ring().put(0, &[0; 4]);
        driver.tx().used_ring().put(0, &[0; 4]);
        driver.run(vmm.script().stop).unwrap();
    });
    world.is("web", PartitionState::Connected);
    assert_reset(outside);
}
