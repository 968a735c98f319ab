//! Folders that others may write to, and what others may have put there.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use hvsock::VmId;
use hvsock_broker::{Broker, BrokerConfig, StartError};
use hvsock_testkit::TempFolder;

use crate::world::{Place, config, container, partition_ref};

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// A broker with a folder for each purpose.
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
fn each_that_others_may_write_to_is_refused_with_the_command_that_mends_it() {
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
            let fix = format!("run: chmod go-w {}", path.display());
            assert!(text.contains(&fix), "{text}");
        }
        set_mode(&path, before);
        drop(start(&config).unwrap());
    }
}

#[test]
fn one_that_belongs_to_somebody_else_is_refused() {
    if !rustix::process::geteuid().is_root() {
        // Only root can give a folder away.
        return;
    }
    let folder = TempFolder::new();
    let config = apart(&folder);
    drop(start(&config).unwrap());
    for name in ["etc", "run"] {
        std::os::unix::fs::chown(folder.join(name), Some(12345), None).unwrap();
        let error = start(&config).err().expect("refused");
        assert!(error.to_string().contains("chown"), "{error}");
        std::os::unix::fs::chown(folder.join(name), Some(0), None).unwrap();
    }
}

#[test]
fn what_a_container_does_to_its_own_folder_keeps_nobody_else_from_starting() {
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
    // Root in a container may be root, and its folder may have been mounted writable.
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
    // As if killed: what it would tidy up is left.
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
    // In those that are well, all is.
    let well = Place(endpoint("well"));
    let listener = well.listen(VmId::LOOPBACK, 1).unwrap();
    well.pair(VmId::LOOPBACK, 1, &listener);

    // What is mended can be added again.
    fs::remove_file(endpoint("file")).unwrap();
    let added = broker.handle().add_container(container("file", &[]));
    added.unwrap();
}

#[test]
fn a_path_too_long_for_a_socket_is_named_before_anything_is_made() {
    let folder = TempFolder::new();
    let mut config = config(folder.path());
    config.dirs.run = folder.join("x".repeat(100));
    let error = start(&config).err().expect("refused");
    assert!(matches!(error, StartError::PathTooLong(_)), "{error}");
    assert!(!config.dirs.run.exists());

    let mut config = crate::world::config(folder.path());
    config.dirs.run = folder.join("x".repeat(20));
    let broker = start(&config).unwrap();
    let name = "n".repeat(63);
    let error = broker.handle().add_container(container(&name, &[]));
    let error = error.unwrap_err().to_string();
    assert!(error.contains("107 bytes"), "{error}");
    assert!(broker.handle().partition(&partition_ref(&name)).is_err());
    assert!(!folder.join("partitions").join(name + ".toml").exists());
}
