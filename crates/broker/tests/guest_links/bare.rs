//! A link that can do nothing but hand out sockets.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use hvsock_address::PartitionRef;
use hvsock_broker::guest_link::{self, Capabilities, Destination, SocketKind};
use hvsock_broker::model::PartitionState;
use hvsock_testkit::conformance::LONGEST_WAIT;

use crate::links::pipe_link::{self, Wanted};
use crate::links::socket_link::Guest;
use hvsock_testkit::wait::eventually;
use hvsock_testkit::world::World;

use crate::links::world::LinkWorld as _;

const PORT: u32 = 5000;
const SHORT: Duration = Duration::from_millis(100);

fn start() -> (World, Guest) {
    let world = World::new();
    let guest = world.socket_vm("web", Capabilities::default());
    world.register(PORT);
    (world, guest)
}

#[test]
fn the_broker_relays_and_counts_the_bytes_each_way() {
    let (world, guest) = start();
    let listener = world.listen_over(PORT, true, 1).expect("a listener");
    let mut inside = guest.connect(Wanted::port(PORT));
    let (mut outside, _) = listener.accept_timeout(LONGEST_WAIT).expect("accepted");
    assert_eq!(outside.transport(), hvsock::Transport::Descriptor);
    inside.write_all(b"question").expect("a write");
    let mut buffer = [0; 8];
    outside.read_exact(&mut buffer).expect("the bytes");
    outside.write_all(b"42").expect("a write");
    inside.read_exact(&mut buffer[..2]).expect("the bytes");
    eventually("the bytes are not counted", || {
        let seen = world.connection();
        (seen.bytes_sent, seen.bytes_received) == (Some(8), Some(2))
    });
    // The link claims no identities, so that of its requests is not believed.
    assert_eq!(world.connection().from.uid, u32::MAX);
    drop((inside, outside));
    world.has_connections(0);

    let streams = guest.listen(PORT);
    let mut outside = world.connect_over("web", PORT, true).expect("connected");
    let mut inside = streams.recv_timeout(LONGEST_WAIT).expect("accepted");
    outside.write_all(b"ping").expect("a write");
    inside.read_exact(&mut buffer[..4]).expect("the bytes");
    let id = world.connection().id;
    world.broker.handle().close_connection(id).expect("closed");
    let error = outside.read(&mut buffer).expect_err("a reset");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert_eq!(inside.read(&mut buffer).expect("an end"), 0);
    world.has_connections(0);
    // Neither established, suspended nor closed through the link.
    assert!(guest.surplus().is_empty(), "{:?}", guest.surplus());
}

#[test]
fn refused_guests_are_told_no_reason_and_see_an_end() {
    let (world, guest) = start();
    world.pipe_vm("db", pipe_link::CAPABILITIES);
    let sibling = Wanted {
        destination: Destination::Cid(world.cid("db")),
        ..Wanted::port(PORT)
    };
    let messages = Wanted {
        kind: SocketKind::Seqpacket,
        ..Wanted::port(PORT)
    };
    // No listener, not on such a link, not on such a link.
    for wanted in [Wanted::port(PORT), sibling, messages] {
        let mut inside = guest.connect(wanted);
        inside
            .set_read_timeout(Some(LONGEST_WAIT))
            .expect("a timeout");
        assert_eq!(inside.read(&mut [0; 1]).expect("an end"), 0);
    }
    eventually("not all were refused", || {
        guest.refused() == [None, None, None]
    });
    let refusals = world.broker.handle().metrics().expect("metrics").refusals;
    assert_eq!(refusals.get("not_supported"), Some(&2), "{refusals:?}");
    assert_eq!(refusals.get("no_listener"), Some(&1), "{refusals:?}");
}

#[test]
fn a_guest_that_does_not_listen_refuses_a_process() {
    let (world, _guest) = start();
    let error = world
        .connect_over("web", PORT, true)
        .expect_err("no listener");
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    world.has_connections(0);
}

