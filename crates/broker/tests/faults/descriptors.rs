//! A broker that runs out of descriptors.

use std::io::{Read, Write};
use std::thread;
use std::time::{Duration, Instant};

use hvsock::{Refusal, VmId};
use hvsock_endpoint::BrokerMessage;
use hvsock_testkit::TempFolder;

use crate::part::BrokerProcess;
use crate::raw::{self, Raw};
use crate::world::{PATIENCE, eventually, limit};

const PORT: u32 = 500;
const MOST: u64 = 96;

fn is_shortage(refusal: &Refusal) -> bool {
    matches!(refusal, Refusal::LimitReached { which } if which.contains("descriptors"))
}

/// Takes up descriptors until there are none, and returns those who have them.
fn exhaust(broker: &BrokerProcess) -> Vec<Raw> {
    let mut crowd = Vec::new();
    loop {
        let raw = Raw::new(&broker.host());
        // What it asks for is answered when it has been taken in.
        raw.say(&raw::listen(VmId::LOOPBACK, 10_000 + crowd.len() as u32, 1));
        match raw.hear() {
            BrokerMessage::Listening(_) => crowd.push(raw),
            BrokerMessage::Refused(refused) => {
                let refusal = Refusal::from_wire(refused.code, &refused.detail);
                assert!(is_shortage(&refusal), "{refusal}");
                return crowd;
            }
            other => panic!("{other:?}"),
        }
        assert!(crowd.len() < MOST as usize);
    }
}

#[test]
fn without_descriptors_it_says_so_to_each_client_and_goes_on_when_there_are_some() {
    let folder = TempFolder::new();
    let broker = BrokerProcess::start(folder.path(), Some(MOST));
    let host = broker.host();
    let listener = host.listen(VmId::LOOPBACK, PORT).unwrap();
    let (mut one, mut other) = host.pair(VmId::LOOPBACK, PORT, &listener);
    for _ in 0..3 {
        let crowd = exhaust(&broker);
        assert!(crowd.len() > 10, "{}", crowd.len());
        // Each one hears it at once, though none could be let in.
        for _ in 0..50 {
            let began = Instant::now();
            let which = limit(host.connect(VmId::LOOPBACK, PORT));
            assert!(which.contains("descriptors"), "{which}");
            assert!(began.elapsed() < PATIENCE / 4);
        }
        // Those who are there notice nothing, and the broker does not run in circles.
        one.write_all(b"still").unwrap();
        let mut bytes = [0; 5];
        other.read_exact(&mut bytes).unwrap();
        let before = broker.cpu_time();
        let silent = Raw::new(&host);
        assert!(matches!(silent.hear(), BrokerMessage::Refused(_)));
        thread::sleep(Duration::from_secs(1));
        let used = broker.cpu_time() - before;
        assert!(used < Duration::from_millis(300), "{used:?}");
        drop(crowd);
        eventually("there is room again", || {
            host.connect(VmId::LOOPBACK, PORT).is_ok()
        });
        while listener.accept_timeout(Duration::from_millis(50)).is_ok() {}
    }
    let metrics = broker.client().metrics().unwrap();
    let refused = metrics
        .lines()
        .find(|line| line.contains("limit_reached"))
        .expect("it is counted");
    assert!(!refused.ends_with(" 0"), "{refused}");
}

/// For one more client there is a descriptor, and none for the connection that it asks for.
#[test]
fn a_connection_for_which_there_are_no_descriptors_is_refused_and_costs_none() {
    let folder = TempFolder::new();
    let broker = BrokerProcess::start(folder.path(), Some(MOST));
    let host = broker.host();
    let listener = host.listen_with(VmId::LOOPBACK, PORT, 1000).unwrap();
    let before = broker.descriptors();
    let mut streams = Vec::new();
    let which = loop {
        match host.connect(VmId::LOOPBACK, PORT) {
            Ok(stream) => streams.push((stream, crate::world::accept(&listener))),
            Err(error) => break limit::<()>(Err(error)),
        }
    };
    assert!(which.contains("descriptors"), "{which}");
    for _ in 0..200 {
        limit(host.connect(VmId::LOOPBACK, PORT));
    }
    // Every connection that was made is a whole one.
    for (one, other) in &mut streams {
        one.write_all(b"whole").unwrap();
        let mut bytes = [0; 5];
        other.read_exact(&mut bytes).unwrap();
    }
    drop(streams);
    eventually("none is lost", || broker.descriptors() <= before);
    host.pair(VmId::LOOPBACK, PORT, &listener);
}
