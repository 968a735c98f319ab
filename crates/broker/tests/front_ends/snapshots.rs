//! VMs that are paused, saved and restored by each VMM that does so.

use std::io::{ErrorKind, Read};
use std::sync::Mutex;
use std::thread;

use hvsock::{HvListener, ServiceId, VmId};
use hvsock_broker::model::PartitionState;
use hvsock_testkit::guest::{CloseReason, FrontEnd};
use hvsock_testkit::wait::TIMEOUT;
use hvsock_testkit::world::{PORT, World, accept, bounded};

use crate::data::{exchange, ping, read_all, write_all};
use crate::vmms::{assert_reset, guest, world};

/// The VMMs that pause a VM. libkrun does not.
const PAUSING: [FrontEnd; 3] = [
    FrontEnd::CloudHypervisor,
    FrontEnd::Crosvm,
    FrontEnd::OpenVmm,
];

/// The VMMs that transfer the device's state.
const WITH_STATE: [FrontEnd; 2] = [FrontEnd::CloudHypervisor, FrontEnd::Crosvm];

/// A listener whose connections survive a pause.
fn listen_suspendable(world: &World) -> HvListener {
    let listener = HvListener::options()
        .endpoint(world.host().endpoint())
        .connected_suspend(true)
        .listen((VmId::CHILDREN, ServiceId::from_port(PORT)));
    listener.expect("listening")
}

#[test]
fn a_paused_vm_is_paused_and_its_suspendable_connections_go_on_afterwards() {
    for vmm in PAUSING {
        let world = world(vmm);
        let (listener, guest) = (listen_suspendable(&world), guest(&world, vmm));
        let inside = &bounded(guest.connect(PORT).unwrap());
        let outside = &accept(&listener);
        let bytes = 8 << 20;
        thread::scope(|scope| {
            let writers = [
                scope.spawn(move || {
                    write_all(inside, bytes, 60_000)?;
                    inside.shutdown(std::net::Shutdown::Write)
                }),
                scope.spawn(move || {
                    write_all(outside, bytes, 60_000)?;
                    outside.shutdown(std::net::Shutdown::Write)
                }),
            ];
            let readers = [
                scope.spawn(move || read_all(outside, 1 << 16)),
                scope.spawn(move || read_all(inside, 1 << 16)),
            ];
            for round in 0..5 {
                let check = |_: &mut _| world.is("web", PartitionState::Paused);
                match round % 2 {
                    0 => guest.pause(check).unwrap(),
                    _ => drop(guest.snapshot(check).unwrap()),
                }
            }
            for writer in writers {
                writer.join().unwrap().unwrap();
            }
            for reader in readers {
                assert_eq!(reader.join().unwrap().unwrap(), bytes, "{vmm:?}");
            }
        });
        world.is("web", PartitionState::Running);
        assert_eq!(guest.protocol_violations(), [""; 0], "{vmm:?}");
        assert_eq!(guest.transport_resets(), 0, "{vmm:?}");
    }
}

#[test]
fn other_connections_of_a_vm_that_is_paused_are_reset() {
    for vmm in PAUSING {
        let world = world(vmm);
        let (listener, guest) = (world.listen(), guest(&world, vmm));
        let (inside, outside) = world.pair(&guest, &listener);
        ping(&inside, &outside);
        let outside = Mutex::new(Some(outside));
        guest
            .pause(|_| {
                world.is("web", PartitionState::Paused);
                assert_reset(outside.lock().unwrap().take().unwrap());
            })
            .unwrap();
        world.is("web", PartitionState::Running);
        let error = (&inside).read(&mut [0; 8]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{vmm:?}");
    }
}

#[test]
fn a_snapshot_has_the_devices_state_where_the_vmm_asks_for_it() {
    for vmm in PAUSING {
        let world = world(vmm);
        let (listener, guest) = (world.listen(), guest(&world, vmm));
        for _ in 0..3 {
            let state = guest.snapshot(|_| ()).unwrap();
            assert_eq!(state.is_some(), WITH_STATE.contains(&vmm), "{vmm:?}");
            let (inside, outside) = world.pair(&guest, &listener);
            exchange(&inside, &outside, 200_000, 10_000);
        }
    }
}

#[test]
fn a_restored_guest_has_its_sockets_reset_and_its_listeners_serve() {
    for vmm in PAUSING {
        let world = world(vmm);
        let (listener, guest) = (world.listen(), guest(&world, vmm));
        world.register(5000);
        let inner = guest.listen(5000).unwrap();
        for round in 1..4 {
            let (inside, outside) = world.pair(&guest, &listener);
            ping(&inside, &outside);
            guest.restore(|state| state).unwrap();
            world.is("web", PartitionState::Running);
            assert_reset(outside);
            // A socket that nobody else would wake.
            let error = (&inside).read(&mut [0; 8]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{vmm:?}");
            assert_eq!(inside.close_reason(), Some(CloseReason::TransportReset));
            assert_eq!(guest.transport_resets(), round, "{vmm:?}");
            let (inside, outside) = world.pair(&guest, &listener);
            exchange(&inside, &outside, 200_000, 10_000);
            let outside = world.connect_to("web", 5000).unwrap();
            ping(&bounded(inner.accept(TIMEOUT).unwrap()), &outside);
        }
        assert_eq!(guest.protocol_violations(), [""; 0], "{vmm:?}");
    }
}

#[test]
fn a_state_that_no_device_has_saved_is_rejected_and_the_vm_can_be_started() {
    for vmm in WITH_STATE {
        let world = world(vmm);
        let listener = world.listen();
        for state in [
            vec![],
            b"not a state".to_vec(),
            vec![0; 100_000],
            vec![0xff; 4 << 20],
        ] {
            let guest = guest(&world, vmm);
            guest.restore(|_| Some(state)).unwrap_err();
            drop(guest);
        }
        let guest = guest(&world, vmm);
        let (inside, outside) = world.pair(&guest, &listener);
        ping(&inside, &outside);
    }
}
