//! Full and read-only disks, and crashed writers.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use hvsock_registry::atomic_file::WriteError;
use hvsock_registry::store::StoreError;
use hvsock_testkit::require;

use super::*;

/// Runs the test `name` again in a child process with its own mount namespace. In the child, returns
/// the folder to mount on; in the parent `None`.
fn with_own_mounts(name: &str) -> Option<PathBuf> {
    const FOLDER: &str = "HVSOCK_TEST_MOUNTS";
    if let Some(folder) = std::env::var_os(FOLDER) {
        return Some(folder.into());
    }
    let dir = tempfile::tempdir().unwrap();
    // The mounts end with the process.
    let options: &[&str] = if is_root() {
        &["-m"]
    } else {
        &["-U", "-r", "-m"]
    };
    let output = Command::new(require::program("unshare", &[options, &["true"]].concat())?)
        .args(options)
        .arg(std::env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture"])
        .env(FOLDER, dir.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    None
}

fn mount(options: &str, folder: &Path) {
    let status = Command::new("mount")
        .args(["-t", "tmpfs", "-o", options, "none"])
        .arg(folder)
        .status()
        .unwrap();
    assert!(status.success());
}

#[test]
fn a_full_disk_leaves_the_old_state_intact() {
    let Some(folder) = with_own_mounts("faults::a_full_disk_leaves_the_old_state_intact") else {
        return;
    };
    mount("size=128k,mode=755", &folder);
    let (mut store, _) = FolderStore::open(&folder).unwrap();
    store.put(registration(1, "One")).unwrap();
    let file = |port| folder.join("services").join(format!("{}.toml", id(port)));
    let before = fs::read(file(1)).unwrap();
    // Fills the file system: each file needs at least one page.
    let _ = fs::write(folder.join("ballast"), vec![0; 1 << 20]);

    let full = |error: StoreError| {
        let StoreError::Failed(error) = error else {
            panic!("{error}");
        };
        let error: Box<WriteError> = error.downcast().unwrap();
        assert!(matches!(*error, WriteError::Unchanged { .. }));
        assert_eq!(error.error().kind(), std::io::ErrorKind::StorageFull);
        assert!(
            error.to_string().ends_with("; nothing was changed"),
            "{error}"
        );
    };
    full(store.put(registration(2, "Two")).unwrap_err());
    full(store.set_enabled(id(1), false, None).unwrap_err());
    assert_eq!(names(&store), ["One"]);
    assert!(store.get(id(1)).unwrap().enabled);
    assert_eq!(fs::read(file(1)).unwrap(), before);
    assert!(!file(2).exists());
    let names = |folder: &Path| {
        let entries = fs::read_dir(folder.join("services")).unwrap();
        entries.count()
    };
    assert_eq!(names(&folder), 2, "the lock and one registration");

    // Removing works on a full disk.
    store.remove(id(1)).unwrap();
    fs::remove_file(folder.join("ballast")).unwrap();
    store.put(registration(2, "Two")).unwrap();
    let (store, report) = FolderStore::open(&folder).unwrap();
    assert_eq!((super::names(&store), report.cleaned), (vec!["Two"], 0));
}

#[test]
fn a_read_only_disk_is_readable_and_writes_report_the_cause() {
    let name = "faults::a_read_only_disk_is_readable_and_writes_report_the_cause";
    let Some(folder) = with_own_mounts(name) else {
        return;
    };
    mount("size=128k,mode=755", &folder);
    let (mut store, _) = FolderStore::open(&folder).unwrap();
    store.put(registration(1, "One")).unwrap();
    // The lock file is open for writing, which prevents the remount.
    drop(store);
    mount("remount,ro", &folder);
    let (mut store, report) = FolderStore::open(&folder).unwrap();
    assert_eq!((names(&store), report.problems.len()), (vec!["One"], 0));
    let error = store.put(registration(2, "Two")).unwrap_err().to_string();
    assert!(error.contains("Read-only file system"), "{error}");
    let error = store.remove(id(1)).unwrap_err().to_string();
    assert!(error.contains("Read-only file system"), "{error}");
    assert_eq!(names(&store), ["One"]);
}

/// Not a test: the child process that the next test kills.
#[test]
fn child_process_that_writes() {
    let Some(folder) = std::env::var_os("HVSOCK_TEST_WRITER") else {
        return;
    };
    let (mut store, _) = FolderStore::open(folder).unwrap();
    for round in 0.. {
        let mut next = owned(1, "One", "alice", "writer");
        next.purpose = Some(format!("round {round} {}", "x".repeat(900)));
        let written = match store.get(id(1)) {
            None => store.put(next),
            Some(_) => store.replace(&next),
        };
        assert_eq!(written.unwrap().len(), 1);
    }
}

#[test]
fn a_killed_writer_leaves_the_old_or_the_new_file() {
    let config = Config::new();
    let mut cleaned = 0;
    for round in 0..30 {
        let mut writer = Command::new(std::env::current_exe().unwrap())
            .args(["faults::child_process_that_writes", "--exact"])
            .env("HVSOCK_TEST_WRITER", config.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while !config.file(id(1)).exists() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_micros(10_000 + round * 370));
        writer.kill().unwrap();
        assert_eq!(writer.wait().unwrap().signal(), Some(9));
        let (store, report) = config.open();
        assert_eq!(report.problems, []);
        assert_eq!(names(&store), ["One"]);
        assert_eq!(config.names().len(), 1, "{:?}", config.names());
        cleaned += report.cleaned;
    }
    eprintln!("30 kills left {cleaned} temporary files behind");
}

#[test]
fn temporary_files_of_a_crash_are_ignored_and_removed() {
    let config = Config::new();
    config.write(id(1), "name = \"One\"\n");
    fs::write(config.services().join(".hvsock-tmp-77-3"), "name = \"Ha").unwrap();
    let (store, report) = config.open();
    assert_eq!((report.cleaned, report.problems.len()), (1, 0));
    assert_eq!(names(&store), ["One"]);
    assert_eq!(config.names().len(), 1);
}
