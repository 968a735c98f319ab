//! Connections whose ends share memory, by processes that speak the endpoint's protocol by hand:
//! what they are given, how it is agreed on, and what the broker does about their ends.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use hvsock::{Refusal, VmId};
use hvsock_broker::model::{Connection, ConnectionState, PartitionState};
use hvsock_endpoint::{BrokerMessage, ClientMessage, SocketOption, Transport, Transports};
use hvsock_ring::{Bells, End, RingSize, Side, Stop};
use hvsock_sys::poll::{PollFd, PollFlags};
use hvsock_sys::{doorbell, poll, shared_memory};
use hvsock_testkit::TempFolder;
use rustix::fs::{FileType, OFlags};

use crate::part::BrokerProcess;
use crate::raw::{EITHER, Raw, RingParts, connect_by, listen_by};
use crate::world::{PATIENCE, Place, World, eventually, partition_ref, service_ref};

const PORT: u32 = 1200;
const HEADER: u64 = 4096;

/// A process's end of a ring with its control connection.
struct Process {
    control: Raw,
    end: End,
}

impl Process {
    fn new(side: Side, parts: RingParts, control: Raw) -> Self {
        let RingParts { memory, own, peer } = parts;
        let end = End::open(side, memory, Bells { own, peer }).expect("an end");
        Self { control, end }
    }

    /// Closes as a program does that is done.
    fn close(self) {
        self.end.shutdown_write();
    }

    /// Reads to the end of whatever kind.
    #[track_caller]
    fn read_all(&self) -> (Vec<u8>, Stop) {
        let (mut all, mut buffer) = (Vec::new(), [0; 4096]);
        let began = Instant::now();
        loop {
            match self.end.try_read(&mut buffer) {
                Ok(count) => all.extend_from_slice(&buffer[..count]),
                Err(Stop::WouldBlock) => assert!(began.elapsed() < PATIENCE, "no end"),
                Err(stop) => return (all, stop),
            }
        }
    }
}

/// Both ends of a ring.
struct Pair {
    client: Process,
    server: Process,
}

impl Pair {
    /// From one place to another, with an option of the connecting process if one is given.
    #[track_caller]
    fn new(from: &Place, vm: VmId, to: &Place, of: VmId, suspendable: bool) -> Self {
        let listener = Raw::new(to);
        listener.listen_ring(of, PORT, 8);
        let client = Raw::new(from);
        if suspendable {
            client.set_option(SocketOption::ConnectedSuspend, 1);
        }
        let parts = client.connect_ring(vm, PORT);
        let (incoming, other, control) = listener.take_ring();
        let connection = incoming.connection;
        // It outlasts its listener, then.
        listener.say(&ClientMessage::Accepted { connection });
        Self {
            client: Process::new(Side::First, parts, client),
            server: Process::new(Side::Second, other, control),
        }
    }

    fn looped(place: &Place) -> Self {
        Self::new(place, VmId::LOOPBACK, place, VmId::LOOPBACK, false)
    }
}

#[track_caller]
fn only(world: &World) -> Connection {
    let mut connections = world.handle().connections().unwrap();
    assert_eq!(connections.len(), 1);
    connections.remove(0)
}

fn heard(bell: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(bell, PollFlags::IN)];
    poll::wait(&mut fds, Some(Instant::now())).unwrap()
}

