//! Destinations that depend on mounts and users: these tests run themselves again, in a mount namespace
//! or as another user.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::process::Command;

use hvsock_testkit::require;

use super::destination::{PLAIN, copy_to, names, put};
use super::*;

/// The folder of a test that runs again. It is set in the second process only.
const FOLDER: &str = "HVSOCK_TEST_FOLDER";

/// The folder, in the process that runs `prepare` first and then only the test of this name, by way of
/// `run`. In the first process, `None`.
fn prepared(test: &str, own: &str, prepare: &str, run: &str) -> Option<std::path::PathBuf> {
    if let Some(folder) = std::env::var_os(FOLDER) {
        return Some(folder.into());
    }
    require::root()?;
    let to = folder();
    fs::set_permissions(to.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let test = format!("{}::{test}", module_path!().split_once("::").unwrap().1);
    let mut command = Command::new(require::program("unshare", &[own, "true"])?);
    command.args([own, "sh", "-ec"]);
    // Another user may not be able to look up the program's path.
    let start = format!("exec 9< \"$2\"; shift 2; exec {run} /proc/self/fd/9 \"$@\"");
    command.arg(format!("cd \"$1\"\n{prepare}\n{start}"));
    command.args(["sh".as_ref(), to.path().as_os_str()]);
    command.arg(std::env::current_exe().unwrap());
    command.args(["--exact", &test, "--nocapture"]);
    command.env(FOLDER, to.path()).env("TMPDIR", "/tmp");
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}{error}"
    );
    None
}

/// The options of `unshare`.
const MOUNTS: &str = "--mount";

const NOBODY: &str = "setpriv --reuid=65534 --regid=65534 --clear-groups --no-new-privs";

#[test]
fn a_mounted_file_is_written_in_place() {
    let prepare = "
        mkdir data; echo old > data/hosts; touch hosts; mount --bind data/hosts hosts
        mkdir -p files/at tree; mount -t tmpfs none files; echo old > files/other; touch other
        mount --bind files/other other";
    let Some(to) = prepared("a_mounted_file_is_written_in_place", MOUNTS, prepare, "") else {
        return;
    };
    for (name, behind) in [("hosts", "data/hosts"), ("other", "files/other")] {
        let inode = fs::metadata(to.join(behind)).unwrap().ino();
        for content in [&b"new"[..], &[7; 3 << 20], b""] {
            assert_eq!(put(content, &to.join(name)), Vec::<String>::new(), "{name}");
            assert!(fs::read(to.join(behind)).unwrap() == content);
            assert_eq!(fs::metadata(to.join(behind)).unwrap().ino(), inode);
        }
    }
    // Also as the entry of a tree.
    let from = folder();
    fs::write(from.path().join("hosts"), "from a tree").unwrap();
    let way = destination::Way {
        recursive: true,
        ..PLAIN
    };
    let destination = Destination::open(&to, true).unwrap();
    let (done, notes) = copy_to(&way, &from.path().join("."), destination);
    assert_eq!((done.unwrap().files, notes.len()), (1, 0));
    assert_eq!(fs::read(to.join("data/hosts")).unwrap(), b"from a tree");
    assert_eq!(names(&to), ["data", "files", "hosts", "other", "tree"]);
}

#[test]
fn a_writable_file_in_a_read_only_folder_is_written_in_place() {
    let prepare = "
        mkdir data folder; echo old > data/hosts; echo old > folder/fixed; touch folder/hosts
        mount --bind folder folder; mount --bind data/hosts folder/hosts
        mount -o remount,bind,ro folder";
    let test = "a_writable_file_in_a_read_only_folder_is_written_in_place";
    let Some(to) = prepared(test, MOUNTS, prepare, "") else {
        return;
    };
    for content in [&b"new"[..], &[7; 3 << 20], b""] {
        assert_eq!(put(content, &to.join("folder/hosts")), Vec::<String>::new());
        assert!(fs::read(to.join("data/hosts")).unwrap() == content);
    }
    let notes = put(b"new", &to.join("folder/fixed"));
    assert_eq!(notes, ["it is on a filesystem that is mounted read-only"]);
    assert_eq!(fs::read(to.join("folder/fixed")).unwrap(), b"old\n");
}

