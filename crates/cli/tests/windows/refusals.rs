//! `hvsock why`, and errors of commands without Hyper-V sockets.

use std::process::Command;

use hvsock_testkit::process;
use serde_json::json;

use crate::util::{Completed, TIMEOUT, World, hvsock, run};

fn why(arguments: &[&str]) -> Completed {
    run(["why"].iter().chain(arguments))
}

/// The first line: whether the connect or listen would succeed.
fn verdict(done: &Completed) -> &str {
    done.stdout.lines().next().unwrap()
}

#[test]
fn why_names_an_unregistered_service_and_the_command_that_registers_it() {
    let world = World::new();
    let name = world.name("HV Socket Demo");
    for target in ["parent", "loopback"] {
        let done = why(&[target, &name]);
        assert_eq!((done.code, done.stderr.as_str()), (Some(1), ""));
        assert!(verdict(&done).contains("not registered"), "{}", done.stdout);
        let help = format!("hvsock service register \"{name}\"");
        assert!(done.stdout.contains(&help), "{}", done.stdout);
    }
    let json = why(&["parent", &name, "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(json["refusal"]["reason"], json!("unregistered"));
}

#[test]
fn why_distinguishes_disabled_and_unregistered_services() {
    let world = World::new();
    let name = world.name("backup");
    world.register(&name);
    world.ok(["service", "disable", &name]);
    let done = why(&["any", &name, "--listen"]);
    assert_eq!(done.code, Some(1), "{done:?}");
    assert!(done.stdout.contains("disabled"), "{}", done.stdout);
    assert!(done.stdout.contains("service enable"), "{}", done.stdout);
}

#[test]
fn loopback_needs_no_registration() {
    let done = why(&["loopback", "0b2f1f0e-0000-4000-8000-000000000001"]);
    // Windows does not report which listeners exist.
    assert!(!done.stdout.contains("would succeed"), "{}", done.stdout);
    let answer = "no: both ends are in one partition";
    assert!(done.stdout.contains(answer), "{}", done.stdout);
    // The only obstacle is a machine without such sockets.
    if without_sockets() {
        assert_eq!(done.code, Some(1), "{done:?}");
        assert!(
            done.stdout.contains("Enable-WindowsOptionalFeature"),
            "{}",
            done.stdout
        );
    } else {
        assert_eq!(done.code, Some(0), "{done:?}");
    }
}

/// Whether this machine has no Hyper-V sockets, as Wine. Otherwise prints that the test is skipped.
fn without_sockets() -> bool {
    let error = hvsock_sys::hyperv::socket().err();
    if error.is_none() {
        eprintln!("skipped: this machine has Hyper-V sockets");
    }
    error.is_some()
}

#[test]
fn without_hyper_v_sockets_errors_name_the_feature_to_enable() {
    if !without_sockets() {
        return;
    }
    let world = World::new();
    let name = world.name("backup");
    world.register(&name);
    let service = "0b2f1f0e-0000-4000-8000-000000000001";
    for arguments in [
        &["connect", "loopback", service][..],
        &["connect", "loopback", &name],
        &["listen", &name, "--from", "loopback"],
        &[
            "listen", service, "--from", "loopback", "--", "cmd", "/c", "rem",
        ],
    ] {
        let error = run(arguments).failed();
        for part in ["AF_HYPERV", "Enable-WindowsOptionalFeature"] {
            assert!(error.contains(part), "{arguments:?}: {error}");
        }
    }
}

#[test]
fn an_unregistered_name_is_reported_before_other_errors() {
    let world = World::new();
    let name = world.name("unknown");
    for arguments in [&["connect", "loopback", &name][..], &["listen", &name]] {
        let error = run(arguments).failed();
        let lines: Vec<_> = error.lines().collect();
        assert_eq!(lines.len(), 2, "{error}");
        assert!(
            lines[0].starts_with("error: ") && lines[0].contains(&name),
            "{error}"
        );
        let help = format!("help: hvsock service register \"{name}\"");
        assert_eq!(lines[1], help, "{error}");
    }
}

#[test]
fn a_broker_named_in_the_environment_is_an_error() {
    let mut command = hvsock();
    let command: &mut Command = command.args(["connect", "loopback", "2761"]);
    let output = process::output(command.env("HVSOCK_DIR", r"C:\x"), b"", TIMEOUT);
    let error = Completed::from(output.unwrap()).failed();
    assert!(error.contains("the system itself is the broker"), "{error}");
}
