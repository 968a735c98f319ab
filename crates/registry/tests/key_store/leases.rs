//! Registrations that end with their process.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use hvsock_registry::key_store::KeyError;

use super::*;

const CHILD: &str = "HVSOCK_TEST_LEASE";

/// Not a test of its own: what the child of the others does.
#[test]
fn child_that_takes_a_lease() {
    let Ok(told) = std::env::var(CHILD) else {
        return;
    };
    let mut told = told.split('|');
    let mut next = || told.next().unwrap().to_owned();
    let store = KeyStore::open_at(&next(), &next()).unwrap();
    let id: ServiceId = next().parse().unwrap();
    let service = Registration::new(id, ElementName::new(next()).unwrap());
    let lease = store.lease(&service).unwrap();
    lease.check().unwrap();
    println!("\nleased");
    // Until it is killed, or told to end.
    let _ = std::io::stdin().read_line(&mut String::new());
    drop(lease);
    println!("\nended");
}

fn take_lease(scratch: &Scratch, service: &Registration) -> Child {
    let (services, disabled) = (scratch.services(), scratch.disabled());
    let told = format!("{services}|{disabled}|{}|{}", service.id, service.name);
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "leases::child_that_takes_a_lease", "--nocapture"])
        .env(CHILD, told)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    expect(&mut child, "leased");
    child
}

fn expect(child: &mut Child, line: &str) {
    let stdout = child.stdout.as_mut().unwrap();
    // The child writes no more than what is waited for.
    let mut lines = BufReader::new(stdout).lines().map(Result::unwrap);
    assert!(lines.any(|one| one == line), "the child never said {line}");
}

#[test]
fn a_lease_is_listed_while_its_process_lives_and_never_after() {
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
    assert_eq!(
        scratch.keys()[0].len(),
        1,
        "Windows itself does not know yet"
    );
    // Its name and its id are free, and nothing of it is left.
    scratch.store().put(&service).unwrap();
    assert_eq!(scratch.read().registry.get(service.id), Some(&service));
    let key = open(&format!(r"{}\{}", scratch.services(), service.id)).unwrap();
    assert!(key.get_value("LeaseProcess").is_err());
}

#[test]
fn a_lease_is_given_back_by_a_process_that_ends_in_order() {
    let scratch = Scratch::new();
    let mut child = take_lease(&scratch, &new_service("Leased"));
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
    assert!(scratch.keys().iter().all(Vec::is_empty));
}

#[test]
fn a_lease_that_somebody_takes_away_is_gone_for_its_holder() {
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
        "it is somebody else's now"
    );
}
