//! A link that can do much: reasons, identities, states, suspends.

use std::io::{ErrorKind, Read, Write};
use std::time::Duration;

use hvsock_address::{PartitionRef, ServiceId, VmId};
use hvsock_broker::guest_link::{
    Capabilities, Destination, PartitionState, PeerIdentity, Refusal, Service, SocketKind,
};
use hvsock_broker::model;
use hvsock_testkit::conformance::{LONGEST_WAIT, Stream};

use crate::links::pipe_link::{CAPABILITIES, Wanted};
use hvsock_testkit::wait::eventually;
use hvsock_testkit::world::World;

use crate::links::world::LinkWorld as _;

const PORT: u32 = 5000;
const SHORT: Duration = Duration::from_millis(100);

fn name(name: &str) -> PartitionRef {
    PartitionRef::Name(name.parse().expect("a name"))
}

#[test]
fn a_refusal_has_its_reason_only_if_the_link_passes_reasons_on() {
    let world = World::new();
    let told = world.pipe_vm("told", CAPABILITIES);
    let reason = told.connect(Wanted::port(PORT)).err().expect("a refusal");
    assert_eq!(reason, Some(Refusal::Unregistered));
    world.register(PORT);
    let reason = told.connect(Wanted::port(PORT)).err().expect("a refusal");
    assert_eq!(reason, Some(Refusal::NoListener));

    let without = Capabilities {
        refusal_reason: false,
        ..CAPABILITIES
    };
    let untold = world.pipe_vm("untold", without);
    let reason = untold.connect(Wanted::port(PORT)).err().expect("a refusal");
    assert_eq!(reason, None);
}

#[test]
fn operators_see_a_guests_process_only_if_the_link_identifies_it() {
    let identity = PeerIdentity {
        pid: 77,
        uid: 0,
        gid: 5,
    };
    let without = Capabilities {
        identity: false,
        ..CAPABILITIES
    };
    for (capabilities, pid, uid) in [(CAPABILITIES, 77, 0), (without, 0, u32::MAX)] {
        let world = World::new();
        let mut guest = world.pipe_vm("web", capabilities);
        guest.identity = Some(identity);
        world.register(PORT);
        let listener = world.listen_over(PORT, true, 1).expect("a listener");
        let inside = guest.connect(Wanted::port(PORT)).expect("connected");
        let (outside, _) = listener.accept_timeout(LONGEST_WAIT).expect("accepted");
        let from = world.connection().from;
        assert_eq!((from.pid, from.uid, from.guest), (pid, uid, true));
        // Uid 0 of a guest is not this machine's root: neither by name nor to the listener.
        assert_eq!(from.user, None);
        assert_ne!(outside.peer().and_then(hvsock::Peer::uid), Some(0));
        drop((inside, outside));
        world.has_connections(0);
    }
}

#[test]
fn a_guests_root_is_not_the_hosts_root() {
    let world = World::new();
    let mut guest = world.pipe_vm("web", CAPABILITIES);
    guest.identity = Some(PeerIdentity {
        pid: 1,
        uid: 0,
        gid: 0,
    });
    let id = ServiceId::from_port(PORT).to_string();
    let service =
        serde_json::json!({"name": "For db", "id": id, "connect": {"partitions": ["db"]}});
    let service = serde_json::from_value(service).expect("a service");
    let registered = world.broker.handle().register(service, "tester".to_owned());
    registered.expect("registered");
    let _listener = world.listen_over(PORT, true, 1).expect("a listener");
    let reason = guest.connect(Wanted::port(PORT)).err().expect("a refusal");
    assert!(matches!(reason, Some(Refusal::Denied { .. })), "{reason:?}");
}

#[test]
fn a_guest_names_services_by_guid_and_partitions_by_id() {
    let world = World::new();
    let guest = world.pipe_vm("web", CAPABILITIES);
    world.register(PORT);
    let listener = world.listen_over(PORT, true, 1).expect("a listener");
    let wanted = Wanted {
        destination: Destination::Partition(VmId::PARENT),
        service: Service::Id(ServiceId::from_port(PORT)),
        kind: SocketKind::Stream,
    };
    let inside = guest.connect(wanted).expect("connected");
    let (mut outside, _) = listener.accept_timeout(LONGEST_WAIT).expect("accepted");
    assert_eq!(inside.write(b"by id").expect("a write"), 5);
    let mut buffer = [0; 5];
    outside.read_exact(&mut buffer).expect("the bytes");
    assert_eq!(&buffer, b"by id");
    let unknown = Wanted {
        destination: Destination::Partition(VmId::random()),
        ..wanted
    };
    let reason = guest.connect(unknown).err().expect("a refusal");
    assert_eq!(reason, Some(Refusal::NotReachable));
}

