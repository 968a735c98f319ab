//! Commands and shells in a guest.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use hvsock_testkit::require;
use rustix::process::{Pid, Signal, kill_process};

use crate::fixture::{BOX, Fixture, wait_until_offered};
use crate::util::{Completed, Running, eventually, redirected};

/// The command `hvsock exec box ARGUMENTS`, with pipes for its streams.
fn exec<const N: usize>(fixture: &Fixture, arguments: [&str; N]) -> Command {
    let mut command = fixture.world.command(["exec", BOX]);
    command
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn shell(fixture: &Fixture, script: &str) -> Completed {
    fixture.run(["exec", BOX, "--", "sh", "-c", script])
}

/// Whether the process exists and has not ended.
fn alive(pid: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(") ").map(|(_, rest)| &rest[..1]);
    state.is_some_and(|state| state != "Z" && state != "X")
}

/// The processor time that the process has used, in clock ticks.
fn cpu_ticks(pid: &str) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    let ticks = fields.split(' ').skip(11).take(2);
    ticks.map(|ticks| ticks.parse::<u64>().unwrap()).sum()
}

fn kill(pid: &str) {
    let pid = Pid::from_raw(pid.parse().unwrap()).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
}

#[test]
fn exec_exits_as_its_command_does() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    let done = shell(&fixture, "echo out; echo err >&2; exit 7");
    let result = (done.code, &*done.stdout, &*done.stderr);
    assert_eq!(result, (Some(7), "out\n", "err\n"));
    assert_eq!(shell(&fixture, "kill -USR1 $$").code, Some(128 + 10));
    assert_eq!(shell(&fixture, "exit 255").code, Some(255));
    assert_eq!(shell(&fixture, ":").ok(), "");

    for (program, status, words) in [
        ("no-such-program", 127, "no-such-program: not found"),
        ("/etc/passwd", 126, "/etc/passwd: permission denied"),
    ] {
        let done = fixture.run(["exec", BOX, "--", program]);
        assert_eq!(done.code, Some(status), "{done:?}");
        assert!(done.stderr.contains(words), "{done:?}");
    }
}

#[test]
fn a_command_that_does_not_start_has_exit_status_125() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    let refused = |arguments: &[&str], words: &str| {
        let done = fixture.world.run([&["exec", BOX], arguments].concat());
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
    let done = fixture.run(["exec", BOX, "-t", "--", "true"]);
    assert!(done.usage_error().contains("-t needs a terminal"));

    fixture
        .world
        .ok(["service", "disable", "hvsock session", "--vm", BOX]);
    refused(&["--", "true"], "disabled");
}

#[test]
fn a_command_gets_its_environment_directory_and_user() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    let done = fixture.run([
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
    // Without -i its stdin is empty.
    assert_eq!(done.ok(), "/proc\nb c=d\n");
    let home = fixture.world.dir().display().to_string();
    assert_eq!(
        shell(&fixture, "pwd; echo $HOME").ok(),
        format!("{home}\n{home}\n")
    );
    // Only an agent with root's privileges can change the user.
    let Some(()) = require::root() else { return };
    let script = "id -u; id -G; echo $USER $HOME; pwd; echo ${RUST_BACKTRACE-no}";
    let done = fixture.run(["exec", BOX, "-u", "nobody", "--", "sh", "-c", script]);
    let nobody = "65534\n65534\nnobody /nonexistent\n/\nno\n";
    assert_eq!(done.ok(), nobody);
}

#[test]
fn exec_transfers_every_byte_and_half_closes_the_commands_input() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    let bytes: Vec<u8> = (0..5_000_000_u32).map(|i| (i * 7 / 3) as u8).collect();
    let mut command = exec(&fixture, ["-i", "--", "cat"]);
    assert!(Completed::bytes_with_input(&mut command, &bytes) == bytes);
    let script = "wc -c; echo more";
    let mut command = exec(&fixture, ["-i", "--", "sh", "-c", script]);
    let done = Completed::with_input(&mut command, &bytes);
    assert_eq!(done.ok(), "5000000\nmore\n");
    // A command that does not read its input does not block the exec.
    let mut command = exec(&fixture, ["-i", "--", "true"]);
    assert_eq!(Completed::with_input(&mut command, &bytes).ok(), "");
    let script = "exec <&-; sleep 0.2; echo done";
    let mut command = exec(&fixture, ["-i", "--", "sh", "-c", script]);
    assert_eq!(Completed::with_input(&mut command, &bytes).ok(), "done\n");
}

