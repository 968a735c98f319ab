//! Connections over rings, between processes that send the endpoint's messages without the library.
//! Covers the descriptors that each process receives, the choice of transport and size, the ring's
//! layout, counters, invalid counts, and how each kind of end is reported.

use std::os::fd::OwnedFd;
use std::time::Instant;

use hvsock::{Refusal, VmId};
use hvsock_broker::model::{Connection, ConnectionState, PartitionState};
use hvsock_endpoint::{BrokerMessage, ClientMessage, SocketOption, Transport, Transports};
use hvsock_ring::{Doorbells, RingEnd, RingError, RingSide, RingSize};
use hvsock_sys::poll::{PollFd, PollFlags};
use hvsock_sys::{doorbell, poll, shared_memory};
use hvsock_testkit::TempFolder;
use rustix::fs::{FileType, OFlags};

use crate::child::BrokerProcess;
use crate::raw::{EITHER, Raw, RingParts, connect_by, listen_by};
use hvsock_testkit::wait::{TIMEOUT, eventually};
use hvsock_testkit::world::{PartitionEndpoint, World, partition_ref, service_ref};

const PORT: u32 = 1200;
const HEADER: u64 = 4096;

/// One process's end of a ring with its control connection.
struct Process {
    control: Raw,
    end: RingEnd,
}

impl Process {
    fn new(side: RingSide, parts: RingParts, control: Raw) -> Self {
        let RingParts { memory, own, peer } = parts;
        let end = RingEnd::open(side, memory, Doorbells { own, peer }).expect("an end");
        Self { control, end }
    }

    /// Closes cleanly.
    fn close(self) {
        self.end.shutdown_write();
    }

    /// Reads until the end, of any kind.
    #[track_caller]
    fn read_all(&self) -> (Vec<u8>, RingError) {
        let (mut all, mut buffer) = (Vec::new(), [0; 4096]);
        let began = Instant::now();
        loop {
            match self.end.try_read(&mut buffer) {
                Ok(count) => all.extend_from_slice(&buffer[..count]),
                Err(RingError::WouldBlock) => assert!(began.elapsed() < TIMEOUT, "no end"),
                Err(stop) => return (all, stop),
            }
        }
    }
}

/// Both ends of a connection over a ring.
struct Pair {
    client: Process,
    server: Process,
}

impl Pair {
    /// Connects one endpoint to another. `suspendable`: the connecting process survives a pause.
    #[track_caller]
    fn new(
        from: &PartitionEndpoint,
        vm: VmId,
        to: &PartitionEndpoint,
        of: VmId,
        suspendable: bool,
    ) -> Self {
        let listener = Raw::new(to);
        listener.listen_ring(of, PORT, 8);
        let client = Raw::new(from);
        if suspendable {
            client.set_option(SocketOption::ConnectedSuspend, 1);
        }
        let parts = client.connect_ring(vm, PORT);
        let (incoming, other, control) = listener.recv_incoming_ring();
        let connection = incoming.connection;
        // So that the connection survives its listener.
        listener.send(&ClientMessage::Accepted { connection });
        Self {
            client: Process::new(RingSide::First, parts, client),
            server: Process::new(RingSide::Second, other, control),
        }
    }

    fn looped(endpoint: &PartitionEndpoint) -> Self {
        Self::new(endpoint, VmId::LOOPBACK, endpoint, VmId::LOOPBACK, false)
    }
}

#[track_caller]
fn only(world: &World) -> Connection {
    let mut connections = world.handle().connections().unwrap();
    assert_eq!(connections.len(), 1);
    connections.remove(0)
}

/// Whether a doorbell has a pending notification.
fn is_notified(doorbell: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(doorbell, PollFlags::IN)];
    poll::wait(&mut fds, Some(Instant::now())).unwrap()
}

