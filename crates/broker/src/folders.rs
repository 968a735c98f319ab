//! The broker's folders. They are created if missing, refused if other users could write to them,
//! and locked by one broker at a time.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use hvsock_endpoint::Dirs;
use hvsock_registry::folder::Folder;

use crate::StartError;

/// Longest path of a Unix socket in bytes: `sun_path` less its terminating NUL (unix(7)).
const SOCKET_PATH: usize = 107;

/// The exclusive lock on the folders, released when dropped.
#[derive(Debug)]
pub(crate) struct FolderLock {
    _file: File,
}

/// Creates missing folders, checks existing ones, and takes the lock.
pub(crate) fn lock(dirs: &Dirs) -> Result<FolderLock, StartError> {
    for socket in [dirs.endpoint(), dirs.control()] {
        check_socket(&socket)?;
    }
    Folder::open_or_create(&dirs.config)?;
    Folder::open_or_create(&dirs.run)?;
    let lock = take_lock(dirs)?;
    Folder::open_or_create(&dirs.containers())?;
    // A process that can reach a container's endpoint counts as a process in the container.
    set_mode(&dirs.containers(), 0o700)?;
    Folder::open_or_create(&dirs.vms())?;
    // A process that can reach a VM's socket counts as its VMM. Each socket belongs to the user that
    // the VMM runs as, who needs search permission on the folder.
    set_mode(&dirs.vms(), 0o711)?;
    Ok(lock)
}

/// Creates the folder of a container's endpoint, which is mounted in it as `/run/hvsock`.
pub(crate) fn make_container(dirs: &Dirs, name: &str) -> Result<(), StartError> {
    let folder = dirs.container(name);
    check_socket(&folder.join("endpoint"))?;
    Folder::open_or_create(&folder)?;
    // The container's processes may have any uid; the parent folder (0700) keeps others out.
    set_mode(&folder, 0o755)
}

/// Fails if `socket` is longer than a Unix socket's path may be.
pub(crate) fn check_socket(socket: &Path) -> Result<(), StartError> {
    if socket.as_os_str().len() > SOCKET_PATH {
        return Err(StartError::PathTooLong(socket.to_owned()));
    }
    Ok(())
}

fn set_mode(folder: &Path, mode: u32) -> Result<(), StartError> {
    fs::set_permissions(folder, fs::Permissions::from_mode(mode)).map_err(StartError::io(format!(
        "set the mode of {}",
        folder.display()
    )))
}

fn take_lock(dirs: &Dirs) -> Result<FolderLock, StartError> {
    let path = dirs.lock();
    let what = || StartError::io(format!("open the lock {}", path.display()));
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o644)
        .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
        .open(&path)
        .map_err(what())?;
    match file.try_lock() {
        Ok(()) => {}
        Err(fs::TryLockError::WouldBlock) => {
            let mut text = String::new();
            let _ = (&file).take(32).read_to_string(&mut text);
            let (pid, run) = (text.trim().parse().ok(), dirs.run.clone());
            return Err(StartError::Held { pid, run });
        }
        Err(fs::TryLockError::Error(error)) => return Err(what()(error)),
    }
    // The pid is only for the error message of a second broker, so failures do not matter.
    let _ = file.set_len(0);
    let _ = file.rewind();
    let _ = writeln!(file, "{}", std::process::id());
    Ok(FolderLock { _file: file })
}
