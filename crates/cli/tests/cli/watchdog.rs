//! Threads of the broker that hang or panic, and what a service manager hears.

use std::fs;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::util::{Completed, DEMO, Running, TIMEOUT, eventually, folder, hvsock};

/// The file with what threads do wrong, in builds for tests.
const FAULT: &str = "HVSOCK_TEST_THREAD_FAULT";

/// A broker whose threads can be made to hang and panic.
struct World {
    folder: TempDir,
    broker: Running,
}

impl World {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(prepare: impl FnOnce(&mut Command)) -> Self {
        let folder = folder();
        let mut command = hvsock();
        command.arg("--dir").arg(folder.path());
        command.args(["broker", "--uplink", "off", "--no-cdi", "--hang-after", "1"]);
        command.env(FAULT, folder.path().join("fault"));
        let log = fs::File::create(folder.path().join("log")).unwrap();
        command.stdout(Stdio::piped()).stderr(log);
        prepare(&mut command);
        let mut broker = Running::start(&mut command);
        assert!(broker.line().starts_with("hvsock broker ready"));
        Self { folder, broker }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = hvsock();
        command.arg("--dir").arg(self.folder.path()).args(arguments);
        command
    }

    fn run(&self, arguments: &[&str]) -> Completed {
        Completed::of(&mut self.command(arguments))
    }

    fn ok(&self, arguments: &[&str]) -> String {
        self.run(arguments).ok()
    }

    fn status(&self) -> Value {
        serde_json::from_str(&self.ok(&["status", "--json"])).unwrap()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    fn fault_file(&self) -> PathBuf {
        self.folder.path().join("fault")
    }

    /// Has the next turn of a thread hang, or panic.
    fn set_fault(&self, fault: &str) {
        // Never seen half written.
        let new = self.folder.path().join("fault.new");
        fs::write(&new, fault).unwrap();
        fs::rename(new, self.fault_file()).unwrap();
    }

    fn wait_for_fault(&self) {
        eventually("a thread does what it was told", || {
            !self.fault_file().exists()
        });
    }

    /// A counter or gauge, without labels.
    fn metric(&self, name: &str) -> String {
        let endpoint = self.folder.path().join("control");
        let text = metrics(&endpoint);
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("no {name} in {text}"))
            .trim()
            .to_owned()
    }
}

fn metrics(control: &std::path::Path) -> String {
    use std::io::{Read as _, Write as _};
    let mut stream = UnixStream::connect(control).unwrap();
    let request = b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    stream.write_all(request).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

fn thread<'a>(status: &'a Value, name: &str) -> &'a Value {
    let threads = status["status"]["threads"].as_array().unwrap();
    let found = threads.iter().find(|thread| thread["name"] == name);
    found.unwrap_or_else(|| panic!("no thread {name} in {threads:?}"))
}

#[test]
fn the_service_manager_hears_again_and_again_that_the_broker_is_alive() {
    let notify = folder();
    let path = notify.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(TIMEOUT)).unwrap();
    let next = || {
        let mut message = [0; 200];
        let length = manager.recv(&mut message).unwrap();
        String::from_utf8_lossy(&message[..length]).into_owned()
    };
    let world = World::with(|command| {
        command.env("NOTIFY_SOCKET", &path);
        command.env("WATCHDOG_USEC", "200000");
    });
    let mut alive = 0;
    while alive < 5 {
        match next().as_str() {
            "WATCHDOG=1" => alive += 1,
            "READY=1" => {}
            other => panic!("{other}"),
        }
    }
    // Nor does an upgrade end it.
    let first = world.status()["status"]["pid"].clone();
    world.ok(&["upgrade"]);
    while next() != format!("MAINPID={}\nREADY=1", world.status()["status"]["pid"]) {}
    assert_ne!(world.status()["status"]["pid"], first);
    for _ in 0..3 {
        while next() != "WATCHDOG=1" {}
    }
}

