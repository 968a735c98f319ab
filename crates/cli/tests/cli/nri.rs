//! `hvsock nri` against a scripted runtime, which speaks as containerd does (see `hvsock_testkit::nri`).

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use hvsock_testkit::nri::{Plugin, Proto, Runtime};
use hvsock_testkit::wait::eventually;
use serde_json::json;

use crate::util::{Running, World};

fn socket(world: &World) -> PathBuf {
    world.dir().join("nri.sock")
}

/// Starts the plugin with these options.
fn start(world: &World, options: &[&str]) -> Running {
    let mut command = world.command(["nri", "--socket"]);
    command
        .arg(socket(world))
        .args(options)
        .stdout(Stdio::piped());
    Running::start(&mut command)
}

fn request(id: &str, namespace: &str, annotations: &[(&str, &str)]) -> Proto {
    let pod = Proto::new()
        .text(1, "sandbox")
        .text(2, "shop")
        .text(4, namespace);
    let pod = annotations
        .iter()
        .fold(pod, |pod, (key, value)| pod.entry(6, key, value));
    let container = Proto::new()
        .text(1, id)
        .text(2, "sandbox")
        .text(3, "app")
        .varint(4, 1);
    Proto::new().with(1, &pod).with(2, &container)
}

fn create(plugin: &mut Plugin, name: &str) -> Result<Proto, (u64, String)> {
    let annotations = [("hvsock.dev/name", name), ("hvsock.dev/groups", "backend")];
    plugin.call("CreateContainer", &request("c1", "prod", &annotations))
}

