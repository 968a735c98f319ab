//! Connections that go on while the broker is upgraded.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::Shutdown;
use std::thread;
use std::time::{Duration, Instant};

use hvsock::{Endpoint, HvListener, HvStream};
use serde_json::Value;

use crate::load::Way;
use crate::upgrade::World;
use crate::upgrade_load::{Load, Usage, compare, listed};
use crate::upgrade_stage::HOST;
use crate::util::{Completed, TIMEOUT, eventually};

/// How many upgrades a test makes.
fn upgrades() -> u32 {
    let number = std::env::var("HVSOCK_TEST_UPGRADES");
    number.map_or(20, |number| number.parse().unwrap())
}

/// Prints the median and the 99th percentile of standstills in microseconds.
fn print(what: &str, mut all: Vec<u64>) {
    all.sort_unstable();
    let at = |percent: usize| all.get((all.len() * percent / 100).min(all.len().saturating_sub(1)));
    let ms = |percent| at(percent).map_or(0.0, |us| *us as f64 / 1e3);
    println!(
        "{what}: p50 {:.1} ms, p99 {:.1} ms, longest {:.1} ms ({} values)",
        ms(50),
        ms(99),
        ms(100),
        all.len()
    );
}

/// Upgrades the broker again and again under a load, and checks all of it.
fn upgrade_under(world: &World, mut load: Load) {
    load.wait_for_progress();
    let mut before = listed(world);
    let mut first = None;
    let (mut streams, mut brokers) = (Vec::new(), Vec::new());
    load.longest_standstills();
    let began = Instant::now();
    for round in 0..upgrades() {
        let upgrade = world.upgrade();
        brokers.push((upgrade["standstill_ms"].as_f64().unwrap() * 1e3) as u64);
        let pid = upgrade["pid"].as_u64().unwrap();
        let after = listed(world);
        compare(&before, &after);
        before = after;
        load.wait_for_progress();
        streams.extend(load.longest_standstills());
        // The first ones still allocate what later ones have as well.
        let usage = Usage::of(pid);
        if round == 2 {
            first = Some(usage);
        }
        if let Some(first) = first {
            assert!(
                usage.descriptors <= first.descriptors + 8 && usage.threads <= first.threads + 1,
                "{usage:?} after {round} upgrades, {first:?} at first"
            );
            assert!(
                usage.memory <= first.memory + (8 << 20),
                "{usage:?} after {round} upgrades, {first:?} at first"
            );
        }
    }
    let took = began.elapsed();
    let done = load.finish();
    println!("{} upgrades in {took:.1?}: {done:?}", upgrades());
    print("standstill of a stream", streams);
    print("standstill of the broker", brokers);
    assert!(done.bytes > 0 && done.connects > 0, "{done:?}");
}

#[test]
fn connections_of_processes_lose_nothing_in_upgrades() {
    let world = World::new();
    let mut load = Load::default();
    load.processes(&world, Way::Ring, 6, 1);
    load.processes(&world, Way::Relay, 8, 2);
    load.processes(&world, Way::Raw, 4, 1);
    load.processes_at(&world, Way::Default, 2, 0, &["--transport", "direct"]);
    load.connects(&world);
    upgrade_under(&world, load);
}

#[test]
fn connections_of_guests_lose_nothing_in_upgrades() {
    let world = World::new();
    let mut load = Load::default();
    load.guests(&world, 1);
    load.hybrid_vm(&world, 1);
    load.connects(&world);
    upgrade_under(&world, load);
}

#[test]
fn a_real_guest_and_containers_lose_nothing_in_upgrades() {
    let world = World::with(|command| {
        command.args(["--name", HOST]);
    });
    let mut load = Load::default();
    if load.containers(&world, 2).is_none() {
        return;
    }
    load.processes(&world, Way::Ring, 8, 1);
    load.processes(&world, Way::Relay, 8, 1);
    load.processes(&world, Way::Raw, 4, 1);
    load.guests(&world, 1);
    load.hybrid_vm(&world, 1);
    load.connects(&world);
    upgrade_under(&world, load);
}

