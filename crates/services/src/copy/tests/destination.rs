//! What is at the destination: it is written to as it is, and keeps what it was.

use std::fs::{self, File, Permissions};
use std::io::Read as _;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{
    FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, chown, symlink,
};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use hvsock_testkit::require;
use rustix::fs::{CWD, FlockOperation, Mode, XattrFlags, flock, getxattr, mkfifoat, setxattr};

use super::*;

/// How a file gets to a destination.
pub(super) struct Way {
    pub(super) archive: bool,
    pub(super) recursive: bool,
    pub(super) trust: Trust,
}

pub(super) const PLAIN: Way = Way {
    archive: false,
    recursive: false,
    trust: Trust::Full,
};

/// Copies `source` to an opened destination. Returns the result of the sender and the notes.
pub(super) fn copy_to(
    way: &Way,
    source: &Path,
    destination: Destination,
) -> (Result<CopyCounters, CopyError>, Vec<String>) {
    let (here, there) = BreakingStream::pair();
    let (sources, recursive) = ([Source::new(source)], way.recursive);
    thread::scope(|scope| {
        let sending = scope.spawn(move || {
            let (mut messages, mut record) = (MessageStream::new(here), Record::default());
            Sender::new(&mut messages, &mut record, recursive).run(&sources, false)
        });
        let (mut messages, mut record) = (MessageStream::new(there), Record::default());
        let receiver = Receiver::new(&mut messages, &mut record, destination);
        let received = receiver
            .trust(way.trust)
            .archive(way.archive.then_some(way.trust))
            .run();
        drop(messages);
        let sent = sending.join().unwrap();
        assert_eq!(sent.is_ok(), received.is_ok(), "{sent:?}, {received:?}");
        let notes = record.notes.iter();
        (received, notes.map(|note| note.why.clone()).collect())
    })
}

/// Copies a file of this content to `path`. Returns the notes.
pub(super) fn put(content: &[u8], path: &Path) -> Vec<String> {
    put_by(&PLAIN, content, path)
}

fn put_by(way: &Way, content: &[u8], path: &Path) -> Vec<String> {
    let from = folder();
    let source = from.path().join("file");
    fs::write(&source, content).unwrap();
    let (done, notes) = copy_to(way, &source, Destination::open(path, false).unwrap());
    assert!(done.is_ok(), "{done:?}");
    notes
}

/// The names in a folder.
pub(super) fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn fifo(path: &Path) -> PathBuf {
    mkfifoat(CWD, path, Mode::RWXU).unwrap();
    path.to_owned()
}

#[test]
fn a_device_is_written_to_and_stays_one_however_it_is_named() {
    let to = folder();
    let link = to.path().join("null");
    symlink("/dev/null", &link).unwrap();
    for content in [&b"x"[..], b"", &[7; 3 << 20]] {
        for path in ["/dev/null", "/dev/../dev/./null", local(&link)] {
            assert_eq!(
                put(content, Path::new(path)),
                Vec::<String>::new(),
                "{path}"
            );
        }
        // As the entry of a folder.
        let from = folder();
        fs::write(from.path().join("null"), content).unwrap();
        let (done, notes) = copy_to(
            &PLAIN,
            &from.path().join("null"),
            Destination::open(Path::new("/dev"), true).unwrap(),
        );
        assert_eq!((done.unwrap().files, notes.len()), (1, 0));
    }
    assert!(
        fs::metadata("/dev/null")
            .unwrap()
            .file_type()
            .is_char_device()
    );
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
}

