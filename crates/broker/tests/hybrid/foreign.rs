//! A VMM's muxer that others wrote: vhost-device-vsock, with a guest that the test kit drives.
//!
//! `cargo xtask bench vm` installs it under `target/`; without it the tests are skipped.

use std::io::{ErrorKind, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use hvsock::Refusal;
use hvsock_broker::model::PartitionState;
use hvsock_testkit::guest::{Guest, Options};
use hvsock_testkit::require;
use hvsock_testkit::wait::{TIMEOUT, until_ok};
use hvsock_testkit::world::{accept, bounded, refused};

use crate::vm::{PORT, Vm};

/// The guest's context id.
const CID: u64 = 42;

/// A running vhost-device-vsock. Dropping it kills the process.
struct Muxer(Child);

impl Drop for Muxer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The VM `web`, whose guest is behind vhost-device-vsock.
fn start(program: &Path) -> (Vm, Muxer, Guest) {
    let vm = Vm::new("firecracker");
    let (muxer, guest) = start_muxer(program, &vm);
    (vm, muxer, guest)
}

/// Starts vhost-device-vsock and a guest of it at the path of a VM.
fn start_muxer(program: &Path, vm: &Vm) -> (Muxer, Guest) {
    let device = vm.folder.join("device");
    let muxer = Command::new(program)
        .args(["--guest-cid", &CID.to_string()])
        .arg("--socket")
        .arg(&device)
        .arg("--uds-path")
        .arg(vm.path())
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("vhost-device-vsock");
    let muxer = Muxer(muxer);
    let guest = until_ok("a guest", || Guest::start(&device, Options::new(CID)));
    vm.is_up();
    (muxer, guest)
}

#[test]
fn bytes_flow_both_ways_in_connections_of_both_directions() {
    let Some(program) = require::vhost_device_vsock() else {
        return;
    };
    let (vm, _muxer, guest) = start(&program);
    let inside = guest.listen(PORT).expect("listening");
    let listener = vm.world.listen_on(PORT);
    vm.has_socket(PORT);
    let bytes: Vec<u8> = (0..=255).cycle().take(300_000).collect();
    for turn in 0..6 {
        let (mut guests, mut hosts) = if turn % 2 == 0 {
            let host = vm.world.connect_to("web", PORT).expect("connected");
            (inside.accept(TIMEOUT).expect("accepted"), host)
        } else {
            let guest = until_ok("a connect", || guest.connect(PORT));
            (guest, accept(&listener))
        };
        guests = bounded(guests);
        vm.world.is("web", PartitionState::Running);
        std::thread::scope(|scope| {
            let sent = bytes.clone();
            let hosts = &mut hosts;
            let writer = scope.spawn(move || {
                hosts.write_all(&sent).expect("written");
                let mut back = vec![0; 5];
                hosts.read_exact(&mut back).expect("read");
                back
            });
            let mut got = vec![0; bytes.len()];
            guests.read_exact(&mut got).expect("read");
            assert!(got == bytes, "the bytes differ");
            guests.write_all(b"thank").expect("written");
            assert_eq!(writer.join().expect("no panic"), b"thank");
        });
        // A close of either end is seen at the other.
        if turn < 3 {
            drop(guests);
            assert_eq!(hosts.read(&mut [0]).unwrap_or_default(), 0);
        } else {
            drop(hosts);
            assert_eq!(guests.read(&mut [0]).unwrap_or_default(), 0);
        }
    }
    vm.world.has_connections(0);
}

#[test]
fn a_service_that_cannot_be_reached_is_refused_to_the_guest_and_to_the_host() {
    let Some(program) = require::vhost_device_vsock() else {
        return;
    };
    let (vm, _muxer, guest) = start(&program);
    // Registered, and nobody listens: there is no socket.
    let error = guest.connect(PORT).expect_err("refused");
    // Its reset arrives with the next packet only, if there is one.
    let kinds = [
        ErrorKind::ConnectionReset,
        ErrorKind::ConnectionRefused,
        ErrorKind::TimedOut,
    ];
    assert!(kinds.contains(&error.kind()), "{error}");
    // The guest does not listen; whether its driver runs, this VMM does not tell.
    let refusal = refused(vm.world.connect_to("web", PORT));
    assert!(
        matches!(
            refusal,
            Refusal::Reset { .. } | Refusal::NoListener | Refusal::TimedOut
        ),
        "{refusal:?}"
    );
    vm.world.has_connections(0);
}

#[test]
fn its_death_is_seen_and_its_successor_at_the_same_path_is_found() {
    let Some(program) = require::vhost_device_vsock() else {
        return;
    };
    let (vm, muxer, guest) = start(&program);
    let inside = guest.listen(PORT).expect("listening");
    let mut outside = vm.world.connect_to("web", PORT).expect("connected");
    let _held = inside.accept(Duration::from_secs(10)).expect("accepted");
    drop(muxer);
    vm.world.is("web", PartitionState::Off);
    assert_eq!(outside.read(&mut [0]).unwrap_or_default(), 0);
    vm.world.has_connections(0);
    // Killed, it has left its sockets behind, and does not start while they are there.
    drop(guest);
    for left in [vm.folder.join("device"), vm.path()] {
        let _ = std::fs::remove_file(left);
    }
    let (_successor, guest) = start_muxer(&program, &vm);
    let inside = guest.listen(PORT).expect("listening");
    let mut outside = vm.world.connect_to("web", PORT).expect("connected");
    let mut inside = bounded(inside.accept(TIMEOUT).expect("accepted"));
    outside.write_all(b"again").expect("written");
    let mut got = [0; 5];
    inside.read_exact(&mut got).expect("read");
    assert_eq!(&got, b"again");
    vm.world.is("web", PartitionState::Running);
}