#[test]
fn signals_reach_a_command_that_does_not_read_its_input() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    let script = "trap 'echo caught; exit 9' TERM; echo up; while :; do sleep 0.05; done";
    let mut running = Running::start(&mut exec(&fixture, ["-i", "--", "sh", "-c", script]));
    assert_eq!(running.line(), "up");
    let mut stdin = running.child.stdin.take().unwrap();
    // The write fails when the exec ends.
    let writer = thread::spawn(move || stdin.write_all(&vec![0; 10 << 20]));
    running.signal(Signal::TERM);
    assert_eq!(running.line(), "caught");
    assert_eq!(running.end().code(), Some(9));
    writer.join().unwrap().unwrap_err();

    // The third unanswered signal ends the exec itself.
    let script = "trap '' TERM; echo up; exec sleep 600";
    let mut running = Running::start(&mut exec(&fixture, ["--", "sh", "-c", script]));
    assert_eq!(running.line(), "up");
    for _ in 0..3 {
        running.signal(Signal::TERM);
        // Unix merges equal signals that are pending, so each must be handled before the next.
        thread::sleep(Duration::from_millis(300));
    }
    assert_eq!(running.end().code(), Some(128 + 15));
}

/// A script that prints the ids of four processes and keeps them running: its shell, one in its group that
/// ignores `SIGHUP`, one in another session, and an orphan in another session.
const FAMILY: &str = "echo $$; \
    sh -c 'trap \"\" HUP; echo $$; while :; do sleep 600; done' & sleep 0.1; \
    setsid sh -c 'echo $$; exec sleep 600' & sleep 0.1; \
    (setsid sh -c 'echo $$; exec sleep 600' &) ; sleep 600";

fn start_family(fixture: &Fixture) -> (Running, Vec<String>) {
    let mut running = Running::start(&mut exec(fixture, ["--", "sh", "-c", FAMILY]));
    let pids: Vec<String> = (0..4).map(|_| running.line()).collect();
    assert!(pids.iter().all(|pid| alive(pid)), "{pids:?}");
    (running, pids)
}

fn wait_until_all_ended(pids: &[String]) {
    eventually("all processes of the session have ended", || {
        !pids.iter().any(|pid| alive(pid))
    });
}

#[test]
fn a_killed_exec_ends_all_processes_of_its_session() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    let (mut running, pids) = start_family(&fixture);
    running.kill();
    wait_until_all_ended(&pids);
}

#[test]
fn a_session_closed_by_the_operator_ends_its_processes_and_fails_the_exec() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    let (mut running, pids) = start_family(&fixture);
    fixture.world.ok(["service", "disable", "hvsock session"]);
    assert_eq!(running.end().code(), Some(125));
    let error = running.rest_of_stderr();
    assert!(error.starts_with("error: "), "{error}");
    wait_until_all_ended(&pids);
}

#[test]
fn a_timeout_ends_all_processes_of_the_session() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    let script = "echo $$; exec sleep 600";
    let done = fixture.run(["exec", BOX, "--timeout", "0.5", "--", "sh", "-c", script]);
    assert_eq!(done.code, Some(124), "{done:?}");
    assert!(done.stderr.contains("ended after 0.5 seconds"), "{done:?}");
    wait_until_all_ended(&[done.stdout.trim().to_owned()]);
}

/// A script whose processes leave their parent, group, session, environment and, as root, their user. It
/// prints their ids.
fn escapers() -> String {
    let mut script = "echo $$; \
        env -i setsid sh -c 'echo $$; exec sleep 600' & sleep 0.1; \
        (env -i setsid sh -c 'trap \"\" HUP TERM; echo $$; while :; do sleep 600; done' &) ; sleep 0.1; "
        .to_owned();
    if rustix::process::geteuid().is_root() && require::program("su", &["--version"]).is_some() {
        script += "su - nobody -s /bin/sh -c 'echo $$; exec sleep 600' & sleep 0.1; ";
    } else {
        script += "sleep 600 & echo $!; ";
    }
    script + "wait"
}

