//! Commands and shells where nothing is shared with this machine: a real container, a real guest.

use std::process::Stdio;
use std::time::Duration;

use hvsock_qemu::Guest;
use rustix::process::Signal;

use crate::scene;
use crate::terminal::Terminal;
use crate::util::{Done, Running, World, eventually};

/// Starts a family of processes whose numbers it prints, and stays.
const FAMILY: &str = "echo $$; sh -c 'trap \"\" HUP; echo $$; while :; do sleep 600; done' & \
    sleep 0.5; setsid sh -c 'echo $$; exec sleep 600' & sleep 0.5; sleep 600";

/// What holds wherever there is an agent.
fn commands_run_as_if_they_ran_here(world: &World, name: &str) {
    let script = "echo out; echo err >&2; exit 7";
    let done = world.run(["exec", name, "--", "sh", "-c", script]);
    let said = (done.code, &*done.stdout, &*done.stderr);
    assert_eq!(said, (Some(7), "out\n", "err\n"));
    let script = "kill -TERM $$";
    let done = world.run(["exec", name, "--", "sh", "-c", script]);
    assert_eq!(done.code, Some(128 + 15), "{done:?}");
    let done = world.run(["exec", name, "--", "no-such-program"]);
    assert_eq!(done.code, Some(127), "{done:?}");

    let bytes: Vec<u8> = (0..3_000_000_u32).map(|i| (i * 7 / 3) as u8).collect();
    let mut command = world.command(["exec", name, "-i", "--", "cat"]);
    assert!(Done::bytes_with_input(&mut command, &bytes) == bytes);

    let script = "trap 'echo caught; exit 9' INT; echo up; while :; do sleep 0.1; done";
    let mut command = world.command(["exec", name, "--", "sh", "-c", script]);
    let mut running = Running::start(command.stdout(Stdio::piped()));
    assert_eq!(running.line(), "up");
    running.signal(Signal::INT);
    assert_eq!(running.line(), "caught");
    assert_eq!(running.end().code(), Some(9));
}

/// Nothing is left of a command whose caller is killed; `alive` says of which processes there is
/// something.
fn nothing_is_left(world: &World, name: &str, alive: impl Fn(&[String]) -> usize) {
    let mut command = world.command(["exec", name, "--", "sh", "-c", FAMILY]);
    let mut running = Running::start(command.stdout(Stdio::piped()));
    let pids: Vec<String> = (0..3).map(|_| running.line()).collect();
    assert_eq!(alive(&pids), 3, "{pids:?}");
    running.child.kill().unwrap();
    running.child.wait().unwrap();
    eventually("nothing is left", || alive(&pids) == 0);
}

/// A shell command that prints how many of these processes have not ended.
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
fn in_a_real_container_commands_run_as_if_they_ran_here() {
    let world = World::new();
    let Some(_container) = scene::container(&world, "cage") else {
        return;
    };
    commands_run_as_if_they_ran_here(&world, "cage");
    nothing_is_left(&world, "cage", |pids| {
        let done = world.run(["exec", "cage", "--", "sh", "-c", &count(pids)]);
        done.ok().trim().parse().unwrap()
    });
    // Of what is left there the agent is the parent, as the first process, and takes note of its end.
    world.ok(["exec", "cage", "--", "sh", "-c", "(setsid sleep 0.1 &)"]);
    eventually("no process is dead and not gone", || {
        let script = "cat /proc/[0-9]*/status | grep -c '^State:.Z' || :";
        let done = world.run(["exec", "cage", "--", "sh", "-c", script]);
        done.ok().trim() == "0"
    });
    // It is root there and has no right to be anybody else, and its /dev has nothing in it.
    let done = world.run(["exec", "cage", "-u", "4711", "--", "true"]);
    assert_eq!(done.code, Some(125), "{done:?}");
    assert!(done.stderr.contains("cannot become 4711"), "{done:?}");
    let mut terminal = Terminal::start(world.command(["exec", "cage", "-t", "--", "sh"]));
    terminal.shows("the guest has no pseudo-terminals");
    assert_eq!(terminal.end(), Some(125));
}

#[test]
fn in_a_real_guest_commands_run_as_if_they_ran_here() {
    let world = World::new();
    let Some(guest) = scene::guest(&world, "web") else {
        return;
    };
    commands_run_as_if_they_ran_here(&world, "web");
    nothing_is_left(&world, "web", |pids| {
        in_guest(&guest, &count(pids)).parse().unwrap()
    });

    // What a distribution has, and an initramfs has not.
    in_guest(
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
    terminal.type_in("sleep 600\r");
    std::thread::sleep(Duration::from_secs(1));
    terminal.type_in("\x03");
    terminal.type_in("exit 4\r");
    assert_eq!(terminal.end(), Some(4));

    // A guest that is switched off without a word takes its commands along.
    let mut command = world.command(["exec", "web", "--", "sh", "-c", "echo up; sleep 600"]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut running = Running::start(&mut command);
    assert_eq!(running.line(), "up");
    guest.kill();
    assert_eq!(running.end().code(), Some(125));
    let said = running.rest_of_stderr();
    assert!(said.starts_with("error: "), "{said}");
}

fn in_guest(guest: &Guest, command: &str) -> String {
    guest.run(command, Duration::from_secs(60)).unwrap().text()
}
