//! The agent as a program, whatever its services do.

use crate::scene::{self, BOX, Scene};
use crate::util::{Running, World, eventually};

#[test]
fn an_agent_offers_its_services_to_its_parent_and_outlives_the_broker() {
    let mut scene = Scene::new();
    let shown = scene.world.ok(["status"]);
    assert!(shown.contains("hvsock shutdown"), "{shown}");
    scene.world.broker().child.kill().unwrap();
    scene.world.broker().child.wait().unwrap();
    scene.world.start_broker();
    scene::offered(&scene.world, BOX);
    assert!(scene.agent.child.try_wait().unwrap().is_none());

    // And one that is killed leaves room for the next.
    scene.agent.child.kill().unwrap();
    scene.agent.child.wait().unwrap();
    scene.agent = Running::start(&mut scene::agent_at(&scene.endpoint));
    scene::offered(&scene.world, BOX);
}

#[test]
fn a_service_switched_off_is_not_offered_until_it_is_switched_on_again() {
    let scene = Scene::new();
    scene
        .world
        .ok(["service", "disable", "hvsock shutdown", "--vm", BOX]);
    let why = scene.run(["why", BOX, "hvsock shutdown"]);
    assert!(why.stdout.contains("disabled"), "{}", why.stdout);
    scene
        .world
        .ok(["service", "enable", "hvsock shutdown", "--vm", BOX]);
    scene::offered(&scene.world, BOX);
}

#[test]
fn integration_services_are_built_in_and_are_not_for_every_user_or_sibling() {
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
    // Changed once, it has a file, and is listed like any other until that file is gone.
    world.ok(["service", "disable", "hvsock session"]);
    let listed = world.json(["service", "list", "--json"]);
    assert_eq!(listed[0]["name"], "hvsock session");
    assert_eq!(listed[0]["built_in"], false);
    world.ok(["service", "unregister", "hvsock session"]);
    eventually("it is as it was built in", || {
        let shown = world.json(["service", "show", "hvsock session", "--json"]);
        shown["built_in"] == true && shown["enabled"] == true
    });
}

#[test]
fn in_a_real_guest_and_a_real_container_the_agent_is_small() {
    let world = World::new();
    let Some(_container) = scene::container(&world, "cage") else {
        return;
    };
    let Some(guest) = scene::guest(&world, "web") else {
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
    let program = std::env::var_os("HVSOCK_TEST_STATIC_AGENT").unwrap();
    let size = std::fs::metadata(program).unwrap().len();
    println!(
        "hvsock-agent: {} KiB on disk, {kib} KiB resident when idle",
        size / 1024
    );
    assert!(kib < 8 * 1024, "{kib} KiB");
}
