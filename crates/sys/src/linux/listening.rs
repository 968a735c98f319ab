//! Unix sockets that listen under a name in the file system.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt, chown};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Listens at `path` with the file mode `mode` and, if one is given, in the hands of `owner`, and
/// returns the non-blocking listener.
///
/// A socket that is already there is replaced: whoever calls must know (by a lock) that no other
/// process listens there. Anything else that is there stays and is an error. The file never has
/// more permissions than `mode`, not even for a moment, and nothing else gets them: others may be
/// able to write to the folder, and put a link to a file of their choice where the socket was.
/// `backlog` clients may wait; the kernel caps it at `net.core.somaxconn`.
pub(super) fn listen(
    kind: SocketType,
    path: &Path,
    mode: u32,
    owner: Option<u32>,
    backlog: u32,
) -> io::Result<OwnedFd> {
    let address = address(path)?;
    match fs::symlink_metadata(path) {
        Ok(there) if there.file_type().is_socket() => fs::remove_file(path)?,
        Ok(_) => {
            let message = format!("{} exists and is not a socket", path.display());
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, message));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None)?;
    // bind() gives the file the socket's own mode less the umask; then widen it to what was asked.
    rustix::fs::fchmod(&socket, Mode::from_raw_mode(mode & 0o777))?;
    rustix::net::bind(&socket, &address)?;
    hand_over(path, mode & 0o777, owner)?;
    let backlog = i32::try_from(backlog).unwrap_or(i32::MAX);
    rustix::net::listen(&socket, backlog)?;
    Ok(socket)
}

/// Sets the owner and the mode of the socket at `path` itself, whatever is there by now.
fn hand_over(path: &Path, mode: u32, owner: Option<u32>) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let there = rustix::fs::open(path, flags, Mode::empty())?;
    let stat = rustix::fs::fstat(&there)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Socket {
        let message = format!("{} was replaced by something else", path.display());
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, message));
    }
    // fchmod() takes no descriptor that was opened with O_PATH.
    let itself = format!("/proc/self/fd/{}", there.as_raw_fd());
    if owner.is_some() {
        chown(&itself, owner, None)?;
    }
    fs::set_permissions(itself, fs::Permissions::from_mode(mode))
}

/// A path as the address of a socket.
pub(super) fn address(path: &Path) -> io::Result<SocketAddrUnix> {
    SocketAddrUnix::new(path).map_err(|error| match error {
        Errno::NAMETOOLONG => io::Error::new(
            io::ErrorKind::InvalidFilename,
            format!(
                "{} is longer than the 107 bytes that a socket's path may have",
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
    fn a_link_where_the_socket_was_does_not_pass_its_mode_on() {
        let dir = tempfile::tempdir().unwrap();
        let (path, secret) = (dir.path().join("s"), dir.path().join("secret"));
        fs::write(&secret, "").unwrap();
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
        std::os::unix::fs::symlink(&secret, &path).unwrap();
        let error = hand_over(&path, 0o666, None).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        let mode = fs::metadata(&secret).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
