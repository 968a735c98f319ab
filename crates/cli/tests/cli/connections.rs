//! `hvsock status`, `hvsock connections` and `hvsock events`.

use std::io::{Read, Write};
use std::process::Stdio;
use std::thread;

use hvsock::{ConnectOptions, Endpoint, HvListener, Refusal};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::util::{DEMO, Running, TIMEOUT, World, eventually};

#[test]
fn an_open_connection_is_listed_with_both_ends_bytes_and_age() {
    let world = World::new();
    let id = world.register(DEMO);
    let cat = world.listen([DEMO, "--from", "loopback", "--keep", "--", "cat"]);
    let mut command = world.command(["connect", "loopback", DEMO]);
    let mut connect = Running::start(command.stdin(Stdio::piped()).stdout(Stdio::piped()));
    connect.write(b"hi\n");
    assert_eq!(connect.line(), "hi");
    let mut connections = Vec::new();
    eventually("the bytes are counted", || {
        connections = world.connections();
        connections[0]["bytes_received"] == 3
    });
    let [connection] = connections.as_slice() else {
        panic!("{connections:?}");
    };
    assert_eq!(
        (&connection["service"], &connection["service_name"]),
        (&json!(id), &json!(DEMO))
    );
    assert_eq!(connection["from"]["pid"], json!(connect.child.id()));
    assert_eq!(connection["to"]["pid"], json!(cat.child.id()));
    for end in ["from", "to"] {
        assert_eq!(connection[end]["partition"], "machine");
        assert_eq!(
            connection[end]["uid"],
            json!(rustix::process::geteuid().as_raw())
        );
        assert!(connection[end]["user"].is_string());
    }
    assert_eq!(connection["bytes_sent"], 3);
    assert!(connection["age_seconds"].as_f64().unwrap() > 0.0);
    assert_eq!(connection["state"], "open");
    let transport = connection["transport"].as_str().unwrap();
    assert!(["ring", "descriptor"].contains(&transport), "{transport}");
    let table = world.ok(["connections"]);
    let pid = format!("pid {}", connect.child.id());
    for part in ["SERVICE", DEMO, "machine", &pid, "3 B", "open", transport] {
        assert!(table.contains(part), "{part} is not in\n{table}");
    }
    connect.end_input();
    connect.end();
    eventually("the connection ends", || world.connections().is_empty());
    assert_eq!(world.ok(["connections"]), "no connections\n");
}

#[test]
fn the_transport_of_a_service_is_set_shown_and_explained_and_direct_bytes_are_not_counted() {
    let world = World::new();
    world.ok(["service", "register", DEMO, "--transport", "direct"]);
    let shown = world.ok(["service", "show", DEMO]);
    assert!(shown.contains("direct (bytes are not counted)"), "{shown}");
    let _cat = world.listen([DEMO, "--from", "loopback", "--keep", "--", "cat"]);
    let mut command = world.command(["connect", "loopback", DEMO]);
    let mut connect = Running::start(command.stdin(Stdio::piped()).stdout(Stdio::piped()));
    connect.write(b"hi\n");
    assert_eq!(connect.line(), "hi");
    let connections = world.connections();
    assert_eq!(connections[0]["transport"], "direct");
    assert_eq!(connections[0]["bytes_sent"], Value::Null);
    let table = world.ok(["connections"]);
    assert!(
        table.contains("not counted") && !table.contains("0 B"),
        "{table}"
    );
    let why = world.ok(["why", "loopback", DEMO]);
    assert!(why.contains("transport = \"direct\""), "{why}");
    connect.end_input();
    assert!(connect.end().success());
    world.ok(["service", "transport", DEMO, "inherit"]);
    let shown = world.ok(["service", "show", DEMO]);
    assert!(shown.contains("transport     auto"), "{shown}");
    let wrong = world.run(["service", "transport", DEMO, "fast"]);
    let wrong = wrong.usage_error();
    assert!(wrong.contains("auto, direct, inherit"), "{wrong}");
}

#[test]
fn disabling_a_service_closes_its_connections_with_econnreset() {
    let world = World::new();
    world.register(DEMO);
    let web = world.container("web");
    let listener = HvListener::options()
        .endpoint(world.endpoint())
        .listen(("children", DEMO))
        .unwrap();
    let mut client = ConnectOptions::new()
        .endpoint(Endpoint::at(web))
        .connect(("parent", DEMO))
        .unwrap();
    let (mut server, _) = listener.accept_timeout(TIMEOUT).unwrap();
    client.write_all(b"x").unwrap();
    server.read_exact(&mut [0]).unwrap();
    assert_eq!(world.connections()[0]["from"]["partition"], "web");
    world.ok(["service", "disable", DEMO]);
    for end in [&mut client, &mut server] {
        end.set_read_timeout(Some(TIMEOUT)).unwrap();
        let error = end.read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        let refusal = hvsock::refusal_of(&error).unwrap();
        assert!(matches!(refusal, Refusal::Disabled { .. }), "{refusal}");
    }
    eventually("the connection ends", || world.connections().is_empty());
}

