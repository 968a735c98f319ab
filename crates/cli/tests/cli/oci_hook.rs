//! `hvsock oci-hook`, as a container runtime runs it.

use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use hvsock_testkit::require;
use serde_json::{Value, json};

use crate::util::{Completed, World, eventually};

/// A process in the place of a container's first one. Dropping it ends it.
struct Init(Child);

impl Init {
    fn start() -> Self {
        let mut command = Command::new("cat");
        command.stdin(Stdio::piped()).stdout(Stdio::null());
        Self(command.spawn().unwrap())
    }

    /// The state of its container, as runtimes print it.
    fn state(&self, id: &str) -> Value {
        json!({
            "ociVersion": "1.0.2",
            "id": id,
            "pid": self.0.id(),
            "root": "/rootfs",
            "bundle": "/bundle",
            "status": "creating",
            "annotations": {"hvsock.dev/name": id, "hvsock.dev/groups": "front, back"},
        })
    }
}

impl Drop for Init {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn hook(world: &World, arguments: &[&str], state: &Value) -> Completed {
    let mut command = world.command(["oci-hook"]);
    command.args(arguments);
    Completed::with_input(&mut command, state.to_string().as_bytes())
}

fn create(world: &World, name: &str, state: &Value) -> Completed {
    hook(world, &["create-runtime", "--name", name], state)
}

fn poststop(world: &World, name: &str, state: &Value) -> Completed {
    hook(world, &["poststop", "--name", name], state)
}

fn show(world: &World) -> Value {
    world.json(["container", "show", "web", "--json"])
}

#[test]
fn a_container_is_bound_by_its_hooks_and_its_end_is_shown_and_waited_for() {
    let mut world = World::new();
    world.container("web");
    assert_eq!(show(&world)["state"], json!("unknown"));
    let (init, other) = (Init::start(), Init::start());
    let state = init.state("a1");
    assert_eq!(create(&world, "web", &state).ok(), "");
    let shown = show(&world);
    assert_eq!(shown["state"], json!("running"));
    assert_eq!(shown["container"]["oci_id"], json!("a1"));
    assert_eq!(shown["container"]["pid"], json!(init.0.id()));
    let line = format!("a1, process {}", init.0.id());
    assert!(world.ok(["container", "show", "web"]).contains(&line));
    world.ok(["container", "wait", "web", "--for", "running"]);
    let error = create(&world, "web", &other.state("b2")).failed();
    assert!(error.contains("a1") && error.contains("b2"), "{error}");
    assert_eq!(poststop(&world, "web", &other.state("b2")).ok(), "");

    // A broker that was killed finds it again.
    world.broker().kill();
    world.start_broker();
    assert_eq!(show(&world)["state"], json!("running"));
    assert_eq!(show(&world)["container"]["oci_id"], json!("a1"));
    // One that is removed and added again while it runs is found again, too.
    world.ok(["container", "remove", "web"]);
    world.container("web");
    assert_eq!(show(&world)["state"], json!("running"));

    let wait = ["container", "wait", "web", "--for", "exited"];
    let waiting = world.command(wait).spawn().unwrap();
    drop(init);
    assert!(waiting.wait_with_output().unwrap().status.success());
    assert!(world.ok(["container", "list"]).contains("exited"));
    let why = world.run(["why", "web", "5000"]);
    assert!(why.stdout.contains("web has exited"), "{why:?}");
    world.broker().kill();
    world.start_broker();
    assert_eq!(show(&world)["state"], json!("exited"));
    assert_eq!(poststop(&world, "web", &state).ok(), "");
    assert_eq!(show(&world)["state"], json!("defined"));
    world.broker().kill();
    world.start_broker();
    assert_eq!(show(&world)["state"], json!("defined"));
    create(&world, "web", &other.state("b2")).ok();
    assert_eq!(show(&world)["state"], json!("running"));
}

#[test]
fn a_container_that_ends_while_no_broker_runs_has_exited_unless_others_may_start_unseen() {
    let mut world = World::new();
    for name in ["web", "db", "job"] {
        world.ok(["container", "add", name]);
    }
    world.ok(["container", "remove", "job"]);
    world.ok(["container", "add", "job", "--ephemeral"]);
    let inits = [Init::start(), Init::start(), Init::start()];
    create(&world, "web", &inits[0].state("a1")).ok();
    let optional = [
        "create-runtime",
        "--name",
        "db",
        "--if-broker-down",
        "start",
    ];
    hook(&world, &optional, &inits[1].state("b2")).ok();
    create(&world, "job", &inits[2].state("c3")).ok();
    world.broker().kill();
    drop(inits);
    world.start_broker();
    let list = world.json(["container", "list", "--json"]);
    let states: Vec<_> = list.as_array().unwrap().iter().collect();
    let states: Vec<_> = states
        .iter()
        .map(|one| {
            (
                one["name"].as_str().unwrap(),
                one["state"].as_str().unwrap(),
            )
        })
        .collect();
    assert_eq!(states, [("db", "unknown"), ("web", "exited")]);
}

#[test]
fn without_a_broker_a_hook_fails_in_bounded_time_unless_it_is_told_otherwise() {
    let mut world = World::new();
    world.container("web");
    let init = Init::start();
    let state = init.state("a1");
    world.broker().kill();
    let began = Instant::now();
    let error = create(&world, "web", &state).failed();
    let parts = [
        "a1 is not started as web",
        "no broker",
        "--if-broker-down start",
    ];
    for part in parts {
        assert!(error.contains(part), "{error}");
    }
    let start = [
        "create-runtime",
        "--name",
        "web",
        "--if-broker-down",
        "start",
    ];
    let done = hook(&world, &start, &state);
    assert!(
        done.stderr.contains("a1 starts without being web"),
        "{done:?}"
    );
    done.ok();
    let done = poststop(&world, "web", &state);
    assert!(done.stderr.contains("cannot release web"), "{done:?}");
    done.ok();
    // Three limits, on a busy machine.
    assert!(began.elapsed() < Duration::from_secs(60));
    // A runtime that never ends the hook's input.
    let mut waits = world.command(["oci-hook", "poststop", "--name", "web"]);
    let mut waits = waits
        .stdin(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut input = waits.stdin.take().unwrap();
    input.write_all(b"{").unwrap();
    assert!(!waits.wait().unwrap().success());
    drop(input);
    // A broker that is restarted meanwhile is waited for.
    let mut late = world.command(["oci-hook", "create-runtime", "--name", "web"]);
    let mut late = late.stdin(Stdio::piped()).spawn().unwrap();
    late.stdin
        .take()
        .unwrap()
        .write_all(state.to_string().as_bytes())
        .unwrap();
    world.start_broker();
    assert!(late.wait().unwrap().success());
    assert_eq!(show(&world)["state"], json!("running"));
}

#[test]
fn a_hook_says_what_is_wrong_with_a_state() {
    let world = World::new();
    world.container("web");
    let init = Init::start();
    let good = init.state("a1");
    let with = |field: &str, value: Value| {
        let mut state = good.clone();
        state[field] = value;
        state
    };
    for (state, want) in [
        (json!([]), "none of an OCI container"),
        (json!({"pid": 1}), "none of an OCI container"),
        (with("pid", json!(-1)), "none of an OCI container"),
        (with("pid", json!(0)), "has no process"),
        (with("pid", json!(i32::MAX)), "cannot open the process"),
        (with("id", json!("")), "the id of the container is empty"),
        (with("id", json!("a\nb")), "characters that cannot be shown"),
    ] {
        let error = create(&world, "web", &state).failed();
        assert!(error.contains(want), "{want}: {error}");
    }
    let error = create(&world, "nobody", &good).failed();
    assert!(error.contains("nobody"), "{error}");
    hook(&world, &["create-runtime"], &good).usage_error();
    poststop(&world, "nobody", &good).ok();
    assert_eq!(show(&world)["state"], json!("unknown"));
}

#[test]
fn an_annotation_adds_an_ephemeral_container_and_chooses_no_other() {
    let world = World::new();
    world.ok(["container", "add", "mine"]);
    let annotated = |arguments: &[&str], state: &Value| {
        let arguments = [&["create-runtime", "--annotation"], arguments].concat();
        hook(&world, &arguments, state)
    };
    let init = Init::start();
    annotated(&[], &init.state("web")).ok();
    let shown = show(&world);
    assert_eq!(shown["state"], json!("running"));
    assert_eq!(shown["groups"], json!(["front", "back"]));
    assert_eq!(shown["container"]["ephemeral"], json!(true));
    // A second one of the name, one that an operator added, and names that are not allowed.
    let other = Init::start();
    let mut second = other.state("web");
    second["id"] = json!("b2");
    let error = annotated(&[], &second).failed();
    assert!(error.contains("b2") && error.contains("web"), "{error}");
    assert_eq!(show(&world)["state"], json!("running"));
    let error = annotated(&[], &other.state("mine")).failed();
    assert!(error.contains("added by an operator"), "{error}");
    let error = annotated(&["--prefix", "pod-"], &other.state("job")).failed();
    assert!(error.contains("pod-"), "{error}");
    annotated(&[], &other.state("a/b")).failed();
    annotated(&["--existing"], &other.state("mine")).ok();
    // A container without the annotation is none of its business.
    let mut without = other.state("x");
    without["annotations"] = json!({});
    annotated(&[], &without).ok();
    without.as_object_mut().unwrap().remove("annotations");
    annotated(&[], &without).ok();
    let wait = ["container", "wait", "web", "--for", "exited"];
    let waiting = world.command(wait).spawn().unwrap();
    hook(&world, &["poststop", "--annotation"], &init.state("web")).ok();
    assert!(waiting.wait_with_output().unwrap().status.success());
    let list = world.json(["container", "list", "--json"]);
    let names: Vec<_> = list.as_array().unwrap().iter().collect();
    let names: Vec<_> = names
        .iter()
        .map(|one| one["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["mine"]);
    drop(other);
    eventually("it has exited", || {
        world.json(["container", "show", "mine", "--json"])["state"] == json!("exited")
    });
}

#[test]
fn a_partition_that_was_added_for_a_container_that_cannot_be_bound_is_removed() {
    let world = World::new();
    let init = Init::start();
    let annotated = ["create-runtime", "--annotation"];
    hook(&world, &annotated, &init.state("web")).ok();
    // The same process under another name, and ids that no container has.
    let error = hook(&world, &annotated, &init.state("two")).failed();
    assert!(error.contains("it is bound to web"), "{error}");
    let mut odd = init.state("three");
    odd["id"] = json!("");
    hook(&world, &annotated, &odd).failed();
    odd["id"] = json!("x".repeat(2000));
    hook(&world, &annotated, &odd).failed();
    let list = world.json(["container", "list", "--json"]);
    let names: Vec<_> = list
        .as_array()
        .unwrap()
        .iter()
        .map(|one| &one["name"])
        .collect();
    assert_eq!(names, [&json!("web")]);
    // One that an operator added stays as it was.
    world.ok(["container", "add", "mine", "--ephemeral"]);
    hook(&world, &annotated, &init.state("mine")).failed();
    assert_eq!(
        world.json(["container", "show", "mine", "--json"])["state"],
        json!("unknown")
    );
    assert_eq!(show(&world)["state"], json!("running"));
}

#[test]
fn a_user_who_is_no_operator_binds_nothing() {
    let Some(()) = require::root() else { return };
    let world = World::new();
    world.container("web");
    let init = Init::start();
    let state = init.state("a1");
    let program = env!("CARGO_BIN_EXE_hvsock");
    let mut command = Command::new("setpriv");
    let user = ["--reuid", "65534", "--regid", "65534", "--clear-groups"];
    command
        .args(user)
        .arg(program)
        .arg("--dir")
        .arg(world.dir());
    command.args(["oci-hook", "create-runtime", "--name", "web"]);
    let error = Completed::with_input(&mut command, state.to_string().as_bytes()).failed();
    assert!(error.contains("a1 is not started as web"), "{error}");
    assert_eq!(show(&world)["state"], json!("unknown"));
}
