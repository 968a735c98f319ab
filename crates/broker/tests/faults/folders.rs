//! The broker's folders. Covers permissions, owners, hostile contents of a container's folder and
//! path lengths.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use hvsock::VmId;
use hvsock_broker::{Broker, BrokerConfig, StartError};
use hvsock_fabric::Fix;
use hvsock_testkit::{TempFolder, require};

use hvsock_testkit::world::{PartitionEndpoint, config, container, partition_ref};

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// A configuration with separate run and configuration folders.
fn apart(folder: &TempFolder) -> BrokerConfig {
    let mut config = config(folder.path());
    config.dirs.run = folder.join("run");
    config.dirs.config = folder.join("etc");
    config
}

fn start(config: &BrokerConfig) -> Result<Broker, StartError> {
    Broker::start(config.clone())
}

#[test]
fn a_folder_that_others_may_write_to_is_refused_and_the_error_names_the_fix() {
    let folder = TempFolder::new();
    let config = apart(&folder);
    drop(start(&config).unwrap());
    for name in [
        "etc",
        "etc/services",
        "etc/partitions",
        "run",
        "run/containers",
    ] {
        let path = folder.join(name);
        let before = path.metadata().unwrap().permissions().mode() & 0o777;
        for bit in [0o020, 0o002] {
            set_mode(&path, before | bit);
            let error = start(&config).err().unwrap_or_else(|| panic!("{name}"));
            let text = error.to_string();
            assert!(text.contains("let only its owner write to it"), "{text}");
            let path = path.display().to_string();
            assert_eq!(error.fix(), Some(Fix::RestrictWrites { path }));
        }
        set_mode(&path, before);
        drop(start(&config).unwrap());
    }
}

#[test]
fn a_folder_of_another_user_is_refused() {
    // Only root can change a folder's owner.
    let Some(()) = require::root() else { return };
    let folder = TempFolder::new();
    let config = apart(&folder);
    drop(start(&config).unwrap());
    for name in ["etc", "run"] {
        std::os::unix::fs::chown(folder.join(name), Some(12345), None).unwrap();
        let error = start(&config).err().expect("refused");
        let path = folder.join(name).display().to_string();
        assert_eq!(error.fix(), Some(Fix::TakeOwnership { path, uid: 0 }));
        std::os::unix::fs::chown(folder.join(name), Some(0), None).unwrap();
    }
}

#[test]
fn a_folder_above_that_others_may_write_to_is_refused_and_the_error_names_the_fix() {
    let folder = TempFolder::new();
    let above = folder.join("above");
    fs::create_dir(&above).unwrap();
    let mut config = apart(&folder);
    config.dirs.run = above.join("deep/er/run");
    drop(start(&config).unwrap());
    for mode in [0o777, 0o757] {
        set_mode(&above, mode);
        let error = start(&config).err().expect("refused");
        let path = above.display().to_string();
        let text = error.to_string();
        let start = format!("{path} is writable by everyone, so other users could replace");
        assert!(text.starts_with(&start), "{text}");
        assert_eq!(error.fix(), Some(Fix::RestrictWrites { path }));
    }
    // In a sticky folder, as /tmp, nobody can replace another user's entry.
    set_mode(&above, 0o1777);
    drop(start(&config).unwrap());
}

#[test]
fn a_folder_above_of_another_user_is_refused() {
    let Some(()) = require::root() else { return };
    let folder = TempFolder::new();
    let (above, sticky) = (folder.join("above"), folder.join("sticky"));
    for path in [&above, &sticky] {
        fs::create_dir(path).unwrap();
    }
    fs::create_dir(sticky.join("of-another")).unwrap();
    set_mode(&sticky, 0o1777);
    let give = |path: &Path| std::os::unix::fs::chown(path, Some(12345), Some(12345)).unwrap();
    give(&above);
    give(&sticky.join("of-another"));
    for run in [
        above.join("run"),
        above.join("a/b/run"),
        sticky.join("of-another/run"),
    ] {
        let mut config = apart(&folder);
        config.dirs.run = run.clone();
        let error = start(&config).err().expect("refused");
        let text = error.to_string();
        assert!(text.contains("belongs to the user 12345"), "{text}");
        assert_eq!(error.fix(), Some(Fix::ChooseFolder), "{text}");
        assert!(!run.exists(), "{text}");
        // The same holds for the folder of the configuration.
        let mut config = apart(&folder);
        config.dirs.config = run;
        assert!(start(&config).is_err());
    }
    // A group may not write to it either.
    std::os::unix::fs::chown(&above, Some(0), Some(12345)).unwrap();
    set_mode(&above, 0o775);
    let mut config = apart(&folder);
    config.dirs.run = above.join("run");
    let text = start(&config).err().expect("refused").to_string();
    assert!(text.contains("is writable by its group (12345)"), "{text}");
}