#[test]
fn each_process_receives_the_memory_and_its_half_of_both_doorbells() {
    let world = World::new();
    let host = world.host();
    let listener = Raw::new(&host);
    listener.listen_ring(VmId::LOOPBACK, PORT, 8);
    let client = Raw::new(&host);
    let first = client.connect_ring(VmId::LOOPBACK, PORT);
    let (incoming, second, control) = listener.recv_incoming_ring();
    assert!(client.is_silent() && control.is_silent());
    // Both share one memory of sealed size: a header page and two rings.
    let size = u64::from(RingSize::DEFAULT.bytes());
    for parts in [&first, &second] {
        let len = shared_memory::checked_len(&parts.memory).unwrap();
        assert_eq!(len, HEADER + 2 * size);
    }
    let file = |parts: &RingParts| rustix::fs::fstat(&parts.memory).unwrap().st_ino;
    assert_eq!(file(&first), file(&second));
    // Doorbells are pipes. Each process polls its own and notifies the peer's.
    for parts in [&first, &second] {
        for (doorbell, access) in [(&parts.own, OFlags::RDONLY), (&parts.peer, OFlags::WRONLY)] {
            let kind = FileType::from_raw_mode(rustix::fs::fstat(doorbell).unwrap().st_mode);
            assert_eq!(kind, FileType::Fifo);
            let flags = rustix::fs::fcntl_getfl(doorbell).unwrap();
            assert_eq!(flags & OFlags::RWMODE, access);
            assert!(flags.contains(OFlags::NONBLOCK));
        }
    }
    assert!(doorbell::notify(&first.peer).unwrap());
    assert!(is_notified(&second.own) && !is_notified(&first.own));
    assert!(doorbell::notify(&second.peer).unwrap());
    assert!(is_notified(&first.own));
    // The broker keeps no copy: a closed doorbell has no reader left.
    drop(first);
    eventually("the broker has closed its copies", || {
        !doorbell::notify(&second.peer).unwrap()
    });
    assert_eq!(only(&world).transport, "ring");
    assert_eq!(only(&world).id, incoming.connection);
}

/// The transport of a connection between two processes with these offers: a set of transports, and
/// whether the process has a raw fd.
#[track_caller]
fn negotiate(
    endpoint: &PartitionEndpoint,
    connecting: (Transports, bool),
    listening: (Transports, bool),
) -> Result<Transport, Refusal> {
    let listener = Raw::new(endpoint);
    let (transports, plain) = listening;
    listener.send(&listen_by(VmId::LOOPBACK, PORT, 8, transports, plain));
    assert!(matches!(listener.recv(), BrokerMessage::Listening(_)));
    let client = Raw::new(endpoint);
    let (transports, plain) = connecting;
    client.send(&connect_by(VmId::LOOPBACK, PORT, transports, plain));
    let (chosen, count) = match client.recv_with_fds() {
        Some((BrokerMessage::Connected(connected), fds)) => (connected.transport, fds.len()),
        Some((BrokerMessage::Refused(refused), _)) => {
            client.recv_end();
            assert!(listener.is_silent());
            return Err(Refusal::from_wire(refused.code, &refused.detail));
        }
        other => panic!("{other:?}"),
    };
    let Some((BrokerMessage::Incoming(incoming), descriptors)) = listener.recv_with_fds() else {
        panic!("no INCOMING");
    };
    assert_eq!(incoming.transport, chosen);
    let want = match chosen {
        Transport::Ring => (3, 4),
        _ => (1, 2),
    };
    assert_eq!((count, descriptors.len()), want);
    Ok(chosen)
}

#[test]
fn the_transport_is_one_that_both_offer_and_preferably_the_ring() {
    let world = World::new();
    let host = world.host();
    let (either, descriptor, ring) = (EITHER, Transports::DESCRIPTOR, Transports::RING);
    let offers = [either, descriptor, ring].map(|set| [(set, false), (set, true)]);
    for connecting in offers.concat() {
        for listening in offers.concat() {
            let can = |transport: Transport| {
                [connecting, listening].iter().all(|(set, plain)| {
                    set.contains(transport) && !(*plain && transport == Transport::Ring)
                })
            };
            let want = [Transport::Ring, Transport::Descriptor]
                .into_iter()
                .find(|transport| can(*transport));
            let got = negotiate(&host, connecting, listening);
            let text = format!("{connecting:?} and {listening:?}");
            assert_eq!(got, want.ok_or(Refusal::NotSupported), "{text}");
            world.settles_at(0, 0);
        }
    }
    // A client that offers no ring is served as before rings existed.
    let listener = Raw::new(&host);
    listener.listen_ring(VmId::LOOPBACK, PORT, 8);
    let client = Raw::new(&host);
    let _data = client.connect(VmId::LOOPBACK, PORT);
    let (incoming, ..) = listener.recv_incoming();
    assert_eq!(incoming.transport, Transport::Descriptor);
    assert_eq!(only(&world).transport, "descriptor");
}

