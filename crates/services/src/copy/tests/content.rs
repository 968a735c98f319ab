//! A file is what can be read from it, not what its size promises.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use super::*;

/// Does something to the source after it was opened, and records what the user is told.
struct Meanwhile<F> {
    action: Option<F>,
    seen: Record,
    waited: Vec<String>,
}

impl<F: FnOnce()> Meanwhile<F> {
    fn new(action: F) -> Self {
        let (seen, waited) = (Record::default(), Vec::new());
        let action = Some(action);
        Self {
            action,
            seen,
            waited,
        }
    }

    fn notes(&self) -> Vec<&str> {
        self.seen.notes.iter().map(|note| &note.why[..]).collect()
    }
}

impl<F: FnOnce()> Observer for Meanwhile<F> {
    fn file(&mut self, _path: &Path, _size: u64) {
        if let Some(action) = self.action.take() {
            action();
        }
    }

    fn waiting(&mut self, _path: &Path, what: &str) {
        self.waited.push(what.to_owned());
    }

    fn note(&mut self, note: &Note) {
        self.seen.note(note);
    }
}

#[test]
fn files_of_the_kernel_are_copied_whole_whatever_size_they_report() {
    let to = folder();
    let mut sizes = Vec::new();
    for path in [
        "/proc/version",
        "/proc/filesystems",
        "/proc/self/limits",
        "/proc/sys/kernel/ostype",
        "/sys/kernel/notes",
        "/sys/kernel/mm/transparent_hugepage/enabled",
    ] {
        let Ok(content) = fs::read(path) else {
            continue; // Not on every kernel.
        };
        sizes.push(fs::metadata(path).unwrap().len());
        let name = to.path().join(path.replace('/', "_"));
        let mut record = Record::default();
        let sent = send(&[Path::new(path)], &name, &mut record, false);
        assert_eq!(sent.unwrap().failed, 0, "{path}: {:?}", record.notes);
        assert!(!content.is_empty());
        assert_eq!(fs::read(&name).unwrap(), content, "{path}");
    }
    assert!(sizes.contains(&0), "{sizes:?}");

    let tree = Path::new("/proc/sys/fs/inotify");
    let sent = send(&[tree], to.path(), &mut Unobserved, true).unwrap();
    let files: Vec<PathBuf> = fs::read_dir(tree)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    assert_eq!(sent.files, files.len() as u64);
    for file in files {
        let copy = to.path().join("inotify").join(file.file_name().unwrap());
        assert_eq!(fs::read(copy).unwrap(), fs::read(&file).unwrap());
    }
}

#[test]
fn a_file_that_changes_its_size_is_copied_as_it_is_and_reported() {
    const BEFORE: u64 = 3_000_000;
    type Change = fn(&File);
    let changes: [(&str, Change, u64); 5] = [
        (
            "grows",
            |file| file.write_all_at(&[7; 500_000], BEFORE).unwrap(),
            3_500_000,
        ),
        (
            "grows by a hole",
            |file| file.set_len(9_000_000).unwrap(),
            9_000_000,
        ),
        (
            "shrinks",
            |file| file.set_len(1_000_001).unwrap(),
            1_000_001,
        ),
        ("shrinks to nothing", |file| file.set_len(0).unwrap(), 0),
        (
            "is written anew",
            |file| {
                file.set_len(0).unwrap();
                file.write_all_at(b"new", 0).unwrap();
            },
            3,
        ),
    ];
    for sparse in [false, true] {
        for (name, change, size) in changes {
            let (from, to) = (folder(), folder());
            let path = from.path().join("file");
            let file = File::create(&path).unwrap();
            if sparse {
                file.set_len(BEFORE).unwrap();
                file.write_all_at(b"data", 1_500_000).unwrap();
            } else {
                file.write_all_at(&vec![3; BEFORE as usize], 0).unwrap();
            }
            let mut meanwhile = Meanwhile::new(|| change(&file));
            let sent = send(&[&path], to.path(), &mut meanwhile, false).unwrap();
            let copy = fs::read(to.path().join("file")).unwrap();
            assert_eq!(copy.len() as u64, size, "{name}, sparse: {sparse}");
            assert!(copy == fs::read(&path).unwrap(), "{name}, sparse: {sparse}");
            assert_eq!(
                meanwhile.notes(),
                ["it changed while it was copied"],
                "{name}"
            );
            assert_eq!(sent.failed, 1, "{name}");
        }
    }
}

#[test]
fn a_file_that_is_replaced_meanwhile_is_copied_as_it_was_opened() {
    let (from, to) = (folder(), folder());
    let (path, other) = (from.path().join("file"), from.path().join("other"));
    fs::write(&path, "what was opened").unwrap();
    fs::write(&other, "its successor").unwrap();
    let mut meanwhile = Meanwhile::new(|| fs::rename(&other, &path).unwrap());
    let sent = send(&[&path], to.path(), &mut meanwhile, false).unwrap();
    assert_eq!(sent.failed, 0, "{:?}", meanwhile.notes());
    assert_eq!(
        fs::read(to.path().join("file")).unwrap(),
        b"what was opened"
    );
}

