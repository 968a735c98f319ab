//! Streams between guests and the host. Covers both directions, refusals, half-close, resets, the
//! operator's view, port reuse, many connections and containers.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;

use hvsock::{HvListener, HvStream, Refusal, VmId, refusal_of};
use hvsock_broker::model::PartitionState;
use hvsock_testkit::guest::{CloseReason, GuestStream, HOST, Options};
use hvsock_virtio::SocketKind;

use crate::traffic::{exchange, ping};
use hvsock_testkit::wait::{self, TIMEOUT};
use hvsock_testkit::world::{PORT, WEB, World, accept, address, bounded};

#[test]
fn a_guest_connects_to_a_service_of_the_host_and_data_flows_each_way() {
    let world = World::with_web(|_| ());
    let (listener, guest) = (world.listen(), world.guest());
    let (inside, outside) = world.pair(&guest, &listener);
    exchange(&inside, &outside, 3 << 20, 10_000);
    drop(outside);
    assert_eq!(inside.close(TIMEOUT).unwrap(), CloseReason::Clean);
    world.has_connections(0);
    assert_eq!(guest.protocol_violations(), [""; 0]);
}

#[test]
fn the_host_connects_to_a_port_of_a_guest_by_the_machines_name() {
    let world = World::with_web(|_| ());
    let guest = world.guest();
    world.register(5000);
    let listener = guest.listen(5000).unwrap();
    let outside = world.connect_to("web", 5000).unwrap();
    let inside = bounded(listener.accept(TIMEOUT).unwrap());
    assert_eq!(inside.peer().0, HOST);
    exchange(&inside, &outside, 3 << 20, 70_000);
    drop((inside, outside));
    world.has_connections(0);
    assert_eq!(guest.protocol_violations(), [""; 0]);
}

#[test]
fn a_service_without_listener_registration_or_enablement_is_refused_and_not_timed_out() {
    let world = World::with_web(|_| ());
    let guest = world.guest();
    let listener = world.listen();
    world.register(7002);
    // A request without an answer would time out in the guest, which is another error.
    let refused = |port| {
        let error = guest.connect(port).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{port}");
    };
    // Without a listener, and unregistered.
    refused(7002);
    refused(7003);
    let service = hvsock::ServiceRef::Id(hvsock::ServiceId::from_port(PORT));
    world.handle().set_enabled(&service, false, None).unwrap();
    refused(PORT);
    world.handle().set_enabled(&service, true, None).unwrap();
    drop(listener);
    let listener = world.listen();
    let (inside, outside) = world.pair(&guest, &listener);
    ping(&inside, &outside);
    // The guest refuses the host's request.
    let error = world.connect_to("web", 7002).unwrap_err();
    assert_eq!(refusal_of(&error), Some(&Refusal::NoListener), "{error}");
    // SEQPACKET is for siblings only.
    let error = guest
        .connect_to(SocketKind::Seqpacket, HOST, PORT, TIMEOUT)
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    assert_eq!(guest.protocol_violations(), [""; 0]);
}

#[test]
fn a_machine_that_is_off_cannot_be_reached() {
    let world = World::with_web(|_| ());
    world.register(5000);
    assert!(refusal_of(&world.connect_to("web", 5000).unwrap_err()).is_some());
    let guest = world.guest();
    let listener = guest.listen(5000).unwrap();
    let _outside = world.connect_to("web", 5000).unwrap();
    let _inside = listener.accept(TIMEOUT).unwrap();
    drop((listener, guest));
    world.is("web", PartitionState::Off);
    world.has_connections(0);
    assert!(refusal_of(&world.connect_to("web", 5000).unwrap_err()).is_some());
}

#[test]
fn a_half_close_ends_one_direction_after_all_its_bytes() {
    let world = World::with_web(|_| ());
    let (listener, guest) = (world.listen(), world.guest());
    let (inside, mut outside) = world.pair(&guest, &listener);
    let mut text = String::new();
    (&inside).write_all(b"question").unwrap();
    inside.shutdown(Shutdown::Write).unwrap();
    outside.read_to_string(&mut text).unwrap();
    assert_eq!(text, "question");
    assert_eq!(
        (&inside).write(b"more").unwrap_err().kind(),
        ErrorKind::BrokenPipe
    );
    outside.write_all(b"answer").unwrap();
    drop(outside);
    text.clear();
    (&inside).read_to_string(&mut text).unwrap();
    assert_eq!(text, "answer");
    drop(inside);
    world.has_connections(0);
    assert_eq!(guest.protocol_violations(), [""; 0]);
}

#[test]
fn a_guest_that_receives_no_more_still_sends() {
    let world = World::with_web(|_| ());
    let guest = world.guest();
    for shared_memory in [true, false] {
        let host = world.host();
        let options = HvListener::options().endpoint(host.endpoint());
        let listener = options.shared_memory(shared_memory);
        let listener = listener.listen(address(VmId::CHILDREN, PORT)).unwrap();
        let (inside, mut outside) = world.pair(&guest, &listener);
        ping(&inside, &outside);
        inside.shutdown(Shutdown::Read).unwrap();
        let error = wait::until_ok("the process writes no more", || {
            match outside.write_all(b"lost") {
                Ok(()) => Err("a write succeeds"),
                Err(error) => Ok(error),
            }
        });
        assert_eq!(error.kind(), ErrorKind::BrokenPipe, "{error}");
        for _ in 0..20 {
            ping_one_way(&inside, &mut outside);
        }
        inside.shutdown(Shutdown::Write).unwrap();
        assert_eq!(outside.read(&mut [0; 8]).unwrap(), 0);
        drop((inside, outside));
        world.has_connections(0);
    }
    assert_eq!(guest.protocol_violations(), [""; 0]);
}

