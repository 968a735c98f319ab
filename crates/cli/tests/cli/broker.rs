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

/// The modes of the table in SECURITY.md: a path in the table, that of an example in a folder, the mode.
const MODES: &[(&str, &str, u32)] = &[
    ("RUN/endpoint", "endpoint", 0o666),
    ("RUN/control", "control", 0o666),
    ("RUN/lock", "lock", 0o600),
    ("RUN/handover", "handover", 0o600),
    ("RUN/containers", "containers", 0o700),
    ("RUN/containers/NAME", "containers/web", 0o755),
    (
        "RUN/containers/NAME/endpoint",
        "containers/web/endpoint",
        0o666,
    ),
    ("RUN/vm", "vm", 0o711),
    ("RUN/vm/NAME.sock", "vm/machine.sock", 0o600),
    ("CONFIG/services/GUID.toml", "services/GUID.toml", 0o644),
    ("CONFIG/partitions/NAME.toml", "partitions/web.toml", 0o644),
    ("CONFIG/services/.lock", "services/.lock", 0o600),
    ("CONFIG/partitions/.lock", "partitions/.lock", 0o600),
];

#[test]
fn every_mode_is_the_documented_one_whatever_the_umask_is() {
    let page = include_str!("../../../../SECURITY.md");
    for (row, _, mode) in MODES {
        let line = page.lines().find(|line| {
            let paths = line.split('|').nth(1).unwrap_or_default();
            paths.contains(&format!("`{row}`"))
        });
        let line = line.unwrap_or_else(|| panic!("SECURITY.md has no row for {row}"));
        assert!(line.contains(&format!("| {mode:04o}")), "{line}");
    }
    let is_root = rustix::process::geteuid().is_root();
    let own = if is_root { 0o755 } else { 0o700 };
    for umask in ["0", "027", "077", "0777"] {
        let above = folder();
        let dir = above.path().join("new/run");
        let on = |arguments: &[&str]| {
            let mut command = std::process::Command::new("sh");
            command
                .args(["-c", r#"umask "$1"; shift; exec "$@""#, "sh", umask])
                .arg(env!("CARGO_BIN_EXE_hvsock"))
                .arg("--dir")
                .arg(&dir)
                .args(arguments)
                .env_remove("NOTIFY_SOCKET")
                .stdin(Stdio::null());
            command
        };
        let mut broker = Running::start(on(&["broker"]).stdout(Stdio::piped()));
        broker.line();
        let id = Completed::of(&mut on(&["service", "register", DEMO])).ok();
        Completed::of(&mut on(&["container", "add", "web"])).ok();
        Completed::of(&mut on(&["vm", "add", "machine"])).ok();
        let mode = |path: &std::path::Path| {
            let meta = fs::symlink_metadata(path).unwrap_or_else(|e| panic!("{path:?}: {e}"));
            meta.permissions().mode() & 0o7777
        };
        for (_, example, wanted) in MODES {
            let path = dir.join(example.replace("GUID", id.trim()));
            assert_eq!(mode(&path), *wanted, "{example} under the umask {umask}");
        }
        for folder in [".", "..", "services", "partitions"] {
            assert_eq!(
                mode(&dir.join(folder)),
                own,
                "{folder} under the umask {umask}"
            );
        }
        broker.signal(Signal::TERM);
        assert!(broker.end().success());
        // A mode that was changed meanwhile is that of the table again.
        for changed in ["containers/web", "vm"] {
            fs::set_permissions(dir.join(changed), PermissionsExt::from_mode(0o700)).unwrap();
        }
        let mut broker = Running::start(on(&["broker"]).stdout(Stdio::piped()));
        broker.line();
        assert_eq!(mode(&dir.join("containers/web")), 0o755);
        assert_eq!(mode(&dir.join("vm")), 0o711);
        broker.signal(Signal::TERM);
        assert!(broker.end().success());
    }
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
        &["--name", "a/b/c"][..],
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
