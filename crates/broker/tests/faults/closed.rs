//! Connections that an operator closes. Covers unregistering, disabling, closing one connection,
//! removing a partition and races with the processes' messages. Both ends receive the reason.

use std::io::{self, Read, Write};
use std::time::Duration;

use hvsock::{HvStream, Refusal, VmId};
use hvsock_endpoint::{BrokerMessage, ClientMessage};

use crate::raw::Raw;
use hvsock_testkit::wait::{TIMEOUT, eventually};
use hvsock_testkit::world::{World, accept, partition_ref, refusal, refused, service_ref};

const PORT: u32 = 800;

/// The refusal with which a connection was reset. Checks that reads and writes both report it.
fn reset_reason(stream: &mut HvStream) -> Refusal {
    let error = stream.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}");
    let error = stream.write(b"?").unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}");
    refusal(&error)
}

#[test]
fn unregistering_a_service_closes_its_listeners_and_connections_with_the_reason() {
    let world = World::new();
    let (host, web) = (world.host(), world.container("web", None));
    world.register(PORT);
    world.register(PORT + 1);
    let listener = host.listen(VmId::CHILDREN, PORT).unwrap();
    let (mut one, mut other) = web.pair(VmId::PARENT, PORT, &listener);
    let mut waiting = web.connect(VmId::PARENT, PORT).unwrap();
    // Loopback needs no registration; another service is not affected.
    let loopback = host.listen(VmId::LOOPBACK, PORT).unwrap();
    let (mut inner, mut inner_other) = host.pair(VmId::LOOPBACK, PORT, &loopback);
    let unrelated = host.listen(VmId::CHILDREN, PORT + 1).unwrap();
    world.handle().unregister(&service_ref(PORT)).unwrap();
    for stream in [&mut one, &mut other, &mut waiting] {
        assert_eq!(reset_reason(stream), Refusal::Unregistered);
    }
    // The waiting connection may have been sent to the listener already.
    let error = loop {
        match listener.accept_timeout(TIMEOUT) {
            Ok((mut stream, _)) => assert_eq!(reset_reason(&mut stream), Refusal::Unregistered),
            Err(error) => break error,
        }
    };
    assert_eq!(refusal(&error), Refusal::Unregistered);
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    let again = refused(host.listen(VmId::CHILDREN, PORT));
    assert_eq!(again, Refusal::Unregistered);
    inner.write_all(b"!").unwrap();
    inner_other.read_exact(&mut [0]).unwrap();
    web.pair(VmId::PARENT, PORT + 1, &unrelated);
}

#[test]
fn disabling_a_service_closes_connections_of_all_or_of_one_partition() {
    let world = World::new();
    let host = world.host();
    let (web, db) = (world.container("web", None), world.container("db", None));
    world.register(PORT);
    let listener = host.listen(VmId::CHILDREN, PORT).unwrap();
    let (mut of_web, mut to_web) = web.pair(VmId::PARENT, PORT, &listener);
    let (mut of_db, mut to_db) = db.pair(VmId::PARENT, PORT, &listener);
    let switch = |on, partition: Option<&str>| {
        let partition = partition.map(partition_ref);
        let done = world
            .handle()
            .set_enabled(&service_ref(PORT), on, partition.as_ref());
        done.unwrap();
    };
    let is_disabled = |refusal: Refusal| matches!(refusal, Refusal::Disabled { .. });
    switch(false, Some("web"));
    assert!(is_disabled(reset_reason(&mut of_web)) && is_disabled(reset_reason(&mut to_web)));
    assert!(is_disabled(refused(web.connect(VmId::PARENT, PORT))));
    of_db.write_all(b"unharmed").unwrap();
    to_db.read_exact(&mut [0; 8]).unwrap();
    switch(false, None);
    assert!(is_disabled(reset_reason(&mut of_db)) && is_disabled(reset_reason(&mut to_db)));
    let error = listener.accept_timeout(TIMEOUT).unwrap_err();
    assert!(is_disabled(refusal(&error)));
    switch(true, None);
    let listener = host.listen(VmId::CHILDREN, PORT).unwrap();
    db.pair(VmId::PARENT, PORT, &listener);
    assert!(is_disabled(refused(web.connect(VmId::PARENT, PORT))));
    switch(true, Some("web"));
    web.pair(VmId::PARENT, PORT, &listener);
}

