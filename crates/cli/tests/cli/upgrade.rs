//! `hvsock upgrade` and `hvsock broker --take-over`.

mod arenas;

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use hvsock::{Endpoint, HvListener, HvStream, Lease, ServiceId};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::util::{Completed, Running, TIMEOUT, eventually, folder, hvsock};

/// The steps at which a side of a handover can be broken off, in builds for tests.
pub const FAULTS: &str = "HVSOCK_TEST_HANDOVER";

/// A broker that is upgraded. Its processes end with the test.
pub struct World {
    folder: TempDir,
    pub first: Running,
}

impl World {
    pub fn new() -> Self {
        Self::with(|_| {})
    }

    /// With these faults of both sides.
    fn faulty(faults: &str) -> Self {
        Self::with(|command| {
            command.env(FAULTS, faults);
        })
    }

    /// With the faults that [`set_faults`](Self::set_faults) names.
    pub fn with_faults_of_a_file() -> Self {
        Self::made(Path::new(env!("CARGO_BIN_EXE_hvsock")), |command, dir| {
            command.env(FAULTS, format!("@{}", dir.join("faults").display()));
        })
    }

    /// The faults of the next upgrade.
    pub fn set_faults(&self, faults: &str) {
        fs::write(self.dir().join("faults"), faults).unwrap();
    }

    /// Waits until a process has stopped.
    pub fn wait_for_stop(&self, pid: u64) {
        eventually("the process has stopped", || {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
            stat.rsplit(") ").next().unwrap().starts_with('T')
        });
    }

    /// Lets a process go on that has stopped.
    pub fn go_on(&self, pid: u64) {
        let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
        kill_process(pid, Signal::CONT).unwrap();
    }

    pub fn with(prepare: impl FnOnce(&mut Command)) -> Self {
        Self::of_program(Path::new(env!("CARGO_BIN_EXE_hvsock")), prepare)
    }

    fn of_program(program: &Path, prepare: impl FnOnce(&mut Command)) -> Self {
        Self::made(program, |command, _| prepare(command))
    }

    fn made(program: &Path, prepare: impl FnOnce(&mut Command, &Path)) -> Self {
        Self::started(Command::new(program), folder(), prepare)
    }

