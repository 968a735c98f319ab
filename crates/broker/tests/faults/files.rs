//! Files of registrations: on a full disk, with typos, and very many of them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use hvsock::{Refusal, ServiceId, ServiceRef, VmId};
use hvsock_broker::model::EventKind;
use hvsock_broker::{Broker, ControlError};
use hvsock_testkit::process::output;
use hvsock_testkit::{TempFolder, require};

use crate::world::{
    PATIENCE, Place, World, accept, config, container, eventually, partition_ref, refused, service,
    service_ref,
};

const PORT: u32 = 1100;

fn file_of(folder: &Path, port: u32) -> PathBuf {
    let id = ServiceId::from_port(port);
    folder.join(format!("services/{id}.toml"))
}

/// Runs the test `name` again, in this same program, with mounts of its own; says in which
/// folder if this is already that run.
fn with_own_mounts(name: &str) -> Option<PathBuf> {
    const FOLDER: &str = "HVSOCK_FAULTS_MOUNTS";
    if let Some(folder) = std::env::var_os(FOLDER) {
        return Some(folder.into());
    }
    let folder = TempFolder::new();
    let options: &[&str] = if rustix::process::geteuid().is_root() {
        &["-m"]
    } else {
        &["-U", "-r", "-m"]
    };
    let mut command = Command::new(require::program("unshare", &[options, &["true"]].concat())?);
    command
        .args(options)
        .arg(std::env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture"])
        .env(FOLDER, folder.path());
    let output = output(&mut command, b"", PATIENCE * 3).unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    None
}

fn mount(options: &str, folder: &Path) {
    let mut command = Command::new("mount");
    command
        .args(["-t", "tmpfs", "-o", options, "none"])
        .arg(folder);
    assert!(
        output(&mut command, b"", PATIENCE)
            .unwrap()
            .status
            .success()
    );
}

#[test]
fn on_a_full_disk_nothing_changes_by_halves() {
    let name = "files::on_a_full_disk_nothing_changes_by_halves";
    let Some(folder) = with_own_mounts(name) else {
        return;
    };
    let mut config = config(&folder);
    config.dirs.run = folder.join("run");
    config.dirs.config = folder.join("etc");
    fs::create_dir(&config.dirs.config).unwrap();
    mount("size=256k,mode=755", &config.dirs.config);
    let broker = Broker::start(config.clone()).unwrap();
    let handle = broker.handle();
    let place = |name: &str| Place(config.dirs.run.join(name));
    handle.register(service(PORT), "tester".into()).unwrap();
    handle.add_container(container("web", &[])).unwrap();
    let (host, web) = (place("endpoint"), place("containers/web/endpoint"));
    let listener = host.listen(VmId::CHILDREN, PORT).unwrap();
    let (one, _other) = web.pair(VmId::PARENT, PORT, &listener);
    let seen = || {
        (
            handle.services(false).unwrap(),
            handle.partitions().unwrap(),
        )
    };
    let before = (
        seen(),
        fs::read(file_of(&config.dirs.config, PORT)).unwrap(),
    );

    // Leaves no page free; each file takes at least one.
    let ballast = config.dirs.config.join("ballast");
    let _ = fs::write(&ballast, vec![0; 1 << 20]);
    let is_full = |error: ControlError| {
        let text = error.to_string();
        assert!(text.contains("No space left"), "{text}");
    };
    is_full(
        handle
            .register(service(PORT + 1), "tester".into())
            .unwrap_err(),
    );
    is_full(
        handle
            .set_enabled(&service_ref(PORT), false, None)
            .unwrap_err(),
    );
    is_full(handle.add_container(container("db", &[])).unwrap_err());
    let groups = vec!["group".to_owned()];
    is_full(
        handle
            .set_groups(&partition_ref("web"), groups)
            .unwrap_err(),
    );
    assert_eq!(
        before,
        (
            seen(),
            fs::read(file_of(&config.dirs.config, PORT)).unwrap()
        )
    );
    assert!(!place("containers/db").0.exists());
    // Neither is any of it in force: the connection stands, and the new service is none.
    assert_eq!(handle.connections().unwrap()[0].id, one.connection_id());
    let unregistered = refused(host.listen(VmId::CHILDREN, PORT + 1));
    assert_eq!(unregistered, Refusal::Unregistered);
    web.pair(VmId::PARENT, PORT, &listener);
    // What is on the disk is what a broker starts with.
    drop(broker);
    let broker = Broker::start(config.clone()).unwrap();
    let handle = broker.handle();
    assert_eq!(handle.services(false).unwrap().len(), 1);
    assert_eq!(handle.status().unwrap().problems, [""; 0]);
    fs::remove_file(ballast).unwrap();
    handle.register(service(PORT + 1), "tester".into()).unwrap();
    handle.add_container(container("db", &[])).unwrap();
}

#[test]
fn a_typo_is_reported_by_file_and_line_and_all_else_stays_in_force_until_it_is_mended() {
    let world = World::new();
    let (host, web) = (world.host(), world.container("web", None));
    world.register(PORT);
    world.register(PORT + 1);
    let events = world.handle().events().unwrap();
    let path = file_of(world.folder.path(), PORT);
    let good = fs::read_to_string(&path).unwrap();
    let first = host.listen(VmId::CHILDREN, PORT).unwrap();
    let second = host.listen(VmId::CHILDREN, PORT + 1).unwrap();
    let _pair = web.pair(VmId::PARENT, PORT, &first);

    fs::write(&path, format!("{good}\nenabeld = false\n")).unwrap();
    let line = good.lines().count() + 2;
    let place = format!("{}:{line}", path.display());
    eventually("the problem is in the status", || {
        let problems = world.handle().status().unwrap().problems;
        problems
            .iter()
            .any(|p| p.contains(&place) && p.contains("enabeld"))
    });
    let told =
        std::iter::from_fn(|| events.recv_timeout(PATIENCE)).find_map(|event| match event.what {
            // The file may have been seen before it was written to its end.
            EventKind::ConfigProblem { problem } => problem.contains(&place).then_some(problem),
            _ => None,
        });
    assert!(told.is_some());
    // What the file said before is still in force, and so are the others.
    web.pair(VmId::PARENT, PORT, &first);
    web.pair(VmId::PARENT, PORT + 1, &second);
    assert_eq!(world.handle().services(false).unwrap().len(), 2);
    // An operator's change would write over what somebody is about to mend.
    let refused_to = world.handle().set_enabled(&service_ref(PORT), false, None);
    assert!(refused_to.is_err());

    let began = Instant::now();

    fs::write(&path, good.replace("enabled = true", "enabled = false")).unwrap();
    eventually("the mended file is in force", || {
        world.handle().connections().unwrap().is_empty()
    });
    assert!(began.elapsed() < Duration::from_secs(5));
    let disabled = refused(web.connect(VmId::PARENT, PORT));
    assert!(matches!(disabled, Refusal::Disabled { .. }), "{disabled}");
    assert_eq!(world.handle().status().unwrap().problems, [""; 0]);
    web.pair(VmId::PARENT, PORT + 1, &second);
}

#[test]
fn a_broker_starts_with_files_that_it_cannot_read_and_says_which() {
    let folder = TempFolder::new();
    drop(Broker::start(config(folder.path())).unwrap());
    fs::write(file_of(folder.path(), PORT), "name = \"Good\"\n").unwrap();
    fs::write(file_of(folder.path(), PORT + 1), "name = Unquoted\n").unwrap();
    fs::write(file_of(folder.path(), PORT + 2), [0xff; 32]).unwrap();
    fs::write(file_of(folder.path(), PORT + 3), vec![b' '; 1 << 20]).unwrap();
    fs::write(folder.join("partitions/web.toml"), "kind = \"toaster\"\n").unwrap();
    fs::write(folder.join("partitions/a b.toml"), "").unwrap();
    let broker = Broker::start(config(folder.path())).unwrap();
    let status = broker.handle().status().unwrap();
    assert_eq!((status.services, status.partitions), (1, 1));
    let problems = status.problems.join("\n");
    assert_eq!(status.problems.len(), 5, "{problems}");
    let bad = file_of(folder.path(), PORT + 1);
    assert!(
        problems.contains(&format!("{}:1", bad.display())),
        "{problems}"
    );
    assert!(problems.contains("web.toml:1"), "{problems}");
}

#[test]
fn a_hundred_thousand_registrations_start_soon_and_cost_a_connect_nothing() {
    const COUNT: u32 = 100_000;
    let folder = TempFolder::new();
    drop(Broker::start(config(folder.path())).unwrap());
    for port in 0..COUNT {
        let text = format!("name = \"Service {port}\"\n");
        fs::write(file_of(folder.path(), port), text).unwrap();
    }
    let began = Instant::now();
    let broker = Broker::start(config(folder.path())).unwrap();
    let started = began.elapsed();
    assert!(started < Duration::from_secs(60), "{started:?}");
    let handle = broker.handle();
    assert_eq!(handle.status().unwrap().services, COUNT as usize);
    handle.add_container(container("web", &[])).unwrap();
    let place = |name: &str| Place(folder.join(name));
    let (host, web) = (place("endpoint"), place("containers/web/endpoint"));

    let name: ServiceRef = "Service 77777".parse().unwrap();
    let listener = host.listen(VmId::CHILDREN, 77_777).unwrap();
    let mut times: Vec<_> = (0..100)
        .map(|_| {
            let began = Instant::now();
            let address = hvsock::HvAddr::new(hvsock::PartitionRef::Id(VmId::PARENT), name.clone());
            let stream = web.connect_to(address).unwrap();
            accept(&listener);
            drop(stream);
            began.elapsed()
        })
        .collect();
    times.sort();
    assert!(times[50] < Duration::from_millis(50), "{:?}", times[50]);

    let began = Instant::now();
    let services = handle.services(true).unwrap();
    assert_eq!(services.len(), COUNT as usize + 2);
    let one = handle.service(&name).unwrap();
    assert_eq!(one.listeners, 1);
    handle.set_enabled(&name, false, None).unwrap();
    assert!(!handle.service(&name).unwrap().enabled);
    handle.register(service(COUNT), "tester".into()).unwrap();
    handle.unregister(&service_ref(COUNT)).unwrap();
    assert!(began.elapsed() < PATIENCE, "{:?}", began.elapsed());
    let disabled = refused(web.connect(VmId::PARENT, 77_777));
    assert!(matches!(disabled, Refusal::Disabled { .. }), "{disabled}");
}
