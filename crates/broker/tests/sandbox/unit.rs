//! The service unit of packages against what the broker needs.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use hvsock_broker::sandbox::CAPABILITIES;

/// The exposure that `systemd-analyze security` may find, in tenths.
const EXPOSURE: &str = "40";

fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging/systemd/hvsock.service")
}

/// The words of a directive, over all of its lines.
fn words(key: &str) -> BTreeSet<String> {
    let unit = std::fs::read_to_string(path()).unwrap();
    let values = unit
        .lines()
        .filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    values
        .flat_map(|value| value.split_whitespace().map(str::to_owned))
        .collect()
}

fn set(words: &[&str]) -> BTreeSet<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

#[test]
fn the_unit_leaves_the_broker_exactly_the_capabilities_that_it_keeps() {
    assert_eq!(words("CapabilityBoundingSet"), set(CAPABILITIES));
}

#[test]
fn the_unit_keeps_what_the_broker_needs_across_restarts_and_upgrades() {
    for (key, value) in [
        ("Type", "notify"),
        ("NotifyAccess", "main"),
        ("RuntimeDirectory", "hvsock"),
        ("RuntimeDirectoryPreserve", "yes"),
        ("KillMode", "process"),
    ] {
        assert_eq!(words(key), set(&[value]), "{key}");
    }
    // A broker looks at processes, devices and control groups of the machine.
    for key in [
        "ProtectProc",
        "ProcSubset",
        "PrivateDevices",
        "PrivateUsers",
        "PrivateNetwork",
    ] {
        assert_eq!(words(key), set(&[]), "{key}");
    }
    let families = words("RestrictAddressFamilies");
    assert_eq!(families, set(&["AF_NETLINK", "AF_UNIX", "AF_VSOCK"]));
    assert_eq!(words("ConfigurationDirectory"), set(&["cdi", "hvsock"]));
    assert_eq!(words("ExecReload"), set(&["/usr/bin/hvsock", "upgrade"]));
    assert_eq!(words("RestrictNamespaces"), set(&["net"]));
    let calls = words("SystemCallFilter");
    for call in [
        "@system-service",
        "setns",
        "seccomp",
        "pidfd_getfd",
        "process_vm_readv",
    ] {
        assert!(calls.contains(call), "{call}");
    }
}

#[test]
fn the_exposure_of_the_unit_is_at_most_the_documented_one() {
    let mut command = Command::new("systemd-analyze");
    command.args(["security", "--offline=yes", "--threshold", EXPOSURE]);
    // Not every machine has systemd, in a version that analyses files.
    let Ok(done) = command.arg(path()).output() else {
        return;
    };
    let text = String::from_utf8_lossy(&done.stdout);
    if text.contains("Overall exposure level") {
        assert!(done.status.success(), "{text}");
    }
}
