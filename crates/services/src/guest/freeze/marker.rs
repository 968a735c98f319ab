//! A marker that filesystems are frozen, for the next agent: it is needed if this agent and the
//! freezer process are both killed.
//!
//! The marker is a file on tmpfs, locked for as long as its writer lives.

use std::ffi::OsString;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Write as _};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// The path of the marker.
pub(super) const PATH: &str = "/run/hvsock-freeze";

/// The most bytes that are read; all mounts with the longest paths fit.
const MAX_BYTES: u64 = 4 << 20;

/// A marker. The file is removed on drop.
#[derive(Debug)]
pub(super) struct Marker {
    path: PathBuf,
    _locked: File,
}

impl Marker {
    /// Records that these mounts are about to be frozen.
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

    /// The mounts in the marker of a process that is gone. The caller then owns the marker.
    pub(super) fn leftover(path: &Path) -> io::Result<Option<(Self, Vec<PathBuf>)>> {
        let mut file = match OpenOptions::new().read(true).write(true).open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        match lock(&file) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            locked => locked?,
        }
        let mut text = Vec::new();
        Read::by_ref(&mut file)
            .take(MAX_BYTES)
            .read_to_end(&mut text)?;
        let mounts = text
            .split(|byte| *byte == 0)
            .filter(|mount| !mount.is_empty());
        let mounts = mounts.map(|mount| PathBuf::from(OsString::from_vec(mount.to_vec())));
        let mounts = mounts.collect();
        let marker = Self {
            path: path.to_owned(),
            _locked: file,
        };
        Ok(Some((marker, mounts)))
    }
}

fn lock(file: &File) -> io::Result<()> {
    file.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => io::ErrorKind::WouldBlock.into(),
        TryLockError::Error(error) => error,
    })
}

impl Drop for Marker {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_marker_of_a_dead_process_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("marker");
        assert!(Marker::leftover(&path).unwrap().is_none());
        let mounts = [Path::new("/srv/a b"), Path::new("/")];
        let marker = Marker::set(&path, mounts.into_iter()).unwrap();
        assert!(Marker::leftover(&path).unwrap().is_none());
        assert!(Marker::set(&path, mounts.into_iter()).is_err());
        drop(marker);
        assert!(Marker::leftover(&path).unwrap().is_none());

        // A lock ends with its process, the file does not.
        std::fs::write(&path, b"/srv/a b\0/\0").unwrap();
        let (marker, left) = Marker::leftover(&path).unwrap().unwrap();
        assert_eq!(left, mounts);
        drop(marker);
        assert!(!path.exists());
    }
}
