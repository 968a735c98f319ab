//! Leases of other processes.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use hvsock_registry::key_store::KeyError;

use super::*;

const CHILD: &str = "HVSOCK_TEST_LEASE";

/// Not a test: the child process of the other tests.
#[test]
fn child_process_holding_a_lease() {
    let Ok(arguments) = std::env::var(CHILD) else {
        return;
    };
    let mut arguments = arguments.split('|');
    let mut next = || arguments.next().unwrap().to_owned();
    let store = KeyStore::open_at(&next(), &next()).unwrap();
    let id: ServiceId = next().parse().unwrap();
    let service = Registration::new(id, ElementName::new(next()).unwrap());
    let lease = store.lease(&service).unwrap();
    lease.check().unwrap();
    println!("\nleased");
    // Blocks until the parent kills this process or closes its stdin.
    let _ = std::io::stdin().read_line(&mut String::new());
    drop(lease);
    println!("\nended");
}

fn take_lease(scratch: &Scratch, service: &Registration) -> Child {
    let (services, disabled) = (scratch.services(), scratch.disabled());
    let arguments = format!("{services}|{disabled}|{}|{}", service.id, service.name);
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "leases::child_process_holding_a_lease",
            "--nocapture",
        ])
        .env(CHILD, arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    expect(&mut child, "leased");
    child
}

fn expect(child: &mut Child, line: &str) {
    let stdout = child.stdout.as_mut().unwrap();
    // The child prints only the awaited lines, so no output is lost in the buffer.
    let mut lines = BufReader::new(stdout).lines().map(Result::unwrap);
    assert!(
        lines.any(|one| one == line),
        "the child did not print {line}"
    );
}

#[test]
fn a_lease_is_listed_only_while_its_process_runs() {
    let scratch = Scratch::new();
    let service = new_service("Leased");
    let mut child = take_lease(&scratch, &service);
    let listing = scratch.read();
    let listed = listing.registry.get(service.id).unwrap();
    assert!(listed.lease);
    let taken = scratch.store().put(&new_service("LEASED"));
    assert!(matches!(taken, Err(KeyError::Clash(_))), "{taken:?}");
    let off = scratch.store().set_enabled(service.id, false).unwrap_err();
    assert!(off.to_string().contains(&child.id().to_string()), "{off}");

    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(names(&scratch.read()), [""; 0]);
    assert_eq!(scratch.keys()[0].len(), 1, "Windows still has the key");
    // The name and the id are free again, and no value of the lease is left.
    scratch.store().put(&service).unwrap();
    assert_eq!(scratch.read().registry.get(service.id), Some(&service));
    let key = open(&format!(r"{}\{}", scratch.services(), service.id)).unwrap();
    assert!(key.get_value("LeaseProcess").is_err());
}

#[test]
fn a_process_that_exits_normally_unregisters_its_lease() {
    let scratch = Scratch::new();
    let mut child = take_lease(&scratch, &new_service("Leased"));
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
    assert!(scratch.keys().iter().all(Vec::is_empty));
}

#[test]
fn a_removed_lease_is_lost_for_its_holder() {
    let scratch = Scratch::new();
    let service = new_service("Leased");
    let lease = scratch.store().lease(&service).unwrap();
    lease.check().unwrap();
    scratch.store().remove(service.id).unwrap();
    assert!(matches!(lease.check(), Err(KeyError::NotRegistered(_))));
    scratch.store().put(&service).unwrap();
    drop(lease);
    assert_eq!(
        names(&scratch.read()),
        ["Leased"],
        "the drop removed another registration"
    );
}
