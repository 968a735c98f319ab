//! Real guests that are paused, reset or killed, and a broker that is killed while a guest runs.

use std::process::Stdio;
use std::time::{Duration, Instant};

use hvsock_guests::{Error, File, Guest, Kit};
use hvsock_testkit::require;

use crate::guests::{GUEST_TIMEOUT, boot_with, connect, kit, qemu, run_in_guest, settles};
use crate::util::{Completed, Running, World, eventually};

const PORT: &str = "7000";

/// A broker with a VM `web` and a service at [`PORT`], and a running guest that has socat.
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

/// Starts an echo server at [`PORT`] in the guest, and waits until it answers.
fn start_echo(world: &World, guest: &Guest) {
    guest
        .spawn(&format!("exec socat VSOCK-LISTEN:{PORT},fork EXEC:cat"))
        .unwrap();
    eventually("the guest listens", || {
        connect(world, "web", PORT, "ping").stdout == "ping"
    });
}

/// Connects to the guest's echo server and exchanges one line.
fn connect_and_echo(world: &World, arguments: &[&str]) -> Running {
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

/// Waits until the connect command fails. Returns its stderr.
fn failure(mut connection: Running) -> String {
    assert_eq!(connection.end().code(), Some(1));
    connection.rest_of_stderr()
}

fn wait_for_no_connection(world: &World) {
    eventually("no connection is left", || world.connections().is_empty());
}

#[test]
fn a_pause_by_the_vmm_suspends_connections_with_the_option_and_closes_others() {
    let Some(kit) = qemu() else {
        return;
    };
    let Some((world, guest)) = world(&kit) else {
        return;
    };
    start_echo(&world, &guest);
    suspended_and_closed(
        &world,
        || guest.pause().unwrap(),
        || guest.resume().unwrap(),
    );
}

/// A pause with two connections to the guest's echo server, one with the option.
fn suspended_and_closed(world: &World, pause: impl FnOnce(), resume: impl FnOnce()) {
    let without = connect_and_echo(world, &[]);
    let mut with = connect_and_echo(world, &["--connected-suspend"]);
    pause();
    settles(world, "web", "paused");
    let error = failure(without);
    assert!(error.contains("paused"), "{error}");
    with.write(b"are you there?\n");
    // The broker's state is up to date once the other connection is closed.
    let connections = world.connections();
    assert_eq!(connections.len(), 1, "{connections:?}");
    assert!(with.child.try_wait().unwrap().is_none());
    resume();
    assert_eq!(with.line(), "are you there?");
    with.end_input();
    assert!(with.end().success());
    wait_for_no_connection(world);
}

#[test]
fn a_pause_by_the_operator_suspends_connections_with_the_option_and_closes_others() {
    let Some(kit) = kit() else {
        return;
    };
    let Some((world, guest)) = world(&kit) else {
        return;
    };
    start_echo(&world, &guest);
    suspended_and_closed(
        &world,
        || drop(world.ok(["vm", "pause", "web"])),
        || drop(world.ok(["vm", "resume", "web"])),
    );
}

#[test]
fn repeated_pauses_by_the_vmm_lose_no_data() {
    const BYTES: usize = 30 << 20;
    let Some(kit) = qemu() else {
        return;
    };
    let Some((world, guest)) = world(&kit) else {
        return;
    };
    start_echo(&world, &guest);
    let data: Vec<u8> = (0..BYTES as u32 / 4)
        .flat_map(|number| number.wrapping_mul(0x9e37_79b9).to_le_bytes())
        .collect();
    let mut command = world.command(["connect", "--connected-suspend", "web", PORT]);
    let done = std::thread::scope(|scope| {
        let transfer = scope.spawn(|| Completed::bytes_with_input(&mut command, &data));
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
        assert!(pauses > 3, "the transfer ended after {pauses} pauses");
        transfer.join().unwrap()
    });
    assert_eq!(done.len(), data.len());
    assert!(done == data, "the echo differs");
    wait_for_no_connection(&world);
}

#[test]
fn a_guest_that_is_reset_loses_its_connections_and_boots_again() {
    let Some(kit) = qemu() else {
        return;
    };
    let Some((world, guest)) = world(&kit) else {
        return;
    };
    start_echo(&world, &guest);
    let connection = connect_and_echo(&world, &[]);
    guest.reset().unwrap();
    failure(connection);
    wait_for_no_connection(&world);
    settles(&world, "web", "running");
    start_echo(&world, &guest);
}

#[test]
fn a_guest_that_is_killed_loses_its_connections_and_can_boot_again() {
    let Some(kit) = kit() else {
        return;
    };
    let Some((world, guest)) = world(&kit) else {
        return;
    };
    start_echo(&world, &guest);
    let connection = connect_and_echo(&world, &[]);
    let began = Instant::now();
    guest.kill();
    failure(connection);
    settles(&world, "web", "off");
    println!("off {:?} after the VMM's end", began.elapsed());
    wait_for_no_connection(&world);
    let Some(guest) = with_socat(&kit, &world) else {
        return;
    };
    start_echo(&world, &guest);
}

#[test]
fn a_guest_survives_its_broker_and_reaches_the_next_one_with_a_new_device() {
    let Some(kit) = qemu() else {
        return;
    };
    let Some((mut world, guest)) = world(&kit) else {
        return;
    };
    start_echo(&world, &guest);
    let mut first = world.listen([PORT, "--from", "children", "--keep", "--", "cat"]);
    let request = format!("echo hi | socat -t 10 - VSOCK-CONNECT:2:{PORT}");
    assert_eq!(run_in_guest(&guest, &request), "hi");

    first.kill();
    world.broker().kill();
    // The guest continues to run. Its kernel gets no answer, so the connect times out.
    let output = guest.run(&request, GUEST_TIMEOUT).unwrap();
    assert!(!output.success(), "{output:?}");

    world.start_broker();
    settles(&world, "web", "defined");
    let spare = guest.spare_monitor();
    let qmp = spare.to_str().unwrap();
    let done = world.run(["vm", "reconnect", "web", "--qmp", qmp]);
    let settled = "`web` has a new device: running";
    assert!(done.stderr.contains(settled), "{done:?}");
    done.ok();
    let again = world.json(["vm", "reconnect", "web", "--qmp", qmp, "--json"]);
    assert_eq!(again["exchanged"], false, "{again}");
    let _second = world.listen([PORT, "--from", "children", "--keep", "--", "cat"]);
    // The driver of the new device starts later than the device.
    eventually("the guest reaches the broker", || {
        match guest.run(&request, GUEST_TIMEOUT) {
            Ok(output) => output.text() == "hi",
            Err(Error::TimedOut { .. }) => false,
            Err(error) => panic!("{error}"),
        }
    });
    // The listener in the guest still exists.
    assert_eq!(
        connect(&world, "web", PORT, "still there").ok(),
        "still there"
    );
}