fn names(world: &World) -> Vec<String> {
    let list = world.json(["container", "list", "--json"]);
    let names = list.as_array().unwrap().iter();
    names
        .map(|one| one["name"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn a_container_with_the_annotation_is_a_partition_until_its_runtime_removes_it() {
    let world = World::new();
    let runtime = Runtime::listen(&socket(&world));
    let _plugin = start(&world, &["--index", "7"]);
    let mut plugin = runtime.accept();
    assert_eq!(plugin.identity, ("hvsock".to_owned(), "07".to_owned()));
    plugin.call("Synchronize", &Proto::new()).unwrap();
    let created = create(&mut plugin, "{namespace}-{container}").unwrap();
    let adjust = created.message(1);
    let mount = adjust.message(3);
    let folder = world.dir().join("containers/prod-app");
    assert_eq!(
        (mount.string(1).as_str(), mount.string(3).as_str()),
        ("/run/hvsock", folder.to_str().unwrap())
    );
    let shown = world.json(["container", "show", "prod-app", "--json"]);
    assert_eq!(
        (&shown["groups"], &shown["container"]["ephemeral"]),
        (&json!(["backend"]), &json!(true))
    );
    assert_eq!(shown["container"]["cdi"], json!(null));
    // The hooks are this program's, with this broker.
    for (field, verb) in [(2, "create-runtime"), (6, "poststop")] {
        let hook = adjust.message(5).message(field);
        assert_eq!(hook.string(1), env!("CARGO_BIN_EXE_hvsock"));
        let args = hook.strings(2);
        let dir = world.dir().display().to_string();
        assert_eq!(
            args[1..],
            ["--dir", &dir, "oci-hook", verb, "--name", "prod-app"]
        );
    }
    // It was never started, and is removed.
    let annotations = [("hvsock.dev/name", "prod-app")];
    plugin
        .call("RemoveContainer", &request("c1", "prod", &annotations))
        .unwrap();
    assert!(names(&world).is_empty());
    // One that is to stay stays.
    let kept = [
        ("hvsock.dev/name", "kept"),
        ("hvsock.dev/ephemeral", "false"),
    ];
    plugin
        .call("CreateContainer", &request("c2", "prod", &kept))
        .unwrap();
    plugin
        .call("RemoveContainer", &request("c2", "prod", &kept))
        .unwrap();
    assert_eq!(names(&world), ["kept"]);
    let (_, again) = plugin
        .call("CreateContainer", &request("c3", "prod", &kept))
        .unwrap_err();
    assert!(again.contains("kept was added by an operator"), "{again}");
}

#[test]
fn an_annotation_chooses_only_what_the_plugins_options_allow() {
    let world = World::new();
    world.container("web");
    let runtime = Runtime::listen(&socket(&world));
    let options = ["--namespace", "prod", "--prefix", "w"];
    let plugin = start(&world, &options);
    let mut runtime_side = runtime.accept();
    for (namespace, name, want) in [
        ("prod", "web", "hvsock: web was added by an operator"),
        (
            "test",
            "wall",
            "hvsock: Pods of the namespace test get no endpoints here",
        ),
        (
            "prod",
            "db",
            "hvsock: the annotation asks for db, and names must begin with w",
        ),
        (
            "prod",
            "web/box",
            "hvsock: hvsock.dev/name: web/box cannot be the name of a partition",
        ),
    ] {
        let create = request("c1", namespace, &[("hvsock.dev/name", name)]);
        let (code, text) = runtime_side.call("CreateContainer", &create).unwrap_err();
        assert!(code == 9 && text.starts_with(want), "{code} {text}");
    }
    assert_eq!(names(&world), ["web"]);
    drop(plugin);
    let _plugin = start(&world, &["--existing"]);
    let mut runtime_side = runtime.accept();
    let created = create(&mut runtime_side, "web").unwrap();
    assert!(
        created
            .message(1)
            .message(3)
            .string(3)
            .ends_with("/containers/web")
    );
    // Another's partition stays when the container goes.
    let remove = request("c1", "prod", &[("hvsock.dev/name", "web")]);
    runtime_side.call("RemoveContainer", &remove).unwrap();
    assert_eq!(names(&world), ["web"]);
    let (_, host) = create(&mut runtime_side, "machine").unwrap_err();
    assert_eq!(host, "hvsock: machine is not a container");
}

#[test]
fn a_container_is_not_created_without_a_broker_unless_that_is_wanted() {
    let mut world = World::new();
    let runtime = Runtime::listen(&socket(&world));
    let plugin = start(&world, &[]);
    let mut runtime_side = runtime.accept();
    world.broker().kill();
    let (code, text) = create(&mut runtime_side, "web").unwrap_err();
    assert!(
        code == 9 && text.starts_with("hvsock: web is not there: no broker at "),
        "{code} {text}"
    );
    // The runtime's next container does not wait for the plugin to be started again.
    world.start_broker();
    create(&mut runtime_side, "web").unwrap();
    drop(plugin);
    world.broker().kill();
    let _plugin = start(&world, &["--if-broker-down", "start"]);
    let mut runtime_side = runtime.accept();
    assert_eq!(create(&mut runtime_side, "web").unwrap(), Proto::new());
}

#[test]
fn a_runtime_that_is_started_again_gets_the_plugin_again_and_its_containers_are_looked_at() {
    let world = World::new();
    let runtime = Runtime::listen(&socket(&world));
    let _plugin = start(&world, &[]);
    let mut first = runtime.accept();
    create(&mut first, "web").unwrap();
    drop((first, runtime));
    world.ok(["container", "remove", "web"]);
    let runtime = Runtime::listen(&socket(&world));
    let mut second = runtime.accept();
    let annotations = [("hvsock.dev/name", "web")];
    second
        .call("Synchronize", &request("c1", "prod", &annotations))
        .unwrap();
    eventually("the partition of a container that runs", || {
        names(&world) == ["web"]
    });
    // A registration that is refused is tried again, too.
    drop(second);
    let mut third = runtime.accept_unregistered();
    third
        .send_raw(b"\0\0\0\x02\0\0\0\x0e\0\0\0\x04\0\0\0\x01\x02\0\x0a\x02\x08\x03")
        .unwrap();
    drop(third);
    runtime.accept();
}

#[test]
fn a_plugin_that_the_runtime_starts_uses_the_connection_and_name_that_it_gets_and_ends_with_it() {
    let world = World::new();
    let (runtime, passed) = UnixStream::pair().unwrap();
    let mut command = Command::new("sh");
    let script = r#"exec 3<&0 </dev/null; exec "$0" --dir "$1" nri"#;
    command
        .args(["-c", script, env!("CARGO_BIN_EXE_hvsock")])
        .arg(world.dir());
    command.env_clear().env("NRI_PLUGIN_SOCKET", "3");
    command
        .env("NRI_PLUGIN_NAME", "mine")
        .env("NRI_PLUGIN_IDX", "09");
    command.stdin(OwnedFd::from(passed)).stdout(Stdio::piped());
    let mut child = Running::start(&mut command);
    drop(command);
    let mut runtime = Plugin::at(runtime);
    runtime.registered();
    assert_eq!(runtime.identity, ("mine".to_owned(), "09".to_owned()));
    create(&mut runtime, "web").unwrap();
    assert_eq!(names(&world), ["web"]);
    drop(runtime);
    assert!(child.end().success());
}