    /// With a broker that a keeper starts, by a link to the program in the folder.
    pub fn kept(prepare: impl FnOnce(&mut Command)) -> Self {
        let folder = folder();
        let program = folder.path().join("hvsock");
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_hvsock"), &program).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_hvsock"));
        command.args(["keeper", "--"]).arg(program);
        Self::started(command, folder, |command, _| prepare(command))
    }

    fn started(
        mut command: Command,
        folder: TempDir,
        prepare: impl FnOnce(&mut Command, &Path),
    ) -> Self {
        for name in ["HVSOCK_DIR", "HVSOCK_ENDPOINT", "NOTIFY_SOCKET"] {
            command.env_remove(name);
        }
        let log = fs::File::create(folder.path().join("log")).unwrap();
        command.arg("--dir").arg(folder.path());
        command.args(["broker", "--uplink", "off"]);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log);
        prepare(&mut command, folder.path());
        let mut first = Running::start(&mut command);
        let ready = first.line();
        assert!(ready.starts_with("hvsock broker ready: "), "{ready}");
        Self { folder, first }
    }

    pub fn dir(&self) -> &Path {
        self.folder.path()
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.dir().join("log")).unwrap()
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = hvsock();
        command.arg("--dir").arg(self.dir()).args(arguments);
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Completed {
        Completed::of(&mut self.command(arguments))
    }

    pub fn ok(&self, arguments: &[&str]) -> String {
        self.run(arguments).ok()
    }

    pub fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.ok(arguments)).unwrap()
    }

    pub fn upgrade(&self) -> Value {
        self.json(&["upgrade", "--json"])
    }

    /// The process of the running broker.
    pub fn pid(&self) -> u64 {
        self.json(&["status", "--json"])["status"]["pid"]
            .as_u64()
            .unwrap()
    }

    pub fn endpoint(&self) -> Endpoint {
        Endpoint::in_dir(self.dir())
    }

    pub fn register(&self, name: &str) {
        self.ok(&["service", "register", name]);
    }

    pub fn listen(&self, service: &str) -> HvListener {
        let address = format!("hvsock://any/{service}");
        let endpoint = self.endpoint();
        HvListener::options()
            .endpoint(endpoint)
            .listen(address.as_str())
            .unwrap()
    }

    fn connect(&self, service: &str) -> std::io::Result<HvStream> {
        let address = format!("hvsock://loopback/{service}");
        HvStream::options()
            .endpoint(self.endpoint())
            .connect(address.as_str())
    }

    /// A connection of this process to itself, with a few bytes each way.
    pub fn round_trip(&self, listener: &HvListener, service: &str) {
        use std::io::{Read as _, Write as _};
        thread::scope(|scope| {
            scope.spawn(|| {
                let (mut stream, _) = listener.accept().unwrap();
                let mut bytes = [0; 5];
                stream.read_exact(&mut bytes).unwrap();
                stream.write_all(&bytes).unwrap();
            });
            let mut stream = self.connect(service).unwrap();
            stream.write_all(b"hello").unwrap();
            let mut bytes = [0; 5];
            stream.read_exact(&mut bytes).unwrap();
            assert_eq!(&bytes, b"hello");
        });
        eventually("the broker sees the end", || {
            self.json(&["connections", "--json"]) == Value::Array(vec![])
        });
    }

    /// The processes that serve this folder.
    pub fn brokers(&self) -> Vec<Pid> {
        let wanted = self.dir().as_os_str().as_encoded_bytes();
        let processes = fs::read_dir("/proc").unwrap().flatten();
        let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let serves = |pid: &i32| {
            let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let words: Vec<&[u8]> = words.split(|byte| *byte == 0).collect();
            words.get(2) == Some(&wanted) && words.contains(&&b"broker"[..])
        };
        pids.filter(serves).filter_map(Pid::from_raw).collect()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // A keeper would start another broker.
        let _ = self.first.child.kill();
        for pid in self.brokers() {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

fn exists(pid: u64) -> bool {
    Pid::from_raw(i32::try_from(pid).unwrap()).is_some_and(|pid| test_kill_process(pid).is_ok())
}

#[test]
fn listeners_and_leases_go_on_in_the_new_broker() {
    let world = World::new();
    world.register("echo");
    let listener = world.listen("echo");
    let lease =
        Lease::register_at(&world.endpoint(), "leased", ServiceId::from_port(7777), "").unwrap();
    let leased = world.listen("leased");
    let rounds = std::env::var("HVSOCK_TEST_UPGRADES");
    let rounds: u32 = rounds.map_or(20, |rounds| rounds.parse().unwrap());
    let mut pid = world.pid();
    for _ in 0..rounds {
        let upgrade = world.upgrade();
        assert_eq!(upgrade["to_version"], env!("CARGO_PKG_VERSION"));
        assert_ne!(upgrade["pid"].as_u64().unwrap(), pid);
        pid = upgrade["pid"].as_u64().unwrap();
        assert_eq!(world.pid(), pid);
        world.round_trip(&listener, "echo");
        world.round_trip(&leased, "leased");
        lease.check().unwrap();
    }
    drop(lease);
    eventually("the lease ends with its owner", || {
        !world.ok(&["service", "list"]).contains("leased")
    });
    let status = world.json(&["status", "--json"]);
    assert_eq!(
        status["status"]["problems"],
        Value::Array(vec![]),
        "{status}"
    );
    assert_eq!(world.brokers().len(), 1);
}

/// What is left after a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    /// The first broker, as if nothing had been.
    First,
    /// The second one, with all that the first had.
    Second,
    /// The second one, which has started without anything.
    Fresh,
}

/// Upgrades a broker while one of both sides fails, and checks which one runs afterwards.
fn check_fault(faults: &str, expected: Left) {
    let mut world = World::faulty(faults);
    world.register("echo");
    let listener = world.listen("echo");
    let first = world.pid();
    let mut upgrade = world.command(&["upgrade", "--standstill-limit", "500"]);
    let upgrade = Completed::of(&mut upgrade);
    eventually("one broker is left", || {
        // A first broker that was killed is a zombie until the test has waited for it.
        let _ = world.first.child.try_wait();
        world.brokers().len() == 1 && world.run(&["status"]).code == Some(0)
    });
    let pid = world.pid();
    assert_eq!(
        pid == first,
        expected == Left::First,
        "{faults}: {}",
        world.log()
    );
    if expected == Left::First {
        let error = upgrade.failed();
        assert!(error.contains("goes on"), "{faults}: {error}");
    }
    match expected {
        Left::First | Left::Second => world.round_trip(&listener, "echo"),
        Left::Fresh => {
            let again = world.listen("echo");
            world.round_trip(&again, "echo");
        }
    }
}

#[test]
fn a_new_broker_that_fails_at_any_step_leaves_the_running_one_as_it_was() {
    for step in [
        "WelcomeReceived",
        "Prepared",
        "Receiving",
        "Received",
        "Restored",
    ] {
        check_fault(&format!("fail:{step}"), Left::First);
    }
}

#[test]
fn a_new_broker_that_is_killed_at_any_step_leaves_the_running_one_as_it_was() {
    for step in [
        "WelcomeReceived",
        "Prepared",
        "Receiving",
        "Received",
        "Restored",
    ] {
        check_fault(&format!("die:{step}"), Left::First);
    }
}

#[test]
fn a_new_broker_that_hangs_is_ended_and_the_running_one_goes_on() {
    for step in ["Receiving", "Received", "Restored"] {
        check_fault(&format!("stop:{step}"), Left::First);
    }
}

#[test]
fn a_running_broker_that_fails_at_any_step_goes_on() {
    for step in [
        "Connected",
        "Welcomed",
        "PreparedReceived",
        "Frozen",
        "DescriptorsSent",
        "DocumentSent",
        "EndSent",
    ] {
        check_fault(&format!("fail:{step}"), Left::First);
    }
}

#[test]
fn a_running_broker_that_is_killed_before_it_has_sent_its_state_is_replaced_by_an_empty_one() {
    for step in [
        "Connected",
        "Welcomed",
        "PreparedReceived",
        "Frozen",
        "DescriptorsSent",
        "DocumentSent",
    ] {
        check_fault(&format!("die:{step}"), Left::Fresh);
    }
}

#[test]
fn a_running_broker_that_is_killed_after_it_has_sent_its_state_is_replaced_by_one_with_it() {
    for step in ["EndSent", "StartedReceived"] {
        check_fault(&format!("die:{step}"), Left::Second);
    }
}

#[test]
fn connects_and_operators_wait_during_the_standstill_and_succeed() {
    let world = World::faulty("wait:Restored");
    world.register("echo");
    let listener = world.listen("echo");
    let first = world.pid();
    thread::scope(|scope| {
        let upgrade = scope.spawn(|| world.upgrade());
        let mut before = 0;
        while !upgrade.is_finished() {
            world.round_trip(&listener, "echo");
            world.ok(&["service", "register", &format!("service {before}")]);
            before += 1;
        }
        let upgrade = upgrade.join().unwrap();
        assert!(
            upgrade["standstill_ms"].as_f64().unwrap() >= 400.0,
            "{upgrade}"
        );
        assert!(before > 0);
        let Value::Array(services) = world.json(&["service", "list", "--json"]) else {
            panic!("services are a list");
        };
        assert_eq!(services.len(), before + 1);
    });
    assert_ne!(world.pid(), first);
}

#[test]
fn a_file_that_changes_while_the_new_broker_prepares_is_in_force_in_it() {
    let world = World::faulty("wait:Prepared");
    world.register("before");
    thread::scope(|scope| {
        let upgrade = scope.spawn(|| world.upgrade());
        // The new broker may have read the files before or after these changes.
        for number in 0.. {
            if upgrade.is_finished() {
                break;
            }
            world.register(&format!("service {number}"));
        }
        world.ok(&["service", "unregister", "before"]);
        upgrade.join().unwrap();
    });
    let listed = world.ok(&["service", "list"]);
    assert!(
        listed.contains("service 0") && !listed.contains("before"),
        "{listed}"
    );
    let status = world.json(&["status", "--json"]);
    assert_eq!(
        status["status"]["problems"],
        Value::Array(vec![]),
        "{status}"
    );
}

#[test]
fn a_dry_run_does_everything_and_the_running_broker_goes_on() {
    let world = World::new();
    world.register("echo");
    let listener = world.listen("echo");
    let first = world.pid();
    let text = world.ok(&["upgrade", "--dry-run"]);
    assert!(
        text.contains("can take over") && text.contains("4 listeners"),
        "{text}"
    );
    assert_eq!(world.pid(), first);
    world.round_trip(&listener, "echo");
    eventually("the new broker has ended", || world.brokers().len() == 1);
}

#[test]
fn a_broker_is_taken_over_by_hand() {
    let mut world = World::new();
    world.register("echo");
    let listener = world.listen("echo");
    let mut command = world.command(&["broker", "--uplink", "off", "--take-over"]);
    let mut second = Running::start(command.stdout(Stdio::piped()));
    let ready = second.line();
    let expected = format!(
        "hvsock broker ready, in place of hvsock {}",
        env!("CARGO_PKG_VERSION")
    );
    assert!(ready.starts_with(&expected), "{ready}");
    assert!(world.first.end().success());
    assert_eq!(world.pid(), u64::from(second.child.id()));
    world.round_trip(&listener, "echo");
    // It has the lock, too.
    let error = world.run(&["broker", "--uplink", "off"]).failed();
    assert!(error.contains("holds the lock"), "{error}");
    // With another name it is another partition's broker.
    let other = [
        "broker",
        "--uplink",
        "off",
        "--take-over",
        "--name",
        "other",
    ];
    let error = world.run(&other).failed();
    assert!(error.contains("this is to be the host other"), "{error}");
    second.signal(Signal::TERM);
    assert!(second.end().success());
    assert!(!world.dir().join("handover").exists());
    let error = world.run(&["broker", "--take-over"]).failed();
    assert!(error.contains("no broker runs"), "{error}");
}

#[test]
fn a_program_that_does_not_start_leaves_the_broker_running_until_it_is_repaired() {
    let programs = folder();
    let program = programs.path().join("hvsock");
    fs::copy(env!("CARGO_BIN_EXE_hvsock"), &program).unwrap();
    let world = World::of_program(&program, |_| {});
    let first = world.pid();
    let replace = |content: Option<&str>| {
        fs::remove_file(&program).unwrap();
        if let Some(content) = content {
            let new = programs.path().join("new");
            fs::write(&new, content).unwrap();
            fs::set_permissions(&new, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
            fs::rename(&new, &program).unwrap();
        }
    };
    let fails = |expected: &str| {
        let error = world.run(&["upgrade"]).failed();
        assert!(
            error.contains("goes on") && error.contains(expected),
            "{error}"
        );
        assert_eq!(world.pid(), first);
    };
    replace(Some("#!/bin/sh\nexit 7\n"));
    fails("ended before it had taken over (exit status: 7)");
    replace(Some("no program"));
    fails("cannot start");
    replace(None);
    fs::copy(env!("CARGO_BIN_EXE_hvsock"), &program).unwrap();
    world.upgrade();
    assert_ne!(world.pid(), first);
}

#[test]
fn only_operators_and_processes_of_the_brokers_user_may_take_it_over() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let world = World::new();
    let first = world.pid();
    let other = |arguments: &[&str]| {
        let mut command = world.command(arguments);
        Completed::of(command.uid(65534).gid(65534))
    };
    let error = other(&["upgrade"]).failed();
    assert!(error.contains("root"), "{error}");
    let error = other(&["broker", "--uplink", "off", "--no-cdi", "--take-over"]).failed();
    assert!(error.contains("Permission denied"), "{error}");
    let mode = fs::metadata(world.dir().join("handover")).unwrap();
    assert_eq!(
        std::os::unix::fs::PermissionsExt::mode(&mode.permissions()) & 0o777,
        0o600
    );
    // A client that says nothing, or nonsense, delays nobody for long and ends nothing.
    let silent = hvsock_sys::seqpacket::connect(&world.dir().join("handover"), TIMEOUT).unwrap();
    hvsock_sys::message::send(&silent, b"nonsense", &[]).unwrap();
    drop(silent);
    assert_eq!(world.pid(), first);
    world.upgrade();
}

#[test]
fn the_service_manager_is_told_which_process_the_broker_is() {
    let notify = folder();
    let path: PathBuf = notify.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(TIMEOUT)).unwrap();
    let next = || {
        let mut message = [0; 200];
        let length = manager.recv(&mut message).unwrap();
        String::from_utf8_lossy(&message[..length]).into_owned()
    };
    let world = World::with(|command| {
        command.env("NOTIFY_SOCKET", &path);
    });
    assert_eq!(next(), "READY=1");
    world.ok(&["upgrade", "--dry-run"]);
    assert!(next().starts_with("RELOADING=1\nMONOTONIC_USEC="));
    assert_eq!(next(), "READY=1");
    world.upgrade();
    assert!(next().starts_with("RELOADING=1\nMONOTONIC_USEC="));
    assert_eq!(next(), format!("MAINPID={}\nREADY=1", world.pid()));
    assert_eq!(next(), "READY=1");
}

