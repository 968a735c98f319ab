//! Real guests under QEMU, as an operator sees and steers them. What is tested of the device itself
//! is tested elsewhere; each guest here takes seconds to boot.

use std::path::Path;
use std::time::{Duration, Instant};

use hvsock_qemu::{Config, File, Guest, Kit, Vsock};
use hvsock_testkit::require;
use serde_json::json;

use crate::util::{DEMO, Done, World, eventually};

/// For a command in a guest whose processor is emulated.
pub const LONG: Duration = Duration::from_secs(60);
const ID: &str = "0b2f1f0e-0000-4000-8000-000000000001";

/// A guest with the command in it, for the VM of this name.
pub fn boot(kit: &Kit, world: &World, name: &str) -> Guest {
    let program = Path::new(env!("CARGO_BIN_EXE_hvsock"));
    let files = File::program(program, "/bin/hvsock").unwrap();
    boot_with(kit, world, name, files)
}

/// A guest with these files, for the VM of this name.
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

pub fn settles(world: &World, name: &str, want: &str) {
    eventually(want, || state(world, name) == want);
}

/// What a command in a guest prints.
pub fn inside(guest: &Guest, command: &str) -> String {
    let output = guest.run(command, LONG).unwrap();
    assert!(output.success(), "{command}: {}", output.stderr_text());
    output.text()
}

pub fn connect(world: &World, name: &str, service: &str, input: &str) -> Done {
    let mut command = world.command(["connect", name, service]);
    Done::with_input(&mut command, input.as_bytes())
}

#[test]
fn a_guest_and_its_host_reach_each_other_while_both_its_vmm_and_the_operator_let_it_run() {
    let Some(kit) = require::found(Kit::find()) else {
        return;
    };
    let world = World::new();
    world.ok(["vm", "add", "web", "--cid", "42"]);
    world.ok(["service", "register", DEMO, "--id", ID]);
    world.ok(["service", "register", "Echo", "--port", "7"]);
    world.ok(["service", "register", "Silent", "--port", "9"]);
    let guest = boot(&kit, &world, "web");
    settles(&world, "web", "running");
    let status = world.ok(["status"]);
    assert!(status.contains("web (vm with CID 42)  "), "{status}");

    // From the guest, by the template's port and by an alias.
    let _echo = world.listen(["Echo", "--from", "web", "--keep", "--", "cat"]);
    let _demo = world.listen([DEMO, "--from", "children", "--keep", "--", "cat"]);
    assert_eq!(inside(&guest, "echo hi | hvsock connect parent 7"), "hi");
    let by_id = format!("echo hi | hvsock connect parent {ID}");
    assert_eq!(inside(&guest, &by_id), "hi");
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
    eventually("it has ended", || world.connections().is_empty());
    let began = Instant::now();
    let refused = guest.run("hvsock connect parent 9 </dev/null", LONG);
    assert!(!refused.unwrap().success());
    let unregistered = guest.run("hvsock connect parent 10 </dev/null", LONG);
    assert!(!unregistered.unwrap().success());
    assert!(began.elapsed() < Duration::from_secs(4), "refused at once");

    // Into the guest.
    let listening = guest.spawn("hvsock listen 7 --keep -- cat").unwrap();
    eventually("the guest listens", || {
        connect(&world, "web", "Echo", "hello").stdout == "hello"
    });
    assert_eq!(connect(&world, "web", "7", "again").ok(), "again");
    let why = world.ok(["why", "web", "Echo"]);
    assert!(why.contains("the guest decides"), "{why}");
    let error = connect(&world, "web", "Silent", "").failed();
    assert!(error.contains("nobody listens"), "{error}");

    // Paused by its VMM, by the operator, by both.
    let shows = |text: &str| {
        let shown = world.ok(["vm", "show", "web"]);
        assert!(
            shown.contains(&format!("state         {text}\n")),
            "{shown}"
        );
    };
    guest.pause().unwrap();
    settles(&world, "web", "paused");
    shows("paused by its VMM");
    let error = connect(&world, "web", "Echo", "").failed();
    assert!(error.contains("paused"), "{error}");
    assert!(error.contains("vm resume web"), "{error}");
    world.ok(["vm", "pause", "web"]);
    guest.resume().unwrap();
    shows("paused");
    connect(&world, "web", "Echo", "").failed();
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
