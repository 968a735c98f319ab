//! `hvsock vm integration`: which integration services a guest has, and their switches.

use serde_json::Value;

use crate::scene::{BOX, Scene};
use crate::util::{Done, World, eventually, is_root};

fn row(world: &World, key: &str) -> Value {
    let all = world.json(["container", "integration", BOX, "--json"]);
    let mut all = all.as_array().unwrap().iter();
    all.find(|row| row["key"] == key).unwrap().clone()
}

#[test]
fn services_of_one_guest_are_listed_and_switched_by_short_words() {
    let scene = Scene::new();
    let world = &scene.world;
    eventually("the agent says that it offers kvp", || {
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
    let refused = scene.run(["kvp", "list", BOX]).failed();
    assert!(refused.contains("disabled"), "{refused}");
    eventually("the agent says that it cannot offer it", || {
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
    eventually("it is offered again", || {
        scene.run(["kvp", "list", BOX]).code == Some(0)
    });
    assert_eq!(row(world, "freeze")["usable"], false);
    let wrong = scene.run(["container", "integration", BOX, "disable", "smoke"]);
    assert_eq!(wrong.code, Some(2));
    assert!(wrong.stderr.contains("session, copy"), "{}", wrong.stderr);
}

#[test]
fn a_user_without_the_right_is_told_which_rule_keeps_him_out() {
    use std::os::unix::process::CommandExt as _;

    if !is_root() {
        return;
    }
    let scene = Scene::new();
    let other = |arguments: &[&str]| {
        let mut command = scene.world.command(arguments);
        Done::of(command.uid(65534).gid(65534)).failed()
    };
    for arguments in [
        ["kvp", "list", BOX].as_slice(),
        &["kvp", "set", BOX, "a", "b"],
        &["vm", "freeze", BOX],
        &["vm", "thaw", BOX],
    ] {
        let refused = other(arguments);
        assert!(refused.contains("connect.users = []"), "{refused}");
    }
    let refused = other(&["container", "integration", BOX, "disable", "kvp"]);
    assert!(refused.contains("only root may change this"), "{refused}");
    assert_eq!(row(&scene.world, "kvp")["usable"], true);
    // Looking takes no privilege.
    let mut command = scene.world.command(["container", "integration", BOX]);
    assert_eq!(Done::of(command.uid(65534).gid(65534)).code, Some(0));
}