#[test]
fn a_core_that_hangs_ends_the_broker_and_the_next_one_goes_on() {
    let mut world = World::new();
    world.ok(&["service", "register", DEMO]);
    let status = world.status();
    let core = thread(&status, "hvsock-core");
    assert_eq!(
        (&core["critical"], &core["stuck"]),
        (&true.into(), &false.into())
    );
    world.set_fault("hvsock-core:hang");
    // The command waits for the core, until the broker has ended or says that the core hangs.
    let failed = world.run(&["status"]);
    assert_eq!(failed.code, Some(1), "{failed:?}");
    let end = world.broker.end();
    assert_eq!(end.signal(), Some(Signal::ABORT.as_raw()), "{end:?}");
    let log = world.log();
    assert!(log.contains("the thread hvsock-core is stuck ("), "{log}");
    assert!(log.contains("; state S (sleeping), "), "{log}");
    let why = "the broker ends, because the thread hvsock-core has been stuck for ";
    assert!(log.contains(why), "{log}");

    let mut next = Running::start(
        world
            .command(&["broker", "--uplink", "off", "--no-cdi"])
            .stdout(Stdio::piped()),
    );
    assert!(next.line().starts_with("hvsock broker ready"));
    assert!(world.ok(&["service", "list"]).contains(DEMO));
}

#[test]
fn a_core_or_data_thread_that_panics_ends_the_broker() {
    for name in ["hvsock-core", "hvsock-data-0"] {
        let mut world = World::new();
        world.set_fault(&format!("{name}:panic"));
        // It wakes all threads.
        let _ = world.run(&["upgrade", "--dry-run"]);
        let end = world.broker.end();
        assert_eq!(end.signal(), Some(Signal::ABORT.as_raw()), "{end:?}");
        let log = world.log();
        let why = format!("the broker ends, because the thread {name} has panicked");
        assert!(log.contains(&why), "{log}");
    }
}

#[test]
fn a_vm_thread_that_hangs_is_a_problem_of_that_vm_until_it_goes_on() {
    let world = World::new();
    world.ok(&["service", "register", DEMO]);
    world.ok(&["vm", "add", "web", "--cid", "4"]);
    world.ok(&["vm", "add", "other", "--cid", "5"]);
    let before = world.status();
    assert_eq!(thread(&before, "hvsock-vm-4")["vm"], "web");
    assert_eq!(thread(&before, "hvsock-vm-4")["stuck"], false);
    world.set_fault("hvsock-vm-4:hang");
    let shown = world.ok(&["vm", "show", "web", "--json"]);
    let shown: Value = serde_json::from_str(&shown).unwrap();
    let socket = shown["socket"]
        .as_str()
        .unwrap_or_else(|| panic!("{shown}"));
    let _vmm = UnixStream::connect(socket).unwrap();
    world.wait_for_fault();
    let is_listed = |status: &Value| {
        let problems = status["status"]["problems"].as_array().unwrap();
        problems.iter().any(|problem| {
            let text = problem["text"].as_str().unwrap();
            problem["kind"] == "stuck_thread" && text.contains("hvsock-vm-4 of the VM web")
        })
    };
    eventually("the thread counts as stuck", || {
        let status = world.status();
        thread(&status, "hvsock-vm-4")["stuck"] == true && is_listed(&status)
    });
    assert_ne!(world.metric("hvsock_threads{state=\"stuck\"}"), "0.0");
    assert_ne!(world.metric("hvsock_thread_hangs_total"), "0");
    let text = world.ok(&["status"]);
    assert!(
        text.contains("the thread hvsock-vm-4 of the VM web is stuck"),
        "{text}"
    );
    assert_eq!(thread(&world.status(), "hvsock-vm-5")["stuck"], false);
    // Three times the limit, and the broker is the same.
    eventually("the kernel says where it sleeps", || {
        world.log().contains("hvsock-vm-4 of the VM web is stuck")
    });
    fs::write(world.fault_file(), "").unwrap();
    eventually("the thread goes on", || {
        let status = world.status();
        thread(&status, "hvsock-vm-4")["stuck"] == false && !is_listed(&status)
    });
    assert!(
        world
            .log()
            .contains("hvsock-vm-4 of the VM web goes on after")
    );
    assert_eq!(world.status()["status"]["pid"], before["status"]["pid"]);
}
