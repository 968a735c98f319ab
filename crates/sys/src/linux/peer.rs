//! Credentials of the process at the other end of a Unix socket, as the kernel recorded them at connect.

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, StatxFlags};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags};

/// `SO_PEERPIDFD`, since Linux 6.5 (`include/uapi/asm-generic/socket.h`).
const SO_PEERPIDFD: i32 = 77;

/// Credentials of the peer process at the time of its connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// Process id; `None` if it has none in this process's PID namespace.
    pub pid: Option<u32>,
    /// Effective user id.
    pub uid: u32,
    /// Effective group id.
    pub gid: u32,
}

/// Reads the credentials of the peer process (`SO_PEERCRED`).
///
/// # Errors
///
/// Those of `getsockopt`, such as `ENOTSOCK`; `InvalidData` if the kernel returns another structure.
pub fn credentials(socket: impl AsFd) -> io::Result<Credentials> {
    // rustix's version cannot represent pid 0, which the kernel returns across PID namespaces.
    let mut ucred = [MaybeUninit::<libc::ucred>::uninit()];
    let len = get(socket.as_fd(), libc::SO_PEERCRED, &mut ucred)?;
    if len != size_of::<libc::ucred>() {
        return Err(io::ErrorKind::InvalidData.into());
    }
    // SAFETY: the kernel wrote all of it, and it consists of integers.
    let ucred = unsafe { ucred[0].assume_init() };
    Ok(Credentials {
        pid: u32::try_from(ucred.pid).ok().filter(|pid| *pid != 0),
        uid: ucred.uid,
        gid: ucred.gid,
    })
}

/// Reads the supplementary groups of the peer process (`SO_PEERGROUPS`). Its primary group is in
/// [`Credentials`].
///
/// # Errors
///
/// Those of `getsockopt`, such as `ENOTSOCK`.
pub fn groups(socket: impl AsFd) -> io::Result<Vec<u32>> {
    /// `NGROUPS_MAX` of Linux.
    const MAX: usize = 65_536;
    let mut groups = vec![MaybeUninit::<u32>::uninit(); 32];
    loop {
        match get(socket.as_fd(), libc::SO_PEERGROUPS, &mut groups) {
            Ok(len) => {
                let known = groups.iter().take(len / size_of::<u32>());
                // SAFETY: the kernel wrote the first `len` bytes.
                return Ok(known.map(|group| unsafe { group.assume_init() }).collect());
            }
            Err(error) if error.raw_os_error() == Some(libc::ERANGE) && groups.len() < MAX => {
                groups.resize(MAX, MaybeUninit::uninit());
            }
            Err(error) => return Err(error),
        }
    }
}

/// Whether the peer process finds at the absolute `path`, in its own mount namespace and root folder, the very file that
/// `file` is open for. `false` if that cannot be said for certain, as before Linux 6.5 or once the process has ended.
///
/// It waits for no file system: the process may have mounted one of its own, which never answers. So only names that the
/// kernel has in its cache are found, as those of a file that was just opened are.
pub fn finds_at(socket: impl AsFd, path: &Path, file: impl AsFd) -> bool {
    let check = || -> io::Result<bool> {
        let mut fd = [MaybeUninit::<i32>::uninit()];
        // The number alone may be another process's by now.
        get(socket.as_fd(), SO_PEERPIDFD, &mut fd)?;
        // SAFETY: the kernel has written a new descriptor, which nobody else owns.
        let process = unsafe { OwnedFd::from_raw_fd(fd[0].assume_init()) };
        let process = super::pidfd::Process::from_descriptor(process)?;
        let Some(id) = process.id()? else {
            return Ok(false);
        };
        let root = rustix::fs::open(
            format!("/proc/{}/root", id.pid),
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        let finds = same_file(&open_cached(&root, path)?, file.as_fd())?;
        // What was read is that process's, if it has not ended meanwhile.
        Ok(finds && !process.has_ended()?)
    };
    check().unwrap_or(false)
}

/// Opens (`O_PATH`) the file at a path below a root folder, by names in the kernel's cache only.
fn open_cached(root: impl AsFd, path: &Path) -> io::Result<OwnedFd> {
    /// A rename or mount anywhere in the system makes a lookup in the cache fail, so those that follow on each other may
    /// all fail.
    const TRIES: u32 = 32;
    const AT_ONCE: u32 = 8;
    const PAUSE: Duration = Duration::from_micros(100);
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::CACHED;
    let open = || rustix::fs::openat2(&root, path, flags, Mode::empty(), resolve);
    let mut found = open();
    for tries in 1..TRIES {
        if found.as_ref().err() != Some(&Errno::AGAIN) {
            break;
        }
        if tries >= AT_ONCE {
            std::thread::sleep(PAUSE);
        }
        found = open();
    }
    Ok(found?)
}

fn same_file(a: impl AsFd, b: impl AsFd) -> io::Result<bool> {
    let id = |fd: BorrowedFd<'_>| -> io::Result<_> {
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
        let stat = rustix::fs::statx(fd, "", flags, StatxFlags::INO)?;
        Ok((stat.stx_dev_major, stat.stx_dev_minor, stat.stx_ino))
    };
    Ok(id(a.as_fd())? == id(b.as_fd())?)
}

