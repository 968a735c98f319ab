//! The states of virtual machines with real guests: whether the VMM, the guest's driver and the guest are there.

use std::time::Duration;

use hvsock_guests::{Guest, Kit, Vmm};
use hvsock_testkit::require;
use serde_json::json;

use crate::guests::{boot, connect, run_in_guest, settles};
use crate::util::World;

/// The module of the guest's driver.
const DRIVER: &str = "vmw_vsock_virtio_transport";

/// A broker with the VM `web` and its guest.
fn started(kit: &Kit) -> (World, Guest) {
    let world = World::new();
    world.ok(["vm", "add", "web", "--cid", "42"]);
    world.ok(["service", "register", "Echo", "--port", "7"]);
    settles(&world, "web", "defined");
    let guest = boot(kit, &world, "web");
    settles(&world, "web", "running");
    (world, guest)
}

/// Removes the driver from the guest and loads it again.
fn driver_comes_and_goes(world: &World, guest: &Guest) {
    run_in_guest(guest, &format!("rmmod {DRIVER}"));
    settles(world, "web", "connected");
    let error = connect(world, "web", "Echo", "").failed();
    assert!(error.contains(DRIVER), "{error}");
    run_in_guest(guest, &format!("insmod /modules/*-{DRIVER}.ko"));
    settles(world, "web", "running");
    let echo = world.listen(["Echo", "--from", "web", "--keep", "--", "cat"]);
    let answer = run_in_guest(guest, "echo back | hvsock connect parent 7");
    assert_eq!(answer, "back");
    drop(echo);
}

#[test]
fn a_guest_in_user_mode_linux_whose_driver_goes_away_is_connected() {
    let Some(kit) = require::found(Kit::find_for(Vmm::Uml)) else {
        return;
    };
    let (world, guest) = started(&kit);
    driver_comes_and_goes(&world, &guest);
    guest.quit().unwrap();
    settles(&world, "web", "off");
}

#[test]
fn only_a_guest_under_qemu_that_its_vmm_has_stopped_is_paused() {
    let Some(kit) = require::found(Kit::find_for(Vmm::Qemu)) else {
        return;
    };
    let (world, guest) = started(&kit);
    driver_comes_and_goes(&world, &guest);

    guest.pause().unwrap();
    settles(&world, "web", "paused");
    // The device looks at the guest's memory several times.
    std::thread::sleep(Duration::from_millis(1500));
    settles(&world, "web", "paused");
    guest.resume().unwrap();
    settles(&world, "web", "running");

    guest.monitor("system_reset", &json!({})).unwrap();
    settles(&world, "web", "connected");
    // Paused or not, it has no driver now.
    guest.pause().unwrap();
    settles(&world, "web", "connected");
    guest.quit().unwrap();
    settles(&world, "web", "off");
}
