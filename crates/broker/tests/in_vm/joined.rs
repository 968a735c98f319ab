//! Two brokers, of a host and of a virtual machine, and processes of both.

use std::io::{Read, Write};
use std::net::Shutdown;

use hvsock::{HvStream, VmId};
use hvsock_broker::model::{PartitionState, UplinkState};
use hvsock_fabric::Refusal;
use hvsock_registry::Principal;
use hvsock_testkit::wait::eventually;
use hvsock_testkit::world::wire::Wire;
use hvsock_testkit::world::{PartitionEndpoint, World, accept, refused};
use serde_json::json;

use super::script::{DEMO, machine};

/// A host with the VM `web`, and the broker in it, with an uplink.
struct Joined {
    guest: World,
    host: World,
    _wire: Wire,
}

impl Joined {
    fn new(hands_over: bool) -> Self {
        let wire = Wire::new();
        let host = World::new();
        let vm = serde_json::from_value(json!({"name": "web"})).unwrap();
        let link = wire.link(hands_over);
        host.handle().add_vm_with_link(vm, link).unwrap();
        let guest = machine(&wire);
        let joined = Self {
            guest,
            host,
            _wire: wire,
        };
        joined.is_open();
        joined
    }

    fn is_open(&self) {
        eventually("the uplink is open", || {
            let partitions = self.guest.handle().partitions().unwrap();
            let uplink = partitions.iter().find_map(|one| one.uplink.as_ref());
            uplink.is_some_and(|uplink| uplink.state == UplinkState::Open)
        });
    }

    /// A container in the machine, which the host knows.
    fn container(&self, name: &str) -> PartitionEndpoint {
        let inside = self.guest.container(name, None);
        self.host_knows(&format!("web/{name}"), true);
        inside
    }

    fn host_knows(&self, name: &str, knows: bool) {
        eventually(&format!("the host knows {name}: {knows}"), || {
            let found = self.host.handle().partitions().unwrap();
            found.iter().any(|one| one.name.as_str() == name) == knows
        });
    }
}

/// Bytes both ways, to the end of each.
fn talk(mut a: HvStream, mut b: HvStream) {
    for _ in 0..2 {
        a.write_all(b"hello").unwrap();
        a.shutdown(Shutdown::Write).unwrap();
        let mut text = String::new();
        b.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
        std::mem::swap(&mut a, &mut b);
    }
}

#[test]
fn every_pair_of_partitions_of_a_host_and_its_machine_connects_where_both_registries_allow() {
    for hands_over in [true, false] {
        let joined = Joined::new(hands_over);
        let (host, guest) = (&joined.host, &joined.guest);
        host.register(DEMO);
        guest.register(DEMO);
        let inside = joined.container("box");
        // From the machine and from its container to the host.
        let listener = host.host().listen(VmId::WILDCARD, DEMO).unwrap();
        let by_name = guest.host().options().connect(("parent", "Service 7001"));
        talk(by_name.unwrap(), accept(&listener));
        // Both machines have one name, so the host has another one here.
        let outer = guest.handle().partitions().unwrap();
        let outer = outer.iter().find(|one| one.uplink.is_some()).unwrap();
        let by_name = (outer.name.as_str(), DEMO);
        talk(
            inside.options().connect(by_name).unwrap(),
            accept(&listener),
        );
        talk(inside.connect(outer.id, DEMO).unwrap(), accept(&listener));
        drop(listener);
        // From the host to the container and to the machine.
        let listener = inside.listen(VmId::WILDCARD, DEMO).unwrap();
        let stream = host.host().options().connect(("web/box", DEMO)).unwrap();
        talk(stream, accept(&listener));
        drop(listener);
        let listener = guest.host().listen(VmId::PARENT, DEMO).unwrap();
        let stream = host.host().options().connect(("web", DEMO)).unwrap();
        talk(stream, accept(&listener));
        drop(listener);
        // Within the machine.
        let listener = guest.host().listen(VmId::CHILDREN, DEMO).unwrap();
        for address in [VmId::PARENT, VmId::SILOHOST] {
            talk(inside.connect(address, DEMO).unwrap(), accept(&listener));
        }
        drop(listener);
        let listener = inside.listen(VmId::PARENT, DEMO).unwrap();
        talk(
            guest.host().options().connect(("box", DEMO)).unwrap(),
            accept(&listener),
        );
        host.settles_at(0, 0);
        eventually("nothing is left in the machine", || {
            guest.handle().connections().unwrap().is_empty()
        });
    }
}

