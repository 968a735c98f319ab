//! What the broker in a guest knows of the host's services.

use hvsock::ServiceId;
use hvsock_endpoint::uplink::{BindScope, ServiceFlags};
use hvsock_testkit::world::{PORT, World, service_ref};
use serde_json::json;

use crate::guest_broker::GuestBroker;

fn flags(broker: &GuestBroker, port: u32) -> Option<ServiceFlags> {
    let id = ServiceId::from_port(port);
    let found = broker.services.iter().find(|one| one.service == id);
    found.map(|found| found.flags)
}

#[test]
fn a_guest_knows_the_services_that_a_container_could_look_up_and_follows_each_change() {
    let world = World::with_web(|_| ());
    let guest = world.guest();
    let mut broker = GuestBroker::open(&guest);
    assert_eq!(broker.services.len(), 1);
    let open = ServiceFlags {
        enabled: true,
        may_connect: true,
        bind: BindScope::Everyone,
        wildcard: true,
    };
    assert_eq!(flags(&broker, PORT), Some(open));
    // A new one, with rules.
    let new = serde_json::from_value(json!({
        "name": "Denied", "id": ServiceId::from_port(6000), "connect": {"partitions": []},
        "allow_wildcard_binds": false, "only_root_binds": true,
    }))
    .unwrap();
    world.handle().register(new, "tester".into()).unwrap();
    broker.sync();
    let denied = ServiceFlags {
        enabled: true,
        may_connect: false,
        bind: BindScope::Root,
        wildcard: false,
    };
    assert_eq!(flags(&broker, 6000), Some(denied));
    let name = &broker.services.last().unwrap().name;
    assert_eq!(name, "Denied");
    let handle = world.handle();
    handle.set_enabled(&service_ref(PORT), false, None).unwrap();
    broker.sync();
    assert!(!flags(&broker, PORT).unwrap().enabled);
    handle.set_enabled(&service_ref(PORT), true, None).unwrap();
    handle.unregister(&service_ref(6000)).unwrap();
    broker.sync();
    assert_eq!(flags(&broker, PORT), Some(open));
    assert_eq!(flags(&broker, 6000), None);
}