#[test]
fn disabling_a_service_closes_its_loopback_connections() {
    let world = World::new();
    world.register(DEMO);
    let _cat = world.listen([DEMO, "--from", "loopback", "--keep", "--", "cat"]);
    let mut command = world.command(["connect", "loopback", DEMO]);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut connect = Running::start(&mut command);
    connect.write(b"hi\n");
    assert_eq!(connect.line(), "hi");
    world.ok(["service", "disable", DEMO]);
    assert_eq!(connect.end().code(), Some(1));
    let error = connect.rest_of_stderr();
    assert!(
        error.contains("closed") && error.contains("disabled"),
        "{error}"
    );
    let error = world.run(["connect", "loopback", DEMO]).failed();
    assert!(error.contains("service enable"), "{error}");
}

#[test]
fn status_shows_the_tree_of_partitions_with_listeners_and_connections() {
    let world = World::new();
    world.register(DEMO);
    world.container("web");
    world.ok(["container", "add", "db", "--group", "back"]);
    world.ok(["container", "pause", "db"]);
    let _cat = world.listen([DEMO, "--from", "children", "--keep", "--", "cat"]);
    let _loop = world.listen(["2761", "--from", "loopback", "--keep", "--", "cat"]);
    let mut command = world.command(["connect", "loopback", "2761"]);
    let mut connect = Running::start(command.stdin(Stdio::piped()).stdout(Stdio::piped()));
    connect.write(b"x\n");
    connect.line();
    let text = world.ok(["status"]);
    assert!(
        !text.contains("hvsock heartbeat"),
        "a listener of the broker itself is listed: {text}"
    );
    for line in [
        "machine (host)",
        "├─ listens: HV Socket Demo from children",
        "├─ listens: 2761 from loopback",
        "├─ db (container in back) paused",
        "└─ web (container)",
        "connections",
    ] {
        assert!(
            text.lines().any(|l| l.starts_with(line)),
            "{line} is not in\n{text}"
        );
    }
    let everything = world.json(["status", "--json"]);
    assert_eq!(everything["status"]["partition"], "machine");
    // The lists also contain the broker's own listeners.
    let broker = &everything["status"]["pid"];
    for (list, count) in [("partitions", 3), ("listeners", 2), ("connections", 1)] {
        let listed = everything[list].as_array().unwrap();
        let others = listed.iter().filter(|one| &one["end"]["pid"] != broker);
        assert_eq!(others.count(), count, "{list}");
        assert_eq!(everything["status"][list], listed.len(), "{list}");
    }
}

#[test]
fn status_reports_invalid_files() {
    let world = World::new();
    let id = world.register(DEMO);
    let file = world.dir().join("services").join(format!("{id}.toml"));
    std::fs::write(&file, "name = \"HV Socket Demo\"\nenabeld = true\n").unwrap();
    eventually("the problem is reported", || {
        let text = world.ok(["status"]);
        text.contains("problem:") && text.contains(&id) && text.contains("enabeld")
    });
}

#[test]
fn events_are_printed_until_ctrl_c() {
    let world = World::new();
    let mut command = world.command(["events", "--json"]);
    let mut events = Running::start(command.stdout(Stdio::piped()).stderr(Stdio::piped()));
    let mut note = [0; 9];
    events
        .child
        .stderr
        .as_mut()
        .unwrap()
        .read_exact(&mut note)
        .unwrap();
    assert_eq!(&note, b"following");
    world.register(DEMO);
    let _ = world.run(["connect", "parent", DEMO]);
    let mut next = || -> Value { serde_json::from_str(&events.line()).unwrap() };
    let first = next();
    assert_eq!(
        (&first["event"], &first["service"]),
        (&json!("service_registered"), &json!(DEMO))
    );
    assert!(first["time_ms"].as_u64().unwrap() > 1_600_000_000_000);
    assert_eq!(next()["event"], "refused");
    events.signal(Signal::INT);
    events.end();

    // With -q nothing shows when the events are followed, so partitions are added until one is printed.
    let mut events = Running::start(world.command(["-q", "events"]).stdout(Stdio::piped()));
    let first = thread::spawn(move || events.line());
    let mut count = 0;
    eventually("an event is printed", || {
        count += 1;
        world.container(&format!("web{count}"));
        first.is_finished()
    });
    let line = first.join().unwrap();
    assert!(
        line.contains("partition web") && line.ends_with(" added"),
        "{line}"
    );
}

#[test]
fn bench_compares_with_a_unix_socket() {
    let world = World::new();
    let figures = world.json(["bench", "--turns", "2", "--time", "5", "--json"]);
    for figure in ["throughput", "round_trip", "connections"] {
        let ratio = &figures[figure]["ratio"];
        let [least, middle, most] =
            ["min", "median", "max"].map(|end| ratio[end].as_f64().unwrap());
        assert!(
            0.0 < least && least <= middle && middle <= most,
            "{figures}"
        );
        assert!(figures[figure]["hvsock"]["median"].as_f64().unwrap() > 0.0);
    }
    let table = world.ok(["bench", "--turns", "1", "--time", "5"]);
    assert!(
        table.contains("UNIX SOCKET") && table.contains("GB/s"),
        "{table}"
    );
    eventually("no connection is left", || world.connections().is_empty());
}
