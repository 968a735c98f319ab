//! Partition files, edited by hand or by a configuration manager while the broker runs.

use std::fs;
use std::path::PathBuf;

use hvsock::{Refusal, VmId};
use hvsock_broker::model::{EventKind, NewVm, Partition, PartitionState};
use hvsock_broker::{Broker, EventStream};

use hvsock_testkit::wait::{TIMEOUT, eventually};
use hvsock_testkit::world::{PartitionEndpoint, World, config, container, partition_ref, refused};

const PORT: u32 = 3100;
const IDS: [&str; 3] = [
    "0b2f1f0e-0000-4000-8000-000000000001",
    "0b2f1f0e-0000-4000-8000-000000000002",
    "0b2f1f0e-0000-4000-8000-000000000003",
];

fn file(world: &World, name: &str) -> PathBuf {
    world.folder.join(format!("partitions/{name}.toml"))
}

/// Writes a file as configuration managers do: at once, under its name.
fn write(world: &World, name: &str, text: &str) {
    let part = world.folder.join(format!("partitions/.{name}.part"));
    fs::write(&part, text).unwrap();
    fs::rename(&part, file(world, name)).unwrap();
}

fn container_file(id: usize, groups: &str) -> String {
    format!(
        "kind = \"container\"\nid = \"{}\"\ngroups = [{groups}]\n",
        IDS[id]
    )
}

fn vm_file(id: usize, cid: u32) -> String {
    format!(
        "# by hand\nkind = 'vm'\nid = \"{}\" # fixed\ncid = {cid}\n",
        IDS[id]
    )
}

fn find(world: &World, name: &str) -> Option<Partition> {
    world.handle().partition(&partition_ref(name)).ok()
}

fn wait_for(world: &World, name: &str, holds: impl Fn(Option<&Partition>) -> bool) {
    eventually(name, || holds(find(world, name).as_ref()));
}

fn problems(world: &World) -> Vec<String> {
    let problems = world.handle().status().unwrap().problems;
    problems.into_iter().map(|problem| problem.text).collect()
}

fn next_problem(events: &EventStream) -> String {
    std::iter::from_fn(|| events.recv_timeout(TIMEOUT))
        .find_map(|event| match event.what {
            EventKind::ProblemFound { problem, .. } => Some(problem),
            _ => None,
        })
        .expect("a problem")
}

#[test]
fn a_new_file_adds_a_partition_and_a_removed_one_removes_it() {
    let world = World::new();
    world.register(PORT);
    let events = world.handle().events().unwrap();
    write(&world, "box", &container_file(0, ""));
    let added = events.recv_timeout(TIMEOUT).expect("an event").what;
    let partition = "box".to_owned();
    assert_eq!(added, EventKind::PartitionAdded { partition });
    let inside = PartitionEndpoint(world.folder.join("containers/box/endpoint"));
    let listener = world.host().listen(VmId::CHILDREN, PORT).unwrap();
    let (one, _other) = inside.pair(VmId::PARENT, PORT, &listener);

    write(&world, "web", &vm_file(1, 42));
    wait_for(&world, "web", |vm| vm.is_some_and(|vm| vm.cid == Some(42)));
    assert!(world.folder.join("vm/web.sock").exists());

    fs::remove_file(file(&world, "box")).unwrap();
    wait_for(&world, "box", |found| found.is_none());
    let connections = world.handle().connections().unwrap();
    assert!(
        connections
            .iter()
            .all(|left| left.id != one.connection_id())
    );
    assert!(!inside.0.exists());
    fs::remove_file(file(&world, "web")).unwrap();
    wait_for(&world, "web", |found| found.is_none());
    assert!(!world.folder.join("vm/web.sock").exists());
    assert_eq!(problems(&world), [""; 0]);
}

