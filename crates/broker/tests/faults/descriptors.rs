//! A broker that runs out of descriptors. Covers refusals, existing connections, recovery, leaks
//! and busy loops.

use std::io::{Read, Write};
use std::thread;
use std::time::Duration;

use hvsock::{Refusal, VmId};
use hvsock_endpoint::BrokerMessage;
use hvsock_testkit::TempFolder;

use crate::child::BrokerProcess;
use crate::raw::{self, Raw};
use hvsock_testkit::wait::eventually;
use hvsock_testkit::world::limit;

const PORT: u32 = 500;
const MOST: u64 = 160;

fn is_shortage(refusal: &Refusal) -> bool {
    matches!(refusal, Refusal::LimitReached { which } if which.contains("descriptors"))
}

/// Opens listeners until the broker has no descriptors left. Returns the listeners.
fn exhaust(broker: &BrokerProcess) -> Vec<Raw> {
    let mut listeners = Vec::new();
    loop {
        let raw = Raw::new(&broker.host());
        // The response shows that the broker has accepted the connection.
        raw.send(&raw::listen(
            VmId::LOOPBACK,
            10_000 + listeners.len() as u32,
            1,
        ));
        match raw.recv() {
            BrokerMessage::Listening(_) => listeners.push(raw),
            BrokerMessage::Refused(refused) => {
                let refusal = Refusal::from_wire(refused.code, &refused.detail);
                assert!(is_shortage(&refusal), "{refusal}");
                return listeners;
            }
            other => panic!("{other:?}"),
        }
        assert!(listeners.len() < MOST as usize);
    }
}

#[test]
fn without_descriptors_each_client_is_refused_and_service_resumes_when_some_are_free() {
    let folder = TempFolder::new();
    let broker = BrokerProcess::start(folder.path(), Some(MOST));
    let host = broker.host();
    let listener = host
        .listen_without_arenas(VmId::LOOPBACK, PORT, 128)
        .unwrap();
    let (mut one, mut other) = host.pair(VmId::LOOPBACK, PORT, &listener);
    for _ in 0..3 {
        let listeners = exhaust(&broker);
        assert!(listeners.len() > 10, "{}", listeners.len());
        // Each connect is refused, not timed out, though the broker cannot accept it.
        for _ in 0..50 {
            let which = limit(host.connect(VmId::LOOPBACK, PORT));
            assert!(which.contains("descriptors"), "{which}");
        }
        // Existing connections are not affected, and the broker does not busy-loop: it uses less
        // than 0.3 s of CPU in one second.
        one.write_all(b"still").unwrap();
        let mut bytes = [0; 5];
        other.read_exact(&mut bytes).unwrap();
        let before = broker.cpu_time();
        let silent = Raw::new(&host);
        assert!(matches!(silent.recv(), BrokerMessage::Refused(_)));
        thread::sleep(Duration::from_secs(1));
        let used = broker.cpu_time() - before;
        assert!(used < Duration::from_millis(300), "{used:?}");
        drop(listeners);
        eventually("descriptors are free again", || {
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
    // An operator sees the shortage, and that the limit is low anyway.
    let problems = broker.client().status().unwrap().problems;
    for text in [
        "clients are refused, because no descriptor",
        "may open 160 files at most",
    ] {
        let found = problems.iter().find(|problem| problem.text.contains(text));
        let found = found.unwrap_or_else(|| panic!("{text}: {problems:#?}"));
        let fix = found.fix.as_ref().map(|fix| fix.kind.as_str());
        assert_eq!(fix, Some("raise_descriptor_limit"));
    }
}

/// A client is accepted with the last descriptor, but its connection needs more.
#[test]
fn a_connection_that_lacks_descriptors_is_refused_and_leaks_none() {
    let folder = TempFolder::new();
    let broker = BrokerProcess::start(folder.path(), Some(MOST));
    let host = broker.host();
    let listener = host
        .listen_without_arenas(VmId::LOOPBACK, PORT, 1000)
        .unwrap();
    let before = broker.descriptors();
    let mut streams = Vec::new();
    let which = loop {
        match host.connect(VmId::LOOPBACK, PORT) {
            Ok(stream) => streams.push((stream, hvsock_testkit::world::accept(&listener))),
            Err(error) => break limit::<()>(Err(error)),
        }
    };
    assert!(which.contains("descriptors"), "{which}");
    for _ in 0..200 {
        limit(host.connect(VmId::LOOPBACK, PORT));
    }
    // Every connection that was made works.
    for (one, other) in &mut streams {
        one.write_all(b"whole").unwrap();
        let mut bytes = [0; 5];
        other.read_exact(&mut bytes).unwrap();
    }
    drop(streams);
    eventually("no descriptor has leaked", || {
        broker.descriptors() <= before
    });
    host.pair(VmId::LOOPBACK, PORT, &listener);
}
