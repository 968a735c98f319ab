//! Processes that are killed or stopped, including the broker. Covers a killed broker and its
//! successor, a stopped broker, killed clients, a killed lease holder and a second broker.

use std::io::{self, Read, Write};
use std::thread;
use std::time::{Duration, Instant};

use hvsock::{HvStream, Interest, ServiceRef, VmId};
use hvsock_broker::StartError;
use hvsock_testkit::TempFolder;

use crate::child::{BrokerProcess, Child, ChildRole};
use hvsock_testkit::wait::{TIMEOUT, eventually};
use hvsock_testkit::world::{
    World, accept, address, config, container, partition_ref, service_ref,
};

const PORT: u32 = 400;

/// Reads until an error.
fn error_of_reading(stream: &mut HvStream) -> io::Error {
    let mut buffer = [0; 65_536];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => panic!("a clean end"),
            Ok(_) => {}
            Err(error) => return error,
        }
    }
}

fn error_of_writing(stream: &mut HvStream) -> io::Error {
    loop {
        if let Err(error) = stream.write(&[7; 65_536]) {
            return error;
        }
    }
}

#[test]
fn a_killed_broker_resets_every_end_and_the_next_broker_has_its_state() {
    let folder = TempFolder::new();
    let mut broker = BrokerProcess::start(folder.path(), None);
    broker.register(PORT);
    let disabled = service_ref(PORT + 1);
    broker.register(PORT + 1);
    broker.client().set_enabled(&disabled, false, None).unwrap();
    let web = broker.container("web");
    let grouped = container("db", &["data"]);
    broker.client().add_container(&grouped).unwrap();
    let host = broker.host();
    let before = (
        broker.client().services(false).unwrap(),
        broker.client().partitions().unwrap(),
    );

    let listener = host.listen(VmId::WILDCARD, PORT).unwrap();
    // A busy connection, an idle one, and one that is not accepted.
    let (mut writing, mut reading) = web.pair(VmId::PARENT, PORT, &listener);
    let (mut quiet, mut other) = web.pair(VmId::PARENT, PORT, &listener);
    let mut waiting = web.connect(VmId::PARENT, PORT).unwrap();
    // A reset comes from the kernel, at once. An end that missed it would run into its read or
    // write timeout, whose error is another.
    thread::scope(|scope| {
        let ends = [
            scope.spawn(|| error_of_writing(&mut writing)),
            scope.spawn(|| error_of_reading(&mut reading)),
            scope.spawn(|| error_of_reading(&mut quiet)),
            scope.spawn(|| error_of_reading(&mut other)),
            scope.spawn(|| error_of_reading(&mut waiting)),
        ];
        eventually("10 MiB have been sent", || {
            let connections = broker.client().connections().unwrap();
            connections.iter().any(|c| c.bytes_sent > Some(10 << 20))
        });
        broker.child.kill();
        for end in ends {
            let error = end.join().unwrap();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}");
        }
    });
    // One connection is still in the listener's socket. After it comes the end.
    let error = loop {
        if let Err(error) = listener.accept_timeout(TIMEOUT) {
            break error;
        }
    };
    assert_ne!(error.kind(), io::ErrorKind::TimedOut, "{error}");
    let error = web.connect(VmId::PARENT, PORT).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::NotFound, "{error}");

    let broker = BrokerProcess::start(folder.path(), None);
    let after = (
        broker.client().services(false).unwrap(),
        broker.client().partitions().unwrap(),
    );
    assert_eq!(without_uses(before), without_uses(after));
    assert!(broker.client().status().unwrap().problems.is_empty());
    let listener = host.listen(VmId::CHILDREN, PORT).unwrap();
    let (mut one, mut other) = web.pair(VmId::PARENT, PORT, &listener);
    one.write_all(b"again").unwrap();
    let mut bytes = [0; 5];
    other.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"again");
}

type Seen = (
    Vec<hvsock_broker::model::Service>,
    Vec<hvsock_broker::model::Partition>,
);

fn without_uses((mut services, partitions): Seen) -> Seen {
    for service in &mut services {
        (service.listeners, service.connections) = (0, 0);
    }
    (services, partitions)
}

