//! Arenas, between processes that send the endpoint's messages without the library. Covers which pairs get
//! one, the descriptors, what operators see and close, growth, hostile ends, and processes that are gone.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use hvsock::{Refusal, VmId};
use hvsock_broker::model::{AuditFilter, ConnectionState, EventKind};
use hvsock_broker::{EventStream, RecordScope};
use hvsock_endpoint::{
    BrokerMessage, ClientMessage, Connected, Describe, Incoming, Transport, Transports,
};
use hvsock_ring::{
    Accepted, ArenaClient, ArenaLimits, ArenaParts, ArenaServer, Doorbells, OpenError, Opened,
    ResetCause, RingEnd, RingError, RingSize, TellBroker,
};
use hvsock_sys::{message, shared_memory};

use crate::raw::{EITHER, Raw, bytes, connect_by, listen_by};
use hvsock_testkit::wait::{eventually, until_ok};
use hvsock_testkit::world::{PartitionEndpoint, World};

pub const PORT: u32 = 1300;

/// Every transport.
pub const ANY: Transports = EITHER.union(Transports::ARENA);

/// An arena with both of its processes.
pub struct Pair {
    pub listener: Raw,
    pub client: ArenaClient,
    pub client_control: Raw,
    pub server: ArenaServer,
    pub server_control: Raw,
    /// The number of the arena.
    pub arena: u64,
    /// What a hostile client may use beside its own.
    pub memory: OwnedFd,
    pub doorbells: Doorbells,
}

impl Pair {
    /// An arena between one endpoint and another.
    #[track_caller]
    pub fn new(
        world: &World,
        from: &PartitionEndpoint,
        vm: VmId,
        to: &PartitionEndpoint,
        of: VmId,
    ) -> Self {
        Self::with_backlog(world, from, vm, to, of, 64)
    }

    #[track_caller]
    pub fn with_backlog(
        world: &World,
        from: &PartitionEndpoint,
        vm: VmId,
        to: &PartitionEndpoint,
        of: VmId,
        backlog: u32,
    ) -> Self {
        let listener = Raw::new(to);
        listener.send(&listen_by(of, PORT, backlog, ANY, false));
        assert!(matches!(listener.recv(), BrokerMessage::Listening(_)));
        introduce(world, from, vm, &listener);
        Self::again(from, vm, listener)
    }

    /// An arena between a process and a listener that know each other.
    #[track_caller]
    pub fn again(from: &PartitionEndpoint, vm: VmId, listener: Raw) -> Self {
        Self::of_session(Raw::new(from), &connect_by(vm, PORT, ANY, false), listener)
    }

    /// An arena that a session gets for this connect.
    #[track_caller]
    pub fn of_session(client_control: Raw, connect: &ClientMessage, listener: Raw) -> Self {
        let (connected, fds) = request_by(&client_control, connect);
        assert_eq!(connected.transport, Transport::Arena);
        let [memory, grant, own, peer] = <[OwnedFd; 4]>::try_from(fds).expect("four");
        let peer_copy = peer.try_clone().unwrap();
        let doorbells = Doorbells {
            own: own.try_clone().unwrap(),
            peer: peer_copy,
        };
        let client = ArenaClient::open(
            &memory,
            &grant,
            Doorbells { own, peer },
            tell(&client_control),
        );
        let (incoming, server, server_control) = receive(&listener);
        assert_eq!(incoming.connection, connected.connection);
        let connection = incoming.connection;
        listener.send(&ClientMessage::Accepted { connection });
        Self {
            listener,
            client: client.unwrap(),
            client_control,
            server,
            server_control,
            arena: connection,
            memory,
            doorbells,
        }
    }

    pub fn looped(world: &World) -> Self {
        let host = world.host();
        Self::new(world, &host, VmId::LOOPBACK, &host, VmId::LOOPBACK)
    }

    /// Opens a connection, and accepts it.
    #[track_caller]
    pub fn connect(&self) -> (RingEnd, RingEnd, u64) {
        let opened = self.open();
        let accepted = self.accept();
        assert_eq!(accepted.id, opened.id);
        let id = self.arena + u64::from(opened.id.seq);
        (opened.end, accepted.end, id)
    }