/// The steps of a new broker, and those of the running one before it has sent everything.
const SUCCESSOR: [&str; 5] = [
    "WelcomeReceived",
    "Prepared",
    "Receiving",
    "Received",
    "Restored",
];
const PREDECESSOR: [&str; 7] = [
    "Connected",
    "Welcomed",
    "PreparedReceived",
    "Frozen",
    "DescriptorsSent",
    "DocumentSent",
    "EndSent",
];

#[test]
fn an_upgrade_that_is_broken_off_at_any_step_harms_no_connection() {
    let mut world = World::with_faults_of_a_file();
    let mut load = Load::default();
    load.processes(&world, Way::Ring, 2, 0);
    load.processes(&world, Way::Relay, 4, 1);
    load.guests(&world, 1);
    load.connects(&world);
    load.wait_for_progress();
    let mut before = listed(&world);
    let mut pid = world.pid();
    let steps = |what: &'static str, steps: &[&'static str]| {
        let faults = steps.iter().map(move |step| format!("{what}:{step}"));
        faults.collect::<Vec<_>>()
    };
    // The new broker waits on, and is the only one, if the running one ends after it has sent everything.
    let ends = steps("die", &["EndSent", "StartedReceived"]);
    let all = [
        steps("fail", &SUCCESSOR),
        steps("die", &SUCCESSOR),
        steps("stop", &SUCCESSOR[2..]),
        steps("wait", &["Restored"]),
        steps("fail", &PREDECESSOR),
        steps("stop", &["Frozen", "DocumentSent"]),
        ends.clone(),
    ];
    for fault in all.concat() {
        world.set_faults(&fault);
        // Whether a side that hangs is waited for in vain.
        let hangs = fault.starts_with("stop");
        let limit = if hangs { "500" } else { "10000" };
        let mut upgrade = world.command(&["upgrade", "--standstill-limit", limit]);
        let stops = PREDECESSOR
            .iter()
            .any(|step| fault == format!("stop:{step}"));
        let upgrade = thread::spawn(move || Completed::of(&mut upgrade));
        if stops {
            // It is longer than the limit of the standstill.
            world.wait_for_stop(pid);
            thread::sleep(Duration::from_millis(600));
            world.go_on(pid);
        }
        let done = upgrade.join().unwrap();
        world.set_faults("");
        eventually("one broker is left", || {
            let _ = world.first.child.try_wait();
            world.brokers().len() == 1 && world.run(&["status"]).code == Some(0)
        });
        let goes_on = !ends.contains(&fault) && !fault.starts_with("wait");
        // One that has sent the document may be in time after all.
        if fault != "stop:DocumentSent" {
            assert_eq!(
                world.pid() == pid,
                goes_on,
                "{fault}: {done:?}\n{}",
                world.log()
            );
        }
        pid = world.pid();
        let after = listed(&world);
        compare(&before, &after);
        before = after;
        load.wait_for_progress();
    }
    world.upgrade();
    compare(&before, &listed(&world));
    let done = load.finish();
    println!("{done:?}");
}

