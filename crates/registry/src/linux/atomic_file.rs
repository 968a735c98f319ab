//! Atomic file replacement: after a crash, a power loss or a full disk, the file has either its old
//! or its new content.
//!
//! The new content is written to a temporary file in the same directory, synced, and renamed over the
//! old file; then the directory is synced. If a step before the last fails, the old file is unchanged
//! and the temporary file is removed. A crash leaves a temporary file behind, which readers ignore and
//! [`clean`] removes. Concurrent writers of one file do not mix their contents. A [lock](crate::lock)
//! gives further guarantees.

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fd::AsFd;
use rustix::fs::{AtFlags, Mode, OFlags};

use crate::folder::{Folder, Stamp, os};

/// The prefix of temporary file names.
const TEMPORARY: &str = ".hvsock-tmp-";

/// The mode of a new file: readable by everyone who may enter the directory.
pub const NEW_FILE: u32 = 0o644;

/// Why a file could not be written or removed.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// A step failed. Nothing was changed.
    #[error("cannot {doing} {}: {error}; nothing was changed", path.display())]
    Unchanged {
        /// The failed operation, such as `write`.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's error.
        error: io::Error,
    },
    /// Only the last sync failed. The file was changed, but a power loss may undo the change.
    #[error("{} is changed, but a power loss may undo it: {error}", path.display())]
    NotDurable {
        /// The file.
        path: PathBuf,
        /// The system's error.
        error: io::Error,
    },
}

impl WriteError {
    /// The system's error.
    pub fn error(&self) -> &io::Error {
        match self {
            Self::Unchanged { error, .. } | Self::NotDurable { error, .. } => error,
        }
    }
}

/// Creates or replaces the file `name` in `folder` with the mode `mode`. Returns the file's new state.
///
/// # Errors
/// [`WriteError::Unchanged`] if a step before the last fails; [`WriteError::NotDurable`] if only the
/// directory cannot be synced.
#[doc(alias = "rename")]
#[doc(alias = "fsync")]
pub fn write(folder: &Folder, name: &OsStr, bytes: &[u8], mode: u32) -> Result<Stamp, WriteError> {
    let path = folder.path().join(name);
    let unchanged = |doing, error| WriteError::Unchanged {
        doing,
        path: path.clone(),
        error,
    };
    let (temporary, mut file) = create(folder).map_err(|e| unchanged("create", e))?;
    let replaced = fill(&mut file, bytes, mode).and_then(|()| {
        step("rename")?;
        rustix::fs::renameat(folder, os(&temporary), folder, name).map_err(|e| ("rename", e.into()))
    });
    if let Err((doing, error)) = replaced {
        // Ignore a failure: readers skip temporary files, and `clean` removes them.
        let _ = rustix::fs::unlinkat(folder, os(&temporary), AtFlags::empty());
        return Err(unchanged(doing, error));
    }
    let durable = sync_folder(folder);
    let stamp = rustix::fs::fstat(&file).map_err(io::Error::from);
    match durable.and(stamp) {
        Ok(stat) => Ok(Stamp::of(&stat)),
        Err(error) => Err(WriteError::NotDurable { path, error }),
    }
}

/// Removes the file `name`. Returns whether it existed.
///
/// # Errors
/// [`WriteError::Unchanged`] if it cannot be removed; [`WriteError::NotDurable`] if only the directory
/// cannot be synced.
pub fn remove(folder: &Folder, name: &OsStr) -> Result<bool, WriteError> {
    let path = folder.path().join(name);
    let removed = step("remove")
        .map_err(|(_, error)| error)
        .and_then(|()| Ok(rustix::fs::unlinkat(folder, name, AtFlags::empty())?));
    match removed {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => {
            return Err(WriteError::Unchanged {
                doing: "remove",
                path,
                error,
            });
        }
    }
    sync_folder(folder).map_err(|error| WriteError::NotDurable { path, error })?;
    Ok(true)
}

