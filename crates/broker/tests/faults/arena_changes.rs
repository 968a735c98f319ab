//! What withdraws the grant of an arena, and what that does to its connections: changes of the registry, of
//! access rules, of partitions and of listeners. Withdrawn means when the call has returned, and also for a
//! client that ignores the grant page.

use std::time::{Duration, Instant};

use hvsock::{Refusal, ServiceId, VmId};
use hvsock_broker::model::{AccessChange, ConnectionState, PartitionState};
use hvsock_endpoint::{
    BrokerMessage, ClientMessage, ConnectNamed, Flags, IdOrName, NamedAddress, Register, Transport,
};
use hvsock_ring::{OpenError, Opened, RingError};
use hvsock_testkit::wait::{eventually, until_ok};
use hvsock_testkit::world::{PartitionEndpoint, World, partition_ref, service, service_ref};

use crate::arenas::{ANY, PORT, Pair, introduce, read_all, request};
use crate::raw::{Raw, listen_by};

/// A container's process with an arena to a service of the host.
struct Fixture {
    world: World,
    web: PartitionEndpoint,
    pair: Pair,
}

impl Fixture {
    fn new() -> Self {
        let world = World::new();
        world.register(PORT);
        let (host, web) = (world.host(), world.container("web", None));
        let pair = Pair::new(&world, &web, VmId::PARENT, &host, VmId::CHILDREN);
        Self { world, web, pair }
    }

    fn allow(&self, allow: bool) {
        let change = AccessChange {
            allow,
            bind: false,
            users: vec![],
            groups: vec![],
            partitions: vec!["*".into()],
            any_partition_user: false,
            vm: None,
            everywhere: false,
        };
        let handle = self.world.handle();
        handle.change_access(&service_ref(PORT), &change).unwrap();
    }

    fn set_state(&self, state: PartitionState) {
        let handle = self.world.handle();
        handle.set_state(&partition_ref("web"), state).unwrap();
    }

    /// What a further connect of this process gets from the broker.
    #[track_caller]
    fn asks_again(&self) -> Result<Transport, Refusal> {
        let client = Raw::new(&self.web);
        client.send(&crate::raw::connect_by(VmId::PARENT, PORT, ANY, false));
        match client.recv_with_fds() {
            Some((BrokerMessage::Connected(connected), _)) => Ok(connected.transport),
            Some((BrokerMessage::Refused(refused), _)) => {
                Err(Refusal::from_wire(refused.code, &refused.detail))
            }
            other => panic!("{other:?}"),
        }
    }
}

/// Nothing that a client opens now is accepted, whether it honours the grant or not.
#[track_caller]
fn nothing_connects(pair: &Pair, why: &str) {
    let refused = pair.client.connect();
    assert!(
        matches!(refused, Err(OpenError::Revoked | OpenError::Suspended)),
        "{why}: {refused:?}"
    );
    let hostile = pair.hostile_client(1024, 16);
    // It begins with the first sequence number, which the queue may be past.
    let opened: Vec<Opened> = std::iter::from_fn(|| hostile.connect().ok())
        .take(4)
        .collect();
    match pair.server.accept() {
        Ok(None) | Err(_) => {}
        Ok(Some(accepted)) => panic!("{why}: {accepted:?} of {opened:?}"),
    }
}

#[test]
fn no_connect_in_an_arena_succeeds_once_a_call_that_forbids_it_has_returned() {
    type Change = fn(&Fixture);
    let changes: [(&str, Change); 7] = [
        ("the service is disabled", |it| {
            let handle = it.world.handle();
            handle.set_enabled(&service_ref(PORT), false, None).unwrap();
        }),
        ("it is disabled for the partition", |it| {
            let handle = it.world.handle();
            let web = partition_ref("web");
            handle
                .set_enabled(&service_ref(PORT), false, Some(&web))
                .unwrap();
        }),
        ("it is unregistered", |it| {
            it.world.handle().unregister(&service_ref(PORT)).unwrap();
        }),
        ("a rule denies the partition", |it| it.allow(false)),
        ("the partition is paused", |it| {
            it.set_state(PartitionState::Paused);
        }),
        ("the partition is removed", |it| {
            it.world
                .handle()
                .remove_partition(&partition_ref("web"))
                .unwrap();
        }),
        ("another listener is nearer", |it| {
            let other = Raw::new(&it.world.host());
            let web = it.world.partition("web").id;
            other.send(&listen_by(web, PORT, 8, ANY, false));
            assert!(matches!(other.recv(), BrokerMessage::Listening(_)));
            // It stays open.
            std::mem::forget(other);
        }),
    ];
    for (why, change) in changes {
        let fixture = Fixture::new();
        let pair = &fixture.pair;
        change(&fixture);
        nothing_connects(pair, why);
    }
}

