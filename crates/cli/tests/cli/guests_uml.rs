//! Real guests in User-mode Linux, which boot in a second and need no emulated processor.

use hvsock_qemu::Kit;
use hvsock_testkit::require;

use crate::guests::{GUEST_TIMEOUT, boot, connect, run_in_guest, settles};
use crate::util::{DEMO, World, eventually};

const ID: &str = "0b2f1f0e-0000-4000-8000-000000000001";

#[test]
fn a_guest_in_user_mode_linux_and_its_host_reach_each_other() {
    let Some(kit) = require::found(Kit::find_uml()) else {
        return;
    };
    let world = World::new();
    world.ok(["vm", "add", "web", "--cid", "42"]);
    world.ok(["service", "register", DEMO, "--id", ID]);
    world.ok(["service", "register", "Echo", "--port", "7"]);
    let guest = boot(&kit, &world, "web");
    settles(&world, "web", "running");

    // From the guest, by the port of the vsock template and by GUID, which uses a port alias.
    let _echo = world.listen(["Echo", "--from", "web", "--keep", "--", "cat"]);
    let _demo = world.listen([DEMO, "--from", "children", "--keep", "--", "cat"]);
    for service in ["7", ID] {
        let command = format!("head -c 100000 /dev/zero | hvsock connect parent {service} | wc -c");
        assert_eq!(run_in_guest(&guest, &command), "100000");
    }
    let refused = guest.run("hvsock connect parent 10 </dev/null", GUEST_TIMEOUT);
    let error = refused.unwrap().stderr_text();
    assert!(error.contains("the host refused the connection"), "{error}");

    // Into the guest.
    let listening = guest.spawn("hvsock listen 7 --keep -- cat").unwrap();
    eventually("the guest listens", || {
        connect(&world, "web", "Echo", "hello").stdout == "hello"
    });
    drop(listening);

    guest.quit().unwrap();
    settles(&world, "web", "off");
}
