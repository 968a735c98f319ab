//! The library with a real broker: behaviour beyond the conformance suite.

#![cfg(target_os = "linux")]

mod arenas;
mod children;
mod ring;
mod world;

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::time::Duration;

use hvsock::{
    AF_HYPERV, Fix, HV_PROTOCOL_RAW, HvListener, HvSocket, HvStream, Interest, Lease, Refusal,
    SOCK_STREAM, ServiceId, SockAddrHv, SocketOption, ToHvAddr, VmId, explanation_of, refusal_of,
};
use hvsock_broker::model::PartitionState;

use hvsock_testkit::wait::{TIMEOUT, eventually};

use world::{NAME, SERVICE, World};

const SHORT: Duration = Duration::from_millis(200);

fn refusal<T>(result: io::Result<T>) -> Refusal {
    let error = result.err().expect("a refusal");
    refusal_of(&error)
        .unwrap_or_else(|| panic!("no refusal: {error}"))
        .clone()
}

#[test]
fn both_ends_return_each_others_address() {
    let world = World::new();
    let (connector, acceptor) = world.pair(&world.at_web());
    let peer = acceptor.peer().unwrap();
    assert_eq!(
        (peer.partition(), peer.pid()),
        ("web", Some(std::process::id()))
    );
    assert!(peer.uid().is_some() && peer.gid().is_some());
    assert_eq!(
        connector.peer_addr().unwrap(),
        SockAddrHv::new(VmId::PARENT, SERVICE)
    );
    assert_eq!(acceptor.local_addr().unwrap().vm, VmId::CHILDREN);
    assert_eq!(acceptor.peer_addr().unwrap().service, ServiceId::ZERO);
    assert_eq!(connector.connection_id(), acceptor.connection_id());
    let web = world.host().vm_id(&"web".parse().unwrap()).unwrap();
    assert_eq!(acceptor.peer_addr().unwrap().vm, web);
    assert_eq!(
        world.host().service_id(&NAME.parse().unwrap()).unwrap(),
        SERVICE
    );
}

