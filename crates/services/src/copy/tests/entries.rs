//! An entry that cannot be copied fails alone, and the others are copied.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use hvsock_testkit::require;

use super::*;

/// Runs the test `name` again in a process with its own mount namespace. Returns true in that process.
fn in_own_mount_namespace(name: &str) -> bool {
    const INSIDE: &str = "HVSOCK_COPY_MOUNTS";
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let options: &[&str] = match rustix::process::geteuid().is_root() {
        true => &["-m"],
        false => &["-U", "-r", "-m"],
    };
    let Some(unshare) = require::program("unshare", &[options, &["true"]].concat()) else {
        return false;
    };
    let mut command = Command::new(unshare);
    command.args(options).arg(std::env::current_exe().unwrap());
    command.args([name, "--exact", "--nocapture"]);
    let output = command.env(INSIDE, "1").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    false
}

fn mount(options: &str, at: &Path) {
    fs::create_dir_all(at).unwrap();
    let mut command = Command::new("mount");
    command.args(["-t", "tmpfs", "-o", options, "none"]).arg(at);
    assert!(command.status().unwrap().success());
}

/// Files of this size and content.
fn tree(files: &[(&str, usize)]) -> TempDir {
    let from = folder();
    for (name, size) in files {
        let path = from.path().join("tree").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, vec![1; *size]).unwrap();
    }
    from
}

fn failed_paths(record: &Record) -> Vec<PathBuf> {
    let mut paths: Vec<_> = record.notes.iter().map(|note| note.path.clone()).collect();
    paths.sort();
    paths
}

#[test]
fn a_read_only_or_full_filesystem_below_the_destination_fails_its_own_entries_only() {
    let name = "copy::tests::entries::a_read_only_or_full_filesystem_below_the_destination_fails_its_own_entries_only";
    if !in_own_mount_namespace(name) {
        return;
    }
    let from = tree(&[
        ("a", 10),
        ("full/large", 3_000_000),
        ("full/large2", 9_000_000),
        ("read-only/new/x", 10),
        ("read-only/old", 10),
        ("read-only/large", 3_000_000),
        ("z/b", 2_000_000),
    ]);
    let to = folder();
    mount("size=64k", &to.path().join("tree/full"));
    mount("size=64k", &to.path().join("tree/read-only"));
    fs::write(to.path().join("tree/read-only/old"), "old").unwrap();
    mount("remount,ro", &to.path().join("tree/read-only"));
    let mut record = Record::default();
    let sent = send(&[&from.path().join("tree")], to.path(), &mut record, true).unwrap();
    assert_eq!(
        failed_paths(&record),
        [
            "tree/full/large",
            "tree/full/large2",
            "tree/read-only/large",
            "tree/read-only/new",
            "tree/read-only/old",
        ]
        .map(Path::new)
    );
    assert_eq!((sent.files, sent.failed), (2, 5));
    assert_eq!(fs::read(to.path().join("tree/a")).unwrap().len(), 10);
    assert_eq!(
        fs::read(to.path().join("tree/z/b")).unwrap().len(),
        2_000_000
    );
    assert_eq!(
        fs::read(to.path().join("tree/read-only/old")).unwrap(),
        b"old"
    );
}

#[test]
fn a_full_destination_ends_the_copy_with_the_reason() {
    if !in_own_mount_namespace(
        "copy::tests::entries::a_full_destination_ends_the_copy_with_the_reason",
    ) {
        return;
    }
    let from = tree(&[("a", 400_000), ("b", 400_000), ("c", 400_000)]);
    let to = folder();
    mount("size=512k", to.path());
    let source = from.path().join("tree");
    let ((sent, _), (received, _)) = copy(&[&source], to.path(), false);
    match received {
        Err(CopyError::Local { path, error }) => {
            assert!(path.starts_with("tree"), "{path:?}");
            assert!(error.to_string().contains("No space left"), "{error}");
        }
        other => panic!("{other:?}"),
    }
    match sent {
        Err(CopyError::Failed(why)) => assert!(why.contains("No space left"), "{why}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn whatever_is_in_the_way_fails_one_entry() {
    let from = tree(&[("file", 5), ("folder/x", 5), ("large", 2_000_000), ("z", 5)]);
    symlink("z", from.path().join("tree/link")).unwrap();
    let to = folder();
    for folder in ["file", "large", "link"] {
        fs::create_dir_all(to.path().join("tree").join(folder)).unwrap();
    }
    fs::write(to.path().join("tree/folder"), "a file").unwrap();
    let mut record = Record::default();
    let sent = send(&[&from.path().join("tree")], to.path(), &mut record, true).unwrap();
    assert_eq!(
        failed_paths(&record),
        ["tree/file", "tree/folder", "tree/large", "tree/link"].map(Path::new)
    );
    assert_eq!((sent.files, sent.failed), (1, 4));
    assert_eq!(fs::read(to.path().join("tree/z")).unwrap().len(), 5);
}

#[test]
fn a_bad_source_does_not_stop_the_others() {
    let (from, to) = (folder(), folder());
    let path = |name: &str| from.path().join(name);
    fs::write(path("good"), "good").unwrap();
    fs::write(path("last"), "last").unwrap();
    fs::create_dir(path("folder")).unwrap();
    symlink("loop", path("loop")).unwrap();
    symlink("nowhere", path("dangling")).unwrap();
    let bad = [
        path("missing"),
        path("good/below"),
        path("loop"),
        path("dangling"),
        path("folder"),
        path(&"x".repeat(300)).join("file"),
        PathBuf::new(),
    ];
    let mut sources = vec![path("good")];
    sources.extend(bad.iter().cloned());
    sources.push(path("last"));
    let sources: Vec<&Path> = sources.iter().map(PathBuf::as_path).collect();
    let mut record = Record::default();
    let sent = send(&sources, to.path(), &mut record, false).unwrap();
    assert_eq!((sent.files, sent.failed), (2, 7), "{:?}", record.notes);
    assert_eq!(record.notes.len(), 7);
    assert_eq!(fs::read(to.path().join("good")).unwrap(), b"good");
    assert_eq!(fs::read(to.path().join("last")).unwrap(), b"last");
    assert_eq!(fs::read_dir(to.path()).unwrap().count(), 2);
}