/// Sends some bytes of the guest, which the process reads at once.
#[track_caller]
fn ping_one_way(mut inside: &GuestStream, outside: &mut HvStream) {
    inside.write_all(b"one way").unwrap();
    let mut bytes = [0; 7];
    outside.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"one way");
}

#[test]
fn a_reset_is_an_error_at_the_other_end_and_never_an_end_of_file() {
    let world = World::with_web(|_| ());
    let (listener, guest) = (world.listen(), world.guest());
    let (inside, mut outside) = world.pair(&guest, &listener);
    inside.reset();
    let error = outside.read(&mut [0; 8]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    let (inside, outside) = world.pair(&guest, &listener);
    ping(&inside, &outside);
    let shown = world.handle().connections().unwrap();
    let connection = shown.iter().find(|it| it.id == outside.connection_id());
    world
        .handle()
        .close_connection(connection.unwrap().id)
        .unwrap();
    let error = (&inside).read(&mut [0; 8]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    world.has_connections(0);
}

#[test]
fn the_list_of_connections_shows_the_guest_and_its_bytes() {
    let world = World::with_web(|_| ());
    let (listener, guest) = (world.listen(), world.guest());
    let (inside, outside) = world.pair(&guest, &listener);
    for _ in 0..100 {
        ping(&inside, &outside);
    }
    let shown = world.handle().connections().unwrap();
    let shown = serde_json::to_value(&shown).unwrap();
    let text = shown.to_string();
    assert!(text.contains("\"web\""), "{text}");
    assert!(text.contains("400"), "{text}");
}

#[test]
fn a_guest_that_sends_few_credit_updates_receives_everything() {
    let world = World::with_web(|_| ());
    let listener = world.listen();
    // Like Linux before 6.8, with small buffers, of which many are in flight.
    let options = Options {
        credit_update_when_empty: false,
        rx_buffer: 100,
        ..Options::new(WEB)
    };
    let guest = world.guest_of("web", options);
    let (inside, outside) = world.pair(&guest, &listener);
    exchange(&inside, &outside, 200_000, 77);
    assert_eq!(guest.protocol_violations(), [""; 0]);
}

#[test]
fn a_guest_may_reuse_a_port_at_once() {
    let world = World::with_web(|_| ());
    let (listener, guest) = (world.listen(), world.guest());
    for round in 0..20 {
        let inside = guest.connect_from(1000, SocketKind::Stream, HOST, PORT, TIMEOUT);
        let inside = bounded(inside.unwrap_or_else(|error| panic!("round {round}: {error}")));
        let outside = accept(&listener);
        ping(&inside, &outside);
        match round % 2 {
            0 => inside.reset(),
            _ => assert_eq!(inside.close(TIMEOUT).unwrap(), CloseReason::Clean),
        }
    }
}

#[test]
fn bytes_of_many_connections_are_not_mixed_up() {
    let world = World::with_web(|_| ());
    let (listener, guest) = (world.listen(), world.guest_of("web", Options::new(WEB)));
    let pairs: Vec<_> = (0..500).map(|_| world.pair(&guest, &listener)).collect();
    for (number, (mut inside, mut outside)) in pairs.iter().map(|(a, b)| (a, b)).enumerate() {
        inside.write_all(&number.to_le_bytes()).unwrap();
        outside.write_all(&(number + 1000).to_le_bytes()).unwrap();
    }
    for (number, (mut inside, mut outside)) in pairs.iter().map(|(a, b)| (a, b)).enumerate() {
        let mut bytes = [0; 8];
        outside.read_exact(&mut bytes).unwrap();
        assert_eq!(usize::from_le_bytes(bytes), number);
        inside.read_exact(&mut bytes).unwrap();
        assert_eq!(usize::from_le_bytes(bytes), number + 1000);
    }
    drop(pairs);
    world.has_connections(0);
    assert_eq!(guest.protocol_violations(), [""; 0]);
}

#[test]
fn the_close_of_a_process_after_many_control_messages_is_noticed() {
    let world = World::with_web(|_| ());
    let (listener, guest) = (world.listen(), world.guest());
    for _ in 0..10 {
        let (inside, outside) = world.pair(&guest, &listener);
        for message in 0..100 {
            outside.set_connected_suspend(message % 2 == 0).unwrap();
        }
        drop(outside);
        assert_eq!(inside.close(TIMEOUT).unwrap(), CloseReason::Clean);
    }
    world.has_connections(0);
}

#[test]
fn a_container_connects_to_a_guest_of_its_group_by_name() {
    let world = World::with_web(|_| ());
    world.vm("db", 77, &["shop"]);
    let guest = world.guest_of("db", Options::new(77));
    let front = serde_json::json!({"name": "front", "groups": ["shop"]});
    let front = serde_json::from_value(front).unwrap();
    world.handle().add_container(front).unwrap();
    world.register(5000);
    let listener = guest.listen(5000).unwrap();
    let endpoint = world.folder.join("containers/front/endpoint");
    let connect = HvStream::options().endpoint(hvsock::Endpoint::at(endpoint));
    let outside = connect.connect(("db", 5000)).unwrap();
    let inside = bounded(listener.accept(TIMEOUT).unwrap());
    exchange(&inside, &outside, 1 << 20, 10_000);
}