fn start_escapers(fixture: &Fixture) -> (Running, Vec<String>) {
    let mut running = Running::start(&mut exec(fixture, ["--", "sh", "-c", &escapers()]));
    let pids: Vec<String> = (0..4).map(|_| running.line()).collect();
    assert!(pids.iter().all(|pid| alive(pid)), "{pids:?}");
    (running, pids)
}

#[test]
fn a_timeout_is_reported_when_processes_that_left_the_session_have_ended_too() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    let done = fixture.run(["exec", BOX, "--timeout", "2", "--", "sh", "-c", &escapers()]);
    assert_eq!(done.code, Some(124), "{done:?}");
    let error = "error: the command was ended after 2 seconds\n";
    assert!(done.stderr.ends_with(error), "{done:?}");
    let pids: Vec<&str> = done.stdout.lines().collect();
    assert_eq!(pids.len(), 4, "{done:?}");
    assert!(!pids.iter().any(|pid| alive(pid)), "{pids:?}");
}

#[test]
fn a_killed_exec_ends_processes_that_left_its_session() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    let (mut running, pids) = start_escapers(&fixture);
    running.kill();
    wait_until_all_ended(&pids);
}

#[test]
fn a_killed_agent_ends_all_processes_of_its_commands_and_fails_the_exec() {
    let Some(mut fixture) = Fixture::new() else {
        return;
    };
    let (mut running, pids) = start_escapers(&fixture);
    fixture.kill_agent();
    assert_eq!(running.end().code(), Some(125));
    let error = running.rest_of_stderr();
    assert!(error.contains("error: the connection broke"), "{error}");
    wait_until_all_ended(&pids);
}

/// A command that takes its input for the whole if it sees an end of it, and then creates a file.
fn backup(fixture: &Fixture) -> (String, std::path::PathBuf) {
    let file = fixture.world.dir().join("backup");
    let part = file.with_extension("part").display().to_string();
    let script = format!(
        "trap '' HUP; echo up; cat >{part} && mv {part} {}",
        file.display()
    );
    (script, file)
}

#[test]
fn input_that_cannot_be_read_ends_the_command_before_it_sees_an_end() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    let (script, file) = backup(&fixture);
    for (broken, error) in [
        (File::open("/").unwrap(), "Is a directory (os error 21)"),
        // The first page of this process is not mapped.
        (
            File::open("/proc/self/mem").unwrap(),
            "Input/output error (os error 5)",
        ),
        (
            OpenOptions::new().write(true).open("/dev/null").unwrap(),
            "Bad file descriptor (os error 9)",
        ),
    ] {
        let mut command = exec(&fixture, ["-i", "--", "sh", "-c", &script]);
        let done = Completed::of(command.stdin(broken));
        assert_eq!(done.code, Some(125), "{done:?}");
        let error = format!("error: cannot read standard input: {error}; the command was ended\n");
        assert_eq!(done.stderr, error);
        assert!(!file.exists());
    }
    let mut shell = fixture.world.command(["shell", BOX]);
    let done = Completed::of(shell.stdin(File::open("/").unwrap()));
    assert_eq!(done.code, Some(125), "{done:?}");
    assert!(
        done.stderr
            .contains("cannot read standard input: Is a directory")
    );
}

