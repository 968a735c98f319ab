//! The agent as a program, apart from its services.

use hvsock_testkit::require;

use crate::fixture::{self, BOX, Fixture};
use crate::util::{World, eventually};

#[test]
fn an_agent_offers_its_services_to_its_parent_and_survives_the_broker() {
    let Some(mut fixture) = Fixture::new() else {
        return;
    };
    let shown = fixture.world.ok(["status"]);
    assert!(shown.contains("hvsock shutdown"), "{shown}");
    fixture.world.broker().kill();
    fixture.world.start_broker();
    fixture::wait_until_offered(&fixture.world, BOX);
    assert!(fixture.agent.child.try_wait().unwrap().is_none());

    // A killed agent does not block its successor.
    fixture.kill_agent();
    fixture.start_agent();
    fixture::wait_until_offered(&fixture.world, BOX);
}

#[test]
fn a_disabled_service_is_not_offered_until_it_is_enabled() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    fixture
        .world
        .ok(["service", "disable", "hvsock shutdown", "--vm", BOX]);
    let why = fixture.run(["why", BOX, "hvsock shutdown"]);
    assert!(why.stdout.contains("disabled"), "{}", why.stdout);
    fixture
        .world
        .ok(["service", "enable", "hvsock shutdown", "--vm", BOX]);
    fixture::wait_until_offered(&fixture.world, BOX);
}

#[test]
fn integration_services_are_built_in_and_closed_to_other_users_and_siblings() {
    let world = World::new();
    assert_eq!(
        world.json(["service", "list", "--json"]),
        serde_json::json!([])
    );
    let all = world.json(["service", "list", "--all", "--json"]);
    let built_in = all.as_array().unwrap().iter();
    let built_in = built_in.filter(|one| one["built_in"] == true);
    assert_eq!(built_in.count(), 9);
    let shown = world.json(["service", "show", "hvsock session", "--json"]);
    assert_eq!(shown["connect"]["users"], serde_json::json!([]));
    assert_eq!(shown["connect"]["partitions"], serde_json::json!([]));

    let refused = world.run(["service", "unregister", "hvsock session"]);
    assert!(refused.failed().contains("disable it instead"));
    // A change creates a file, and the service is listed until the file is removed.
    world.ok(["service", "disable", "hvsock session"]);
    let listed = world.json(["service", "list", "--json"]);
    assert_eq!(listed[0]["name"], "hvsock session");
    assert_eq!(listed[0]["built_in"], false);
    world.ok(["service", "unregister", "hvsock session"]);
    eventually("the built-in registration is back", || {
        let shown = world.json(["service", "show", "hvsock session", "--json"]);
        shown["built_in"] == true && shown["enabled"] == true
    });
}

#[test]
fn the_agent_in_a_real_guest_uses_little_memory() {
    let world = World::new();
    let Some(_container) = fixture::container(&world, "cage") else {
        return;
    };
    let Some(guest) = fixture::guest(&world, "web") else {
        return;
    };
    let resident = guest
        .run(
            "grep VmRSS /proc/$(pidof hvsock-agent)/status",
            std::time::Duration::from_secs(30),
        )
        .unwrap();
    let resident = resident.text();
    let kib: u64 = resident
        .split_whitespace()
        .nth(1)
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(|| panic!("{resident}"));
    let program = require::static_agent().unwrap();
    let size = std::fs::metadata(program).unwrap().len();
    println!(
        "hvsock-agent: {} KiB on disk, {kib} KiB resident when idle",
        size / 1024
    );
    assert!(kib < 8 * 1024, "{kib} KiB");
}
