//! The broker's folders: made if missing, refused if others could write to them, and held by one
//! broker at a time.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use hvsock_endpoint::Dirs;
use hvsock_registry::folder::Folder;

use crate::StartError;

/// A socket's path has at most this many bytes (`sun_path` less its final zero).
const SOCKET_PATH: usize = 107;

/// Holds the folders for this broker until dropped.
#[derive(Debug)]
pub(crate) struct Held {
    _lock: File,
}

/// Makes what is missing, checks what is there, and takes the lock.
pub(crate) fn hold(dirs: &Dirs) -> Result<Held, StartError> {
    for socket in [dirs.endpoint(), dirs.control()] {
        check_socket(&socket)?;
    }
    Folder::open_or_create(&dirs.config)?;
    Folder::open_or_create(&dirs.run)?;
    let held = lock(dirs)?;
    Folder::open_or_create(&dirs.containers())?;
    // Whoever reaches a container's endpoint is taken for a process in it.
    set_mode(&dirs.containers(), 0o700)?;
    Folder::open_or_create(&dirs.vms())?;
    // Whoever reaches a VM's socket is taken for its VMM. Each belongs to the user that its VMM
    // runs as, who has to get there.
    set_mode(&dirs.vms(), 0o711)?;
    Ok(held)
}

/// Makes the folder for a container's endpoint, to be mounted as its `/run/hvsock`.
pub(crate) fn make_container(dirs: &Dirs, name: &str) -> Result<(), StartError> {
    let folder = dirs.container(name);
    check_socket(&folder.join("endpoint"))?;
    Folder::open_or_create(&folder)?;
    // Its processes may have any user id; the folder above keeps everybody else out.
    set_mode(&folder, 0o755)
}

/// Whether a socket's path is short enough for one.
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

fn lock(dirs: &Dirs) -> Result<Held, StartError> {
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
    // Only for the words of the next broker that finds the lock held; an error changes nothing.
    let _ = file.set_len(0);
    let _ = file.rewind();
    let _ = writeln!(file, "{}", std::process::id());
    Ok(Held { _lock: file })
}
