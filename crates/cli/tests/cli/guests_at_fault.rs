//! A real guest that is paused, begins anew, or is gone, and a broker that is.

use std::process::Stdio;
use std::time::{Duration, Instant};

use hvsock_qemu::{Error, File, Guest, Kit};
use hvsock_testkit::require;
use rustix::process::Signal;

use crate::guests::{LONG, boot_with, connect, inside, settles};
use crate::util::{Done, Running, World, eventually};

const PORT: &str = "7000";

/// A world with a VM `web`, a service at [`PORT`], and a guest with socat in it.
fn world(kit: &Kit) -> Option<(World, Guest)> {
    let world = World::new();
    world.ok(["vm", "add", "web"]);
    world.ok(["service", "register", "Echo", "--port", PORT]);
    let guest = with_socat(kit, &world)?;
    Some((world, guest))
}

fn with_socat(kit: &Kit, world: &World) -> Option<Guest> {
    let socat = require::program("socat", &["-V"])?;
    let files = File::program(&socat, "/bin/socat").unwrap();
    let guest = boot_with(kit, world, "web", files);
    settles(world, "web", "running");
    Some(guest)
}

/// The guest echoes at [`PORT`] from now on.
fn echoes(world: &World, guest: &Guest) {
    guest
        .spawn(&format!("exec socat VSOCK-LISTEN:{PORT},fork EXEC:cat"))
        .unwrap();
    eventually("the guest listens", || {
        connect(world, "web", PORT, "knock").stdout == "knock"
    });
}

/// A standing connection to the guest, over which a line has gone there and back.
fn standing(world: &World, arguments: &[&str]) -> Running {
    let mut command = world.command(["connect"]);
    command.args(arguments).args(["web", PORT]);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut running = Running::start(&mut command);
    running.write(b"hello\n");
    assert_eq!(running.line(), "hello");
    running
}

/// It fails, and what it says.
fn is_cut(mut connection: Running) -> String {
    assert_eq!(connection.end().code(), Some(1));
    connection.rest_of_stderr()
}

fn nothing_stands(world: &World) {
    eventually("no connection is left", || world.connections().is_empty());
}

#[test]
fn a_pause_of_the_vmm_cuts_what_did_not_ask_to_be_kept() {
    let Some(kit) = require::found(Kit::find()) else {
        return;
    };
    let Some((world, guest)) = world(&kit) else {
        return;
    };
    echoes(&world, &guest);
    let without = standing(&world, &[]);
    let mut with = standing(&world, &["--connected-suspend"]);
    guest.pause().unwrap();
    settles(&world, "web", "paused");
    let said = is_cut(without);
    assert!(said.contains("paused"), "{said}");
    with.write(b"are you there?\n");
    // Longer than any look of the broker's.
    std::thread::sleep(Duration::from_millis(500));
    assert!(with.child.try_wait().unwrap().is_none());
    guest.resume().unwrap();
    assert_eq!(with.line(), "are you there?");
    with.end_input();
    assert!(with.end().success());
    nothing_stands(&world);
}

#[test]
fn no_byte_is_lost_while_a_vmm_pauses_its_guest_again_and_again() {
    const BYTES: usize = 30 << 20;
    let Some(kit) = require::found(Kit::find()) else {
        return;
    };
    let Some((world, guest)) = world(&kit) else {
        return;
    };
    echoes(&world, &guest);
    let data: Vec<u8> = (0..BYTES as u32 / 4)
        .flat_map(|number| number.wrapping_mul(0x9e37_79b9).to_le_bytes())
        .collect();
    let mut command = world.command(["connect", "--connected-suspend", "web", PORT]);
    let done = std::thread::scope(|scope| {
        let transfer = scope.spawn(|| Done::bytes_with_input(&mut command, &data));
        eventually("it is connected", || !world.connections().is_empty());
        let mut pauses = 0;
        while !transfer.is_finished() {
            guest.pause().unwrap();
            std::thread::sleep(Duration::from_millis(10));
            guest.resume().unwrap();
            pauses += 1;
            std::thread::sleep(Duration::from_millis(40));
        }
        eprintln!("{pauses} pauses");
        assert!(pauses > 3, "the transfer was too short to be paused");
        transfer.join().unwrap()
    });
    assert_eq!(done.len(), data.len());
    assert!(done == data, "other bytes came back");
    nothing_stands(&world);
}

#[test]
fn a_guest_that_begins_anew_or_is_killed_leaves_nothing_and_comes_back() {
    let Some(kit) = require::found(Kit::find()) else {
        return;
    };
    let Some((world, guest)) = world(&kit) else {
        return;
    };
    echoes(&world, &guest);
    let connection = standing(&world, &[]);
    guest.reset().unwrap();
    is_cut(connection);
    nothing_stands(&world);
    settles(&world, "web", "running");
    echoes(&world, &guest);

    let connection = standing(&world, &[]);
    let began = Instant::now();
    guest.kill();
    is_cut(connection);
    settles(&world, "web", "off");
    assert!(began.elapsed() < Duration::from_secs(5));
    nothing_stands(&world);
    let Some(guest) = with_socat(&kit, &world) else {
        return;
    };
    echoes(&world, &guest);
}

#[test]
fn a_guest_outlives_its_broker_and_reaches_the_next_one_by_a_new_device() {
    let Some(kit) = require::found(Kit::find()) else {
        return;
    };
    let Some((mut world, guest)) = world(&kit) else {
        return;
    };
    echoes(&world, &guest);
    let _first = world.listen([PORT, "--from", "children", "--keep", "--", "cat"]);
    let ask = format!("echo hi | socat -t 10 - VSOCK-CONNECT:2:{PORT}");
    assert_eq!(inside(&guest, &ask), "hi");

    world.broker().signal(Signal::KILL);
    world.broker().end();
    // The guest runs on; its kernel hears nothing, and gives up by itself.
    let began = Instant::now();
    let output = guest.run(&ask, LONG).unwrap();
    assert!(!output.success(), "{output:?}");
    assert!(began.elapsed() < Duration::from_secs(10));

    world.start_broker();
    settles(&world, "web", "off");
    guest.replug_vsock().unwrap();
    settles(&world, "web", "running");
    let _second = world.listen([PORT, "--from", "children", "--keep", "--", "cat"]);
    // The new device's driver starts a moment after the device.
    eventually("the guest reaches the broker", || {
        match guest.run(&ask, LONG) {
            Ok(output) => output.text() == "hi",
            Err(Error::TimedOut { .. }) => false,
            Err(error) => panic!("{error}"),
        }
    });
    // Who listened in the guest listens on.
    assert_eq!(
        connect(&world, "web", PORT, "still there").ok(),
        "still there"
    );
}
