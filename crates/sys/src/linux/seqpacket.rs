//! Unix `SOCK_SEQPACKET` sockets, which endpoints use. They preserve message boundaries, pass
//! descriptors, and report when the peer process is gone.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::listening;

/// Listens at `path` with the file mode `mode`. Returns the non-blocking listener.
///
/// Replaces an existing socket; the caller must ensure (by a lock) that no other process listens there.
/// The file never has more permissions than `mode`, not even for a moment. No other file gets them:
/// another user who can write to the folder may replace the socket by a link (TOCTOU).
/// `backlog` clients may wait for [`accept`]; the kernel limits it to `net.core.somaxconn`.
///
/// # Errors
///
/// `AlreadyExists` if another kind of file is at `path`; `InvalidFilename` if `path` exceeds 107 bytes;
/// those of `socket`, `bind` and `listen`.
pub fn listen(path: &Path, mode: u32, backlog: u32) -> io::Result<OwnedFd> {
    listening::listen(SocketType::SEQPACKET, path, mode, None, backlog)
}

/// Listens at a path that is gone when this returns. Returns the non-blocking listener, and a descriptor (`O_PATH`) of
/// its file: whoever may open that in `/proc/PID/fd` can connect there, one client after another.
///
/// # Errors
///
/// Those of `socket` and `bind`, if this process may write to no folder for temporary files.
pub fn listen_unnamed() -> io::Result<(OwnedFd, OwnedFd)> {
    listening::listen_anywhere(SocketType::SEQPACKET)
}

/// Accepts one waiting client as a non-blocking socket; `None` if none waits.
///
/// # Errors
///
/// Those of `accept4`, except `EAGAIN`, `EINTR` and `ECONNABORTED`.
pub fn accept(listener: impl AsFd) -> io::Result<Option<OwnedFd>> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    loop {
        match rustix::net::accept_with(&listener, flags) {
            Ok(socket) => return Ok(Some(socket)),
            Err(Errno::AGAIN) => return Ok(None),
            // This client is gone; another may wait.
            Err(Errno::INTR | Errno::CONNABORTED) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Connects to the listener at `path` and returns the non-blocking socket.
///
/// If the listener's backlog is full, waits for up to `timeout`.
///
/// # Errors
///
/// `WouldBlock` if the backlog stays full; `ConnectionRefused` if no process listens; `NotFound` if
/// there is no socket at `path`.
pub fn connect(path: &Path, timeout: Duration) -> io::Result<OwnedFd> {
    let address = listening::address(path)?;
    let socket = socket(SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
    match super::retry(|| rustix::net::connect(&socket, &address)) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock && !timeout.is_zero() => {}
        result => return result.map(|()| socket),
    }
    // The kernel bounds a blocking Unix connect by the send timeout.
    set_socket_timeout(
        &socket,
        Timeout::Send,
        Some(timeout.max(Duration::from_micros(1))),
    )?;
    super::set_nonblocking(&socket, false)?;
    super::retry(|| rustix::net::connect(&socket, &address))?;
    super::set_nonblocking(&socket, true)?;
    set_socket_timeout(&socket, Timeout::Send, None)?;
    Ok(socket)
}

/// Creates a connected pair of blocking sockets.
///
/// # Errors
///
/// Those of `socketpair`.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC;
    let pair = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    Ok(pair)
}

fn socket(flags: SocketFlags) -> io::Result<OwnedFd> {
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_listener_replaces_a_stale_socket() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        drop(listen(&path, 0o600, 1).unwrap());
        let refused = connect(&path, Duration::ZERO).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        let listener = listen(&path, 0o666, 1).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o666);
        assert!(accept(&listener).unwrap().is_none());
        let _client = connect(&path, Duration::ZERO).unwrap();
        assert!(accept(&listener).unwrap().is_some());
    }

    #[test]
    fn a_file_that_is_no_socket_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        fs::write(&path, "precious").unwrap();
        let error = listen(&path, 0o600, 1).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn a_connect_to_a_full_backlog_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let _listener = listen(&path, 0o600, 0).unwrap();
        let bound = Duration::from_millis(50);
        let start = Instant::now();
        let mut waiting = Vec::new();
        let error = loop {
            match connect(&path, bound) {
                Ok(socket) => waiting.push(socket),
                Err(error) => break error,
            }
            assert!(waiting.len() < 10);
        };
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        assert!(start.elapsed() >= bound);
        // Without a timeout the socket stays non-blocking, so this cannot wait.
        let error = connect(&path, Duration::ZERO).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn a_path_too_long_for_a_socket_is_an_error() {
        let path = Path::new("/tmp").join("x".repeat(120));
        let error = connect(&path, Duration::ZERO).unwrap_err();
        assert!(error.to_string().contains("107 bytes"), "{error}");
    }
}
