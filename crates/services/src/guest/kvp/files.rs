//! The files of the pools in the guest: those of Hyper-V's daemon, so that programs written for
//! Hyper-V find their pairs.
//!
//! The daemon's rules apply: a file is locked with fcntl(2) while it is read or changed, and it is
//! changed in place, because programs keep it open. All calls in this module may block.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use hvsock_sys::locks::{self, RecordLock};
use rustix::fs::{FlockOperation, OFlags, fcntl_lock};
use rustix::io::Errno;

use super::pool::{ChangeError, Pool};
use crate::wire::kvp::Pool as WirePool;

/// How long to wait for a lock that another program holds.
const LOCK: Duration = Duration::from_millis(if cfg!(test) { 200 } else { 2000 });

/// The folder of Hyper-V's daemon, where programs look for the files.
const HYPER_V: &str = "/var/lib/hyperv";

/// The folder if that daemon runs here and owns the other one.
const OWN: &str = "/var/lib/hvsock/kvp";

/// The folder if no other is writable; it lasts until the container or guest ends.
const VOLATILE: &str = "/run/hvsock-kvp";

/// The device by which the daemon communicates with Hyper-V.
const HYPER_V_DEVICE: &str = "/dev/vmbus/hv_kvp";

/// Why a pool cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The change is invalid.
    #[error(transparent)]
    Change(#[from] ChangeError),
    /// The operating system reported an error.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The error.
        error: io::Error,
    },
}

/// The folder of the pools.
#[derive(Clone, Debug)]
pub struct Files {
    folder: PathBuf,
}

impl Files {
    /// The pools in `folder`.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        let folder = folder.into();
        Self { folder }
    }

    /// The pools in `folder`, or in the default folder if it is `None`.
    pub fn at(folder: Option<PathBuf>) -> Self {
        folder.map_or_else(Self::in_default_folder, Self::new)
    }

    /// The pools in the default folder. The first user with the permission to do so creates the folder.
    pub fn in_default_folder() -> Self {
        let first = match Path::new(HYPER_V_DEVICE).exists() {
            true => OWN,
            false => HYPER_V,
        };
        Self::first_of(&[first, VOLATILE])
    }

    /// Uses the first folder that exists or can be created.
    fn first_of(folders: &[impl AsRef<Path>]) -> Self {
        let mut folders = folders.iter().map(AsRef::as_ref);
        let first = folders.clone().next().unwrap_or(Path::new(HYPER_V));
        let found = folders.find(|folder| folder.is_dir() || make(folder).is_ok());
        Self::new(found.unwrap_or(first))
    }

    /// Reads a pool. It is empty if its file does not exist.
    ///
    /// # Errors
    ///
    /// [`FileError::Io`] if the file cannot be read, or another program holds a write lock for more
    /// than 2 seconds.
    pub fn read(&self, pool: WirePool) -> Result<Pool, FileError> {
        let path = self.path(pool);
        let read = || {
            let mut file = match options().read(true).open(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Ok(Pool::default());
                }
                opened => opened?,
            };
            lock(&file, false)?;
            Ok(Pool::decode(&load(&mut file)?))
        };
        read().map_err(|error| FileError::Io { path, error })
    }

    /// Changes a pool. Nothing is written if `change` fails or changes nothing.
    ///
    /// # Errors
    ///
    /// [`FileError::Change`] with the error of `change`, or [`FileError::Io`] if the file cannot be
    /// written or another program holds a write lock for more than 2 seconds.
    pub fn change<T>(
        &self,
        pool: WirePool,
        change: impl FnOnce(&mut Pool) -> Result<T, ChangeError>,
    ) -> Result<(T, Pool), FileError> {
        let path = self.path(pool);
        let io = |error| FileError::Io {
            path: path.clone(),
            error,
        };
        let mut file = self.open(&path).map_err(io)?;
        lock(&file, true).map_err(io)?;
        let bytes = load(&mut file).map_err(io)?;
        let before = Pool::decode(&bytes);
        let mut after = before.clone();
        let done = change(&mut after)?;
        if after != before {
            store(&mut file, &bytes, &after.encode()).map_err(io)?;
        }
        Ok((done, after))
    }

    fn path(&self, pool: WirePool) -> PathBuf {
        self.folder.join(format!(".kvp_pool_{}", pool as i32))
    }

    fn open(&self, path: &Path) -> io::Result<File> {
        let open = |new| options().read(true).write(true).create_new(new).open(path);
        match open(false) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            opened => return opened,
        }
        make(&self.folder)?;
        match open(true) {
            Ok(new) => {
                // The umask does not decide who may read it.
                new.set_permissions(Permissions::from_mode(0o644))?;
                Ok(new)
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => open(false),
            Err(error) => Err(error),
        }
    }
}

