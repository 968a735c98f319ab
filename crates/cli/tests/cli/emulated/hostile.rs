//! What a program may do wrong or on purpose, and what may happen to it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use hvsock_testkit::require;

use rustix::process::{Signal, kill_process};

use super::world::{BOTH, Emulated, PORT, Way, file, prints, succeeds};
use crate::util::{Completed, Running, eventually};

#[test]
fn bad_pointers_and_lengths_are_errors_of_the_call() {
    let expected = "\
bind EFAULT EFAULT
short EINVAL EINVAL
long EINVAL EINVAL
connect EFAULT EINVAL
getsockname EFAULT EFAULT
getsockname EINVAL EFAULT
getsockname ok 16
getpeername EFAULT EFAULT
getpeername EINVAL EFAULT
getpeername ok 16
getsockopt EFAULT
getsockopt EFAULT
setsockopt EFAULT
setsockopt ok
accept -1 EFAULT
closed True EBADF
";
    prints(&BOTH, "pointers", expected);
}

#[test]
fn an_accept_without_free_descriptors_loses_no_connection() {
    succeeds(&BOTH, "descriptors");
}

#[test]
fn descriptors_that_a_program_closes_silently_are_not_taken_for_others() {
    succeeds(&BOTH, "closes_everything");
}

#[test]
fn descriptors_that_change_during_calls_do_not_reach_foreign_sockets() {
    succeeds(&BOTH, "closes_while_others_wait");
}

/// Runs a scenario of `hostile.c`.
fn disturbs_nobody(scenario: &str) {
    let (Some(compiler), Some(emulated)) =
        (require::program("cc", &["--version"]), Emulated::new())
    else {
        return;
    };
    let folder = crate::util::folder();
    let program = folder.path().join("hostile");
    let mut build = Command::new(compiler);
    build.args(["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-pthread"]);
    build.arg(file("hostile.c")).arg("-o").arg(&program);
    Completed::of(&mut build).ok();
    let mut command = emulated.run(["--seccomp", "--"]);
    // Names of sockets are made there, by many calls.
    command.env_remove("TMPDIR").arg(program).arg(scenario);
    assert_eq!(Completed::of(&mut command).ok(), "done\n");
}

#[test]
fn a_process_that_binds_sockets_without_end_does_not_keep_others_from_connecting() {
    disturbs_nobody("binds_without_end");
}

#[test]
fn a_thread_that_executes_a_program_ends_the_calls_of_the_others() {
    disturbs_nobody("executes_by_another_thread");
}

#[test]
fn a_file_that_takes_the_place_of_a_socket_during_a_call_is_left_alone() {
    disturbs_nobody("replaced");
}

#[test]
fn connects_to_a_program_that_accepts_nothing_end() {
    succeeds(&BOTH, "never_accepts");
}

#[test]
fn a_storm_of_signals_does_not_break_calls() {
    succeeds(&BOTH, "urgent");
}

#[test]
fn many_processes_of_one_program_connect_at_once() {
    succeeds(&BOTH, "children");
}

#[test]
fn processes_that_are_killed_in_calls_leave_nothing_behind() {
    succeeds(&BOTH, "killed");
}

#[test]
fn a_user_without_privileges_runs_programs_by_both_ways() {
    let Some(()) = require::root() else { return };
    let Some(emulated) = Emulated::new() else {
        return;
    };
    // Places that another user can read.
    let folder = crate::util::folder();
    let copy = |from: &Path, name: &str| {
        let to = folder.path().join(name);
        fs::copy(from, &to).unwrap();
        fs::set_permissions(&to, fs::Permissions::from_mode(0o755)).unwrap();
        to
    };
    let program = copy(Path::new(env!("CARGO_BIN_EXE_hvsock")), "hvsock");
    let library = copy(&emulated.library, "library.so");
    let script = copy(&file("sockets.py"), "sockets.py");
    for way in BOTH {
        for (name, printed) in [("blocking", ""), ("executed", ""), ("undumpable", "None\n")] {
            let mut command = Command::new("setpriv");
            command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
            command.arg(&program).arg("--dir").arg(emulated.world.dir());
            command.args(["run", way.flag(), "--", "/usr/bin/python3"]);
            command.arg(&script).args([name, PORT]).current_dir("/");
            command.env("HVSOCK_PRELOAD_LIB", &library);
            let done = Completed::of(&mut command);
            // A supervisor may not look at such a program of its own user; its calls fail.
            let expected = match (way, name) {
                (Way::Seccomp, "undumpable") => "EACCES\n",
                _ => printed,
            };
            assert_eq!(done.ok(), format!("{expected}done\n"), "{way:?} {name}");
        }
    }
}

/// Starts a scenario that prints `ready`, and waits for that.
fn ready(emulated: &Emulated, way: Way, name: &str) -> Running {
    let mut command = emulated.scenario(way, name);
    let mut running = Running::start(command.stdout(Stdio::piped()).stderr(Stdio::null()));
    assert_eq!(running.line(), "ready", "{way:?}");
    running
}

#[test]
fn a_program_gets_errors_when_the_broker_is_gone() {
    for way in BOTH {
        let Some(mut emulated) = Emulated::new() else {
            return;
        };
        let mut running = ready(&emulated, way, "broker_gone");
        emulated.world.broker().kill();
        let rest = running.rest();
        let rest = String::from_utf8_lossy(&rest);
        assert_eq!(rest, "socket 40\ndone\n", "{way:?}");
        assert_eq!(running.end().code(), Some(0));
    }
}

#[test]
fn a_listener_serves_again_after_a_restart_of_the_broker() {
    for way in BOTH {
        let Some(mut emulated) = Emulated::new() else {
            return;
        };
        let mut running = ready(&emulated, way, "broker_restarted");
        let connect = |emulated: &Emulated| {
            let mut connect = emulated.world.command(["connect", "loopback", PORT]);
            Completed::with_input(&mut connect, b"hello")
        };
        assert_eq!(connect(&emulated).ok(), "hello");
        assert_eq!(running.line(), "served", "{way:?}");
        emulated.world.broker().kill();
        emulated.world.start_broker();
        eventually("the program serves again", || {
            connect(&emulated).code == Some(0)
        });
        assert_eq!(running.line(), "served", "{way:?}");
        assert_eq!(running.end().code(), Some(0));
    }
}

#[test]
fn a_program_gets_errors_when_its_supervisor_is_gone() {
    let Some(emulated) = Emulated::new() else {
        return;
    };
    let mut command = emulated.scenario(Way::Seccomp, "supervisor_gone");
    let mut running = Running::start(command.stdout(Stdio::piped()));
    assert_eq!(running.line(), "ready");
    kill_process(running.pid(), Signal::KILL).unwrap();
    let rest = running.rest();
    let rest = String::from_utf8_lossy(&rest);
    assert_eq!(
        rest,
        "accept ENOSYS\nsocket ENOSYS\ndata b'still here'\ndone\n"
    );
}

#[test]
fn a_program_that_others_may_not_look_at_gets_errors_or_works_and_never_hangs() {
    for way in BOTH {
        let Some(emulated) = Emulated::new() else {
            return;
        };
        let output = emulated.output(way, "undumpable");
        // Root may look at every program.
        let is_root = rustix::process::geteuid().is_root();
        if is_root || way == Way::Preload {
            assert_eq!(output, "None\n", "{way:?}");
        }
    }
}