#[test]
fn what_closes_connections_resets_all_of_an_arena_with_the_reason() {
    let fixture = Fixture::new();
    let (client, server, _) = fixture.pair.connect();
    client.try_write(b"before").unwrap();
    let handle = fixture.world.handle();
    handle.set_enabled(&service_ref(PORT), false, None).unwrap();
    assert!(handle.connections().unwrap().is_empty());
    for control in [&fixture.pair.client_control, &fixture.pair.server_control] {
        let BrokerMessage::Reset(reset) = control.recv() else {
            panic!("no RESET");
        };
        let refusal = Refusal::from_wire(reset.code, &reset.detail);
        assert!(matches!(refusal, Refusal::Disabled { .. }), "{refusal:?}");
        control.recv_end();
    }
    assert_eq!(read_all(&server), (b"before".to_vec(), RingError::Reset));
    assert_eq!(read_all(&client), (vec![], RingError::Reset));
}

#[test]
fn a_rule_governs_new_connections_and_grants_again_what_it_denied() {
    let fixture = Fixture::new();
    let (client, server, _) = fixture.pair.connect();
    fixture.allow(false);
    assert!(matches!(
        fixture.pair.client.connect(),
        Err(OpenError::Revoked)
    ));
    assert!(matches!(fixture.asks_again(), Err(Refusal::Denied { .. })));
    // Established ones stay.
    client.try_write(b"on").unwrap();
    assert_eq!(server.try_read(&mut [0; 8]), Ok(2));
    assert_eq!(fixture.world.handle().connections().unwrap().len(), 1);
    fixture.allow(true);
    assert!(fixture.pair.client.is_granted());
    assert_eq!(fixture.asks_again(), Ok(Transport::Arena));
}

#[test]
fn a_pause_resets_what_no_end_wants_to_keep_and_suspends_the_rest_until_it_ends() {
    let fixture = Fixture::new();
    let (pair, world) = (&fixture.pair, &fixture.world);
    let (lost, lost_server, _) = pair.connect();
    let (kept, kept_server, kept_id) = pair.connect();
    let (by_server, _by_server, _) = pair.connect();
    kept.set_connected_suspend(true);
    _by_server.set_connected_suspend(true);
    kept.try_write(b"later").unwrap();
    fixture.set_state(PartitionState::Paused);
    let BrokerMessage::StreamReset(reset) = pair.client_control.recv() else {
        panic!("no STREAM_RESET");
    };
    assert_eq!(reset.seq, lost.slot().unwrap().seq);
    let refusal = Refusal::from_wire(reset.reason.code, &reset.reason.detail);
    assert_eq!(refusal, Refusal::PartitionPaused);
    for end in [&lost, &lost_server] {
        assert_eq!(read_all(end), (vec![], RingError::Reset));
    }
    let listed = world.handle().connections().unwrap();
    assert_eq!(listed.len(), 2);
    assert!(
        listed
            .iter()
            .all(|one| one.state == ConnectionState::Suspended)
    );
    assert_eq!(listed[0].id, kept_id);
    assert!(listed[0].from.connected_suspend && !listed[0].to.connected_suspend);
    assert_eq!(
        kept_server.try_read(&mut [0; 8]),
        Err(RingError::WouldBlock)
    );
    assert!(matches!(pair.client.connect(), Err(OpenError::Suspended)));
    fixture.set_state(PartitionState::Running);
    assert_eq!(kept_server.try_read(&mut [0; 8]), Ok(5));
    by_server.try_write(b"x").unwrap();
    assert!(pair.client.is_granted());
    let messages = std::iter::from_fn(|| {
        (!pair.client_control.is_silent()).then(|| pair.client_control.recv())
    });
    let messages = messages.collect::<Vec<_>>();
    let resumed = BrokerMessage::Suspended { on: false };
    assert_eq!(messages.last(), Some(&resumed), "{messages:?}");
}

