//! A broker with a VM of each VMM.

use std::io::{ErrorKind, Read};

use hvsock::HvStream;
use hvsock_testkit::guest::{FrontEnd, Guest, Options};
use hvsock_testkit::world::{PORT, WEB, World};
use serde_json::json;

/// The VMMs that are simulated.
pub const VMMS: [FrontEnd; 4] = [
    FrontEnd::CloudHypervisor,
    FrontEnd::Crosvm,
    FrontEnd::Libkrun,
    FrontEnd::OpenVmm,
];

/// The group of all VMs.
pub const GROUP: &str = "machines";

/// A broker with the VM `web` of this VMM, and the service of [`PORT`].
#[track_caller]
pub fn world(front_end: FrontEnd) -> World {
    let world = World::new();
    world.register(PORT);
    add(&world, "web", front_end, WEB);
    world
}

/// Adds a VM of this VMM.
#[track_caller]
pub fn add(world: &World, name: &str, front_end: FrontEnd, cid: u64) {
    let unsealed = !front_end.script().memory.sealed;
    let vm = json!({"name": name, "cid": cid, "groups": [GROUP], "unsealed_memory": unsealed});
    let vm = serde_json::from_value(vm).expect("a VM");
    world.handle().add_vm(vm).expect("added");
}

/// Starts the guest of `web`.
#[track_caller]
pub fn guest(world: &World, front_end: FrontEnd) -> Guest {
    world.guest_of("web", Options::of(front_end, WEB))
}

/// Runs a test with each VMM. The output of a failure names it.
pub fn each(mut test: impl FnMut(FrontEnd)) {
    for front_end in VMMS {
        eprintln!("with {front_end:?}");
        test(front_end);
    }
}

/// Asserts that the host's end of a connection was reset. Bytes that had arrived come first.
#[track_caller]
pub fn assert_reset(mut outside: HvStream) {
    let mut bytes = [0; 4096];
    let error = loop {
        match outside.read(&mut bytes) {
            Ok(0) => panic!("end of file instead of a reset"),
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
}
