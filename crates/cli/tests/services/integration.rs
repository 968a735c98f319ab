//! `hvsock vm integration`: the status of a guest's integration services, and commands to enable and disable
//! them.

use hvsock_testkit::require;
use serde_json::Value;

use crate::fixture::{BOX, Fixture};
use crate::util::{Completed, World, eventually};

fn row(world: &World, key: &str) -> Value {
    let all = world.json(["container", "integration", BOX, "--json"]);
    let mut all = all.as_array().unwrap().iter();
    all.find(|row| row["key"] == key).unwrap().clone()
}

#[test]
fn the_services_of_one_guest_are_listed_enabled_and_disabled_by_short_names() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    let world = &fixture.world;
    eventually("the agent reports that it offers kvp", || {
        row(world, "kvp")["offered"] == true
    });
    let kvp = row(world, "kvp");
    assert_eq!(kvp["usable"], true);
    assert_eq!(kvp["enabled_for_guest"], Value::Null);
    assert_eq!(row(world, "heartbeat")["offered_by"], "host");
    assert_eq!(row(world, "heartbeat")["offered"], true);

    world.ok(["container", "integration", BOX, "disable", "kvp", "Freeze"]);
    let kvp = row(world, "kvp");
    assert_eq!([&kvp["enabled"], &kvp["usable"]], [true, false]);
    let refused = fixture.run(["kvp", "list", BOX]).failed();
    assert!(refused.contains("disabled"), "{refused}");
    eventually("the agent reports that it cannot offer kvp", || {
        let kvp = row(world, "kvp");
        kvp["offered"] == false && kvp["problem"].is_string()
    });
    let text = world.ok(["container", "integration", BOX]);
    let line = text
        .lines()
        .find(|line| line.starts_with("freeze"))
        .unwrap();
    assert!(line.contains("disabled"), "{text}");

    world.ok(["container", "integration", BOX, "enable", "kvp"]);
    eventually("kvp is offered again", || {
        fixture.run(["kvp", "list", BOX]).code == Some(0)
    });
    assert_eq!(row(world, "freeze")["usable"], false);
    let wrong = fixture.run(["container", "integration", BOX, "disable", "smoke"]);
    assert_eq!(wrong.code, Some(2));
    assert!(wrong.stderr.contains("session, copy"), "{}", wrong.stderr);
}

#[test]
fn a_user_without_access_gets_the_rule_that_refuses_it() {
    use std::os::unix::process::CommandExt as _;

    // Only root can run a command as another user.
    let Some(()) = require::root() else { return };
    let Some(fixture) = Fixture::new() else {
        return;
    };
    let other_user = |arguments: &[&str]| {
        let mut command = fixture.world.command(arguments);
        Completed::of(command.uid(65534).gid(65534)).failed()
    };
    for arguments in [
        ["kvp", "list", BOX].as_slice(),
        &["kvp", "set", BOX, "a", "b"],
        &["vm", "freeze", BOX],
        &["vm", "thaw", BOX],
    ] {
        let refused = other_user(arguments);
        assert!(refused.contains("connect.users = []"), "{refused}");
    }
    let refused = other_user(&["container", "integration", BOX, "disable", "kvp"]);
    assert!(refused.contains("only root may change this"), "{refused}");
    assert_eq!(row(&fixture.world, "kvp")["usable"], true);
    // Listing needs no privilege.
    let mut command = fixture.world.command(["container", "integration", BOX]);
    assert_eq!(Completed::of(command.uid(65534).gid(65534)).code, Some(0));
}
