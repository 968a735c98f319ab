//! Announced containers as partitions of the host.

use hvsock::VmId;
use hvsock_broker::model::{AuditFilter, EventKind, PartitionKind, PartitionState};
use hvsock_broker::{ControlError, RecordScope};
use hvsock_endpoint::uplink::{ChildId, ChildState, GuestFrame};
use hvsock_testkit::wait;
use hvsock_testkit::world::{World, partition_ref};

use crate::guest_broker::{BOX, GuestBroker, announcement};

#[test]
fn an_announced_container_is_a_partition_of_the_host_until_it_is_withdrawn() {
    let world = World::with_web(|_| ());
    let guest = world.guest();
    let mut broker = GuestBroker::open(&guest);
    let web = world.partition("web");
    assert_eq!(broker.welcome.machine, web.id);
    assert_eq!(broker.welcome.machine_name, "web");
    assert_eq!(broker.welcome.host_name, "testhost");
    assert_eq!(broker.welcome.host, world.partition("testhost").id);
    let announced = broker.announce(announcement(BOX, "box"));
    assert_eq!((announced.child, announced.answer.code), (BOX, 0));
    assert_eq!(announced.answer.detail, "web/box");
    let id = VmId::of_nested(web.id, VmId::of_container("box"));
    assert_eq!(announced.id, id);
    let shown = world.partition("web/box");
    assert_eq!((shown.id, shown.kind), (id, PartitionKind::Container));
    assert_eq!(shown.state, PartitionState::Running);
    assert_eq!(shown.parent, Some(web.name));
    let all = world.handle().partitions().unwrap();
    let names: Vec<_> = all.iter().map(|one| one.name.to_string()).collect();
    assert_eq!(names, ["testhost", "web", "web/box"]);
    assert_eq!(world.partition("web").broker.unwrap().containers, 1);
    broker.client.send(&GuestFrame::Withdraw { child: BOX });
    broker.sync();
    assert!(world.handle().partition(&partition_ref("web/box")).is_err());
    // Its number and its name are free.
    broker.announce_box();
}

#[test]
fn containers_follow_the_states_that_their_broker_tells() {
    let world = World::with_web(|_| ());
    let guest = world.guest();
    let mut broker = GuestBroker::open(&guest);
    broker.announce_box();
    let state = || world.partition("web/box").state;
    for (told, want) in [
        (ChildState::Paused, PartitionState::Paused),
        (ChildState::Exited, PartitionState::Exited),
        (ChildState::Defined, PartitionState::Defined),
        (ChildState::Unknown, PartitionState::Unknown),
        (ChildState::Running, PartitionState::Running),
    ] {
        broker.state(BOX, told);
        broker.sync();
        assert_eq!(state(), want);
    }
}

#[test]
fn what_only_the_broker_in_the_guest_changes_is_refused_to_operators() {
    let world = World::with_web(|_| ());
    let guest = world.guest();
    let mut broker = GuestBroker::open(&guest);
    broker.announce_box();
    let name = partition_ref("web/box");
    let refused = |error: ControlError| {
        let text = error.to_string();
        assert!(text.contains("only the broker in web"), "{text}");
    };
    let paused = world.handle().set_state(&name, PartitionState::Paused);
    refused(paused.unwrap_err());
    refused(world.handle().remove_partition(&name).unwrap_err());
    refused(
        world
            .handle()
            .set_groups(&name, vec!["a".into()])
            .unwrap_err(),
    );
    // The broker stays, and so does its container.
    broker.sync();
    world.partition("web/box");
}

