//! The log of `hvsock broker`: what others cause in it is bounded.

use std::io::Write as _;
use std::os::unix::net::UnixStream;

use crate::util::{World, eventually};

#[test]
fn a_vmm_that_connects_again_and_again_fills_no_log() {
    const CONNECTS: usize = 500;

    let mut world = World::logged();
    world.ok(["vm", "add", "web"]);
    let socket = world.dir().join("vm/web.sock");
    for _ in 0..CONNECTS {
        let mut vmm = UnixStream::connect(&socket).expect("the broker listens");
        // A vhost-user request of an unknown kind. The broker may have closed already.
        let _ = vmm.write_all(&[0xff; 12]);
    }
    eventually("the broker has seen a VMM", || {
        world.log().contains("VMM connected")
    });
    // The end of the broker logs the counts that are not due yet.
    world.broker().signal(rustix::process::Signal::TERM);
    world.broker().end();
    let log = world.log();
    let lines: Vec<&str> = log.lines().collect();
    assert!(lines.len() < 60, "{} lines:\n{log}", lines.len());
    let counted = lines
        .iter()
        .find(|line| line.contains("similar lines left out in"))
        .unwrap_or_else(|| panic!("no count:\n{log}"));
    assert!(counted.contains("cid=3"), "{counted}");
}
