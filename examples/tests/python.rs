//! Runs the tests of the Python package with a broker and the conformance peer.

#![cfg(target_os = "linux")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use hvsock_testkit::peer::ConformancePeer;
use hvsock_testkit::world::World;
use hvsock_testkit::{TempFolder, process, require};

/// The longest that the tests take on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(120);

fn package() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../python")
}

/// The environment variable with the folder of the accelerator's module. `cargo xtask test` and `cargo xtask python`
/// build it and set it.
const ACCELERATOR: &str = "HVSOCK_TEST_ACCELERATOR";

/// Runs modules of the package's tests against a broker of their own.
fn run_tests(modules: &[&str]) {
    if let Some(python3) = require::python3() {
        run_tests_with(&python3, modules, "pure", &[package().join("src")]);
    }
}

fn run_tests_with(python3: &Path, modules: &[&str], implementation: &str, paths: &[PathBuf]) {
    let world = World::new();
    let _peer = ConformancePeer::start(&world.host().endpoint()).expect("a peer");
    let mut command = Command::new(python3);
    command
        .args(["-W", "error::ResourceWarning", "-m", "unittest", "-v"])
        .args(modules)
        .current_dir(package())
        .env("PYTHONPATH", std::env::join_paths(paths).expect("paths"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("HVSOCK_ENDPOINT", world.host().0)
        .env("HVSOCK_PYTHON_IMPLEMENTATION", implementation)
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
    run_tests(&["tests.test_vectors", "tests.test_text"]);
}

#[test]
fn the_python_package_passes_every_conformance_case() {
    run_tests(&["tests.test_conformance"]);
}

#[test]
fn the_python_package_has_the_semantics_of_sockets() {
    run_tests(&["tests.test_sockets", "tests.test_asyncio"]);
}

#[test]
fn the_python_package_withstands_older_and_faulty_brokers_and_knows_other_systems() {
    run_tests(&["tests.test_fake_broker", "tests.test_systems"]);
}

/// Runs a command and returns what it prints.
fn run(command: &mut Command) -> String {
    let output = process::output(command, b"", TIMEOUT).expect("it ends");
    let [stdout, stderr] = [output.stdout, output.stderr].map(String::from_utf8);
    let (stdout, stderr) = (stdout.expect("text"), stderr.expect("text"));
    assert!(output.status.success(), "{stdout}{stderr}");
    stdout
}

#[test]
fn the_wheel_of_the_python_package_builds_offline_and_connects() {
    let probe = ["-c", "import build, setuptools, wheel"];
    let Some(python3) = require::program("python3", &probe) else {
        return;
    };
    let folder = TempFolder::new();
    // The build writes beside its sources.
    let source = folder.join("source");
    run(Command::new("cp").arg("-r").arg(package()).arg(&source));
    run(Command::new(&python3)
        .args(["-m", "build", "--no-isolation", "--wheel", "--outdir"])
        .arg(folder.path())
        .arg(&source));
    let wheel = folder.join("hvsock-0.1.0-py3-none-any.whl");
    assert!(wheel.is_file(), "{}", wheel.display());
    let world = World::new();
    let _peer = ConformancePeer::start(&world.host().endpoint()).expect("a peer");
    // A wheel without compiled code can be imported as it is.
    let program = "import hvsock; s = hvsock.connect(('loopback', 'hvsock conformance'), 10); \
        s.sendall(b'echo\\nfrom a wheel'); s.shutdown(1); \
        print(hvsock.__file__, s.makefile('r').read(), hvsock.implementation())";
    let printed = run(Command::new(&python3)
        .args(["-c", program])
        .env("PYTHONPATH", &wheel)
        .env("HVSOCK_ENDPOINT", world.host().0));
    assert!(
        printed.contains(".whl/hvsock/__init__.py from a wheel pure"),
        "{printed}"
    );
    let typed = run(Command::new(&python3)
        .args(["-m", "zipfile", "-l"])
        .arg(&wheel));
    assert!(typed.contains("hvsock/py.typed"), "{typed}");
}

#[test]
fn the_types_of_the_python_package_are_right() {
    let Some(mypy) = require::program("mypy", &["--version"]) else {
        return;
    };
    let cache = TempFolder::new();
    run(Command::new(mypy)
        .args(["src", "--cache-dir"])
        .arg(cache.path())
        .current_dir(package()));
}

#[test]
fn the_python_package_passes_the_same_tests_with_its_accelerator() {
    let built = std::env::var_os(ACCELERATOR).map(PathBuf::from);
    let missing = "the accelerator is not built (`cargo xtask python` does it)";
    let Some(accelerator) = require::found(built.ok_or(missing)) else {
        return;
    };
    let is_new = "import sys; assert sys.version_info >= (3, 11)";
    let Some(python3) = require::program("python3", &["-c", is_new]) else {
        return;
    };
    let modules = [
        "tests.test_conformance",
        "tests.test_sockets",
        "tests.test_accelerator",
    ];
    let paths = [package().join("src"), accelerator];
    run_tests_with(&python3, &modules, "accelerator", &paths);
}
