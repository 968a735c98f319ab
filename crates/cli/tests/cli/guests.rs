//! Real guests, as an operator controls them. Tests of the device itself are in hvsock-broker, with guests at
//! native speed.
//!
//! A guest in User-mode Linux boots faster than one under QEMU, but starts a process in 20 ms instead of 3 ms.
//! So tests of few commands use [`kit`], and those of many, or of what only QEMU can do, [`qemu`].

use std::path::Path;
use std::time::Duration;

use hvsock_guests::{Config, File, Guest, Kit, Vmm, Vsock};
use hvsock_testkit::require;
use serde_json::json;

use crate::util::{Completed, DEMO, World, eventually};

/// The timeout of a command in a guest, whose processor is emulated.
pub const GUEST_TIMEOUT: Duration = Duration::from_secs(60);
const ID: &str = "0b2f1f0e-0000-4000-8000-000000000001";

/// The kit for tests of few commands in the guest, for which the VMM does not matter. `HVSOCK_TEST_VMM=qemu` runs them under QEMU.
pub fn kit() -> Option<Kit> {
    match std::env::var("HVSOCK_TEST_VMM").as_deref() {
        Ok("qemu") => qemu(),
        _ => require::found(Kit::find_for(Vmm::Uml)),
    }
}

/// The kit for tests of many commands in the guest, or of what only QEMU can do.
pub fn qemu() -> Option<Kit> {
    require::found(Kit::find_for(Vmm::Qemu))
}

/// Boots a guest that has the command, for the VM of this name.
pub fn boot(kit: &Kit, world: &World, name: &str) -> Guest {
    let program = Path::new(env!("CARGO_BIN_EXE_hvsock"));
    let files = File::program(program, "/bin/hvsock").unwrap();
    boot_with(kit, world, name, files)
}

/// Boots a guest that has these files, for the VM of this name.
pub fn boot_with(kit: &Kit, world: &World, name: &str, files: Vec<File>) -> Guest {
    let mut config = Config::new(name);
    config.files = files;
    let socket = world.dir().join(format!("vm/{name}.sock"));
    config.vsock = Some(Vsock { socket });
    Guest::boot(kit, &config).unwrap()
}

fn state(world: &World, name: &str) -> String {
    let shown = world.json(["vm", "show", name, "--json"]);
    shown["state"].as_str().unwrap().to_owned()
}

/// Waits until the VM has this state.
pub fn settles(world: &World, name: &str, want: &str) {
    eventually(want, || state(world, name) == want);
}

/// Runs a command in a guest, which must succeed. Returns its stdout.
pub fn run_in_guest(guest: &Guest, command: &str) -> String {
    let output = guest.run(command, GUEST_TIMEOUT).unwrap();
    assert!(output.success(), "{command}: {}", output.stderr_text());
    output.text()
}

/// Checks that the host's refusal failed a command in the guest. Returns what it printed.
fn refused_in_guest(guest: &Guest, command: &str) -> String {
    let output = guest.run(command, GUEST_TIMEOUT).unwrap();
    assert!(!output.success(), "{command}: {}", output.text());
    format!("{}{}", output.text(), output.stderr_text())
}

pub fn connect(world: &World, name: &str, service: &str, input: &str) -> Completed {
    let mut command = world.command(["connect", name, service]);
    Completed::with_input(&mut command, input.as_bytes())
}

#[test]
fn a_guest_and_its_host_reach_each_other_unless_its_vmm_or_the_operator_pauses_it() {
    if let Some(kit) = qemu() {
        guest_and_host(&kit);
    }
}

#[test]
fn a_guest_in_user_mode_linux_and_its_host_reach_each_other_unless_the_operator_pauses_it() {
    if let Some(kit) = kit() {
        guest_and_host(&kit);
    }
}

