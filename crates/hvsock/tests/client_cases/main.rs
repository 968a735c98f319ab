//! Runs the conformance cases of `docs/vectors/conformance.json` with this library, over each transport.

#![cfg(target_os = "linux")]

mod client;

use hvsock_testkit::peer::ConformancePeer;
use hvsock_testkit::world::World;
use serde_json::Value;

use crate::client::Client;

const FILE: &str = include_str!("../../../../docs/vectors/conformance.json");

fn run_all(shared_memory: bool) {
    let world = World::new();
    let endpoint = world.host().endpoint();
    let peer = ConformancePeer::start(&endpoint).expect("a peer");
    let client = Client {
        endpoint,
        shared_memory,
    };
    let file: Value = serde_json::from_str(FILE).expect("JSON");
    let cases = file["cases"].as_array().expect("cases");
    assert!(cases.len() >= 20);
    for (index, case) in cases.iter().enumerate() {
        let result = client.run(case, &format!("case-{index}"));
        result.unwrap_or_else(|error| panic!("{}: {error}", case["name"]));
    }
    drop(peer);
}

#[test]
fn every_conformance_case_passes_with_shared_memory() {
    run_all(true);
}

#[test]
fn every_conformance_case_passes_with_descriptors() {
    run_all(false);
}

#[test]
fn the_file_names_the_services_of_the_peer() {
    use hvsock_testkit::peer::{CLIENT_SERVICE, CLIENT_SERVICE_ID, SERVICE, SERVICE_ID};
    let file: Value = serde_json::from_str(FILE).expect("JSON");
    assert_eq!(file["service"], SERVICE);
    assert_eq!(file["service_id"], SERVICE_ID);
    assert_eq!(file["client_service"], CLIENT_SERVICE);
    assert_eq!(file["client_service_id"], CLIENT_SERVICE_ID);
}
