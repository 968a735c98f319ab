//! `hvsock container`, and `hvsock` in containers.

use std::fs;
use std::process::Stdio;

use serde_json::{Value, json};

use crate::util::{Completed, DEMO, Running, World, folder, hvsock, in_container};

#[test]
fn the_mounts_of_a_broker_with_a_relative_folder_are_absolute() {
    let folder = folder();
    let command = |arguments: &[&str]| {
        let mut command = hvsock();
        command.current_dir(folder.path()).args(["--dir", "here"]);
        command.args(arguments).stdout(Stdio::piped());
        command
    };
    let mut broker = Running::start(&mut command(&["broker", "--name", "machine"]));
    let path = folder.path().join("here").display().to_string();
    let ready = broker.line();
    assert!(ready.contains(&format!("endpoint {path}/")), "{ready}");
    let added = Completed::of(&mut command(&["container", "add", "web"])).ok();
    let mount = format!("--mount type=bind,src={path}/containers/web,");
    assert!(added.starts_with(&mount), "{added}");
}

#[test]
fn add_prints_the_mount_option_and_the_oci_mounts_entry() {
    let world = World::new();
    let done = world.run(["container", "add", "web", "--group", "front"]);
    assert!(
        done.stderr.contains("`web` is a partition"),
        "{}",
        done.stderr
    );
    let text = done.ok();
    let lines: Vec<_> = text.lines().collect();
    let folder = world.dir().join("containers/web");
    let folder = folder.to_str().unwrap();
    assert_eq!(
        lines[0],
        format!("--mount type=bind,src={folder},dst=/run/hvsock,readonly")
    );
    let entry: Value = serde_json::from_str(lines[1]).unwrap();
    assert_eq!(
        (&entry["source"], &entry["destination"]),
        (&json!(folder), &json!("/run/hvsock"))
    );
    assert_eq!((&entry["type"], lines.len()), (&json!("bind"), 2));
    assert!(fs::exists(world.dir().join("containers/web/endpoint")).unwrap());
    let shown = world.json(["container", "show", "web", "--json"]);
    assert_eq!((&shown["mount"], &shown["oci"]), (&json!(lines[0]), &entry));
    assert_eq!(
        (&shown["state"], &shown["groups"]),
        (&json!("running"), &json!(["front"]))
    );
}

#[test]
fn a_container_is_shown_listed_paused_resumed_and_removed() {
    let world = World::new();
    assert!(
        world
            .ok(["container", "list"])
            .contains("hvsock container add")
    );
    world.container("web");
    let id = "0b2f1f0e-0000-4000-8000-000000000001";
    world.ok(["container", "add", "db", "--id", id]);
    assert_eq!(world.ok(["container", "id", "db"]).trim(), id);
    // The UUIDv5 of "WEB" in UTF-16, in the namespace that Windows uses for containers.
    let derived = world.ok(["container", "id", "web"]);
    assert_eq!(derived.trim(), "be9804d7-7c91-5639-837f-c16d7c223c2b");
    let list = world.json(["container", "list", "--json"]);
    assert_eq!(
        list.as_array().unwrap().len(),
        2,
        "the host is listed as a container"
    );
    let table = world.ok(["container", "list"]);
    assert!(table.lines().nth(1).unwrap().starts_with("db"), "{table}");
    for (verb, state) in [("pause", "paused"), ("resume", "running")] {
        let done = world.run(["container", verb, "web"]);
        assert!(done.stderr.contains(state), "{done:?}");
        assert!(world.ok(["container", "show", "web"]).contains(state));
    }
    world.ok(["container", "groups", "web", "front", "back"]);
    assert!(
        world
            .ok(["container", "show", "web"])
            .contains("front, back")
    );
    world.ok(["container", "groups", "web"]);
    assert_eq!(
        world.json(["container", "show", "web", "--json"])["groups"],
        json!([])
    );
    world.ok(["container", "remove", "web"]);
    let error = world.run(["container", "show", "web"]).failed();
    assert!(error.contains("web"), "{error}");
    world.run(["container", "add", "DB"]).failed();
    world.run(["container", "add", "a/b"]).usage_error();
    world.run(["container", "add", "parent"]).usage_error();
}

#[test]
fn a_container_reaches_its_host_as_parent_and_is_reached_by_name_or_id() {
    let world = World::new();
    world.register(DEMO);
    let web = world.container("web");
    let _host = world.listen([DEMO, "--from", "children", "--keep", "--", "cat"]);
    let mut connect = in_container(&web, ["connect", "parent", DEMO]);
    assert_eq!(
        Completed::with_input(&mut connect, b"to the host\n").ok(),
        "to the host\n"
    );

    let mut listen = in_container(
        &web,
        ["listen", DEMO, "--from", "parent", "--keep", "--", "cat"],
    );
    let _web = world.listening(&mut listen);
    let id = world.ok(["container", "id", "web"]);
    for target in ["web", "WEB", id.trim()] {
        let mut connect = world.command(["connect", target, DEMO]);
        assert_eq!(
            Completed::with_input(&mut connect, b"to web\n").ok(),
            "to web\n"
        );
    }
}

#[test]
fn siblings_reach_each_other_only_in_a_common_group() {
    let world = World::new();
    world.register(DEMO);
    let (web, db) = (world.container("web"), world.container("db"));
    world.ok(["container", "groups", "db", "back"]);
    let mut listen = in_container(&db, ["-q", "listen", DEMO, "--keep", "--", "cat"]);
    let _db = world.listening(&mut listen);
    let id = world.ok(["container", "id", "db"]);
    let connect = || in_container(&web, ["connect", id.trim(), DEMO]);
    let error = Completed::of(&mut connect()).failed();
    let reason = "no partition that can be reached from here has this id";
    assert!(error.contains(reason), "{error}");
    world.ok(["container", "groups", "web", "back"]);
    assert_eq!(Completed::with_input(&mut connect(), b"hi").ok(), "hi");
}

#[test]
fn a_listeners_command_gets_the_peer_in_its_environment() {
    let world = World::new();
    world.register(DEMO);
    let web = world.container("web");
    let script = "echo $HVSOCK_PEER_PARTITION $HVSOCK_PEER_UID $HVSOCK_PEER_PID $HVSOCK_SERVICE; \
        echo $HVSOCK_PEER_VM_ID $HVSOCK_CONNECTION";
    let _host = world.listen([DEMO, "--from", "web", "--", "sh", "-c", script]);
    let id = world.ok(["container", "id", "web"]);
    let text = Completed::of(&mut in_container(&web, ["connect", "parent", DEMO])).ok();
    let uid = rustix::process::geteuid().as_raw();
    let lines: Vec<_> = text.lines().collect();
    assert!(lines[0].starts_with(&format!("web {uid} ")), "{text}");
    assert!(lines[0].ends_with(DEMO), "{text}");
    assert!(lines[1].starts_with(id.trim()), "{text}");
}

#[test]
fn a_containers_folder_has_no_control_socket() {
    let world = World::new();
    let web = world.container("web");
    let folder = web.parent().unwrap();
    let files: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(files, ["endpoint"]);
}

#[test]
fn containers_and_services_survive_a_killed_broker() {
    let mut world = World::new();
    let id = world.register(DEMO);
    world.ok(["container", "add", "web", "--group", "front"]);
    world.broker().kill();
    world.start_broker();
    assert_eq!(
        world.json(["service", "show", DEMO, "--json"])["id"],
        json!(id)
    );
    assert_eq!(
        world.json(["container", "show", "web", "--json"])["groups"],
        json!(["front"])
    );
}
