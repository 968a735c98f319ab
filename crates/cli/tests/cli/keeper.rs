//! A broker that is started again with all that it had: by `hvsock keeper`, which is what systemd is on other machines.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::process::{Command, Stdio};

use hvsock_sys::activation;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::load::Way;
use crate::upgrade::World;
use crate::upgrade_load::{Load, Usage, compare, listed};
use crate::util::{Completed, Running, eventually, folder, hvsock};

/// How many restarts a test makes.
const RESTARTS: u32 = 10;

/// Sends a signal to the broker, and waits until another one answers.
fn end_broker(world: &World, signal: Signal) -> u64 {
    let before = world.pid();
    let pid = Pid::from_raw(i32::try_from(before).unwrap()).unwrap();
    kill_process(pid, signal).unwrap();
    let mut after = before;
    eventually("another broker answers", || {
        let status = world.run(&["status", "--json"]);
        let status: Option<Value> = serde_json::from_str(&status.stdout).ok();
        let pid = status.and_then(|status| status["status"]["pid"].as_u64());
        after = pid.unwrap_or(before);
        after != before
    });
    after
}

/// Restarts the broker again and again under a load, and checks all of it.
fn restart_under(world: &World, mut load: Load) {
    load.wait_for_progress();
    let mut before = listed(world);
    let mut first = None;
    load.longest_standstills();
    let mut standstills = Vec::new();
    for round in 0..RESTARTS {
        if round == 3 {
            // As a package manager does.
            let program = world.dir().join("hvsock");
            let new = world.dir().join("hvsock.new");
            fs::copy(env!("CARGO_BIN_EXE_hvsock"), &new).unwrap();
            fs::rename(&new, &program).unwrap();
        }
        let pid = end_broker(world, Signal::TERM);
        let after = listed(world);
        compare(&before, &after);
        before = after;
        load.wait_for_progress();
        standstills.extend(load.longest_standstills());
        let usage = Usage::of(pid);
        let first = first.get_or_insert_with(|| Usage::of(pid));
        assert!(
            usage.descriptors <= first.descriptors + 8 && usage.threads <= first.threads + 1,
            "{usage:?} after {round} restarts, {first:?} at first"
        );
    }
    let done = load.finish();
    assert!(done.bytes > 0 && done.connects > 0, "{done:?}");
    standstills.sort_unstable();
    eprintln!("{done:?}, standstills in microseconds: {standstills:?}");
    assert_eq!(world.brokers().len(), 1);
}

#[test]
fn connections_of_processes_lose_nothing_in_restarts() {
    let world = World::kept(|_| {});
    let mut load = Load::default();
    load.processes(&world, Way::Ring, 6, 1);
    load.processes(&world, Way::Relay, 8, 2);
    load.processes(&world, Way::Raw, 4, 1);
    load.processes_at(&world, Way::Default, 2, 0, &["--transport", "direct"]);
    load.connects(&world);
    restart_under(&world, load);
}

#[test]
fn connections_of_guests_lose_nothing_in_restarts() {
    let world = World::kept(|_| {});
    let mut load = Load::default();
    load.guests(&world, 1);
    load.hybrid_vm(&world, 1);
    load.connects(&world);
    restart_under(&world, load);
}

#[test]
fn restarts_and_upgrades_follow_one_another() {
    let world = World::kept(|_| {});
    let mut load = Load::default();
    load.processes(&world, Way::Relay, 2, 0);
    load.wait_for_progress();
    let mut before = listed(&world);
    for _ in 0..3 {
        world.upgrade();
        end_broker(&world, Signal::TERM);
        let after = listed(&world);
        compare(&before, &after);
        before = after;
        load.wait_for_progress();
    }
    load.finish();
}

#[test]
fn a_broker_that_was_killed_is_started_again() {
    let world = World::kept(|_| {});
    world.register("echo");
    end_broker(&world, Signal::KILL);
    let listener = world.listen("echo");
    end_broker(&world, Signal::KILL);
    drop(listener);
    world.listen("echo");
}

#[test]
fn a_keeper_that_is_ended_ends_its_broker_with_a_reason_for_each_connection() {
    let mut world = World::kept(|_| {});
    world.register("echo");
    let listener = world.listen("echo");
    let address = "hvsock://loopback/echo";
    let options = hvsock::HvStream::options().endpoint(world.endpoint());
    let mut stream = options.connect(address).unwrap();
    let (mut accepted, _) = listener.accept().unwrap();
    stream.write_all(b"x").unwrap();
    accepted.read_exact(&mut [0; 1]).unwrap();
    world.first.signal(Signal::TERM);
    assert!(world.first.end().success());
    assert_eq!(world.brokers(), []);
    let error = stream.read(&mut [0; 1]).unwrap_err();
    assert!(error.to_string().contains("stopped"), "{error}");
    assert!(!world.dir().join("endpoint").exists());
}

#[test]
fn a_keeper_whose_program_does_not_start_ends_with_its_status() {
    let keep = |command: &[&str]| {
        let mut keeper = hvsock();
        keeper.args(["keeper", "--"]).args(command);
        Completed::of(&mut keeper)
    };
    assert_eq!(keep(&["/bin/sh", "-c", "exit 7"]).code, Some(7));
    assert_eq!(keep(&["/bin/true"]).code, Some(0));
    let missing = keep(&["/no/such/program"]);
    assert_eq!(missing.code, Some(1));
    assert!(missing.stderr.contains("/no/such/program"), "{missing:?}");
}

/// Starts a broker with stored descriptors, as a keeper does.
#[test]
fn a_broker_whose_stored_state_is_of_no_use_says_so_and_begins_without() {
    let state = hvsock_sys::sealed::create(&[b"no state"]).unwrap();
    let (socket, _other) = hvsock_sys::seqpacket::pair().unwrap();
    for (name, reason) in [
        ("hvsock-state", "the state"),
        ("hvsock-descriptors", "the document was not stored"),
    ] {
        let folder = folder();
        let log = fs::File::create(folder.path().join("log")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_hvsock"));
        command.args(["keeper-start", env!("CARGO_BIN_EXE_hvsock"), "--dir"]);
        command.arg(folder.path());
        command.args(["broker", "--uplink", "off"]);
        command.env_remove("NOTIFY_SOCKET").stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(log);
        let stored = match name {
            "hvsock-state" => state.as_fd(),
            _ => socket.as_fd(),
        };
        activation::pass(&mut command, &[("other", socket.as_fd()), (name, stored)]).unwrap();
        let mut broker = Running::start(&mut command);
        let ready = broker.line();
        assert!(ready.starts_with("hvsock broker ready: "), "{ready}");
        let log = fs::read_to_string(folder.path().join("log")).unwrap();
        let begins = "begins without the state of the broker before: ";
        assert!(log.contains(begins) && log.contains(reason), "{log}");
        // Nothing of it is left open, and no program that the broker starts gets it.
        let pid = broker.pid().as_raw_nonzero();
        let open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
        let open = open.filter_map(|fd| fs::read_link(fd.path()).ok());
        assert!(
            !open
                .into_iter()
                .any(|fd| fd.to_string_lossy().contains("hvsock-value"))
        );
    }
}
