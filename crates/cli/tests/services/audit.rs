//! The audit of what people do in guests, as `hvsock audit` shows it, and the guest's own log.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::process::Stdio;

use hvsock_testkit::require;
use serde_json::{Value, json};

use crate::fixture::{BOX, Fixture};
use crate::util::{Completed, Running, eventually};

/// The records that `hvsock audit ARGUMENTS` prints.
fn audit(fixture: &Fixture, arguments: &[&str]) -> Vec<Value> {
    let mut command = fixture.world.command(["audit", "--json"]);
    let printed = Completed::of(command.args(arguments)).ok();
    serde_json::from_str(&printed).unwrap()
}

/// The records of one claimed action.
fn of_action(fixture: &Fixture, action: &str) -> Vec<Value> {
    audit(fixture, &["--action", action])
}

/// Waits until the action has a record of its end, and returns its records.
fn until_ended(fixture: &Fixture, action: &str) -> Vec<Value> {
    let mut records = Vec::new();
    eventually("the end is recorded", || {
        records = of_action(fixture, action);
        records.iter().any(|one| one["action"] == "disconnect")
    });
    records
}

#[test]
fn a_command_in_a_guest_is_recorded_with_who_ran_it_its_command_line_and_its_end() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    let env = [
        "exec",
        "-e",
        "TOKEN=secret-value",
        BOX,
        "--",
        "sh",
        "-c",
        "exit 3",
    ];
    assert_eq!(fixture.run(env).code, Some(3));
    let records = until_ended(&fixture, "exec");
    let [began, ended] = records.as_slice() else {
        panic!("{records:#?}");
    };
    let actor = &began["actor"];
    assert_eq!(actor["uid"], json!(rustix::process::geteuid().as_raw()));
    assert!(actor["user"].is_string(), "{began:#}");
    assert!(actor["pid"].as_u64().unwrap() > 1, "{began:#}");
    let program = actor["program"].as_str().unwrap();
    assert!(program.ends_with("hvsock"), "{program}");
    assert_eq!(began["category"], "guest");
    assert_eq!(
        (&began["action"], &began["outcome"]),
        (&json!("connect"), &json!("allowed"))
    );
    assert_eq!(
        (&began["target"], &began["service"]),
        (&json!(BOX), &json!("hvsock session"))
    );
    assert_eq!(began["claim"]["detail"], "sh -c 'exit 3'");
    assert_eq!(ended["outcome"], "ended");
    assert_eq!(ended["connection"], began["connection"]);
    assert_eq!(ended["claim"]["result"], "exit status 3");
    assert!(
        ended["ended"]["bytes_received"].as_u64().unwrap() > 0,
        "{ended:#}"
    );
    // Values of variables are secrets.
    assert!(
        !format!("{records:?}").contains("secret-value"),
        "{records:#?}"
    );
    let table = fixture.world.ok(["audit", "--partition", BOX, "-n", "2"]);
    assert!(table.contains("says: exec sh -c 'exit 3'"), "{table}");
    assert!(table.contains("says: exit status 3"), "{table}");
}

#[test]
fn a_refused_command_is_recorded_with_what_was_attempted_and_by_whom() {
    // Only root can run a command as another user.
    let Some(()) = require::root() else { return };
    let Some(fixture) = Fixture::new() else {
        return;
    };
    // As another user of this machine, whom the built-in rules do not allow.
    let mut command = fixture
        .world
        .command(["exec", BOX, "--", "cat", "/etc/shadow"]);
    let done = Completed::of(command.current_dir("/").uid(65534).gid(65534));
    assert_ne!(done.code, Some(0));
    let records = of_action(&fixture, "exec");
    let [refused] = records.as_slice() else {
        panic!("{records:#?}");
    };
    assert_eq!(refused["outcome"], "refused");
    assert_eq!(refused["actor"]["uid"], 65534);
    assert_eq!(refused["claim"]["detail"], "cat /etc/shadow");
    assert_eq!(
        (&refused["target"], &refused["service"]),
        (&json!(BOX), &json!("hvsock session"))
    );
    assert!(
        refused["reason"].as_str().unwrap().contains("denied"),
        "{refused:#}"
    );
    assert_eq!(audit(&fixture, &["--user", "65534", "--failed"]), records);
    // The user sees this record and no other.
    let mut own = fixture.world.command(["audit", "--json"]);
    let own = Completed::of(own.current_dir("/").uid(65534).gid(65534)).ok();
    assert_eq!(serde_json::from_str::<Vec<Value>>(&own).unwrap(), records);
}

