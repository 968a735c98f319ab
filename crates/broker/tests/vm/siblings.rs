//! Connections between sibling guests, which are in one group and connect by context id. Covers
//! streams, SEQPACKET messages, access, resets and backpressure.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::thread;
use std::time::Duration;

use hvsock::VmId;
use hvsock_testkit::guest::{Driver, Guest, GuestStream, Options};
use hvsock_virtio::SocketKind;

use crate::traffic::{read_all, write_all};
use hvsock_testkit::wait::TIMEOUT;
use hvsock_testkit::world::{World, bounded};

/// Two guests of one group, and a third outside of it.
struct Siblings {
    world: World,
    one: Guest,
    two: Guest,
    other: Guest,
}

const ONE: u64 = 101;
const TWO: u64 = 102;
const OTHER: u64 = 103;

impl Siblings {
    fn new() -> Self {
        let world = World::with_web(|_| ());
        world.vm("one", ONE, &["family"]);
        world.vm("two", TWO, &["family"]);
        world.vm("other", OTHER, &[]);
        // A connection between partitions needs a registered service, also between siblings.
        world.register(5000);
        let [one, two, other] = [("one", ONE), ("two", TWO), ("other", OTHER)]
            .map(|(name, cid)| world.guest_of(name, Options::new(cid)));
        Self {
            world,
            one,
            two,
            other,
        }
    }

    fn pair(&self, kind: SocketKind) -> (GuestStream, GuestStream) {
        let listener = self.two.listen_for(kind, 5000, 16).unwrap();
        let a = self
            .one
            .connect_to(kind, TWO, 5000, TIMEOUT)
            .expect("connected");
        let b = listener.accept(TIMEOUT).expect("accepted");
        assert_eq!(b.peer().0, ONE);
        (bounded(a), bounded(b))
    }
}

#[test]
fn streams_between_siblings_carry_data_each_way() {
    let siblings = Siblings::new();
    let (a, b) = siblings.pair(SocketKind::Stream);
    let bytes = 8 << 20;
    thread::scope(|scope| {
        for (from, to) in [(&a, &b), (&b, &a)] {
            scope.spawn(move || {
                write_all(from, bytes, 50_000).unwrap();
                from.shutdown(Shutdown::Write).unwrap();
            });
            scope.spawn(move || assert_eq!(read_all(to, 1 << 16).unwrap(), bytes));
        }
    });
    drop((a, b));
    siblings.world.has_connections(0);
    assert_eq!(siblings.one.protocol_violations(), [""; 0]);
    assert_eq!(siblings.two.protocol_violations(), [""; 0]);
}

#[test]
fn messages_between_siblings_keep_their_boundaries() {
    let siblings = Siblings::new();
    let (a, b) = siblings.pair(SocketKind::Seqpacket);
    let message = |number: usize| vec![number as u8; (number * 7919) % 200_000];
    thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0..100 {
                a.send_message(&message(number), number % 3 == 0).unwrap();
            }
            a.shutdown(Shutdown::Write).unwrap();
        });
        for number in 0..100 {
            let (bytes, record) = b.receive_message().unwrap().expect("a message");
            assert!(
                bytes == message(number),
                "message {number}: {} bytes",
                bytes.len()
            );
            assert_eq!(record, number % 3 == 0, "message {number}");
        }
        assert!(b.receive_message().unwrap().is_none());
    });
    assert_eq!(siblings.two.protocol_violations(), [""; 0]);
}