/// The broker's connection between two ends, in each way: the client's, the listener's, and what the way is.
fn each_way(world: &World, mut check: impl FnMut(&str, HvStream, HvStream)) {
    for (name, options, shared, raw) in [
        ("ring", &[][..], true, false),
        ("relay", &[], false, false),
        ("raw", &[], false, true),
        ("direct", &["--transport", "direct"], true, false),
    ] {
        world.ok(&[&["service", "register", name], options].concat());
        let listener = HvListener::options().endpoint(world.endpoint());
        let listener = listener.own_memory(true).shared_memory(shared).raw_fd(raw);
        let listener = listener.connected_suspend(true);
        let any = format!("hvsock://any/{name}");
        let listener = listener.listen(any.as_str()).unwrap();
        let stream = HvStream::options().endpoint(world.endpoint());
        let stream = stream.own_memory(true).shared_memory(shared).raw_fd(raw);
        let to = format!("hvsock://loopback/{name}");
        let stream = stream.connected_suspend(true).connect(to.as_str()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        for end in [&stream, &accepted] {
            end.set_read_timeout(Some(TIMEOUT)).unwrap();
        }
        check(name, stream, accepted);
    }
}

#[test]
fn a_close_reason_that_was_told_before_an_upgrade_is_read_after_it() {
    let world = World::new();
    let mut ends = Vec::new();
    each_way(&world, |name, mut stream, accepted| {
        stream.write_all(name.as_bytes()).unwrap();
        let id = stream.connection_id().to_string();
        world.ok(&["connections", "close", &id]);
        ends.push((name.to_owned(), stream, accepted));
    });
    world.upgrade();
    world.upgrade();
    for (name, stream, accepted) in ends {
        for mut end in [stream, accepted] {
            let mut bytes = [0; 16];
            let error = loop {
                // What was sent before may be read.
                match end.read(&mut bytes) {
                    Ok(0) => panic!("{name}: a clean end"),
                    Ok(_) => {}
                    Err(error) => break error,
                }
            };
            let text = error.to_string();
            // A program that uses the socket by itself has no reason, only the reset.
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{name}: {text}");
            if name != "raw" {
                assert!(text.contains("operator"), "{name}: {text}");
            }
        }
    }
}

#[test]
fn half_closed_connections_stay_half_closed_in_an_upgrade() {
    let world = World::new();
    let mut ends = Vec::new();
    each_way(&world, |name, mut stream, mut accepted| {
        stream.write_all(b"the last").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        accepted.write_all(b"before").unwrap();
        ends.push((name.to_owned(), stream, accepted));
    });
    world.upgrade();
    let listed = world.json(&["connections", "--json"]);
    assert_eq!(listed.as_array().unwrap().len(), ends.len());
    for (name, mut stream, mut accepted) in ends {
        let mut text = String::new();
        accepted.read_to_string(&mut text).unwrap();
        assert_eq!(text, "the last", "{name}");
        accepted.write_all(b" and after").unwrap();
        drop(accepted);
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        assert_eq!(text, "before and after", "{name}");
    }
    eventually("the broker sees the ends", || {
        world.json(&["connections", "--json"]) == Value::Array(vec![])
    });
}

#[test]
fn suspended_connections_stay_suspended_in_an_upgrade_until_their_partition_runs() {
    let world = World::new();
    world.ok(&["container", "add", "box"]);
    let inside = Endpoint::at(world.dir().join("containers/box/endpoint"));
    let mut ends = Vec::new();
    for (name, shared) in [("ring", true), ("relay", false)] {
        world.register(name);
        let listener = HvListener::options().endpoint(world.endpoint());
        let listener = listener.own_memory(true).shared_memory(shared);
        let any = format!("hvsock://any/{name}");
        let listener = listener
            .connected_suspend(true)
            .listen(any.as_str())
            .unwrap();
        let stream = HvStream::options().endpoint(inside.clone());
        let stream = stream
            .own_memory(true)
            .shared_memory(shared)
            .connected_suspend(true);
        let to = format!("hvsock://parent/{name}");
        let stream = stream.connect(to.as_str()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        ends.push((name, stream, accepted));
    }
    world.ok(&["container", "pause", "box"]);
    let states = || {
        let connections = world.json(&["connections", "--json"]);
        let all = connections.as_array().unwrap().iter();
        all.map(|one| one["state"] == "suspended")
            .collect::<Vec<_>>()
    };
    assert_eq!(states(), [true, true]);
    world.upgrade();
    assert_eq!(states(), [true, true]);
    for (name, stream, accepted) in &ends {
        let mut stream = stream;
        // As much as the buffers of a suspended connection take.
        stream
            .set_write_timeout(Some(Duration::from_millis(50)))
            .unwrap();
        let _ = stream.write(b"meanwhile");
        accepted
            .set_read_timeout(Some(Duration::from_millis(50)))
            .unwrap();
        let mut accepted = accepted;
        let read = accepted.read(&mut [0; 16]);
        assert!(read.is_err(), "{name}: {read:?}");
    }
    world.upgrade();
    world.ok(&["container", "resume", "box"]);
    assert_eq!(states(), [false, false]);
    for (name, stream, mut accepted) in ends {
        let mut own = &stream;
        own.write_all(b"afterwards").unwrap();
        drop(stream);
        accepted.set_read_timeout(Some(TIMEOUT)).unwrap();
        let mut text = String::new();
        accepted.read_to_string(&mut text).unwrap();
        assert!(text.ends_with("afterwards"), "{name}: {text}");
    }
}