#[test]
fn a_closed_listener_resets_what_it_had_not_accepted_and_nothing_else() {
    let fixture = Fixture::new();
    let Fixture { world, web, pair } = fixture;
    let (kept, kept_server, _) = pair.connect();
    let waiting = pair.open();
    let Pair {
        listener,
        client,
        client_control,
        server: _server,
        server_control: _server_control,
        ..
    } = pair;
    drop(listener);
    let BrokerMessage::StreamReset(reset) = client_control.recv() else {
        panic!("no STREAM_RESET");
    };
    assert_eq!((reset.slot, reset.seq), (waiting.id.slot, waiting.id.seq));
    assert_eq!(reset.reason.code, Refusal::NoListener.code());
    assert_eq!(read_all(&waiting.end), (vec![], RingError::Reset));
    assert!(matches!(client.connect(), Err(OpenError::Revoked)));
    kept.try_write(b"on").unwrap();
    assert_eq!(kept_server.try_read(&mut [0; 8]), Ok(2));
    assert_eq!(world.handle().connections().unwrap().len(), 1);
    // A new listener is a new pair.
    let again = Raw::new(&world.host());
    again.send(&listen_by(VmId::CHILDREN, PORT, 8, ANY, false));
    assert!(matches!(again.recv(), BrokerMessage::Listening(_)));
    assert!(!client.is_granted());
    let other = Raw::new(&web);
    assert_eq!(request(&other, VmId::PARENT).0.transport, Transport::Ring);
}

#[test]
fn an_arena_that_its_listener_has_not_taken_ends_with_the_listener() {
    let world = World::new();
    let host = world.host();
    let pair = Pair::looped(&world);
    let client = Raw::new(&host);
    let (connected, _fds) = request(&client, VmId::LOOPBACK);
    assert_eq!(connected.transport, Transport::Arena);
    drop(pair.listener);
    let BrokerMessage::Reset(reset) = client.recv() else {
        panic!("no RESET");
    };
    assert_eq!(reset.code, Refusal::NoListener.code());
    // The one that was taken lives on without its grant.
    until_ok("the grant is revoked", || match pair.client.is_granted() {
        true => Err("not yet"),
        false => Ok(()),
    });
    assert!(pair.client_control.is_silent());
}

#[test]
fn an_idle_pair_is_not_scanned_and_its_next_change_is_told_once() {
    let world = World::new();
    let pair = Pair::looped(&world);
    // Each connection is a change, so the pair is left alone for some scans before the next one.
    let mut last = Instant::now();
    eventually("the broker asks for a message", || {
        if last.elapsed() < Duration::from_millis(400) {
            return false;
        }
        last = Instant::now();
        let opened = pair.client.connect().unwrap();
        drop(pair.server.accept().unwrap());
        opened.tell_broker
    });
    // Whoever was asked sends it; until then nobody else is.
    assert!(!pair.client.connect().unwrap().tell_broker);
}

/// A process keeps the memory after its control connection is closed, as a child that it has forked does, and
/// ignores the grant page.
#[test]
fn a_client_whose_process_is_gone_connects_no_more_once_a_rule_denies_it() {
    for is_denied_before in [true, false] {
        let fixture = Fixture::new();
        let hostile = fixture.pair.hostile_client(1024, 16);
        if is_denied_before {
            fixture.allow(false);
        }
        let _opened = [(); 2].map(|()| hostile.connect().unwrap());
        fixture.pair.client_control.hang_up();
        assert_eq!(fixture.pair.server_control.recv(), BrokerMessage::Shutdown);
        fixture.allow(false);
        let accepted = fixture.pair.server.accept();
        assert!(matches!(accepted, Ok(None)), "{accepted:?}");
    }
}

#[test]
fn a_client_whose_process_is_gone_leaves_no_more_than_the_queue_holds() {
    let fixture = Fixture::new();
    let pair = &fixture.pair;
    let hostile = pair.hostile_client(1024, 16);
    let published = std::fs::File::from(pair.memory.try_clone().unwrap());
    let publish = |count: u64| {
        std::os::unix::fs::FileExt::write_all_at(&published, &count.to_le_bytes(), 0).unwrap();
    };
    publish(u64::MAX / 2);
    pair.client_control.hang_up();
    assert_eq!(pair.server_control.recv(), BrokerMessage::Shutdown);
    publish(0);
    let accepted = (0..3000).filter(|_| {
        let _opened = hostile.connect().unwrap();
        pair.server.accept().unwrap().is_some()
    });
    assert!(accepted.count() <= 1024);
}