#[test]
fn a_blocked_writer_and_an_idle_reader_get_the_reason_of_a_close() {
    let world = World::new();
    let (host, web) = (world.host(), world.container("web", None));
    world.register(PORT);
    let listener = host.listen(VmId::CHILDREN, PORT).unwrap();
    let (mut writing, mut idle) = web.pair(VmId::PARENT, PORT, &listener);
    std::thread::scope(|scope| {
        let blocked = scope.spawn(|| {
            loop {
                if let Err(error) = writing.write(&[7; 65_536]) {
                    return error;
                }
            }
        });
        eventually("the writer is blocked", || {
            let bytes = || world.handle().connections().unwrap()[0].bytes_sent;
            let before = bytes();
            std::thread::sleep(Duration::from_millis(150));
            before > Some(0) && bytes() == before
        });
        world.handle().unregister(&service_ref(PORT)).unwrap();
        let error = blocked.join().unwrap();
        assert_eq!(refusal(&error), Refusal::Unregistered, "{error}");
    });
    // The reader receives what had arrived, and then the same reason.
    let mut buffer = vec![0; 1 << 20];
    let error = loop {
        match idle.read(&mut buffer) {
            Ok(count) => assert!(count > 0, "a clean end"),
            Err(error) => break error,
        }
    };
    assert_eq!(refusal(&error), Refusal::Unregistered);
}

#[test]
fn an_operator_closes_one_connection() {
    let world = World::new();
    let host = world.host();
    let listener = host.listen(VmId::LOOPBACK, PORT).unwrap();
    let (mut one, mut other) = host.pair(VmId::LOOPBACK, PORT, &listener);
    let (mut kept, mut kept_other) = host.pair(VmId::LOOPBACK, PORT, &listener);
    world
        .handle()
        .close_connection(one.connection_id())
        .unwrap();
    for stream in [&mut one, &mut other] {
        let refusal = reset_reason(stream);
        assert!(
            matches!(&refusal, Refusal::Reset { cause } if cause.contains("operator")),
            "{refusal}"
        );
    }
    assert!(world.handle().close_connection(u64::MAX).is_err());
    kept.write_all(b"!").unwrap();
    kept_other.read_exact(&mut [0]).unwrap();
}

#[test]
fn removing_a_partition_closes_everything_that_its_processes_have_open() {
    let world = World::new();
    let (host, web) = (world.host(), world.container("web", None));
    world.register(PORT);
    let listener = host.listen(VmId::CHILDREN, PORT).unwrap();
    let (mut inside, mut outside) = web.pair(VmId::PARENT, PORT, &listener);
    let idle = Raw::new(&web);
    let inner = Raw::new(&web);
    inner.listen(VmId::LOOPBACK, PORT, 1);
    let looped = Raw::new(&web);
    let _data = looped.connect(VmId::LOOPBACK, PORT);
    world
        .handle()
        .remove_partition(&partition_ref("web"))
        .unwrap();
    assert_eq!(reset_reason(&mut inside), Refusal::PartitionOff);
    assert_eq!(reset_reason(&mut outside), Refusal::PartitionOff);
    assert_eq!(idle.recv_refused(), Refusal::PartitionOff);
    assert_eq!(looped.recv_reset(), Refusal::PartitionOff);
    let incoming = inner.recv();
    assert!(
        matches!(incoming, BrokerMessage::Incoming(_)),
        "{incoming:?}"
    );
    assert_eq!(inner.recv_reset(), Refusal::PartitionOff);
    assert!(!web.0.exists());
    world.settles_at(1, 0);
    // A new partition of the same name works.
    let web = world.container("web", None);
    web.connect(VmId::PARENT, PORT).unwrap();
    accept(&listener);
}

/// A message sent before the RESET has arrived is no protocol violation.
#[test]
fn messages_that_cross_with_a_reset_are_ignored() {
    let world = World::new();
    let (host, web) = (world.host(), world.container("web", None));
    world.register(PORT);
    for _ in 0..50 {
        let raw = Raw::new(&host);
        raw.listen(VmId::CHILDREN, PORT, 8);
        let client = Raw::new(&web);
        let _data = client.connect(VmId::PARENT, PORT);
        let (incoming, _server_data, control) = raw.recv_incoming();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                raw.send(&ClientMessage::Accepted {
                    connection: incoming.connection,
                });
                control.send(&ClientMessage::Shutdown);
                client.send(&ClientMessage::Shutdown);
            });
            world
                .handle()
                .set_enabled(&service_ref(PORT), false, None)
                .unwrap();
        });
        for end in [&raw, &client, &control] {
            let refusal = end.recv_reset();
            assert!(matches!(refusal, Refusal::Disabled { .. }), "{refusal}");
        }
        world
            .handle()
            .set_enabled(&service_ref(PORT), true, None)
            .unwrap();
    }
    world.settles_at(0, 0);
}
