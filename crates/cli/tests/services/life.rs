//! Signs of life: heartbeat, readiness, the clock, an orderly end.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use crate::scene::{self, BOX, Scene};
use crate::util::{Running, World, eventually};

/// Within this a lost guest must be noticed, and then some, for a machine that does a lot beside.
const NOTICED: Duration = Duration::from_secs(5);
const BUSY: Duration = Duration::from_secs(5);

/// What is known of the guest in a partition.
fn known(world: &World, kind: &str, name: &str) -> Value {
    world.json([kind, "show", name, "--json"])["guest"].take()
}

fn contact(world: &World, kind: &str, name: &str, want: &str) {
    eventually(want, || known(world, kind, name)["contact"] == want);
}

#[test]
fn a_container_is_heard_with_its_facts_and_numbers() {
    let scene = Scene::new();
    contact(&scene.world, "container", BOX, "ok");
    eventually("its services are told", || {
        let guest = known(&scene.world, "container", BOX);
        let services = guest["report"]["facts"]["services"].as_array().cloned();
        let mut services = services.unwrap_or_default().into_iter();
        services.any(|one| one["port"] == 914 && one["offered"] == true)
    });
    let guest = known(&scene.world, "container", BOX);
    let report = &guest["report"];
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
    assert!(shown.contains("\nguest         ready, heard "), "{shown}");
    assert!(shown.contains("\nmemory        "), "{shown}");
    assert!(scene.world.ok(["status"]).contains("ready"));
}

#[test]
fn an_agent_that_stops_or_is_killed_is_lost_within_five_seconds_and_is_heard_again() {
    let mut scene = Scene::new();
    contact(&scene.world, "container", BOX, "ok");
    let mut events = Running::start(
        scene
            .world
            .command(["--quiet", "events", "--json"])
            .stdout(std::process::Stdio::piped()),
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
    assert!(shown.contains("guest         contact lost"), "{shown}");
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
fn a_pause_is_no_loss_of_contact() {
    let scene = Scene::new();
    contact(&scene.world, "container", BOX, "ok");
    scene.world.ok(["container", "pause", BOX]);
    contact(&scene.world, "container", BOX, "paused");
    std::thread::sleep(NOTICED);
    contact(&scene.world, "container", BOX, "paused");
    scene.world.ok(["container", "resume", BOX]);
    contact(&scene.world, "container", BOX, "ok");
}
