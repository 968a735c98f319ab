//! Key-value pairs between the host and programs in a guest.

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;

use serde_json::{Value, json};

use crate::fixture::{self, BOX, Fixture};
use crate::util::{Completed, Running, TIMEOUT, World, eventually};

/// The file of a pool of the fixture's agent.
fn pool(fixture: &Fixture, number: u32) -> PathBuf {
    fixture::kvp_dir(&fixture.endpoint).join(format!(".kvp_pool_{number}"))
}

/// A record in Hyper-V's format: a key of 512 bytes and a value of 2048, both padded with zeros.
fn record(key: &str, value: &str) -> Vec<u8> {
    let mut record = vec![0; 2560];
    record[..key.len()].copy_from_slice(key.as_bytes());
    record[512..512 + value.len()].copy_from_slice(value.as_bytes());
    record
}

#[test]
fn pairs_of_the_host_are_in_the_file_that_hyper_v_programs_read() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    fixture.world.ok(["kvp", "set", BOX, "role", "frontend"]);
    fixture.world.ok(["kvp", "set", BOX, "special", "--a b\nc"]);
    let file = fs::read(pool(&fixture, 0)).unwrap();
    let expected = [record("role", "frontend"), record("special", "--a b\nc")];
    assert!(file == expected.concat());
    let got = fixture.world.ok(["kvp", "get", BOX, "special"]);
    assert_eq!(got, "--a b\nc\n");
    fixture.world.ok(["kvp", "unset", BOX, "role", "nothing"]);
    assert!(fs::read(pool(&fixture, 0)).unwrap() == record("special", "--a b\nc"));

    let gone = fixture.run(["kvp", "get", BOX, "role"]);
    assert!(gone.failed().contains("no key `role`"));
}

#[test]
fn pairs_of_a_program_in_the_guest_are_listed_with_the_agents_own() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    fixture.world.ok(["kvp", "set", BOX, "role", "frontend"]);
    let wrote = [record("ready", "yes\x1b[2J"), record("", "no key")];
    fs::write(pool(&fixture, 1), wrote.concat()).unwrap();
    let text = fixture.world.ok(["kvp", "list", BOX]);
    assert!(!text.contains('\x1b'), "{text:?}");
    let listed = fixture.world.json(["kvp", "list", BOX, "--json"]);
    let listed = listed.as_array().unwrap();
    let find = |key: &str| {
        let found = listed.iter().find(|pair| pair["key"] == key);
        found.unwrap_or_else(|| panic!("no {key}: {listed:?}"))
    };
    assert_eq!(find("ready")["pool"], "guest");
    assert_eq!(find("ready")["value"], "yes\x1b[2J");
    assert_eq!(find("role")["pool"], "external");
    let facts = listed.iter().filter(|pair| pair["pool"] == "auto").count();
    assert_eq!(facts, 10);
    let uname = rustix::system::uname();
    let release = uname.release().to_str().unwrap();
    assert_eq!(find("OSBuildNumber")["value"], release);
    let only = fixture
        .world
        .json(["kvp", "list", BOX, "--pool", "guest", "--json"]);
    assert_eq!(only.as_array().unwrap().len(), 1);
}

#[test]
fn a_pair_beyond_the_limits_is_refused_with_the_limit_and_changes_nothing() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    let long = "k".repeat(512);
    let refused = fixture.run(["kvp", "set", BOX, &long, "v"]);
    assert!(refused.failed().contains("the limit is 511"));
    let long = "v".repeat(2048);
    let refused = fixture.run(["kvp", "set", BOX, "k", &long]);
    assert!(refused.failed().contains("the limit is 2047"));
    assert!(fs::read(pool(&fixture, 0)).unwrap_or_default().is_empty());

    let full: Vec<u8> = (0..1024)
        .flat_map(|key| record(&key.to_string(), ""))
        .collect();
    fs::write(pool(&fixture, 0), &full).unwrap();
    let refused = fixture.run(["kvp", "set", BOX, "one more", "v"]);
    assert!(refused.failed().contains("full"));
    // A full pool with the longest pairs fits into one reply.
    let (key, value) = ("k".repeat(507), "v".repeat(2047));
    let full: Vec<u8> = (0..1024)
        .flat_map(|number| record(&format!("{number:04}{key}"), &value))
        .collect();
    fs::write(pool(&fixture, 0), &full).unwrap();
    let listed = fixture
        .world
        .json(["kvp", "list", BOX, "--pool", "external", "--json"]);
    assert_eq!(listed.as_array().unwrap().len(), 1024);

    // Of a file of 10 GiB, only the limit of records is read.
    let file = fs::OpenOptions::new().write(true).open(pool(&fixture, 0));
    file.unwrap().set_len(10 << 30).unwrap();
    let listed = fixture
        .world
        .json(["kvp", "list", BOX, "--pool", "external", "--json"]);
    assert_eq!(listed.as_array().unwrap().len(), 1024);
    let refused = fixture.run(["kvp", "unset", BOX, "0"]);
    assert!(refused.failed().contains("more than 1024 records"));
}