#[test]
fn each_process_gets_the_memory_and_its_half_of_both_bells() {
    let world = World::new();
    let host = world.host();
    let listener = Raw::new(&host);
    listener.listen_ring(VmId::LOOPBACK, PORT, 8);
    let client = Raw::new(&host);
    let first = client.connect_ring(VmId::LOOPBACK, PORT);
    let (incoming, second, control) = listener.take_ring();
    assert!(client.is_quiet() && control.is_quiet());
    // The memory is one, cannot change its size, and holds a page of words and two rings.
    let size = u64::from(RingSize::DEFAULT.bytes());
    for parts in [&first, &second] {
        let len = shared_memory::checked_len(&parts.memory).unwrap();
        assert_eq!(len, HEADER + 2 * size);
    }
    let file = |parts: &RingParts| rustix::fs::fstat(&parts.memory).unwrap().st_ino;
    assert_eq!(file(&first), file(&second));
    // Bells are pipes, of which each process hears one and rings the other.
    for parts in [&first, &second] {
        for (bell, access) in [(&parts.own, OFlags::RDONLY), (&parts.peer, OFlags::WRONLY)] {
            let kind = FileType::from_raw_mode(rustix::fs::fstat(bell).unwrap().st_mode);
            assert_eq!(kind, FileType::Fifo);
            let flags = rustix::fs::fcntl_getfl(bell).unwrap();
            assert_eq!(flags & OFlags::RWMODE, access);
            assert!(flags.contains(OFlags::NONBLOCK));
        }
    }
    assert!(doorbell::ring(&first.peer).unwrap());
    assert!(heard(&second.own) && !heard(&first.own));
    assert!(doorbell::ring(&second.peer).unwrap());
    assert!(heard(&first.own));
    // Nobody else has them.
    drop(first);
    eventually("the broker has closed its own", || {
        !doorbell::ring(&second.peer).unwrap()
    });
    assert_eq!(only(&world).transport, "ring");
    assert_eq!(only(&world).id, incoming.connection);
}

/// What becomes of a connection between two that offer this.
#[track_caller]
fn agree(
    place: &Place,
    connecting: (Transports, bool),
    listening: (Transports, bool),
) -> Result<Transport, Refusal> {
    let listener = Raw::new(place);
    let (transports, plain) = listening;
    listener.say(&listen_by(VmId::LOOPBACK, PORT, 8, transports, plain));
    assert!(matches!(listener.hear(), BrokerMessage::Listening(_)));
    let client = Raw::new(place);
    let (transports, plain) = connecting;
    client.say(&connect_by(VmId::LOOPBACK, PORT, transports, plain));
    let (given, count) = match client.hear_all() {
        Some((BrokerMessage::Connected(connected), fds)) => (connected.transport, fds.len()),
        Some((BrokerMessage::Refused(refused), _)) => {
            client.hear_end();
            assert!(listener.is_quiet());
            return Err(Refusal::from_wire(refused.code, &refused.detail));
        }
        other => panic!("{other:?}"),
    };
    let Some((BrokerMessage::Incoming(incoming), descriptors)) = listener.hear_all() else {
        panic!("no INCOMING");
    };
    assert_eq!(incoming.transport, given);
    let want = match given {
        Transport::Ring => (3, 4),
        _ => (1, 2),
    };
    assert_eq!((count, descriptors.len()), want);
    Ok(given)
}

#[test]
fn the_transport_is_one_that_both_offer_and_the_ring_if_that_is_one() {
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
            let got = agree(&host, connecting, listening);
            let text = format!("{connecting:?} and {listening:?}");
            assert_eq!(got, want.ok_or(Refusal::NotSupported), "{text}");
            world.settles_at(0, 0);
        }
    }
    // As it was before there was a ring, for clients that know of none.
    let listener = Raw::new(&host);
    listener.listen_ring(VmId::LOOPBACK, PORT, 8);
    let client = Raw::new(&host);
    let _data = client.connect(VmId::LOOPBACK, PORT);
    let (incoming, ..) = listener.take();
    assert_eq!(incoming.transport, Transport::Descriptor);
    assert_eq!(only(&world).transport, "descriptor");
}

#[test]
fn a_broker_that_lets_nobody_share_memory_moves_all_bytes_itself() {
    let world = World::with(|config| config.shared_memory = false);
    let host = world.host();
    let either = (EITHER, false);
    assert_eq!(agree(&host, either, either), Ok(Transport::Descriptor));
    world.settles_at(0, 0);
    let refused = agree(&host, (Transports::RING, false), either);
    assert_eq!(refused, Err(Refusal::NotSupported));
}

