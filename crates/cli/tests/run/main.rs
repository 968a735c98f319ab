//! `hvsock run`: unmodified programs, here in Python, whose `AF_VSOCK` sockets the broker serves.

#![cfg(target_os = "linux")]

#[path = "../cli/util.rs"]
#[allow(
    dead_code,
    unused_imports,
    reason = "the command's own suite uses all of it"
)]
mod util;

mod calls;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use hvsock_testkit::require;
use rustix::process::Signal;

use util::{Completed, Running, World};

fn script(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/run/programs");
    folder.join(name).with_extension("py")
}

/// `hvsock run python3 SCRIPT` in a world whose machine is a host of its own.
fn python(world: &World, name: &str) -> Option<Command> {
    let python = require::python3()?;
    let mut command = world.command(["run", "--seccomp"]);
    command.arg(python).arg(script(name));
    Some(command)
}

/// Runs a script that prints `done` if all is as it should be.
fn check(name: &str) {
    let world = World::without_host();
    if let Some(mut command) = python(&world, name) {
        let done = Completed::of(&mut command);
        assert_eq!(done.stdout, "done\n", "{done:#?}");
        assert_eq!(done.code, Some(0), "{done:#?}");
    }
}

#[test]
fn connects_of_all_modes_reach_a_listener_and_end_cleanly() {
    check("modes");
}

#[test]
fn connects_of_all_modes_that_follow_one_another_each_reach_the_listener_or_its_refusal() {
    check("repeated");
}

#[test]
fn calls_fail_with_the_numbers_of_the_kernel() {
    check("errors");
}

#[test]
fn a_program_of_af_hyperv_listens_and_connects_by_guid() {
    check("hyperv");
}

#[test]
fn signals_timeouts_and_kills_end_an_accept_as_natively() {
    check("signals");
}

#[test]
fn a_port_is_free_when_its_last_descriptor_is_closed() {
    check("rebind");
}

#[test]
fn a_hundred_connects_at_once_are_shared_by_processes() {
    check("many");
}

#[test]
fn a_storm_of_connects_to_a_small_backlog_waits_for_the_program_that_accepts() {
    check("storm");
}

#[test]
fn connects_to_a_full_backlog_are_refused_when_nothing_is_accepted() {
    check("full");
}

#[test]
fn sockets_of_other_families_are_untouched_and_the_device_answers() {
    check("foreign");
}

/// The numbers of system calls in the script are those of x86-64.
#[cfg(target_arch = "x86_64")]
#[test]
fn random_calls_with_random_arguments_end_nothing_but_themselves() {
    let world = World::without_host();
    let before = world.listeners();
    if let Some(mut command) = python(&world, "hostile") {
        let done = Completed::of(&mut command);
        assert_eq!((done.code, &*done.stdout), (Some(0), "done\n"), "{done:#?}");
        // Nothing of it is left.
        util::eventually("the listeners end", || world.listeners() == before);
    }
}

#[test]
fn a_full_close_is_told_from_a_half_close() {
    check("ends");
}

#[test]
fn a_program_whose_supervisor_is_killed_gets_errors_and_keeps_its_connections() {
    let world = World::without_host();
    let Some(mut command) = python(&world, "killed_supervisor") else {
        return;
    };
    let mut running = Running::start(command.stdout(Stdio::piped()));
    assert_eq!(running.line(), "done");
}

#[test]
fn a_supervisor_sleeps_while_its_program_polls_a_listener() {
    let world = World::without_host();
    let Some(mut command) = python(&world, "idle") else {
        return;
    };
    let mut running = Running::start(command.stdin(Stdio::piped()).stdout(Stdio::piped()));
    assert_eq!(running.line(), "listens");
    let process = running.pid().as_raw_nonzero().get();
    let woken = || {
        let tasks = std::fs::read_dir(format!("/proc/{process}/task")).unwrap();
        let status = tasks.map(|task| std::fs::read_to_string(task.unwrap().path().join("status")));
        let count = |status: String| {
            let line = status
                .lines()
                .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
            line.unwrap().trim().parse::<u64>().unwrap()
        };
        status.map(|status| count(status.unwrap())).sum::<u64>()
    };
    // One that looks whether the socket is still open does so ten times a second at first.
    let sleeps = |_| {
        let before = woken();
        std::thread::sleep(std::time::Duration::from_millis(500));
        woken() <= before + 1
    };
    assert!((0..4).any(sleeps), "it was woken all the time");
    running.end_input();
    assert_eq!(running.line(), "done");
}

