//! A real guest without vsock: the basis of all tests with guests.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use hvsock_guests::{Config, Error, File, Guest, Kit, Network, Vmm};
use hvsock_testkit::require;

const SOON: Duration = Duration::from_secs(30);

/// One guest for all cases, because a boot takes seconds.
#[test]
fn a_guest_runs_commands_copies_files_pauses_and_resets() {
    let Some(kit) = require::found(Kit::find_for(Vmm::Qemu)) else {
        return;
    };
    let mut config = Config::new("alone");
    config.network = Some(Network {
        forwarded: vec![1234],
    });
    config
        .files
        .push(File::bytes("/etc/motd", 0o600, "hello\n"));
    let start = Instant::now();
    let guest = Guest::boot(&kit, &config).expect("it starts");
    eprintln!("ready after {:?}", start.elapsed());

    let output = guest
        .run("hostname; cat /etc/motd; echo oh >&2; exit 3", SOON)
        .expect("run");
    assert_eq!(output.status, 3);
    assert_eq!(output.text(), "alone\nhello");
    assert_eq!(output.stderr_text(), "oh");
    let loaded = guest.run("cat /proc/modules", SOON).expect("run").text();
    assert!(loaded.contains("vmw_vsock_virtio_transport "), "{loaded}");

    several_at_once(&guest);
    files(&guest);
    limits(&guest);
    spawned(&guest);
    attached(&guest);
    network(&guest);
    paused(&guest);
    reset(&guest);

    let pid = guest.pid();
    guest.quit().expect("it quits");
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
}

fn several_at_once(guest: &Guest) {
    // Each command waits until all four have started, so they must run concurrently.
    let wait = "while [ $(ls /tmp/started.* | wc -l) -lt 4 ]; do sleep 0.1; done";
    thread::scope(|scope| {
        for index in 0..4 {
            scope.spawn(move || {
                let command = format!("touch /tmp/started.{index}; {wait}");
                let output = guest.run(&command, SOON).expect("run");
                assert!(output.success(), "{output:?}");
            });
        }
    });
}

fn files(guest: &Guest) {
    let content: Vec<u8> = (0..300_000_u32).map(|i| (i * 7 % 251) as u8).collect();
    guest.push("/some/where/it's", &content).expect("pushed");
    guest
        .run("mv \"/some/where/it's\" /tmp/x", SOON)
        .expect("run");
    assert_eq!(guest.pull("/tmp/x").expect("pulled"), content);
    let why = guest.pull("/nowhere").expect_err("not there").to_string();
    assert!(why.contains("No such file"), "{why}");
}

fn limits(guest: &Guest) {
    let limit = Duration::from_secs(1);
    let error = guest.run("echo so far; sleep 30", limit).expect_err("long");
    assert!(matches!(error, Error::TimedOut { .. }));
    assert!(error.to_string().contains("so far"), "{error}");
}

fn spawned(guest: &Guest) {
    let spawned = guest.spawn("echo begun; sleep 1; exit 5").expect("spawned");
    spawned.wait_for("begun", SOON).expect("it begins");
    assert_eq!(spawned.wait(SOON).expect("it ends").status, 5);
    let endless = guest.spawn("sleep 1000").expect("spawned");
    let error = endless
        .wait(Duration::from_millis(10))
        .expect_err("endless");
    assert!(matches!(error, Error::TimedOut { .. }), "{error}");
    endless.kill().expect("killed");
    assert_eq!(endless.wait(SOON).expect("it ends").status, 128 + 9);
}

fn attached(guest: &Guest) {
    let mut to = guest.attach("exec cat").expect("attached");
    to.set_read_timeout(Some(SOON)).expect("a limit");
    let mut from = BufReader::new(to.try_clone().expect("a second handle"));
    for text in ["one\n", "two \u{0}\u{7f}\n"] {
        to.write_all(text.as_bytes()).expect("written");
        let mut back = String::new();
        from.read_line(&mut back).expect("read");
        assert_eq!(back, text);
    }
}

fn network(guest: &Guest) {
    let server = guest.spawn("echo hi | nc -l -p 1234").expect("spawned");
    let port = guest.forwarded(1234).expect("it is forwarded");
    let deadline = Instant::now() + SOON;
    // QEMU accepts a connection before the guest does.
    loop {
        let stream = TcpStream::connect(("127.0.0.1", port)).expect("QEMU listens");
        let mut line = String::new();
        match BufReader::new(stream).read_line(&mut line) {
            Ok(1..) => break assert_eq!(line, "hi\n"),
            _ => assert!(Instant::now() < deadline, "the guest does not listen"),
        }
        thread::sleep(Duration::from_millis(50));
    }
    let _ = server.kill();
}

fn paused(guest: &Guest) {
    let clock = guest
        .spawn("while :; do cat /proc/uptime; sleep 0.1; done")
        .expect("spawned");
    guest.pause().expect("paused");
    let status = guest.monitor("query-status", &serde_json::json!({}));
    assert_eq!(status.expect("a status")["status"], "paused");
    guest.resume().expect("resumed");
    clock.wait_for("\n", SOON).expect("it runs");
    clock.kill().expect("killed");
}

fn reset(guest: &Guest) {
    guest.push("/tmp/gone", b"x").expect("pushed");
    let start = Instant::now();
    guest.reset().expect("it resets");
    eprintln!("ready again after {:?}", start.elapsed());
    let output = guest.run("ls /tmp/gone", SOON).expect("run");
    assert!(!output.success(), "{output:?}");
}
