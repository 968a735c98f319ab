//! The note that something is frozen, for the next agent: should this one and the process that
//! freezes be killed at once, nobody else knows.
//!
//! It is a file in memory, locked for as long as whoever wrote it lives.

use std::ffi::OsString;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Write as _};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// Where it is.
pub(super) const PLACE: &str = "/run/hvsock-freeze";

/// The most bytes of it that are read: all mounts with the longest paths fit.
const MOST: u64 = 4 << 20;

/// A note that is there until this is dropped.
#[derive(Debug)]
pub(super) struct Mark {
    path: PathBuf,
    _locked: File,
}

impl Mark {
    /// Notes that these mounts are about to be frozen.
    pub(super) fn set<'a>(path: &Path, mounts: impl Iterator<Item = &'a Path>) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o600);
        let mut file = options.open(path)?;
        lock(&file)?;
        file.set_len(0)?;
        for mount in mounts {
            file.write_all(mount.as_os_str().as_bytes())?;
            file.write_all(&[0])?;
        }
        Ok(Self {
            path: path.to_owned(),
            _locked: file,
        })
    }

    /// The mounts that somebody has noted who is no more. The note then is the caller's.
    pub(super) fn left(path: &Path) -> io::Result<Option<(Self, Vec<PathBuf>)>> {
        let mut file = match OpenOptions::new().read(true).write(true).open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        match lock(&file) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            locked => locked?,
        }
        let mut text = Vec::new();
        Read::by_ref(&mut file).take(MOST).read_to_end(&mut text)?;
        let mounts = text
            .split(|byte| *byte == 0)
            .filter(|mount| !mount.is_empty());
        let mounts = mounts.map(|mount| PathBuf::from(OsString::from_vec(mount.to_vec())));
        let mounts = mounts.collect();
        let mark = Self {
            path: path.to_owned(),
            _locked: file,
        };
        Ok(Some((mark, mounts)))
    }
}

fn lock(file: &File) -> io::Result<()> {
    file.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => io::ErrorKind::WouldBlock.into(),
        TryLockError::Error(error) => error,
    })
}

impl Drop for Mark {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_living_noted_is_theirs_and_what_the_dead_did_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mark");
        assert!(Mark::left(&path).unwrap().is_none());
        let mounts = [Path::new("/srv/a b"), Path::new("/")];
        let mark = Mark::set(&path, mounts.into_iter()).unwrap();
        assert!(Mark::left(&path).unwrap().is_none());
        assert!(Mark::set(&path, mounts.into_iter()).is_err());
        drop(mark);
        assert!(Mark::left(&path).unwrap().is_none());

        // A lock ends with whoever had it, a file does not.
        std::fs::write(&path, b"/srv/a b\0/\0").unwrap();
        let (mark, left) = Mark::left(&path).unwrap().unwrap();
        assert_eq!(left, mounts);
        drop(mark);
        assert!(!path.exists());
    }
}
