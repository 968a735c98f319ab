//! Signs of life: heartbeat, readiness, the clock, an orderly end.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use hvsock_broker::api::client::Client;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::scene::{self, BOX, Scene};
use crate::util::{Done, PATIENCE, Running, World, eventually, inside};

/// Within this a lost guest must be noticed, and then some, for a machine that does a lot beside.
const NOTICED: Duration = Duration::from_secs(5);
const BUSY: Duration = Duration::from_secs(5);

/// What is known of the guest in a partition.
pub fn known(world: &World, kind: &str, name: &str) -> Value {
    world.json([kind, "show", name, "--json"])["guest"].take()
}

pub fn contact(world: &World, kind: &str, name: &str, want: &str) {
    eventually(want, || known(world, kind, name)["contact"] == want);
}

#[test]
fn a_container_is_heard_with_its_facts_and_numbers() {
    let scene = Scene::new();
    contact(&scene.world, "container", BOX, "ok");
    let guest = known(&scene.world, "container", BOX);
    let report = &guest["report"];
    let services = report["facts"]["services"].as_array().unwrap();
    assert!(
        services.iter().all(|one| one["offered"] == true),
        "who is heard can be used: {guest}"
    );
    assert_eq!(report["health"], "ok", "{guest}");
    assert_eq!(guest["ready"], true);
    assert!(report["memory_total_bytes"].as_u64().unwrap() > 0);
    assert!(report["uptime_seconds"].as_f64().unwrap() > 0.0);
    assert_eq!(report["facts"]["agent"], env!("CARGO_PKG_VERSION"));
    let first = report["beats"].as_u64().unwrap();
    eventually("it beats on", || {
        let report = known(&scene.world, "container", BOX)["report"].take();
        report["beats"].as_u64().unwrap() >= first + 2
    });

    let shown = scene.world.ok(["container", "show", BOX]);
    assert!(
        shown.contains("\nguest         ready, heartbeat "),
        "{shown}"
    );
    assert!(shown.contains("\nmemory        "), "{shown}");
    assert!(scene.world.ok(["status"]).contains("ready"));
    assert!(scene.world.ok(["container", "list"]).contains(" ready "));
}

#[test]
fn an_agent_that_stops_or_is_killed_is_lost_within_five_seconds_and_is_heard_again() {
    let mut scene = Scene::new();
    contact(&scene.world, "container", BOX, "ok");
    let mut events = Running::start(
        scene
            .world
            .command(["--quiet", "events", "--json"])
            .stdout(Stdio::piped()),
    );
    let lost = |scene: &Scene, how: &str| {
        let began = Instant::now();
        contact(&scene.world, "container", BOX, "lost");
        let took = began.elapsed();
        println!("{how}: noticed after {took:?}");
        assert!(took < NOTICED + BUSY, "{took:?}");
    };
    // Some time before it: the events are followed by then.
    eventually("it beats", || {
        known(&scene.world, "container", BOX)["report"]["beats"].as_u64() > Some(1)
    });
    scene.agent.signal(Signal::STOP);
    lost(&scene, "SIGSTOP");
    let shown = scene.world.ok(["container", "show", BOX]);
    assert!(shown.contains("guest         agent lost"), "{shown}");
    scene.agent.signal(Signal::CONT);
    contact(&scene.world, "container", BOX, "ok");
    scene.agent.child.kill().unwrap();
    scene.agent.child.wait().unwrap();
    lost(&scene, "SIGKILL");
    scene.agent = Running::start(&mut scene::agent_at(&scene.endpoint));
    contact(&scene.world, "container", BOX, "ok");

    let mut told = Vec::new();
    while told.len() < 4 {
        let event: Value = serde_json::from_str(&events.line()).unwrap();
        let word = event["event"].as_str().unwrap().to_owned();
        if word.starts_with("guest_contact") {
            assert_eq!(event["partition"], BOX);
            if word == "guest_contact_lost" {
                let silent = event["silent_ms"].as_u64().unwrap();
                assert!((3500..10_000).contains(&silent), "{silent} ms");
            }
            told.push(word);
        }
    }
    let [lost, heard] = ["guest_contact_lost", "guest_contact"];
    assert_eq!(told, [lost, heard, lost, heard]);
}

