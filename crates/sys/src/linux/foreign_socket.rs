//! Unix stream sockets that belong to another program, for a supervisor that answers its socket calls.
//!
//! The supervisor works on a duplicate of the program's descriptor. Both share the open file and with it the
//! blocking mode, which is the program's: no call here changes it or depends on it.

use std::collections::HashSet;
use std::fs;
use std::io::{self, BufRead as _, BufReader};
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType};

use super::poll::{self, PollFd, PollFlags};
use super::temporary;

/// An unconnected stream socket, close-on-exec.
///
/// # Errors
///
/// Those of `socket`.
pub fn create(nonblocking: bool) -> io::Result<OwnedFd> {
    let mut flags = SocketFlags::CLOEXEC;
    flags.set(SocketFlags::NONBLOCK, nonblocking);
    let kind = SocketType::STREAM;
    Ok(rustix::net::socket_with(
        AddressFamily::UNIX,
        kind,
        flags,
        None,
    )?)
}

/// The number of the socket among all open ones, as in `socket:[…]` of `/proc/PID/fd`.
///
/// # Errors
///
/// Those of `fstat`.
pub fn inode(socket: impl AsFd) -> io::Result<u64> {
    Ok(rustix::fs::fstat(socket)?.st_ino)
}

/// A socket among all open ones, as opposed to the file of a Unix socket, whose inode may have the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// The device number of all open sockets.
    pub device: u64,
    /// The number of [`inode`].
    pub inode: u64,
}

/// Where a descriptor's file is.
///
/// # Errors
///
/// Those of `fstat`.
pub fn place(file: impl AsFd) -> io::Result<Place> {
    let stat = rustix::fs::fstat(file)?;
    Ok(Place {
        device: stat.st_dev,
        inode: stat.st_ino,
    })
}

/// A number that no other socket ever has (`SO_COOKIE`), while an inode is used again.
///
/// # Errors
///
/// Those of `getsockopt`.
pub fn cookie(socket: impl AsFd) -> io::Result<u64> {
    Ok(sockopt::socket_cookie(socket)?)
}

/// A number of the network namespace that a socket was made in (`SO_NETNS_COOKIE`). `None` before Linux 5.14.
pub fn namespace(socket: impl AsFd) -> Option<u64> {
    /// Of asm-generic/socket.h, which most architectures have.
    const SO_NETNS_COOKIE: libc::c_int = 71;
    let mut value = 0_u64;
    let mut length = size_of_val(&value) as libc::socklen_t;
    // SAFETY: the pointers are to a number of the length that is said, and to the length.
    let done = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut value).cast(),
            &raw mut length,
        )
    };
    (done == 0 && length as usize == size_of_val(&value)).then_some(value)
}

/// The inodes of all Unix sockets in this process's network namespace that some process has open, also in a message
/// that nobody has received yet.
///
/// # Errors
///
/// Those of reading `/proc/net/unix`.
pub fn open_inodes() -> io::Result<HashSet<u64>> {
    let mut open = HashSet::new();
    let mut lines = BufReader::with_capacity(1 << 16, fs::File::open("/proc/net/unix")?);
    let mut line = Vec::new();
    // A name is any bytes but 0, also an end of line: what looks like a line then makes more sockets open.
    while lines.read_until(b'\n', &mut line)? > 0 {
        let mut fields = line
            .split(|byte| *byte == b' ')
            .filter(|field| !field.is_empty());
        // Num RefCount Protocol Flags Type St Inode Path
        let inode = fields
            .nth(6)
            .and_then(|field| std::str::from_utf8(field.trim_ascii()).ok());
        open.extend(inode.and_then(|inode| inode.parse::<u64>().ok()));
        line.clear();
    }
    Ok(open)
}

/// Whether the open file is in non-blocking mode.
///
/// # Errors
///
/// Those of `fcntl`.
pub fn is_nonblocking(socket: impl AsFd) -> io::Result<bool> {
    let flags = rustix::fs::fcntl_getfl(socket)?;
    Ok(flags.contains(OFlags::NONBLOCK))
}

/// How long a blocking `accept` waits (`SO_RCVTIMEO`). `None`: for ever.
///
/// # Errors
///
/// Those of `getsockopt`.
pub fn receive_timeout(socket: impl AsFd) -> io::Result<Option<Duration>> {
    Ok(sockopt::socket_timeout(socket, Timeout::Recv)?)
}

/// How long a blocking `connect` waits (`SO_SNDTIMEO`). `None`: for ever.
///
/// # Errors
///
/// Those of `getsockopt`.
pub fn send_timeout(socket: impl AsFd) -> io::Result<Option<Duration>> {
    Ok(sockopt::socket_timeout(socket, Timeout::Send)?)
}