fn guest_and_host(kit: &Kit) {
    let world = World::new();
    world.ok(["vm", "add", "web", "--cid", "42"]);
    world.ok(["service", "register", DEMO, "--id", ID]);
    world.ok(["service", "register", "Echo", "--port", "7"]);
    world.ok(["service", "register", "Silent", "--port", "9"]);
    let guest = boot(kit, &world, "web");
    settles(&world, "web", "running");
    let status = world.ok(["status"]);
    assert!(status.contains("web (vm with CID 42)  "), "{status}");

    // From the guest, by the port of the vsock template and by GUID, which uses a port alias.
    let _echo = world.listen(["Echo", "--from", "web", "--keep", "--", "cat"]);
    let _demo = world.listen([DEMO, "--from", "children", "--keep", "--", "cat"]);
    for service in ["7", ID] {
        let command = format!("head -c 100000 /dev/zero | hvsock connect parent {service} | wc -c");
        assert_eq!(run_in_guest(&guest, &command), "100000");
    }
    let held = guest
        .spawn("(echo hi; sleep 60) | hvsock connect parent 7")
        .unwrap();
    eventually("it is connected", || !world.connections().is_empty());
    let [connection] = &world.connections()[..] else {
        panic!("one connection");
    };
    assert_eq!(connection["from"]["guest"], json!(true));
    assert_eq!(connection["to"]["guest"], json!(false));
    let table = world.ok(["connections"]);
    assert!(table.contains("web (guest)"), "{table}");
    held.kill().unwrap();
    eventually("the connection ends", || world.connections().is_empty());
    for (port, reason) in [(9, "no listener accepts"), (10, "is not registered")] {
        let command = format!("hvsock connect parent {port} </dev/null");
        let error = refused_in_guest(&guest, &command);
        assert!(error.contains(reason), "{error}");
    }

    // Into the guest.
    let listening = guest.spawn("hvsock listen 7 --keep -- cat").unwrap();
    eventually("the guest listens", || {
        connect(&world, "web", "Echo", "hello").stdout == "hello"
    });
    assert_eq!(connect(&world, "web", "7", "again").ok(), "again");
    let why = world.ok(["why", "web", "Echo"]);
    assert!(why.contains("the guest decides"), "{why}");
    let error = connect(&world, "web", "Silent", "").failed();
    assert!(error.contains("no listener accepts"), "{error}");

    // Paused by the VMM, by the operator, by both.
    let shows = |text: &str| {
        let shown = world.ok(["vm", "show", "web"]);
        assert!(
            shown.contains(&format!("state         {text}\n")),
            "{shown}"
        );
    };
    let is_paused = |by: &str| {
        shows(by);
        let error = connect(&world, "web", "Echo", "").failed();
        assert!(error.contains("paused"), "{error}");
        assert!(error.contains("vm resume web"), "{error}");
    };
    if kit.vmm.can_pause() {
        guest.pause().unwrap();
        settles(&world, "web", "paused");
        is_paused("paused by its VMM");
    }
    world.ok(["vm", "pause", "web"]);
    if kit.vmm.can_pause() {
        guest.resume().unwrap();
    }
    is_paused("paused");
    world.ok(["vm", "resume", "web"]);
    settles(&world, "web", "running");
    assert_eq!(connect(&world, "web", "Echo", "on").ok(), "on");

    drop(listening);
    guest.quit().unwrap();
    settles(&world, "web", "off");
    let error = connect(&world, "web", "Echo", "").failed();
    assert!(error.contains("off"), "{error}");
    assert_eq!(world.connections(), Vec::<serde_json::Value>::new());
    world.ok(["vm", "remove", "web"]);
    assert!(!world.dir().join("vm/web.sock").exists());
    assert_eq!(world.json(["vm", "list", "--json"]), json!([]));
}

#[test]
fn a_guest_without_a_broker_uses_the_names_and_the_reasons_of_its_host() {
    let Some(kit) = kit() else {
        return;
    };
    let world = World::new();
    world.ok(["vm", "add", "web", "--cid", "42"]);
    world.ok(["service", "register", DEMO, "--id", ID]);
    world.ok(["service", "register", "Disabled", "--port", "11"]);
    world.ok(["service", "disable", "Disabled"]);
    let guest = boot(&kit, &world, "web");
    settles(&world, "web", "running");
    let _demo = world.listen([DEMO, "--from", "children", "--keep", "--", "cat"]);
    let demo = format!("'{DEMO}'");
    let echoed = run_in_guest(&guest, &format!("echo hi | hvsock connect parent {demo}"));
    assert_eq!(echoed, "hi");
    let why = run_in_guest(&guest, &format!("hvsock why parent {demo}"));
    assert!(why.contains("Is the service registered"), "{why}");
    for (service, reason) in [("Disabled", "disabled"), ("Nothing", "not registered")] {
        for command in ["connect", "why"] {
            let command = format!("hvsock {command} parent {service} </dev/null");
            let text = refused_in_guest(&guest, &command);
            assert!(text.contains(reason), "{command}: {text}");
        }
    }
    // What only a broker could do says what works here.
    let list = refused_in_guest(&guest, "hvsock service list");
    assert!(list.contains("`hvsock connect`"), "{list}");
    // A listener by name is at the port that the host connects to.
    let listening = guest
        .spawn(&format!("hvsock listen {demo} --keep -- cat"))
        .unwrap();
    eventually("the guest listens", || {
        connect(&world, "web", DEMO, "by name").stdout == "by name"
    });
    drop(listening);
    guest.quit().unwrap();
}
