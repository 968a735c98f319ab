//! Loading at startup and after changes by others.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::sync::mpsc::channel;
use std::time::Duration;

use hvsock_registry::entry_folder::Changed;
use hvsock_registry::store::Options;
use hvsock_testkit::require;

use super::*;

fn broken(changes: &[Change]) -> Vec<String> {
    let text = |change: &Change| match change {
        Change::Broken(problem) => Some(problem.to_string()),
        _ => None,
    };
    changes.iter().filter_map(text).collect()
}

#[test]
fn a_missing_folder_is_created_writable_by_its_owner_only() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("a/b");
    let (store, report) = FolderStore::open(&config).unwrap();
    assert_eq!((report.registrations, report.problems.len()), (0, 0));
    assert_eq!(store.config(), config);
    for folder in [config.clone(), config.join("services")] {
        let mode = fs::metadata(folder).unwrap().permissions().mode() & 0o777;
        let want = if is_root() { 0o755 } else { 0o700 };
        assert_eq!(mode & !want, 0, "{mode:o}");
    }
}

#[test]
fn a_typo_is_reported_with_its_line_and_other_files_are_loaded() {
    let config = Config::new();
    config.write(id(1), "name = \"One\"\n");
    config.write(id(2), "name = \"Two\"\n\nenabeld = false\n");
    config.write(id(3), "name = \"Three\"\n");
    let (store, report) = config.open();
    assert_eq!(names(&store), ["One", "Three"]);
    assert_eq!(report.registrations, 2);
    let [problem] = &report.problems[..] else {
        panic!("{:?}", report.problems);
    };
    let start = format!(
        "{}:3:1: unknown key `enabeld`; did you mean `enabled`?",
        config.file(id(2)).display()
    );
    assert!(problem.to_string().starts_with(&start), "{problem}");
}

#[test]
fn a_file_that_becomes_invalid_keeps_its_last_good_content() {
    let config = Config::new();
    config.write(id(1), "name = \"One\"\n");
    let mut store = config.store();
    let changed = Changed::Files(vec![config.file(id(1))]);

    config.write(id(1), "name = \"One\n");
    let changes = store.reload(&changed);
    assert_eq!(broken(&changes).len(), 1, "{changes:?}");
    assert_eq!(changes.len(), 1);
    assert_eq!(names(&store), ["One"]);
    assert_eq!(store.reload(&changed), [], "a problem is reported once");
    assert_eq!(store.problems().count(), 1);

    config.write(id(1), "name = \"Eins\"\n");
    let changes = store.reload(&changed);
    assert_eq!(
        changes,
        [
            Change::Repaired(config.file(id(1))),
            updated(&config, registration(1, "Eins")),
        ]
    );
    assert_eq!(store.problems().count(), 0);

    fs::remove_file(config.file(id(1))).unwrap();
    assert_eq!(store.reload(&changed), [Change::Removed(id(1))]);
    assert_eq!(store.reload(&changed), []);
}

#[test]
fn a_rescan_finds_added_removed_and_changed_files() {
    let config = Config::new();
    config.write(id(1), "name = \"One\"\n");
    config.write(id(2), "name = \"Two\"\n");
    let mut store = config.store();
    fs::remove_file(config.file(id(1))).unwrap();
    config.write(id(2), "name = \"Zwei\"\n");
    config.write(id(3), "name = \"One\"\n");
    fs::write(config.path().join("defaults.toml"), "bind.users = []").unwrap();
    let changes = store.reload(&Changed::Everything);
    assert_eq!(names(&store), ["One", "Zwei"]);
    assert_eq!(changes.len(), 4, "{changes:?}");
    assert!(changes.contains(&Change::Removed(id(1))));
    assert!(changes.contains(&added(&config, registration(3, "One"))));
    let defaults = store.defaults();
    assert_eq!(defaults.bind.users, Some(vec![]));
    assert!(changes.contains(&Change::Defaults(defaults.clone())));
    assert_eq!(store.reload(&Changed::Everything), []);
}

