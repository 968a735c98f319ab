//! Where a supervisor cannot work, and where no way works.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::process::Command;

use hvsock_testkit::require;

use super::world::{Emulated, PORT, Way, file};
use crate::util::Completed;

/// `hvsock run ARGUMENTS` under a filter that denies these calls.
fn under_filter(emulated: &Emulated, denied: &[&str], arguments: &[&str]) -> Command {
    let run = emulated.run(arguments);
    let mut command = Command::new(&emulated.python);
    command.arg(file("denied.py")).args(denied).arg("--");
    command.arg(run.get_program()).args(run.get_args());
    command.env("HVSOCK_PRELOAD_LIB", &emulated.library);
    command
}

#[test]
fn a_filter_that_denies_the_family_or_the_supervisor_leads_to_the_preloaded_library() {
    let Some(emulated) = Emulated::new() else {
        return;
    };
    let python = emulated.python.to_str().unwrap();
    let script = file("sockets.py");
    let program = [python, script.to_str().unwrap(), "blocking", PORT];
    for denied in ["socket", "seccomp", "pidfd_getfd", "process_vm_readv"] {
        let arguments = [&["--"], &program[..]].concat();
        let done = Completed::of(&mut under_filter(&emulated, &[denied], &arguments));
        let line = done.stderr.lines().next().unwrap_or_default().to_owned();
        assert!(line.starts_with("note: "), "{denied}: {done:?}");
        assert!(
            line.ends_with("; taking the preloaded library instead"),
            "{line}"
        );
        assert_eq!(done.ok(), "done\n", "{denied}");
    }
    let forced = [&["--seccomp", "--"], &program[..]].concat();
    let done = Completed::of(&mut under_filter(&emulated, &["socket"], &forced));
    let stderr = done.failed();
    assert!(
        stderr.contains("an outer seccomp filter forbids sockets of AF_VSOCK"),
        "{stderr}"
    );
    assert!(stderr.contains("\nhelp: "), "{stderr}");
}

#[test]
fn hvsock_run_inside_of_hvsock_run_serves_the_program() {
    let Some(emulated) = Emulated::new() else {
        return;
    };
    for outer in ["--seccomp", "--preload"] {
        let inner = emulated.scenario(Way::Preload, "blocking");
        let mut command = emulated.run([outer, "--"]);
        command.arg(inner.get_program());
        // The inner command chooses by itself.
        command.args(inner.get_args().filter(|argument| *argument != "--preload"));
        let done = Completed::of(&mut command);
        assert_eq!(done.ok(), "done\n", "{outer}");
    }
}

#[test]
fn a_program_that_does_not_load_the_library_is_refused_with_the_reason() {
    let Some(emulated) = Emulated::new() else {
        return;
    };
    let folder = crate::util::folder();
    let program = folder.path().join("program");
    let mut bytes = fs::read("/proc/self/exe").unwrap();
    // No program headers: no loader.
    bytes.splice(56..58, [0, 0]);
    fs::write(&program, &bytes).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let name = program.to_str().unwrap();
    let refused = |reason: &str| {
        let done = Completed::of(&mut emulated.run(["--preload", "--", name]));
        let stderr = done.failed();
        assert!(
            stderr.contains(reason) && stderr.contains("\nhelp: "),
            "{stderr}"
        );
    };
    refused("is linked statically, so it loads no library");
    let done = Completed::of(&mut under_filter(&emulated, &["socket"], &["--", name]));
    let stderr = done.failed();
    assert!(stderr.contains("nor by the preloaded library"), "{stderr}");
    let Some(()) = require::root() else { return };
    fs::copy("/proc/self/exe", &program).unwrap();
    chown(&program, Some(65_534), None).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o4755)).unwrap();
    refused("gets the rights of another user or group");
}

#[test]
fn a_missing_library_names_the_next_step_and_a_missing_port_is_no_error() {
    let Some(emulated) = Emulated::new() else {
        return;
    };
    let mut command = emulated.run(["--preload", "--", "true"]);
    command.env("HVSOCK_PRELOAD_LIB", "/nowhere/lib.so");
    let stderr = Completed::of(&mut command).failed();
    assert!(stderr.contains("in /nowhere"), "{stderr}");
    assert!(stderr.contains("help: set HVSOCK_PRELOAD_LIB"), "{stderr}");
    let arguments = ["--preload", "--register", "My Name", "--", "true"];
    let done = Completed::of(&mut emulated.run(arguments));
    assert_eq!((done.code, &*done.stderr), (Some(0), ""), "{done:?}");
    let both = ["--preload", "--seccomp", "--", "true"];
    Completed::of(&mut emulated.run(both)).usage_error();
}

#[test]
fn the_status_of_a_preloaded_program_is_that_of_the_command() {
    let Some(emulated) = Emulated::new() else {
        return;
    };
    let status = |program: &[&str]| {
        let mut command = emulated.run(["--preload", "--"]);
        Completed::of(command.args(program)).code
    };
    assert_eq!(status(&["true"]), Some(0));
    assert_eq!(status(&["sh", "-c", "exit 7"]), Some(7));
    assert_eq!(status(&["sh", "-c", "kill -9 $$"]), Some(137));
    assert_eq!(status(&["/nowhere/at/all"]), Some(127));
}