#[test]
fn changed_groups_keep_a_partition_and_its_connections() {
    let world = World::new();
    world.register(PORT);
    write(&world, "box", &container_file(0, ""));
    wait_for(&world, "box", |found| found.is_some());
    let inside = PartitionEndpoint(world.folder.join("containers/box/endpoint"));
    let listener = world.host().listen(VmId::CHILDREN, PORT).unwrap();
    let (one, _other) = inside.pair(VmId::PARENT, PORT, &listener);
    write(&world, "box", &container_file(0, "\"ci\""));
    wait_for(&world, "box", |found| {
        found.is_some_and(|found| found.groups == ["ci"])
    });
    let connections = world.handle().connections().unwrap();
    assert!(
        connections
            .iter()
            .any(|kept| kept.id == one.connection_id())
    );

    // Another id is another partition.
    write(&world, "box", &container_file(1, "\"ci\""));
    wait_for(&world, "box", |found| {
        found.is_some_and(|found| found.id.to_string() == IDS[1])
    });
    assert!(world.handle().connections().unwrap().is_empty());
    inside.pair(VmId::PARENT, PORT, &listener);
}

#[test]
fn a_broken_file_is_reported_by_line_and_its_partition_stays() {
    let world = World::new();
    let events = world.handle().events().unwrap();
    write(&world, "web", &vm_file(0, 42));
    wait_for(&world, "web", |found| found.is_some());
    write(&world, "web", &vm_file(0, 43).replace("cid", "cld"));
    let problem = next_problem(&events);
    let position = format!("{}:4:1: unknown key `cld`", file(&world, "web").display());
    assert!(problem.starts_with(&position), "{problem}");
    assert_eq!(problems(&world), [problem]);
    assert_eq!(find(&world, "web").unwrap().cid, Some(42));
    // A change through the API would overwrite the file that is being edited.
    let changed = world
        .handle()
        .set_groups(&partition_ref("web"), vec!["ci".into()]);
    assert!(
        changed
            .unwrap_err()
            .to_string()
            .contains("unknown key `cld`")
    );

    write(&world, "web", &vm_file(0, 43));
    wait_for(&world, "web", |found| {
        found.is_some_and(|found| found.cid == Some(43))
    });
    assert_eq!(problems(&world), [""; 0]);
    // A new broken file adds nothing.
    write(&world, "db", "kind = \"vm\"\n");
    let problem = next_problem(&events);
    assert!(
        problem.contains("db.toml: the key `id` is missing"),
        "{problem}"
    );
    assert!(find(&world, "db").is_none());
    fs::remove_file(file(&world, "db")).unwrap();
    eventually("no problem is left", || problems(&world).is_empty());
}

#[test]
fn a_file_waits_until_its_name_id_or_cid_is_free() {
    let world = World::new();
    write(&world, "a", &vm_file(0, 42));
    wait_for(&world, "a", |found| found.is_some());
    write(&world, "b", &vm_file(1, 42));
    write(&world, "c", &container_file(0, ""));
    write(&world, "A", &container_file(2, ""));
    eventually("three problems", || problems(&world).len() == 3);
    let all = problems(&world).join("\n");
    for words in [
        "b.toml: the VM a has the CID 42",
        "c.toml: the partition a already has the id",
        "A.toml: a partition named a already exists",
    ] {
        assert!(all.contains(words), "{words}: {all}");
    }
    fs::remove_file(file(&world, "a")).unwrap();
    eventually("they are added", || problems(&world).is_empty());
    assert_eq!(find(&world, "b").unwrap().cid, Some(42));
    assert_eq!(find(&world, "c").unwrap().id.to_string(), IDS[0]);
    assert_eq!(find(&world, "a").unwrap().id.to_string(), IDS[2]);
}

#[test]
fn what_the_core_refuses_is_tried_again_when_something_changes() {
    let world = World::with(|config| config.limits.partitions = 2);
    let events = world.handle().events().unwrap();
    write(&world, "a", &container_file(0, ""));
    wait_for(&world, "a", |found| found.is_some());
    write(&world, "b", &container_file(1, ""));
    let problem = next_problem(&events);
    let words = "b.toml: the container b was not added: the limit on partitions is reached";
    assert!(problem.contains(words), "{problem}");
    assert_eq!(problems(&world), [problem]);
    world
        .handle()
        .remove_partition(&partition_ref("a"))
        .unwrap();
    wait_for(&world, "b", |found| found.is_some());
    assert_eq!(problems(&world), [""; 0]);
    assert!(!file(&world, "a").exists());
}

