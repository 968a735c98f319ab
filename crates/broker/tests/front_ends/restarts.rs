//! Guests that restart, each in its VMM's manner, and VMMs that end.

use std::io::{ErrorKind, Read};
use std::sync::mpsc;
use std::thread;

use hvsock_broker::StartError;
use hvsock_broker::guest_link::{EventSender, GuestLink, LinkSettings};
use hvsock_broker::model::PartitionState;
use hvsock_testkit::guest::{Driver, FrontEnd, Options};
use hvsock_testkit::wait::{self, TIMEOUT};
use hvsock_testkit::world::{PORT, WEB, accept, bounded};
use serde_json::json;

use crate::data::{exchange, ping};
use crate::vmms::{assert_reset, each, guest, world};

#[test]
fn a_guest_that_restarts_in_its_vmms_manner_loses_its_connections_and_connects_again() {
    each(|vmm| {
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
    });
}

#[test]
fn a_connection_of_a_restarted_guest_outlives_what_a_busy_core_does_about_the_restart() {
    each(|vmm| {
        let world = world(vmm);
        let (listener, guest) = (world.listen(), guest(&world, vmm));
        // The core knows then that the process accepts the guest, whose next connection makes an arena.
        drop(world.pair(&guest, &listener));
        world.later_exchange();
        let (inside, outside) = world.pair(&guest, &listener);
        ping(&inside, &outside);
        let (busy, is_busy) = mpsc::channel();
        let (release, released) = mpsc::channel::<()>();
        let factory = move |_: LinkSettings, _: EventSender| {
            let _ = busy.send(());
            let _ = released.recv_timeout(TIMEOUT);
            let (what, error) = ("keep the core busy".into(), ErrorKind::Other.into());
            Err::<Box<dyn GuestLink>, _>(StartError::Io { what, error })
        };
        let connected = thread::scope(|scope| {
            let vm = serde_json::from_value(json!({"name": "other"})).unwrap();
            scope.spawn(|| assert!(world.handle().add_vm_with_link(vm, factory).is_err()));
            is_busy.recv().unwrap();
            guest.with_driver(|driver| {
                driver.run(vmm.script().stop).unwrap();
                driver.reset_queues();
            });
            // By now the device has found that this is no pause.
            assert_reset(outside);
            guest.reboot().unwrap();
            let connecting = scope.spawn(|| bounded(guest.connect(PORT).unwrap()));
            wait::until_ok("the device has the guest's request", || {
                let used = |driver: &mut Driver| (driver.tx().has_used(), driver.tx().used_index());
                match guest.with_driver(used) {
                    (false, 0) => Err("nothing is used"),
                    _ => Ok(()),
                }
            });
            release.send(()).unwrap();
            connecting.join().unwrap()
        });
        let outside = accept(&listener);
        world.is("web", PartitionState::Running);
        world.later_exchange();
        ping(&connected, &outside);
    });
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
            driver.end_vmm().unwrap();
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
