//! Connects of the guest to the host: sockets that exist only while a connect would be accepted.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::MetadataExt;

use hvsock::{HvAddr, HvListener, PartitionRef, ServiceId, VmId};
use hvsock_broker::model::PartitionState;
use hvsock_endpoint::LookupKind;
use hvsock_endpoint::uplink::{GuestFrame, Hello, HostFrame, UPLINK_PORT};
use hvsock_testkit::require;
use hvsock_testkit::uplink::Client;
use hvsock_testkit::wait::{TIMEOUT, eventually};
use hvsock_testkit::world::{accept, service_ref};

use crate::links::hybrid_vmm::Kind;
use crate::vm::{PORT, Vm};

#[test]
fn a_socket_exists_only_while_its_service_is_registered_allowed_and_listened_to() {
    let vm = Vm::new("firecracker");
    let vmm = vm.start(Kind::Firecracker);
    assert!(vmm.guest().connect(PORT).is_err());
    let listener = vm.world.listen_on(PORT);
    vm.has_socket(PORT);
    let mut inside = vmm.guest().connect(PORT).expect("connected");
    let mut outside = accept(&listener);
    vm.world.is("web", PartitionState::Running);
    inside.write_all(b"ping").expect("written");
    outside.read_exact(&mut [0; 4]).expect("the bytes");
    outside.write_all(b"pong").expect("written");
    inside.read_exact(&mut [0; 4]).expect("the bytes");
    eventually("the bytes are counted", || {
        let seen = vm.world.connection();
        (seen.bytes_sent, seen.bytes_received) == (Some(4), Some(4))
    });
    // Nobody listens.
    drop(listener);
    vm.has_no_socket(PORT);
    let listener = vm.world.listen_on(PORT);
    vm.has_socket(PORT);
    // The operator pauses the VM.
    let handle = vm.world.handle();
    let web = hvsock_testkit::world::partition_ref("web");
    handle
        .set_state(&web, PartitionState::Paused)
        .expect("paused");
    vm.has_no_socket(PORT);
    handle
        .set_state(&web, PartitionState::Running)
        .expect("resumed");
    vm.has_socket(PORT);
    // The service is no more.
    handle.unregister(&service_ref(PORT)).expect("unregistered");
    vm.has_no_socket(PORT);
    vm.world.register(PORT);
    let again = vm.world.listen_on(PORT);
    vm.has_socket(PORT);
    drop((listener, again));
    vm.has_no_socket(PORT);
    handle.remove_partition(&web).expect("removed");
}

#[test]
fn a_vmm_finds_the_sockets_of_services_that_were_listened_to_before_it_started() {
    let vm = Vm::new("cloud-hypervisor");
    let listener = vm.world.listen_on(PORT);
    vm.world.later_exchange();
    assert!(!vm.socket(PORT).exists(), "there is no VMM yet");
    let vmm = vm.start(Kind::CloudHypervisor);
    vm.has_socket(PORT);
    let _inside = vmm.guest().connect(PORT).expect("connected");
    accept(&listener);
    drop(vm.world);
    assert!(!vm.folder.join(format!("v.sock_{PORT}")).exists());
    drop(vmm);
}

#[test]
fn openvmm_finds_a_service_without_a_port_by_its_guid() {
    const GUID: &str = "e0e16197-dd56-4a10-9195-5ee7a155a838";
    let vm = Vm::new("openvmm");
    let service = serde_json::json!({"name": "Echo", "id": GUID});
    let service = serde_json::from_value(service).expect("a service");
    let handle = vm.world.handle();
    handle
        .register(service, "tester".into())
        .expect("registered");
    let vmm = vm.start(Kind::OpenVmm);
    let id: ServiceId = GUID.parse().expect("a GUID");
    let options = HvListener::options().endpoint(vm.world.host().endpoint());
    let at = HvAddr::new(PartitionRef::Id(VmId::CHILDREN), id);
    let listener = options.listen(at).expect("listening");
    let alias = id.vsock_alias().expect("an alias");
    for name in [GUID, &alias.to_string()] {
        vm.has_socket(name);
        let _inside = vmm.guest().connect(name).expect("connected");
        accept(&listener);
    }
    drop(listener);
    vm.has_no_socket(GUID);
    vm.has_no_socket(alias);
}

#[test]
fn the_sockets_belong_to_the_vmms_user_alone() {
    let Some(()) = require::root() else { return };
    let vm = Vm::new("firecracker");
    let web = hvsock_testkit::world::partition_ref("web");
    vm.world.handle().remove_partition(&web).expect("removed");
    vm.add("firecracker", Some("nobody"));
    let _vmm = vm.start(Kind::Firecracker);
    let _listener = vm.world.listen_on(PORT);
    vm.has_socket(PORT);
    let found = vm.socket(PORT).metadata().expect("a file");
    assert_eq!((found.uid(), found.mode() & 0o777), (65_534, 0o600));
}

#[test]
fn a_guests_end_of_data_reaches_the_process() {
    let vm = Vm::new("firecracker");
    let vmm = vm.start(Kind::Firecracker);
    let listener = vm.world.listen_on(PORT);
    vm.has_socket(PORT);
    let mut inside = vmm.guest().connect(PORT).expect("connected");
    let mut outside = accept(&listener);
    inside.write_all(b"bye").expect("written");
    drop(inside);
    let mut all = Vec::new();
    outside.read_to_end(&mut all).expect("an end");
    assert_eq!(all, b"bye");
    drop(outside);
    vm.world.has_connections(0);
}

#[test]
fn a_process_that_closes_ends_the_guests_connection() {
    let vm = Vm::new("firecracker");
    let vmm = vm.start(Kind::Firecracker);
    let listener = vm.world.listen_on(PORT);
    vm.has_socket(PORT);
    let mut inside = vmm.guest().connect(PORT).expect("connected");
    let mut outside = accept(&listener);
    outside.write_all(b"bye").expect("written");
    drop(outside);
    inside.set_read_timeout(Some(TIMEOUT)).expect("a bound");
    let mut all = Vec::new();
    match inside.read_to_end(&mut all) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
    }
    assert_eq!(all, b"bye");
}

#[test]
fn a_guest_always_finds_the_brokers_own_socket_and_looks_names_up_there() {
    let vm = Vm::new("firecracker");
    let vmm = vm.start(Kind::Firecracker);
    vm.has_socket(UPLINK_PORT);
    let open = || {
        let stream = vmm.guest().connect(UPLINK_PORT).expect("connected");
        stream.set_read_timeout(Some(TIMEOUT)).expect("a bound");
        Client::new(stream)
    };
    let mut client = open();
    let found = client.look_up(LookupKind::Partition, "web");
    assert_eq!(found, Ok(VmId::LOOPBACK.to_guid_bytes()));
    // Such a link has no ports of the guest, so nothing proves that root opens an uplink.
    let hello = GuestFrame::Hello(Hello {
        features: 0,
        instance: [1; 16],
    });
    assert!(matches!(client.ask(&hello), HostFrame::Refused(_)));
    assert_eq!(client.receive(), None);
    let web = hvsock_testkit::world::partition_ref("web");
    let handle = vm.world.handle();
    let mut held = open();
    handle
        .set_state(&web, PartitionState::Paused)
        .expect("paused");
    vm.has_socket(UPLINK_PORT);
    handle.remove_partition(&web).expect("removed");
    assert_eq!(held.receive(), None);
    vm.has_no_socket(UPLINK_PORT);
}