fn local(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_full_device_fails_the_copy() {
    let from = folder();
    let source = from.path().join("file");
    fs::write(&source, "x").unwrap();
    let full = Destination::open(Path::new("/dev/full"), false).unwrap();
    let (done, _) = copy_to(&PLAIN, &source, full);
    let error = done.unwrap_err().to_string();
    assert!(error.contains("/dev/full: No space left"), "{error}");
}

#[test]
fn a_pipe_is_written_to_with_all_zeros_of_holes() {
    let to = folder();
    let pipe = fifo(&to.path().join("pipe"));
    let reader = {
        let pipe = pipe.clone();
        thread::spawn(move || fs::read(pipe).unwrap())
    };
    let from = folder();
    let source = File::create(from.path().join("file")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&source, b"data", 3 << 20).unwrap();
    source.set_len(5 << 20).unwrap();
    let (done, notes) = copy_to(
        &PLAIN,
        &from.path().join("file"),
        Destination::open(&pipe, false).unwrap(),
    );
    assert_eq!((done.unwrap().files, notes.len()), (1, 0));
    let content = reader.join().unwrap();
    assert_eq!(content.len(), 5 << 20);
    assert_eq!(&content[3 << 20..][..4], b"data");
    assert!(fs::metadata(&pipe).unwrap().file_type().is_fifo());
}

#[test]
fn a_pipe_that_nobody_reads_is_no_endless_wait() {
    let to = folder();
    let pipe = fifo(&to.path().join("pipe"));
    let notes = put(b"x", &pipe);
    assert_eq!(notes, ["no process reads from this pipe (waited 5s)"]);
    assert!(fs::metadata(&pipe).unwrap().file_type().is_fifo());
}

#[test]
fn a_symbolic_link_that_is_named_is_written_through() {
    let to = folder();
    let at = |name: &str| to.path().join(name);
    fs::create_dir(at("other")).unwrap();
    for content in [&b"new"[..], &[7; 3 << 20]] {
        fs::write(at("other/file"), "old").unwrap();
        let _ = fs::remove_file(at("link"));
        let _ = fs::remove_file(at("second"));
        symlink("other/file", at("link")).unwrap();
        symlink("link", at("second")).unwrap();
        let inode = fs::metadata(at("other/file")).unwrap().ino();
        assert_eq!(put(content, &at("second")), Vec::<String>::new());
        assert!(fs::read(at("other/file")).unwrap() == content);
        assert_eq!(fs::metadata(at("other/file")).unwrap().ino(), inode);
        assert_eq!(fs::read_link(at("link")).unwrap(), Path::new("other/file"));
        assert_eq!(names(to.path()), ["link", "other", "second"]);
        assert_eq!(names(&at("other")), ["file"]);
    }
}

#[test]
fn a_link_in_a_folder_is_written_through_for_a_host_and_refused_for_a_guest() {
    let (from, to) = (folder(), folder());
    let at = |name: &str| to.path().join(name);
    fs::write(from.path().join("link"), "new").unwrap();
    for (trust, expected) in [(Trust::NoSetId, "old"), (Trust::Full, "new")] {
        fs::write(at("file"), "old").unwrap();
        let _ = fs::remove_file(at("link"));
        symlink("file", at("link")).unwrap();
        let (done, notes) = copy_to(
            &Way { trust, ..PLAIN },
            &from.path().join("link"),
            Destination::open(to.path(), true).unwrap(),
        );
        let failed = done.unwrap().failed;
        assert_eq!(failed, u64::from(trust == Trust::NoSetId), "{notes:?}");
        assert_eq!(fs::read_to_string(at("file")).unwrap(), expected);
        assert!(fs::symlink_metadata(at("link")).unwrap().is_symlink());
    }
}

#[test]
fn a_link_of_another_user_in_a_folder_is_not_written_through() {
    let Some(()) = require::root() else { return };
    let (from, to) = (folder(), folder());
    let at = |name: &str| to.path().join(name);
    fs::write(from.path().join("link"), "new").unwrap();
    fs::write(at("file"), "old").unwrap();
    symlink("file", at("link")).unwrap();
    std::os::unix::fs::lchown(at("link"), Some(65534), Some(65534)).unwrap();
    let destination = Destination::open(to.path(), true).unwrap();
    let (done, notes) = copy_to(&PLAIN, &from.path().join("link"), destination);
    assert_eq!(done.unwrap().failed, 1);
    assert!(
        notes[0].contains("a symbolic link is in the way"),
        "{notes:?}"
    );
    assert_eq!(fs::read(at("file")).unwrap(), b"old");
}

#[test]
fn what_cannot_take_content_is_left_alone_and_named() {
    let to = folder();
    let at = |name: &str| to.path().join(name);
    symlink("nowhere", at("dangling")).unwrap();
    symlink("loop", at("loop")).unwrap();
    let _socket = UnixListener::bind(at("socket")).unwrap();
    symlink("socket", at("to socket")).unwrap();
    let before = names(to.path());
    for (name, why) in [
        (
            "dangling",
            "a symbolic link that leads nowhere is in the way",
        ),
        ("loop", "Too many levels of symbolic links"),
        ("socket", "a socket is in the way"),
        ("to socket", "a socket is in the way"),
    ] {
        let notes = put(b"x", &at(name));
        assert!(
            notes.len() == 1 && notes[0].contains(why),
            "{name}: {notes:?}"
        );
    }
    // A folder of the file's name in a folder.
    let from = folder();
    fs::create_dir(at("file")).unwrap();
    fs::write(from.path().join("file"), vec![0; 2 << 20]).unwrap();
    let destination = Destination::open(to.path(), true).unwrap();
    let (done, notes) = copy_to(&PLAIN, &from.path().join("file"), destination);
    assert_eq!(
        done.unwrap().bytes,
        0,
        "it is known before the content is sent"
    );
    assert_eq!(notes, ["a folder is in the way"]);
    fs::remove_dir(at("file")).unwrap();
    assert_eq!(names(to.path()), before);
    assert!(fs::symlink_metadata(at("dangling")).unwrap().is_symlink());
    assert!(
        fs::symlink_metadata(at("socket"))
            .unwrap()
            .file_type()
            .is_socket()
    );
}

#[test]
fn a_tree_writes_to_regular_files_only() {
    let (from, to) = (folder(), folder());
    let at = |name: &str| to.path().join("tree").join(name);
    fs::create_dir(from.path().join("tree")).unwrap();
    fs::create_dir(to.path().join("tree")).unwrap();
    fs::write(to.path().join("outside"), "untouched").unwrap();
    for name in ["pipe", "link", "socket", "fine"] {
        fs::write(from.path().join("tree").join(name), "x").unwrap();
    }
    // Links of the sender do not replace them either.
    symlink("x", from.path().join("tree/pipe2")).unwrap();
    symlink("x", from.path().join("tree/link2")).unwrap();
    fifo(&at("pipe"));
    fifo(&at("pipe2"));
    symlink("../outside", at("link")).unwrap();
    symlink("../outside", at("link2")).unwrap();
    let _socket = UnixListener::bind(at("socket")).unwrap();
    let way = Way {
        recursive: true,
        ..PLAIN
    };
    let destination = Destination::open(to.path(), true).unwrap();
    let (done, mut notes) = copy_to(&way, &from.path().join("tree"), destination);
    let done = done.unwrap();
    notes.sort();
    assert_eq!((done.failed, done.files), (4, 2), "{notes:?}");
    assert!(
        notes[..2].iter().all(|why| why == "a pipe is in the way"),
        "{notes:?}"
    );
    assert_eq!(notes[2], "a socket is in the way");
    assert!(
        notes[3].starts_with("a symbolic link is in the way"),
        "{notes:?}"
    );
    assert_eq!(fs::read_link(at("link2")).unwrap(), Path::new("x"));
    assert_eq!(
        fs::read_to_string(to.path().join("outside")).unwrap(),
        "untouched"
    );
    for name in ["pipe", "pipe2"] {
        assert!(fs::metadata(at(name)).unwrap().file_type().is_fifo());
    }
}

#[test]
fn a_path_that_only_a_folder_can_have_names_no_file() {
    let to = folder();
    let at = |name: &str| to.path().join(name);
    fs::write(at("file"), "old").unwrap();
    for path in ["file/.", "new/.", "file/..", "new/..", "file/", "new/", ""] {
        let opened = Destination::open(&at(path), path.ends_with('/'));
        match path {
            "" => drop(opened.unwrap()),
            _ => assert!(opened.is_err(), "{path:?}: {opened:?}"),
        }
    }
    assert!(Destination::open(Path::new("/dev/null/."), false).is_err());
    assert_eq!(names(to.path()), ["file"]);
}

#[test]
fn a_descriptor_is_written_to_at_its_position_and_not_truncated() {
    let to = folder();
    let path = to.path().join("out");
    fs::write(&path, "before ").unwrap();
    let out = File::options().append(true).open(&path).unwrap();
    for content in [&b"one "[..], b"two "] {
        let from = folder();
        fs::write(from.path().join("file"), content).unwrap();
        let out: OwnedFd = out.try_clone().unwrap().into();
        let destination = Destination::descriptor(out, "standard output");
        let (done, notes) = copy_to(&PLAIN, &from.path().join("file"), destination);
        assert_eq!((done.unwrap().files, notes.len()), (1, 0));
    }
    assert_eq!(fs::read_to_string(&path).unwrap(), "before one two ");

    // A closed pipe ends the copy, and a folder does not go there.
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    drop(reader);
    let from = folder();
    fs::write(from.path().join("file"), vec![1; 3 << 20]).unwrap();
    let destination = Destination::descriptor(writer, "standard output");
    let (done, _) = copy_to(&PLAIN, &from.path().join("file"), destination);
    let error = done.unwrap_err().to_string();
    assert!(error.contains("standard output: Broken pipe"), "{error}");
    let way = Way {
        recursive: true,
        ..PLAIN
    };
    let destination = Destination::descriptor(out.into(), "standard output");
    let (done, notes) = copy_to(&way, from.path(), destination);
    assert_eq!(done.unwrap().failed, 1);
    assert!(notes[0].contains("a folder cannot be written"), "{notes:?}");
}

#[test]
fn a_name_of_an_open_descriptor_is_recognized() {
    let (_reader, writer) = rustix::pipe::pipe().unwrap();
    let number = writer.as_raw_fd();
    let to = folder();
    let link = to.path().join("link");
    symlink(format!("/dev/fd/{number}"), &link).unwrap();
    let own = |path: &str| {
        let destination = Destination::open(Path::new(path), false).unwrap();
        destination.is_descriptor()
    };
    let process = std::process::id();
    for path in [
        "/dev/stdout",
        "/dev/stderr",
        "/proc/self/fd/1",
        &format!("/dev/fd/{number}"),
        &format!("/proc/self/fd/{number}"),
        &format!("/proc/{process}/fd/{number}"),
        &format!("/proc/self/task/{process}/fd/{number}"),
        local(&link),
    ] {
        assert!(own(path), "{path}");
    }
    symlink("/etc/hosts", to.path().join("other")).unwrap();
    for path in [
        "/dev/null",
        "/etc/hosts",
        local(&to.path().join("other")),
        "/proc/mounts",
    ] {
        assert!(!own(path), "{path}");
    }
}

#[test]
fn an_overwritten_file_keeps_its_mode_owner_and_attributes() {
    let to = folder();
    let path = to.path().join("file");
    let root = rustix::process::geteuid().is_root();
    for content in [&b"new"[..], &[7; 3 << 20]] {
        for mode in [0o600, 0o640, 0o664, 0o400] {
            let _ = fs::remove_file(&path);
            fs::write(&path, "old").unwrap();
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            setxattr(&path, "user.note", b"kept", XattrFlags::empty()).unwrap();
            if root {
                chown(&path, Some(1000), Some(1001)).unwrap();
            }
            let before = fs::metadata(&path).unwrap();
            assert_eq!(put(content, &path), Vec::<String>::new());
            let meta = fs::metadata(&path).unwrap();
            assert!(fs::read(&path).unwrap() == content);
            assert_eq!(meta.mode() & 0o7777, mode);
            assert_eq!((meta.uid(), meta.gid()), (before.uid(), before.gid()));
            let mut value = [0; 16];
            let length = getxattr(&path, "user.note", &mut value).unwrap();
            assert_eq!(&value[..length], b"kept");
            assert_eq!(names(to.path()), ["file"]);
        }
    }
    // A new file gets its permissions from the source and the umask.
    put(&[7; 3 << 20], &to.path().join("large"));
    put(b"small", &to.path().join("small"));
    let mode = |name: &str| fs::metadata(to.path().join(name)).unwrap().mode() & 0o7777;
    assert_eq!(mode("large"), mode("small"));
    assert_eq!(
        mode("small"),
        fs::metadata(fresh(&to)).unwrap().mode() & 0o7777
    );
}

/// A file with the permissions of a new one.
fn fresh(folder: &TempDir) -> PathBuf {
    let path = folder.path().join("fresh");
    fs::write(&path, "").unwrap();
    path
}

/// An access list in the kernel's format: the owner may read and write, this user may read, others nothing.
fn access_list(user: u32) -> Vec<u8> {
    let mut list = 2u32.to_le_bytes().to_vec();
    let any = u32::MAX;
    for (tag, permissions, id) in [
        (1u16, 6u16, any),
        (2, 4, user),
        (4, 0, any),
        (0x10, 4, any),
        (0x20, 0, any),
    ] {
        list.extend(tag.to_le_bytes());
        list.extend(permissions.to_le_bytes());
        list.extend(id.to_le_bytes());
    }
    list
}

#[test]
fn access_lists_are_kept_on_old_files_and_inherited_by_new_ones() {
    let to = folder();
    let at = |name: &str| to.path().join(name);
    let list = access_list(1234);
    let get = |path: &Path| {
        let mut value = [0; 256];
        getxattr(path, "system.posix_acl_access", &mut value).map(|length| value[..length].to_vec())
    };
    fs::write(at("old"), "old").unwrap();
    let name = "system.posix_acl_access";
    if setxattr(at("old"), name, &list, XattrFlags::empty()).is_err() {
        // The filesystem has no access lists.
        return;
    }
    put(b"new", &at("old"));
    assert_eq!(get(&at("old")).unwrap(), list);
    // A file without one does not get the folder's.
    fs::write(at("none"), "old").unwrap();
    let name = "system.posix_acl_default";
    setxattr(to.path(), name, &list, XattrFlags::empty()).unwrap();
    put(b"new", &at("none"));
    put(&[7; 3 << 20], &at("none"));
    assert!(get(&at("none")).is_err());
    fs::write(at("sample"), "").unwrap();
    for content in [&b"new"[..], &[7; 3 << 20]] {
        let _ = fs::remove_file(at("new"));
        put(content, &at("new"));
        assert_eq!(get(&at("new")), get(&at("sample")));
        let mode = |name: &str| fs::metadata(at(name)).unwrap().mode();
        assert_eq!(mode("new"), mode("sample"));
    }
}

#[test]
fn an_archive_has_the_attributes_of_its_source() {
    let (from, to) = (folder(), folder());
    let (source, path) = (from.path().join("file"), to.path().join("file"));
    fs::write(&source, "new").unwrap();
    fs::set_permissions(&source, Permissions::from_mode(0o751)).unwrap();
    fs::write(&path, "old").unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    setxattr(&path, "user.note", b"kept", XattrFlags::empty()).unwrap();
    let way = Way {
        archive: true,
        ..PLAIN
    };
    let destination = Destination::open(&path, false).unwrap();
    copy_to(&way, &source, destination).0.unwrap();
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o751);
    assert_eq!(
        fs::metadata(&path).unwrap().modified().unwrap(),
        fs::metadata(&source).unwrap().modified().unwrap()
    );
    assert!(getxattr(&path, "user.note", &mut [0; 16]).is_ok());
}