#[test]
fn a_broker_without_shared_memory_uses_descriptors_or_refuses() {
    let world = World::with(|config| config.shared_memory = false);
    let host = world.host();
    let either = (EITHER, false);
    assert_eq!(negotiate(&host, either, either), Ok(Transport::Descriptor));
    world.settles_at(0, 0);
    let refused = negotiate(&host, (Transports::RING, false), either);
    assert_eq!(refused, Err(Refusal::NotSupported));
}

#[test]
fn the_larger_requested_size_decides_within_bounds() {
    let world = World::new();
    let host = world.host();
    let request = |raw: &Raw, bytes: Option<u32>| {
        if let Some(bytes) = bytes {
            raw.set_option(SocketOption::RingSize, bytes);
        }
    };
    let usual = RingSize::DEFAULT.bytes();
    for (connecting, listening, want) in [
        (None, Some(4096), RingSize::SMALL.bytes()),
        (Some(0), None, usual),
        (Some(1), Some(2), 4096),
        (Some(4097), Some(4096), 8192),
        (Some(65_536), Some(100_000), 131_072),
        (Some(usual + 1), None, 2 * usual),
        (Some(u32::MAX), Some(1), 16 << 20),
    ] {
        let listener = Raw::new(&host);
        request(&listener, listening);
        listener.listen_ring(VmId::LOOPBACK, PORT, 8);
        // Ignored: the listener exists already.
        request(&listener, Some(1 << 23));
        let client = Raw::new(&host);
        request(&client, connecting);
        let parts = client.connect_ring(VmId::LOOPBACK, PORT);
        let len = shared_memory::checked_len(&parts.memory).unwrap();
        let text = format!("{connecting:?} {listening:?}");
        assert_eq!(len, HEADER + 2 * u64::from(want), "{text}");
        let (_, parts, _control) = listener.recv_incoming_ring();
        let len = shared_memory::checked_len(&parts.memory).unwrap();
        assert_eq!(len, HEADER + 2 * u64::from(want), "{text}");
        drop((listener, client));
        world.settles_at(0, 0);
    }
}

#[test]
fn the_broker_counts_bytes_that_it_does_not_move() {
    let world = World::new();
    world.register(PORT);
    let (host, web) = (world.host(), world.container("web", None));
    let pair = Pair::new(&web, VmId::PARENT, &host, VmId::CHILDREN, false);
    let (client, server) = (&pair.client, &pair.server);
    let mut bytes = [0; 5];
    for _ in 0..300 {
        assert_eq!(client.end.try_write(&[7; 3000]), Ok(3000));
        assert_eq!(server.end.try_write(b"!"), Ok(1));
        let mut read = 0;
        while read < 3000 {
            read += server.end.try_read(&mut [0; 3000]).unwrap();
        }
        assert_eq!(client.end.try_read(&mut bytes), Ok(1));
    }
    let connection = only(&world);
    let counts = (connection.bytes_sent, connection.bytes_received);
    assert_eq!(counts, (Some(900_000), Some(300)));
    let of_service = || {
        let metrics = world.handle().metrics().unwrap().services;
        let mut named = metrics.into_iter().filter(|s| s.service.is_some());
        let service = named.next().unwrap();
        (service.sent_bytes, service.received_bytes)
    };
    assert_eq!(of_service(), (900_000, 300));
    let Pair { client, server } = pair;
    client.end.try_write(b"the last").unwrap();
    client.close();
    assert_eq!(server.read_all().0, b"the last");
    server.close();
    world.settles_at(0, 0);
    assert_eq!(of_service(), (900_008, 300));
}