/// Every program of the guest may enter the folder and read the pools.
fn make(folder: &Path) -> io::Result<()> {
    crate::guest::folder::create(folder, 0o755)
}

/// Options that refuse a symbolic link and do not block on a pipe: neither is a pool.
fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32);
    options
}

/// Waits for a lock on the whole file, for writing if `exclusive`. The lock ends with the descriptor.
///
/// Any user of the guest can open the file for reading, and hold a read lock for ever. So a read lock
/// keeps nobody from writing for longer than the time limit: its holder may then read a pool that is
/// half written. A write lock is that of a program that may change the pool, and is never ignored.
fn lock(file: &File, exclusive: bool) -> io::Result<()> {
    let until = Instant::now() + LOCK;
    let operation = match exclusive {
        true => FlockOperation::NonBlockingLockExclusive,
        false => FlockOperation::NonBlockingLockShared,
    };
    loop {
        match fcntl_lock(file, operation) {
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN | Errno::ACCESS) if Instant::now() < until => {
                thread::sleep(Duration::from_millis(10));
            }
            Err(Errno::AGAIN | Errno::ACCESS) => {
                match locks::conflicting_record_lock(file, exclusive)? {
                    // It was released just now, or is one for reading.
                    None => {}
                    Some(RecordLock {
                        exclusive: false, ..
                    }) => return Ok(()),
                    Some(RecordLock { holder, .. }) => {
                        let holder = holder.map(|holder| holder.to_string());
                        let holder = holder.unwrap_or_else(|| "another program".to_owned());
                        let held = format!("it is locked by {holder}, for more than {LOCK:?}");
                        return Err(io::Error::new(io::ErrorKind::TimedOut, held));
                    }
                }
                if Instant::now() > until + LOCK {
                    let held = "other programs lock it again and again";
                    return Err(io::Error::new(io::ErrorKind::TimedOut, held));
                }
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

/// Writes from the first byte that differs, so that a change at the end leaves the rest intact even
/// if the machine crashes.
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
        let changed = files.change(WirePool::Guest, |pool| pool.set(key, value));
        changed.map(|((), _)| ())
    }

    #[test]
    fn pairs_are_stored_in_the_hyper_v_file_format() {
        let (folder, files) = here();
        assert_eq!(files.read(WirePool::Guest).unwrap(), Pool::default());
        set(&files, "a", "1").unwrap();
        set(&files, "b", "2").unwrap();
        set(&files, "a", "one").unwrap();
        let bytes = fs::read(folder.path().join("hyperv/.kvp_pool_1")).unwrap();
        assert_eq!(bytes.len(), 2 * 2560);
        assert_eq!(&bytes[512..516], b"one\0");
        files
            .change(WirePool::Guest, |pool| pool.unset("a"))
            .unwrap();
        let pool = files.read(WirePool::Guest).unwrap();
        assert_eq!(pool.iter().collect::<Vec<_>>(), [("b", "2")]);
    }

    #[test]
    fn a_failed_change_leaves_the_file_unchanged() {
        let (folder, files) = here();
        set(&files, "a", "1").unwrap();
        let path = folder.path().join("hyperv/.kvp_pool_1");
        let before = fs::read(&path).unwrap();
        let refused = files.change(WirePool::Guest, |pool| {
            pool.set("b", "2")?;
            pool.set("", "3")
        });
        assert!(matches!(refused, Err(FileError::Change(_))));
        assert_eq!(fs::read(&path).unwrap(), before);
    }

    #[test]
    fn an_irregular_file_is_repaired_by_the_next_change() {
        let (folder, files) = here();
        set(&files, "a", "1").unwrap();
        let path = folder.path().join("hyperv/.kvp_pool_1");
        let mut bytes = vec![0; 2560];
        bytes.extend(fs::read(&path).unwrap());
        bytes.extend([b'x'; 100]);
        fs::write(&path, bytes).unwrap();
        set(&files, "b", "2").unwrap();
        let pool = files.read(WirePool::Guest).unwrap();
        assert_eq!(pool.iter().collect::<Vec<_>>(), [("a", "1"), ("b", "2")]);
        assert_eq!(fs::metadata(&path).unwrap().len(), 2 * 2560);
    }

    /// Runs a Python program that locks a pool, and returns it once it holds the lock.
    fn locker(path: &Path, how: &str) -> Option<std::process::Child> {
        let python = hvsock_testkit::require::python3()?;
        let program = format!(
            "import fcntl, sys\nf = open(sys.argv[1], 'r+b')\nfcntl.lockf(f, fcntl.{how})\n\
             print('locked', flush=True)\nsys.stdin.read()"
        );
        let mut locker = std::process::Command::new(python)
            .args(["-c", &program])
            .arg(path)
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = [0; 7];
        locker
            .stdout
            .as_mut()
            .unwrap()
            .read_exact(&mut line)
            .unwrap();
        Some(locker)
    }

    #[test]
    fn a_read_lock_delays_a_change_and_does_not_stop_it() {
        let (folder, files) = here();
        set(&files, "a", "1").unwrap();
        let path = folder.path().join("hyperv/.kvp_pool_1");
        let Some(mut reader) = locker(&path, "LOCK_SH") else {
            return;
        };
        set(&files, "a", "2").unwrap();
        assert_eq!(files.read(WirePool::Guest).unwrap().get("a"), Some("2"));
        drop(reader.stdin.take());
        reader.wait().unwrap();
    }

    #[test]
    fn a_write_lock_stops_a_change_and_the_error_names_its_holder() {
        let (folder, files) = here();
        set(&files, "a", "1").unwrap();
        let path = folder.path().join("hyperv/.kvp_pool_1");
        let Some(mut writer) = locker(&path, "LOCK_EX") else {
            return;
        };
        let error = set(&files, "a", "2").unwrap_err().to_string();
        let holder = format!("it is locked by process {} (python3", writer.id());
        assert!(error.contains(&holder), "{error}");
        drop(writer.stdin.take());
        writer.wait().unwrap();
        set(&files, "a", "2").unwrap();
    }

    #[test]
    fn every_user_may_read_a_new_pool_and_only_its_owner_may_write_it() {
        let (folder, files) = here();
        set(&files, "a", "1").unwrap();
        let mode = |name: &str| {
            let meta = fs::metadata(folder.path().join(name)).unwrap();
            meta.permissions().mode() & 0o7777
        };
        assert_eq!(mode("hyperv"), 0o755);
        assert_eq!(mode("hyperv/.kvp_pool_1"), 0o644);
    }

    #[test]
    fn an_unwritable_folder_is_skipped() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        let folders = [file.join("not/a/folder"), folder.path().join("a/b")];
        let files = Files::first_of(&folders);
        set(&files, "a", "1").unwrap();
        assert!(folders[1].join(".kvp_pool_1").is_file());
        // The choice is stable.
        let again = Files::first_of(&folders);
        assert_eq!(again.read(WirePool::Guest).unwrap().get("a"), Some("1"));
        let none = Files::first_of(&folders[..1]);
        assert!(matches!(set(&none, "a", "1"), Err(FileError::Io { .. })));
    }

    #[test]
    fn a_symbolic_link_is_not_followed() {
        let (folder, files) = here();
        fs::create_dir(folder.path().join("hyperv")).unwrap();
        let elsewhere = folder.path().join("elsewhere");
        std::os::unix::fs::symlink(&elsewhere, folder.path().join("hyperv/.kvp_pool_1")).unwrap();
        assert!(matches!(set(&files, "a", "1"), Err(FileError::Io { .. })));
        assert!(!elsewhere.exists());
    }
}