#[test]
fn without_half_close_the_end_of_data_comes_with_the_close() {
    let (world, guest) = start();
    let streams = guest.listen(PORT);
    let mut outside = world.connect_over("web", PORT, true).expect("connected");
    let mut inside = streams.recv_timeout(LONGEST_WAIT).expect("accepted");
    outside.write_all(b"all of it").expect("a write");
    outside.shutdown(Shutdown::Write).expect("a half-close");
    let mut buffer = [0; 9];
    inside.read_exact(&mut buffer).expect("the bytes");
    inside.set_read_timeout(Some(SHORT)).expect("a timeout");
    let error = inside.read(&mut buffer).expect_err("no end yet");
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    // The other direction still works.
    inside.write_all(b"an answer").expect("a write");
    outside.read_exact(&mut buffer).expect("the bytes");
    inside
        .set_read_timeout(Some(LONGEST_WAIT))
        .expect("a timeout");
    drop(outside);
    assert_eq!(inside.read(&mut buffer).expect("an end"), 0);
    world.has_connections(0);
}

#[test]
fn the_end_of_a_guests_data_is_the_end_of_both_directions() {
    let (world, guest) = start();
    let listener = world.listen_over(PORT, true, 1).expect("a listener");
    let mut inside = guest.connect(Wanted::port(PORT));
    let (mut outside, _) = listener.accept_timeout(LONGEST_WAIT).expect("accepted");
    inside.write_all(b"all of it").expect("a write");
    drop(inside);
    let mut buffer = [0; 9];
    outside.read_exact(&mut buffer).expect("the bytes");
    assert_eq!(outside.read(&mut buffer).expect("an end"), 0);
    // Nobody reads what is written now, which a write reports.
    let mut written = 0;
    while let Ok(count) = outside.write(&buffer) {
        written += count;
        assert!(written < 1 << 20, "writes to a closed guest succeed");
    }
    drop(outside);
    world.has_connections(0);
}

#[test]
fn a_pause_holds_the_relayed_bytes() {
    let (world, guest) = start();
    let streams = guest.listen(PORT);
    let mut outside = world.connect_over("web", PORT, true).expect("connected");
    let mut inside = streams.recv_timeout(LONGEST_WAIT).expect("accepted");
    outside.set_connected_suspend(true).expect("an option");
    eventually("the option was not reported", || {
        world.connection().from.connected_suspend
    });
    let handle = world.broker.handle();
    let name = PartitionRef::Name("web".parse().expect("a name"));
    let set = |state| handle.set_state(&name, state).expect("a state");
    set(PartitionState::Paused);
    outside.write_all(b"later").expect("a write");
    let mut buffer = [0; 5];
    inside.set_read_timeout(Some(SHORT)).expect("a timeout");
    let error = inside.read(&mut buffer).expect_err("it is paused");
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    set(PartitionState::Running);
    inside
        .set_read_timeout(Some(LONGEST_WAIT))
        .expect("a timeout");
    inside.read_exact(&mut buffer).expect("the bytes");
    // The relay is suspended, not the link.
    assert!(guest.surplus().is_empty(), "{:?}", guest.surplus());
}

#[test]
fn a_close_after_much_data_loses_none_without_half_close() {
    const BYTES: usize = 4 << 20;
    let (world, guest) = start();
    let streams = guest.listen(PORT);
    let mut outside = world.connect_over("web", PORT, true).expect("connected");
    let mut inside = streams.recv_timeout(LONGEST_WAIT).expect("accepted");
    let writer = std::thread::spawn(move || {
        outside.write_all(&vec![7; BYTES]).expect("a write");
        // Closes while the relay still has most of it to move.
    });
    // Gives the buffers time to fill.
    std::thread::sleep(SHORT);
    let mut received = Vec::new();
    inside.read_to_end(&mut received).expect("all bytes");
    assert_eq!(received.len(), BYTES);
    writer.join().expect("no panic");
    world.has_connections(0);
}