#[test]
fn each_hop_refuses_with_its_own_reason() {
    let joined = Joined::new(true);
    let (host, guest) = (&joined.host, &joined.guest);
    let inside = joined.container("box");
    let outer = guest.handle().partitions().unwrap();
    let outer = outer.iter().find(|one| one.uplink.is_some()).unwrap().id;
    // Neither registry has it.
    assert_eq!(refused(inside.connect(outer, DEMO)), Refusal::Unregistered);
    assert_eq!(
        refused(guest.host().connect(VmId::PARENT, DEMO)),
        Refusal::Unregistered
    );
    // The machine's has it, the host's has not.
    guest.register(DEMO);
    assert_eq!(refused(inside.connect(outer, DEMO)), Refusal::Unregistered);
    let to_box = || host.host().options().connect(("web/box", DEMO));
    assert_eq!(refused(to_box()), Refusal::Unregistered);
    host.register(DEMO);
    for connected in [
        inside.connect(outer, DEMO),
        guest.host().connect(VmId::PARENT, DEMO),
        to_box(),
    ] {
        assert_eq!(refused(connected), Refusal::NoListener);
    }
}

#[test]
fn a_registration_at_the_host_is_known_in_the_machine_when_the_call_is_done() {
    let joined = Joined::new(true);
    for port in DEMO..DEMO + 30 {
        joined.host.register(port);
        let listener = joined.host.host().listen(VmId::CHILDREN, port).unwrap();
        let name = format!("Service {port}");
        let process = joined.guest.host();
        let stream = process.options().connect(("parent", &*name)).unwrap();
        talk(stream, accept(&listener));
        let back = process.listen(VmId::PARENT, port);
        assert!(back.is_ok(), "{back:?}");
    }
}

#[test]
fn containers_come_and_go_and_change_at_the_host_as_in_the_machine() {
    let joined = Joined::new(true);
    let _inside = joined.container("box");
    let guest = joined.guest.handle();
    let name = hvsock_testkit::world::partition_ref("box");
    guest.set_state(&name, PartitionState::Paused).unwrap();
    eventually("it is paused at the host", || {
        let found = joined.host.handle().partitions().unwrap();
        let found = found.iter().find(|one| one.name.as_str() == "web/box");
        found.is_some_and(|one| one.state == PartitionState::Paused)
    });
    guest.set_state(&name, PartitionState::Running).unwrap();
    guest.remove_partition(&name).unwrap();
    joined.host_knows("web/box", false);
}

#[test]
fn either_broker_may_restart_and_all_is_as_before() {
    let Joined { guest, host, _wire } = Joined::new(true);
    guest.register(DEMO);
    host.register(DEMO);
    let inside = guest.container("box", None);
    let listener = host.host().listen(VmId::CHILDREN, DEMO).unwrap();
    let stream = guest.host().connect(VmId::PARENT, DEMO).unwrap();
    let mut accepted = accept(&listener);
    // The broker of the machine goes, and what it handed over ends.
    let folder = guest.folder;
    drop(guest.broker);
    let mut bytes = Vec::new();
    let end = accepted.read_to_end(&mut bytes);
    assert!(bytes.is_empty(), "{end:?}");
    drop((stream, accepted));
    let mut config = hvsock_testkit::world::config(folder.path());
    config.uplink = hvsock_broker::Uplink::Over(_wire.guest());
    let broker = hvsock_broker::Broker::start(config).unwrap();
    let guest = World { broker, folder };
    let joined = Joined { guest, host, _wire };
    joined.is_open();
    joined.host_knows("web/box", true);
    let connected = joined.guest.host().connect(VmId::PARENT, DEMO).unwrap();
    talk(connected, accept(&listener));
    let served = inside.listen(VmId::WILDCARD, DEMO).unwrap();
    let process = joined.host.host();
    let connected = process.options().connect(("web/box", DEMO)).unwrap();
    talk(connected, accept(&served));
}

#[test]
fn the_machine_explains_its_own_checks_and_those_of_the_host() {
    let joined = Joined::new(true);
    joined.host.register(DEMO);
    let guest = joined.guest.handle();
    let to = hvsock::PartitionRef::Id(VmId::PARENT);
    let service = hvsock_testkit::world::service_ref(DEMO);
    let explained = guest
        .explain_connect(None, &to, &service, Principal::default())
        .unwrap();
    let text: Vec<&str> = explained.steps.iter().map(|one| &*one.question).collect();
    assert!(
        text.iter().any(|question| question.contains("uplink")),
        "{text:?}"
    );
    assert!(
        text.iter()
            .any(|question| question.contains("registered in testhost")),
        "{text:?}"
    );
    assert_eq!(explained.refusal.unwrap().reason, "no_listener");
}
