//! The broker's folders. They are created if missing, refused if other users could write to them or
//! replace them, and locked by one broker at a time.
//!
//! Their modes do not depend on the umask: the broker sets each, and also those that an older broker or
//! a configuration manager left narrower or wider.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use hvsock_address::{PartitionName, VmId};
use hvsock_endpoint::Dirs;
use hvsock_registry::folder::Folder;
use hvsock_registry::lock::{Lock, LockError, LockFile};

use crate::StartError;

/// Longest path of a Unix socket in bytes: `sun_path` less its terminating NUL (unix(7)).
const SOCKET_PATH: usize = 107;

/// The folder of the machine's broker, which all users may use.
const MACHINE: &str = "/run/hvsock";

/// How long to wait for a broker that is ending: one that was killed holds its lock until the kernel has
/// freed its memory.
const LOCK_WAIT: Duration = Duration::from_millis(500);

/// The exclusive lock on the folders, released when dropped.
#[derive(Debug)]
pub(crate) struct FolderLock {
    lock: Lock,
}

impl FolderLock {
    /// The lock, for another process that goes on in place of this one.
    pub(crate) fn duplicate(&self) -> io::Result<OwnedFd> {
        self.lock.duplicate()
    }
}

/// Checks the folders of a broker that runs, before they are taken over.
pub(crate) fn check(dirs: &Dirs) -> Result<(), StartError> {
    Folder::open(&dirs.config)?;
    Folder::open(&dirs.run)?;
    Ok(())
}

/// The lock, of which the broker that held it has passed its duplicate.
pub(crate) fn adopt_lock(dirs: &Dirs, duplicate: OwnedFd) -> Result<FolderLock, StartError> {
    let run = Folder::open(&dirs.run)?;
    let path = dirs.lock();
    let name = path.file_name().unwrap_or_default();
    let lock = LockFile::open(&run, name).and_then(|file| file.adopt(duplicate));
    match lock {
        Ok(lock) => Ok(FolderLock { lock }),
        Err(error) => {
            let what = format!("take over the lock of {}", dirs.run.display());
            Err(StartError::io(what)(io::Error::other(error)))
        }
    }
}

/// Creates missing folders, checks existing ones, and takes the lock.
pub(crate) fn lock(dirs: &Dirs) -> Result<FolderLock, StartError> {
    for socket in [
        dirs.endpoint(),
        dirs.text(),
        dirs.control(),
        dirs.handover(),
    ] {
        check_socket(&socket)?;
    }
    Folder::open_or_create(&dirs.config)?;
    let run = Folder::open_or_create(&dirs.run)?;
    let lock = take_lock(dirs, &run)?;
    // A process that can reach a container's endpoint counts as a process in the container.
    open_with_mode(&dirs.containers(), 0o700)?;
    open_with_mode(&dirs.container_ids(), 0o700)?;
    open_with_mode(&dirs.attached(), 0o700)?;
    // A process that can reach a VM's socket counts as its VMM. Each socket belongs to the user that
    // the VMM runs as, who needs search permission on the folder.
    open_with_mode(&dirs.vms(), 0o711)?;
    Ok(lock)
}

/// Checks that a container's name is one folder: a container in a virtual machine has none here.
fn check_name(name: &str) -> Result<(), StartError> {
    let checked = PartitionName::unnested(name);
    checked.map(drop).map_err(|error| {
        let error = io::Error::new(io::ErrorKind::InvalidInput, error);
        StartError::io(format!("use {name} as the name of a folder"))(error)
    })
}

/// Creates the folder of a container's endpoint, which is mounted in it as `/run/hvsock`. Returns whether
/// the folder that it had before is gone.
pub(crate) fn make_container(dirs: &Dirs, name: &str, id: VmId) -> Result<bool, StartError> {
    check_name(name)?;
    let folder = dirs.container(name);
    check_socket(&folder.join("endpoint"))?;
    let is_gone = fs::read_link(dirs.container_ids().join(name)).is_ok() && !folder.exists();
    record(dirs, name, id)?;
    // The container's processes may have any uid; the parent folder (0700) keeps others out.
    open_with_mode(&folder, 0o755)?;
    Ok(is_gone)
}

/// Records whose a folder is: as a symbolic link, which is created with its content or not at all.
fn record(dirs: &Dirs, name: &str, id: VmId) -> Result<(), StartError> {
    let path = dirs.container_ids().join(name);
    let id = id.to_string();
    if fs::read_link(&path).is_ok_and(|known| known == Path::new(&id)) {
        return Ok(());
    }
    let _ = fs::remove_file(&path);
    let linked = std::os::unix::fs::symlink(&id, &path);
    linked.map_err(StartError::io(format!("create {}", path.display())))
}