#[test]
fn a_guest_that_goes_off_resets_the_relayed_connections() {
    let (world, guest) = start();
    let streams = guest.listen(PORT);
    let mut outside = world.connect_over("web", PORT, true).expect("connected");
    let _inside = streams.recv_timeout(LONGEST_WAIT).expect("accepted");
    guest.set_state(guest_link::PartitionState::Off);
    let error = outside.read(&mut [0; 1]).expect_err("a reset");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    world.has_connections(0);
    assert!(guest.surplus().is_empty(), "{:?}", guest.surplus());
}

/// Sends a request to the VM's hybrid vsock socket with some data behind it, and reads the answer.
fn dial(world: &World, data: &[u8]) -> UnixStream {
    let path = world.partition("web").hybrid_socket.expect("a path");
    let mut stream = UnixStream::connect(path).expect("connected");
    let request = format!("CONNECT {PORT}\n");
    stream
        .write_all(&[request.as_bytes(), data].concat())
        .expect("written");
    let mut answer = [0; 5];
    stream.read_exact(&mut answer).expect("an answer");
    assert!(answer.starts_with(b"OK ") && answer.ends_with(b"\n"));
    stream
}

#[test]
fn a_client_of_the_hybrid_socket_is_relayed_counted_and_closed_without_the_link() {
    let (world, guest) = start();
    let streams = guest.listen(PORT);
    let mut outside = dial(&world, b"question");
    let mut inside = streams.recv_timeout(LONGEST_WAIT).expect("accepted");
    let mut buffer = [0; 8];
    inside.read_exact(&mut buffer).expect("the bytes");
    assert_eq!(&buffer, b"question");
    inside.write_all(b"42").expect("a write");
    outside.read_exact(&mut buffer[..2]).expect("the bytes");
    eventually("the bytes are not counted", || {
        let seen = world.connection();
        (seen.bytes_sent, seen.bytes_received) == (Some(8), Some(2))
    });
    assert_eq!(world.connection().from.pid, std::process::id());
    let id = world.connection().id;
    world.broker.handle().close_connection(id).expect("closed");
    assert_eq!(outside.read(&mut buffer).expect("an end"), 0);
    assert_eq!(inside.read(&mut buffer).expect("an end"), 0);
    world.has_connections(0);
    // A client that is killed.
    let outside = dial(&world, b"");
    let mut inside = streams.recv_timeout(LONGEST_WAIT).expect("accepted");
    drop(outside);
    assert_eq!(inside.read(&mut buffer).expect("an end"), 0);
    world.has_connections(0);
    assert!(guest.surplus().is_empty(), "{:?}", guest.surplus());
}

#[test]
fn a_relayed_client_of_the_hybrid_socket_half_closes_if_the_link_can() {
    // A client cannot receive a socket, so its bytes are relayed even if the link hands its sockets over.
    for hand_over in [false, true] {
        let world = World::new();
        let capabilities = Capabilities {
            half_close: true,
            ..Capabilities::default()
        };
        let guest = match hand_over {
            true => world.hand_over_vm("web", capabilities),
            false => world.socket_vm("web", capabilities),
        };
        world.register(PORT);
        let streams = guest.listen(PORT);
        let mut outside = dial(&world, b"question");
        let mut inside = streams.recv_timeout(LONGEST_WAIT).expect("accepted");
        outside.shutdown(Shutdown::Write).expect("it ends");
        let mut text = String::new();
        inside.read_to_string(&mut text).expect("the question");
        assert_eq!(text, "question");
        assert_eq!(world.connection().bytes_sent, Some(8));
        inside.write_all(b"answer").expect("a write");
        drop(inside);
        text.clear();
        outside.read_to_string(&mut text).expect("the answer");
        assert_eq!(text, "answer");
        drop(outside);
        world.has_connections(0);
    }
}