/// The layout that docs/endpoint.md documents for other implementations.
#[test]
fn the_ring_has_the_documented_layout() {
    use std::os::unix::fs::FileExt;
    let world = World::new();
    let host = world.host();
    let listener = Raw::new(&host);
    listener.listen_ring(VmId::LOOPBACK, PORT, 8);
    let by_hand = Raw::new(&host);
    let RingParts { memory, own, peer } = by_hand.connect_ring(VmId::LOOPBACK, PORT);
    let memory = std::fs::File::from(memory);
    let (_, parts, control) = listener.recv_incoming_ring();
    let other = Process::new(RingSide::Second, parts, control);
    let read = |at: u64, bytes: &mut [u8]| memory.read_exact_at(bytes, at).unwrap();
    let write = |at: u64, bytes: &[u8]| memory.write_all_at(bytes, at).unwrap();
    let long = |at| {
        let mut bytes = [0; 8];
        read(at, &mut bytes);
        u64::from_le_bytes(bytes)
    };
    let word = |at| {
        let mut bytes = [0; 4];
        read(at, &mut bytes);
        u32::from_le_bytes(bytes)
    };
    let size = (memory.metadata().unwrap().len() - HEADER) / 2;
    assert_eq!(size, u64::from(RingSize::DEFAULT.bytes()));
    let state = 0;
    let [out, back] = [128, 768];
    let [tail, awake, space, ended, closed] = [128, 256, 384, 512, 516];
    // Write by hand: publish the head, and notify a reader that is parked.
    assert!(other.end.arm(hvsock_ring::Interest::READ));
    assert_eq!(word(out + awake), 0);
    write(HEADER, b"by hand");
    write(out, &7_u64.to_le_bytes());
    write(out + awake, &1_u32.to_le_bytes());
    assert!(doorbell::notify(&peer).unwrap());
    let mut bytes = [0; 7];
    assert_eq!(other.end.try_read(&mut bytes), Ok(7));
    assert_eq!((&bytes, long(out + tail)), (b"by hand", 7));
    // Read by hand: the other end notifies a reader that is parked.
    write(back + awake, &0_u32.to_le_bytes());
    assert_eq!(other.end.try_write(b"thanks"), Ok(6));
    assert_eq!((long(back), word(back + awake)), (6, 1));
    assert!(is_notified(&own) && doorbell::drain(&own).unwrap());
    read(HEADER + size, &mut bytes[..6]);
    assert_eq!(&bytes[..6], b"thanks");
    write(back + tail, &6_u64.to_le_bytes());
    // A parked writer is woken once free space has reached what it requested.
    write(out, &(7 + size).to_le_bytes());
    write(out + space, &2_u64.to_le_bytes());
    assert_eq!(other.end.try_read(&mut [0]), Ok(1));
    assert!(long(out + space) == 2 && !is_notified(&own));
    assert_eq!(other.end.try_read(&mut [0]), Ok(1));
    assert!(long(out + space) == 0 && is_notified(&own));
    // Half-closes.
    other.end.shutdown_write();
    assert_eq!(word(back + ended), 1);
    other.end.shutdown_read();
    assert_eq!(word(out + closed), 1);
    drop(other.end);
    assert_eq!((word(out + closed), word(state)), (2, 0));
    drop(other.control);
    let refusal = by_hand.recv_reset();
    assert!(refusal.to_string().contains("without reading"), "{refusal}");
    assert_eq!(word(state), 1);
}

/// The processes can write anything to the counters in shared memory.
#[test]
fn invalid_counters_in_shared_memory_never_decrease_or_overflow_a_sum() {
    use std::os::unix::fs::FileExt;
    // Counts are modulo 2^64: more than half of that ahead is behind. Three of these exceed a sum.
    const FAR: u64 = u64::MAX / 2;
    let world = World::new();
    world.register(PORT);
    let (host, web) = (world.host(), world.container("web", None));
    for _ in 0..3 {
        let listener = Raw::new(&host);
        listener.listen_ring(VmId::CHILDREN, PORT, 8);
        let client = Raw::new(&web);
        let parts = client.connect_ring(VmId::PARENT, PORT);
        let (_, _other, _control) = listener.recv_incoming_ring();
        let memory = std::fs::File::from(parts.memory);
        let set_head = |head: u64| memory.write_all_at(&head.to_le_bytes(), 128).unwrap();
        set_head(FAR);
        assert_eq!(only(&world).bytes_sent, Some(FAR));
        set_head(1);
        assert_eq!(only(&world).bytes_sent, Some(FAR));
        world.handle().metrics().unwrap();
        drop(client);
        world.settles_at(1, 0);
        drop(listener);
        world.settles_at(0, 0);
    }
    let metrics = world.handle().metrics().unwrap().services;
    assert!(metrics.iter().any(|service| service.sent_bytes == u64::MAX));
}