#[test]
fn a_guest_is_not_reachable_from_outside_its_groups() {
    let siblings = Siblings::new();
    let _listener = siblings.two.listen(5000).unwrap();
    let error = siblings
        .other
        .connect_to(SocketKind::Stream, TWO, 5000, TIMEOUT)
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    let error = siblings
        .one
        .connect_to(SocketKind::Stream, 999, 5000, TIMEOUT)
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    // No listener.
    let error = siblings
        .one
        .connect_to(SocketKind::Stream, TWO, 5001, TIMEOUT)
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn killing_a_sibling_resets_its_connections() {
    let siblings = Siblings::new();
    let (mut a, b) = siblings.pair(SocketKind::Stream);
    a.write_all(b"hello").unwrap();
    drop(siblings.two);
    let error = a.read(&mut [0; 8]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    drop(b);
    siblings.world.has_connections(0);
}

#[test]
fn a_sibling_that_does_not_read_blocks_only_its_own_writer() {
    let siblings = Siblings::new();
    let (mut a, b) = siblings.pair(SocketKind::Stream);
    let (mut c, mut d) = {
        let listener = siblings.two.listen(5000).unwrap();
        let c = siblings
            .one
            .connect_to(SocketKind::Stream, TWO, 5000, TIMEOUT)
            .unwrap();
        (bounded(c), bounded(listener.accept(TIMEOUT).unwrap()))
    };
    let mut taken = 0_usize;
    let chunk = [7; 4096];
    a.set_write_timeout(Some(Duration::from_millis(200)));
    while let Ok(count) = a.write(&chunk) {
        taken += count;
        assert!(taken < 16 << 20, "no backpressure");
    }
    c.write_all(b"hello").unwrap();
    let mut bytes = [0; 5];
    d.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"hello");
    drop((a, b));
}

#[test]
fn a_guest_that_gives_up_on_a_silent_sibling_leaves_no_connection() {
    let world = World::new();
    world.vm("one", ONE, &["family"]);
    world.vm("two", TWO, &["family"]);
    world.register(5000);
    let one = world.guest_of("one", Options::new(ONE));
    // A driver that answers nothing.
    let _two = Driver::start(&world.socket("two"), Options::new(TWO)).expect("a driver");
    let timeout = Duration::from_millis(100);
    let error = one.connect_to(SocketKind::Stream, TWO, 5000, timeout);
    assert_eq!(
        error.map(drop).expect_err("no answer").kind(),
        ErrorKind::TimedOut
    );
    world.has_connections(0);
}

#[test]
fn a_connect_that_a_guest_does_not_answer_is_told_as_the_guests_and_not_the_brokers() {
    let world = World::new();
    world.vm("two", TWO, &[]);
    world.register(5000);
    let _two = Driver::start(&world.socket("two"), Options::new(TWO)).expect("a driver");
    let silent = Duration::from_millis(300);
    let options = world.host().options().timeout(silent);
    let error = options.connect(("two", 5000)).expect_err("no answer");
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    assert_eq!(hvsock::refusal_of(&error), Some(&hvsock::Refusal::TimedOut));
    assert_eq!(
        error.to_string(),
        "timed out: the peer did not answer within 300ms"
    );
    world.has_connections(0);
}

#[test]
fn a_guest_reaches_a_container_of_its_group_by_its_cid_and_no_other_container() {
    let siblings = Siblings::new();
    let world = &siblings.world;
    let near = world.container("near", Some("family"));
    let far = world.container("far", None);
    let bytes = 1 << 20;
    let listeners = [&near, &far].map(|inside| inside.listen(VmId::WILDCARD, 5000).unwrap());
    let connect = |guest: &Guest, name: &str| {
        guest.connect_to(SocketKind::Stream, world.cid(name), 5000, TIMEOUT)
    };
    let mut guest = bounded(connect(&siblings.one, "near").expect("connected"));
    let (mut process, peer) = listeners[0].accept().unwrap();
    assert_eq!(peer.vm, world.partition("one").id);
    thread::scope(|scope| {
        let writing = guest.clone();
        scope.spawn(move || {
            write_all(&writing, bytes, 50_000).unwrap();
            writing.shutdown(Shutdown::Write).unwrap();
        });
        assert_eq!(read_all(&mut process, 1 << 16).unwrap(), bytes);
    });
    process.write_all(b"answer").unwrap();
    drop(process);
    let mut answer = Vec::new();
    guest.read_to_end(&mut answer).unwrap();
    assert_eq!(answer, b"answer");
    // Whether there is such a container looks the same as whether there is such a CID.
    for (from, to) in [(&siblings.one, "far"), (&siblings.other, "near")] {
        let error = connect(from, to).expect_err("not reachable");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{to}");
    }
    let connect = |kind| {
        let cid = world.cid("near");
        siblings.one.connect_to(kind, cid, 5000, TIMEOUT)
    };
    let error = connect(SocketKind::Seqpacket).expect_err("not supported");
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
}