    #[track_caller]
    pub fn open(&self) -> Opened {
        let opened = self.client.connect().expect("the grant allows it");
        tell_if(opened.tell_broker, &self.client_control);
        opened
    }

    #[track_caller]
    pub fn accept(&self) -> Accepted {
        let accepted = self.server.accept().expect("an honest client");
        let accepted = accepted.expect("a connection");
        tell_if(accepted.tell_broker, &self.server_control);
        accepted
    }

    /// A client that has a grant page of its own and ignores the broker's.
    pub fn hostile_client(&self, slots: u32, granted: u32) -> ArenaClient {
        let ring = RingSize::DEFAULT;
        let forged = ArenaParts::new(ArenaLimits { slots, ring }, granted, 1000).unwrap();
        let doorbells = Doorbells {
            own: self.doorbells.own.try_clone().unwrap(),
            peer: self.doorbells.peer.try_clone().unwrap(),
        };
        let tell: TellBroker = Arc::new(|| {});
        ArenaClient::open(&self.memory, &forged.grant, doorbells, tell).unwrap()
    }
}

/// Sends ARENA_CHANGED.
fn tell_if(wanted: bool, control: &Raw) {
    if wanted {
        control.send(&ClientMessage::ArenaChanged);
    }
}

/// Sends ARENA_CHANGED when an end is dropped and the broker wants to know.
fn tell(control: &Raw) -> TellBroker {
    let control = control.0.try_clone().unwrap();
    Arc::new(move || {
        let _ = message::send(&control, &bytes(&ClientMessage::ArenaChanged), &[]);
    })
}

/// Connects by any transport.
#[track_caller]
pub fn request(client: &Raw, vm: VmId) -> (Connected, Vec<OwnedFd>) {
    request_by(client, &connect_by(vm, PORT, ANY, false))
}

/// Sends a connect, which succeeds.
#[track_caller]
fn request_by(client: &Raw, connect: &ClientMessage) -> (Connected, Vec<OwnedFd>) {
    client.send(connect);
    match client.recv_with_fds() {
        Some((BrokerMessage::Connected(connected), fds)) => (connected, fds),
        other => panic!("{other:?}"),
    }
}

/// Receives an arena.
#[track_caller]
pub fn receive(listener: &Raw) -> (Incoming, ArenaServer, Raw) {
    let Some((BrokerMessage::Incoming(incoming), fds)) = listener.recv_with_fds() else {
        panic!("no INCOMING");
    };
    assert_eq!(incoming.transport, Transport::Arena);
    let [memory, grant, own, peer, control] = <[OwnedFd; 5]>::try_from(fds).expect("five");
    let control = Raw::of(control);
    let server = ArenaServer::open(memory, grant, Doorbells { own, peer }, tell(&control));
    (incoming, server.unwrap(), control)
}

/// The first connection of a pair, which is a ring and is closed again.
#[track_caller]
pub fn introduce(world: &World, from: &PartitionEndpoint, vm: VmId, listener: &Raw) {
    let before = world.handle().status().unwrap().connections;
    let client = Raw::new(from);
    let (connected, _fds) = request(&client, vm);
    assert_eq!(connected.transport, Transport::Ring);
    let (incoming, _parts, control) = listener.recv_incoming_ring();
    let connection = incoming.connection;
    listener.send(&ClientMessage::Accepted { connection });
    eventually("the broker knows that it was accepted", || {
        let found = world.handle().connections().unwrap();
        let found = found.iter().find(|one| one.id == connection);
        found.is_some_and(|one| one.state == ConnectionState::Open)
    });
    drop((client, control));
    world.has_connections(before);
}

#[track_caller]
pub fn read_all(end: &RingEnd) -> (Vec<u8>, RingError) {
    let (mut all, mut buffer) = (Vec::new(), [0; 4096]);
    until_ok("the end of the data", || match end.try_read(&mut buffer) {
        Ok(count) => {
            all.extend_from_slice(&buffer[..count]);
            Err("more may come")
        }
        Err(RingError::WouldBlock) => Err("nothing yet"),
        Err(stop) => Ok((std::mem::take(&mut all), stop)),
    })
}

