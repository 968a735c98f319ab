//! Commands and shells in a guest.

use std::fs;
use std::io::{Read as _, Write as _};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::scene::{BOX, Scene};
use crate::util::{Done, Running, eventually, is_root};

/// `hvsock exec box ARGUMENTS`, with pipes on all its streams.
fn exec<const N: usize>(scene: &Scene, arguments: [&str; N]) -> Command {
    let mut command = scene.world.command(["exec", BOX]);
    command
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn shell(scene: &Scene, script: &str) -> Done {
    scene.run(["exec", BOX, "--", "sh", "-c", script])
}

/// Whether there is such a process that has not ended.
fn alive(pid: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(") ").map(|(_, rest)| &rest[..1]);
    state.is_some_and(|state| state != "Z" && state != "X")
}

fn kill(pid: &str) {
    let pid = Pid::from_raw(pid.parse().unwrap()).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
}

#[test]
fn a_command_ends_here_as_it_ends_there() {
    let scene = Scene::new();
    let done = shell(&scene, "echo out; echo err >&2; exit 7");
    let said = (done.code, &*done.stdout, &*done.stderr);
    assert_eq!(said, (Some(7), "out\n", "err\n"));
    assert_eq!(shell(&scene, "kill -USR1 $$").code, Some(128 + 10));
    assert_eq!(shell(&scene, "exit 255").code, Some(255));
    assert_eq!(shell(&scene, ":").ok(), "");

    for (what, status, words) in [
        ("no-such-program", 127, "no-such-program: not found"),
        ("/etc/passwd", 126, "/etc/passwd: permission denied"),
    ] {
        let done = scene.run(["exec", BOX, "--", what]);
        assert_eq!(done.code, Some(status), "{done:?}");
        assert!(done.stderr.contains(words), "{done:?}");
    }
}

#[test]
fn what_does_not_run_at_all_has_an_exit_status_of_its_own() {
    let scene = Scene::new();
    let refused = |arguments: &[&str], words: &str| {
        let done = scene.world.run([&["exec", BOX], arguments].concat());
        assert_eq!(done.code, Some(125), "{done:?}");
        assert!(done.stderr.contains(words), "{done:?}");
        assert_eq!(done.stdout, "");
    };
    refused(&["-w", "/no/such", "--", "true"], "/no/such: not found");
    refused(
        &["-u", "no-such-user", "--", "true"],
        "no user \"no-such-user\"",
    );
    refused(&["-e", "=x", "--", "true"], "empty name");
    let done = scene.run(["exec", BOX, "-t", "--", "true"]);
    assert!(done.misused().contains("-t needs a terminal"));

    scene
        .world
        .ok(["service", "disable", "hvsock session", "--vm", BOX]);
    refused(&["--", "true"], "disabled");
}

#[test]
fn a_command_has_the_environment_that_it_is_given() {
    let scene = Scene::new();
    let done = scene.run([
        "exec",
        BOX,
        "-w",
        "/proc",
        "-e",
        "A=b c=d",
        "--",
        "sh",
        "-c",
        "pwd; echo \"$A\"; cat",
    ]);
    // Without -i its input is empty.
    assert_eq!(done.ok(), "/proc\nb c=d\n");
    let home = scene.world.dir().display().to_string();
    assert_eq!(
        shell(&scene, "pwd; echo $HOME").ok(),
        format!("{home}\n{home}\n")
    );
    if is_root() {
        let script = "id -u; id -G; echo $USER $HOME; pwd; echo ${RUST_BACKTRACE-no}";
        let done = scene.run(["exec", BOX, "-u", "nobody", "--", "sh", "-c", script]);
        let nobody = "65534\n65534\nnobody /nonexistent\n/\nno\n";
        assert_eq!(done.ok(), nobody);
    }
}

#[test]
fn every_byte_passes_both_ways_and_the_end_of_the_input_is_only_that() {
    let scene = Scene::new();
    let bytes: Vec<u8> = (0..5_000_000_u32).map(|i| (i * 7 / 3) as u8).collect();
    let mut command = exec(&scene, ["-i", "--", "cat"]);
    assert!(Done::bytes_with_input(&mut command, &bytes) == bytes);
    let script = "wc -c; echo more";
    let mut command = exec(&scene, ["-i", "--", "sh", "-c", script]);
    let done = Done::with_input(&mut command, &bytes);
    assert_eq!(done.ok(), "5000000\nmore\n");
    // Who takes nothing does not hold up anybody.
    let mut command = exec(&scene, ["-i", "--", "true"]);
    assert_eq!(Done::with_input(&mut command, &bytes).ok(), "");
    let script = "exec <&-; sleep 0.2; echo done";
    let mut command = exec(&scene, ["-i", "--", "sh", "-c", script]);
    assert_eq!(Done::with_input(&mut command, &bytes).ok(), "done\n");
}

#[test]
fn signals_are_passed_on_past_input_that_nobody_reads() {
    let scene = Scene::new();
    let script = "trap 'echo caught; exit 9' TERM; echo up; while :; do sleep 0.05; done";
    let mut running = Running::start(&mut exec(&scene, ["-i", "--", "sh", "-c", script]));
    assert_eq!(running.line(), "up");
    let mut stdin = running.child.stdin.take().unwrap();
    // Ends once nobody takes it any more.
    let writer = thread::spawn(move || stdin.write_all(&vec![0; 10 << 20]));
    running.signal(Signal::TERM);
    assert_eq!(running.line(), "caught");
    assert_eq!(running.end().code(), Some(9));
    writer.join().unwrap().unwrap_err();

    // One that is not heeded is not passed on for ever.
    let script = "trap '' TERM; echo up; exec sleep 600";
    let mut running = Running::start(&mut exec(&scene, ["--", "sh", "-c", script]));
    assert_eq!(running.line(), "up");
    for _ in 0..3 {
        running.signal(Signal::TERM);
        // Two of the same that are not yet handled are one.
        thread::sleep(Duration::from_millis(300));
    }
    assert_eq!(running.end().code(), Some(128 + 15));
}

/// Prints the numbers of four processes that stay: the command's shell, one in its group that
/// ignores `SIGHUP`, one in a session of its own and one that is nobody's child.
const FAMILY: &str = "echo $$; \
    sh -c 'trap \"\" HUP; echo $$; while :; do sleep 600; done' & sleep 0.1; \
    setsid sh -c 'echo $$; exec sleep 600' & sleep 0.1; \
    (setsid sh -c 'echo $$; exec sleep 600' &) ; sleep 600";

fn family(scene: &Scene) -> (Running, Vec<String>) {
    let mut running = Running::start(&mut exec(scene, ["--", "sh", "-c", FAMILY]));
    let pids: Vec<String> = (0..4).map(|_| running.line()).collect();
    assert!(pids.iter().all(|pid| alive(pid)), "{pids:?}");
    (running, pids)
}

fn all_gone(pids: &[String]) {
    eventually("nothing of the session is left", || {
        !pids.iter().any(|pid| alive(pid))
    });
}

#[test]
fn nothing_is_left_there_of_who_is_killed_here() {
    let scene = Scene::new();
    let (mut running, pids) = family(&scene);
    running.child.kill().unwrap();
    running.child.wait().unwrap();
    all_gone(&pids);
}

#[test]
fn nothing_is_left_of_what_an_operator_cuts_and_the_reason_is_told() {
    let scene = Scene::new();
    let (mut running, pids) = family(&scene);
    scene.world.ok(["service", "disable", "hvsock session"]);
    assert_eq!(running.end().code(), Some(125));
    let said = running.rest_of_stderr();
    assert!(said.starts_with("error: "), "{said}");
    all_gone(&pids);
}

#[test]
fn nothing_is_left_of_what_is_out_of_time() {
    let scene = Scene::new();
    let script = "echo $$; exec sleep 600";
    let done = scene.run(["exec", BOX, "--timeout", "0.5", "--", "sh", "-c", script]);
    assert_eq!(done.code, Some(124), "{done:?}");
    assert!(done.stderr.contains("ended after 0.5 seconds"), "{done:?}");
    all_gone(&[done.stdout.trim().to_owned()]);
}

#[test]
fn a_command_dies_with_its_agent_and_the_caller_hears_that_it_is_gone() {
    let mut scene = Scene::new();
    let script = "echo $$; exec sleep 600";
    let mut running = Running::start(&mut exec(&scene, ["--", "sh", "-c", script]));
    let pid = running.line();
    scene.agent.child.kill().unwrap();
    scene.agent.child.wait().unwrap();
    assert_eq!(running.end().code(), Some(125));
    let said = running.rest_of_stderr();
    assert!(said.starts_with("error: "), "{said}");
    all_gone(&[pid]);
}

#[test]
fn an_agent_that_is_asked_to_end_ends_its_commands_first() {
    let mut scene = Scene::new();
    let (mut running, pids) = family(&scene);
    scene.agent.signal(Signal::TERM);
    assert!(scene.agent.end().success());
    assert!(!pids.iter().any(|pid| alive(pid)), "{pids:?}");
    assert_eq!(running.end().code(), Some(125));
}

#[test]
fn what_a_command_leaves_running_goes_on_and_holds_nobody_up() {
    let scene = Scene::new();
    let began = Instant::now();
    let done = shell(&scene, "sleep 600 & echo $!");
    // The grace is a quarter of a second; the rest is for a busy machine.
    assert!(began.elapsed() < Duration::from_secs(20));
    assert!(done.stderr.contains("its output is lost"), "{done:?}");
    let pid = done.ok().trim().to_owned();
    assert!(alive(&pid));
    kill(&pid);

    // One that has closed what it inherited is a daemon, of which there is nothing to say.
    let done = shell(
        &scene,
        "setsid sleep 600 </dev/null >/dev/null 2>&1 & echo $!",
    );
    assert_eq!(done.stderr, "");
    let pid = done.ok().trim().to_owned();
    assert!(alive(&pid));
    kill(&pid);
}

#[test]
fn output_that_nobody_reads_waits_in_the_guest_and_loses_nothing() {
    let scene = Scene::new();
    // More than all buffers on the way hold, from a command that has ended long before.
    let script = "dd if=/dev/zero bs=65536 count=1 2>/dev/null; echo last >&2";
    let mut running = Running::start(&mut exec(&scene, ["--", "sh", "-c", script]));
    thread::sleep(Duration::from_secs(1));
    assert_eq!(running.rest().len(), 65536);
    assert_eq!(running.rest_of_stderr(), "last\n");
    assert!(running.end().success());

    let resident = |pid: u32| -> u64 {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:"));
        let kib = line.and_then(|line| line.split_whitespace().nth(1));
        kib.unwrap().parse().unwrap()
    };
    let before = resident(scene.agent.child.id());
    let mut endless = Running::start(&mut exec(&scene, ["--", "yes"]));
    assert_eq!(endless.line(), "y");
    thread::sleep(Duration::from_secs(2));
    let agents = resident(scene.agent.child.id()) - before;
    let own = resident(endless.child.id());
    println!("endless output: agent +{agents} KiB, client {own} KiB");
    assert!(agents < 16 << 10, "{agents} KiB");
    assert!(own < 64 << 10, "{own} KiB");
    endless.signal(Signal::INT);
    endless.rest();
    assert_eq!(endless.end().code(), Some(128 + 2));
}

#[test]
fn a_pipeline_that_has_enough_is_no_failure() {
    let scene = Scene::new();
    let mut running = Running::start(&mut exec(&scene, ["--", "sh", "-c", "echo $$; exec yes"]));
    let pid = running.line();
    drop(running.child.stdout.take());
    assert!(running.end().success());
    let mut said = String::new();
    let mut stderr = running.child.stderr.take().unwrap();
    stderr.read_to_string(&mut said).unwrap();
    assert_eq!(said, "");
    all_gone(&[pid]);
}

#[test]
fn a_shell_without_a_terminal_runs_a_script_as_a_login_shell() {
    let scene = Scene::new();
    let mut command = scene.world.command(["shell", BOX]);
    let done = Done::with_input(&mut command, b"echo $0\nexit 3\n");
    assert_eq!(done.code, Some(3), "{done:?}");
    assert!(done.stdout.starts_with('-'), "{done:?}");
}