#[test]
fn the_content_of_a_guest_never_gets_the_rights_of_a_setuid_program() {
    let to = folder();
    let at = |name: &str| to.path().join(name);
    let guest = Way {
        trust: Trust::NoSetId,
        ..PLAIN
    };
    for linked in [false, true] {
        for (way, mode) in [(&guest, 0o755), (&PLAIN, 0o4755)] {
            let _ = fs::remove_file(at("program"));
            let _ = fs::remove_file(at("second"));
            fs::write(at("program"), "old").unwrap();
            if linked {
                fs::hard_link(at("program"), at("second")).unwrap();
            }
            fs::set_permissions(at("program"), Permissions::from_mode(0o4755)).unwrap();
            let notes = put_by(way, b"new", &at("program"));
            let told = notes.iter().any(|why| why.contains("no longer setuid"));
            assert_eq!(told, mode == 0o755, "{notes:?}");
            assert_eq!(fs::metadata(at("program")).unwrap().mode() & 0o7777, mode);
            assert_eq!(fs::read(at("program")).unwrap(), b"new");
        }
    }
}

#[test]
fn all_names_of_a_file_have_its_new_content() {
    let to = folder();
    let at = |name: &str| to.path().join(name);
    for content in [&b"new"[..], &[7; 3 << 20], b""] {
        let _ = fs::remove_file(at("two"));
        fs::write(at("one"), "a longer old content").unwrap();
        fs::hard_link(at("one"), at("two")).unwrap();
        let inode = fs::metadata(at("one")).unwrap().ino();
        assert_eq!(put(content, &at("one")), Vec::<String>::new());
        assert!(fs::read(at("two")).unwrap() == content);
        assert_eq!(fs::metadata(at("one")).unwrap().ino(), inode);
        assert_eq!(names(to.path()), ["one", "two"]);
    }
}