#[test]
fn names_and_ids_of_other_partitions_are_refused_and_a_container_of_another_vm_may_have_the_same() {
    let world = World::with_web(|_| ());
    world.vm("db", 44, &[]);
    let guest = world.guest();
    let other = world.guest_of("db", hvsock_testkit::guest::Options::new(44));
    let mut broker = GuestBroker::open(&guest);
    let mut second = GuestBroker::open(&other);
    let id = broker.announce_box();
    assert_ne!(second.announce_box(), id);
    let mut refused = |announce, part: &str| {
        let announced = broker.announce(announce);
        assert_ne!(announced.answer.code, 0);
        assert_eq!(announced.id, VmId::ZERO);
        assert!(announced.answer.detail.contains(part), "{announced:?}");
    };
    refused(announcement(ChildId(8), "BOX"), "already exists");
    let mut same_id = announcement(ChildId(8), "other");
    same_id.id = VmId::of_container("box");
    refused(same_id, "already has the id");
    for name in [
        "",
        "a/b",
        "../a",
        "db/x",
        ".hidden",
        "a b",
        "parent",
        "a\u{1b}[2J",
    ] {
        refused(announcement(ChildId(8), name), "");
    }
    refused(announcement(ChildId(8), &"x".repeat(64)), "63");
    // One may have the name and id of a partition of the host: they are its own in the guest.
    for name in ["web", "testhost"] {
        let mut announce = announcement(ChildId(9), name);
        announce.id = world.partition("testhost").id;
        let announced = broker.announce(announce);
        assert_eq!(announced.answer.detail, format!("web/{name}"));
        broker
            .client
            .send(&GuestFrame::Withdraw { child: ChildId(9) });
    }
    broker.sync();
}

#[test]
fn a_guest_has_at_most_256_containers() {
    let world = World::with_web(|_| ());
    let guest = world.guest();
    let mut broker = GuestBroker::open(&guest);
    for number in 1..=256 {
        let announced = broker.announce(announcement(ChildId(number), &format!("c{number}")));
        assert_eq!(announced.answer.code, 0, "{announced:?}");
    }
    let announced = broker.announce(announcement(ChildId(257), "c257"));
    assert!(announced.answer.detail.contains("limit"), "{announced:?}");
    assert_eq!(world.handle().partitions().unwrap().len(), 258);
    drop(broker);
    wait::eventually("the containers are gone", || {
        world.handle().partitions().unwrap().len() == 2
    });
}

#[test]
fn events_and_the_audit_tell_of_the_broker_and_its_containers() {
    let world = World::with_web(|_| ());
    let guest = world.guest();
    let events = world.handle().events().unwrap();
    let mut broker = GuestBroker::open(&guest);
    broker.announce_box();
    broker.state(BOX, ChildState::Paused);
    broker.sync();
    drop(broker);
    let mut seen = Vec::new();
    loop {
        let event = events.recv_timeout(wait::TIMEOUT).expect("an event");
        let is_last = matches!(event.what, EventKind::GuestBrokerLost { .. });
        seen.push(match event.what {
            EventKind::GuestBrokerConnected { partition } => format!("broker {partition}"),
            EventKind::GuestBrokerLost { partition, .. } => format!("lost {partition}"),
            EventKind::PartitionAdded { partition } => format!("added {partition}"),
            EventKind::PartitionRemoved { partition } => format!("removed {partition}"),
            EventKind::PartitionState { partition, state } => format!("{partition} {state:?}"),
            other => format!("{other:?}"),
        });
        if is_last {
            break;
        }
    }
    let want = [
        "broker web",
        "added web/box",
        "web/box Paused",
        "removed web/box",
        "lost web",
    ];
    assert_eq!(seen, want);
    let records = world
        .handle()
        .audit(RecordScope::All, AuditFilter::default())
        .unwrap();
    let of_web: Vec<_> = records
        .iter()
        .filter(|record| {
            record
                .actor
                .as_ref()
                .is_some_and(|it| it.partition == "web")
        })
        .map(|record| (record.action.as_str(), record.target.as_deref()))
        .collect();
    let want = [
        ("uplink", None),
        ("announce", Some("web/box")),
        ("withdraw", Some("web/box")),
        ("uplink_ended", None),
    ];
    assert_eq!(of_web, want);
}