fn run(world: &World, arguments: &[&str]) -> Completed {
    let mut command = world.command(["run"]);
    Completed::of(command.args(arguments))
}

#[test]
fn the_exit_status_is_that_of_the_program() {
    let world = World::without_host();
    let status = |script: &str| run(&world, &["--", "sh", "-c", script]).code;
    assert_eq!(status("exit 7"), Some(7));
    assert_eq!(status("kill -TERM $$"), Some(128 + 15));
    let absent = run(&world, &["no-such-program"]);
    assert_eq!(absent.code, Some(127));
    assert!(absent.stderr.contains("cannot run no-such-program"));
    assert_eq!(run(&world, &["/etc/passwd"]).code, Some(126));
}

#[test]
fn orphans_are_waited_for_and_served() {
    let world = World::without_host();
    let script = "(sleep 0.2; echo orphan) & exit 3";
    let done = run(&world, &["sh", "-c", script]);
    assert_eq!((done.code, &*done.stdout), (Some(3), "orphan\n"));
}

/// Runs a program that starts this script in the background, which prints `up`, and that has ended with status 3.
fn in_background(world: &World, script: &str) -> Running {
    let script = format!("echo $$; setsid sh -c '{script}' & exit 3");
    let mut command = world.command(["run", "sh", "-c", &script]);
    let mut running = Running::start(command.stdout(Stdio::piped()));
    let program = PathBuf::from("/proc").join(running.line());
    assert_eq!(running.line(), "up");
    util::eventually("the program has ended", || !program.exists());
    running
}

#[test]
fn signals_reach_what_the_program_has_left_in_the_background() {
    let world = World::without_host();
    let traps = "trap \"echo again\" HUP; trap \"echo ended; exit\" TERM";
    let waits = "while :; do sleep 0.01; done";
    let mut running = in_background(&world, &format!("{traps}; echo up; {waits}"));
    for _ in 0..2 {
        running.signal(Signal::HUP);
        assert_eq!(running.line(), "again");
    }
    running.signal(Signal::TERM);
    assert_eq!(running.line(), "ended");
    assert_eq!(running.end().code(), Some(3));
}

#[test]
fn what_does_not_end_by_a_signal_is_left_alone_with_the_second_one() {
    let world = World::without_host();
    let mut running = in_background(&world, "trap \"\" TERM; echo up; exec sleep 5");
    util::eventually("the command ends", || {
        running.signal(Signal::TERM);
        running.child.try_wait().unwrap().is_some()
    });
    assert_eq!(running.end().code(), Some(3));
}

#[test]
fn signals_are_forwarded_to_the_program() {
    let world = World::without_host();
    let script = "trap 'exit 9' TERM; echo up; while :; do sleep 0.01; done";
    let mut command = world.command(["run", "sh", "-c", script]);
    let mut running = Running::start(command.stdout(Stdio::piped()));
    assert_eq!(running.line(), "up");
    running.signal(Signal::TERM);
    assert_eq!(running.end().code(), Some(9));
}

#[test]
fn a_program_that_becomes_another_user_connects_as_that_user() {
    let world = World::without_host();
    // One that every user can execute.
    const PYTHON: &str = "/usr/bin/python3";
    let system = Path::new(PYTHON).exists().then_some(PYTHON);
    let (Some(()), Some(python)) = (
        require::root(),
        require::found(system.ok_or("there is no /usr/bin/python3")),
    ) else {
        return;
    };
    world.ok(["service", "register", "Who", "--port", "26010"]);
    let print = "echo $HVSOCK_PEER_UID";
    let _who = world.listen([
        "Who", "--from", "loopback", "--keep", "--", "sh", "-c", print,
    ]);
    let connect = "import os, socket
sock = socket.socket(socket.AF_VSOCK)
sock.connect((2, 26010))
print(os.geteuid(), sock.recv(20).decode().strip())";
    let as_user = [
        "setpriv",
        "--reuid",
        "65534",
        "--regid",
        "65534",
        "--clear-groups",
    ];
    for (user, prefix) in [("0", &[][..]), ("65534", &as_user)] {
        let mut command = world.command(["run"]);
        command.args(prefix).arg(python);
        let done = Completed::of(command.args(["-c", connect]));
        assert_eq!(done.ok(), format!("{user} {user}\n"));
    }
}

