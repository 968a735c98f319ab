//! `hvsock broker`.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt as _;
use std::process::Stdio;

use rustix::process::Signal;

use crate::util::{Completed, DEMO, Running, World, folder, hvsock};

#[test]
fn sigterm_and_sigint_end_the_broker_cleanly() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut world = World::new();
        world.broker().signal(signal);
        assert!(world.broker().end().success());
        assert!(!fs::exists(world.dir().join("control")).unwrap());
    }
}

#[test]
fn a_second_broker_for_the_same_folder_is_refused_and_names_the_first() {
    let mut world = World::new();
    let first = world.broker().child.id().to_string();
    let error = world.run(["broker"]).failed();
    assert!(error.contains(&first), "{error}");
    world.ok(["status"]);
}

#[test]
fn a_folder_that_others_can_write_to_is_refused() {
    let folder = folder();
    fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o777)).unwrap();
    let mut command = hvsock();
    let error = Completed::of(command.arg("--dir").arg(folder.path()).arg("broker")).failed();
    assert!(
        error.contains(&folder.path().display().to_string()),
        "{error}"
    );
}

#[test]
fn the_broker_notifies_its_service_manager() {
    let folder = folder();
    let path = folder.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager
        .set_read_timeout(Some(crate::util::TIMEOUT))
        .unwrap();
    let mut command = hvsock();
    command
        .arg("--dir")
        .arg(folder.path())
        .arg("broker")
        .env("NOTIFY_SOCKET", &path)
        .stdout(Stdio::null());
    let mut broker = Running::start(&mut command);
    let mut message = [0; 64];
    let mut notification = || {
        let length = manager.recv(&mut message).unwrap();
        String::from_utf8_lossy(&message[..length]).into_owned()
    };
    assert_eq!(notification(), "READY=1");
    broker.signal(Signal::TERM);
    assert_eq!(notification(), "STOPPING=1");
    assert!(broker.end().success());
}

#[test]
fn hvsock_dir_selects_a_users_own_broker() {
    let folder = folder();
    let run = |arguments: &[&str]| {
        let mut command = hvsock();
        command.env("HVSOCK_DIR", folder.path()).args(arguments);
        command
    };
    let mut broker = Running::start(run(&["broker"]).stdout(Stdio::piped()));
    broker.line();
    Completed::of(&mut run(&["service", "register", DEMO])).ok();
    assert!(
        Completed::of(&mut run(&["service", "list"]))
            .ok()
            .contains(DEMO)
    );
    let why = Completed::of(&mut run(&["why", "loopback", DEMO]));
    assert_eq!(why.code, Some(1), "{why:?}");
}

#[test]
fn an_invalid_name_or_number_of_threads_is_refused() {
    let folder = folder();
    for arguments in [
        &["--name", "a/b"][..],
        &["--name", "host"],
        &["--data-threads", "0"],
        &["--data-threads", "many"],
    ] {
        let mut command = hvsock();
        command
            .arg("--dir")
            .arg(folder.path())
            .arg("broker")
            .args(arguments);
        Completed::of(&mut command).usage_error();
    }
}

#[test]
fn the_broker_of_another_user_is_not_used_for_a_leftover_variable() {
    let Some(()) = hvsock_testkit::require::root() else {
        return;
    };
    const OTHER: u32 = 65_534;
    let folder = folder();
    // The runtime folder is the other user's, or only the broker's folder in it is.
    for owned in ["", "hvsock"] {
        let runtime = folder.path().join(format!("run{owned}"));
        let home = folder.path().join(format!("home{owned}"));
        fs::create_dir_all(runtime.join(owned)).unwrap();
        fs::create_dir(&home).unwrap();
        for folder in [&runtime.join(owned), &home] {
            fs::set_permissions(folder, PermissionsExt::from_mode(0o700)).unwrap();
            chown(folder, Some(OTHER), Some(OTHER)).unwrap();
        }
        let run = |arguments: &[&str]| {
            let mut command = hvsock();
            command.env("XDG_RUNTIME_DIR", &runtime).env("HOME", &home);
            command.env_remove("XDG_CONFIG_HOME").args(arguments);
            command
        };
        let mut command = run(&["broker", "--name", "theirs"]);
        let mut broker = Running::start(command.stdout(Stdio::piped()).uid(OTHER).gid(OTHER));
        broker.line();
        let theirs = Completed::of(run(&["status"]).uid(OTHER).gid(OTHER)).ok();
        assert!(theirs.contains("theirs"), "{theirs}");
        for arguments in [
            &["status"][..],
            &["service", "register", DEMO],
            &["connect", "loopback", DEMO],
            &["listen", DEMO, "--from", "loopback", "--", "true"],
        ] {
            let done = Completed::of(&mut run(&[arguments, &["--quiet"]].concat()));
            assert!(!done.stdout.contains("theirs"), "{done:?}");
            assert!(!done.stderr.contains("theirs"), "{done:?}");
        }
        let said = Completed::of(&mut run(&["status"])).stderr;
        let why = format!(
            "note: XDG_RUNTIME_DIR ({}) belongs to another user (uid {OTHER}), so the broker there is \
             ignored; `--dir {}/hvsock` uses it\n",
            runtime.display(),
            runtime.display()
        );
        assert!(said.starts_with(&why), "{said}");
        let listed = Completed::of(run(&["service", "list"]).uid(OTHER).gid(OTHER)).ok();
        assert!(!listed.contains(DEMO), "{listed}");
    }
    // Nobody starts a broker in the folder of another user either.
    let mut command = hvsock();
    command
        .env("XDG_RUNTIME_DIR", folder.path().join("run"))
        .arg("broker");
    let error = Completed::of(command.uid(OTHER - 1).gid(OTHER - 1)).failed();
    assert!(
        error.contains("belongs to another user (uid 65534)"),
        "{error}"
    );
}
