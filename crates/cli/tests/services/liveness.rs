//! Liveness of guests: heartbeat, readiness, clock.

use std::io::{BufRead, BufReader, Read as _};
use std::process::Stdio;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use hvsock_client::Client;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::fixture::{self, BOX, Fixture};
use crate::util::{Completed, Running, TIMEOUT, World, eventually, in_container};

/// The bound on the age of the last heartbeat when an agent is reported lost: 5 s, and as much again for a
/// busy machine.
const LOST_WITHIN: Duration = Duration::from_secs(10);

/// The broker's information about the guest in a partition.
pub fn guest_info(world: &World, kind: &str, name: &str) -> Value {
    world.json([kind, "show", name, "--json"])["guest"].take()
}

/// Waits until the partition's agent has this state: `connected`, `lost` or `paused`.
pub fn wait_for_agent(world: &World, kind: &str, name: &str, want: &str) {
    eventually(want, || guest_info(world, kind, name)["agent"] == want);
}

#[test]
fn the_heartbeat_of_a_container_reports_its_facts_and_metrics() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    wait_for_agent(&fixture.world, "container", BOX, "connected");
    let guest = guest_info(&fixture.world, "container", BOX);
    let report = &guest["report"];
    let services = report["facts"]["services"].as_array().unwrap();
    assert!(
        services.iter().all(|one| one["offered"] == true),
        "a service is not offered: {guest}"
    );
    assert_eq!(report["health"], "ok", "{guest}");
    assert_eq!(guest["ready"], true);
    assert!(report["memory_total_bytes"].as_u64().unwrap() > 0);
    assert!(report["uptime_seconds"].as_f64().unwrap() > 0.0);
    assert_eq!(report["facts"]["agent"], env!("CARGO_PKG_VERSION"));
    let first = report["beats"].as_u64().unwrap();
    eventually("further heartbeats arrive", || {
        let report = guest_info(&fixture.world, "container", BOX)["report"].take();
        report["beats"].as_u64().unwrap() >= first + 2
    });

    let shown = fixture.world.ok(["container", "show", BOX]);
    assert!(
        shown.contains("\nguest         ready, heartbeat "),
        "{shown}"
    );
    assert!(shown.contains("\nmemory        "), "{shown}");
    assert!(fixture.world.ok(["status"]).contains("ready"));
    assert!(fixture.world.ok(["container", "list"]).contains(" ready "));
}

#[test]
fn a_stopped_or_killed_agent_is_reported_lost_and_then_connected() {
    let Some(mut fixture) = Fixture::new() else {
        return;
    };
    wait_for_agent(&fixture.world, "container", BOX, "connected");
    let mut events = fixture.world.command(["events", "--json"]);
    let mut events = Running::start(events.stdout(Stdio::piped()).stderr(Stdio::piped()));
    // The note on stderr appears once the events are followed.
    let mut note = [0; 9];
    let stderr = events.child.stderr.as_mut().unwrap();
    stderr.read_exact(&mut note).unwrap();
    assert_eq!(&note, b"following");
    let lost = |fixture: &Fixture, how: &str| {
        let began = Instant::now();
        wait_for_agent(&fixture.world, "container", BOX, "lost");
        println!("{how}: lost after {:?}", began.elapsed());
    };
    fixture.agent.signal(Signal::STOP);
    lost(&fixture, "SIGSTOP");
    let shown = fixture.world.ok(["container", "show", BOX]);
    assert!(shown.contains("guest         agent lost"), "{shown}");
    fixture.agent.signal(Signal::CONT);
    wait_for_agent(&fixture.world, "container", BOX, "connected");
    fixture.kill_agent();
    lost(&fixture, "SIGKILL");
    fixture.start_agent();
    wait_for_agent(&fixture.world, "container", BOX, "connected");

    let mut events_of_contact = Vec::new();
    while events_of_contact.len() < 4 {
        let event: Value = serde_json::from_str(&events.line()).unwrap();
        let word = event["event"].as_str().unwrap().to_owned();
        if word.starts_with("guest_agent_") {
            assert_eq!(event["partition"], BOX);
            if word == "guest_agent_lost" {
                let silent = event["silent_ms"].as_u64().unwrap();
                let bound = LOST_WITHIN.as_millis() as u64;
                assert!((3500..bound).contains(&silent), "{silent} ms");
            }
            events_of_contact.push(word);
        }
    }
    let [lost, connected] = ["guest_agent_lost", "guest_agent_connected"];
    assert_eq!(events_of_contact, [lost, connected, lost, connected]);
}

