//! The expected amount of data, counted before the copy.

use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{self, AtFlags, CWD, Dir, FileType, OFlags};

use super::super::DEPTH;
use super::super::name::Name;
use super::source::{At, Source, open};

/// The most entries that are counted, because counting takes time too.
const MAX_COUNTED: u64 = 200_000;

/// Counts the files and their total size in bytes. Entries that cannot be read are ignored.
pub(super) fn expected(sources: &[Source], recursive: bool) -> (u64, u64) {
    let mut counter = Counter::default();
    for source in sources.iter().filter(|source| !source.is_standard_input()) {
        let follow = !recursive || source.name().is_none();
        let at = At {
            folder: CWD,
            name: source.path(),
            follow,
        };
        counter.add(at, recursive, 0);
    }
    (counter.files, counter.bytes)
}

#[derive(Default)]
struct Counter {
    files: u64,
    bytes: u64,
    entries: u64,
}

impl Counter {
    fn add(&mut self, at: At<'_>, recursive: bool, depth: usize) {
        self.entries += 1;
        if self.entries > MAX_COUNTED {
            return;
        }
        let flags = match at.follow {
            true => AtFlags::empty(),
            false => AtFlags::SYMLINK_NOFOLLOW,
        };
        let Ok(stat) = fs::statat(at.folder, at.name, flags) else {
            return;
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {
                self.files += 1;
                self.bytes += stat.st_size as u64;
            }
            FileType::Directory if recursive && depth < DEPTH => {
                let opened = open(at, OFlags::DIRECTORY)
                    .and_then(|folder| Ok((Dir::read_from(&folder)?, folder)));
                let Ok((entries, folder)) = opened else {
                    return;
                };
                for entry in entries.flatten() {
                    if let Ok(name) = Name::new(entry.file_name().to_bytes()) {
                        let at = At {
                            folder: folder.as_fd(),
                            name: Path::new(name.as_os_str()),
                            follow: false,
                        };
                        self.add(at, recursive, depth + 1);
                    }
                }
            }
            _ => {}
        }
    }
}
