//! `hvsock container`, and `hvsock` in containers.

use std::fs;
use std::process::{Command, Stdio};

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
    let mount = format!("--mount=type=bind,src={path}/containers/web,");
    assert!(added.starts_with(&mount), "{added}");
}

#[test]
fn add_prints_one_option_and_show_prints_every_format() {
    let world = World::new();
    let done = world.run(["container", "add", "web", "--group", "front"]);
    assert!(
        done.stderr.contains("`web` is a partition"),
        "{}",
        done.stderr
    );
    let option = done.ok();
    let folder = world.dir().join("containers/web");
    let folder = folder.to_str().unwrap();
    let mount = format!("--mount=type=bind,src={folder},dst=/run/hvsock,readonly");
    assert_eq!(option, format!("{mount}\n"));
    let entry = world.ok(["container", "show", "web", "--mount", "--format", "oci"]);
    let entry: Value = serde_json::from_str(&entry).unwrap();
    assert_eq!(
        (&entry["source"], &entry["destination"]),
        (&json!(folder), &json!("/run/hvsock"))
    );
    let options = json!(["bind", "ro", "nosuid", "nodev", "noexec"]);
    assert_eq!(
        (&entry["type"], &entry["options"]),
        (&json!("bind"), &options)
    );
    assert!(fs::exists(world.dir().join("containers/web/endpoint")).unwrap());
    let shown = world.json(["container", "show", "web", "--json"]);
    assert_eq!((&shown["mount"], &shown["oci"]), (&json!(mount), &entry));
    let file = world.dir().join("cdi/hvsock.dev-endpoint_web.json");
    let device = json!({"device": "hvsock.dev/endpoint=web", "file": file});
    assert_eq!(shown["container"]["cdi"], device);
    let text = world.ok(["container", "show", "web"]);
    assert!(
        text.contains("device        hvsock.dev/endpoint=web\n"),
        "{text}"
    );
    for (format, want) in [
        ("podman", mount.clone()),
        ("docker", mount),
        ("compose", format!("source: \"{folder}\"\n")),
        ("kubernetes", format!("path: \"{folder}\"\n")),
    ] {
        let printed = world.ok(["container", "show", "web", "--mount", "--format", format]);
        assert!(printed.contains(&want), "{format}: {printed}");
        let added = ["container", "add", "web", "--if-absent", "--group", "front"];
        let added = world.ok(added.into_iter().chain(["--format", format]));
        assert_eq!(added, printed);
    }
    assert_eq!(
        (&shown["state"], &shown["groups"]),
        (&json!("unknown"), &json!(["front"]))
    );
}