#[test]
fn each_kind_of_close_is_reported_to_the_other_end() {
    let world = World::new();
    let host = world.host();
    // A clean close. The other end may continue.
    let Pair { client, server } = Pair::looped(&host);
    client.end.try_write(b"all").unwrap();
    client.close();
    assert_eq!(server.control.recv(), BrokerMessage::Shutdown);
    assert!(server.control.is_silent());
    assert_eq!(server.read_all(), (b"all".to_vec(), RingError::EndOfStream));
    server.close();
    world.settles_at(0, 0);
    // A close without a half-close before.
    let Pair { client, server } = Pair::looped(&host);
    server.end.try_write(b"almost").unwrap();
    drop(server);
    let refusal = client.control.recv_reset();
    assert!(refusal.to_string().contains("without closing"), "{refusal}");
    assert_eq!(client.read_all(), (b"almost".to_vec(), RingError::Reset));
    world.settles_at(0, 0);
    // A close with bytes unread.
    let Pair { client, server } = Pair::looped(&host);
    server.end.try_write(b"unread").unwrap();
    client.close();
    let refusal = server.control.recv_reset();
    assert!(refusal.to_string().contains("without reading"), "{refusal}");
    assert_eq!(server.end.try_write(b"?"), Err(RingError::Reset));
    world.settles_at(0, 0);
    // A protocol violation.
    let Pair { client, server } = Pair::looped(&host);
    server.control.send(&ClientMessage::Shutdown);
    server.control.send_bytes(b"GET / HTTP/1.1");
    for process in [client, server] {
        let refusal = process.control.recv_reset();
        assert!(refusal.to_string().contains("protocol"), "{refusal}");
        assert_eq!(process.read_all().1, RingError::Reset);
    }
    world.settles_at(0, 0);
}

/// A client may close before its response. The listener then receives a connection that is reset.
#[test]
fn a_connection_is_reset_if_its_client_or_its_listener_closes_early() {
    let world = World::new();
    let host = world.host();
    let listener = Raw::new(&host);
    listener.listen_ring(VmId::LOOPBACK, PORT, 8);
    let client = Raw::new(&host);
    client.send(&connect_by(VmId::LOOPBACK, PORT, EITHER, false));
    drop(client);
    let (_, parts, control) = listener.recv_incoming_ring();
    let server = Process::new(RingSide::Second, parts, control);
    let refusal = server.control.recv_reset();
    assert!(refusal.to_string().contains("without closing"), "{refusal}");
    assert_eq!(server.read_all().1, RingError::Reset);

    let client = Raw::new(&host);
    let parts = client.connect_ring(VmId::LOOPBACK, PORT);
    let client = Process::new(RingSide::First, parts, client);
    client.end.try_write(b"anybody?").unwrap();
    drop(listener);
    client.control.recv_reset();
    assert_eq!(client.end.try_write(b"?"), Err(RingError::Reset));
    world.settles_at(0, 0);
}

