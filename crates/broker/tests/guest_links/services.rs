//! What a link without refusals knows of the host's services.

use std::sync::mpsc::{self, Receiver, Sender};

use hvsock::VmId;
use hvsock_broker::StartError;
use hvsock_broker::guest_link::{
    Capabilities, ConnectionId, ControlConnection, EventSender, GuestConnect, GuestLink, LinkEnd,
    LinkEvent, LinkSettings, OfferedService, PartitionState, Refusal, RequestId,
};
use hvsock_endpoint::uplink::UPLINK_PORT;
use hvsock_testkit::conformance::LONGEST_WAIT;
use hvsock_testkit::world::{World, partition_ref, service_ref};

use crate::links::world::LinkWorld as _;

const PORT: u32 = 5000;

/// A link that can only take services.
struct Recorder(Sender<Vec<OfferedService>>);

impl GuestLink for Recorder {
    fn capabilities(&self) -> Capabilities {
        Capabilities::default()
    }

    fn state(&self) -> PartitionState {
        PartitionState::Defined
    }

    fn connect(&self, _: GuestConnect) -> Result<(), Refusal> {
        Err(Refusal::NotSupported)
    }

    fn accept(&self, _: RequestId, _: ConnectionId, _: LinkEnd) {}
    fn refuse(&self, _: RequestId, _: Option<&Refusal>) {}
    fn establish(&self, _: ConnectionId, _: ControlConnection) {}
    fn close(&self, _: ConnectionId, _: Refusal) {}
    fn suspend(&self, _: ConnectionId, _: bool) {}

    fn takes_services(&self) -> bool {
        true
    }

    fn set_services(&self, services: Vec<OfferedService>) {
        let _ = self.0.send(services);
    }
}

/// The VM `web`, and the services that its link has been told.
struct Offered {
    world: World,
    events: EventSender,
    services: Receiver<Vec<OfferedService>>,
}

impl Offered {
    fn new() -> Self {
        let world = World::new();
        world.register(PORT);
        let (services, received) = mpsc::channel();
        let (sender, senders) = mpsc::channel();
        let open = move |_: LinkSettings, events: EventSender| {
            let _ = sender.send(events);
            let link: Box<dyn GuestLink> = Box::new(Recorder(services));
            Ok::<_, StartError>(link)
        };
        world.add("web", open);
        Self {
            world,
            events: senders.recv().expect("opened"),
            services: received,
        }
    }

    /// Ports of the next set of services, with whether somebody listens.
    fn next(&self) -> Vec<(Option<u32>, bool)> {
        let services = self.services.recv_timeout(LONGEST_WAIT).expect("a set");
        registered(&services)
    }

    /// Of what an operator's call has changed, when it returns.
    fn now(&self) -> Vec<(Option<u32>, bool)> {
        let services = self.services.try_iter().last().expect("a set");
        registered(&services)
    }

    fn nothing_is_new(&self) {
        self.world.later_exchange();
        assert!(self.services.try_recv().is_err());
    }
}

/// The ports of a set without the broker's own, which is always there, with whether somebody listens.
fn registered(services: &[OfferedService]) -> Vec<(Option<u32>, bool)> {
    let each = services.iter().map(|one| (one.port, one.listening));
    let (own, others): (Vec<_>, Vec<_>) = each.partition(|one| one.0 == Some(UPLINK_PORT));
    assert_eq!(own, [(Some(UPLINK_PORT), true)]);
    others
}

#[test]
fn a_link_without_refusals_is_told_which_services_its_guest_can_reach() {
    let vm = Offered::new();
    // A VM that does not run reaches nothing, as one that nobody listens to.
    assert_eq!(vm.next(), [(Some(PORT), false)]);
    vm.events.send(LinkEvent::State(PartitionState::Unknown));
    vm.nothing_is_new();

    let listener = vm.world.host().listen(VmId::CHILDREN, PORT).unwrap();
    assert_eq!(vm.now(), [(Some(PORT), true)]);
    drop(listener);
    assert_eq!(vm.next(), [(Some(PORT), false)]);

    // Neither do other partitions' listeners concern it, nor those for others.
    let parents = vm.world.host().listen(VmId::LOOPBACK, PORT).unwrap();
    vm.nothing_is_new();
    drop(parents);

    let _listener = vm.world.host().listen(VmId::CHILDREN, PORT).unwrap();
    assert_eq!(vm.now(), [(Some(PORT), true)]);
    let handle = vm.world.handle();
    // The port of a service that is disabled stays known, so that nobody else takes it.
    handle.set_enabled(&service_ref(PORT), false, None).unwrap();
    assert_eq!(vm.now(), [(Some(PORT), false)]);
    handle.set_enabled(&service_ref(PORT), true, None).unwrap();
    vm.nothing_is_new();

    let _listener = vm.world.host().listen(VmId::CHILDREN, PORT).unwrap();
    assert_eq!(vm.now(), [(Some(PORT), true)]);
    let web = partition_ref("web");
    handle
        .set_enabled(&service_ref(PORT), false, Some(&web))
        .unwrap();
    assert_eq!(vm.now(), [(Some(PORT), false)], "a rule for one VM");
    handle.unregister(&service_ref(PORT)).unwrap();
    vm.world.register(PORT + 1);
    assert_eq!(vm.now(), [(Some(PORT + 1), false)]);
}

#[test]
fn the_services_of_a_vm_follow_its_state() {
    let vm = Offered::new();
    let _listener = vm.world.host().listen(VmId::CHILDREN, PORT).unwrap();
    assert_eq!(vm.next(), [(Some(PORT), false)]);
    vm.events.send(LinkEvent::State(PartitionState::Running));
    assert_eq!(vm.next(), [(Some(PORT), true)]);
    let (handle, web) = (vm.world.handle(), partition_ref("web"));
    let set = |state| handle.set_state(&web, state).unwrap();
    set(hvsock_broker::model::PartitionState::Paused);
    assert_eq!(vm.now(), [(Some(PORT), false)]);
    set(hvsock_broker::model::PartitionState::Running);
    assert_eq!(vm.now(), [(Some(PORT), true)]);
    for state in [
        PartitionState::Off,
        PartitionState::Connected,
        PartitionState::Defined,
    ] {
        vm.events.send(LinkEvent::State(state));
        assert_eq!(vm.next(), [(Some(PORT), false)], "{state}");
        vm.events.send(LinkEvent::State(PartitionState::Running));
        assert_eq!(vm.next(), [(Some(PORT), true)]);
    }
}