/// A connect to the service with this name, in the own partition.
fn connect_named(service: &str) -> ClientMessage {
    ClientMessage::ConnectNamed(ConnectNamed {
        flags: Flags::default(),
        timeout_ms: 0,
        transports: ANY,
        address: NamedAddress {
            partition: IdOrName::Id(VmId::LOOPBACK),
            service: IdOrName::Name(service.into()),
        },
    })
}

fn name_of(port: u32) -> String {
    service(port).name.to_string()
}

/// A process of the host and a listener there for the registered service, which know each other.
fn introduced() -> (World, Raw) {
    let world = World::new();
    world.register(PORT);
    let host = world.host();
    let listener = Raw::new(&host);
    listener.send(&listen_by(VmId::LOOPBACK, PORT, 8, ANY, false));
    assert!(matches!(listener.recv(), BrokerMessage::Listening(_)));
    introduce(&world, &host, VmId::LOOPBACK, &listener);
    (world, listener)
}

/// An arena of the host, which was granted for a connect by the service's name.
fn by_name() -> (World, Pair) {
    let (world, listener) = introduced();
    let client = Raw::new(&world.host());
    let pair = Pair::of_session(client, &connect_named(&name_of(PORT)), listener);
    (world, pair)
}

/// Gives the name of the service to the one of another port.
fn move_name(world: &World) {
    world.handle().unregister(&service_ref(PORT)).unwrap();
    let mut other = service(PORT + 1);
    other.name = service(PORT).name;
    world.handle().register(other, "tester".into()).unwrap();
}

#[test]
fn an_arena_of_a_connect_by_name_is_revoked_while_the_name_stands_for_another_service() {
    let (world, pair) = by_name();
    let (client, server, _) = pair.connect();
    move_name(&world);
    // The listener stays, and a connect by the id of the service would still reach it.
    let refused = pair.client.connect();
    assert!(matches!(refused, Err(OpenError::Revoked)), "{refused:?}");
    client.try_write(b"on").unwrap();
    assert_eq!(server.try_read(&mut [0; 8]), Ok(2));
    let again = Raw::new(&world.host());
    again.send(&connect_named(&name_of(PORT)));
    let BrokerMessage::Refused(refused) = again.recv() else {
        panic!("no REFUSED");
    };
    assert_eq!(refused.code, Refusal::NoListener.code());
    // The name comes back.
    world.handle().unregister(&service_ref(PORT + 1)).unwrap();
    assert!(!pair.client.is_granted());
    world.register(PORT);
    assert!(pair.client.is_granted());
    let _connected = pair.connect();
}

#[test]
fn no_client_connects_in_an_arena_of_a_connect_by_name_once_the_name_has_moved() {
    let (world, pair) = by_name();
    move_name(&world);
    nothing_connects(&pair, "the name has moved");
}

#[test]
fn an_arena_of_a_connect_by_name_is_revoked_when_the_lease_with_the_name_ends() {
    let (world, pair) = by_name();
    world.handle().unregister(&service_ref(PORT)).unwrap();
    assert!(!pair.client.is_granted());
    let lease = Raw::new(&world.host());
    lease.send(&ClientMessage::Register(Register {
        service: ServiceId::from_port(PORT),
        name: name_of(PORT),
        purpose: String::new(),
    }));
    assert_eq!(lease.recv(), BrokerMessage::Registered);
    assert!(pair.client.is_granted());
    drop(lease);
    until_ok("the grant is revoked", || match pair.client.is_granted() {
        true => Err("not yet"),
        false => Ok(()),
    });
}

#[test]
fn an_arena_keeps_its_grant_when_names_change_that_its_connect_did_not_use() {
    let (world, pair) = by_name();
    world.register(PORT + 1);
    world.container("web", None);
    let other = Raw::new(&world.host());
    other.send(&listen_by(VmId::LOOPBACK, PORT + 1, 8, ANY, false));
    assert!(matches!(other.recv(), BrokerMessage::Listening(_)));
    world.handle().unregister(&service_ref(PORT + 1)).unwrap();
    assert!(pair.client.is_granted());
    let _connected = pair.connect();
}

#[test]
fn an_arena_of_a_connect_by_id_keeps_its_grant_when_the_name_of_the_service_moves() {
    let (world, listener) = introduced();
    let client = Raw::new(&world.host());
    let by_id = crate::raw::connect_by(VmId::LOOPBACK, PORT, ANY, false);
    let pair = Pair::of_session(client, &by_id, listener);
    move_name(&world);
    assert!(pair.client.is_granted());
    let _connected = pair.connect();
}
