//! Registration files. Covers a full disk, invalid files, reloading and 100,000 registrations.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use hvsock::{Endpoint, HvListener, Refusal, ServiceId, ServiceRef, VmId};
use hvsock_broker::model::{EventKind, ProblemKind};
use hvsock_broker::{Broker, ControlError};
use hvsock_endpoint::uplink::UPLINK_PORT;
use hvsock_testkit::process::output;
use hvsock_testkit::{TempFolder, require};

use hvsock_testkit::wait::{TIMEOUT, eventually};
use hvsock_testkit::world::{
    PartitionEndpoint, World, accept, config, container, partition_ref, refused, service,
    service_ref,
};

const PORT: u32 = 1100;

fn file_of(folder: &Path, port: u32) -> PathBuf {
    let id = ServiceId::from_port(port);
    folder.join(format!("services/{id}.toml"))
}

/// Runs the test `name` again in a child process with its own mount namespace. Returns the folder
/// to use if this is that child.
fn in_own_mount_namespace(name: &str) -> Option<PathBuf> {
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
    let output = output(&mut command, b"", TIMEOUT * 3).unwrap();
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
    assert!(output(&mut command, b"", TIMEOUT).unwrap().status.success());
}

#[test]
fn without_inotify_edits_take_effect_by_polling_and_the_status_says_so_until_it_is_back() {
    const CHILD: &str = "HVSOCK_FAULTS_INOTIFY";
    let limit = Path::new("/proc/sys/user/max_inotify_instances");
    if std::env::var_os(CHILD).is_none() {
        // A user namespace has a limit of its own.
        let options = ["-U", "-r"];
        let program = require::program("unshare", &[&options[..], &["true"]].concat());
        let Some(program) = program else { return };
        let name = "files::without_inotify_edits_take_effect_by_polling_and_the_status_says_so_until_it_is_back";
        let mut command = Command::new(program);
        command
            .args(options)
            .arg(std::env::current_exe().unwrap())
            .args([name, "--exact", "--nocapture"])
            .env(CHILD, "yes");
        let output = output(&mut command, b"", TIMEOUT * 3).unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success() && text.contains("1 passed"),
            "{text}{errors}"
        );
        return;
    }
    fs::write(limit, "0").unwrap();
    let world = World::new();
    world.register(PORT);
    let watches = || {
        let problems = world.handle().status().unwrap().problems.into_iter();
        let watches = problems.filter(|problem| problem.kind == ProblemKind::ConfigWatch);
        watches.collect::<Vec<_>>()
    };
    eventually("both folders have the problem", || watches().len() == 2);
    for problem in watches() {
        let why = "by reading it at intervals: this user has no inotify instance left";
        assert!(problem.text.ends_with(why), "{problem}");
        let fix = problem.fix.expect("a fix");
        assert_eq!(fix.kind, "raise_kernel_limit");
        assert_eq!(fix.data["name"], "fs.inotify.max_user_instances");
    }
    let metrics = world.handle().metrics().unwrap();
    assert_eq!(metrics.problems["config_watch"], 2);
    let path = file_of(world.folder.path(), PORT);
    let good = fs::read_to_string(&path).unwrap();
    let disabled = format!("enabled = false\n{good}");
    let is_enabled = || world.handle().service(&service_ref(PORT)).unwrap().enabled;
    fs::write(&path, disabled.replace("enabled = true\n", "")).unwrap();
    eventually("the edit takes effect", || !is_enabled());
    fs::write(
        world.folder.join("partitions/web.toml"),
        "kind = \"container\"\nid = \"6b1f4cbb-3a5b-4f06-9f4b-6a1bfa0a3c11\"\n",
    )
    .unwrap();
    eventually("the partition is added", || {
        world.handle().partition(&partition_ref("web")).is_ok()
    });

    fs::write(limit, "100").unwrap();
    eventually("the problem is gone", || watches().is_empty());
    fs::write(&path, good).unwrap();
    eventually("the edit takes effect", is_enabled);
}