#[test]
fn messages_are_refused_before_they_are_tried() {
    let world = World::new();
    let guest = world.pipe_vm("web", CAPABILITIES);
    world.pipe_vm("db", CAPABILITIES);
    world.register(PORT);
    let _listener = world.listen_over(PORT, true, 1).expect("a listener");
    let to_the_host = Wanted {
        kind: SocketKind::Seqpacket,
        ..Wanted::port(PORT)
    };
    let to_a_sibling = Wanted {
        destination: Destination::Cid(world.cid("db")),
        ..to_the_host
    };
    for wanted in [to_the_host, to_a_sibling] {
        let reason = guest.connect(wanted).err().expect("a refusal");
        assert_eq!(reason, Some(Refusal::NotSupported));
    }
    assert!(
        world
            .broker
            .handle()
            .connections()
            .expect("a list")
            .is_empty()
    );
}

#[test]
fn bytes_are_counted_and_a_close_by_an_operator_reaches_both_ends() {
    let world = World::new();
    let guest = world.pipe_vm("web", CAPABILITIES);
    world.register(PORT);
    let streams = guest.listen(PORT);
    let mut outside = world.connect_over("web", PORT, true).expect("connected");
    let inside = streams.recv_timeout(LONGEST_WAIT).expect("accepted");
    outside.write_all(b"question").expect("a write");
    let mut buffer = [0; 8];
    assert_eq!(inside.read(&mut buffer).expect("the bytes"), 8);
    inside.write(b"42").expect("a write");
    outside.read_exact(&mut buffer[..2]).expect("the bytes");
    eventually("the bytes are not counted", || {
        let seen = world.connection();
        (seen.bytes_sent, seen.bytes_received) == (Some(8), Some(2))
    });
    let id = world.connection().id;
    world.broker.handle().close_connection(id).expect("closed");
    for error in [
        inside.read(&mut buffer).expect_err("a reset"),
        outside.read(&mut buffer).expect_err("a reset"),
    ] {
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }
    world.has_connections(0);
}

#[test]
fn a_guest_that_does_not_listen_refuses_and_one_that_is_off_is_not_asked() {
    let world = World::new();
    let guest = world.pipe_vm("web", CAPABILITIES);
    world.register(PORT);
    let error = world
        .connect_over("web", PORT, true)
        .expect_err("no listener");
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    let streams = guest.listen(PORT);
    guest.set_state(PartitionState::Off);
    let off = || world.partition("web").state == model::PartitionState::Off;
    eventually("the state was not reported", off);
    world
        .connect_over("web", PORT, true)
        .expect_err("it is off");
    guest.set_state(PartitionState::Running);
    eventually("the state was not reported", || !off());
    world
        .connect_over("web", PORT, true)
        .expect("it runs again");
    assert_eq!(streams.try_iter().count(), 1);
}

#[test]
fn a_paused_guest_receives_nothing_until_it_is_resumed() {
    let world = World::new();
    let guest = world.pipe_vm("web", CAPABILITIES);
    world.register(PORT);
    let streams = guest.listen(PORT);
    let mut outside = world.connect_over("web", PORT, true).expect("connected");
    let inside = streams.recv_timeout(LONGEST_WAIT).expect("accepted");
    outside.set_connected_suspend(true).expect("an option");
    eventually("the option was not reported", || {
        world.connection().from.connected_suspend
    });
    let handle = world.broker.handle();
    let set = |state| handle.set_state(&name("web"), state).expect("a state");
    set(model::PartitionState::Paused);
    outside.write_all(b"later").expect("a write");
    let mut buffer = [0; 5];
    inside.set_read_timeout(SHORT).expect("a timeout");
    let error = inside.read(&mut buffer).expect_err("it is paused");
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    set(model::PartitionState::Running);
    inside.set_read_timeout(LONGEST_WAIT).expect("a timeout");
    assert_eq!(inside.read(&mut buffer).expect("the bytes"), 5);
}

#[test]
fn a_removed_vm_resets_its_connections_and_leaves_nothing_behind() {
    let world = World::new();
    let guest = world.pipe_vm("web", CAPABILITIES);
    world.register(PORT);
    let streams = guest.listen(PORT);
    let mut outside = world.connect_over("web", PORT, true).expect("connected");
    let inside = streams.recv_timeout(LONGEST_WAIT).expect("accepted");
    let handle = world.broker.handle();
    let groups = vec!["others".to_owned()];
    handle.set_groups(&name("web"), groups).expect("groups");
    // A link cannot be restored from a file, so the VM has none.
    let files = world.folder.path().join("partitions");
    let entries = std::fs::read_dir(files).expect("the broker's folder of partitions");
    let names = entries.map(|entry| entry.expect("an entry").file_name());
    let files: Vec<_> = names.filter(|name| name != ".lock").collect();
    assert!(files.is_empty(), "{files:?}");
    handle.remove_partition(&name("web")).expect("removed");
    let mut buffer = [0; 1];
    for error in [
        inside.read(&mut buffer).expect_err("a reset"),
        outside.read(&mut buffer).expect_err("a reset"),
    ] {
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }
    world.has_connections(0);
    world.pipe_vm("web", CAPABILITIES);
}