#[test]
fn a_watch_prints_a_snapshot_and_then_changes_by_the_host_and_by_programs() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    fixture.world.ok(["kvp", "set", BOX, "role", "frontend"]);
    let mut command = fixture.world.command(["kvp", "watch", BOX, "--json"]);
    let mut watch = Running::start(command.stdout(Stdio::piped()).stderr(Stdio::piped()));
    let next = |watch: &mut Running| -> Value {
        loop {
            let event: Value = serde_json::from_str(&watch.line()).unwrap();
            // Ignores the facts of agent and host.
            if event["pool"] == "external" || event["pool"] == "guest" {
                return event;
            }
        }
    };
    let event = |pool: &str, key: &str, value: Option<&str>| json!({ "pool": pool, "key": key, "value": value });
    assert_eq!(
        next(&mut watch),
        event("external", "role", Some("frontend"))
    );
    fixture.world.ok(["kvp", "set", BOX, "role", "backend"]);
    assert_eq!(next(&mut watch), event("external", "role", Some("backend")));
    fs::write(pool(&fixture, 1), record("ready", "yes")).unwrap();
    assert_eq!(next(&mut watch), event("guest", "ready", Some("yes")));
    fixture.world.ok(["kvp", "unset", BOX, "role"]);
    assert_eq!(next(&mut watch), event("external", "role", None));
    // Disabling the service ends the watch with the reason.
    fixture.world.ok(["service", "disable", "hvsock kvp"]);
    assert_eq!(watch.end().code(), Some(1));
    let reason = watch.rest_of_stderr();
    assert!(reason.contains("disabled"), "{reason}");
}

#[test]
fn a_guest_gets_its_name_and_id_and_its_shell_reads_and_writes_pairs() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    let fact = |key: &str| fixture.run(["kvp", "get", BOX, key, "--pool", "auto-external"]);
    eventually("the host has set its facts", || {
        fact("VirtualMachineName").stdout.trim() == BOX
    });
    let id = fixture.world.ok(["container", "id", BOX]);
    assert_eq!(fact("VirtualMachineId").stdout, id);

    let agent = |arguments: &[&str]| Completed::of(fixture.agent_command().args(arguments));
    assert_eq!(
        agent(&["kvp", "get", "VirtualMachineName"]).stdout.trim(),
        BOX
    );
    assert_eq!(agent(&["kvp", "set", "ready", "yes"]).code, Some(0));
    assert_eq!(fixture.world.ok(["kvp", "get", BOX, "ready"]), "yes\n");
    fixture.world.ok(["kvp", "set", BOX, "a\tb", "c\x1bd"]);
    let listed = agent(&["kvp", "list"]).stdout;
    assert_eq!(listed, "a\\tb\tc\\u{1b}d\n");
    assert_eq!(agent(&["kvp", "unset", "ready"]).code, Some(0));
    let gone = agent(&["kvp", "get", "ready", "--pool", "guest"]);
    assert!(gone.failed().contains("no key `ready`"));
}

#[test]
fn pairs_are_exchanged_with_a_real_container_and_a_real_guest() {
    let world = World::new();
    let (Some(cage), Some(guest)) = (
        fixture::bundle(&world, "cage"),
        fixture::guest(&world, "web"),
    ) else {
        return;
    };
    let _container = cage.start(&[]).expect("started");
    fixture::wait_until_offered(&world, "cage");
    for name in ["cage", "web"] {
        world.ok(["kvp", "set", name, "role", "frontend"]);
        assert_eq!(world.ok(["kvp", "get", name, "role"]), "frontend\n");
        let machine = world.ok(["kvp", "get", name, "ProcessorArchitecture"]);
        assert_eq!(machine.trim(), std::env::consts::ARCH);
    }
    let file = "/var/lib/hyperv/.kvp_pool_0";
    let size = guest.run(&format!("stat -c %s {file}"), TIMEOUT).unwrap();
    assert_eq!(size.text(), "2560", "{}", size.stderr_text());
    let set = guest
        .run("hvsock-agent kvp set ready yes", TIMEOUT)
        .unwrap();
    assert!(set.success(), "{}", set.stderr_text());
    assert_eq!(world.ok(["kvp", "get", "web", "ready"]), "yes\n");
    assert_eq!(world.run(["kvp", "get", "cage", "ready"]).code, Some(1));
    let name = world.ok(["kvp", "get", "web", "FullyQualifiedDomainName"]);
    assert_eq!(name.trim(), "web");
}

#[test]
fn the_number_of_watches_is_limited_and_an_ended_watch_frees_its_slot() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    fixture.world.ok(["kvp", "set", BOX, "a", "b"]);
    let watch = || {
        let mut command = fixture.world.command(["kvp", "watch", BOX, "a"]);
        Running::start(command.stdout(Stdio::piped()).stderr(Stdio::piped()))
    };
    let mut watches: Vec<Running> = (0..16).map(|_| watch()).collect();
    for watch in &mut watches {
        assert_eq!(watch.line(), "set external a b");
    }
    let mut one_more = watch();
    assert_eq!(one_more.end().code(), Some(1));
    assert!(one_more.rest_of_stderr().contains("16 watches"));
    drop(watches.pop());
    eventually("a slot is free", || watch().line() == "set external a b");
}
