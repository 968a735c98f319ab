//! The states of containers of real runtimes, whose hooks are this program: runc, and podman with crun and with
//! runc.

#![cfg(target_os = "linux")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use hvsock_testkit::container::{Bundle, Container};
use hvsock_testkit::podman::Podman;
use hvsock_testkit::process::{self, CapturedOutput, Running};
use hvsock_testkit::wait::eventually;
use hvsock_testkit::{TempFolder, require};
use serde_json::{Value, json};

/// The bound on every wait; longer than any operation takes.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A broker, and commands that talk to it.
struct Host {
    broker: Running,
    folder: TempFolder,
}

impl Host {
    fn new() -> Self {
        let folder = TempFolder::new();
        let broker = start_broker(&folder);
        Self { broker, folder }
    }

    fn try_run(&self, arguments: &[&str]) -> Output {
        let mut command = hvsock(&self.folder);
        process::output(command.args(arguments), b"", TIMEOUT).expect("no timeout")
    }

    /// Runs a command that must succeed. Returns its stdout.
    fn run(&self, arguments: &[&str]) -> String {
        let output = self.try_run(arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).expect("text")
    }

    fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.run(arguments)).expect("JSON")
    }

    fn show(&self) -> Value {
        self.json(&["container", "show", "web", "--json"])
    }

    fn is(&self, state: &str) {
        eventually(state, || self.show()["state"] == json!(state));
    }

    fn wait(&self, state: &str) {
        self.run(&[
            "container",
            "wait",
            "web",
            "--for",
            state,
            "--timeout",
            "30",
        ]);
    }

    /// Adds the container `web`, and returns a bundle with its mount and with hooks that have these options.
    fn add(&self, runc: &Path, program: &Path, options: &[&str]) -> Bundle {
        let added = self.json(&[&["container", "add", "web", "--json"], options].concat());
        let mut bundle = Bundle::new(runc, program).expect("a bundle");
        bundle.mount(added["oci"].clone());
        self.hook(&mut bundle, &["--name", "web"]);
        bundle
    }

    fn hook(&self, bundle: &mut Bundle, options: &[&str]) {
        let folder = self.folder.path().display().to_string();
        let program = PathBuf::from(env!("CARGO_BIN_EXE_hvsock"));
        for (kind, command) in [
            ("createRuntime", "create-runtime"),
            ("poststop", "poststop"),
        ] {
            let arguments = ["--dir", &folder, "oci-hook", command];
            let is_mounting = options == ["--annotation"] && kind == "createRuntime";
            let more: &[&str] = if is_mounting { &["--mount"] } else { &[] };
            bundle.hook(kind, &program, &[&arguments[..], options, more].concat());
        }
    }

    /// Kills the broker, and starts another on its folder.
    fn restart(&mut self) {
        self.broker.kill().expect("killed");
        self.broker = start_broker(&self.folder);
    }
}

fn hvsock(folder: &TempFolder) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hvsock"));
    command.arg("--dir").arg(folder.path());
    command.env_remove("HVSOCK_ENDPOINT").env_remove("RUST_LOG");
    command
}