/// Makes an unconnected socket not writable: connects it to the listening socket of which `listener` is a
/// descriptor (`O_PATH`), makes its send buffer small and writes `filler`. Returns the size that the buffer
/// had, for [`restore_send_buffer`].
///
/// # Errors
///
/// Those of `connect`, `setsockopt` and `send`; `WouldBlock` if not all of the filler fits.
pub fn connect_filled(socket: impl AsFd, listener: impl AsFd, filler: &[u8]) -> io::Result<usize> {
    let size = sockopt::socket_send_buffer_size(&socket)?;
    connect(&socket, listener)?;
    // The kernel raises it to its minimum.
    sockopt::set_socket_send_buffer_size(&socket, 1)?;
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    match super::retry(|| rustix::net::send(&socket, filler, flags))? {
        count if count == filler.len() => Ok(size),
        _ => Err(io::ErrorKind::WouldBlock.into()),
    }
}

/// Gives a socket the size of the send buffer that [`connect_filled`] has returned.
///
/// # Errors
///
/// Those of `setsockopt`.
pub fn restore_send_buffer(socket: impl AsFd, size: usize) -> io::Result<()> {
    // The kernel doubles what it is given, and reports the double.
    Ok(sockopt::set_socket_send_buffer_size(socket, size / 2)?)
}

/// Connects a socket to the listening one of which `listener` is a descriptor (`O_PATH`).
///
/// # Errors
///
/// Those of `connect`, such as `EISCONN`.
pub fn connect(socket: impl AsFd, listener: impl AsFd) -> io::Result<()> {
    let address = by_descriptor(listener)?;
    super::retry(|| rustix::net::connect(&socket, &address))
}

/// Whether the socket could be written to, or its other end is gone. `false` on an unconnected one that
/// [`connect_filled`] has filled.
///
/// # Errors
///
/// Those of `poll`.
pub fn is_writable(socket: impl AsFd) -> io::Result<bool> {
    let mut fds = [PollFd::new(&socket, PollFlags::OUT)];
    poll::wait(&mut fds, Some(std::time::Instant::now()))
}

fn by_descriptor(fd: impl AsFd) -> io::Result<SocketAddrUnix> {
    Ok(SocketAddrUnix::new(path_of(fd))?)
}

fn path_of(fd: impl AsFd) -> PathBuf {
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd()).into()
}

/// The private name of a bound socket: only the process that bound it can connect to it, or users with its
/// rights.
#[derive(Debug)]
pub struct Name(Kind);

#[derive(Debug)]
enum Kind {
    /// A file that has been unlinked.
    Unlinked {
        file: OwnedFd,
        /// Of another directory entry than the socket was bound by.
        is_other_link: bool,
    },
    /// A random name without a file, where no folder is writable.
    Abstract(Vec<u8>),
}

impl Name {
    /// Binds a socket to a new private name. It stays bound until all of its descriptors are closed.
    ///
    /// # Errors
    ///
    /// `EINVAL` if it is bound; those of `bind`.
    pub fn bind(socket: impl AsFd) -> io::Result<Self> {
        for folder in temporary::folders() {
            match bind_in(&socket, &folder) {
                Ok(kind) => return Ok(Self(kind)),
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return Err(error),
                // Not writable, full, missing, or too long a path.
                Err(_) => {}
            }
        }
        let name = temporary::random_name()?;
        rustix::net::bind(&socket, &SocketAddrUnix::new_abstract_name(&name)?)?;
        Ok(Self(Kind::Abstract(name)))
    }

    /// A path of the file, if the directory entry that the socket was bound by ends with the socket.
    pub(crate) fn watched_path(&self) -> Option<PathBuf> {
        match &self.0 {
            Kind::Unlinked {
                file,
                is_other_link: true,
            } => Some(path_of(file)),
            Kind::Unlinked { .. } | Kind::Abstract(_) => None,
        }
    }

    /// Whether the socket still exists: some process has a descriptor of it.
    ///
    /// # Errors
    ///
    /// Those of `socket` and `connect`.
    pub fn is_in_use(&self) -> io::Result<bool> {
        match &self.0 {
            Kind::Unlinked { file, .. } => {
                // A connect with the wrong type tells both cases apart and reaches nobody.
                let probe = socket(SocketType::DGRAM)?;
                match rustix::net::connect(&probe, &by_descriptor(file)?) {
                    Err(Errno::PROTOTYPE) => Ok(true),
                    Err(Errno::CONNREFUSED) => Ok(false),
                    Err(error) => Err(error.into()),
                    Ok(()) => Ok(true),
                }
            }
            Kind::Abstract(name) => {
                let probe = socket(SocketType::STREAM)?;
                match rustix::net::bind(&probe, &SocketAddrUnix::new_abstract_name(name)?) {
                    Err(Errno::ADDRINUSE) => Ok(true),
                    Err(error) => Err(error.into()),
                    Ok(()) => Ok(false),
                }
            }
        }
    }