#[test]
fn a_path_through_a_symbolic_link_of_another_user_is_refused() {
    let Some(()) = require::root() else { return };
    let folder = TempFolder::new();
    let (real, links) = (folder.join("real"), folder.join("links"));
    fs::create_dir(&real).unwrap();
    fs::create_dir(&links).unwrap();
    let link = links.join("link");
    std::os::unix::fs::symlink("../links/again", &link).unwrap();
    std::os::unix::fs::symlink(&real, links.join("again")).unwrap();
    let mut config = apart(&folder);
    config.dirs.run = link.join("run");
    // Links of root lead anywhere.
    drop(start(&config).unwrap());
    assert!(real.join("run/lock").exists());
    for foreign in [&link, &links.join("again")] {
        std::os::unix::fs::lchown(foreign, Some(12345), None).unwrap();
        let error = start(&config).err().expect("refused");
        let text = error.to_string();
        let start = format!("{} is a symbolic link of the user 12345", foreign.display());
        assert!(text.starts_with(&start), "{text}");
        std::os::unix::fs::lchown(foreign, Some(0), None).unwrap();
    }
    // A link that leads to itself ends.
    std::os::unix::fs::symlink("round", links.join("round")).unwrap();
    config.dirs.run = links.join("round/run");
    assert!(start(&config).is_err());
}

#[test]
fn a_lock_that_another_user_holds_does_not_keep_the_broker_from_starting() {
    let Some(()) = require::root() else { return };
    let folder = TempFolder::new();
    set_mode(folder.path(), 0o755);
    let config = config(folder.path());
    drop(start(&config).unwrap());
    let lock = folder.join("lock");
    assert_eq!(lock.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    // As an older broker created it.
    set_mode(&lock, 0o644);
    let mut other = std::process::Command::new("setpriv")
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups"])
        .args(["flock", "--shared"])
        .arg(&lock)
        .args(["sh", "-c", "echo locked; read wait"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = [0; 7];
    std::io::Read::read_exact(other.stdout.as_mut().unwrap(), &mut line).unwrap();
    let first = start(&config).unwrap();
    // It excludes a second broker, which is told of the first one.
    let text = start(&config).err().expect("held").to_string();
    let me = format!("process {} (", std::process::id());
    assert!(text.starts_with(&me), "{text}");
    assert!(text.contains(" holds the lock of "), "{text}");
    drop(first);
    // Another program of root is not called a broker.
    let own = fs::File::open(&lock).unwrap();
    own.lock().unwrap();
    let text = start(&config).err().expect("held").to_string();
    assert!(
        text.starts_with(&me) && !text.contains("another broker"),
        "{text}"
    );
    drop(own);
    drop(other.stdin.take());
    other.wait().unwrap();
}

#[test]
fn a_container_that_damages_its_folder_does_not_keep_others_from_starting() {
    let folder = TempFolder::new();
    let config = config(folder.path());
    let broker = start(&config).unwrap();
    let names = ["file", "folder", "link", "modes", "well"];
    for name in names {
        let added = broker.handle().add_container(container(name, &[]));
        added.unwrap();
    }
    let inside = |name: &str| folder.join(format!("containers/{name}"));
    let endpoint = |name: &str| inside(name).join("endpoint");
    // Root in a container may be the host's root, and its folder may be mounted writable.
    let secret = folder.join("secret");
    fs::write(&secret, "").unwrap();
    set_mode(&secret, 0o600);
    for name in ["file", "folder", "link"] {
        fs::remove_file(endpoint(name)).unwrap();
    }
    fs::write(endpoint("file"), "precious").unwrap();
    fs::create_dir(endpoint("folder")).unwrap();
    std::os::unix::fs::symlink(&secret, endpoint("link")).unwrap();
    set_mode(&inside("modes"), 0o777);
    // Put back what a broker that ends cleans up, as if it had been killed.
    drop(broker);
    fs::write(endpoint("file"), "precious").unwrap();
    if fs::symlink_metadata(endpoint("link")).is_err() {
        std::os::unix::fs::symlink(&secret, endpoint("link")).unwrap();
    }

    let broker = start(&config).unwrap();
    let problems = broker.handle().status().unwrap().problems;
    let problems: Vec<String> = problems.into_iter().map(|problem| problem.text).collect();
    let problems = problems.join("\n");
    for name in names {
        let there = broker.handle().partition(&partition_ref(name)).is_ok();
        assert_eq!(there, name == "well", "{name}: {problems}");
        let reported = problems.contains(&format!("the container {name} was not added"));
        assert_eq!(reported, name != "well", "{name}: {problems}");
    }
    assert_eq!(fs::read_to_string(endpoint("file")).unwrap(), "precious");
    let mode = secret.metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "the mode of a file of the host");
    // The undamaged container works.
    let well = PartitionEndpoint(endpoint("well"));
    let listener = well.listen(VmId::LOOPBACK, 1).unwrap();
    well.pair(VmId::LOOPBACK, 1, &listener);

    // A repaired container can be added again.
    fs::remove_file(endpoint("file")).unwrap();
    let added = broker.handle().add_container(container("file", &[]));
    added.unwrap();
}

#[test]
fn a_path_too_long_for_a_socket_is_refused_before_anything_is_created() {
    let folder = TempFolder::new();
    let mut config = config(folder.path());
    config.dirs.run = folder.join("x".repeat(100));
    let error = start(&config).err().expect("refused");
    assert!(matches!(error, StartError::PathTooLong(_)), "{error}");
    assert!(!config.dirs.run.exists());

    let mut config = hvsock_testkit::world::config(folder.path());
    config.dirs.run = folder.join("x".repeat(20));
    let broker = start(&config).unwrap();
    let name = "n".repeat(63);
    let error = broker.handle().add_container(container(&name, &[]));
    let error = error.unwrap_err().to_string();
    assert!(error.contains("107 bytes"), "{error}");
    assert!(broker.handle().partition(&partition_ref(&name)).is_err());
    assert!(!folder.join("partitions").join(name + ".toml").exists());
}