#[test]
fn a_closed_disabled_or_paused_connection_ends_for_both_with_the_reason() {
    let world = World::new();
    world.register(PORT);
    let (host, web) = (world.host(), world.container("web", None));
    let between = || Pair::new(&web, VmId::PARENT, &host, VmId::CHILDREN, false);
    let ends_with = |pair: Pair, is_it: &dyn Fn(&Refusal) -> bool| {
        for process in [pair.client, pair.server] {
            let refusal = process.control.recv_reset();
            assert!(is_it(&refusal), "{refusal}");
            assert_eq!(process.read_all(), (b"so far".to_vec(), RingError::Reset));
            assert_eq!(process.end.try_write(b"?"), Err(RingError::Reset));
        }
    };
    let write = |pair: &Pair| {
        pair.client.end.try_write(b"so far").unwrap();
        pair.server.end.try_write(b"so far").unwrap();
    };
    let pair = between();
    write(&pair);
    world.handle().close_connection(only(&world).id).unwrap();
    ends_with(pair, &|refusal| refusal.to_string().contains("operator"));
    world.settles_at(0, 0);
    let pair = between();
    write(&pair);
    let disable = |on| world.handle().set_enabled(&service_ref(PORT), on, None);
    disable(false).unwrap();
    ends_with(pair, &|refusal| matches!(refusal, Refusal::Disabled { .. }));
    disable(true).unwrap();
    let pair = between();
    write(&pair);
    let set = |state| world.handle().set_state(&partition_ref("web"), state);
    set(PartitionState::Paused).unwrap();
    ends_with(pair, &|refusal| *refusal == Refusal::PartitionPaused);
    set(PartitionState::Running).unwrap();
    let pair = between();
    write(&pair);
    drop(world);
    ends_with(pair, &|refusal| refusal.to_string().contains("stopped"));
}

#[test]
fn a_suspended_connection_moves_no_bytes_and_both_processes_are_notified() {
    let world = World::new();
    world.register(PORT);
    let (host, web) = (world.host(), world.container("web", None));
    let pair = Pair::new(&web, VmId::PARENT, &host, VmId::CHILDREN, true);
    let set = |state| world.handle().set_state(&partition_ref("web"), state);
    let expect_suspended = |on| {
        for process in [&pair.client, &pair.server] {
            assert_eq!(process.control.recv(), BrokerMessage::Suspended { on });
        }
    };
    set(PartitionState::Paused).unwrap();
    expect_suspended(true);
    assert_eq!(only(&world).state, ConnectionState::Suspended);
    pair.client.end.try_write(b"meanwhile").unwrap();
    let mut bytes = [0; 9];
    let suspended = pair.server.end.try_read(&mut bytes);
    assert_eq!(suspended, Err(RingError::WouldBlock));
    set(PartitionState::Running).unwrap();
    expect_suspended(false);
    assert_eq!(pair.server.end.try_read(&mut bytes), Ok(9));
    // The option can be cleared on an established connection.
    let option = SocketOption::ConnectedSuspend;
    pair.client.control.set_option(option, 0);
    eventually("the option is cleared", || {
        !only(&world).from.connected_suspend
    });
    set(PartitionState::Paused).unwrap();
    let refusal = pair.server.control.recv_reset();
    assert_eq!(refusal, Refusal::PartitionPaused);
}

#[test]
fn an_idle_connection_costs_the_broker_three_descriptors_and_ends_with_the_broker() {
    const MANY: usize = 20;
    let folder = TempFolder::new();
    let mut broker = BrokerProcess::start(folder.path(), None);
    let host = broker.host();
    let listener = Raw::new(&host);
    listener.listen_ring(VmId::LOOPBACK, PORT, 100);
    let connect = || {
        let client = Raw::new(&host);
        let parts = client.connect_ring(VmId::LOOPBACK, PORT);
        let (_, other, control) = listener.recv_incoming_ring();
        [(client, parts), (control, other)]
    };
    let first = connect();
    let costs = |before: usize, connections: usize| {
        eventually("three descriptors for each connection", || {
            broker.descriptors() == before + 3 * connections
        });
    };
    // The broker keeps the resources for one more connection in reserve, and closes its copies of
    // those that it has sent. Wait until the count has been the same for a while.
    let (mut before, mut unchanged) = (0, 0);
    eventually("a stable count of descriptors", || {
        let now = broker.descriptors();
        unchanged = if now == before { unchanged + 1 } else { 0 };
        before = now;
        unchanged == 10
    });
    let pairs: Vec<_> = (0..MANY).map(|_| connect()).collect();
    costs(before, MANY);
    drop(pairs);
    costs(before, 0);
    // The kernel closes a killed broker's sockets; no message is sent.
    let [(control, parts), _] = first;
    broker.child.kill();
    control.recv_end();
    assert!(!is_notified(&parts.own), "the ring's peer still exists");
}
