//! Taking the file system, and more, from the calling thread (Landlock).
//!
//! Only the whole is offered: a thread under [`deny_all`] opens, makes, removes and executes no file, by any path.
//! What it has open it keeps. Neither can it look at a process outside (`ptrace`, most of `/proc/PID`) or mount anything;
//! and since Linux 6.7 it binds and connects no TCP socket, since Linux 6.12 it connects to no abstract Unix socket and
//! sends no signal outside. See landlock(7).

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

/// `LANDLOCK_CREATE_RULESET_VERSION` of linux/landlock.h.
const VERSION: u32 = 1;
/// The rights on files of each version of the interface: how many, from the lowest bit.
const FILE_RIGHTS: [(u32, u32); 4] = [(5, 16), (3, 15), (2, 14), (1, 13)];
/// `LANDLOCK_ACCESS_NET_BIND_TCP` and `_CONNECT_TCP`, since version 4.
const NET: u64 = 0b11;
/// `LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET` and `_SIGNAL`, since version 6.
const SCOPES: u64 = 0b11;

/// `struct landlock_ruleset_attr`.
#[repr(C)]
struct Ruleset {
    files: u64,
    net: u64,
    scopes: u64,
}

/// The version of the kernel's interface; `None` if it has none, or does not use it.
#[must_use]
pub fn version() -> Option<u32> {
    let none = std::ptr::null::<Ruleset>();
    // SAFETY: with this flag the kernel reads no memory.
    let version = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, none, 0, VERSION) };
    u32::try_from(version).ok().filter(|version| *version > 0)
}

/// What can be denied with a version of the interface, and the size of the structure that says so.
fn everything(version: u32) -> (Ruleset, usize) {
    let files = FILE_RIGHTS.iter().find(|(since, _)| version >= *since);
    let files = (1 << files.map_or(0, |(_, count)| *count)) - 1;
    let (net, scopes) = (
        u64::from(version >= 4) * NET,
        u64::from(version >= 6) * SCOPES,
    );
    let size = match version {
        ..4 => 8,
        4 | 5 => 16,
        _ => 24,
    };
    (Ruleset { files, net, scopes }, size)
}

/// Takes everything from this thread, for good. The threads and processes that it starts from then on have nothing
/// either; the other threads of this process are as before. Returns the version of the interface: the older, the less it
/// denies. The thread must have [no new privileges](super::seccomp::no_new_privileges).
///
/// # Errors
///
/// `Unsupported` if the kernel has no Landlock or does not use it; those of `landlock_restrict_self`: `E2BIG` if the
/// thread is under 16 already.
pub fn deny_all() -> io::Result<u32> {
    let version = version().ok_or(io::ErrorKind::Unsupported)?;
    let (ruleset, size) = everything(version);
    // SAFETY: the structure is valid for the call, and has at least that size.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            &raw const ruleset,
            size,
            0_u32,
        )
    };
    let Ok(fd @ 0..) = i32::try_from(fd) else {
        return Err(io::Error::last_os_error());
    };
    // SAFETY: it is a new descriptor that nobody else has.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: no memory is involved.
    let done = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, fd.as_raw_fd(), 0_u32) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(version)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn each_version_of_the_interface_is_asked_for_what_it_knows() {
        let of = |version| {
            let (ruleset, size) = everything(version);
            (
                ruleset.files.count_ones(),
                ruleset.net,
                ruleset.scopes,
                size,
            )
        };
        assert_eq!(of(1), (13, 0, 0, 8));
        assert_eq!(of(2), (14, 0, 0, 8));
        assert_eq!(of(3), (15, 0, 0, 8));
        assert_eq!(of(4), (15, 3, 0, 16));
        assert_eq!(of(5), (16, 3, 0, 16));
        assert_eq!(of(6), (16, 3, 3, 24));
        assert_eq!(of(99), (16, 3, 3, 24));
    }

    #[test]
    fn a_thread_without_anything_reaches_no_file_and_keeps_what_it_has_open() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "content").unwrap();
        let open = std::fs::File::open(&file).unwrap();
        let tcp = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let tcp = tcp.local_addr().unwrap();
        let path = file.clone();
        let confined = move || {
            super::super::seccomp::no_new_privileges().unwrap();
            let version = match deny_all() {
                Ok(version) => version,
                // Not every kernel has it.
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::Unsupported);
                    return;
                }
            };
            let denied = |error: io::Error| error.kind() == io::ErrorKind::PermissionDenied;
            assert!(std::fs::File::open(&path).is_err_and(denied));
            assert!(std::fs::write(path.with_extension("new"), "").is_err_and(denied));
            assert!(std::fs::remove_file(&path).is_err_and(denied));
            assert!(
                std::process::Command::new("/bin/true")
                    .spawn()
                    .is_err_and(denied)
            );
            assert_eq!(io::read_to_string(open).unwrap(), "content");
            if version >= 4 {
                assert!(TcpStream::connect(tcp).is_err_and(denied));
            }
        };
        std::thread::spawn(confined).join().unwrap();
        // This thread is as before.
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "content");
    }
}
