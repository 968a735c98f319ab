//! Threads of the broker that hang or panic, and the keep-alives to a service manager.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use hvsock::{Endpoint, HvListener, HvStream};
use hvsock_testkit::guest::{FrontEnd, Guest, GuestStream, Options};
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

    /// Gives a thread work until it has done what it was told. It may do one piece in the turn that it is in already,
    /// so one is not enough.
    fn wait_for_fault(&self, mut work: impl FnMut()) {
        eventually("a thread does what it was told", || {
            work();
            !self.fault_file().exists()
        });
    }

    fn listen(&self) -> HvListener {
        let endpoint = Endpoint::in_dir(self.folder.path());
        let listener = HvListener::options().endpoint(endpoint);
        listener
            .listen(format!("hvsock://any/{DEMO}").as_str())
            .unwrap()
    }

    fn socket(&self, vm: &str) -> PathBuf {
        let shown: Value = serde_json::from_str(&self.ok(&["vm", "show", vm, "--json"])).unwrap();
        shown["socket"].as_str().unwrap().into()
    }

    fn guest(&self, vm: &str, cid: u64) -> Guest {
        let options = Options::of(FrontEnd::CloudHypervisor, cid);
        Guest::start(&self.socket(vm), options).unwrap()
    }

    fn state(&self, vm: &str) -> Value {
        let status = self.status();
        let partitions = status["partitions"].as_array().unwrap();
        let found = partitions.iter().find(|partition| partition["name"] == vm);
        found.unwrap()["state"].clone()
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
fn the_service_manager_gets_keep_alives_again_and_again() {
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
    world.wait_for_fault(|| drop(world.run(&["status"])));
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
        world.wait_for_fault(|| drop(world.run(&["upgrade", "--dry-run"])));
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
    world.wait_for_fault(|| drop(UnixStream::connect(socket).unwrap()));
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

/// A connection of a guest with this process, and bytes each way.
fn pair(guest: &Guest, listener: &HvListener) -> std::io::Result<(GuestStream, HvStream)> {
    let mut pair = connected(guest, listener)?;
    exchange(&mut pair);
    Ok(pair)
}

fn connected(guest: &Guest, listener: &HvListener) -> std::io::Result<(GuestStream, HvStream)> {
    let guest = guest.connect(PORT)?;
    guest.set_read_timeout(Some(TIMEOUT));
    guest.set_write_timeout(Some(TIMEOUT));
    let (host, _) = listener.accept()?;
    host.set_read_timeout(Some(TIMEOUT))?;
    Ok((guest, host))
}

fn exchange((guest, host): &mut (GuestStream, HvStream)) {
    let mut bytes = [0; 5];
    guest.write_all(b"there").unwrap();
    host.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"there");
    host.write_all(b"again").unwrap();
    guest.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"again");
}

const PORT: u32 = 5000;

#[test]
fn a_vm_whose_thread_panics_loses_its_connections_only_and_no_other_vm_notices() {
    let world = World::new();
    world.ok(&["service", "register", DEMO, "--port", &PORT.to_string()]);
    world.ok(&["vm", "add", "web", "--cid", "4"]);
    world.ok(&["vm", "add", "other", "--cid", "5"]);
    let listener = world.listen();
    let (web, other) = (world.guest("web", 4), world.guest("other", 5));
    let mut kept = pair(&other, &listener).unwrap();
    let (mut guest, mut host) = pair(&web, &listener).unwrap();
    world.set_fault("hvsock-vm-4:panic");
    // It may be accepted, or not.
    world.wait_for_fault(|| drop(guest.write(b"lost")));
    let mut rest = Vec::new();
    let error = host.read_to_end(&mut rest).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
    let error = guest.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
    assert_eq!(web.transport_resets(), 1);
    exchange(&mut kept);
    let mut next = pair(&web, &listener).unwrap();
    assert_eq!(world.state("web"), "running");
    assert_eq!(world.metric("hvsock_thread_panics_total"), "1");
    assert_eq!(world.status()["status"]["connections"], 2);
    exchange(&mut next);
    assert_eq!(web.protocol_violations(), Vec::<String>::new());

    // Again and again: then the VMM is disconnected, and the next one finds a device that works.
    eventually("the VM is off", || {
        if !world.fault_file().exists() {
            world.set_fault("hvsock-vm-4:panic");
        }
        let _ = web.connect(PORT);
        world.state("web") == "off"
    });
    let _ = fs::remove_file(world.fault_file());
    exchange(&mut kept);
    drop(web);
    let web = world.guest("web", 4);
    eventually("connections of before are gone", || {
        world.status()["status"]["connections"] == 1
    });
    let accepted = std::thread::spawn(move || {
        // Those that were accepted before are closed.
        loop {
            let (mut host, _) = listener.accept().unwrap();
            host.set_read_timeout(Some(TIMEOUT)).unwrap();
            let mut bytes = [0; 5];
            if host.read_exact(&mut bytes).is_ok() {
                assert_eq!(&bytes, b"works");
                host.write_all(&bytes).unwrap();
                return (listener, host);
            }
        }
    });
    let mut stream = web.connect(PORT).unwrap();
    stream.set_read_timeout(Some(TIMEOUT));
    stream.write_all(b"works").unwrap();
    let mut bytes = [0; 5];
    stream.read_exact(&mut bytes).unwrap();
    let (_listener, _host) = accepted.join().unwrap();
    assert_eq!(&bytes, b"works");
    assert!(world.log().contains("so the VMM is disconnected"));
}

#[test]
fn a_vmm_whose_thread_panics_is_disconnected_and_the_next_one_is_served() {
    let world = World::new();
    world.ok(&["service", "register", DEMO, "--port", &PORT.to_string()]);
    world.ok(&["vm", "add", "web", "--cid", "4"]);
    let listener = world.listen();
    let web = world.guest("web", 4);
    let (_guest, mut host) = pair(&web, &listener).unwrap();
    world.set_fault("hvsock-vmm-4:panic");
    let socket = world.socket("web");
    world.wait_for_fault(|| drop(UnixStream::connect(&socket).unwrap()));
    let error = host.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
    eventually("the VM is off", || world.state("web") == "off");
    drop(web);
    let web = world.guest("web", 4);
    pair(&web, &listener).unwrap();
    assert_eq!(world.metric("hvsock_thread_panics_total"), "1");
}