#[test]
fn a_program_that_is_stopped_and_continued_alone_goes_on() {
    let world = World::without_host();
    // Its sockets are served after that, too.
    let script = "(sleep 0.2; kill -CONT $$) & kill -STOP $$; exec \"$@\"";
    let Some(python) = require::python3() else {
        return;
    };
    let mut command = world.command(["run", "sh", "-c", script, "sh"]);
    command.arg(python);
    command.args([
        "-c",
        "import socket; socket.socket(socket.AF_VSOCK); print('served')",
    ]);
    assert_eq!(Completed::of(&mut command).ok(), "served\n");
}

#[test]
fn an_unregistered_port_is_named_with_the_command_that_helps_and_register_leases_it() {
    let world = World::without_host();
    let Some(python) = require::python3() else {
        return;
    };
    let listen = "import socket, time
sock = socket.socket(socket.AF_VSOCK)
sock.bind((0xffffffff, 26008))
sock.listen(1)
time.sleep(0.5)";
    let python = python.to_str().unwrap();
    let done = run(&world, &[python, "-c", listen]);
    let outside =
        "warning: nobody outside can connect to vsock port 26008: the service is not registered\n";
    assert!(done.stderr.contains(outside), "{done:#?}");
    let help = "service register NAME --port 26008\n";
    assert!(done.stderr.contains(help), "{done:#?}");
    let done = run(&world, &["--register", "Web", python, "-c", listen]);
    let registered = "note: registered vsock port 26008 as \"Web\"\n";
    assert_eq!(done.stderr, registered);
    let done = run(
        &world,
        &["-q", "--register", "Web=26008", python, "-c", listen],
    );
    assert_eq!(done.stderr, "");
    let services = world.ok(["service", "list"]);
    assert!(
        !services.contains("26008"),
        "the lease has ended: {services}"
    );
}

#[test]
fn a_program_in_a_container_reaches_its_host_by_cid_2() {
    let world = World::without_host();
    let Some(python) = require::python3() else {
        return;
    };
    let endpoint = world.container("web");
    world.ok(["service", "register", "Demo", "--port", "26009"]);
    let _cat = world.listen(["Demo", "--keep", "--", "cat"]);
    let connect = "import socket, fcntl
sock = socket.socket(socket.AF_VSOCK)
sock.connect((2, 26009))
sock.sendall(b'hello')
assert sock.getsockname()[0] >= 0x80000000, sock.getsockname()
cid = fcntl.ioctl(open('/dev/vsock'), 0x7b9, bytes(4))
assert int.from_bytes(cid, 'little') == sock.getsockname()[0]
print(sock.recv(5), sock.getpeername())";
    let mut command = util::in_container(&endpoint, ["run"]);
    let done = Completed::of(command.arg(python).args(["-c", connect]));
    assert_eq!(done.ok(), "b'hello' (2, 26009)\n");
}

#[test]
fn without_a_broker_the_command_says_so_and_runs_nothing() {
    let mut command = util::hvsock();
    command.args(["--dir", "/nonexistent", "run", "echo", "ran"]);
    let error = Completed::of(&mut command).failed();
    let (first, help) = error.split_once('\n').unwrap();
    assert_eq!(first, "error: no broker listens at /nonexistent/endpoint");
    assert!(help.starts_with("help: hvsock broker"), "{help}");
}

/// The beginning of a static i386 program, as far as anyone looks at it before it is executed.
#[cfg(target_arch = "x86_64")]
fn i386_program() -> Vec<u8> {
    let mut bytes = vec![0; 64];
    bytes[..7].copy_from_slice(b"\x7fELF\x01\x01\x01");
    (bytes[16], bytes[18]) = (2, 3);
    bytes
}

#[cfg(target_arch = "x86_64")]
#[test]
fn a_32_bit_program_is_refused_before_it_starts_by_every_way() {
    use std::os::unix::fs::PermissionsExt;
    let world = World::without_host();
    let folder = hvsock_testkit::TempFolder::new();
    let (program, script) = (folder.join("program"), folder.join("script"));
    std::fs::write(&program, i386_program()).unwrap();
    std::fs::write(&script, format!("#!{}\n", program.display())).unwrap();
    for file in [&program, &script] {
        std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o755)).unwrap();
        let file = file.to_str().unwrap();
        for way in [&[][..], &["--seccomp"], &["--preload"]] {
            let error = run(&world, &[way, &["--", file]].concat()).failed();
            let text = format!(
                "error: cannot serve the program's sockets: {} is a 32-bit program, whose calls are not seen\n\
                 help: run a 64-bit build of the program\n",
                program.display()
            );
            assert_eq!(error, text, "{way:?}");
        }
    }
}
