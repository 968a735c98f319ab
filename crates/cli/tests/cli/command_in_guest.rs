//! The command in a guest without a broker.

use hvsock_guests::Guest;

use crate::guests::{GUEST_TIMEOUT, boot, qemu, run_in_guest, settles};
use crate::util::World;

/// Runs a command in a guest, which must fail. Returns its stderr.
fn failure(guest: &Guest, command: &str) -> String {
    let output = guest.run(command, GUEST_TIMEOUT).unwrap();
    assert_eq!(output.status, 1, "{command}: {}", output.text());
    output.stderr_text()
}

#[test]
fn in_a_guest_without_a_broker_errors_name_the_command_to_run_on_the_host() {
    let Some(kit) = qemu() else {
        return;
    };
    let world = World::new();
    world.ok(["vm", "add", "web", "--cid", "42"]);
    world.ok(["service", "register", "Hello", "--port", "2761"]);
    let guest = boot(&kit, &world, "web");
    settles(&world, "web", "running");

    for (command, words) in [
        (
            "connect parent Hello",
            "help: hvsock listen Hello --from web",
        ),
        ("connect parent Nothing", "the service is not registered"),
        ("connect db 2761", "cannot connect"),
        ("connect children 2761", "names many"),
        (
            "connect 0b2f1f0e-0000-4000-8000-000000000001 2761",
            "by its id",
        ),
        ("connect loopback 2761", "`modprobe vsock_loopback`"),
        ("connect parent 2761", "no listener accepts"),
        ("status", "help: run this on the host"),
        ("service list", "no broker runs in this virtual machine"),
        ("vm list", "no broker runs in this virtual machine"),
        (
            "service register Own --lease",
            "register it on the host with `hvsock service register`",
        ),
    ] {
        let error = failure(&guest, &format!("hvsock {command} </dev/null"));
        assert!(error.contains(words), "{command}: {error}");
    }
    // The command named for the host works there.
    let why = world.run(["why", "parent", "2761", "--from", "web"]);
    assert!(why.stdout.contains("no listener accepts"), "{}", why.stdout);

    // A service that sends data and closes ends a connect whose stdin stays open. `timeout` fails it after
    // 30 s.
    let _hello = world.listen(["Hello", "--from", "web", "--keep", "--", "echo", "hello"]);
    let open_input = "mkfifo /tmp/input; sleep 1000 >/tmp/input &";
    let connect = format!("{open_input} timeout 30 hvsock connect parent 2761 </tmp/input");
    assert_eq!(run_in_guest(&guest, &connect), "hello");

    // A guest with its own broker is the host of its containers.
    let demo = run_in_guest(&guest, "TMPDIR=/tmp hvsock demo");
    assert!(!demo.is_empty());
}