#[test]
fn the_larger_wish_decides_the_size_within_bounds() {
    let world = World::new();
    let host = world.host();
    let wish = |raw: &Raw, bytes: Option<u32>| {
        if let Some(bytes) = bytes {
            raw.set_option(SocketOption::RingSize, bytes);
        }
    };
    let usual = RingSize::DEFAULT.bytes();
    for (connecting, listening, want) in [
        (None, Some(4096), usual),
        (Some(0), None, usual),
        (Some(1), Some(2), 4096),
        (Some(4097), Some(4096), 8192),
        (Some(65_536), Some(100_000), 131_072),
        (Some(usual + 1), None, 2 * usual),
        (Some(u32::MAX), Some(1), 16 << 20),
    ] {
        let listener = Raw::new(&host);
        wish(&listener, listening);
        listener.listen_ring(VmId::LOOPBACK, PORT, 8);
        // Too late for a listener.
        wish(&listener, Some(1 << 23));
        let client = Raw::new(&host);
        wish(&client, connecting);
        let parts = client.connect_ring(VmId::LOOPBACK, PORT);
        let len = shared_memory::checked_len(&parts.memory).unwrap();
        let text = format!("{connecting:?} {listening:?}");
        assert_eq!(len, HEADER + 2 * u64::from(want), "{text}");
        let (_, parts, _control) = listener.take_ring();
        let len = shared_memory::checked_len(&parts.memory).unwrap();
        assert_eq!(len, HEADER + 2 * u64::from(want), "{text}");
        drop((listener, client));
        world.settles_at(0, 0);
    }
}