#[test]
fn a_closed_standard_stream_fails_exec_and_cp() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    let (script, file) = backup(&fixture);
    let kept = fixture.world.dir().join("kept");
    fs::write(&kept, "keep").unwrap();
    let remote = format!("{BOX}:{}", kept.display());
    let exec = |arguments: &[&str]| {
        let mut command = fixture.world.command(["exec"]);
        command.args(arguments);
        command
    };
    let cp = |from: &str, to: &str| fixture.world.command(["cp", from, to]);
    for (command, redirection, code) in [
        (exec(&["-i", BOX, "--", "sh", "-c", &script]), "<&-", 125),
        (exec(&[BOX, "--", "echo", "hi"]), ">&-", 125),
        (cp("-", &remote), "<&-", 1),
        (cp("/dev/stdin", &remote), "<&-", 1),
        (cp("/dev/fd/0", &remote), "<&-", 1),
        (cp(&remote, "-"), ">&-", 1),
        (cp(&remote, "/dev/stdout"), ">&-", 1),
    ] {
        let done = Completed::of(&mut redirected(&command, redirection));
        assert_eq!(done.code, Some(code), "{command:?} {done:?}");
        let why = "Bad file descriptor (os error 9)";
        assert!(done.stderr.contains(why), "{command:?} {done:?}");
    }
    assert!(!file.exists());
    assert_eq!(fs::read_to_string(&kept).unwrap(), "keep");
    // A command that reads no input does not need one.
    let without = exec(&[BOX, "--", "echo", "hi"]);
    assert_eq!(Completed::of(&mut redirected(&without, "<&-")).ok(), "hi\n");
}

#[test]
fn a_lost_connection_is_not_the_end_of_the_commands_input() {
    let Some(mut fixture) = Fixture::new() else {
        return;
    };
    let (script, file) = backup(&fixture);
    let start = |fixture: &Fixture| {
        let mut running = Running::start(&mut exec(fixture, ["-i", "--", "sh", "-c", &script]));
        assert_eq!(running.line(), "up");
        running
    };
    let ended = |fixture: &Fixture| {
        eventually("all processes of the command have ended", || {
            let name = fixture.world.dir().display().to_string();
            let ps = Completed::of(Command::new("ps").args(["-eo", "args"]));
            !ps.stdout
                .lines()
                .any(|line| line.contains("cat >") && line.contains(&name))
        });
    };
    let mut running = start(&fixture);
    running.kill();
    ended(&fixture);
    assert!(!file.exists());
    let _running = start(&fixture);
    fixture.kill_agent();
    ended(&fixture);
    assert!(!file.exists());
}

#[test]
fn input_in_non_blocking_mode_is_waited_for() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    let (reader, mut writer) = std::io::pipe().unwrap();
    rustix::io::ioctl_fionbio(&reader, true).unwrap();
    let mut command = exec(&fixture, ["-i", "--", "sh", "-c", "echo up; cat"]);
    let mut running = Running::start(command.stdin(reader));
    drop(command);
    assert_eq!(running.line(), "up");
    writer.write_all(b"late\n").unwrap();
    assert_eq!(running.line(), "late");
    drop(writer);
    assert!(running.end().success());
}

#[test]
fn descriptors_that_the_agent_inherited_do_not_reach_a_command() {
    let Some(mut fixture) = Fixture::new() else {
        return;
    };
    fixture.kill_agent();
    let agent = fixture.agent_command();
    let mut leaking = Command::new("sh");
    leaking
        .args(["-c", "exec 9</etc/shadow 7>&2; exec \"$0\""])
        .arg(agent.get_program())
        .stdin(Stdio::null());
    for (name, value) in agent.get_envs() {
        match value {
            Some(value) => leaking.env(name, value),
            None => leaking.env_remove(name),
        };
    }
    fixture.agent = Running::start(&mut leaking);
    wait_until_offered(&fixture.world, BOX);
    let script = "cd /proc/$$/fd; echo [0-9]*";
    let mut users = vec![vec!["exec", BOX, "--", "sh", "-c", script]];
    if rustix::process::geteuid().is_root() {
        users.push(vec!["exec", BOX, "-u", "nobody", "--", "sh", "-c", script]);
    }
    for arguments in users {
        // Some shells keep a descriptor of their own above.
        let listed = fixture.world.ok(arguments);
        let fds: Vec<&str> = listed.split_whitespace().collect();
        assert_eq!(fds[..3], ["0", "1", "2"], "{listed}");
        assert!(!fds.contains(&"7") && !fds.contains(&"9"), "{listed}");
    }
    // The agent's other children do not get them either.
    let fd = format!("/proc/{}/fdinfo/9", fixture.agent.child.id());
    let flags = fs::read_to_string(fd).unwrap();
    let flags = flags.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = i32::from_str_radix(flags.unwrap().trim(), 8).unwrap();
    assert!(flags & 0o2_000_000 != 0, "close-on-exec: {flags:o}");
}