#[test]
fn a_guest_without_the_service_is_not_heard_and_one_that_has_it_again_is() {
    let scene = Scene::new();
    contact(&scene.world, "container", BOX, "ok");
    let heartbeat = "hvsock heartbeat";
    scene
        .world
        .ok(["service", "disable", heartbeat, "--vm", BOX]);
    contact(&scene.world, "container", BOX, "lost");
    scene
        .world
        .ok(["service", "enable", heartbeat, "--vm", BOX]);
    contact(&scene.world, "container", BOX, "ok");
}

#[test]
fn a_script_waits_for_what_it_needs_and_hears_why_it_waits_in_vain() {
    let mut scene = Scene::new();
    let wait = |scene: &Scene, goal: &str, seconds: &str| {
        scene.run([
            "container",
            "wait",
            BOX,
            "--for",
            goal,
            "--timeout",
            seconds,
        ])
    };
    for goal in ["running", "agent", "ready"] {
        wait(&scene, goal, "30").ok();
    }
    let error = wait(&scene, "off", "0.2").failed();
    assert!(
        error.contains("is not off after 0.2 s: it is running, ready"),
        "{error}"
    );
    scene.agent.child.kill().unwrap();
    scene.agent.child.wait().unwrap();
    contact(&scene.world, "container", BOX, "lost");
    let error = wait(&scene, "ready", "0").failed();
    assert!(error.contains("agent lost"), "{error}");
    // It waits for the one that comes.
    let mut waiting = Running::start(&mut scene.world.command(["container", "wait", BOX]));
    thread::sleep(Duration::from_millis(300));
    assert!(waiting.child.try_wait().unwrap().is_none());
    scene.agent = Running::start(&mut scene::agent_at(&scene.endpoint));
    assert!(waiting.end().success());
    scene.world.ok(["-q", "vm", "add", "web"]);
    scene.world.ok(["vm", "wait", "web", "--for", "off"]);
    let error = scene.run(["vm", "wait", "web", "--timeout", "0"]).failed();
    assert!(
        error.contains("web is not ready after 0 s: it is off"),
        "{error}"
    );
}

#[test]
fn a_service_managers_notification_makes_a_partition_ready_without_an_agent() {
    let world = World::new();
    let endpoint = world.container("cage");
    let notify = |message: &[u8]| {
        Done::with_input(
            &mut inside(&endpoint, ["connect", "parent", "hvsock notify"]),
            message,
        )
    };
    notify(b"STATUS=Starting\x1b[2J\nX_SYSTEMD_UNIT_ACTIVE=basic.target\n").ok();
    let said = known(&world, "container", "cage");
    assert_eq!(
        (&said["contact"], &said["ready"]),
        (&json!("none"), &json!(false))
    );
    assert_eq!(
        said["notice"]["more"]["X_SYSTEMD_UNIT_ACTIVE"],
        "basic.target"
    );
    let shown = world.ok(["container", "show", "cage"]);
    assert!(
        shown.contains("says          Starting\u{fffd}[2J\n"),
        "{shown}"
    );
    // One that is too long is none, and one that claims to be from elsewhere is from here.
    notify(&[b'A'; 100_000]);
    notify(b"READY=1").ok();
    world.ok(["container", "wait", "cage"]);
    notify(b"STOPPING=1").ok();
    eventually("it is not ready any more", || {
        known(&world, "container", "cage")["ready"] == false
    });
}

