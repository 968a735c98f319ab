//! The command in a guest without a broker, and what it says of that.

use std::time::Instant;

use hvsock_qemu::{Guest, Kit};
use hvsock_testkit::require;

use crate::guests::{LONG, boot, inside, settles};
use crate::util::World;

/// What a command in a guest complains about, which must fail.
fn fails(guest: &Guest, command: &str) -> String {
    let output = guest.run(command, LONG).unwrap();
    assert_eq!(output.status, 1, "{command}: {}", output.text());
    output.stderr_text()
}

#[test]
fn in_a_guest_without_a_broker_the_command_says_what_only_the_host_can_do() {
    let Some(kit) = require::found(Kit::find()) else {
        return;
    };
    let world = World::new();
    world.ok(["vm", "add", "web", "--cid", "42"]);
    world.ok(["service", "register", "Hello", "--port", "2761"]);
    let guest = boot(&kit, &world, "web");
    settles(&world, "web", "running");

    for (command, words) in [
        ("connect parent Hello", "`hvsock service show`"),
        ("listen Hello", "`hvsock service show`"),
        ("connect db 2761", "`parent` and `loopback`"),
        ("connect children 2761", "names many"),
        (
            "connect 0b2f1f0e-0000-4000-8000-000000000001 2761",
            "by its id",
        ),
        ("connect loopback 2761", "`modprobe vsock_loopback`"),
        (
            "connect parent 2761",
            "`hvsock why parent 2761 --from THIS_VM`",
        ),
        ("why parent 2761", "`hvsock why parent 2761 --from THIS_VM`"),
        (
            "why any 2761 --listen",
            "`hvsock why wildcard 2761 --listen --from THIS_VM`",
        ),
        ("status", "help: ask on the host (`hvsock listen`"),
        ("service list", "no broker in this virtual machine"),
        ("vm list", "no broker in this virtual machine"),
        (
            "service register Own --lease",
            "register it on the host with `hvsock service register`",
        ),
    ] {
        let said = fails(&guest, &format!("hvsock {command} </dev/null"));
        assert!(said.contains(words), "{command}: {said}");
    }
    // The command that it names for the host is one.
    let why = world.run(["why", "parent", "2761", "--from", "web"]);
    assert!(why.stdout.contains("nobody listens"), "{}", why.stdout);

    // A service that says something and closes ends a command whose input goes on.
    let _hello = world.listen(["Hello", "--from", "web", "--keep", "--", "echo", "hello"]);
    let start = Instant::now();
    let open_input = "mkfifo /tmp/input; sleep 1000 >/tmp/input &";
    let heard = format!("{open_input} timeout 30 hvsock connect parent 2761 </tmp/input");
    let heard = inside(&guest, &heard);
    assert_eq!(heard, "hello");
    assert!(start.elapsed() < LONG / 2);

    // With a broker of its own a guest is a host to its containers.
    let demo = inside(&guest, "TMPDIR=/tmp hvsock demo");
    assert!(!demo.is_empty());
}