#[test]
fn a_hang_up_reads_the_files_again_and_ends_nothing() {
    let mut world = World::new();
    let first = world.pid();
    for _ in 0..3 {
        world.first.signal(Signal::HUP);
        world.register(&format!("after {:?}", Instant::now()));
    }
    assert_eq!(world.pid(), first);
    assert!(world.first.child.try_wait().unwrap().is_none());
}

#[test]
fn followers_of_events_see_each_one_once_across_upgrades() {
    let world = World::new();
    let mut command = world.command(&["events", "--json"]);
    let mut follower = Running::start(command.stdout(Stdio::piped()).stderr(Stdio::piped()));
    world.register("first");
    let mut seen = vec![follower.line()];
    while !seen.last().is_some_and(|line| line.contains("first")) {
        world.ok(&["service", "unregister", "first"]);
        world.register("first");
        seen.push(follower.line());
    }
    for round in 0..3 {
        thread::scope(|scope| {
            scope.spawn(|| world.upgrade());
            for number in 0..6 {
                world.register(&format!("round {round} {number}"));
            }
        });
    }
    world.register("last");
    let registered = |line: &str| {
        let event: Value = serde_json::from_str(line).unwrap();
        let is_one = event["event"] == "service_registered";
        is_one.then(|| event["service"].as_str().unwrap().to_owned())
    };
    let mut services = Vec::new();
    while services.last().is_none_or(|service| service != "last") {
        services.extend(registered(&follower.line()));
    }
    services.retain(|service| service.starts_with("round"));
    let rounds =
        (0..3).flat_map(|round| (0..6).map(move |number| format!("round {round} {number}")));
    assert!(services.iter().cloned().eq(rounds), "{services:?}");
}

#[test]
fn a_broker_that_was_replaced_ends_soon_and_removes_nothing() {
    let mut world = World::new();
    let first = world.pid();
    let before = Instant::now();
    world.upgrade();
    assert!(world.first.end().success());
    assert!(before.elapsed() < Duration::from_secs(30));
    assert!(!exists(first) || world.brokers().len() == 1);
    for name in ["endpoint", "text", "control", "handover", "lock"] {
        assert!(world.dir().join(name).exists(), "{name}");
    }
}
