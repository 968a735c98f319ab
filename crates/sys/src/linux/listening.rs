//! Listening Unix sockets at a path.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt, chown};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::temporary;

/// Listens at `path` with the file mode `mode` and, if given, the owner `owner`. Returns the
/// non-blocking listener.
///
/// Replaces an existing socket; the caller must ensure (by a lock) that no other process listens there.
/// The file never has more permissions than `mode`, not even for a moment. No other file gets them:
/// another user who can write to the folder may replace the socket by a link (TOCTOU).
/// `backlog` clients may wait; the kernel limits it to `net.core.somaxconn`.
///
/// Fails with `AlreadyExists` if another kind of file is at `path`.
pub(super) fn listen(
    kind: SocketType,
    path: &Path,
    mode: u32,
    owner: Option<u32>,
    backlog: u32,
) -> io::Result<OwnedFd> {
    address(path)?;
    match fs::symlink_metadata(path) {
        Ok(there) if there.file_type().is_socket() => fs::remove_file(path)?,
        Ok(_) => {
            let message = format!("{} exists and is not a socket", path.display());
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, message));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    listen_at_new(kind, path, mode, owner, backlog)
}

/// As [`listen`], but fails with `AddrInUse` if any file is at `path`.
pub(super) fn listen_at_new(
    kind: SocketType,
    path: &Path,
    mode: u32,
    owner: Option<u32>,
    backlog: u32,
) -> io::Result<OwnedFd> {
    let address = address(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None)?;
    // bind() creates the file with the socket's mode less the umask, which is corrected below.
    rustix::fs::fchmod(&socket, Mode::from_raw_mode(mode & 0o777))?;
    rustix::net::bind(&socket, &address)?;
    // Who waits for the file connects as soon as it is there, so nothing comes before this.
    //
    // A socket that is bound elsewhere and renamed when it is complete would have no such moment at all. But the kernel
    // keeps the name of bind(): `ss`, `lsof` and `getsockname` would not show where the socket is, and a broker that
    // takes sockets over checks them by that name. `SocketFolder::listen`, whose sockets have no such name, renames.
    let backlog = i32::try_from(backlog).unwrap_or(i32::MAX);
    rustix::net::listen(&socket, backlog)?;
    set_owner_and_mode(path, mode & 0o777, owner)?;
    Ok(socket)
}

/// Listens in `folder`, to which no other user may write, for one client at a time, at a path that is gone when
/// this returns. Returns the non-blocking listener, and a descriptor (`O_PATH`) by which whoever has it
/// connects: at `/proc/self/fd/N`. The length of the folder's path does not matter.
pub(super) fn listen_unnamed(
    kind: SocketType,
    folder: &Path,
    name: &str,
) -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::open(folder, flags, Mode::empty())?;
    let path = format!("/proc/self/fd/{}/{name}", folder.as_raw_fd());
    let path = Path::new(&path);
    let address = address(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let listener = rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None)?;
    match rustix::net::bind(&listener, &address) {
        // A process that was killed has left it.
        Err(Errno::ADDRINUSE) => {
            fs::remove_file(path)?;
            rustix::net::bind(&listener, &address)?;
        }
        bound => bound?,
    }
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = rustix::fs::open(path, flags, Mode::empty());
    fs::remove_file(path)?;
    let opened = opened?;
    let stat = rustix::fs::fstat(&opened)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Socket || stat.st_nlink > 0 {
        return Err(replaced(path));
    }
    // Connecting needs the right to write, which the umask may have taken. fchmod() does not accept an O_PATH
    // descriptor.
    let itself = format!("/proc/self/fd/{}", opened.as_raw_fd());
    fs::set_permissions(itself, fs::Permissions::from_mode(0o666))?;
    rustix::net::listen(&listener, 0)?;
    Ok((listener, opened))
}

/// As [`listen_unnamed`], in a new folder where this process may write.
pub(super) fn listen_anywhere(kind: SocketType) -> io::Result<(OwnedFd, OwnedFd)> {
    let mut result = Err(io::ErrorKind::NotFound.into());
    for folder in temporary::folders() {
        result = temporary::with_folder(&folder, |folder| listen_unnamed(kind, folder, "s"));
        if result.is_ok() {
            break;
        }
    }
    result
}

