//! Key-value pairs, as people and programs exchange them.

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;

use serde_json::{Value, json};

use crate::scene::{self, BOX, Scene};
use crate::util::{Done, PATIENCE, Running, World, eventually};

/// The file of a pool, with the agent that is a plain process.
fn pool(scene: &Scene, number: u32) -> PathBuf {
    scene::kvp_dir(&scene.endpoint).join(format!(".kvp_pool_{number}"))
}

/// A record as any program written for Hyper-V writes it.
fn record(key: &str, value: &str) -> Vec<u8> {
    let mut record = vec![0; 2560];
    record[..key.len()].copy_from_slice(key.as_bytes());
    record[512..512 + value.len()].copy_from_slice(value.as_bytes());
    record
}

#[test]
fn what_the_host_sets_is_in_the_file_that_programs_for_hyper_v_read() {
    let scene = Scene::new();
    scene.world.ok(["kvp", "set", BOX, "role", "frontend"]);
    scene.world.ok(["kvp", "set", BOX, "odd", "--a b\nc"]);
    let file = fs::read(pool(&scene, 0)).unwrap();
    let expected = [record("role", "frontend"), record("odd", "--a b\nc")];
    assert!(file == expected.concat());
    let got = scene.world.ok(["kvp", "get", BOX, "odd"]);
    assert_eq!(got, "--a b\nc\n");
    scene.world.ok(["kvp", "unset", BOX, "role", "nothing"]);
    assert!(fs::read(pool(&scene, 0)).unwrap() == record("odd", "--a b\nc"));

    let gone = scene.run(["kvp", "get", BOX, "role"]);
    assert!(gone.failed().contains("no key `role`"));
}

#[test]
fn what_a_program_in_the_guest_writes_is_listed_beside_the_agents_own_facts() {
    let scene = Scene::new();
    scene.world.ok(["kvp", "set", BOX, "role", "frontend"]);
    let wrote = [record("ready", "yes\x1b[2J"), record("", "no key")];
    fs::write(pool(&scene, 1), wrote.concat()).unwrap();
    let text = scene.world.ok(["kvp", "list", BOX]);
    assert!(!text.contains('\x1b'), "{text:?}");
    let listed = scene.world.json(["kvp", "list", BOX, "--json"]);
    let listed = listed.as_array().unwrap();
    let find = |key: &str| {
        let found = listed.iter().find(|pair| pair["key"] == key);
        found.unwrap_or_else(|| panic!("no {key}: {listed:?}"))
    };
    assert_eq!(find("ready")["pool"], "guest");
    assert_eq!(find("ready")["value"], "yes\x1b[2J");
    assert_eq!(find("role")["pool"], "external");
    let facts = listed.iter().filter(|pair| pair["pool"] == "auto").count();
    assert_eq!(facts, 10);
    let uname = rustix::system::uname();
    let release = uname.release().to_str().unwrap();
    assert_eq!(find("OSBuildNumber")["value"], release);
    let only = scene
        .world
        .json(["kvp", "list", BOX, "--pool", "guest", "--json"]);
    assert_eq!(only.as_array().unwrap().len(), 1);
}

#[test]
fn a_pair_beyond_the_limits_is_refused_with_the_limit_and_changes_nothing() {
    let scene = Scene::new();
    let long = "k".repeat(512);
    let refused = scene.run(["kvp", "set", BOX, &long, "v"]);
    assert!(refused.failed().contains("the limit is 511"));
    let long = "v".repeat(2048);
    let refused = scene.run(["kvp", "set", BOX, "k", &long]);
    assert!(refused.failed().contains("the limit is 2047"));
    assert!(fs::read(pool(&scene, 0)).unwrap_or_default().is_empty());

    let full: Vec<u8> = (0..1024)
        .flat_map(|key| record(&key.to_string(), ""))
        .collect();
    fs::write(pool(&scene, 0), &full).unwrap();
    let refused = scene.run(["kvp", "set", BOX, "one more", "v"]);
    assert!(refused.failed().contains("full"));
    // Every pair of a full pool of the longest ones fits into an answer.
    let (key, value) = ("k".repeat(507), "v".repeat(2047));
    let full: Vec<u8> = (0..1024)
        .flat_map(|number| record(&format!("{number:04}{key}"), &value))
        .collect();
    fs::write(pool(&scene, 0), &full).unwrap();
    let listed = scene
        .world
        .json(["kvp", "list", BOX, "--pool", "external", "--json"]);
    assert_eq!(listed.as_array().unwrap().len(), 1024);

    // Ten gigabytes are some program's mistake, of which no more is read than may be there.
    let file = fs::OpenOptions::new().write(true).open(pool(&scene, 0));
    file.unwrap().set_len(10 << 30).unwrap();
    let listed = scene
        .world
        .json(["kvp", "list", BOX, "--pool", "external", "--json"]);
    assert_eq!(listed.as_array().unwrap().len(), 1024);
    let refused = scene.run(["kvp", "unset", BOX, "0"]);
    assert!(refused.failed().contains("more than 1024 records"));
}