#[test]
fn set_groups_keeps_the_rest_of_a_handwritten_file() {
    let world = World::new();
    let text = vm_file(0, 42) + "unsealed_memory = true\n";
    write(&world, "Web", &text);
    wait_for(&world, "web", |found| found.is_some());
    let set = |groups: &[&str]| {
        let groups = groups.iter().map(|one| (*one).to_owned()).collect();
        world.handle().set_groups(&partition_ref("web"), groups)
    };
    assert_eq!(set(&["ci", "db"]).unwrap().groups, ["ci", "db"]);
    let now = fs::read_to_string(file(&world, "Web")).unwrap();
    assert_eq!(now, format!("{text}groups = [\"ci\", \"db\"]\n"));
    assert_eq!(set(&[]).unwrap().groups, [""; 0]);
    assert_eq!(fs::read_to_string(file(&world, "Web")).unwrap(), text);
    assert_eq!(problems(&world), [""; 0]);
}

#[test]
fn a_change_by_hand_and_one_by_the_api_end_as_the_file_says() {
    let world = World::new();
    for round in 0..10 {
        // The watch of the files has not seen the first change when the second one is made.
        let (name, id) = (
            format!("box{round}"),
            VmId::of_container(&format!("box{round}")),
        );
        let text = format!("kind = \"container\"\nid = \"{id}\"\n");
        write(&world, &name, &text);
        let added = world.handle().add_container(container(&name, &[]));
        let taken = added.err().map(|error| error.to_string());
        assert!(taken.is_none_or(|taken| taken.contains("already")));
        assert_eq!(find(&world, &name).map(|found| found.id), Some(id));

        write(&world, &name, &(text + "groups = [\"hand\"]\n"));
        let groups = vec!["api".to_owned()];
        let set = world.handle().set_groups(&partition_ref(&name), groups);
        assert_eq!(set.unwrap().groups, ["api"]);
        assert_eq!(find(&world, &name).unwrap().groups, ["api"]);
        let now = fs::read_to_string(file(&world, &name)).unwrap();
        assert!(now.contains("groups = [\"api\"]"), "{now}");
    }
    assert_eq!(problems(&world), [""; 0]);
}

#[test]
fn an_operators_changes_are_events_once_and_last() {
    let world = World::new();
    let events = world.handle().events().unwrap();
    let new: NewVm = serde_json::from_str(r#"{"name": "web", "groups": ["ci"]}"#).unwrap();
    let web = world.handle().add_vm(new).unwrap();
    assert_eq!(web.state, PartitionState::Defined);
    world.handle().add_container(container("box", &[])).unwrap();
    world
        .handle()
        .remove_partition(&partition_ref("box"))
        .unwrap();
    write(&world, "last", &container_file(2, ""));
    let mut seen = Vec::new();
    while seen.last().is_none_or(|last| last != "+last") {
        match events.recv_timeout(TIMEOUT).expect("an event").what {
            EventKind::PartitionAdded { partition } => seen.push(format!("+{partition}")),
            EventKind::PartitionRemoved { partition } => seen.push(format!("-{partition}")),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(seen, ["+web", "+box", "-box", "+last"]);
    let folder = world.folder.path().to_owned();
    let before = world.handle().partitions().unwrap();
    drop(world.broker);
    let broker = Broker::start(config(&folder)).unwrap();
    let after = broker.handle().partitions().unwrap();
    let names = |all: &[Partition]| -> Vec<_> {
        all.iter()
            .map(|one| (one.name.clone(), one.id, one.cid))
            .collect()
    };
    assert_eq!(names(&before), names(&after));
    assert_eq!(after.len(), 3);
}

#[test]
fn a_partition_of_a_file_is_unreachable_once_the_file_is_gone() {
    let world = World::new();
    world.register(PORT);
    write(&world, "web", &vm_file(0, 42));
    wait_for(&world, "web", |found| found.is_some());
    let id = find(&world, "web").unwrap().id;
    assert_eq!(
        refused(world.host().connect(id, PORT)),
        Refusal::PartitionOff
    );
    fs::remove_file(file(&world, "web")).unwrap();
    wait_for(&world, "web", |found| found.is_none());
    assert_ne!(
        refused(world.host().connect(id, PORT)),
        Refusal::PartitionOff
    );
}