/// Runs `line` in a shell in which `hvsock` uses the world's broker, and `engine` refuses options that it does not
/// have, as podman and docker do.
fn shell(world: &World, line: &str) -> Completed {
    const ENGINE: &str = r#"
hvsock() { "$HVSOCK" -q "$@"; }
engine() {
    for word; do
        case $word in
            --mount=type=bind,src=/*,dst=/run/hvsock,readonly | --device=hvsock.dev/endpoint=*) mounted=$word;;
            -*) echo "unknown flag: $word"; return 125;;
        esac
    done
    echo "started with ${mounted-no mount}"
}
"#;
    let mut command = Command::new("sh");
    command.args(["-c", &format!("{ENGINE}{line}")]);
    command.env("HVSOCK", env!("CARGO_BIN_EXE_hvsock"));
    command
        .env("HVSOCK_DIR", world.dir())
        .env_remove("HVSOCK_ENDPOINT");
    Completed::of(&mut command)
}

#[test]
fn an_engine_starts_nothing_without_the_mount_if_the_inner_command_fails() {
    let world = World::new();
    let first = shell(&world, "engine $(hvsock container add web) image").ok();
    assert!(
        first.starts_with("started with --mount=type=bind,src=/"),
        "{first}"
    );
    // With the same settings an existing container is as good as a new one.
    let second = shell(
        &world,
        "engine $(hvsock container add web --if-absent) image",
    )
    .ok();
    let third = shell(&world, "engine $(hvsock container show web --mount) image").ok();
    assert_eq!((&second, &third), (&first, &first));
    let add = "--hvsock-container-add-failed";
    let show = "--hvsock-container-show-failed";
    for (inner, option) in [
        ("container add web", add),
        ("container add web --if-absent --group other", add),
        ("container add web --if-absent --no-cdi", add),
        ("container add web/box", add),
        ("container add parent", add),
        ("container add", add),
        ("container add web --no-such-option", add),
        ("--dir /nowhere container add db", add),
        ("container show db --mount", show),
        ("container show --mount", show),
        ("container show web --mount --format paper", show),
        ("--dir /nowhere container show web --mount", show),
    ] {
        let done = shell(&world, &format!("engine $(hvsock {inner}) image"));
        assert_eq!(
            done.stdout,
            format!("unknown flag: {option}\n"),
            "{inner}: {done:?}"
        );
        assert!(done.stderr.contains("error:"), "{inner}: {done:?}");
        assert_eq!(done.code, Some(125));
    }
    // Programs that read another format get nothing.
    for rest in ["--json", "--format oci", "--format compose"] {
        assert_eq!(
            shell(&world, &format!("hvsock container add web {rest}")).stdout,
            ""
        );
    }
    let taken = world.run(["container", "add", "web"]);
    assert!(
        taken.stderr.contains("container add web --if-absent"),
        "{taken:?}"
    );
}

#[test]
fn a_folder_that_no_option_can_name_is_refused_and_printed_in_other_formats() {
    let folder = folder();
    let odd = folder.path().join("a b,\"c\"$d");
    let command = |arguments: &[&str]| {
        let mut command = hvsock();
        command.arg("--dir").arg(&odd).args(arguments);
        command.stdout(Stdio::piped());
        command
    };
    let mut broker = Running::start(&mut command(&["broker", "--name", "machine"]));
    broker.line();
    let added = Completed::of(&mut command(&["container", "add", "web"]));
    assert_eq!(added.stdout, "--hvsock-container-add-failed\n", "{added:?}");
    assert!(
        added.stderr.contains("would read ` ` as something else"),
        "{added:?}"
    );
    assert!(added.stderr.contains("--cdi-spec-dir '"), "{added:?}");
    let oci = command(&["container", "show", "web", "--mount", "--format", "oci"]);
    let oci: Value = serde_json::from_str(&Completed::of(&mut { oci }).ok()).unwrap();
    let source = odd.join("containers/web");
    assert_eq!(oci["source"], source.to_str().unwrap());
    let compose = command(&["container", "show", "web", "--mount", "--format", "compose"]);
    let compose = Completed::of(&mut { compose }).ok();
    assert!(
        compose.contains("a b,\\\"c\\\"$$d/containers/web\"\n"),
        "{compose}"
    );
    // With a folder that every engine reads, the path is in the device only.
    let device = odd.join("cdi/hvsock.dev-endpoint_web.json");
    let device: Value = serde_json::from_slice(&fs::read(device).unwrap()).unwrap();
    let mount = &device["devices"][0]["containerEdits"]["mounts"][0];
    assert_eq!(mount["hostPath"], source.to_str().unwrap());
}

#[test]
fn a_broker_writes_devices_where_it_is_told_to_or_none() {
    let folder = folder();
    for (number, (options, want)) in [
        (&["--cdi-dir", "there"] as &[&str], Some("there")),
        (&["--no-cdi"], None),
    ]
    .into_iter()
    .enumerate()
    {
        let own = folder.path().join(number.to_string());
        let command = |arguments: &[&str]| {
            let mut command = hvsock();
            command
                .current_dir(folder.path())
                .arg("--dir")
                .arg(&own)
                .args(arguments);
            command.stdout(Stdio::piped());
            command
        };
        let arguments = [&["broker", "--name", "machine"], options].concat();
        let mut broker = Running::start(&mut command(&arguments));
        broker.line();
        let added = Completed::of(&mut command(&["container", "add", "web", "--json"])).ok();
        let added: Value = serde_json::from_str(&added).unwrap();
        let path = |dir| folder.path().join(dir).join("hvsock.dev-endpoint_web.json");
        let file = &added["container"]["cdi"]["file"];
        assert_eq!(
            file.as_str(),
            want.map(path).as_deref().and_then(|path| path.to_str())
        );
        assert!(!own.join("cdi").exists());
    }
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
    for (verb, told, state) in [
        ("pause", "paused", "paused"),
        ("resume", "resumed", "unknown"),
    ] {
        let done = world.run(["container", verb, "web"]);
        assert!(done.stderr.contains(told), "{done:?}");
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
    world.run(["container", "add", "DB", "--json"]).failed();
    world.run(["container", "add", "a/b", "--json"]).failed();
    world
        .run(["container", "add", "parent", "--json"])
        .usage_error();
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
    let mut files: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    files.sort();
    assert_eq!(files, ["endpoint", "text"]);
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

#[test]
fn if_absent_makes_an_endpoint_again_that_somebody_has_removed() {
    let world = World::new();
    world.ok(["container", "add", "web"]);
    let folder = world.dir().join("containers/web");
    let endpoint = folder.join("endpoint");
    let reaches = || {
        let mut command = in_container(&endpoint, ["connect", "parent", "9999"]);
        Completed::of(&mut command)
            .failed()
            .contains("is not registered")
    };
    let again = || world.ok(["container", "add", "web", "--if-absent"]);
    fs::remove_file(&endpoint).unwrap();
    again();
    assert!(reaches());
    fs::remove_dir_all(&folder).unwrap();
    again();
    assert!(reaches());
    // What else is there stays, and is an error.
    fs::remove_file(&endpoint).unwrap();
    fs::create_dir(&endpoint).unwrap();
    let add = ["container", "add", "web", "--if-absent"];
    let refused = world.run(add);
    assert_eq!(refused.code, Some(1));
    let error = refused.stderr;
    assert!(error.contains("is not a socket"), "{error}");
}