#[test]
fn who_watches_hears_what_is_there_and_then_of_changes_by_the_host_and_by_programs() {
    let scene = Scene::new();
    scene.world.ok(["kvp", "set", BOX, "role", "frontend"]);
    let mut command = scene.world.command(["kvp", "watch", BOX, "--json"]);
    let mut watch = Running::start(command.stdout(Stdio::piped()).stderr(Stdio::piped()));
    let next = |watch: &mut Running| -> Value {
        loop {
            let event: Value = serde_json::from_str(&watch.line()).unwrap();
            // What agent and host say of this machine is another test's business.
            if event["pool"] == "external" || event["pool"] == "guest" {
                return event;
            }
        }
    };
    let event = |pool: &str, key: &str, value: Option<&str>| json!({ "pool": pool, "key": key, "value": value });
    assert_eq!(
        next(&mut watch),
        event("external", "role", Some("frontend"))
    );
    scene.world.ok(["kvp", "set", BOX, "role", "backend"]);
    assert_eq!(next(&mut watch), event("external", "role", Some("backend")));
    fs::write(pool(&scene, 1), record("ready", "yes")).unwrap();
    assert_eq!(next(&mut watch), event("guest", "ready", Some("yes")));
    scene.world.ok(["kvp", "unset", BOX, "role"]);
    assert_eq!(next(&mut watch), event("external", "role", None));
    // Whoever switches the service off ends the watch with a reason.
    scene.world.ok(["service", "disable", "hvsock kvp"]);
    assert_eq!(watch.end().code(), Some(1));
    let reason = watch.rest_of_stderr();
    assert!(reason.contains("disabled"), "{reason}");
}

#[test]
fn a_guest_learns_who_it_is_and_where_and_its_programs_read_and_write_from_a_shell() {
    let scene = Scene::new();
    let fact = |key: &str| scene.run(["kvp", "get", BOX, key, "--pool", "auto-external"]);
    eventually("the host has told its facts", || {
        fact("VirtualMachineName").stdout.trim() == BOX
    });
    let id = scene.world.ok(["container", "id", BOX]);
    assert_eq!(fact("VirtualMachineId").stdout, id);

    let agent = |arguments: &[&str]| Done::of(scene::agent_at(&scene.endpoint).args(arguments));
    assert_eq!(
        agent(&["kvp", "get", "VirtualMachineName"]).stdout.trim(),
        BOX
    );
    assert_eq!(agent(&["kvp", "set", "ready", "yes"]).code, Some(0));
    assert_eq!(scene.world.ok(["kvp", "get", BOX, "ready"]), "yes\n");
    scene.world.ok(["kvp", "set", BOX, "a\tb", "c\x1bd"]);
    let listed = agent(&["kvp", "list"]).stdout;
    assert_eq!(listed, "a\u{fffd}b\tc\u{fffd}d\n");
    assert_eq!(agent(&["kvp", "unset", "ready"]).code, Some(0));
    let gone = agent(&["kvp", "get", "ready", "--pool", "guest"]);
    assert!(gone.failed().contains("no key `ready`"));
}

#[test]
fn in_a_real_container_and_a_real_guest_pairs_go_both_ways() {
    let world = World::new();
    let (Some(cage), Some(guest)) = (scene::bundle(&world, "cage"), scene::guest(&world, "web"))
    else {
        return;
    };
    let _container = cage.start(&[]).expect("started");
    scene::offered(&world, "cage");
    for name in ["cage", "web"] {
        world.ok(["kvp", "set", name, "role", "frontend"]);
        assert_eq!(world.ok(["kvp", "get", name, "role"]), "frontend\n");
        let machine = world.ok(["kvp", "get", name, "ProcessorArchitecture"]);
        assert_eq!(machine.trim(), std::env::consts::ARCH);
    }
    let file = "/var/lib/hyperv/.kvp_pool_0";
    let size = guest.run(&format!("stat -c %s {file}"), PATIENCE).unwrap();
    assert_eq!(size.text(), "2560", "{}", size.stderr_text());
    let set = guest
        .run("hvsock-agent kvp set ready yes", PATIENCE)
        .unwrap();
    assert!(set.success(), "{}", set.stderr_text());
    assert_eq!(world.ok(["kvp", "get", "web", "ready"]), "yes\n");
    assert_eq!(world.run(["kvp", "get", "cage", "ready"]).code, Some(1));
    let name = world.ok(["kvp", "get", "web", "FullyQualifiedDomainName"]);
    assert_eq!(name.trim(), "web");
}

#[test]
fn watches_have_a_limit_and_one_that_ends_makes_room() {
    let scene = Scene::new();
    scene.world.ok(["kvp", "set", BOX, "a", "b"]);
    let watch = || {
        let mut command = scene.world.command(["kvp", "watch", BOX, "a"]);
        Running::start(command.stdout(Stdio::piped()).stderr(Stdio::piped()))
    };
    let mut watches: Vec<Running> = (0..16).map(|_| watch()).collect();
    for watch in &mut watches {
        assert_eq!(watch.line(), "set external a b");
    }
    let mut one_more = watch();
    assert_eq!(one_more.end().code(), Some(1));
    assert!(one_more.rest_of_stderr().contains("16 watches"));
    drop(watches.pop());
    eventually("there is room", || watch().line() == "set external a b");
}