/// The next event that `wanted` maps to something.
#[track_caller]
fn event<T>(events: &EventStream, wanted: impl Fn(EventKind) -> Option<T>) -> T {
    until_ok("an event", || {
        let next = events.recv_timeout(Duration::from_millis(50));
        next.and_then(|event| wanted(event.what)).ok_or("none yet")
    })
}

#[test]
fn a_pair_gets_an_arena_once_the_listener_has_accepted_a_connection_of_the_process() {
    let world = World::new();
    let host = world.host();
    let listener = Raw::new(&host);
    listener.send(&listen_by(VmId::LOOPBACK, PORT, 8, ANY, false));
    assert!(matches!(listener.recv(), BrokerMessage::Listening(_)));
    let connect = || {
        let client = Raw::new(&host);
        let (connected, fds) = request(&client, VmId::LOOPBACK);
        (client, connected.transport, fds.len())
    };
    // A listener that accepts nothing has its backlog of connections and no arena.
    let waiting = [connect(), connect()];
    for (_, transport, fds) in &waiting {
        assert_eq!((*transport, *fds), (Transport::Ring, 3));
    }
    let (first, _parts, _control) = listener.recv_incoming_ring();
    let connection = first.connection;
    listener.send(&ClientMessage::Accepted { connection });
    eventually("one is accepted", || {
        world.handle().listeners().unwrap()[0].waiting == 1
    });
    let (_client, transport, fds) = connect();
    assert_eq!((transport, fds), (Transport::Arena, 4));
    let _second = listener.recv_incoming_ring();
    let (incoming, _server, _control) = receive(&listener);
    assert_eq!(incoming.pid, std::process::id());
    // Whoever does not offer it, needs a descriptor or says what it is going to do gets what it got before.
    for (transports, plain, want) in [
        (EITHER, false, Transport::Ring),
        (ANY, true, Transport::Descriptor),
        (Transports::DESCRIPTOR, false, Transport::Descriptor),
    ] {
        let client = Raw::new(&host);
        client.send(&connect_by(VmId::LOOPBACK, PORT, transports, plain));
        let Some((BrokerMessage::Connected(connected), _)) = client.recv_with_fds() else {
            panic!("no CONNECTED");
        };
        assert_eq!(connected.transport, want);
        drop(listener.recv_with_fds());
    }
    let client = Raw::new(&host);
    client.send(&ClientMessage::Describe(Describe {
        action: "exec".into(),
        detail: "true".into(),
    }));
    assert_eq!(
        request(&client, VmId::LOOPBACK).0.transport,
        Transport::Ring
    );
}

#[test]
fn no_arena_is_granted_where_the_listener_does_not_offer_it_or_memory_is_not_shared() {
    for (transports, shared) in [(EITHER, true), (ANY, false)] {
        let world = World::with(|config| config.shared_memory = shared);
        let host = world.host();
        let listener = Raw::new(&host);
        listener.send(&listen_by(VmId::LOOPBACK, PORT, 8, transports, false));
        assert!(matches!(listener.recv(), BrokerMessage::Listening(_)));
        for _ in 0..2 {
            let client = Raw::new(&host);
            let (connected, _) = request(&client, VmId::LOOPBACK);
            assert_ne!(connected.transport, Transport::Arena);
            let (BrokerMessage::Incoming(incoming), _fds) = listener.recv_with_fds().unwrap()
            else {
                panic!("no INCOMING");
            };
            let connection = incoming.connection;
            listener.send(&ClientMessage::Accepted { connection });
            eventually("it is accepted", || {
                world.handle().listeners().unwrap()[0].waiting == 0
            });
            drop(client);
        }
    }
}