    /// Puts a connection into the queue of the listening socket, so that it is readable. The other end is
    /// closed at once. Returns `false` if the queue is full.
    ///
    /// # Errors
    ///
    /// `ConnectionRefused` if the socket is gone or does not listen; those of `socket`.
    pub fn queue_token(&self) -> io::Result<bool> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let kind = SocketType::STREAM;
        let token = rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None)?;
        let address = match &self.0 {
            Kind::Unlinked { file, .. } => by_descriptor(file)?,
            Kind::Abstract(name) => SocketAddrUnix::new_abstract_name(name)?,
        };
        match rustix::net::connect(&token, &address) {
            Ok(()) => Ok(true),
            Err(Errno::AGAIN) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

/// Makes a bound socket listen, with the largest queue that the kernel permits.
///
/// # Errors
///
/// Those of `listen`.
pub fn listen(socket: impl AsFd) -> io::Result<()> {
    Ok(rustix::net::listen(socket, i32::MAX)?)
}

/// Takes one connection from the queue of a listening socket and closes it. Returns `false` if there is none.
///
/// # Errors
///
/// Those of `accept`.
pub fn take_token(socket: impl AsFd) -> io::Result<bool> {
    let mut fds = [PollFd::new(&socket, PollFlags::IN)];
    if !poll::wait(&mut fds, Some(std::time::Instant::now()))? {
        return Ok(false);
    }
    // The socket may be in blocking mode, and another process that has it may take the connection first. Nobody else
    // waits on it for longer meanwhile: that would be a call that its supervisor answers.
    let timeout = sockopt::socket_timeout(&socket, Timeout::Recv)?;
    sockopt::set_socket_timeout(&socket, Timeout::Recv, Some(SHORTEST))?;
    let accepted = rustix::net::accept_with(&socket, SocketFlags::CLOEXEC);
    sockopt::set_socket_timeout(&socket, Timeout::Recv, timeout)?;
    match accepted {
        Ok(token) => {
            drop(token);
            Ok(true)
        }
        Err(Errno::AGAIN | Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// The shortest timeout of a socket; 0 is none. The kernel rounds it up to a tick.
const SHORTEST: Duration = Duration::from_micros(1);

fn socket(kind: SocketType) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socket_with(
        AddressFamily::UNIX,
        kind,
        flags,
        None,
    )?)
}

/// Binds a socket in a new folder, and removes all names again.
fn bind_in(socket: impl AsFd, folder: &Path) -> io::Result<Kind> {
    temporary::with_folder(folder, |folder| {
        let (path, link) = (folder.join("s"), folder.join("l"));
        let bound = SocketAddrUnix::new(&path)
            .and_then(|address| rustix::net::bind(socket, &address))
            .and_then(|()| {
                // The socket alone has the entry that it was bound by, unless the file system has no links.
                let is_other_link = rustix::fs::link(&path, &link).is_ok();
                let path = if is_other_link { &link } else { &path };
                let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = rustix::fs::open(path, flags, Mode::empty())?;
                Ok(Kind::Unlinked {
                    file,
                    is_other_link,
                })
            });
        let _ = fs::remove_file(&path);
        let _ = fs::remove_file(&link);
        Ok(bound?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream;

    fn writable(socket: &OwnedFd) -> bool {
        is_writable(socket).unwrap()
    }

    #[test]
    fn a_filled_socket_is_writable_once_the_filler_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = stream::listen(&path, 0o600, None, 1).unwrap();
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let file = rustix::fs::open(&path, flags, Mode::empty()).unwrap();
        let socket = create(false).unwrap();
        let size = connect_filled(&socket, &file, &[0; 1024]).unwrap();
        assert!(!writable(&socket));
        let other = stream::accept(&listener).unwrap().unwrap();
        let mut buffer = [1; 2000];
        assert_eq!(stream::recv(&other, &mut buffer).unwrap(), 1024);
        assert!(writable(&socket));
        restore_send_buffer(&socket, size).unwrap();
        let restored = sockopt::socket_send_buffer_size(&socket).unwrap();
        assert_eq!(restored, size);
        assert!(!is_nonblocking(&socket).unwrap());
    }

    #[test]
    fn a_socket_is_listed_until_its_last_descriptor_is_closed_also_one_in_a_message() {
        let socket = create(false).unwrap();
        let number = inode(&socket).unwrap();
        let is_open = || open_inodes().unwrap().contains(&number);
        assert!(is_open());
        let (sender, receiver) = stream::pair().unwrap();
        stream::send_with_descriptor(&sender, b"x", socket.as_fd()).unwrap();
        drop(socket);
        assert!(is_open());
        let (_, received) = stream::recv_with_descriptor(&receiver, &mut [0]).unwrap();
        assert!(received.is_some() && is_open());
        drop(received);
        assert!(!is_open());
    }

    #[test]
    fn sockets_of_one_network_namespace_have_its_number() {
        let (one, other) = stream::pair().unwrap();
        assert_eq!(namespace(&one), namespace(&other));
        assert_eq!(namespace(fs::File::open("/dev/null").unwrap()), None);
        let moved = std::thread::spawn(|| {
            // SAFETY: it concerns this thread, which ends.
            let done = unsafe { libc::unshare(libc::CLONE_NEWNET) };
            (done == 0).then(|| {
                (
                    namespace(create(false).unwrap()),
                    open_inodes().unwrap().len(),
                )
            })
        });
        // Not as a user who may not make namespaces.
        if let Some((number, _)) = moved.join().unwrap() {
            assert_ne!(number, namespace(&one));
        }
    }

    fn check_tokens(name: &Name, socket: OwnedFd) {
        assert!(name.is_in_use().unwrap());
        let refused = name.queue_token().unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        listen(&socket).unwrap();
        assert!(!take_token(&socket).unwrap());
        assert!(name.queue_token().unwrap());
        assert!(name.queue_token().unwrap());
        assert!(name.is_in_use().unwrap());
        assert!(take_token(&socket).unwrap());
        assert!(take_token(&socket).unwrap());
        assert!(!take_token(&socket).unwrap());
        let copy = socket.try_clone().unwrap();
        drop(socket);
        assert!(name.is_in_use().unwrap());
        drop(copy);
        assert!(!name.is_in_use().unwrap());
        let refused = name.queue_token().unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    }

    #[test]
    fn a_connection_that_another_process_takes_first_is_not_waited_for() {
        use std::sync::atomic::{AtomicBool, Ordering};

        let socket = create(false).unwrap();
        let name = Name::bind(&socket).unwrap();
        listen(&socket).unwrap();
        let timeout = Some(Duration::from_secs(60));
        sockopt::set_socket_timeout(&socket, Timeout::Recv, timeout).unwrap();
        let is_done = AtomicBool::new(false);
        let (ended, ends) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            // What a program could do by calls that no filter stops.
            scope.spawn(|| {
                while !is_done.load(Ordering::Relaxed) {
                    let mut fds = [PollFd::new(&socket, PollFlags::IN)];
                    let deadline = std::time::Instant::now() + Duration::from_millis(1);
                    if poll::wait(&mut fds, Some(deadline)).unwrap() {
                        let _ = rustix::net::accept_with(&socket, SocketFlags::CLOEXEC);
                    }
                }
            });
            scope.spawn(|| {
                for _ in 0..2000 {
                    name.queue_token().unwrap();
                    take_token(&socket).unwrap();
                }
                ended.send(()).unwrap();
            });
            let took_all = ends.recv_timeout(Duration::from_secs(15));
            is_done.store(true, Ordering::Relaxed);
            // Lets a thread that waits for a connection end.
            for _ in 0..2000 {
                let _ = name.queue_token();
            }
            took_all.expect("no call waits");
        });
        let now = sockopt::socket_timeout(&socket, Timeout::Recv).unwrap();
        assert_eq!(now, timeout);
    }

    #[test]
    fn a_private_name_tells_whether_its_socket_is_open() {
        let socket = create(true).unwrap();
        let name = Name::bind(&socket).unwrap();
        assert!(Name::bind(&socket).is_err());
        check_tokens(&name, socket);
    }

    #[test]
    fn a_name_without_a_folder_serves_as_well() {
        let socket = create(true).unwrap();
        let random = temporary::random_name().unwrap();
        let address = SocketAddrUnix::new_abstract_name(&random).unwrap();
        rustix::net::bind(&socket, &address).unwrap();
        check_tokens(&Name(Kind::Abstract(random)), socket);
    }

    #[test]
    fn nothing_remains_in_the_folder_of_a_name() {
        let dir = tempfile::tempdir().unwrap();
        let socket = create(true).unwrap();
        let _file = bind_in(&socket, dir.path()).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