/// The socket at `path`, if it belongs to `owner`, as an `O_PATH` descriptor. Whether there is anything else
/// is not told.
pub(super) fn find_owned(path: &Path, owner: u32) -> Option<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let found = rustix::fs::open(path, flags, Mode::empty()).ok()?;
    let stat = rustix::fs::fstat(&found).ok()?;
    let is_socket = FileType::from_raw_mode(stat.st_mode) == FileType::Socket;
    (is_socket && stat.st_uid == owner).then_some(found)
}

/// Sets the owner and the mode of the socket at `path`, and of nothing that has replaced it.
fn set_owner_and_mode(path: &Path, mode: u32, owner: Option<u32>) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let there = rustix::fs::open(path, flags, Mode::empty())?;
    let stat = rustix::fs::fstat(&there)?;
    // A socket that was just bound has one name. Another one that is linked here would have two.
    if FileType::from_raw_mode(stat.st_mode) != FileType::Socket || stat.st_nlink > 1 {
        return Err(replaced(path));
    }
    // fchmod() does not accept an O_PATH descriptor.
    let itself = format!("/proc/self/fd/{}", there.as_raw_fd());
    if owner.is_some() {
        chown(&itself, owner, None)?;
    }
    fs::set_permissions(itself, fs::Permissions::from_mode(mode))
}

fn replaced(path: &Path) -> io::Error {
    let message = format!("{} was replaced by another file", path.display());
    io::Error::new(io::ErrorKind::AlreadyExists, message)
}

/// The socket address of a path. Fails with `InvalidFilename` above 107 bytes.
pub(super) fn address(path: &Path) -> io::Result<SocketAddrUnix> {
    SocketAddrUnix::new(path).map_err(|error| match error {
        Errno::NAMETOOLONG => io::Error::new(
            io::ErrorKind::InvalidFilename,
            format!(
                "the path {} is longer than the 107 bytes of a Unix socket address",
                path.display()
            ),
        ),
        error => error.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_has_the_descriptor_connects_to_a_socket_without_a_name() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("x".repeat(120));
        fs::create_dir(&folder).unwrap();
        let (listener, path) = listen_unnamed(SocketType::STREAM, &folder, "7").unwrap();
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
        let itself = format!("/proc/self/fd/{}", path.as_raw_fd());
        let client = std::os::unix::net::UnixStream::connect(&itself).unwrap();
        assert!(
            super::super::seqpacket::accept(&listener)
                .unwrap()
                .is_some()
        );
        assert!(
            super::super::seqpacket::accept(&listener)
                .unwrap()
                .is_none()
        );
        drop((client, listener));
        let error = std::os::unix::net::UnixStream::connect(&itself).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }

    #[test]
    fn a_socket_without_a_name_replaces_what_a_killed_process_has_left_and_is_for_every_user() {
        let dir = tempfile::tempdir().unwrap();
        let left = std::os::unix::net::UnixListener::bind(dir.path().join("7")).unwrap();
        drop(left);
        let (_listener, path) = listen_unnamed(SocketType::STREAM, dir.path(), "7").unwrap();
        let stat = rustix::fs::fstat(&path).unwrap();
        assert_eq!((stat.st_mode & 0o777, stat.st_nlink), (0o666, 0));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_link_in_place_of_the_socket_does_not_get_its_mode() {
        let dir = tempfile::tempdir().unwrap();
        let (path, secret) = (dir.path().join("s"), dir.path().join("secret"));
        fs::write(&secret, "").unwrap();
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
        std::os::unix::fs::symlink(&secret, &path).unwrap();
        let error = set_owner_and_mode(&path, 0o666, None).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        let mode = fs::metadata(&secret).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_socket_that_is_linked_in_place_of_the_bound_one_does_not_get_its_mode() {
        let dir = tempfile::tempdir().unwrap();
        let (path, other) = (dir.path().join("s"), dir.path().join("other"));
        let _listener = std::os::unix::net::UnixListener::bind(&other).unwrap();
        fs::set_permissions(&other, fs::Permissions::from_mode(0o600)).unwrap();
        fs::hard_link(&other, &path).unwrap();
        let error = set_owner_and_mode(&path, 0o666, None).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        let mode = fs::metadata(&other).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
