//! Table limits. Each limit has a refusal that names it, and capacity is free again once an entry
//! is removed.

use hvsock::{Lease, Refusal, ServiceId, VmId};
use hvsock_broker::ControlError;

use hvsock_testkit::wait::eventually;
use hvsock_testkit::world::{World, container, limit, partition_ref, service, service_ref};

const PORT: u32 = 700;

#[test]
fn connections_of_one_partition_are_limited() {
    let world = World::with(|config| config.limits.connections_per_partition = 3);
    let (host, web) = (world.host(), world.container("web", None));
    world.register(PORT);
    let listener = host.listen(VmId::CHILDREN, PORT).unwrap();
    let inside = web.listen(VmId::LOOPBACK, PORT).unwrap();
    let mut pairs: Vec<_> = (0..3)
        .map(|_| web.pair(VmId::LOOPBACK, PORT, &inside))
        .collect();
    let name = "connections_per_partition";
    assert_eq!(limit(web.connect(VmId::LOOPBACK, PORT)), name);
    assert_eq!(limit(web.connect(VmId::PARENT, PORT)), name);
    // Another partition has its own count.
    let loopback = host.listen(VmId::LOOPBACK, PORT).unwrap();
    host.pair(VmId::LOOPBACK, PORT, &loopback);
    pairs.pop();
    eventually("capacity is free again", || {
        web.connect(VmId::PARENT, PORT).is_ok()
    });
    drop(listener);
}

#[test]
fn connections_of_all_partitions_are_limited() {
    let world = World::with(|config| config.limits.connections = 2);
    let host = world.host();
    let listener = host.listen(VmId::LOOPBACK, PORT).unwrap();
    let _one = host.pair(VmId::LOOPBACK, PORT, &listener);
    let other = host.pair(VmId::LOOPBACK, PORT, &listener);
    assert_eq!(limit(host.connect(VmId::LOOPBACK, PORT)), "connections");
    drop(other);
    eventually("capacity is free again", || {
        host.connect(VmId::LOOPBACK, PORT).is_ok()
    });
}

#[test]
fn listeners_of_one_partition_and_of_all_are_limited() {
    let world = World::with(|config| {
        config.limits.listeners_per_partition = 2;
        config.limits.listeners = 3;
    });
    let (host, web) = (world.host(), world.container("web", None));
    let mut listeners: Vec<_> = (0..2)
        .map(|n| host.listen(VmId::LOOPBACK, PORT + n).unwrap())
        .collect();
    let name = "listeners_per_partition";
    assert_eq!(limit(host.listen(VmId::LOOPBACK, PORT + 2)), name);
    let _inside = web.listen(VmId::LOOPBACK, PORT).unwrap();
    assert_eq!(limit(web.listen(VmId::LOOPBACK, PORT + 1)), "listeners");
    listeners.pop();
    eventually("capacity is free again", || {
        web.listen(VmId::LOOPBACK, PORT + 1).is_ok()
    });
}

#[test]
fn registrations_and_leases_share_a_limit() {
    let world = World::with(|config| config.limits.registrations = 2);
    world.register(PORT);
    world.register(PORT + 1);
    let error = world
        .handle()
        .register(service(PORT + 2), "tester".into())
        .unwrap_err();
    assert!(error.to_string().contains("registrations"), "{error}");
    assert_eq!(
        world.handle().export().unwrap().len(),
        2,
        "no file is left over"
    );
    let lease = |port| {
        let id = ServiceId::from_port(port);
        Lease::register_at(&world.host().endpoint(), "A lease", id, "")
    };
    assert_eq!(limit(lease(PORT + 2)), "registrations");
    world.handle().unregister(&service_ref(PORT)).unwrap();
    lease(PORT + 2).unwrap();
}

#[test]
fn partitions_and_groups_are_limited() {
    let world = World::with(|config| {
        config.limits.partitions = 2;
        config.limits.groups_per_partition = 1;
    });
    let groups = ["a", "b"];
    let refused = |result: Result<_, ControlError>, name: &str| {
        let error: ControlError = result
            .map(|_: hvsock_broker::model::Partition| ())
            .unwrap_err();
        assert!(error.to_string().contains(name), "{error}");
    };
    let name = "groups_per_partition";
    refused(
        world.handle().add_container(container("web", &groups)),
        name,
    );
    world.container("web", Some("a"));
    refused(
        world.handle().add_container(container("db", &[])),
        "partitions",
    );
    assert!(!world.folder.join("containers/db").exists());
    let file = world.folder.join("partitions/web.toml");
    let before = std::fs::read(&file).unwrap();
    refused(
        world
            .handle()
            .set_groups(&partition_ref("web"), groups.map(str::to_owned).into()),
        name,
    );
    assert_eq!(std::fs::read(&file).unwrap(), before);
    world
        .handle()
        .remove_partition(&partition_ref("web"))
        .unwrap();
    world.container("db", None);
}

#[test]
fn a_limit_is_explained_before_it_is_met() {
    let world = World::with(|config| config.limits.connections = 0);
    let host = world.host();
    let _listener = host.listen(VmId::LOOPBACK, PORT).unwrap();
    let explanation = hvsock::HvStream::options()
        .endpoint(host.endpoint())
        .explain(hvsock_testkit::world::address(VmId::LOOPBACK, PORT))
        .unwrap();
    let refusal = explanation.refusal().cloned();
    let which = "connections".to_owned();
    assert_eq!(refusal, Some(Refusal::LimitReached { which }));
}
