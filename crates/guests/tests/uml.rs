//! A real guest in User-mode Linux, without vsock.

use std::io::{BufRead, BufReader, Write};
use std::thread;
use std::time::{Duration, Instant};

use hvsock_guests::{Config, Error, File, Guest, Kit, Network, Vmm};
use hvsock_testkit::{require, wait};

const SOON: Duration = Duration::from_secs(30);

/// One guest for all cases.
#[test]
fn a_guest_in_user_mode_linux_runs_commands_copies_files_and_leaves_no_process() {
    let Some(kit) = require::found(Kit::find_for(Vmm::Uml)) else {
        return;
    };
    let mut config = Config::new("alone");
    config.containers = true;
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

    // What a container runtime needs: it pivots from the root, and it uses a group of processes.
    let pivots = "mkdir -p /tmp/new/old && mount --bind /tmp/new /tmp/new && \
                  unshare -m pivot_root /tmp/new /tmp/new/old && cat /sys/fs/cgroup/cgroup.controllers";
    let pivoted = guest.run(pivots, SOON).expect("run");
    assert!(pivoted.success(), "{}", pivoted.stderr_text());
    assert!(pivoted.text().contains("pids"), "{}", pivoted.text());

    // Each command waits until all four have started, so they must run concurrently.
    let wait = "while [ $(ls /tmp/started.* | wc -l) -lt 4 ]; do sleep 0.1; done";
    thread::scope(|scope| {
        for index in 0..4 {
            let guest = &guest;
            scope.spawn(move || {
                let command = format!("touch /tmp/started.{index}; {wait}");
                assert!(guest.run(&command, SOON).expect("run").success());
            });
        }
    });

    // All byte values pass a serial line.
    let content: Vec<u8> = (0..20_000_u32).map(|i| (i * 7 % 256) as u8).collect();
    guest.push("/some/where/x", &content).expect("pushed");
    assert!(guest.pull("/some/where/x").expect("pulled") == content);
    let mut to = guest.attach("exec cat").expect("attached");
    to.set_read_timeout(Some(SOON)).expect("a limit");
    let mut from = BufReader::new(to.try_clone().expect("a second handle"));
    let line = b"two \x00\x03\x04\x11\x13\x7f\xff\r\n";
    to.write_all(line).expect("written");
    let mut back = Vec::new();
    from.read_until(b'\n', &mut back).expect("read");
    assert_eq!(back, line);

    let error = guest.pause().expect_err("there is no monitor");
    assert!(matches!(error, Error::Unsupported { .. }), "{error}");
    let group = guest.pid();
    guest.quit().expect("it powers off");
    wait::eventually("its processes end", || members(group) == 0);
}

#[test]
fn killing_a_guest_in_user_mode_linux_leaves_no_process() {
    let Some(kit) = require::found(Kit::find_for(Vmm::Uml)) else {
        return;
    };
    let mut config = Config::new("killed");
    config.network = Some(Network::default());
    let error = Guest::boot(&kit, &config).expect_err("there is no network");
    assert!(matches!(error, Error::Unsupported { .. }), "{error}");
    config.network = None;
    let guest = Guest::boot(&kit, &config).expect("it starts");
    let _busy = guest.spawn("while :; do :; done").expect("spawned");
    let group = guest.pid();
    assert!(members(group) > 3);
    guest.kill();
    wait::eventually("its processes end", || members(group) == 0);
}

/// The running processes of a process group. Its dead ones may wait for another parent.
fn members(group: u32) -> usize {
    let processes = std::fs::read_dir("/proc").expect("processes").flatten();
    let stats =
        processes.filter_map(|process| std::fs::read_to_string(process.path().join("stat")).ok());
    let is_member = |stat: &String| {
        // PID (NAME) STATE PPID PGRP …
        let rest = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
        let mut words = rest.split(' ');
        let state = words.next();
        words.nth(1) == Some(&group.to_string()) && state != Some("Z")
    };
    stats.filter(is_member).count()
}
