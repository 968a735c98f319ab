//! The received tree equals the sent one.

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use proptest::prelude::*;

use super::*;

/// An entry with all that a copy preserves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    File {
        content: Vec<u8>,
        mode: u32,
        time: (i64, i64),
    },
    Folder {
        mode: u32,
        time: (i64, i64),
    },
    Link {
        target: PathBuf,
        time: (i64, i64),
    },
}

/// All entries of a folder, by path.
pub(super) fn look(folder: &Path) -> BTreeMap<PathBuf, Seen> {
    fn add(all: &mut BTreeMap<PathBuf, Seen>, top: &Path, folder: &Path) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            let (mode, time) = (meta.mode() & 0o7777, (meta.mtime(), meta.mtime_nsec()));
            let seen = if meta.is_symlink() {
                let target = fs::read_link(&path).unwrap();
                Seen::Link { target, time }
            } else if meta.is_dir() {
                add(all, top, &path);
                Seen::Folder { mode, time }
            } else {
                let content = fs::read(&path).unwrap();
                Seen::File {
                    content,
                    mode,
                    time,
                }
            };
            all.insert(path.strip_prefix(top).unwrap().to_owned(), seen);
        }
    }
    let mut all = BTreeMap::new();
    add(&mut all, folder, folder);
    all
}

/// The copy of these entries. Only root can set the owner, and without the owner the copy drops setuid.
fn expected_copy(mut entries: BTreeMap<PathBuf, Seen>) -> BTreeMap<PathBuf, Seen> {
    if !rustix::process::geteuid().is_root() {
        for entry in entries.values_mut() {
            if let Seen::File { mode, .. } | Seen::Folder { mode, .. } = entry {
                *mode &= 0o1777;
            }
        }
    }
    entries
}

#[derive(Clone, Debug)]
enum Entry {
    File(u32, Vec<(u64, u8, usize)>, u64),
    Folder(u32, Vec<Entry>),
    Link(String),
}

fn entry() -> impl Strategy<Value = Entry> {
    let mode = || prop::sample::select(vec![0o600u32, 0o644, 0o755, 0o444, 0o400, 0o4755]);
    let run = (
        0u64..3_000_000,
        any::<u8>(),
        prop_oneof![1usize..5_000, 200_000usize..700_000],
    );
    let file = (mode(), prop::collection::vec(run, 0..3), 0u64..200_000)
        .prop_map(|(mode, runs, more)| Entry::File(mode, runs, more));
    let link = "[a-z./]{1,12}".prop_map(Entry::Link);
    prop_oneof![3 => file, 1 => link].prop_recursive(3, 12, 4, |inner| {
        let mode = prop::sample::select(vec![0o700u32, 0o755, 0o555]);
        (mode, prop::collection::vec(inner, 0..4)).prop_map(|(mode, all)| Entry::Folder(mode, all))
    })
}

fn make(at: &Path, entry: &Entry, number: u64) {
    let time = SystemTime::UNIX_EPOCH + Duration::new(1_000_000 + number, 123_456_789);
    match entry {
        Entry::File(mode, runs, more) => {
            let file = File::create(at).unwrap();
            for (offset, byte, length) in runs {
                file.write_all_at(&vec![*byte; *length], *offset).unwrap();
            }
            file.set_len(file.metadata().unwrap().len() + more).unwrap();
            file.set_permissions(Permissions::from_mode(*mode)).unwrap();
            file.set_modified(time).unwrap();
        }
        Entry::Folder(mode, all) => {
            fs::create_dir(at).unwrap();
            for (index, entry) in all.iter().enumerate() {
                make(&at.join(format!("e{index}")), entry, index as u64);
            }
            let folder = File::open(at).unwrap();
            folder
                .set_permissions(Permissions::from_mode(*mode))
                .unwrap();
            folder.set_modified(time).unwrap();
        }
        Entry::Link(target) => symlink(target, at).unwrap(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(hvsock_testkit::cases(24)))]
    #[test]
    fn a_tree_is_copied_exactly(entries in prop::collection::vec(entry(), 1..4)) {
        let (from, to) = (folder(), folder());
        make(&from.path().join("tree"), &Entry::Folder(0o755, entries), 7);
        let ((sent, seen), (received, _)) = copy(&[&from.path().join("tree")], to.path(), true);
        let (sent, received) = (sent.unwrap(), received.unwrap());
        prop_assert_eq!(sent.failed, 0);
        prop_assert_eq!(sent.files, received.files);
        prop_assert_eq!(sent.bytes, received.bytes);
        prop_assert_eq!(look(to.path()), expected_copy(look(from.path())));
        let (_, bytes) = seen.total.unwrap();
        prop_assert_eq!(seen.advanced, bytes);
    }
}