#[test]
fn of_two_files_with_one_name_the_second_is_loaded_when_the_first_is_removed() {
    let config = Config::new();
    config.write(
        id(1),
        "name = \"Backup\"\nowner = \"alice\"\ncreator = \"a-tool\"\n",
    );
    config.write(
        id(2),
        "name = \"BACKUP\"\nowner = \"bob\"\ncreator = \"b-tool\"\n",
    );
    let (mut store, report) = config.open();
    assert_eq!(names(&store), ["Backup"]);
    let text = report.problems[0].to_string();
    for part in [
        "00000002-facb",
        "alice",
        "a-tool",
        "bob",
        "b-tool",
        "unregister 1 first",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
    fs::remove_file(config.file(id(1))).unwrap();
    let changes = store.reload(&Changed::Files(vec![config.file(id(1))]));
    assert_eq!(names(&store), ["BACKUP"]);
    assert!(
        matches!(
            &changes[..],
            [Change::Removed(_), Change::Repaired(_), Change::Added(_)]
        ),
        "{changes:?}"
    );
}

#[test]
fn of_two_files_with_one_alias_port_the_second_is_loaded_when_the_first_is_removed() {
    let config = Config::new();
    let one: ServiceId = "5ca1ab1e-0000-4000-8000-000000003367".parse().unwrap();
    let other: ServiceId = "5ca1ab1e-0000-4000-8000-00000000385b".parse().unwrap();
    config.write(one, "name = \"One\"\n");
    config.write(other, "name = \"Other\"\n");
    let (mut store, report) = config.open();
    assert_eq!(names(&store), ["One"]);
    let text = report.problems[0].to_string();
    assert!(
        text.contains("already has the port 1738251723 (the alias of 5ca1ab1e"),
        "{text}"
    );
    let changes = store.remove(one).unwrap();
    assert_eq!(names(&store), ["Other"]);
    assert!(
        matches!(
            &changes[..],
            [Change::Removed(_), Change::Repaired(_), Change::Added(_)]
        ),
        "{changes:?}"
    );
}

#[test]
fn a_later_file_does_not_take_a_name_in_use() {
    let config = Config::new();
    config.write(id(5), "name = \"Backup\"\n");
    config.write(id(7), "name = \"Other\"\n");
    let mut store = config.store();
    config.write(id(1), "name = \"Backup\"\n");
    let changes = store.reload(&Changed::Files(vec![config.file(id(1))]));
    assert_eq!(broken(&changes).len(), 1);
    assert_eq!(
        store.registrations().first(),
        Some(&&registration(5, "Backup"))
    );
    // The other file changes its name, which releases the old one.
    config.write(id(5), "name = \"Archive\"\n");
    store.reload(&Changed::Files(vec![config.file(id(5))]));
    assert_eq!(names(&store), ["Archive", "Backup", "Other"]);
    assert_eq!(store.problems().count(), 0);
}

#[test]
fn the_names_of_in_box_services_are_reserved() {
    let config = Config::new();
    config.write(id(1), "name = \"VM Session Service\"\n");
    let (store, report) = config.open();
    assert_eq!(names(&store), [""; 0]);
    let text = report.problems[0].to_string();
    assert!(text.contains("owner Microsoft"), "{text}");
}

#[test]
fn only_files_named_after_a_lower_case_guid_are_registrations() {
    let config = Config::new();
    let write = |name: &str| fs::write(config.services().join(name), "name = \"x\"").unwrap();
    write("README");
    write(".hidden.toml");
    write("00000001-facb-11e6-bd58-64006a7986d3.toml~");
    let mut store = config.store();
    write("backup.toml");
    write("0000000A-FACB-11E6-BD58-64006A7986D3.toml");
    let changes = store.reload(&Changed::Everything);
    let problems = broken(&changes);
    assert_eq!(problems.len(), 2, "{changes:?}");
    assert!(problems[0].ends_with("rename it to 0000000a-facb-11e6-bd58-64006a7986d3.toml"));
    assert!(
        problems[1].contains("backup.toml: is not named after a GUID"),
        "{}",
        problems[1]
    );
    fs::remove_file(config.services().join("backup.toml")).unwrap();
    let gone = config.services().join("backup.toml");
    let changes = store.reload(&Changed::Files(vec![gone.clone()]));
    assert_eq!(changes, [Change::Repaired(gone)]);
}

#[test]
fn special_and_oversized_files_are_reported_without_blocking() {
    let config = Config::new();
    config.write(id(1), "name = \"One\"\n");
    rustix::fs::mkfifoat(rustix::fs::CWD, config.file(id(2)), 0o600.into()).unwrap();
    fs::write(config.path().join("elsewhere"), "name = \"Link\"\n").unwrap();
    symlink("../elsewhere", config.file(id(3))).unwrap();
    symlink("/dev/zero", config.file(id(4))).unwrap();
    fs::create_dir(config.file(id(5))).unwrap();
    let _socket = UnixListener::bind(config.services().join("s")).unwrap();
    fs::rename(config.services().join("s"), config.file(id(6))).unwrap();
    config.write(
        id(7),
        &format!("name = \"Seven\"\n#{}\n", "x".repeat(64 * 1024)),
    );
    fs::write(config.file(id(8)), [b'#', 0xff, 0xfe]).unwrap();
    // A blocking read of the FIFO or an endless read of /dev/zero would never return.
    let (sender, opened) = channel();
    let path = config.path().to_owned();
    std::thread::spawn(move || drop(sender.send(FolderStore::open(path))));
    let opened = opened.recv_timeout(Duration::from_secs(60)).unwrap();
    let (store, report) = opened.unwrap();
    assert_eq!(names(&store), ["One"]);
    let problems: Vec<String> = report.problems.iter().map(|p| p.what.clone()).collect();
    assert_eq!(problems.len(), 7, "{problems:?}");
    for (problem, want) in problems.iter().zip([
        "is not a regular file",
        "is a symbolic link",
        "is a symbolic link",
        "is not a regular file",
        "is not a regular file",
        "the limit is 65536",
        "is not UTF-8",
    ]) {
        assert!(problem.contains(want), "{want}: {problem}");
    }
}

#[test]
fn a_folder_or_file_writable_by_others_is_rejected_with_what_to_do() {
    let config = Config::new();
    config.write(id(1), "name = \"One\"\n");
    let services = config.services();
    for (folder, mode) in [
        (config.path(), 0o777),
        (config.path(), 0o770),
        (&services, 0o757),
    ] {
        fs::set_permissions(folder, Permissions::from_mode(mode)).unwrap();
        let error = FolderStore::open(config.path()).unwrap_err().to_string();
        assert!(
            error.ends_with("; let only its owner write to it"),
            "{error}"
        );
        fs::set_permissions(folder, Permissions::from_mode(0o755)).unwrap();
    }
    fs::set_permissions(config.file(id(1)), Permissions::from_mode(0o666)).unwrap();
    let (mut store, report) = config.open();
    assert_eq!(names(&store), [""; 0]);
    let text = report.problems[0].to_string();
    assert!(
        text.contains("is writable by everyone; let only its owner write to it"),
        "{text}"
    );
    fs::set_permissions(config.file(id(1)), Permissions::from_mode(0o644)).unwrap();
    store.reload(&Changed::Everything);
    assert_eq!(names(&store), ["One"]);
}

#[test]
fn a_folder_of_another_user_is_rejected() {
    // Only root can change a folder's owner.
    let Some(()) = require::root() else { return };
    let config = Config::new();
    std::os::unix::fs::chown(config.services(), Some(12345), None).unwrap();
    let error = FolderStore::open(config.path()).unwrap_err().to_string();
    assert!(error.contains("belongs to the user 12345"), "{error}");
    let fix = "; give it to the current user or root";
    assert!(error.ends_with(fix), "{error}");
}

#[test]
fn invalid_defaults_deny_all_access() {
    let config = Config::new();
    let file = config.path().join("defaults.toml");
    fs::write(&file, "[conect]\npartitions = []\n").unwrap();
    let (mut store, report) = config.open();
    let text = report.problems[0].to_string();
    assert!(
        text.contains("defaults.toml:1:2: unknown key `conect`"),
        "{text}"
    );
    assert_eq!(store.defaults().connect.users, Some(vec![]));
    assert!(!store.defaults().allow_wildcard_binds);
    // After startup, an invalid file keeps its last good content, like any other file.
    let changed = Changed::Files(vec![file.clone()]);
    fs::write(&file, "connect.partitions = [\"web\"]\n").unwrap();
    store.reload(&changed);
    let good = store.defaults().clone();
    assert_eq!(good.connect.partitions, Some(vec!["web".to_owned()]));
    fs::write(&file, "connect.partitions = web\n").unwrap();
    assert_eq!(broken(&store.reload(&changed)).len(), 1);
    assert_eq!(*store.defaults(), good);
}

#[test]
fn the_limit_on_registrations_is_enforced() {
    let config = Config::new();
    for port in 1..=3 {
        config.write(id(port), &format!("name = \"s{port}\"\n"));
    }
    let options = Options {
        limit: 2,
        ..Options::default()
    };
    let (mut store, report) = FolderStore::open_with(config.path(), options).unwrap();
    assert_eq!(names(&store), ["s1", "s2"]);
    assert!(
        report.problems[0]
            .to_string()
            .ends_with("exceeds the limit of 2 registrations")
    );
    store.remove(id(3)).unwrap();
    let error = store.put(registration(4, "s4")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "there are 2 registrations, which is the limit; unregister one first"
    );
    store.remove(id(1)).unwrap();
    store.put(registration(4, "s4")).unwrap();
}

#[test]
fn a_missing_folder_keeps_the_last_good_state_until_it_is_recreated() {
    let config = Config::new();
    config.write(id(1), "name = \"One\"\n");
    let mut store = config.store();
    fs::remove_dir_all(config.services()).unwrap();
    let changes = store.reload(&Changed::Everything);
    let [Change::Broken(problem)] = &changes[..] else {
        panic!("{changes:?}");
    };
    assert!(
        problem
            .to_string()
            .contains("the last good state stays in force")
    );
    assert!(store.put(registration(2, "Two")).is_err());
    assert_eq!(names(&store), ["One"]);

    fs::create_dir(config.services()).unwrap();
    config.write(id(3), "name = \"Three\"\n");
    let changes = store.reload(&Changed::Everything);
    assert_eq!(names(&store), ["Three"]);
    assert!(matches!(&changes[0], Change::Repaired(_)), "{changes:?}");
    store.put(registration(2, "Two")).unwrap();
    assert_eq!(config.names().len(), 2);
}