/// Removes the temporary files of crashed writers and returns their number. The caller must exclude
/// running writers by holding the lock that all writers take.
///
/// # Errors
/// The system's error if the directory cannot be listed or a file cannot be removed.
pub fn clean(folder: &Folder) -> io::Result<usize> {
    let mut cleaned = 0;
    for name in folder.names(is_temporary)? {
        match rustix::fs::unlinkat(folder, &name, AtFlags::empty()) {
            Ok(()) => cleaned += 1,
            Err(rustix::io::Errno::NOENT) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(cleaned)
}

/// Whether `name` is the name of a temporary file of this module.
pub fn is_temporary(name: &OsStr) -> bool {
    name.as_bytes().starts_with(TEMPORARY.as_bytes())
}

fn create(folder: &Folder) -> io::Result<(CString, File)> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let pid = rustix::process::getpid().as_raw_pid();
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    step("create").map_err(|(_, error)| error)?;
    loop {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = CString::new(format!("{TEMPORARY}{pid}-{number}"))?;
        let mode = Mode::from_raw_mode(NEW_FILE);
        match rustix::fs::openat(folder, os(&name), flags, mode) {
            Ok(fd) => return Ok((name, File::from(fd))),
            // A leftover of a crashed process with the same id.
            Err(rustix::io::Errno::EXIST) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn fill(file: &mut File, bytes: &[u8], mode: u32) -> Result<(), (&'static str, io::Error)> {
    step("write")?;
    file.write_all(bytes).map_err(|error| ("write", error))?;
    // The umask or a default ACL may have changed the mode that the file was created with.
    rustix::fs::fchmod(file.as_fd(), Mode::from_raw_mode(mode))
        .map_err(|errno| ("set the permissions of", errno.into()))?;
    step("sync")?;
    file.sync_all().map_err(|error| ("sync", error))
}

fn sync_folder(folder: &Folder) -> io::Result<()> {
    step("sync the folder of").map_err(|(_, error)| error)?;
    match rustix::fs::fsync(folder) {
        // Some file systems do not support syncing a directory.
        Ok(()) | Err(rustix::io::Errno::INVAL) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(not(test))]
fn step(_doing: &'static str) -> Result<(), (&'static str, io::Error)> {
    Ok(())
}

/// Fault injection in tests: fails at the configured step.
#[cfg(test)]
fn step(doing: &'static str) -> Result<(), (&'static str, io::Error)> {
    match tests::FAIL_AT.get() {
        Some(at) if at == doing => Err((doing, io::Error::from(io::ErrorKind::StorageFull))),
        _ => Ok(()),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::cell::Cell;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    thread_local! {
        /// The step that fails in this thread.
        pub(crate) static FAIL_AT: Cell<Option<&'static str>> = const { Cell::new(None) };
    }

    fn folder() -> (tempfile::TempDir, Folder) {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        (dir, folder)
    }

    #[test]
    fn a_failure_at_any_step_leaves_the_old_file_and_no_temporary_file() {
        let (dir, folder) = folder();
        let name = OsStr::new("x.toml");
        for old in [None, Some("old")] {
            if let Some(old) = old {
                fs::write(dir.path().join(name), old).unwrap();
            }
            for at in ["create", "write", "sync", "rename"] {
                FAIL_AT.set(Some(at));
                let error = write(&folder, name, b"new", NEW_FILE).unwrap_err();
                FAIL_AT.set(None);
                assert!(
                    matches!(&error, WriteError::Unchanged { doing, .. } if *doing == at),
                    "{error}"
                );
                let now = fs::read_to_string(dir.path().join(name)).ok();
                assert_eq!(now.as_deref(), old, "{at}");
                assert_eq!(folder.names(is_temporary).unwrap(), [""; 0], "{at}");
            }
        }
        FAIL_AT.set(Some("sync the folder of"));
        let error = write(&folder, name, b"new", NEW_FILE).unwrap_err();
        FAIL_AT.set(None);
        assert!(matches!(error, WriteError::NotDurable { .. }));
        assert_eq!(fs::read(dir.path().join(name)).unwrap(), b"new");
    }

    #[test]
    fn write_returns_the_state_of_the_file_and_sets_its_mode() {
        let (dir, folder) = folder();
        let name = OsStr::new("x.toml");
        let stamp = write(&folder, name, b"one", 0o600).unwrap();
        assert_eq!(folder.stamp_of(name).unwrap(), Some(stamp));
        let mode = fs::metadata(dir.path().join(name)).unwrap().permissions();
        assert_eq!(mode.mode() & 0o777, 0o600);
        assert!(remove(&folder, name).unwrap());
        assert!(!remove(&folder, name).unwrap());
    }

    #[test]
    fn clean_removes_temporary_files_only() {
        let (dir, folder) = folder();
        fs::write(dir.path().join(".hvsock-tmp-1-0"), "half a fi").unwrap();
        fs::write(dir.path().join(".other"), "").unwrap();
        assert_eq!(clean(&folder).unwrap(), 1);
        assert_eq!(folder.names(|_| true).unwrap(), [".other"]);
    }
}
