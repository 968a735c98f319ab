//! Commands and shells that share nothing with this machine: in a real container and a real guest.

use std::process::Stdio;
use std::time::Duration;

use hvsock_guests::Guest;
use rustix::process::Signal;

use crate::fixture;
use crate::terminal::{self, Terminal};
use crate::util::{Completed, Running, World, eventually};

/// A script that prints the ids of three processes and keeps them running: its shell, one that ignores
/// `SIGHUP`, and one in another session.
const FAMILY: &str = "echo $$; sh -c 'trap \"\" HUP; echo $$; while :; do sleep 600; done' & \
    sleep 0.5; setsid sh -c 'echo $$; exec sleep 600' & sleep 0.5; sleep 600";

/// Checks exit statuses, signals, data and output of commands in the partition `name`.
fn commands_run_as_if_local(world: &World, name: &str) {
    let script = "echo out; echo err >&2; exit 7";
    let done = world.run(["exec", name, "--", "sh", "-c", script]);
    let result = (done.code, &*done.stdout, &*done.stderr);
    assert_eq!(result, (Some(7), "out\n", "err\n"));
    let script = "kill -TERM $$";
    let done = world.run(["exec", name, "--", "sh", "-c", script]);
    assert_eq!(done.code, Some(128 + 15), "{done:?}");
    let done = world.run(["exec", name, "--", "no-such-program"]);
    assert_eq!(done.code, Some(127), "{done:?}");

    let bytes: Vec<u8> = (0..3_000_000_u32).map(|i| (i * 7 / 3) as u8).collect();
    let mut command = world.command(["exec", name, "-i", "--", "cat"]);
    assert!(Completed::bytes_with_input(&mut command, &bytes) == bytes);

    let script = "trap 'echo caught; exit 9' INT; echo up; while :; do sleep 0.1; done";
    let mut command = world.command(["exec", name, "--", "sh", "-c", script]);
    let mut running = Running::start(command.stdout(Stdio::piped()));
    assert_eq!(running.line(), "up");
    running.signal(Signal::INT);
    assert_eq!(running.line(), "caught");
    assert_eq!(running.end().code(), Some(9));
}

/// Checks that all processes of a session end if its exec is killed. `alive` counts those that have not ended.
fn a_killed_exec_ends_its_processes(world: &World, name: &str, alive: impl Fn(&[String]) -> usize) {
    let mut command = world.command(["exec", name, "--", "sh", "-c", FAMILY]);
    let mut running = Running::start(command.stdout(Stdio::piped()));
    let pids: Vec<String> = (0..3).map(|_| running.line()).collect();
    assert_eq!(alive(&pids), 3, "{pids:?}");
    running.kill();
    eventually("all processes of the session have ended", || {
        alive(&pids) == 0
    });
}

/// A shell command that prints the number of these processes that have not ended.
fn count(pids: &[String]) -> String {
    let files: Vec<String> = pids
        .iter()
        .map(|pid| format!("/proc/{pid}/status"))
        .collect();
    format!(
        "cat {} 2>/dev/null | grep -c '^State:.[^ZX]' || :",
        files.join(" ")
    )
}

#[test]
fn commands_in_a_real_container_run_as_if_local() {
    let world = World::new();
    let Some(_container) = fixture::container(&world, "cage") else {
        return;
    };
    commands_run_as_if_local(&world, "cage");
    a_killed_exec_ends_its_processes(&world, "cage", |pids| {
        let done = world.run(["exec", "cage", "--", "sh", "-c", &count(pids)]);
        done.ok().trim().parse().unwrap()
    });
    // The agent is the container's first process and thus the parent of orphans, which it must reap.
    world.ok(["exec", "cage", "--", "sh", "-c", "(setsid sleep 0.1 &)"]);
    eventually("there is no zombie", || {
        let script = "cat /proc/[0-9]*/status | grep -c '^State:.Z' || :";
        let done = world.run(["exec", "cage", "--", "sh", "-c", script]);
        done.ok().trim() == "0"
    });
    // The agent is root without the capability to change the user, and its /dev is empty.
    let done = world.run(["exec", "cage", "-u", "4711", "--", "true"]);
    assert_eq!(done.code, Some(125), "{done:?}");
    assert!(
        done.stderr.contains("cannot switch to user 4711"),
        "{done:?}"
    );
    let mut terminal = Terminal::start(world.command(["exec", "cage", "-t", "--", "sh"]));
    terminal.shows("the guest has no pseudo-terminals");
    assert_eq!(terminal.end(), Some(125));
}

#[test]
fn commands_in_a_real_guest_run_as_if_local() {
    let world = World::new();
    let Some(guest) = fixture::guest(&world, "web") else {
        return;
    };
    commands_run_as_if_local(&world, "web");
    a_killed_exec_ends_its_processes(&world, "web", |pids| {
        run_in_guest(&guest, &count(pids)).parse().unwrap()
    });

    // Adds what a distribution has, and this initramfs has not.
    run_in_guest(
        &guest,
        "mkdir -p /dev/pts /home/alice && mount -t devpts devpts /dev/pts && \
         echo 'alice:x:1000:100::/home/alice:/bin/sh' >/etc/passwd && \
         echo 'audio:x:29:alice' >/etc/group && chown 1000 /home/alice",
    );
    let script = "id -u; id -G; pwd; echo $HOME; echo $USER; touch here && stat -c %u here";
    let done = world.run(["exec", "web", "-u", "alice", "--", "sh", "-c", script]);
    assert_eq!(
        done.ok(),
        "1000\n100 29\n/home/alice\n/home/alice\nalice\n1000\n"
    );

    let mut command = world.command(["shell", "web", "-u", "alice"]);
    command.env("PS1", "");
    let mut terminal = Terminal::start(command);
    terminal.type_in("stty size; echo =$0=; tty; id -u; stat -c owner=%u $(tty)\r");
    terminal.shows("33 101");
    terminal.shows("=-sh=");
    terminal.shows("/dev/pts/");
    terminal.shows("1000");
    terminal.shows("owner=1000");
    terminal.type_in(terminal::SLEEP);
    terminal.shows("begun");
    terminal.type_in("\x03");
    terminal.type_in("exit 4\r");
    assert_eq!(terminal.end(), Some(4));

    // A killed guest fails the exec.
    let mut command = world.command(["exec", "web", "--", "sh", "-c", "echo up; sleep 600"]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut running = Running::start(&mut command);
    assert_eq!(running.line(), "up");
    guest.kill();
    assert_eq!(running.end().code(), Some(125));
    let error = running.rest_of_stderr();
    assert!(error.starts_with("error: "), "{error}");
}

fn run_in_guest(guest: &Guest, command: &str) -> String {
    guest.run(command, Duration::from_secs(60)).unwrap().text()
}
