//! The states of virtual machines with real guests: whether the VMM, the guest's driver and the guest are there.

use std::process::Command;
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
    started_in(World::new(), kit)
}

fn started_in(world: World, kit: &Kit) -> (World, Guest) {
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
fn a_vmm_that_truncates_its_memory_is_disconnected_and_the_broker_goes_on() {
    let Some(kit) = require::found(Kit::find_for(Vmm::Uml)) else {
        return;
    };
    let (world, guest) = started_in(World::logged(), &kit);
    // Stopped, so that the broker is the first to access what is gone.
    let pid = guest.pid().to_string();
    let stopped = Command::new("kill").args(["-STOP", &pid]).status().unwrap();
    assert!(stopped.success());
    // A temporary file without a name.
    let files = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let memory = files
        .filter_map(|file| Some(file.ok()?.path()))
        .find(|file| {
            let target = std::fs::read_link(file).unwrap_or_default();
            target.to_string_lossy().ends_with("(deleted)")
        });
    let memory = memory.expect("the file of its memory");
    let memory = std::fs::File::options().write(true).open(memory).unwrap();
    memory.set_len(0).unwrap();
    connect(&world, "web", "Echo", "").failed();
    settles(&world, "web", "off");
    let reason = "the VMM has taken away memory that it shares with the broker";
    assert!(world.log().contains(reason), "{}", world.log());
    guest.kill();
    world.ok(["status"]);
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