/// Whose the containers' folders are, the oldest first. Forgets those of folders that are gone.
pub(crate) fn records(dirs: &Dirs) -> Vec<(String, VmId)> {
    let mut records = Vec::new();
    let entries = fs::read_dir(dirs.container_ids());
    for entry in entries.into_iter().flatten().flatten() {
        let record = || {
            let name = entry.file_name().into_string().ok()?;
            let id = fs::read_link(entry.path()).ok()?;
            let id = id.to_str()?.parse().ok()?;
            let created = entry.metadata().ok()?.modified().ok()?;
            dirs.container(&name)
                .exists()
                .then_some((created, name, id))
        };
        match record() {
            Some(record) => records.push(record),
            None => drop(fs::remove_file(entry.path())),
        }
    }
    records.sort();
    records
        .into_iter()
        .map(|(_, name, id)| (name, id))
        .collect()
}

/// Removes the folder of a container that is gone. It must be empty.
pub(crate) fn remove_container(dirs: &Dirs, name: &str) -> Result<(), StartError> {
    check_name(name)?;
    let folder = dirs.container(name);
    match fs::remove_dir(&folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            let what = format!(
                "remove the folder of a former container, {}",
                folder.display()
            );
            Err(StartError::io(what)(error))
        }
        _ => {
            let _ = fs::remove_file(dirs.container_ids().join(name));
            Ok(())
        }
    }
}

/// Removes the endpoints of containers that `is_known` does not know: of former ones, and of those whose
/// file was removed while no broker ran. Removes their folders as well, unless it is on record whose they are.
pub(crate) fn remove_unknown_containers(dirs: &Dirs, is_known: impl Fn(&str) -> bool) {
    for entry in fs::read_dir(dirs.containers())
        .into_iter()
        .flatten()
        .flatten()
    {
        if !entry.file_name().to_str().is_some_and(&is_known) {
            // A killed broker leaves its socket behind.
            let _ = fs::remove_file(entry.path().join("endpoint"));
            let _ = fs::remove_file(entry.path().join("text"));
            if fs::read_link(dirs.container_ids().join(entry.file_name())).is_err() {
                let _ = fs::remove_dir(entry.path());
            }
        }
    }
}

/// The mode of the folder of the machine's broker if other users cannot enter it: one that was made under
/// a narrow umask. A folder that an operator chose may be closed on purpose.
pub(crate) fn closed_to_others(dirs: &Dirs) -> Option<u32> {
    let mode = Folder::open(&dirs.run).ok()?.mode().ok()?;
    (dirs.run == Path::new(MACHINE) && mode & 0o005 != 0o005).then_some(mode)
}

/// Fails if `socket` is longer than a Unix socket's path may be.
pub(crate) fn check_socket(socket: &Path) -> Result<(), StartError> {
    if socket.as_os_str().len() > SOCKET_PATH {
        return Err(StartError::PathTooLong(socket.to_owned()));
    }
    Ok(())
}

/// Whether a path is that of a socket or folder of the broker. Compares names only, except that the folder
/// of all of them may be a symbolic link.
pub(crate) fn is_own(dirs: &Dirs, path: &Path) -> bool {
    let is_in = |dirs: &Dirs| {
        let files = [
            dirs.endpoint(),
            dirs.text(),
            dirs.control(),
            dirs.handover(),
            dirs.lock(),
        ];
        files.iter().any(|file| path == file)
            || path.starts_with(dirs.vms())
            || path.starts_with(dirs.containers())
            || path.starts_with(dirs.container_ids())
            || path.starts_with(dirs.attached())
    };
    let real = fs::canonicalize(&dirs.run).map(|run| Dirs {
        run,
        ..dirs.clone()
    });
    is_in(dirs) || real.is_ok_and(|real| is_in(&real))
}

fn open_with_mode(folder: &Path, mode: u32) -> Result<(), StartError> {
    let opened = Folder::open_or_create(folder)?;
    let set = opened.set_mode(mode);
    set.map_err(StartError::io(format!(
        "set the mode of {}",
        folder.display()
    )))
}

fn take_lock(dirs: &Dirs, run: &Folder) -> Result<FolderLock, StartError> {
    let path = dirs.lock();
    let name = path.file_name().unwrap_or_default();
    let locked = LockFile::open(run, name).and_then(|file| file.lock(LOCK_WAIT));
    match locked {
        Ok(lock) => Ok(FolderLock { lock }),
        Err(LockError::Held { holder, .. }) => {
            let (holder, run) = (holder.map(Box::new), dirs.run.clone());
            Err(StartError::Held { holder, run })
        }
        Err(LockError::Io { path, error }) => {
            let what = format!("lock {}", path.display());
            Err(StartError::io(what)(error))
        }
    }
}
