//! Processes that are killed or stand still, the broker among them.

use std::io::{self, Read, Write};
use std::thread;
use std::time::{Duration, Instant};

use hvsock::{HvStream, Interest, ServiceRef, VmId};
use hvsock_broker::StartError;
use hvsock_testkit::TempFolder;

use crate::part::{BrokerProcess, Part, Playing};
use crate::world::{
    PATIENCE, World, accept, address, config, container, eventually, partition_ref, service_ref,
};

const PORT: u32 = 400;
/// How soon everybody must know that the broker is dead.
const SOON: Duration = Duration::from_secs(1);

/// Reads until there is an error, which it returns with when it came.
fn error_of_reading(stream: &mut HvStream) -> (io::Error, Instant) {
    let mut buffer = [0; 65_536];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => panic!("a clean end"),
            Ok(_) => {}
            Err(error) => return (error, Instant::now()),
        }
    }
}

fn error_of_writing(stream: &mut HvStream) -> (io::Error, Instant) {
    loop {
        if let Err(error) = stream.write(&[7; 65_536]) {
            return (error, Instant::now());
        }
    }
}

#[test]
fn everybody_knows_within_a_second_that_the_broker_was_killed_and_all_is_there_again() {
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
    // One that waits, one at work, one with nothing to say, and one not taken.
    let (mut writing, mut reading) = web.pair(VmId::PARENT, PORT, &listener);
    let (mut quiet, mut other) = web.pair(VmId::PARENT, PORT, &listener);
    let mut waiting = web.connect(VmId::PARENT, PORT).unwrap();
    let killed = thread::scope(|scope| {
        let ends = [
            scope.spawn(|| error_of_writing(&mut writing)),
            scope.spawn(|| error_of_reading(&mut reading)),
            scope.spawn(|| error_of_reading(&mut quiet)),
            scope.spawn(|| error_of_reading(&mut other)),
            scope.spawn(|| error_of_reading(&mut waiting)),
        ];
        eventually("much has passed", || {
            let connections = broker.client().connections().unwrap();
            connections.iter().any(|c| c.bytes_sent > 10 << 20)
        });
        broker.playing.kill();
        let killed = Instant::now();
        for end in ends {
            let (error, when) = end.join().unwrap();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}");
            assert!(when.duration_since(killed) < SOON);
        }
        killed
    });
    // Two connections were to be taken, and one was; then nobody sends more.
    let error = loop {
        if let Err(error) = listener.accept_timeout(PATIENCE) {
            break error;
        }
    };
    assert_ne!(error.kind(), io::ErrorKind::TimedOut, "{error}");
    assert!(killed.elapsed() < 2 * SOON);
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
fn a_broker_that_stands_still_is_waited_for_no_longer_than_allowed() {
    let folder = TempFolder::new();
    let broker = BrokerProcess::start(folder.path(), None);
    let host = broker.host();
    let listener = host.listen(VmId::LOOPBACK, PORT).unwrap();
    let (mut one, mut other) = host.pair(VmId::LOOPBACK, PORT, &listener);
    broker.playing.stop();
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
    assert!(began.elapsed() < PATIENCE / 2);
    // What was written meanwhile arrives when it goes on, and so do those who connect.
    other.write_all(b"late").unwrap();
    broker.playing.go_on();
    one.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut bytes = [0; 4];
    one.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"late");
    // The one that lost patience is there, and gone.
    let mut impatient = accept(&listener);
    let error = impatient.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}");
    host.pair(VmId::LOOPBACK, PORT, &listener);
}

#[test]
fn a_client_killed_at_work_leaves_all_its_bytes_or_an_error_and_no_end() {
    let world = World::new();
    let host = world.host();
    let listener = host.listen(VmId::LOOPBACK, PORT).unwrap();
    let mut client = Playing::start(&Part::Flood {
        endpoint: host.0.clone(),
        vm: VmId::LOOPBACK,
        port: PORT,
    });
    let mut accepted = accept(&listener);
    let killed = thread::scope(|scope| {
        let end = scope.spawn(|| error_of_reading(&mut accepted));
        eventually("much has passed", || {
            world.handle().connections().unwrap()[0].bytes_sent > 1 << 20
        });
        client.kill();
        let killed = Instant::now();
        let (error, when) = end.join().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}");
        assert!(when.duration_since(killed) < PATIENCE / 4);
        killed
    });
    world.settles_at(1, 0);
    assert!(killed.elapsed() < PATIENCE / 2);
}

/// One way has ended well; then the process that is still to read is killed.
#[test]
fn a_client_killed_after_its_own_end_is_seen_by_who_still_writes_and_by_who_waits() {
    let world = World::new();
    let host = world.host();
    let listener = host.listen(VmId::LOOPBACK, PORT).unwrap();
    let (one, mut other) = host.pair(VmId::LOOPBACK, PORT, &listener);
    one.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(other.read(&mut [0]).unwrap(), 0);
    // It had nothing unread, and ended: for the other end this is a reader that reads no more.
    drop(one);
    let ready = other.poll(Interest::WRITABLE, Some(PATIENCE)).unwrap();
    assert!(ready.is_writable());
    eventually("writing fails", || other.write(&[7; 4096]).is_err());
    drop(other);
    world.settles_at(1, 0);
}

#[test]
fn a_lease_ends_with_its_process_and_cuts_what_used_it() {
    let world = World::new();
    let (host, web) = (world.host(), world.container("web", None));
    let mut process = Playing::start(&Part::Lease {
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
        let refusal = crate::world::refusal(&error);
        assert_eq!(refusal, hvsock::Refusal::Unregistered);
    }
    let error = listener.accept_timeout(PATIENCE).unwrap_err();
    assert_eq!(crate::world::refusal(&error), hvsock::Refusal::Unregistered);
    assert!(world.handle().services(false).unwrap().is_empty());
    world.settles_at(0, 0);
    let lost = world.handle().service(&ServiceRef::Id(service.id));
    assert!(lost.is_err());
}

#[test]
fn a_second_broker_on_a_folder_says_who_has_it_and_harms_nothing() {
    let folder = TempFolder::new();
    let mut first = BrokerProcess::start(folder.path(), None);
    let host = first.host();
    let listener = host.listen(VmId::LOOPBACK, PORT).unwrap();
    let pid = first.playing.process.id();
    for _ in 0..3 {
        let error = hvsock_broker::Broker::start(config(folder.path()))
            .err()
            .expect("the folder is taken");
        assert!(
            matches!(&error, StartError::Held { pid: held, .. } if *held == Some(pid)),
            "{error}"
        );
        let text = error.to_string();
        assert!(text.contains(&format!("process {pid}")), "{text}");
        assert!(text.contains(folder.path().to_str().unwrap()), "{text}");
    }
    host.pair(VmId::LOOPBACK, PORT, &listener);
    // One that was killed holds nothing.
    first.playing.kill();
    let second = hvsock_broker::Broker::start(config(folder.path())).unwrap();
    let unknown = second.handle().partition(&partition_ref("web"));
    assert!(unknown.is_err());
}