#[test]
fn a_partition_whose_folder_is_repaired_is_added_without_an_edit() {
    let world = World::new();
    let folder = world.folder.join("containers/web");
    fs::create_dir(&folder).unwrap();
    let mode = |mode| {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
        fs::set_permissions(&folder, mode).unwrap();
    };
    mode(0o777);
    fs::write(
        world.folder.join("partitions/web.toml"),
        "kind = \"container\"\nid = \"6b1f4cbb-3a5b-4f06-9f4b-6a1bfa0a3c11\"\n",
    )
    .unwrap();
    let problems = || world.handle().status().unwrap().problems;
    eventually("it is refused", || {
        problems()
            .iter()
            .any(|problem| problem.kind == ProblemKind::ConfigRefused)
    });
    mode(0o755);
    eventually("it is added", || {
        world.handle().partition(&partition_ref("web")).is_ok()
    });
    assert_eq!(problems(), []);
}

#[test]
fn on_a_full_disk_changes_fail_as_a_whole() {
    let name = "files::on_a_full_disk_changes_fail_as_a_whole";
    let Some(folder) = in_own_mount_namespace(name) else {
        return;
    };
    let mut config = config(&folder);
    config.dirs.run = folder.join("run");
    config.dirs.config = folder.join("etc");
    fs::create_dir(&config.dirs.config).unwrap();
    mount("size=256k,mode=755", &config.dirs.config);
    let broker = Broker::start(config.clone()).unwrap();
    let handle = broker.handle();
    let endpoint_at = |name: &str| PartitionEndpoint(config.dirs.run.join(name));
    handle.register(service(PORT), "tester".into()).unwrap();
    handle.add_container(container("web", &[])).unwrap();
    let (host, web) = (
        endpoint_at("endpoint"),
        endpoint_at("containers/web/endpoint"),
    );
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

    // Fill the disk: no page is free, and each file needs at least one.
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
    assert!(!endpoint_at("containers/db/endpoint").0.exists());
    // Nothing of it has taken effect: the connection is open, the new service unregistered.
    assert_eq!(handle.connections().unwrap()[0].id, one.connection_id());
    let unregistered = refused(host.listen(VmId::CHILDREN, PORT + 1));
    assert_eq!(unregistered, Refusal::Unregistered);
    web.pair(VmId::PARENT, PORT, &listener);
    // A broker that starts now finds the unchanged files.
    drop(broker);
    let broker = Broker::start(config.clone()).unwrap();
    let handle = broker.handle();
    assert_eq!(handle.services(false).unwrap().len(), 1);
    assert_eq!(handle.status().unwrap().problems, []);
    fs::remove_file(ballast).unwrap();
    handle.register(service(PORT + 1), "tester".into()).unwrap();
    handle.add_container(container("db", &[])).unwrap();
}

#[test]
fn an_invalid_file_is_reported_by_line_and_changes_nothing_until_it_is_corrected() {
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
    let location = format!("{}:{line}", path.display());
    eventually("the problem is in the status", || {
        let problems = world.handle().status().unwrap().problems;
        problems
            .iter()
            .any(|p| p.text.contains(&location) && p.text.contains("enabeld"))
    });
    let reported =
        std::iter::from_fn(|| events.recv_timeout(TIMEOUT)).find_map(|event| match event.what {
            // An earlier event may be of a partly written file.
            EventKind::ProblemFound { problem, .. } => {
                problem.contains(&location).then_some(problem)
            }
            _ => None,
        });
    assert!(reported.is_some());
    // The file's previous contents are still in effect, and so are the other files.
    web.pair(VmId::PARENT, PORT, &first);
    web.pair(VmId::PARENT, PORT + 1, &second);
    assert_eq!(world.handle().services(false).unwrap().len(), 2);
    // A change through the API is refused: it would overwrite the file that is being edited.
    let changed = world.handle().set_enabled(&service_ref(PORT), false, None);
    assert!(changed.is_err());

    fs::write(&path, good.replace("enabled = true", "enabled = false")).unwrap();
    eventually("the corrected file is in effect", || {
        world.handle().connections().unwrap().is_empty()
    });
    let disabled = refused(web.connect(VmId::PARENT, PORT));
    assert!(matches!(disabled, Refusal::Disabled { .. }), "{disabled}");
    assert_eq!(world.handle().status().unwrap().problems, []);
    web.pair(VmId::PARENT, PORT + 1, &second);
}