#[test]
fn calls_to_a_stopped_broker_time_out_and_succeed_after_it_resumes() {
    let folder = TempFolder::new();
    let broker = BrokerProcess::start(folder.path(), None);
    let host = broker.host();
    let listener = host
        .listen_without_arenas(VmId::LOOPBACK, PORT, 128)
        .unwrap();
    let (mut one, mut other) = host.pair(VmId::LOOPBACK, PORT, &listener);
    broker.child.stop();
    let bound = Duration::from_millis(300);
    let began = Instant::now();
    let error = HvStream::options()
        .endpoint(host.endpoint())
        .timeout(bound)
        .connect(address(VmId::LOOPBACK, PORT))
        .unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error}");
    one.set_read_timeout(Some(bound)).unwrap();
    let error = one.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error}");
    let error = listener.accept_timeout(bound).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error}");
    assert!(began.elapsed() < TIMEOUT);
    // Bytes and connects sent meanwhile arrive after the broker has resumed.
    other.write_all(b"late").unwrap();
    broker.child.resume();
    one.set_read_timeout(Some(TIMEOUT)).unwrap();
    let mut bytes = [0; 4];
    one.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"late");
    // The connect that timed out is accepted, and already reset.
    let mut timed_out = accept(&listener);
    let error = timed_out.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}");
    host.pair(VmId::LOOPBACK, PORT, &listener);
}

#[test]
fn a_killed_writers_peer_sees_a_reset_and_no_end_of_file() {
    let world = World::new();
    let host = world.host();
    let listener = host.listen(VmId::LOOPBACK, PORT).unwrap();
    let mut client = Child::start(&ChildRole::Flood {
        endpoint: host.0.clone(),
        vm: VmId::LOOPBACK,
        port: PORT,
    });
    let mut accepted = accept(&listener);
    thread::scope(|scope| {
        let end = scope.spawn(|| error_of_reading(&mut accepted));
        eventually("1 MiB has been sent", || {
            world.handle().connections().unwrap()[0].bytes_sent > Some(1 << 20)
        });
        client.kill();
        let error = end.join().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}");
    });
    world.settles_at(1, 0);
}

#[test]
fn after_a_half_close_the_writer_notices_that_its_reader_has_closed() {
    let world = World::new();
    let host = world.host();
    let listener = host.listen(VmId::LOOPBACK, PORT).unwrap();
    let (one, mut other) = host.pair(VmId::LOOPBACK, PORT, &listener);
    one.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(other.read(&mut [0]).unwrap(), 0);
    // It closes with nothing unread. The other end sees a reader that has shut down receiving.
    drop(one);
    let ready = other.poll(Interest::WRITABLE, Some(TIMEOUT)).unwrap();
    assert!(ready.is_writable());
    eventually("writing fails", || other.write(&[7; 4096]).is_err());
    drop(other);
    world.settles_at(1, 0);
}

#[test]
fn a_lease_ends_with_its_process_and_closes_what_used_it() {
    let world = World::new();
    let (host, web) = (world.host(), world.container("web", None));
    let mut process = Child::start(&ChildRole::Lease {
        endpoint: host.0.clone(),
        port: PORT,
    });
    let service = world.handle().service(&service_ref(PORT)).unwrap();
    let pid = process.process.id();
    assert!(service.lease);
    assert_eq!(service.creator, Some(format!("process {pid}")));
    let listener = host.listen(VmId::CHILDREN, PORT).unwrap();
    let (mut one, mut other) = web.pair(VmId::PARENT, PORT, &listener);
    process.kill();
    for stream in [&mut one, &mut other] {
        let error = stream.read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        let refusal = hvsock_testkit::world::refusal(&error);
        assert_eq!(refusal, hvsock::Refusal::Unregistered);
    }
    let error = listener.accept_timeout(TIMEOUT).unwrap_err();
    assert_eq!(
        hvsock_testkit::world::refusal(&error),
        hvsock::Refusal::Unregistered
    );
    assert!(world.handle().services(false).unwrap().is_empty());
    world.settles_at(0, 0);
    let lost = world.handle().service(&ServiceRef::Id(service.id));
    assert!(lost.is_err());
}

#[test]
fn a_second_broker_on_a_folder_fails_and_names_the_first() {
    let folder = TempFolder::new();
    let mut first = BrokerProcess::start(folder.path(), None);
    let host = first.host();
    let listener = host.listen(VmId::LOOPBACK, PORT).unwrap();
    let pid = first.child.process.id();
    for _ in 0..3 {
        let error = hvsock_broker::Broker::start(config(folder.path()))
            .err()
            .expect("the folder is taken");
        assert!(
            matches!(&error, StartError::Held { holder: Some(holder), .. } if holder.pid == pid),
            "{error}"
        );
        let text = error.to_string();
        assert!(text.contains(&format!("process {pid}")), "{text}");
        assert!(text.contains(folder.path().to_str().unwrap()), "{text}");
    }
    host.pair(VmId::LOOPBACK, PORT, &listener);
    // A killed broker holds no lock.
    first.child.kill();
    let second = hvsock_broker::Broker::start(config(folder.path())).unwrap();
    let unknown = second.handle().partition(&partition_ref("web"));
    assert!(unknown.is_err());
}