#[test]
fn sigterm_to_the_agent_ends_its_commands_first() {
    let Some(mut fixture) = Fixture::new() else {
        return;
    };
    let (mut running, pids) = start_family(&fixture);
    fixture.agent.signal(Signal::TERM);
    assert!(fixture.agent.end().success());
    assert!(!pids.iter().any(|pid| alive(pid)), "{pids:?}");
    assert_eq!(running.end().code(), Some(125));
}

#[test]
fn background_processes_of_a_command_survive_and_do_not_block_the_exec() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    let done = shell(&fixture, "sleep 600 & echo $!");
    assert!(done.stderr.contains("its output is lost"), "{done:?}");
    let pid = done.ok().trim().to_owned();
    assert!(alive(&pid));
    kill(&pid);

    // A daemon, which has closed the inherited streams, causes no message.
    let done = shell(
        &fixture,
        "setsid sleep 600 </dev/null >/dev/null 2>&1 & echo $!",
    );
    assert_eq!(done.stderr, "");
    let pid = done.ok().trim().to_owned();
    assert!(alive(&pid));
    kill(&pid);
}

#[test]
fn unread_output_causes_backpressure_and_is_not_lost() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    // The command has written as much as a pipe holds, and has ended when its output is read.
    let file = fixture.world.dir().join("pid");
    let script = format!(
        "echo $$ >{}; dd if=/dev/zero bs=65536 count=1 2>/dev/null; echo last >&2",
        file.display()
    );
    let mut running = Running::start(&mut exec(&fixture, ["--", "sh", "-c", &script]));
    eventually("the command has ended", || {
        fs::read_to_string(&file).is_ok_and(|pid| pid.ends_with('\n') && !alive(pid.trim()))
    });
    assert_eq!(running.rest().len(), 65536);
    assert_eq!(running.rest_of_stderr(), "last\n");
    assert!(running.end().success());

    let resident = |pid: u32| -> u64 {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:"));
        let kib = line.and_then(|line| line.split_whitespace().nth(1));
        kib.unwrap().parse().unwrap()
    };
    let before = resident(fixture.agent.child.id());
    let mut endless = Running::start(&mut exec(&fixture, ["--", "sh", "-c", "echo $$; exec yes"]));
    let pid = endless.line();
    assert_eq!(endless.line(), "y");
    let (mut before_poll, mut equal_polls) = (0, 0);
    eventually("backpressure blocks the command", || {
        let ticks = cpu_ticks(&pid);
        equal_polls = if ticks == before_poll {
            equal_polls + 1
        } else {
            0
        };
        before_poll = ticks;
        // About a second without progress.
        equal_polls >= 100
    });
    let agents = resident(fixture.agent.child.id()) - before;
    let own = resident(endless.child.id());
    println!("endless output: agent +{agents} KiB, exec {own} KiB");
    assert!(agents < 16 << 10, "{agents} KiB");
    assert!(own < 64 << 10, "{own} KiB");
    endless.signal(Signal::INT);
    endless.rest();
    assert_eq!(endless.end().code(), Some(128 + 2));
}

#[test]
fn a_closed_stdout_ends_the_command_and_is_no_failure() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    let mut running = Running::start(&mut exec(&fixture, ["--", "sh", "-c", "echo $$; exec yes"]));
    let pid = running.line();
    drop(running.child.stdout.take());
    assert!(running.end().success());
    assert_eq!(running.rest_of_stderr(), "");
    wait_until_all_ended(&[pid]);
}

#[test]
fn a_shell_without_a_terminal_runs_a_script_as_a_login_shell() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    let mut command = fixture.world.command(["shell", BOX]);
    let done = Completed::with_input(&mut command, b"echo $0\nexit 3\n");
    assert_eq!(done.code, Some(3), "{done:?}");
    assert!(done.stdout.starts_with('-'), "{done:?}");
}
