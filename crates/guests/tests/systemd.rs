//! The machine's systemd in a guest in User-mode Linux.

use std::time::{Duration, Instant};

use hvsock_guests::{Config, Guest, Kit, Systemd, Vmm};
use hvsock_testkit::require;

const SOON: Duration = Duration::from_secs(60);

const UNIT: &str = "[Service]
Type=notify
ExecStart=/bin/sh -c 'systemd-notify --ready; exec sleep 1000'
NotifyAccess=all
";

#[test]
fn a_unit_is_started_and_killed_by_the_machines_systemd_and_the_machine_is_not_changed() {
    let Some(kit) = require::found(Kit::find_for(Vmm::Uml)) else {
        return;
    };
    let Some(()) = require::found(Systemd::installed()) else {
        return;
    };
    let mut config = Config::new("managed");
    config.systemd = true;
    let start = Instant::now();
    let guest = Guest::boot(&kit, &config).expect("it starts");
    let booted = start.elapsed();
    let systemd = guest.systemd().expect("systemd");
    eprintln!("ready after {booted:?} and {:?}", start.elapsed());
    let run = |command: &str| systemd.run(command, SOON).expect("run");

    let path = "/etc/systemd/system/sleeper.service";
    systemd.push(path, UNIT.as_bytes()).expect("pushed");
    let started =
        run("systemctl daemon-reload && systemctl start sleeper && systemctl is-active sleeper");
    assert_eq!(started.text(), "active", "{}", started.stderr_text());
    assert_eq!(run("systemctl --failed --plain --no-legend").text(), "");
    let killed = run(
        "systemctl kill -s KILL sleeper; while systemctl -q is-active sleeper; do sleep 0.1; done; \
         systemctl show -P Result sleeper",
    );
    assert_eq!(killed.text(), "signal");
    let journal = run("journalctl --no-pager -u sleeper");
    assert!(
        journal.text().contains("Failed with result 'signal'"),
        "{}",
        journal.text()
    );

    assert!(run("echo it\\'s > /usr/bin/new-file && cat /usr/bin/new-file").success());
    assert!(!std::path::Path::new("/usr/bin/new-file").exists());
    assert!(!std::path::Path::new(path).exists());
}