#[test]
fn connections_of_an_arena_are_listed_counted_and_closed_one_by_one() {
    let world = World::new();
    world.register(PORT);
    let (host, web) = (world.host(), world.container("web", None));
    let pair = Pair::new(&world, &web, VmId::PARENT, &host, VmId::CHILDREN);
    let events = world.handle().events().unwrap();
    let (first, first_server, first_id) = pair.connect();
    let (second, second_server, second_id) = pair.connect();
    let waiting = pair.open();
    first.try_write(b"hello").unwrap();
    first_server.try_write(b"you").unwrap();
    let listed = world.handle().connections().unwrap();
    let states = |one: &hvsock_broker::model::Connection| (one.id, one.state);
    let waiting_id = pair.arena + u64::from(waiting.id.seq);
    assert_eq!(
        listed.iter().map(states).collect::<Vec<_>>(),
        [
            (first_id, ConnectionState::Open),
            (second_id, ConnectionState::Open),
            (waiting_id, ConnectionState::Waiting)
        ]
    );
    for one in &listed {
        assert_eq!(
            (one.transport.as_str(), one.arena),
            ("arena", Some(pair.arena))
        );
        assert_eq!(
            (one.from.partition.as_str(), one.from.pid),
            ("web", std::process::id())
        );
        assert_eq!(one.to.partition.as_str(), "testhost");
    }
    assert_eq!(
        (listed[0].bytes_sent, listed[0].bytes_received),
        (Some(5), Some(3))
    );
    // The arena itself waits until the broker has read the listener's ACCEPTED.
    eventually("one waits", || {
        world.handle().listeners().unwrap()[0].waiting == 1
    });
    assert_eq!(world.handle().status().unwrap().connections, 3);
    assert_eq!(world.partition("web").connections, 3);
    let opened = |kind| match kind {
        EventKind::ConnectionOpened { connection, .. } => Some(connection),
        _ => None,
    };
    let seen = [
        event(&events, opened),
        event(&events, opened),
        event(&events, opened),
    ];
    assert_eq!(seen, [first_id, second_id, waiting_id]);

    // One is closed by the operator; both ends learn of the reason before they see the reset.
    let closed = world.handle().close_connection(first_id).unwrap();
    assert_eq!((closed.id, closed.bytes_sent), (first_id, Some(5)));
    assert!(world.handle().close_connection(first_id).is_err());
    for control in [&pair.client_control, &pair.server_control] {
        let BrokerMessage::StreamReset(reset) = control.recv() else {
            panic!("no STREAM_RESET");
        };
        assert_eq!((reset.slot, reset.seq), (first.slot().unwrap().slot, 1));
        assert_eq!(reset.reason.detail, "an operator closed the connection");
    }
    assert_eq!(read_all(&first), (b"you".to_vec(), RingError::Reset));
    assert_eq!(first.reset_cause(), ResetCause::Control);
    assert_eq!(read_all(&first_server).0, b"hello");
    let ended = |kind| match kind {
        EventKind::ConnectionClosed {
            connection, reason, ..
        } => Some((connection, reason)),
        _ => None,
    };
    let (connection, reason) = event(&events, ended);
    assert_eq!(connection, first_id);
    assert!(
        reason
            .unwrap()
            .contains("an operator closed the connection")
    );
    // The others are not affected, and its slot is used again.
    second.try_write(b"still here").unwrap();
    let mut buffer = [0; 16];
    assert_eq!(second_server.try_read(&mut buffer), Ok(10));
    drop((first, first_server));
    drop(waiting);
    drop(pair.accept());
    world.has_connections(1);
    // The arena itself is no connection.
    assert!(world.handle().close_connection(pair.arena).is_err());
    drop((second, second_server));
    world.has_connections(0);
    let metrics = world.handle().metrics().unwrap();
    let service = metrics.services.iter().find(|one| one.service.is_some());
    let service = service.unwrap();
    assert_eq!((service.connections, service.connections_total), (0, 4));
    assert_eq!((service.sent_bytes, service.received_bytes), (15, 3));
}

