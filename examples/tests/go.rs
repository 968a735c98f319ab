//! Runs the tests of the Go module, in `go/`, and its examples against a real broker.

#![cfg(target_os = "linux")]

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use hvsock_testkit::peer::ConformancePeer;
use hvsock_testkit::world::World;
use hvsock_testkit::{go, process};

/// The module.
const MODULE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../go");

/// The folder of the broker, for the tests of the module. It has the sockets of the endpoint, of the control API and
/// of the container `web`.
const FOLDER: &str = "HVSOCK_TEST_FOLDER";

/// The timeout of the whole suite, on a machine that has compiled nothing of it.
const TIMEOUT: Duration = Duration::from_secs(300);

fn succeeds(command: &mut Command) -> String {
    let output = process::output(command, b"", TIMEOUT).expect("it ends");
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{command:?}\n--- stdout\n{stdout}\n--- stderr\n{stderr}"
    );
    stdout
}

#[test]
fn the_go_module_is_formatted_and_passes_vet() {
    let Some(mut vet) = go::command() else {
        return;
    };
    succeeds(vet.args(["vet", "./..."]).current_dir(MODULE));
    let unformatted = succeeds(Command::new("gofmt").args(["-l", MODULE]));
    assert_eq!(unformatted, "");
}

#[test]
fn the_go_module_passes_the_vectors_the_conformance_cases_and_its_own_tests() {
    let Some(mut test) = go::command() else {
        return;
    };
    let world = World::with(|config| config.control = true);
    world.container("web", None);
    let _peer = ConformancePeer::start(&world.host().endpoint()).expect("a peer");
    test.args(["test", "-race", "-count=1", "-timeout=120s", "-v", "./..."])
        .env("CGO_ENABLED", "1")
        .env(FOLDER, world.dirs().run)
        .current_dir(MODULE);
    let printed = succeeds(&mut test);
    let skipped = printed.lines().filter(|line| line.contains("skipped: "));
    assert_eq!(skipped.count(), 0, "{printed}");
    for name in [
        "TestEveryConformanceCaseHolds",
        "TestEveryVectorOfAMessageHolds",
    ] {
        let passed = format!("--- PASS: {name}");
        assert!(printed.contains(&passed), "{printed}");
    }
    assert!(Path::new(MODULE).join("go.mod").is_file());
}
