//! Runs the tests of the Python package with a broker and the conformance peer.

#![cfg(target_os = "linux")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use hvsock_testkit::peer::ConformancePeer;
use hvsock_testkit::world::World;
use hvsock_testkit::{process, require};

/// The longest that the tests take on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(120);

fn package() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../python")
}

/// Runs a module of the package's tests against a broker of its own.
fn run_tests(modules: &[&str]) {
    let Some(python3) = require::python3() else {
        return;
    };
    let world = World::new();
    let _peer = ConformancePeer::start(&world.host().endpoint()).expect("a peer");
    let mut command = Command::new(python3);
    command
        .args(["-W", "error::ResourceWarning", "-m", "unittest", "-v"])
        .args(modules)
        .current_dir(package())
        .env("PYTHONPATH", package().join("src"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("HVSOCK_ENDPOINT", world.host().0)
        .env("HVSOCK_PYTHON_IMPLEMENTATION", "pure")
        .env("HVSOCK_TEST_PEER", "1");
    let output = process::output(&mut command, b"", TIMEOUT).expect("it ends");
    let report = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{report}");
    assert!(!report.contains("skipped"), "{report}");
    assert!(!report.contains("Ran 0 tests"), "{report}");
    assert!(!report.contains("Exception ignored"), "{report}");
}

#[test]
fn the_python_package_passes_the_test_vectors() {
    run_tests(&["tests.test_vectors"]);
}

#[test]
fn the_python_package_passes_every_conformance_case() {
    run_tests(&["tests.test_conformance"]);
}