#[test]
fn a_thousand_connections_of_a_pair_cost_the_broker_no_descriptor() {
    let world = World::new();
    let pair = Pair::looped(&world);
    let before = world.handle().metrics().unwrap().open_fds;
    let mut all = Vec::new();
    while all.len() < 1000 {
        match pair.client.connect() {
            Ok(opened) => {
                tell_if(opened.tell_broker, &pair.client_control);
                all.push((opened.end, pair.accept().end));
            }
            Err(OpenError::NoSlot) => {
                let in_use = pair.client.in_use();
                pair.client_control.send(&ClientMessage::ArenaGrow);
                eventually("the broker grants more", || {
                    !pair.client.wants_more_slots() || in_use == ArenaLimits::MAX_SLOTS
                });
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(world.handle().connections().unwrap().len(), 1000);
    // What was sent for the first connections may have been closed meanwhile.
    let after = world.handle().metrics().unwrap().open_fds;
    assert!(after <= before, "{after} descriptors, {before} before");
    drop(all);
    world.has_connections(0);
}

#[test]
fn an_arena_grows_within_the_limit_on_connections_and_a_full_one_refuses_nobody_else() {
    let world = World::with(|config| {
        // What arenas leave to others, and 24 slots.
        config.limits.connections_per_partition = 16_384 + 24;
        config.limits.connections = 40_000;
    });
    let pair = Pair::looped(&world);
    let fill = || {
        let mut all = Vec::new();
        loop {
            match pair.client.connect() {
                Ok(opened) => all.push((opened.end, pair.accept().end)),
                Err(error) => return (all, error),
            }
        }
    };
    let (all, error) = fill();
    assert_eq!((all.len(), error), (16, OpenError::NoSlot));
    pair.client_control.send(&ClientMessage::ArenaGrow);
    world.later_exchange();
    let (more, error) = fill();
    assert_eq!((more.len(), error), (0, OpenError::NoSlot));
    // A further arena does not fit either. The connect is answered by another transport.
    let client = Raw::new(&world.host());
    assert_eq!(
        request(&client, VmId::LOOPBACK).0.transport,
        Transport::Ring
    );
}

#[test]
fn short_connections_are_counted_where_no_scan_saw_them() {
    let world = World::new();
    world.register(PORT);
    let (host, web) = (world.host(), world.container("web", None));
    let pair = Pair::new(&world, &web, VmId::PARENT, &host, VmId::CHILDREN);
    let (kept, kept_server, id) = pair.connect();
    assert_eq!(world.connection().id, id);
    for _ in 0..50 {
        let (client, server, _) = pair.connect();
        client.try_write(b"ping").unwrap();
        drop((client, server));
    }
    let service = |world: &World| {
        let all = world.handle().metrics().unwrap().services;
        all.into_iter().find(|one| one.service.is_some()).unwrap()
    };
    assert_eq!(service(&world).connections_total, 52);
    assert_eq!(service(&world).sent_bytes, 200);
    drop((kept, kept_server));
    let records = || {
        let all = world
            .handle()
            .audit(RecordScope::All, AuditFilter::default());
        let all = all.unwrap();
        all.iter()
            .map(|one| (one.action.clone(), one.connection))
            .collect::<Vec<_>>()
    };
    let arena = Some(pair.arena);
    assert!(records().contains(&("grant".into(), arena)));
    assert!(records().contains(&("connect".into(), Some(id))));
    drop(pair);
    eventually("the arena's end is recorded", || {
        records().contains(&("grant_ended".into(), arena))
    });
    let all = world
        .handle()
        .audit(RecordScope::All, AuditFilter::default());
    let end = all.unwrap();
    let end = end.iter().find(|one| one.action == "grant_ended").unwrap();
    assert_eq!(end.ended.as_ref().unwrap().bytes_sent, Some(200));
    assert!(world.handle().metrics().unwrap().audit.left_out > 0);
}

#[test]
fn a_table_that_no_honest_pair_has_ends_the_arena_and_nothing_else() {
    let world = World::new();
    let pair = Pair::looped(&world);
    let hostile = pair.hostile_client(1024, 1024);
    // More than is granted.
    let ends: Vec<_> = (0..17).map(|_| hostile.connect().unwrap()).collect();
    let _ = world.handle().connections().unwrap();
    for control in [&pair.client_control, &pair.server_control] {
        let BrokerMessage::Reset(reset) = control.recv() else {
            panic!("no RESET");
        };
        assert!(
            reset.detail.contains("violated the endpoint protocol"),
            "{reset:?}"
        );
    }
    drop(ends);
    world.has_connections(0);
    world.later_exchange();
}

#[test]
fn messages_of_an_arena_are_a_violation_on_another_connection() {
    for message in [ClientMessage::ArenaChanged, ClientMessage::ArenaGrow] {
        let world = World::new();
        let host = world.host();
        let listener = Raw::new(&host);
        listener.listen_ring(VmId::LOOPBACK, PORT, 8);
        let client = Raw::new(&host);
        let _parts = client.connect_ring(VmId::LOOPBACK, PORT);
        client.send(&message);
        let Refusal::Reset { cause } = client.recv_reset() else {
            panic!("another refusal");
        };
        assert!(cause.contains("violated the endpoint protocol"), "{cause}");
    }
}

#[test]
fn when_a_process_is_gone_its_connections_end_as_each_would_have_by_itself() {
    for client_dies in [true, false] {
        let world = World::new();
        let pair = Pair::looped(&world);
        let (clean, clean_server, _) = pair.connect();
        let (broken, broken_server, _) = pair.connect();
        for end in [&clean, &clean_server, &broken, &broken_server] {
            end.try_write(b"the last").unwrap();
        }
        let mut buffer = [0; 16];
        for end in [&clean, &clean_server] {
            assert_eq!(end.try_read(&mut buffer), Ok(8));
            end.shutdown_write();
        }
        let Pair {
            client,
            client_control,
            server,
            server_control,
            listener: _listener,
            ..
        } = pair;
        // Only the control connection tells, as of a killed process, which stores nothing.
        let (survivor, ends) = match client_dies {
            true => {
                client_control.hang_up();
                (server_control, [clean_server, broken_server])
            }
            false => {
                server_control.hang_up();
                (client_control, [clean, broken])
            }
        };
        assert_eq!(survivor.recv(), BrokerMessage::Shutdown);
        assert_eq!(read_all(&ends[0]), (vec![], RingError::EndOfStream));
        assert_eq!(read_all(&ends[1]), (b"the last".to_vec(), RingError::Reset));
        assert_eq!(ends[1].reset_cause(), ResetCause::PeerGone);
        // Nothing is opened any more.
        assert!(client_dies || client.connect().is_err());
        drop(ends);
        survivor.hang_up();
        drop(server);
        world.settles_at(1, 0);
    }
}

#[test]
fn an_arena_whose_listener_does_not_read_it_is_held_and_works_when_it_does() {
    let world = World::new();
    let host = world.host();
    let listener = Raw::new(&host);
    listener.send(&listen_by(VmId::LOOPBACK, PORT, 64, ANY, false));
    assert!(matches!(listener.recv(), BrokerMessage::Listening(_)));
    introduce(&world, &host, VmId::LOOPBACK, &listener);
    let clients: Vec<_> = (0..12)
        .map(|_| {
            let client = Raw::new(&host);
            let (connected, fds) = request(&client, VmId::LOOPBACK);
            assert_eq!(connected.transport, Transport::Arena);
            (client, connected.connection, fds)
        })
        .collect();
    let mut held = Vec::new();
    for (_, connection, _) in &clients {
        let (incoming, server, control) = receive(&listener);
        assert_eq!(incoming.connection, *connection);
        listener.send(&ClientMessage::Accepted {
            connection: *connection,
        });
        held.push((server, control));
    }
    let ids: std::collections::BTreeSet<_> = clients.iter().map(|one| one.1).collect();
    assert_eq!(ids.len(), clients.len());
    let (client, _, fds) = &clients[11];
    let [memory, grant, own, peer]: &[OwnedFd; 4] = fds.as_slice().try_into().unwrap();
    assert!(shared_memory::checked_len(memory).unwrap() > 0);
    let doorbells = Doorbells {
        own: own.try_clone().unwrap(),
        peer: peer.try_clone().unwrap(),
    };
    let arena = ArenaClient::open(memory, grant, doorbells, tell(client)).unwrap();
    let opened = arena.connect().unwrap();
    let accepted = held[11].0.accept().unwrap().unwrap();
    opened.end.try_write(b"x").unwrap();
    assert_eq!(accepted.end.try_read(&mut [0; 4]), Ok(1));
}