#[test]
fn a_file_that_grows_faster_than_it_is_read_does_not_hold_up_the_copy() {
    /// Appends as much as was read, every time.
    struct Appender(File);
    impl Observer for Appender {
        fn advance(&mut self, bytes: u64) {
            self.0.write_all(&vec![1; 2 * bytes as usize]).unwrap();
        }
    }
    let (from, to) = (folder(), folder());
    let path = from.path().join("log");
    fs::write(&path, vec![1; 300_000]).unwrap();
    let file = File::options().append(true).open(&path).unwrap();
    let sent = send(&[&path], to.path(), &mut Appender(file), false).unwrap();
    assert_eq!(sent.failed, 1, "the change is reported");
    let copied = fs::metadata(to.path().join("log")).unwrap().len();
    assert!((300_000..10_000_000).contains(&copied), "{copied}");
}

#[test]
fn a_pipe_or_device_that_was_named_is_read_to_its_end() {
    let (from, to) = (folder(), folder());
    let pipe = from.path().join("pipe");
    rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RWXU).unwrap();
    let content = vec![5; 1_300_000];
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut pipe = File::options().write(true).open(&pipe).unwrap();
            pipe.write_all(&content[..1000]).unwrap();
            pipe.write_all(&content[1000..]).unwrap();
        });
        let sent = send(&[&pipe], to.path(), &mut Unobserved, false);
        assert_eq!(sent.unwrap().failed, 0);
    });
    assert!(fs::read(to.path().join("pipe")).unwrap() == content);

    // As the shell's `<(command)` names it.
    let (read, mut write) = io::pipe().unwrap();
    write.write_all(b"printed").unwrap();
    drop(write);
    let substituted = PathBuf::from(format!("/dev/fd/{}", read.as_raw_fd()));
    let sent = send(
        &[&substituted],
        &to.path().join("new"),
        &mut Unobserved,
        false,
    );
    assert_eq!(sent.unwrap().failed, 0);
    assert_eq!(fs::read(to.path().join("new")).unwrap(), b"printed");

    let sent = send(&[Path::new("/dev/null")], to.path(), &mut Unobserved, false);
    assert_eq!(sent.unwrap().failed, 0);
    let null = fs::symlink_metadata(to.path().join("null")).unwrap();
    assert!(null.is_file() && null.len() == 0);
}

#[test]
fn a_pipe_that_nobody_writes_to_is_an_error_after_a_bounded_wait() {
    let (from, to) = (folder(), folder());
    let (pipe, file) = (from.path().join("pipe"), from.path().join("file"));
    rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RWXU).unwrap();
    fs::write(&file, "content").unwrap();
    let mut record = Meanwhile::new(|| {});
    let sent = send(&[&pipe, &file], to.path(), &mut record, false).unwrap();
    assert_eq!((sent.files, sent.failed), (1, 1));
    assert_eq!(record.waited, ["a process that writes to the pipe"]);
    assert_eq!(
        record.notes(),
        ["nothing was written to the pipe for 200ms"]
    );
    assert!(!to.path().join("pipe").exists());
    assert_eq!(fs::read(to.path().join("file")).unwrap(), b"content");
}

#[test]
fn a_named_path_that_is_not_copied_is_a_failure_and_one_in_a_tree_a_note() {
    let (from, to) = (folder(), folder());
    let pipe = from.path().join("pipe");
    rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RWXU).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(from.path().join("socket")).unwrap();
    for (path, recursive, why) in [
        (&pipe, true, "with -r a pipe is not copied"),
        (&from.path().join("socket"), true, "a socket is not copied"),
        (&from.path().join("socket"), false, "a socket is not copied"),
    ] {
        let mut record = Record::default();
        let sent = send(&[path], to.path(), &mut record, recursive).unwrap();
        assert_eq!(sent.failed, 1, "{why}");
        assert_eq!(record.notes[0].why, why);
    }
    let mut record = Record::default();
    let sent = send(&[from.path()], to.path(), &mut record, true).unwrap();
    assert_eq!((sent.failed, record.notes.len()), (0, 2));
    assert!(record.notes.iter().all(|note| note.skipped));
}

#[test]
fn an_error_while_a_file_is_read_fails_that_file_and_no_other() {
    let (from, to) = (folder(), folder());
    fs::write(from.path().join("file"), "content").unwrap();
    // Nothing is mapped at address 0.
    let memory = Path::new("/proc/self/mem");
    let mut record = Record::default();
    let sources = [memory, &from.path().join("file")];
    let sent = send(&sources, to.path(), &mut record, false).unwrap();
    assert_eq!((sent.files, sent.failed), (1, 1), "{:?}", record.notes);
    assert!(record.notes[0].why.contains("Input/output error"));
    assert_eq!(fs::read(to.path().join("file")).unwrap(), b"content");
    assert_eq!(fs::read_dir(to.path()).unwrap().count(), 1);
}