fn start_broker(folder: &TempFolder) -> Running {
    let mut command = hvsock(folder);
    command.args(["broker", "--name", "root"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut broker = Running::start(&mut command).expect("a broker");
    let printed = CapturedOutput::from(broker.take_stdout().expect("a pipe"));
    printed.wait_for("ready", TIMEOUT).expect("a ready broker");
    broker
}

/// Starts a container that runs until it is killed: its program is a broker, which needs nothing else.
fn idle(bundle: &Bundle) -> Container {
    let mut container = bundle
        .start(&["--dir", "/tmp/own", "broker"])
        .expect("started");
    let printed = CapturedOutput::from(container.running.take_stdout().expect("a pipe"));
    if let Err(error) = printed.wait_for("ready", Duration::from_secs(30)) {
        drop(container.running.take_stdin());
        let _ = container.kill();
        let mut text = String::new();
        if let Some(mut errors) = container.running.take_stderr() {
            let _ = std::io::Read::read_to_string(&mut errors, &mut text);
        }
        panic!("no ready broker: {error}: {text}");
    }
    container
}

#[test]
fn the_state_follows_a_container_of_runc_through_start_pause_kill_and_a_restart_of_the_broker() {
    let (Some(runc), Some(program)) = (require::runc(), require::static_hvsock()) else {
        return;
    };
    let Some(()) = require::root() else { return };
    let mut host = Host::new();
    let bundle = host.add(&runc, &program, &[]);
    assert_eq!(host.show()["state"], json!("unknown"));
    let mut container = idle(&bundle);
    let shown = host.show();
    assert_eq!(shown["state"], json!("running"));
    assert_eq!(shown["container"]["oci_id"], json!(container.id()));
    // A second one: runc reports the hook's text, which has both ids.
    let refused = bundle.run(&["--version"], b"").expect("it ends");
    let text = String::from_utf8_lossy(&refused.stderr);
    assert!(
        !refused.status.success() && text.contains(container.id()),
        "{text}"
    );
    assert_eq!(host.show()["container"]["oci_id"], json!(container.id()));

    container.pause().expect("frozen");
    host.is("paused");
    let shown = host.run(&["container", "show", "web"]);
    assert!(shown.contains("paused by its runtime"), "{shown}");
    host.restart();
    host.is("paused");
    container.resume().expect("thawed");
    host.is("running");

    let mut events = hvsock(&host.folder);
    events.args(["events", "--json"]).stdout(Stdio::piped());
    let mut events = Running::start(&mut events).expect("events");
    let seen = CapturedOutput::from(events.take_stdout().expect("a pipe"));
    eventually("the events are followed", || {
        host.run(&["container", "pause", "web"]);
        host.run(&["container", "resume", "web"]);
        seen.wait_for("paused", Duration::from_millis(100)).is_ok()
    });
    container.kill().expect("killed");
    container.wait(TIMEOUT).expect("it ends");
    host.wait("exited");
    host.is("defined");
    seen.wait_for("exited", TIMEOUT).expect("an event");
    host.restart();
    assert_eq!(host.show()["state"], json!("defined"));
    let output = bundle.run(&["--version"], b"").expect("it ends");
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn an_ephemeral_container_with_a_user_namespace_is_known_by_its_hosts_ids_and_removed_with_its_end()
{
    let (Some(runc), Some(program)) = (require::runc(), require::static_hvsock()) else {
        return;
    };
    let Some(()) = require::root() else { return };
    let host = Host::new();
    host.run(&["service", "register", "HV Socket Demo"]);
    let mut bundle = host.add(&runc, &program, &["--ephemeral"]);
    bundle.map_root(100_000).expect("mapped");
    let container = idle(&bundle);
    let shown = host.show();
    assert_eq!(shown["state"], json!("running"));
    let pid = shown["container"]["pid"].as_u64().expect("a process");
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    assert!(status.contains("Uid:\t100000"), "{status}");
    // What listens on the host gets the user as the host numbers it.
    let mut listen = hvsock(&host.folder);
    listen.args(["listen", "HV Socket Demo", "--from", "web", "--"]);
    listen.args(["sh", "-c", "echo $HVSOCK_PEER_UID"]);
    listen.stderr(Stdio::piped());
    let mut listen = Running::start(&mut listen).expect("a listener");
    let told = CapturedOutput::from(listen.take_stderr().expect("a pipe"));
    told.wait_for("listening for", TIMEOUT).expect("listening");
    let output = container
        .exec(&["connect", "parent", "HV Socket Demo"], b"")
        .expect("no timeout");
    assert_eq!(
        String::from_utf8_lossy(&output.stdout).trim(),
        "100000",
        "{output:?}"
    );
    container.kill().expect("killed");
    eventually("it is removed", || {
        let list = host.json(&["container", "list", "--json"]);
        list.as_array().is_some_and(Vec::is_empty)
    });
}

#[test]
fn an_annotation_alone_gives_a_container_of_runc_its_endpoint_for_as_long_as_it_runs() {
    let (Some(runc), Some(program)) = (require::runc(), require::static_hvsock()) else {
        return;
    };
    let Some(()) = require::root() else { return };
    let host = Host::new();
    host.run(&["service", "register", "HV Socket Demo"]);
    let mut bundle = Bundle::new(&runc, &program).expect("a bundle");
    bundle.annotation("hvsock.dev/name", "web");
    host.hook(&mut bundle, &["--annotation"]);
    let container = idle(&bundle);
    assert_eq!(host.show()["container"]["ephemeral"], json!(true));
    let output = container
        .exec(&["why", "parent", "HV Socket Demo"], b"")
        .expect("no timeout");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("no listener"), "{output:?}");
    container.kill().expect("killed");
    eventually("it is removed", || {
        !host.try_run(&["container", "show", "web"]).status.success()
    });
}

/// The container's device and the hooks in it do everything: no mount by hand, no other option.
fn podman_follows(runtime: &Path) {
    let (Some(podman), Some(program)) = (require::podman(), require::static_hvsock()) else {
        return;
    };
    let Some(()) = require::root() else { return };
    let mut host = Host::new();
    host.run(&["service", "register", "HV Socket Demo"]);
    host.run(&["container", "add", "web", "--json"]);
    let devices = host.folder.join("cdi");
    let podman = Podman::new(&podman, runtime, &program, &devices).expect("podman");
    let device = ["--device", "hvsock.dev/endpoint=web"];
    let idle = ["--dir", "/tmp/own", "broker"];
    let ok = |output: std::io::Result<Output>| {
        let output = output.expect("no timeout");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout)
            .expect("text")
            .trim()
            .to_owned()
    };
    let id = ok(podman.start("one", &device, &idle));
    assert_eq!(host.show()["container"]["oci_id"], json!(id));
    assert_eq!(host.show()["state"], json!("running"));
    let inside = || {
        let command = ["exec", "one", "/program", "why", "parent", "HV Socket Demo"];
        let output = podman.run(command).expect("no timeout");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert!(inside().contains("no listener"), "{}", inside());
    let second = podman.start("two", &device, &idle).expect("no timeout");
    assert!(!second.status.success(), "{second:?}");
    assert_eq!(host.show()["container"]["oci_id"], json!(id));

    ok(podman.run(["pause", "one"]));
    host.wait("paused");
    host.restart();
    host.wait("paused");
    ok(podman.run(["unpause", "one"]));
    host.wait("running");
    assert!(inside().contains("no listener"), "{}", inside());

    ok(podman.run(["kill", "--signal", "KILL", "one"]));
    host.wait("exited");
    ok(podman.run(["start", "one"]));
    host.wait("running");
    assert_eq!(host.show()["container"]["oci_id"], json!(id));
    ok(podman.run(["rm", "--force", "--time", "0", "one"]));
    host.is("defined");
}

#[test]
fn the_state_follows_a_container_of_podman_and_crun_that_has_the_device() {
    let Some(crun) = require::crun() else { return };
    podman_follows(&crun);
}

#[test]
fn an_annotation_alone_gives_a_container_of_podman_and_crun_its_endpoint() {
    let (Some(podman), Some(crun), Some(program)) =
        (require::podman(), require::crun(), require::static_hvsock())
    else {
        return;
    };
    let Some(()) = require::root() else { return };
    let host = Host::new();
    let hooks = host.folder.join("hooks.d");
    let folder = hooks.display().to_string();
    host.run(&["container", "oci-hooks", "install", "--folder", &folder]);
    let devices = host.folder.join("cdi");
    std::fs::create_dir_all(&devices).expect("made");
    let mut podman = Podman::new(&podman, &crun, &program, &devices).expect("podman");
    podman.hooks(&hooks);
    let annotation = ["--annotation", "hvsock.dev/name=web"];
    let idle = ["--dir", "/tmp/own", "broker"];
    let started = podman.start("one", &annotation, &idle).expect("no timeout");
    assert!(started.status.success(), "{started:?}");
    host.wait("running");
    let command = ["exec", "one", "/program", "why", "parent", "5000"];
    let output = podman.run(command).expect("no timeout");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("the service is not registered"), "{output:?}");
    podman
        .run(["rm", "--force", "--time", "0", "one"])
        .expect("no timeout");
    eventually("it is removed", || {
        !host.try_run(&["container", "show", "web"]).status.success()
    });
}
