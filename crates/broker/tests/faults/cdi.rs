//! CDI devices of containers: their files in a folder that other programs write to, too.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use hvsock_broker::model::{NewContainer, ProblemKind};
use hvsock_broker::{Broker, BrokerConfig, CdiConfig, CdiHook, ControlError};
use hvsock_testkit::TempFolder;
use hvsock_testkit::wait::eventually;
use hvsock_testkit::world::{World, config, container, partition_ref};
use serde_json::Value;

fn devices(folder: &Path) -> CdiConfig {
    CdiConfig {
        folder: folder.to_owned(),
        hooks: Vec::new(),
    }
}

/// A broker whose devices are in `folder`.
fn world(folder: &Path) -> World {
    World::with(|config| config.cdi = Some(devices(folder)))
}

fn again(world: World, folder: &Path, between: impl FnOnce(&Path)) -> World {
    let World {
        broker,
        folder: own,
    } = world;
    drop(broker);
    between(own.path());
    let mut config: BrokerConfig = config(own.path());
    config.cdi = Some(devices(folder));
    let broker = Broker::start(config).unwrap();
    World {
        broker,
        folder: own,
    }
}

fn file(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("hvsock.dev-endpoint_{name}.json"))
}

/// The files of devices and of others in the folder.
fn names(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).into_iter().flatten();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|name| !name.starts_with('.')).collect();
    names.sort();
    names
}

fn mounted(path: &Path) -> String {
    let read: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let mount = &read["devices"][0]["containerEdits"]["mounts"][0];
    mount["hostPath"].as_str().unwrap().to_owned()
}

fn device_problems(world: &World) -> Vec<String> {
    let problems = world.handle().status().unwrap().problems;
    let of_devices = problems
        .into_iter()
        .filter(|one| one.kind == ProblemKind::CdiDevice);
    of_devices.map(|one| one.text).collect()
}

#[test]
fn a_container_has_a_device_that_is_kept_and_removed_with_it() {
    let cdi = TempFolder::new();
    // The folder is created with the first container.
    let cdi = cdi.join("new/cdi");
    let first = world(&cdi);
    assert!(!cdi.exists());
    let added = first.handle().add_container(container("web", &[])).unwrap();
    let device = added.container.unwrap().cdi.unwrap();
    assert_eq!(device.device, "hvsock.dev/endpoint=web");
    assert_eq!(device.file, file(&cdi, "web"));
    let folder = added.endpoint.unwrap().parent().unwrap().to_owned();
    assert_eq!(Path::new(&mounted(&device.file)), folder);
    let mode = fs::metadata(&device.file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o644, "engines of other users read it");
    let before = fs::read(&device.file).unwrap();
    let second = again(first, &cdi, |_| {
        assert_eq!(
            names(&cdi),
            ["hvsock.dev-endpoint_web.json"],
            "no broker runs"
        );
    });
    assert_eq!(fs::read(&device.file).unwrap(), before);
    let shown = second.handle().partition(&partition_ref("web")).unwrap();
    assert_eq!(shown.container.unwrap().cdi, Some(device));
    assert_eq!(
        second
            .handle()
            .partition(&partition_ref("testhost"))
            .unwrap()
            .container,
        None
    );
    second
        .handle()
        .remove_partition(&partition_ref("web"))
        .unwrap();
    assert!(names(&cdi).is_empty());
}

#[test]
fn a_broker_repairs_its_devices_removes_orphans_and_leaves_foreign_files_alone() {
    let cdi = TempFolder::new();
    let first = world(cdi.path());
    for name in ["web", "db", "gone"] {
        first.handle().add_container(container(name, &[])).unwrap();
    }
    let foreign = [
        ("nvidia.json", "{\"kind\": \"nvidia.com/gpu\"}"),
        (
            "hvsock.dev-endpoint_mine.json",
            "{\"written\": \"by hand\"}",
        ),
        (
            "hvsock.dev-endpoint_mine.yaml",
            "kind: hvsock.dev/endpoint\n",
        ),
    ];
    for (name, text) in foreign {
        fs::write(cdi.join(name), text).unwrap();
    }
    let other = fs::read_to_string(file(cdi.path(), "gone")).unwrap();
    let other = other.replace("/containers/gone", "/other/containers/theirs");
    fs::write(file(cdi.path(), "theirs"), &other).unwrap();
    fs::write(cdi.join(".hvsock-tmp-1-1"), "half a fi").unwrap();
    let good = fs::read(file(cdi.path(), "web")).unwrap();
    let second = again(first, cdi.path(), |own| {
        fs::remove_file(own.join("partitions/gone.toml")).unwrap();
        let narrow = fs::Permissions::from_mode(0o600);
        fs::set_permissions(file(cdi.path(), "web"), narrow).unwrap();
        fs::remove_file(file(cdi.path(), "db")).unwrap();
    });
    assert!(!file(cdi.path(), "gone").exists());
    assert!(file(cdi.path(), "db").exists());
    let web = file(cdi.path(), "web");
    assert_eq!(fs::read(&web).unwrap(), good);
    assert_eq!(
        fs::metadata(&web).unwrap().permissions().mode() & 0o777,
        0o644
    );
    assert!(!cdi.join(".hvsock-tmp-1-1").exists());
    for (name, text) in foreign {
        assert_eq!(fs::read_to_string(cdi.join(name)).unwrap(), text);
    }
    assert_eq!(
        fs::read_to_string(file(cdi.path(), "theirs")).unwrap(),
        other
    );
    // With other hooks, the devices are written again.
    let third = {
        let World { broker, folder } = second;
        drop(broker);
        let mut config: BrokerConfig = config(folder.path());
        let mut devices = devices(cdi.path());
        devices.hooks.push(CdiHook {
            name: "poststop",
            path: "/bin/true".into(),
            args: vec!["true".to_owned()],
            timeout_seconds: None,
        });
        config.cdi = Some(devices);
        let broker = Broker::start(config).unwrap();
        World { broker, folder }
    };
    assert!(fs::read_to_string(&web).unwrap().contains("poststop"));
    assert!(device_problems(&third).is_empty());
}

