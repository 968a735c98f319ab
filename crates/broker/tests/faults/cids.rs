//! Context ids (CIDs): whose one is and which one a partition has, as each partition sees it.

use hvsock::VmId;
use hvsock_broker::Handle;
use hvsock_fabric::Refusal;
use hvsock_testkit::world::{World, partition_ref};

use crate::raw::Raw;

const UNKNOWN: &str = "00000000-0000-0000-0000-0000000000ff";

/// The CID of a partition, as operators see it.
#[track_caller]
fn shown(handle: &Handle, name: &str) -> u32 {
    let partition = handle.partition(&partition_ref(name)).expect("a partition");
    partition.cid.expect("a CID")
}

#[track_caller]
fn id(handle: &Handle, name: &str) -> VmId {
    handle
        .partition(&partition_ref(name))
        .expect("a partition")
        .id
}

#[test]
fn the_host_finds_itself_its_vms_and_its_containers_by_their_cids() {
    let world = World::with_web(|_| ());
    let _container = world.container("box", None);
    let (handle, host) = (world.handle(), world.host());
    let raw = Raw::new(&host);
    for own in ["1", "2"] {
        assert_eq!(raw.look_up_cid(own), Ok(VmId::LOOPBACK));
    }
    assert_eq!(raw.cid_of(VmId::LOOPBACK), Ok(2));
    for name in ["web", "box"] {
        let (cid, id) = (shown(&handle, name), id(&handle, name));
        assert!(cid >= 3 && cid != u32::MAX, "{cid}");
        assert_eq!(raw.look_up_cid(&cid.to_string()), Ok(id), "{name}");
        assert_eq!(raw.cid_of(id), Ok(cid), "{name}");
    }
    assert_eq!(shown(&handle, "web"), 42);
    let numbers = [
        "0",
        "3",
        "4294967295",
        "4294967296",
        "",
        "+42",
        " 42",
        "42 ",
        "0x2a",
        "-1",
        "web",
    ];
    for number in numbers {
        let refusal = Raw::new(&host).look_up_cid(number).unwrap_err();
        assert_eq!(refusal, Refusal::PartitionUnknown, "{number:?}");
    }
    for (id, refusal) in [
        (VmId::PARENT, Refusal::NotSupported),
        (VmId::SILOHOST, Refusal::AddressNotAvailable),
        (VmId::WILDCARD, Refusal::AddressNotAvailable),
        (VmId::BROADCAST, Refusal::AddressNotAvailable),
        (UNKNOWN.parse().unwrap(), Refusal::PartitionUnknown),
    ] {
        assert_eq!(Raw::new(&host).cid_of(id), Err(refusal), "{id}");
    }
}

#[test]
fn a_container_finds_only_what_it_reaches_by_a_cid() {
    let world = World::with_web(|_| ());
    let near = world.container("near", Some("pair"));
    let _sibling = world.container("sibling", Some("pair"));
    let _far = world.container("far", None);
    let handle = world.handle();
    let raw = Raw::new(&near);
    assert_eq!(raw.look_up_cid("1"), Ok(VmId::LOOPBACK));
    assert_eq!(raw.look_up_cid("2"), Ok(VmId::PARENT));
    let own = shown(&handle, "near");
    assert_eq!(raw.look_up_cid(&own.to_string()), Ok(VmId::LOOPBACK));
    assert_eq!(raw.cid_of(VmId::LOOPBACK), Ok(own));
    for host in [VmId::PARENT, VmId::SILOHOST] {
        assert_eq!(raw.cid_of(host), Ok(2));
    }
    let (sibling, cid) = (id(&handle, "sibling"), shown(&handle, "sibling"));
    assert_eq!(raw.look_up_cid(&cid.to_string()), Ok(sibling));
    assert_eq!(raw.cid_of(sibling), Ok(cid));
    // What it does not reach looks as if it did not exist.
    for name in ["far", "web"] {
        let cid = shown(&handle, name).to_string();
        let refused = Raw::new(&near).look_up_cid(&cid);
        assert_eq!(refused, Err(Refusal::NotReachable), "{name}");
        let refused = Raw::new(&near).cid_of(id(&handle, name));
        assert_eq!(refused, Err(Refusal::NotReachable), "{name}");
    }
    for id in [
        id(&handle, "near"),
        id(&handle, "testhost"),
        UNKNOWN.parse().unwrap(),
    ] {
        assert_eq!(
            Raw::new(&near).cid_of(id),
            Err(Refusal::NotReachable),
            "{id}"
        );
    }
    assert_eq!(
        Raw::new(&near).look_up_cid("77"),
        Err(Refusal::NotReachable)
    );
}

#[test]
fn a_container_keeps_its_cid_until_a_vm_takes_it() {
    let world = World::new();
    let _container = world.container("box", None);
    let before = shown(&world.handle(), "box");
    world
        .handle()
        .remove_partition(&partition_ref("box"))
        .unwrap();
    let raw = Raw::new(&world.host());
    assert_eq!(
        raw.look_up_cid(&before.to_string()),
        Err(Refusal::PartitionUnknown)
    );
    let _other = world.container("other", None);
    let _container = world.container("box", None);
    assert_eq!(shown(&world.handle(), "box"), before);
    let world = world.restarted();
    let handle = world.handle();
    assert_eq!(shown(&handle, "box"), before);
    world.vm("web", before.into(), &[]);
    assert_eq!(shown(&handle, "web"), before);
    let after = shown(&handle, "box");
    assert_ne!(after, before);
    let raw = Raw::new(&world.host());
    assert_eq!(raw.look_up_cid(&before.to_string()), Ok(id(&handle, "web")));
    assert_eq!(raw.look_up_cid(&after.to_string()), Ok(id(&handle, "box")));
}