#[test]
fn disabling_the_heartbeat_service_loses_the_agent_until_it_is_enabled() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    wait_for_agent(&fixture.world, "container", BOX, "connected");
    let heartbeat = "hvsock heartbeat";
    fixture
        .world
        .ok(["service", "disable", heartbeat, "--vm", BOX]);
    wait_for_agent(&fixture.world, "container", BOX, "lost");
    fixture
        .world
        .ok(["service", "enable", heartbeat, "--vm", BOX]);
    wait_for_agent(&fixture.world, "container", BOX, "connected");
}

#[test]
fn wait_returns_when_the_state_is_reached_and_names_the_state_at_its_timeout() {
    let Some(mut fixture) = Fixture::new() else {
        return;
    };
    let wait = |fixture: &Fixture, goal: &str, seconds: &str| {
        fixture.run([
            "container",
            "wait",
            BOX,
            "--for",
            goal,
            "--timeout",
            seconds,
        ])
    };
    for goal in ["agent", "ready"] {
        wait(&fixture, goal, "30").ok();
    }
    let error = wait(&fixture, "off", "0.2").failed();
    assert!(
        error.contains("is not off after 0.2 s: it is unknown, ready"),
        "{error}"
    );
    fixture.kill_agent();
    wait_for_agent(&fixture.world, "container", BOX, "lost");
    let error = wait(&fixture, "ready", "0").failed();
    assert!(error.contains("agent lost"), "{error}");
    // It waits for the next agent.
    let mut waiting = Running::start(&mut fixture.world.command(["container", "wait", BOX]));
    wait(&fixture, "ready", "0.3").failed();
    assert!(waiting.child.try_wait().unwrap().is_none());
    fixture.start_agent();
    assert!(waiting.end().success());
    fixture.world.ok(["-q", "vm", "add", "web"]);
    fixture.world.ok(["vm", "wait", "web", "--for", "off"]);
    let error = fixture
        .run(["vm", "wait", "web", "--timeout", "0"])
        .failed();
    assert!(
        error.contains("web is not ready after 0 s: it is defined"),
        "{error}"
    );
}

#[test]
fn a_readiness_notification_makes_a_partition_ready_without_an_agent() {
    let world = World::new();
    let endpoint = world.container("cage");
    let notify = |message: &[u8]| {
        Completed::with_input(
            &mut in_container(&endpoint, ["connect", "parent", "hvsock notify"]),
            message,
        )
    };
    notify(b"STATUS=Starting\x1b[2J\nX_SYSTEMD_UNIT_ACTIVE=basic.target\n").ok();
    let info = guest_info(&world, "container", "cage");
    assert_eq!(
        (&info["agent"], &info["ready"]),
        (&json!("none"), &json!(false))
    );
    assert_eq!(
        info["notice"]["more"]["X_SYSTEMD_UNIT_ACTIVE"],
        "basic.target"
    );
    let shown = world.ok(["container", "show", "cage"]);
    assert!(
        shown.contains("status        Starting\\u{1b}[2J\n"),
        "{shown}"
    );
    // A message that is too long is ignored.
    notify(&[b'A'; 100_000]);
    notify(b"READY=1").ok();
    world.ok(["container", "wait", "cage"]);
    notify(b"STOPPING=1").ok();
    eventually("it is not ready", || {
        guest_info(&world, "container", "cage")["ready"] == false
    });
}