#[test]
fn a_broker_starts_despite_invalid_files_and_reports_them() {
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
    let problems: Vec<String> = status
        .problems
        .iter()
        .map(|problem| problem.text.clone())
        .collect();
    let problems = problems.join("\n");
    assert_eq!(status.problems.len(), 5, "{problems}");
    let bad = file_of(folder.path(), PORT + 1);
    assert!(
        problems.contains(&format!("{}:1", bad.display())),
        "{problems}"
    );
    assert!(problems.contains("web.toml:1"), "{problems}");
}

#[test]
fn a_connect_takes_as_long_with_a_hundred_thousand_registrations_as_with_one() {
    const COUNT: u32 = 100_000;
    const REGISTERED: usize = COUNT as usize - 1;
    const USED: u32 = 77_777;
    let folder = TempFolder::new();
    drop(Broker::start(config(folder.path())).unwrap());
    // The broker's own port cannot be registered.
    for port in (0..COUNT).filter(|port| *port != UPLINK_PORT) {
        let text = format!("name = \"Service {port}\"\n");
        fs::write(file_of(folder.path(), port), text).unwrap();
    }
    let began = Instant::now();
    let broker = Broker::start(config(folder.path())).unwrap();
    let started = began.elapsed();
    assert!(started < Duration::from_secs(60), "{started:?}");
    let handle = broker.handle();
    assert_eq!(handle.status().unwrap().services, REGISTERED);
    handle.add_container(container("web", &[])).unwrap();
    let endpoint_at = |name: &str| PartitionEndpoint(folder.join(name));
    let (host, web) = (
        endpoint_at("endpoint"),
        endpoint_at("containers/web/endpoint"),
    );

    let name: ServiceRef = "Service 77777".parse().unwrap();
    let listener = host.listen(VmId::CHILDREN, USED).unwrap();
    let time = |web: &PartitionEndpoint, listener: &HvListener| {
        let began = Instant::now();
        let address = hvsock::HvAddr::new(hvsock::PartitionRef::Id(VmId::PARENT), name.clone());
        // Without shared memory there is no arena, so each connect is a request to the broker.
        let stream = hvsock::HvStream::options()
            .endpoint(Endpoint::at(&web.0))
            .shared_memory(false)
            .connect(address)
            .unwrap();
        accept(listener);
        drop(stream);
        began.elapsed()
    };
    // Connects to a broker with one registration, by turns, so that both see the same load.
    let small = World::new();
    small.register(USED);
    let small_web = small.container("web", None);
    let small_listener = small.host().listen(VmId::CHILDREN, USED).unwrap();
    let [mut one, mut many] = [Vec::new(), Vec::new()];
    for _ in 0..100 {
        one.push(time(&small_web, &small_listener));
        many.push(time(&web, &listener));
    }
    // The fastest of each, since other processes can only make a connect slower. A search through
    // all registrations would take more than a hundred times as long.
    let (one, many) = (one.iter().min().unwrap(), many.iter().min().unwrap());
    assert!(*many < *one * 10, "{many:?} and {one:?}");

    let began = Instant::now();
    let services = handle.services(true).unwrap();
    assert_eq!(services.len(), REGISTERED + 2);
    let one = handle.service(&name).unwrap();
    assert_eq!(one.listeners, 1);
    handle.set_enabled(&name, false, None).unwrap();
    assert!(!handle.service(&name).unwrap().enabled);
    handle.register(service(COUNT), "tester".into()).unwrap();
    handle.unregister(&service_ref(COUNT)).unwrap();
    assert!(began.elapsed() < TIMEOUT, "{:?}", began.elapsed());
    let disabled = refused(web.connect(VmId::PARENT, 77_777));
    assert!(matches!(disabled, Refusal::Disabled { .. }), "{disabled}");
}
