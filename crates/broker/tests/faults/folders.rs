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
    let problems = broker.handle().status().unwrap().problems.join("\n");
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