#[test]
fn the_clock_of_a_container_is_measured_but_cannot_be_set() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    wait_for_agent(&fixture.world, "container", BOX, "connected");
    eventually("its clock is measured", || {
        let info = guest_info(&fixture.world, "container", BOX);
        info["report"]["clock"]["keeper"] == "host"
    });
    let clock = guest_info(&fixture.world, "container", BOX)["report"]["clock"].take();
    let number = |name: &str| clock[name].as_f64().unwrap();
    println!("the clock of this machine: {clock}");
    assert!(
        number("offset_seconds").abs() <= number("error_seconds"),
        "{clock}"
    );
    let metrics = fixture.world.run(["vm", "time", BOX]);
    assert!(metrics.failed().contains("is a container"));
}

#[test]
fn the_clock_is_measured_again_when_its_connection_was_closed() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    let time = |fixture: &Fixture| {
        let connections = fixture.world.connections().into_iter();
        let mut of_time = connections.filter(|one| one["service_name"] == "hvsock time");
        of_time.next().and_then(|one| one["id"].as_u64())
    };
    eventually("its clock is measured", || {
        !guest_info(&fixture.world, "container", BOX)["report"]["clock"].is_null()
    });
    let old = time(&fixture).unwrap();
    let control = Client::new(fixture.world.dir().join("control")).unwrap();
    control.close_connection(old).unwrap();
    // The next measurement would be due 16 s after the first.
    let began = Instant::now();
    eventually("it is connected again", || {
        time(&fixture).is_some_and(|new| new != old)
    });
    let took = began.elapsed();
    assert!(took < Duration::from_secs(12), "{took:?}");
}

#[test]
fn an_agent_detects_a_stopped_host_and_reconnects() {
    let mut world = World::new();
    let endpoint = world.container(BOX);
    let Some(mut agent) = fixture::agent_command(&endpoint) else {
        return;
    };
    let mut agent = Running::start(agent.stderr(Stdio::piped()));
    wait_for_agent(&world, "container", BOX, "connected");
    let stderr = BufReader::new(agent.child.stderr.take().unwrap());
    let (sender, log) = mpsc::channel();
    thread::spawn(move || {
        for line in stderr.lines().map_while(Result::ok) {
            let _ = sender.send(line);
        }
    });
    // The kernel keeps the stopped broker's connections open.
    world.broker().signal(Signal::STOP);
    let began = Instant::now();
    while !log
        .recv_timeout(TIMEOUT)
        .expect("a line of the log")
        .contains("cannot send heartbeats to the host")
    {}
    println!("stopped host: detected after {:.1?}", began.elapsed());
    world.broker().signal(Signal::CONT);
    wait_for_agent(&world, "container", BOX, "connected");
}

#[test]
fn a_paused_partition_is_not_reported_lost() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    wait_for_agent(&fixture.world, "container", BOX, "connected");
    let other = fixture.world.container("other");
    let other = fixture::agent_command(&other).map(|mut agent| Running::start(&mut agent));
    wait_for_agent(&fixture.world, "container", "other", "connected");
    fixture.world.ok(["container", "pause", BOX]);
    wait_for_agent(&fixture.world, "container", BOX, "paused");
    // An agent that is silent for as long is reported lost.
    other.unwrap().signal(Signal::STOP);
    wait_for_agent(&fixture.world, "container", "other", "lost");
    assert_eq!(
        guest_info(&fixture.world, "container", BOX)["agent"],
        "paused"
    );
    fixture.world.ok(["container", "resume", BOX]);
    wait_for_agent(&fixture.world, "container", BOX, "connected");
}

#[test]
fn a_real_container_reports_its_facts_and_metrics() {
    let world = World::new();
    let Some(_container) = fixture::container(&world, "cage") else {
        return;
    };
    world.ok(["container", "wait", "cage"]);
    let guest = guest_info(&world, "container", "cage");
    assert_eq!(guest["report"]["health"], "ok", "{guest}");
    let facts = &guest["report"]["facts"];
    assert_eq!(facts["boot_id"].as_str().map(str::len), Some(36), "{facts}");
    eventually("its clock is measured", || {
        guest_info(&world, "container", "cage")["report"]["clock"]["keeper"] == "host"
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