#[test]
fn a_file_without_space_for_a_second_one_is_written_in_place() {
    let prepare = "mount -t tmpfs -o size=8m none .";
    let test = "a_file_without_space_for_a_second_one_is_written_in_place";
    let Some(to) = prepared(test, MOUNTS, prepare, "") else {
        return;
    };
    // The shell's working folder is below the mount.
    let to = to.join(".");
    fs::write(to.join("file"), vec![1; 6 << 20]).unwrap();
    assert_eq!(put(&[7; 5 << 20], &to.join("file")), Vec::<String>::new());
    assert!(fs::read(to.join("file")).unwrap() == [7; 5 << 20]);
    // What never fits leaves the old content.
    let from = folder();
    fs::write(from.path().join("file"), vec![9; 20 << 20]).unwrap();
    let destination = Destination::open(&to, true).unwrap();
    let (done, _) = copy_to(&PLAIN, &from.path().join("file"), destination);
    assert!(done.unwrap_err().to_string().contains("No space left"));
    assert!(fs::read(to.join("file")).unwrap() == [7; 5 << 20]);
    assert_eq!(names(&to), ["file"]);
    // Of several names, too.
    fs::hard_link(to.join("file"), to.join("second")).unwrap();
    assert_eq!(put(&[8; 5 << 20], &to.join("file")), Vec::<String>::new());
    assert!(fs::read(to.join("second")).unwrap() == [8; 5 << 20]);
}

#[test]
fn an_unprivileged_receiver_writes_what_it_may_and_keeps_what_it_is() {
    let prepare = "
        mkdir closed shared sticky; chmod 1777 sticky; chmod 777 shared
        for folder in closed shared sticky; do
            echo old > $folder/open; chmod 666 $folder/open
            echo old > $folder/fixed; chmod 644 $folder/fixed
        done";
    let test = "an_unprivileged_receiver_writes_what_it_may_and_keeps_what_it_is";
    let Some(to) = prepared(test, MOUNTS, prepare, NOBODY) else {
        return;
    };
    for folder in ["closed", "shared", "sticky"] {
        let file = to.join(folder).join("open");
        for content in [&b"new"[..], &[7; 3 << 20], b""] {
            assert_eq!(put(content, &file), Vec::<String>::new(), "{folder}");
            assert!(fs::read(&file).unwrap() == content);
            let meta = fs::metadata(&file).unwrap();
            assert_eq!((meta.uid(), meta.mode() & 0o7777), (0, 0o666), "{folder}");
        }
        let notes = put(b"new", &to.join(folder).join("fixed"));
        assert!(
            notes[0].contains("Permission denied"),
            "{folder}: {notes:?}"
        );
        assert_eq!(fs::read(to.join(folder).join("fixed")).unwrap(), b"old\n");
        assert_eq!(names(&to.join(folder)), ["fixed", "open"]);
    }
    // A broken transfer into a file that was written as it arrived is told.
    let (one, other) = UnixStream::pair().unwrap();
    let pair = (
        BreakingStream::after(one, 2_500_000),
        BreakingStream::after(other, i64::MAX),
    );
    let from = folder();
    fs::write(from.path().join("file"), vec![7; 3 << 20]).unwrap();
    let file = to.join("closed/open");
    let (_, (received, record)) = copy_over(pair, &[&from.path().join("file")], &file, false);
    assert!(received.is_err());
    let last = &record.notes.last().unwrap().why;
    assert_eq!(last, "it was overwritten in place, and is incomplete now");
}

#[test]
fn content_is_not_lost_with_the_attributes_that_cannot_be_preserved() {
    let test = "content_is_not_lost_with_the_attributes_that_cannot_be_preserved";
    // May give a file to another user, and then not change it any more.
    let run = "setpriv --inh-caps=-fowner --bounding-set=-fowner";
    let Some(to) = prepared(
        test,
        MOUNTS,
        "mkdir from from/tree; echo new > from/tree/file
        echo old > file; ln -s file from/tree/link; chown -Rh 1234 from",
        run,
    ) else {
        return;
    };
    for (source, name) in [
        ("from/tree", "tree"),
        ("from/tree/file", "new"),
        ("from/tree/file", "file"),
    ] {
        let ((sent, record), _) = copy(&[&to.join(source)], &to.join(name), true);
        let failed = sent.unwrap().failed;
        assert_eq!(
            failed,
            if name == "tree" { 3 } else { 1 },
            "{name}: {:?}",
            record.notes
        );
        for note in &record.notes {
            let why = "its attributes were not preserved: Operation not permitted (os error 1)";
            assert_eq!(note.why, why, "{name}");
        }
    }
    for file in ["tree/file", "tree/link", "new", "file"] {
        assert_eq!(fs::read(to.join(file)).unwrap(), b"new\n", "{file}");
    }
}