#[test]
fn two_brokers_with_one_folder_do_not_take_each_others_devices() {
    let cdi = TempFolder::new();
    let (one, two) = (world(cdi.path()), world(cdi.path()));
    one.handle().add_container(container("web", &[])).unwrap();
    let text = fs::read(file(cdi.path(), "web")).unwrap();
    let error = two
        .handle()
        .add_container(container("web", &[]))
        .unwrap_err();
    let run = one.folder.path().display().to_string();
    assert!(matches!(error, ControlError::DeviceTaken { .. }), "{error}");
    assert!(error.to_string().contains(&run), "{error}");
    assert!(two.handle().partition(&partition_ref("web")).is_err());
    // Without a device both have it, and another name is free.
    let without = NewContainer {
        cdi: false,
        ..container("web", &[])
    };
    let added = two.handle().add_container(without).unwrap();
    assert_eq!(added.container.unwrap().cdi, None);
    two.handle().add_container(container("db", &[])).unwrap();
    two.handle()
        .remove_partition(&partition_ref("web"))
        .unwrap();
    let two = again(two, cdi.path(), |own| {
        // An operator's file that nobody could refuse.
        let entry = "kind = \"container\"\nid = \"7d2c4cb5-5f1c-4f0e-9d4e-0a8e3f0c5b11\"\n";
        fs::write(own.join("partitions/web.toml"), entry).unwrap();
    });
    assert_eq!(fs::read(file(cdi.path(), "web")).unwrap(), text);
    let problems = device_problems(&two);
    assert!(
        problems.len() == 1 && problems[0].contains(&run),
        "{problems:?}"
    );
    // The name becomes free.
    one.handle()
        .remove_partition(&partition_ref("web"))
        .unwrap();
    eventually("the device of the other broker", || {
        device_problems(&two).is_empty()
    });
    let own = two.folder.path().display().to_string();
    assert!(mounted(&file(cdi.path(), "web")).starts_with(&own));
}

#[test]
fn a_device_that_cannot_be_written_is_a_problem_until_it_can_be() {
    let cdi = TempFolder::new();
    let folder = cdi.join("cdi");
    fs::write(&folder, "in the way").unwrap();
    let world = world(&folder);
    let added = world.handle().add_container(container("web", &[])).unwrap();
    assert_eq!(added.container.unwrap().cdi, None);
    let problems = device_problems(&world);
    let want = format!(
        "the container web has no CDI device: cannot open the folder {}",
        folder.display()
    );
    assert!(
        problems.len() == 1 && problems[0].starts_with(&want),
        "{problems:?}"
    );
    fs::remove_file(&folder).unwrap();
    eventually("the device", || device_problems(&world).is_empty());
    assert!(file(&folder, "web").exists());
}

#[test]
fn a_container_whose_file_says_so_has_no_device() {
    let cdi = TempFolder::new();
    let world = world(cdi.path());
    world.handle().add_container(container("web", &[])).unwrap();
    let path = world.folder.join("partitions/web.toml");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, format!("cdi = false\n{text}")).unwrap();
    eventually("no device", || names(cdi.path()).is_empty());
    fs::write(&path, &text).unwrap();
    eventually("the device", || file(cdi.path(), "web").exists());
    fs::remove_file(&path).unwrap();
    eventually("no container", || names(cdi.path()).is_empty());
    // No engine could name such a device, and the container works without.
    let added = world
        .handle()
        .add_container(container("web-", &[]))
        .unwrap();
    assert_eq!(added.container.unwrap().cdi, None);
    assert!(device_problems(&world).is_empty());
}

#[test]
fn an_existing_container_is_enough_if_its_settings_are_the_same() {
    let cdi = TempFolder::new();
    let world = world(cdi.path());
    let wanted = |change: fn(&mut NewContainer)| {
        let mut wanted = container("web", &["a", "b"]);
        wanted.if_absent = true;
        change(&mut wanted);
        world.handle().add_container(wanted)
    };
    let first = wanted(|_| ()).unwrap();
    fs::remove_file(file(cdi.path(), "web")).unwrap();
    let second = wanted(|one| one.groups.reverse()).unwrap();
    assert_eq!(first, second);
    assert!(file(cdi.path(), "web").exists(), "it is repaired");
    for (change, want) in [
        (
            (|one| one.groups.clear()) as fn(&mut NewContainer),
            "web exists in a, b, not no group",
        ),
        (
            |one| one.cdi = false,
            "web exists with a CDI device, not without one",
        ),
        (
            |one| one.id = Some("0b2f1f0e-0000-4000-8000-000000000001".parse().unwrap()),
            "web exists with the id be9804d7-7c91-5639-837f-c16d7c223c2b, not 0b2f1f0e-0000-4000-8000-000000000001",
        ),
        (
            |one| one.name = "testhost".parse().unwrap(),
            "testhost is not a container",
        ),
    ] {
        let error = wanted(change).unwrap_err();
        assert!(matches!(error, ControlError::Differs(_)), "{error}");
        assert_eq!(error.to_string(), want);
    }
    let error = wanted(|one| one.if_absent = false).unwrap_err();
    assert!(error.to_string().contains("already exists"), "{error}");
}
