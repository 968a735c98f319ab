//! Where the pools lie in the guest: the files of Hyper-V's own daemon, so that a program written
//! for Hyper-V finds its pairs.
//!
//! Its rules hold: a file is locked with `fcntl` while it is read or changed, and is changed in
//! place, since programs keep it open. All calls here may block.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, OFlags, fcntl_lock};
use rustix::io::Errno;

use super::pool::{ChangeError, Pool};
use crate::wire::kvp::Pool as Which;

/// How long to wait for somebody else's lock.
const LOCK: Duration = Duration::from_secs(2);

/// Where Hyper-V's daemon, and whoever reads its files, has them.
const HYPER_V: &str = "/var/lib/hyperv";

/// Where they are if that daemon runs here: then those are its.
const OURS: &str = "/var/lib/hvsock/kvp";

/// Where they are, until the end of the container or guest, if it can write nowhere else.
const VOLATILE: &str = "/run/hvsock-kvp";

/// The device by which that daemon talks to Hyper-V.
const HYPER_V_DEVICE: &str = "/dev/vmbus/hv_kvp";

/// Why a pool cannot be changed.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// What was asked for.
    #[error(transparent)]
    Change(#[from] ChangeError),
    /// The operating system said no.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What it said.
        error: io::Error,
    },
}

/// The folder of the pools.
#[derive(Clone, Debug)]
pub struct Files {
    folder: PathBuf,
}

impl Files {
    /// Those in `folder`.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        let folder = folder.into();
        Self { folder }
    }

    /// Those in `folder`, or else those that programs look for.
    pub fn at(folder: Option<PathBuf>) -> Self {
        folder.map_or_else(Self::usual, Self::new)
    }

    /// Those that programs of this guest look for. Its first user with the right to do so makes
    /// the folder.
    pub fn usual() -> Self {
        let first = match Path::new(HYPER_V_DEVICE).exists() {
            true => OURS,
            false => HYPER_V,
        };
        Self::first_of(&[first, VOLATILE])
    }

    /// The first folder that is there or can be made.
    fn first_of(folders: &[impl AsRef<Path>]) -> Self {
        let mut folders = folders.iter().map(AsRef::as_ref);
        let first = folders.clone().next().unwrap_or(Path::new(HYPER_V));
        let found = folders.find(|folder| folder.is_dir() || make(folder).is_ok());
        Self::new(found.unwrap_or(first))
    }

    /// One pool; an empty one if there is no file.
    pub fn read(&self, which: Which) -> Result<Pool, FileError> {
        let path = self.path(which);
        let read = || {
            let mut file = match options().read(true).open(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Ok(Pool::default());
                }
                opened => opened?,
            };
            lock(&file, FlockOperation::NonBlockingLockShared)?;
            Ok(Pool::decode(&load(&mut file)?))
        };
        read().map_err(|error| FileError::Io { path, error })
    }

    /// Changes one pool. Nothing is written if `change` fails or changes nothing.
    pub fn change<T>(
        &self,
        which: Which,
        change: impl FnOnce(&mut Pool) -> Result<T, ChangeError>,
    ) -> Result<(T, Pool), FileError> {
        let path = self.path(which);
        let io = |error| FileError::Io {
            path: path.clone(),
            error,
        };
        let mut file = self.open(&path).map_err(io)?;
        lock(&file, FlockOperation::NonBlockingLockExclusive).map_err(io)?;
        let bytes = load(&mut file).map_err(io)?;
        let before = Pool::decode(&bytes);
        let mut after = before.clone();
        let done = change(&mut after)?;
        if after != before {
            store(&mut file, &bytes, &after.encode()).map_err(io)?;
        }
        Ok((done, after))
    }

    fn path(&self, which: Which) -> PathBuf {
        self.folder.join(format!(".kvp_pool_{}", which as i32))
    }

    fn open(&self, path: &Path) -> io::Result<File> {
        let open = || {
            let mut options = options();
            options.read(true).write(true).create(true).mode(0o644);
            options.open(path)
        };
        match open() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                make(&self.folder)?;
                open()
            }
            opened => opened,
        }
    }
}

fn make(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o755).create(folder)
}

/// Neither a link nor a pipe that nobody writes to is a pool.
fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32);
    options
}