#[test]
fn bytes_pass_without_the_broker_which_counts_them() {
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
    assert_eq!(counts, (900_000, 300));
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

/// As docs/endpoint.md has it, by which others write their clients.
#[test]
fn the_words_are_where_the_page_says() {
    use std::os::unix::fs::FileExt;
    let world = World::new();
    let host = world.host();
    let listener = Raw::new(&host);
    listener.listen_ring(VmId::LOOPBACK, PORT, 8);
    let by_hand = Raw::new(&host);
    let RingParts { memory, own, peer } = by_hand.connect_ring(VmId::LOOPBACK, PORT);
    let memory = std::fs::File::from(memory);
    let (_, parts, control) = listener.take_ring();
    let other = Process::new(Side::Second, parts, control);
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
    // From here to there: publish, and ring for one that sleeps.
    assert!(other.end.arm(hvsock_ring::Interest::READ));
    assert_eq!(word(out + awake), 0);
    write(HEADER, b"by hand");
    write(out, &7_u64.to_le_bytes());
    write(out + awake, &1_u32.to_le_bytes());
    assert!(doorbell::ring(&peer).unwrap());
    let mut bytes = [0; 7];
    assert_eq!(other.end.try_read(&mut bytes), Ok(7));
    assert_eq!((&bytes, long(out + tail)), (b"by hand", 7));
    // And back, for one that sleeps.
    write(back + awake, &0_u32.to_le_bytes());
    assert_eq!(other.end.try_write(b"thanks"), Ok(6));
    assert_eq!((long(back), word(back + awake)), (6, 1));
    assert!(heard(&own) && doorbell::clear(&own).unwrap());
    read(HEADER + size, &mut bytes[..6]);
    assert_eq!(&bytes[..6], b"thanks");
    write(back + tail, &6_u64.to_le_bytes());
    // A writer that sleeps is woken when there is as much room as it asked for.
    write(out, &(7 + size).to_le_bytes());
    write(out + space, &2_u64.to_le_bytes());
    assert_eq!(other.end.try_read(&mut [0]), Ok(1));
    assert!(long(out + space) == 2 && !heard(&own));
    assert_eq!(other.end.try_read(&mut [0]), Ok(1));
    assert!(long(out + space) == 0 && heard(&own));
    // Ends.
    other.end.shutdown_write();
    assert_eq!(word(back + ended), 1);
    other.end.shutdown_read();
    assert_eq!(word(out + closed), 1);
    drop(other.end);
    assert_eq!((word(out + closed), word(state)), (2, 0));
    drop(other.control);
    let refusal = by_hand.hear_reset();
    assert!(refusal.to_string().contains("without reading"), "{refusal}");
    assert_eq!(word(state), 1);
}

/// The words of the memory are the processes' to write.
#[test]
fn who_says_nonsense_of_its_bytes_harms_no_sum() {
    use std::os::unix::fs::FileExt;
    let world = World::new();
    world.register(PORT);
    let (host, web) = (world.host(), world.container("web", None));
    for _ in 0..3 {
        let listener = Raw::new(&host);
        listener.listen_ring(VmId::CHILDREN, PORT, 8);
        let client = Raw::new(&web);
        let parts = client.connect_ring(VmId::PARENT, PORT);
        let (_, _other, _control) = listener.take_ring();
        let words = std::fs::File::from(parts.memory);
        let says = |head: u64| words.write_all_at(&head.to_le_bytes(), 128).unwrap();
        says(u64::MAX);
        assert_eq!(only(&world).bytes_sent, u64::MAX);
        says(1);
        assert_eq!(only(&world).bytes_sent, u64::MAX);
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
fn the_end_of_a_process_is_what_its_words_say() {
    let world = World::new();
    let host = world.host();
    // One that closed well, and the other goes on.
    let Pair { client, server } = Pair::looped(&host);
    client.end.try_write(b"all").unwrap();
    client.close();
    assert_eq!(server.control.hear(), BrokerMessage::Shutdown);
    assert!(server.control.is_quiet());
    assert_eq!(server.read_all(), (b"all".to_vec(), Stop::End));
    server.close();
    world.settles_at(0, 0);
    // One that did not.
    let Pair { client, server } = Pair::looped(&host);
    server.end.try_write(b"almost").unwrap();
    drop(server);
    let refusal = client.control.hear_reset();
    assert!(refusal.to_string().contains("without closing"), "{refusal}");
    assert_eq!(client.read_all(), (b"almost".to_vec(), Stop::Cut));
    world.settles_at(0, 0);
    // One that left something unread.
    let Pair { client, server } = Pair::looped(&host);
    server.end.try_write(b"unread").unwrap();
    client.close();
    let refusal = server.control.hear_reset();
    assert!(refusal.to_string().contains("without reading"), "{refusal}");
    assert_eq!(server.end.try_write(b"?"), Err(Stop::Cut));
    world.settles_at(0, 0);
    // One that breaks the protocol.
    let Pair { client, server } = Pair::looped(&host);
    server.control.say(&ClientMessage::Shutdown);
    server.control.say_bytes(b"GET / HTTP/1.1");
    for process in [client, server] {
        let refusal = process.control.hear_reset();
        assert!(refusal.to_string().contains("protocol"), "{refusal}");
        assert_eq!(process.read_all().1, Stop::Cut);
    }
    world.settles_at(0, 0);
}

/// A client that is gone before it is answered leaves a connection that its listener sees end.
#[test]
fn one_that_nobody_takes_and_one_whose_client_is_gone_are_reset() {
    let world = World::new();
    let host = world.host();
    let listener = Raw::new(&host);
    listener.listen_ring(VmId::LOOPBACK, PORT, 8);
    let client = Raw::new(&host);
    client.say(&connect_by(VmId::LOOPBACK, PORT, EITHER, false));
    drop(client);
    let (_, parts, control) = listener.take_ring();
    let server = Process::new(Side::Second, parts, control);
    let refusal = server.control.hear_reset();
    assert!(refusal.to_string().contains("without closing"), "{refusal}");
    assert_eq!(server.read_all().1, Stop::Cut);

    let client = Raw::new(&host);
    let parts = client.connect_ring(VmId::LOOPBACK, PORT);
    let client = Process::new(Side::First, parts, client);
    client.end.try_write(b"anybody?").unwrap();
    drop(listener);
    client.control.hear_reset();
    assert_eq!(client.end.try_write(b"?"), Err(Stop::Cut));
    world.settles_at(0, 0);
}

#[test]
fn what_is_withdrawn_or_cut_ends_for_both_with_the_reason() {
    let world = World::new();
    world.register(PORT);
    let (host, web) = (world.host(), world.container("web", None));
    let between = || Pair::new(&web, VmId::PARENT, &host, VmId::CHILDREN, false);
    let ends_with = |pair: Pair, is_it: &dyn Fn(&Refusal) -> bool| {
        for process in [pair.client, pair.server] {
            let refusal = process.control.hear_reset();
            assert!(is_it(&refusal), "{refusal}");
            assert_eq!(process.read_all(), (b"so far".to_vec(), Stop::Cut));
            assert_eq!(process.end.try_write(b"?"), Err(Stop::Cut));
        }
    };
    let talk = |pair: &Pair| {
        pair.client.end.try_write(b"so far").unwrap();
        pair.server.end.try_write(b"so far").unwrap();
    };
    let pair = between();
    talk(&pair);
    world.handle().cut(only(&world).id).unwrap();
    ends_with(pair, &|refusal| refusal.to_string().contains("operator"));
    world.settles_at(0, 0);
    let pair = between();
    talk(&pair);
    let disable = |on| world.handle().set_enabled(&service_ref(PORT), on, None);
    disable(false).unwrap();
    ends_with(pair, &|refusal| matches!(refusal, Refusal::Disabled { .. }));
    disable(true).unwrap();
    let pair = between();
    talk(&pair);
    let set = |state| world.handle().set_state(&partition_ref("web"), state);
    set(PartitionState::Paused).unwrap();
    ends_with(pair, &|refusal| *refusal == Refusal::PartitionPaused);
    set(PartitionState::Running).unwrap();
    let pair = between();
    talk(&pair);
    drop(world);
    ends_with(pair, &|refusal| refusal.to_string().contains("stopped"));
}

#[test]
fn one_that_wants_to_outlast_a_pause_stands_still_and_both_hear_of_it() {
    let world = World::new();
    world.register(PORT);
    let (host, web) = (world.host(), world.container("web", None));
    let pair = Pair::new(&web, VmId::PARENT, &host, VmId::CHILDREN, true);
    let set = |state| world.handle().set_state(&partition_ref("web"), state);
    let hear = |on| {
        for process in [&pair.client, &pair.server] {
            assert_eq!(process.control.hear(), BrokerMessage::Suspended { on });
        }
    };
    set(PartitionState::Paused).unwrap();
    hear(true);
    assert_eq!(only(&world).state, ConnectionState::Suspended);
    pair.client.end.try_write(b"meanwhile").unwrap();
    let mut bytes = [0; 9];
    let still = pair.server.end.try_read(&mut bytes);
    assert_eq!(still, Err(Stop::WouldBlock));
    set(PartitionState::Running).unwrap();
    hear(false);
    assert_eq!(pair.server.end.try_read(&mut bytes), Ok(9));
    // The option can be taken back on a connection that stands.
    let option = SocketOption::ConnectedSuspend;
    pair.client.control.set_option(option, 0);
    eventually("it is known", || !only(&world).from.connected_suspend);
    set(PartitionState::Paused).unwrap();
    let refusal = pair.server.control.hear_reset();
    assert_eq!(refusal, Refusal::PartitionPaused);
}

#[test]
fn an_idle_one_costs_the_broker_two_descriptors_and_a_dead_broker_is_noticed() {
    const MANY: usize = 20;
    let folder = TempFolder::new();
    let mut broker = BrokerProcess::start(folder.path(), None);
    let host = broker.host();
    let listener = Raw::new(&host);
    listener.listen_ring(VmId::LOOPBACK, PORT, 100);
    let connect = || {
        let client = Raw::new(&host);
        let parts = client.connect_ring(VmId::LOOPBACK, PORT);
        let (_, other, control) = listener.take_ring();
        [(client, parts), (control, other)]
    };
    let first = connect();
    // The broker has what the next one is made of, always, and gives away what it has handed out.
    let rest = |before: usize, of: usize| {
        eventually("as many descriptors as there should be", || {
            broker.descriptors() == before + 2 * of
        });
    };
    std::thread::sleep(Duration::from_millis(50));
    let before = broker.descriptors();
    let pairs: Vec<_> = (0..MANY).map(|_| connect()).collect();
    rest(before, MANY);
    drop(pairs);
    rest(before, 0);
    // Who ends them is the kernel, and without a word.
    let [(control, parts), _] = first;
    broker.playing.kill();
    control.hear_end();
    assert!(!heard(&parts.own), "the ends are there");
}