#[test]
fn a_container_has_its_hosts_clock_and_is_not_shut_down() {
    let scene = Scene::new();
    contact(&scene.world, "container", BOX, "ok");
    eventually("its clock is known", || {
        let known = known(&scene.world, "container", BOX);
        known["report"]["clock"]["keeper"] == "host"
    });
    let clock = known(&scene.world, "container", BOX)["report"]["clock"].take();
    let number = |name: &str| clock[name].as_f64().unwrap();
    println!("the clock of this very machine: {clock}");
    assert!(
        number("offset_seconds").abs() <= number("error_seconds"),
        "{clock}"
    );
    let metrics = scene.world.run(["vm", "time", BOX]);
    assert!(metrics.failed().contains("is a container"));
}

#[test]
fn the_time_is_asked_again_as_soon_as_its_connection_is_cut() {
    let scene = Scene::new();
    let time = |scene: &Scene| {
        let connections = scene.world.connections().into_iter();
        let mut of_time = connections.filter(|one| one["service_name"] == "hvsock time");
        of_time.next().and_then(|one| one["id"].as_u64())
    };
    eventually("its clock is known", || {
        !known(&scene.world, "container", BOX)["report"]["clock"].is_null()
    });
    let old = time(&scene).unwrap();
    let control = Client::new(scene.world.dir().join("control")).unwrap();
    control.close_connection(old).unwrap();
    let began = Instant::now();
    eventually("it is connected again", || {
        time(&scene).is_some_and(|new| new != old)
    });
    // The next measurement would be due 16 s after the first.
    let took = began.elapsed();
    assert!(took < Duration::from_secs(8), "{took:?}");
}

#[test]
fn a_host_that_stands_still_is_noticed_and_found_again() {
    let mut world = World::new();
    let endpoint = world.container(BOX);
    let mut agent = Running::start(scene::agent_at(&endpoint).stderr(Stdio::piped()));
    contact(&world, "container", BOX, "ok");
    let stderr = BufReader::new(agent.child.stderr.take().unwrap());
    let (said, says) = mpsc::channel();
    thread::spawn(move || {
        for line in stderr.lines().map_while(Result::ok) {
            let _ = said.send(line);
        }
    });
    // Its kernel keeps every connection, and nobody is behind them.
    world.broker().signal(Signal::STOP);
    let began = Instant::now();
    while !says
        .recv_timeout(PATIENCE)
        .expect("the agent notices")
        .contains("cannot send heartbeats to the host")
    {}
    println!(
        "a host that stands still: noticed after {:.1?}",
        began.elapsed()
    );
    world.broker().signal(Signal::CONT);
    contact(&world, "container", BOX, "ok");
}

#[test]
fn a_pause_is_no_loss_of_contact() {
    let scene = Scene::new();
    contact(&scene.world, "container", BOX, "ok");
    scene.world.ok(["container", "pause", BOX]);
    contact(&scene.world, "container", BOX, "paused");
    thread::sleep(NOTICED);
    contact(&scene.world, "container", BOX, "paused");
    scene.world.ok(["container", "resume", BOX]);
    contact(&scene.world, "container", BOX, "ok");
}

#[test]
fn a_real_container_is_heard_and_says_what_it_is() {
    let world = World::new();
    let Some(_container) = scene::container(&world, "cage") else {
        return;
    };
    world.ok(["container", "wait", "cage"]);
    let guest = known(&world, "container", "cage");
    assert_eq!(guest["report"]["health"], "ok", "{guest}");
    let facts = &guest["report"]["facts"];
    assert_eq!(facts["boot_id"].as_str().map(str::len), Some(36), "{facts}");
    eventually("it has measured its host's clock", || {
        known(&world, "container", "cage")["report"]["clock"]["keeper"] == "host"
    });
    let control = Client::new(world.dir().join("control")).unwrap();
    let metrics = control.metrics().unwrap();
    for line in [
        "hvsock_guest_up{partition=\"cage\"} 1.0",
        "hvsock_guest_ready{partition=\"cage\"} 1.0",
        "hvsock_guest_uptime_seconds{partition=\"cage\"} ",
        "hvsock_guest_clock_offset_seconds{partition=\"cage\"} ",
    ] {
        let mut lines = metrics.lines();
        assert!(
            lines.any(|one| one.starts_with(line)),
            "{line} is not in\n{metrics}"
        );
    }
}