#[test]
fn copies_values_forwards_and_shells_are_recorded_with_paths_keys_and_addresses() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    let file = fixture.world.dir().join("a file");
    fs::write(&file, "text").unwrap();
    let source = file.to_str().unwrap();
    let destination = format!("{}/copied", fixture.world.dir().display());
    fixture
        .world
        .ok(["cp", source, &format!("{BOX}:{destination}")]);
    let mut records = Vec::new();
    eventually("the copy's result is recorded", || {
        records = of_action(&fixture, "cp");
        records.iter().any(|one| one["claim"]["result"].is_string())
    });
    let detail = format!("'{source}' {BOX}:{destination}");
    assert_eq!(records[0]["claim"]["detail"], detail);
    let result = records
        .iter()
        .find_map(|one| one["claim"]["result"].as_str());
    assert_eq!(result, Some("1 files, 4 bytes"));

    fixture
        .world
        .ok(["kvp", "set", BOX, "password", "secret-value"]);
    let set = of_action(&fixture, "kvp_set");
    let own = set.iter().find(|one| one["claim"]["detail"] == "password");
    assert!(own.is_some(), "{set:#?}");
    assert!(!format!("{set:?}").contains("secret-value"), "{set:#?}");

    let port = format!("{BOX}:tcp:localhost:9");
    let mut forward = fixture.world.command(["forward", "tcp:0", &port]);
    let mut forward = Running::start(forward.stdout(Stdio::piped()));
    let printed = forward.line();
    let records = of_action(&fixture, "forward");
    assert_eq!(
        records[0]["claim"]["detail"],
        format!("tcp:localhost:0 {port}"),
        "{printed}"
    );
    drop(forward);

    let mut shell = fixture.world.command(["shell", BOX]);
    assert_eq!(Completed::of(shell.stdin(Stdio::null())).code, Some(0));
    let records = until_ended(&fixture, "shell");
    assert_eq!(records[0]["outcome"], "allowed");
}

#[test]
fn a_command_leaves_a_trace_in_the_guest_also_when_its_host_disconnects() {
    let Some(mut fixture) = Fixture::new() else {
        return;
    };
    // Without a journal the agent's log is its standard error.
    if std::path::Path::new("/run/systemd/journal/socket").exists() {
        return;
    }
    fixture.kill_agent();
    let mut command = fixture.agent_command();
    let mut agent = Running::start(command.stderr(Stdio::piped()));
    let mut log = BufReader::new(agent.child.stderr.take().unwrap()).lines();
    let mut next = |what: &str| loop {
        let line = log.next().expect("the log has not ended").unwrap();
        if line.contains("audit") && line.contains(what) {
            return line;
        }
    };
    crate::fixture::wait_until_offered(&fixture.world, BOX);
    fixture.world.ok(["exec", BOX, "--", "echo", "a b"]);
    let started = next("started");
    let user = rustix::process::geteuid().as_raw();
    for part in [
        "action=\"exec\"",
        "detail=\"echo 'a b'\"",
        &format!("(uid {user}), process "),
        "connection=",
        "pid=",
    ] {
        assert!(started.contains(part), "{part}: {started}");
    }
    let ended = next("ended");
    assert!(ended.contains("result=\"exit status 0\""), "{ended}");
    let mut running =
        Running::start(&mut fixture.world.command(["exec", BOX, "--", "sleep", "60"]));
    next("started");
    running.kill();
    let ended = next("ended");
    assert!(ended.contains("the host ended the session"), "{ended}");
}

#[test]
fn the_audit_can_be_followed_and_nothing_is_printed_twice() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    fixture.world.ok(["exec", BOX, "--", "true"]);
    until_ended(&fixture, "exec");
    let arguments = ["-q", "audit", "--follow", "--json", "--action", "exec"];
    let mut command = fixture.world.command(arguments);
    let mut follower = Running::start(command.stdout(Stdio::piped()));
    let mut next = || -> Value { serde_json::from_str(&follower.line()).unwrap() };
    let first = [next(), next()];
    fixture.world.ok(["exec", BOX, "--", "true"]);
    let second = [next(), next()];
    let of = |records: &[Value; 2]| {
        records
            .each_ref()
            .map(|one| one["action"].as_str().unwrap().to_owned())
    };
    assert_eq!(of(&first), ["connect", "disconnect"]);
    assert_eq!(of(&second), ["connect", "disconnect"]);
    let numbers = first
        .iter()
        .chain(&second)
        .map(|one| one["number"].as_u64().unwrap());
    let numbers: Vec<u64> = numbers.collect();
    assert!(numbers.is_sorted_by(|a, b| a < b), "{numbers:?}");
}