/// Waits for a lock on the whole file, which ends with its descriptor.
fn lock(file: &File, operation: FlockOperation) -> io::Result<()> {
    let until = Instant::now() + LOCK;
    loop {
        match fcntl_lock(file, operation) {
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN | Errno::ACCESS) if Instant::now() < until => {
                thread::sleep(Duration::from_millis(10));
            }
            Err(Errno::AGAIN | Errno::ACCESS) => {
                let held = "another program holds the lock on it";
                return Err(io::Error::new(io::ErrorKind::TimedOut, held));
            }
            locked => return Ok(locked?),
        }
    }
}

fn load(file: &mut File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(Pool::BYTES as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Writes from the first byte that differs, so that a change at the end leaves the rest alone
/// whatever becomes of the machine meanwhile.
fn store(file: &mut File, before: &[u8], after: &[u8]) -> io::Result<()> {
    let same = before.iter().zip(after).take_while(|(a, b)| a == b);
    let same = same.count();
    file.seek(io::SeekFrom::Start(same as u64))?;
    file.write_all(&after[same..])?;
    file.set_len(after.len() as u64)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn here() -> (tempfile::TempDir, Files) {
        let folder = tempfile::tempdir().unwrap();
        let files = Files::new(folder.path().join("hyperv"));
        (folder, files)
    }

    fn set(files: &Files, key: &str, value: &str) -> Result<(), FileError> {
        let changed = files.change(Which::Guest, |pool| pool.set(key, value));
        changed.map(|((), _)| ())
    }

    #[test]
    fn pairs_are_in_the_file_that_hyper_v_has_for_them() {
        let (folder, files) = here();
        assert_eq!(files.read(Which::Guest).unwrap(), Pool::default());
        set(&files, "a", "1").unwrap();
        set(&files, "b", "2").unwrap();
        set(&files, "a", "one").unwrap();
        let bytes = fs::read(folder.path().join("hyperv/.kvp_pool_1")).unwrap();
        assert_eq!(bytes.len(), 2 * 2560);
        assert_eq!(&bytes[512..516], b"one\0");
        files.change(Which::Guest, |pool| pool.unset("a")).unwrap();
        let pool = files.read(Which::Guest).unwrap();
        assert_eq!(pool.iter().collect::<Vec<_>>(), [("b", "2")]);
    }

    #[test]
    fn what_cannot_be_leaves_the_file_as_it_was() {
        let (folder, files) = here();
        set(&files, "a", "1").unwrap();
        let path = folder.path().join("hyperv/.kvp_pool_1");
        let before = fs::read(&path).unwrap();
        let refused = files.change(Which::Guest, |pool| {
            pool.set("b", "2")?;
            pool.set("", "3")
        });
        assert!(matches!(refused, Err(FileError::Change(_))));
        assert_eq!(fs::read(&path).unwrap(), before);
    }

    #[test]
    fn a_file_that_some_program_left_odd_is_put_right_by_the_next_change() {
        let (folder, files) = here();
        set(&files, "a", "1").unwrap();
        let path = folder.path().join("hyperv/.kvp_pool_1");
        let mut bytes = vec![0; 2560];
        bytes.extend(fs::read(&path).unwrap());
        bytes.extend([b'x'; 100]);
        fs::write(&path, bytes).unwrap();
        set(&files, "b", "2").unwrap();
        let pool = files.read(Which::Guest).unwrap();
        assert_eq!(pool.iter().collect::<Vec<_>>(), [("a", "1"), ("b", "2")]);
        assert_eq!(fs::metadata(&path).unwrap().len(), 2 * 2560);
    }

    #[test]
    fn where_nothing_can_be_written_the_next_place_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        let places = [file.join("not/a/folder"), folder.path().join("a/b")];
        let files = Files::first_of(&places);
        set(&files, "a", "1").unwrap();
        assert!(places[1].join(".kvp_pool_1").is_file());
        // And stays the one.
        let again = Files::first_of(&places);
        assert_eq!(again.read(Which::Guest).unwrap().get("a"), Some("1"));
        let none = Files::first_of(&places[..1]);
        assert!(matches!(set(&none, "a", "1"), Err(FileError::Io { .. })));
    }

    #[test]
    fn a_link_is_not_followed() {
        let (folder, files) = here();
        fs::create_dir(folder.path().join("hyperv")).unwrap();
        let elsewhere = folder.path().join("elsewhere");
        std::os::unix::fs::symlink(&elsewhere, folder.path().join("hyperv/.kvp_pool_1")).unwrap();
        assert!(matches!(set(&files, "a", "1"), Err(FileError::Io { .. })));
        assert!(!elsewhere.exists());
    }
}