/// A descriptor of the peer process (a pidfd), which is readable once the process has ended. It is the process
/// that connected or called `listen`.
///
/// # Errors
///
/// `InvalidData` if the process has ended, or has no number here and the system is older than Linux 6.5;
/// those of `pidfd_open`.
#[doc(alias = "pidfd")]
pub fn process(socket: impl AsFd) -> io::Result<OwnedFd> {
    let mut fd = [MaybeUninit::<i32>::uninit()];
    match get(socket.as_fd(), SO_PEERPIDFD, &mut fd) {
        Ok(len) if len == size_of::<i32>() => {
            // SAFETY: the kernel wrote it, and it is a new descriptor that nobody else has.
            Ok(unsafe { OwnedFd::from_raw_fd(fd[0].assume_init()) })
        }
        Ok(_) => Err(io::ErrorKind::InvalidData.into()),
        Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => {
            let pid = credentials(socket)?.pid;
            let pid = pid.and_then(|pid| i32::try_from(pid).ok());
            let pid = pid.and_then(Pid::from_raw);
            let pid = pid.ok_or(io::ErrorKind::InvalidData)?;
            Ok(rustix::process::pidfd_open(pid, PidfdFlags::empty())?)
        }
        Err(error) => Err(error),
    }
}

/// Reads a socket option into `values`. Returns its length in bytes.
pub(super) fn get<T: Copy>(
    socket: BorrowedFd<'_>,
    option: i32,
    values: &mut [MaybeUninit<T>],
) -> io::Result<usize> {
    let mut len = libc::socklen_t::try_from(size_of_val(values))
        .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    // SAFETY: the kernel writes at most `len` bytes to `values`, which has that many, and the
    // number of bytes written to `len`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            values.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    if result == 0 {
        Ok((len as usize).min(size_of_val(values)))
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_those_of_the_peer_process() {
        let (a, _b) = crate::seqpacket::pair().unwrap();
        let peer = credentials(&a).unwrap();
        assert_eq!(peer.pid, Some(std::process::id()));
        assert_eq!(peer.uid, rustix::process::geteuid().as_raw());
        assert_eq!(peer.gid, rustix::process::getegid().as_raw());
    }

    #[test]
    fn groups_are_those_of_the_peer_process() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = crate::seqpacket::listen(&path, 0o600, 1).unwrap();
        let _client = crate::seqpacket::connect(&path, Duration::ZERO).unwrap();
        let socket = crate::seqpacket::accept(&listener).unwrap().unwrap();
        let mut got = groups(&socket).unwrap();
        let own = rustix::process::getgroups().unwrap();
        let mut own: Vec<u32> = own.iter().map(|group| group.as_raw()).collect();
        got.sort_unstable();
        own.sort_unstable();
        assert_eq!(got, own);
    }

    /// Where [`a_peer_elsewhere`] connects.
    const CONNECT_TO: &str = "HVSOCK_TEST_PEER";

    /// The peer of [`a_path_means_the_same_if_the_peer_finds_the_same_file_there`], in a process of its own.
    #[test]
    fn a_peer_elsewhere() {
        let Some(path) = std::env::var_os(CONNECT_TO) else {
            return;
        };
        let socket = crate::seqpacket::connect(Path::new(&path), Duration::ZERO).unwrap();
        // Until the test has looked.
        let _ = rustix::io::read(&socket, &mut [0; 1]);
    }

    #[test]
    fn a_path_means_the_same_if_the_peer_finds_the_same_file_there() {
        let dir = tempfile::tempdir().unwrap();
        let (seen, hidden) = (dir.path().join("seen"), dir.path().join("hidden"));
        std::fs::create_dir(&hidden).unwrap();
        let hidden_file = hidden.join("file");
        std::fs::write(&seen, "").unwrap();
        std::fs::write(&hidden_file, "").unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&seen, &link).unwrap();
        let path = dir.path().join("s");
        let listener = crate::seqpacket::listen(&path, 0o600, 1).unwrap();
        let exe = std::env::current_exe().unwrap();
        let script = format!(
            "mount -t tmpfs none {} && exec \"$0\" --exact linux::peer::tests::a_peer_elsewhere",
            hidden.display()
        );
        let mut command = std::process::Command::new("unshare");
        command.args(["--mount", "sh", "-c", &script]).arg(exe);
        command
            .env(CONNECT_TO, &path)
            .stdout(std::process::Stdio::null());
        let Ok(mut child) = command.spawn() else {
            return;
        };
        let socket = loop {
            if let Some(socket) = crate::seqpacket::accept(&listener).unwrap() {
                break socket;
            }
            // Not every user may make a mount namespace.
            if child.try_wait().unwrap().is_some() {
                return;
            }
            let soon = std::time::Instant::now() + Duration::from_millis(10);
            let fd = crate::poll::PollFd::new(&listener, crate::poll::PollFlags::IN);
            crate::poll::wait(&mut [fd], Some(soon)).unwrap();
        };
        let file = std::fs::File::open(&seen).unwrap();
        let is_new = process(&socket).is_ok() && {
            let mut fd = [MaybeUninit::<i32>::uninit()];
            let known = get(socket.as_fd(), SO_PEERPIDFD, &mut fd).is_ok();
            if known {
                // SAFETY: the kernel has written a new descriptor, which nobody else owns.
                drop(unsafe { OwnedFd::from_raw_fd(fd[0].assume_init()) });
            }
            known
        };
        // Linux 6.5
        if is_new {
            assert!(finds_at(&socket, &seen, &file));
            // A file at another path, none, and a link: not that file.
            assert!(!finds_at(&socket, &hidden, &file));
            assert!(!finds_at(&socket, &dir.path().join("none"), &file));
            assert!(!finds_at(&socket, &link, &file));
            // Something is mounted over it there.
            let file = std::fs::File::open(&hidden_file).unwrap();
            assert!(!finds_at(&socket, &hidden_file, &file));
        }
        drop(socket);
        child.wait().unwrap();
    }

    #[test]
    fn a_file_has_no_peer() {
        let file = tempfile::tempfile().unwrap();
        assert!(credentials(&file).is_err());
        assert!(groups(&file).is_err());
    }
}
