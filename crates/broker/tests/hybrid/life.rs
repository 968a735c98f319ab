//! The life of a VM: its VMM starts, ends, is restored elsewhere, and its folder comes and goes.

use std::fs;
use std::io::Read;
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};

use hvsock::Refusal;
use hvsock_broker::model::PartitionState;
use hvsock_testkit::require;
use hvsock_testkit::wait::TIMEOUT;
use hvsock_testkit::world::{accept, partition_ref, refused};

use crate::links::hybrid_vmm::{HybridVmm, Kind};
use crate::vm::{PORT, Vm, new_vm};

/// A VMM in a process of its own, whose guest accepts every connect and says nothing.
const VMM: &str = "
import socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen(16)
held = []
while True:
    connection, _ = listener.accept()
    if connection.recv(64).startswith(b'CONNECT '):
        connection.sendall(b'OK 1073741824\\n')
        held.append(connection)
";

#[test]
fn a_vmms_death_is_seen_at_once_and_the_next_one_is_found() {
    let Some(python) = require::python3() else {
        return;
    };
    let vm = Vm::new("firecracker");
    vm.world.is("web", PartitionState::Defined);
    let started = || {
        let mut vmm = Command::new(&python);
        vmm.args(["-c", VMM]).arg(vm.path());
        vmm.stdin(Stdio::null()).spawn().expect("a VMM")
    };
    for _ in 0..2 {
        let mut vmm = started();
        vm.is_up();
        let mut outside = vm.world.connect_to("web", PORT).expect("connected");
        vm.world.is("web", PartitionState::Running);
        vmm.kill().expect("killed");
        vmm.wait().expect("ended");
        vm.world.is("web", PartitionState::Off);
        // Its sockets are closed before anybody knows that it is dead: an end, or a reset.
        assert_eq!(outside.read(&mut [0]).unwrap_or_default(), 0);
        vm.world.has_connections(0);
        assert_eq!(
            refused(vm.world.connect_to("web", PORT)),
            Refusal::PartitionOff
        );
        // Firecracker leaves its socket behind, and does not start while it is there.
        fs::remove_file(vm.path()).expect("removed");
    }
}

#[test]
fn a_socket_that_was_bound_before_it_listens_is_found_and_one_that_vanishes_is_off() {
    let vm = Vm::new("cloud-hypervisor");
    let vmm = vm.start(Kind::CloudHypervisor);
    let accepted = vmm.guest().listen(PORT);
    let mut outside = vm.world.connect_to("web", PORT).expect("connected");
    let _inside = accepted.recv_timeout(TIMEOUT).expect("accepted");
    // As Cloud Hypervisor does when its VM is shut down.
    fs::remove_file(vm.path()).expect("removed");
    vm.world.is("web", PartitionState::Off);
    assert!(outside.read(&mut [0]).is_err(), "its connections are reset");
    vm.world.has_connections(0);
}

#[test]
fn a_vmm_that_listens_no_more_is_off_at_the_next_connect() {
    let vm = Vm::new("firecracker");
    drop(vm.start(Kind::Firecracker));
    assert_eq!(
        refused(vm.world.connect_to("web", PORT)),
        Refusal::PartitionOff
    );
    vm.world.is("web", PartitionState::Off);
}

#[test]
fn a_restored_vm_at_the_same_path_is_a_new_one_without_connections() {
    let vm = Vm::new("firecracker");
    let first = vm.start(Kind::Firecracker);
    let accepted = first.guest().listen(PORT);
    let mut outside = vm.world.connect_to("web", PORT).expect("connected");
    let _inside = accepted.recv_timeout(TIMEOUT).expect("accepted");
    fs::rename(vm.path(), vm.folder.join("old")).expect("moved");
    let second = HybridVmm::start(&vm.path(), Kind::Firecracker);
    let accepted = second.guest().listen(PORT);
    assert!(outside.read(&mut [0]).is_err(), "its connections are reset");
    vm.is_up();
    let _outside = vm.world.connect_to("web", PORT).expect("connected");
    accepted.recv_timeout(TIMEOUT).expect("accepted");
}

#[test]
fn a_missing_folder_is_a_problem_until_it_is_there_and_a_new_one_is_followed() {
    let vm = Vm::new("firecracker");
    let path = vm.folder.join("jail/run/v.sock");
    let folder = path.parent().expect("a folder").to_owned();
    let handle = vm.world.handle();
    handle
        .remove_partition(&partition_ref("web"))
        .expect("removed");
    let added = handle.add_vm(new_vm("web", "firecracker", &path, None));
    added.expect("added");
    vm.has_problem("cannot open the folder");
    let listener = vm.world.listen_on(PORT);
    for _ in 0..2 {
        fs::create_dir_all(&folder).expect("a folder");
        let vmm = HybridVmm::start(&path, Kind::Firecracker);
        vm.is_up();
        vm.has_no_problem();
        let of_port = folder.join(format!("v.sock_{PORT}"));
        hvsock_testkit::wait::eventually("the host's socket", || of_port.exists());
        let _inside = vmm.guest().connect(PORT).expect("connected");
        accept(&listener);
        // The jail is removed with all that is in it, and made anew.
        let jail = vm.folder.join("jail");
        hvsock_testkit::wait::until_ok("the jail is removed", || fs::remove_dir_all(&jail));
        vm.world.is("web", PartitionState::Off);
        drop(vmm);
    }
}

#[test]
fn a_hosts_socket_that_somebody_removes_is_made_again() {
    let vm = Vm::new("firecracker");
    let vmm = vm.start(Kind::Firecracker);
    let listener = vm.world.listen_on(PORT);
    vm.has_socket(PORT);
    fs::remove_file(vm.socket(PORT)).expect("removed");
    vm.has_socket(PORT);
    let _inside = vmm.guest().connect(PORT).expect("connected");
    accept(&listener);
}

#[test]
fn a_socket_that_a_killed_broker_left_is_replaced_and_a_live_one_is_not() {
    let vm = Vm::new("firecracker");
    let vmm = vm.start(Kind::Firecracker);
    drop(UnixListener::bind(vm.socket(PORT)).expect("a socket"));
    let live = UnixListener::bind(vm.socket(PORT + 1)).expect("a socket");
    vm.world.register(PORT + 1);
    let listener = vm.world.listen_on(PORT);
    let other = vm.world.listen_on(PORT + 1);
    vm.has_problem("another process listens there");
    let _inside = vmm.guest().connect(PORT).expect("connected");
    accept(&listener);
    // Nothing of the other process is touched, and the socket is ours once it has gone.
    let _theirs = vmm.guest().connect(PORT + 1).expect("connected");
    live.accept().expect("its own");
    drop(live);
    vm.has_no_problem();
    let _inside = vmm.guest().connect(PORT + 1).expect("connected");
    accept(&other);
}

#[test]
fn a_vm_is_added_again_after_a_restart_of_the_broker() {
    let vm = Vm::new("openvmm");
    let vmm = vm.start(Kind::OpenVmm);
    let accepted = vmm.guest().listen(PORT);
    let Vm { world, folder } = vm;
    let vm = Vm {
        world: world.restarted(),
        folder,
    };
    vm.is_up();
    let _outside = vm.world.connect_to("web", PORT).expect("connected");
    accepted.recv_timeout(TIMEOUT).expect("accepted");
}