#[test]
fn a_winsock_program_runs_call_by_call() {
    let world = World::new();
    let fresh = |endpoint| {
        let mut socket = HvSocket::new(AF_HYPERV, SOCK_STREAM, HV_PROTOCOL_RAW).unwrap();
        socket.set_endpoint(endpoint);
        socket
    };
    let mut server = fresh(world.host());
    server
        .bind(SockAddrHv::new(VmId::WILDCARD, SERVICE))
        .unwrap();
    server.listen(5).unwrap();
    let mut client = fresh(world.web());
    client
        .set_option(SocketOption::ConnectTimeout, 5000)
        .unwrap();
    client.set_nonblocking(true).unwrap();
    let address = SockAddrHv::new(VmId::PARENT, SERVICE);
    assert_eq!(
        client.connect(address).unwrap_err().kind(),
        ErrorKind::WouldBlock
    );
    assert!(
        client
            .poll(Interest::WRITABLE, Some(TIMEOUT))
            .unwrap()
            .is_writable()
    );
    assert!(client.take_error().unwrap().is_none());
    assert!(
        server
            .poll(Interest::READABLE, Some(TIMEOUT))
            .unwrap()
            .is_readable()
    );
    let (accepted, _) = server.accept().unwrap();

    assert_eq!(client.send(b"hello").unwrap(), 5);
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(client.send(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
    let mut buffer = [0; 16];
    assert_eq!(accepted.recv(&mut buffer).unwrap(), 5);
    assert_eq!(accepted.recv(&mut buffer).unwrap(), 0);
    assert_eq!(accepted.send(b"bye").unwrap(), 3);
    drop(accepted);
    assert!(
        client
            .poll(Interest::READABLE, Some(TIMEOUT))
            .unwrap()
            .is_readable()
    );
    assert_eq!(client.recv(&mut buffer).unwrap(), 3);
    client.set_nonblocking(false).unwrap();
    assert_eq!(client.recv(&mut buffer).unwrap(), 0);
}

#[test]
fn a_refused_nonblocking_connect_reports_the_reason() {
    let world = World::new();
    let mut socket = HvSocket::new(AF_HYPERV, SOCK_STREAM, HV_PROTOCOL_RAW).unwrap();
    socket.set_endpoint(world.web());
    socket.set_nonblocking(true).unwrap();
    let unknown = SockAddrHv::new(VmId::PARENT, ServiceId::from_port(1));
    assert_eq!(
        socket.connect(unknown).unwrap_err().kind(),
        ErrorKind::WouldBlock
    );
    assert!(
        socket
            .poll(Interest::WRITABLE, Some(TIMEOUT))
            .unwrap()
            .is_writable()
    );
    let error = socket.take_error().unwrap().unwrap();
    assert_eq!(refusal_of(&error), Some(&Refusal::Unregistered));
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn an_explanation_agrees_with_the_connect() {
    let world = World::new();
    let explanation = world.at_web().explain(("parent", NAME)).unwrap();
    assert_eq!(
        explanation.refusal(),
        Some(&Refusal::NoListener),
        "{explanation}"
    );
    assert!(
        matches!(explanation.fix(), Some(Fix::StartListener { .. })),
        "{explanation}"
    );
    assert_eq!(
        refusal(world.at_web().connect(("parent", NAME))),
        Refusal::NoListener
    );
    let listener = world.listen();
    let explanation = world.at_web().explain(("parent", NAME)).unwrap();
    assert!(explanation.would_succeed(), "{explanation}");
    assert!(explanation.steps().len() > 3, "{explanation}");
    drop(listener);
    let explanation = world
        .at_web()
        .explain(("parent", "No Such Service"))
        .unwrap();
    assert_eq!(explanation.refusal(), Some(&Refusal::Unregistered));
    let options = HvListener::options().endpoint(world.host());
    let explanation = options.explain(("parent", NAME)).unwrap();
    assert_eq!(
        explanation.refusal(),
        Some(&Refusal::NotSupported),
        "{explanation}"
    );
}

#[test]
fn a_refusal_brings_the_explanation_of_a_dry_run() {
    let world = World::new();
    let options = world.at_web().explain_refusal(true);
    let id = world.lease.id();
    for address in [("parent", NAME).to_hv_addr(), ("parent", id).to_hv_addr()] {
        let address = address.unwrap();
        let error = options.connect(&address).unwrap_err();
        assert_eq!(refusal_of(&error), Some(&Refusal::NoListener));
        let explanation = explanation_of(&error).expect("an explanation");
        assert_eq!(explanation, &options.explain(&address).unwrap());
        assert!(explanation.steps().len() > 3, "{explanation}");
    }
    let error = options.connect(("parent", "No Such Service")).unwrap_err();
    let explanation = explanation_of(&error).expect("an explanation");
    assert_eq!(explanation.refusal(), Some(&Refusal::Unregistered));
    let unasked = world.at_web().connect(("parent", NAME)).unwrap_err();
    assert!(explanation_of(&unasked).is_none());

    let listen = HvListener::options().endpoint(world.host());
    let error = listen.explain_refusal(true).listen(("parent", NAME));
    let explanation = explanation_of(error.as_ref().unwrap_err());
    let explanation = explanation.expect("an explanation");
    assert_eq!(explanation.refusal(), Some(&Refusal::NotSupported));
    // The address of a listener by name has the id.
    assert_eq!(world.listen().local_addr().unwrap().service, id);
}

#[test]
fn the_end_of_a_lease_resets_its_connections() {
    let world = World::new();
    let listener = world.listen();
    let stream = world.at_web().connect(("parent", NAME)).unwrap();
    let (accepted, _) = listener.accept_timeout(TIMEOUT).unwrap();
    let World { lease, host: _host } = world;
    lease.check().unwrap();
    drop(lease);
    for end in [&stream, &accepted] {
        end.set_read_timeout(Some(TIMEOUT)).unwrap();
        let mut end = end;
        let error = end.read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
        assert_eq!(refusal_of(&error), Some(&Refusal::Unregistered));
    }
    assert_eq!(
        refusal(listener.accept_timeout(TIMEOUT)),
        Refusal::Unregistered
    );
}

#[test]
fn a_clashing_lease_is_refused_by_name() {
    let world = World::new();
    let clash = Lease::register_at(&world.host(), NAME, ServiceId::random(), "");
    let text = refusal(clash).to_string();
    assert!(text.contains(NAME), "{text}");
    world.lease.check().unwrap();
    let in_web = Lease::register_at(&world.web(), "Mine", ServiceId::random(), "");
    assert!(matches!(refusal(in_web), Refusal::Denied { .. }));
}

#[test]
fn the_host_reaches_a_listener_in_a_container_by_name() {
    let world = World::new();
    let options = HvListener::options().endpoint(world.web());
    let listener = options.listen(("parent", NAME)).expect("a listener");
    let options = HvStream::options().endpoint(world.host());
    let mut stream = options.connect(("web", NAME)).expect("connected");
    let (mut accepted, _) = listener.accept_timeout(TIMEOUT).expect("accepted");
    let peer = accepted.peer().unwrap();
    assert_eq!((peer.pid(), peer.uid(), peer.gid()), (None, None, None));
    stream.write_all(b"x").unwrap();
    accepted.read_exact(&mut [0]).unwrap();
    let mut missing = options.connect(("no-such-partition", NAME));
    assert_eq!(refusal(missing), Refusal::PartitionUnknown);
    missing = options.connect((VmId::random(), SERVICE));
    assert_eq!(refusal(missing), Refusal::PartitionUnknown);
}

#[test]
fn a_pause_resets_or_suspends_connections() {
    let world = World::new();
    let (reset, reset_peer) = world.pair(&world.at_web());
    let (mut kept, mut kept_peer) = world.pair(&world.at_web().connected_suspend(true));
    let (later, mut later_peer) = world.pair(&world.at_web());
    later.set_connected_suspend(true).unwrap();
    eventually("the option is set", || {
        let connections = world.host.handle().connections().unwrap();
        let mut known = connections.iter().filter(|c| c.id == later.connection_id());
        known.any(|connection| connection.from.connected_suspend)
    });

    world.set_web(PartitionState::Paused);
    for end in [&reset, &reset_peer] {
        let mut end = end;
        let error = end.read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
        assert_eq!(refusal_of(&error), Some(&Refusal::PartitionPaused));
    }
    kept.write_all(b"slow").unwrap();
    kept_peer.set_read_timeout(Some(SHORT)).unwrap();
    assert_eq!(
        kept_peer.read(&mut [0; 4]).unwrap_err().kind(),
        ErrorKind::TimedOut
    );
    assert_eq!(
        refusal(world.at_web().connect(("parent", NAME))),
        Refusal::PartitionPaused
    );

    world.set_web(PartitionState::Running);
    kept_peer.set_read_timeout(Some(TIMEOUT)).unwrap();
    let mut bytes = [0; 4];
    kept_peer.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"slow");
    later_peer.write_all(b"y").unwrap();
    assert_eq!((&later).read(&mut bytes).unwrap(), 1);
}

#[test]
fn a_relay_that_resets_is_not_a_clean_end() {
    let world = World::new();
    for shared_memory in [true, false] {
        let options = world.at_web().shared_memory(shared_memory);
        let (mut connector, mut acceptor) = world.pair(&options);
        connector.write_all(b"half of it").unwrap();
        connector.reset();
        let mut got = Vec::new();
        let error = acceptor.read_to_end(&mut got).expect_err("a reset");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
        assert_eq!(got, b"half of it");
    }
}

/// Writes until the peer and all between hold no more.
fn fill(mut writer: &HvStream) {
    writer.set_nonblocking(true).unwrap();
    while writer
        .poll(Interest::WRITABLE, Some(SHORT))
        .unwrap()
        .is_writable()
    {
        let _ = writer.write(&[1; 65536]);
    }
}

#[test]
fn a_writer_that_waits_learns_that_its_peer_has_stopped_reading() {
    let world = World::new();
    let with = |shared_memory| world.at_web().shared_memory(shared_memory);
    for (options, how) in [
        (with(true), Shutdown::Read),
        (with(false), Shutdown::Read),
        (with(false), Shutdown::Both),
        (with(false).raw_fd(true), Shutdown::Read),
    ] {
        for blocks in [false, true] {
            let (reader, mut writer) = world.pair(&options);
            fill(&writer);
            writer.set_nonblocking(!blocks).unwrap();
            std::thread::scope(|scope| {
                let writes = scope.spawn(|| {
                    loop {
                        if !blocks {
                            let ready = writer.poll(Interest::WRITABLE, Some(TIMEOUT)).unwrap();
                            assert!(ready.is_writable(), "nothing wakes the writer");
                        }
                        match writer.write(&[2; 65536]) {
                            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                            Err(error) => break error,
                            Ok(_) => {}
                        }
                    }
                });
                reader.shutdown(how).unwrap();
                let error = writes.join().unwrap();
                assert!(
                    matches!(
                        error.kind(),
                        ErrorKind::BrokenPipe | ErrorKind::ConnectionReset
                    ),
                    "{error:?}"
                );
            });
            // Nothing of what was there is read any more.
            assert_eq!((&reader).read(&mut [0; 8]).unwrap(), 0);
        }
    }
}

#[test]
fn a_close_with_bytes_unread_is_a_reset_and_no_clean_end_first() {
    let world = World::new();
    for (shared_memory, raw_fd) in [(true, false), (false, false), (false, true)] {
        let options = world.at_web().shared_memory(shared_memory).raw_fd(raw_fd);
        for round in 0..60 {
            let (connector, acceptor) = world.pair(&options);
            let (mut stays, mut closes) = match round % 2 {
                0 => (connector, acceptor),
                _ => (acceptor, connector),
            };
            stays.write_all(&[1; 1000]).unwrap();
            // Every second time some of them have arrived.
            if round % 4 < 2 {
                closes.poll(Interest::READABLE, Some(TIMEOUT)).unwrap();
            }
            closes.write_all(b"last").unwrap();
            drop(closes);
            let mut last = Vec::new();
            let end = stays.read_to_end(&mut last);
            let kind = end.map_err(|error| error.kind());
            assert_eq!(kind, Err(ErrorKind::ConnectionReset), "{options:?} {round}");
            assert!(b"last".starts_with(&last));
        }
    }
}
