//! Connections between siblings behind links of different kinds.

use std::thread;
use std::time::Duration;

use hvsock_address::PartitionRef;
use hvsock_broker::guest_link::{Destination, Refusal};
use hvsock_testkit::conformance::{LONGEST_WAIT, Stream};
use hvsock_testkit::guest::{self, Options};
use hvsock_testkit::wait::eventually;
use hvsock_testkit::world::World;

use crate::links::memory::GuestStream;
use crate::links::pipe_link::{CAPABILITIES, Wanted};
use crate::links::world::LinkWorld as _;

const PORT: u32 = 5000;
const BYTES: usize = 4 << 20;

fn to(world: &World, name: &str) -> Wanted {
    Wanted {
        destination: Destination::Cid(world.cid(name)),
        ..Wanted::port(PORT)
    }
}

fn write_all(stream: &GuestStream) {
    let mut left = BYTES;
    while left > 0 {
        left -= stream
            .write(&[7; 10_000][..left.min(10_000)])
            .expect("a write");
    }
    stream.shutdown_write().expect("a half-close");
}

fn read_all(stream: &GuestStream) {
    let (mut buffer, mut count) = ([0; 9000], 0);
    stream.set_read_timeout(LONGEST_WAIT).expect("a timeout");
    loop {
        match stream.read(&mut buffer).expect("a read") {
            0 => break,
            read => count += read,
        }
    }
    assert_eq!(count, BYTES);
}

#[test]
fn two_guests_behind_pipe_links_exchange_bytes_each_way() {
    let world = World::new();
    let one = world.pipe_vm("one", CAPABILITIES);
    let two = world.pipe_vm("two", CAPABILITIES);
    world.register(PORT);
    let reason = one.connect(to(&world, "two")).err().expect("no listener");
    assert_eq!(reason, Some(Refusal::NoListener));
    let streams = two.listen(PORT);
    let a = one.connect(to(&world, "two")).expect("connected");
    let b = streams.recv_timeout(LONGEST_WAIT).expect("accepted");
    thread::scope(|scope| {
        for (from, to) in [(&a, &b), (&b, &a)] {
            scope.spawn(move || write_all(from));
            scope.spawn(move || read_all(to));
        }
    });
    let bytes = BYTES as u64;
    eventually("the bytes are not counted", || {
        let seen = world.connection();
        (seen.bytes_sent, seen.bytes_received) == (Some(bytes), Some(bytes))
    });
    drop((a, b));
    world.has_connections(0);
}

#[test]
fn a_guest_behind_a_pipe_link_and_one_with_a_vhost_user_device_reach_each_other() {
    let world = World::new();
    let one = world.pipe_vm("one", CAPABILITIES);
    let vm = serde_json::json!({"name": "two", "groups": ["all"]});
    let vm = serde_json::from_value(vm).expect("a VM");
    let added = world.broker.handle().add_vm(vm).expect("added");
    world.register(PORT);
    let cid = world.cid("two");
    let socket = added.socket.expect("a VM has a socket");
    let two = guest::Guest::start(&socket, Options::new(cid)).expect("a guest");

    let listener = two.listen(PORT).expect("a listener");
    let a = one.connect(to(&world, "two")).expect("connected");
    let b = listener.accept(LONGEST_WAIT).expect("accepted");
    exchange(&a, &b);
    drop((a, b));
    world.has_connections(0);

    let streams = one.listen(PORT);
    let own = world.cid("one");
    let kind = hvsock_virtio::SocketKind::Stream;
    let b = two
        .connect_to(kind, own, PORT, LONGEST_WAIT)
        .expect("connected");
    let a = streams.recv_timeout(LONGEST_WAIT).expect("accepted");
    exchange(&a, &b);
    drop((a, b));
    world.has_connections(0);

    // A sibling that is removed is a reset.
    let a = one.connect(to(&world, "two")).expect("connected");
    let name = PartitionRef::Name("two".parse().expect("a name"));
    let removed = world.broker.handle().remove_partition(&name);
    removed.expect("removed");
    a.set_read_timeout(Duration::from_secs(30))
        .expect("a timeout");
    let error = a.read(&mut [0; 1]).expect_err("a reset");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    world.has_connections(0);
}

fn exchange(a: &GuestStream, b: &guest::GuestStream) {
    thread::scope(|scope| {
        scope.spawn(|| write_all(a));
        scope.spawn(|| {
            let (mut buffer, mut count) = ([0; 9000], 0);
            loop {
                match std::io::Read::read(&mut &*b, &mut buffer).expect("a read") {
                    0 => break,
                    read => count += read,
                }
            }
            assert_eq!(count, BYTES);
            std::io::Write::write_all(&mut &*b, &vec![7; BYTES]).expect("a write");
            b.shutdown(std::net::Shutdown::Write).expect("a half-close");
        });
        read_all(a);
    });
}