#[test]
fn a_partial_file_of_another_user_neither_stops_a_copy_nor_gets_its_content() {
    let Some(()) = require::root() else { return };
    let to = folder();
    fs::set_permissions(to.path(), Permissions::from_mode(0o1777)).unwrap();
    let part = to.path().join(".file.hvsock.part");
    let content = vec![7; 3 << 20];
    for mode in [0o666, 0o600] {
        let mut options = File::options();
        options.read(true).write(true).create_new(true).mode(mode);
        let mut held = options.open(&part).unwrap();
        chown(&part, Some(65534), Some(65534)).unwrap();
        flock(&held, FlockOperation::LockExclusive).unwrap();
        assert_eq!(put(&content, &to.path().join("file")), Vec::<String>::new());
        assert!(fs::read(to.path().join("file")).unwrap() == content);
        let mut seen = Vec::new();
        held.read_to_end(&mut seen).unwrap();
        assert!(seen.is_empty());
        let _ = fs::remove_file(&part);
    }
    // A folder cannot be removed, so the content is staged elsewhere.
    fs::create_dir(&part).unwrap();
    assert_eq!(put(&content, &to.path().join("file")), Vec::<String>::new());
    assert_eq!(names(to.path()), [".file.hvsock.part", "file"]);
}

#[test]
fn a_partial_file_that_others_can_open_is_not_resumed() {
    let to = folder();
    let part = to.path().join(".file.hvsock.part");
    fs::write(&part, vec![7; 1 << 20]).unwrap();
    let held = File::open(&part).unwrap();
    flock(&held, FlockOperation::LockExclusive).unwrap();
    let from = folder();
    fs::write(from.path().join("file"), vec![7; 3 << 20]).unwrap();
    let destination = Destination::open(to.path(), true).unwrap();
    let (done, _) = copy_to(&PLAIN, &from.path().join("file"), destination);
    assert_eq!(done.unwrap().resumed, 0);
    assert_eq!(names(to.path()), ["file"]);
}

#[test]
fn a_setting_of_the_kernel_gets_its_content_in_one_write() {
    let path = Path::new("/proc/self/comm");
    let before = fs::read(path).unwrap();
    assert_eq!(put(b"a copy", path), Vec::<String>::new());
    assert_eq!(fs::read(path).unwrap(), b"a copy\n");
    fs::write(path, before).unwrap();
}
