//! Another process's memory, descriptors and state, for a supervisor that answers its system calls.
//!
//! The kernel asks for the rights of ptrace (`PTRACE_MODE_ATTACH_REALCREDS`): the same user, a dumpable
//! process, and what Yama and outer filters allow; or `CAP_SYS_PTRACE`. A number of a thread may be that of
//! another as soon as the thread has ended, so the caller checks afterwards that it had not.

use std::fs;
use std::io::{self, Read as _};
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::fs::FileExt as _;

use rustix::process::{Pid, PidfdFlags};

/// A thread, by its number in this process's PID namespace; 0 if it has none there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ThreadId(libc::pid_t);

/// What a thread is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ThreadState {
    /// It waits, and a signal would interrupt the wait (`S`).
    Sleeping,
    /// It waits, and nothing but the event or a kill ends the wait (`D`). A thread that waits for the answer to
    /// a notification is in this state once a signal is pending for it.
    Uninterruptible,
    /// It runs, is stopped, or is traced.
    Other,
    /// It has ended.
    Gone,
}

/// The rights of a thread, as numbers of this process's user namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// The effective user id.
    pub user: u32,
    /// The effective group id.
    pub group: u32,
    /// The supplementary groups.
    pub groups: Vec<u32>,
}

/// The most that is read of a file of `/proc`: a line of 65536 groups fits.
const MAX_STATUS: u64 = 1024 * 1024;

/// `PIDFD_THREAD` of linux/pidfd.h, since Linux 6.9.
const PIDFD_THREAD: u32 = libc::O_EXCL as u32;

impl ThreadId {
    /// The thread with a number. A process's number is that of its first thread.
    #[must_use]
    pub fn new(number: u32) -> Self {
        Self::from_kernel(number)
    }

    /// 0 for a number that no thread can have.
    pub(super) fn from_kernel(number: u32) -> Self {
        Self(libc::pid_t::try_from(number).unwrap_or(0))
    }

    /// The number.
    #[must_use]
    pub fn number(self) -> u32 {
        self.0.unsigned_abs()
    }

    fn pid(self) -> io::Result<Pid> {
        Pid::from_raw(self.0).ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))
    }
}

/// Fills `buffer` with the thread's memory at `address`.
///
/// # Errors
///
/// `EFAULT` if not all of it is readable; `ESRCH` if the thread has ended; `EPERM` without the rights of ptrace.
pub fn read_memory(thread: ThreadId, address: u64, buffer: &mut [u8]) -> io::Result<()> {
    let local = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    let remote = remote_part(address, buffer.len())?;
    let pid = thread.pid()?.as_raw_nonzero().get();
    // SAFETY: the local part is memory that may be written to.
    let count =
        unsafe { libc::process_vm_readv(pid, &raw const local, 1, &raw const remote, 1, 0) };
    complete(count, buffer.len())
}

/// The memory of a thread. It never stands for that of another thread that gets the number later, so a supervisor
/// opens it, then checks that the call still waits, and may write from then on.
#[derive(Debug)]
pub struct Memory(fs::File);

impl Memory {
    /// Opens it.
    ///
    /// # Errors
    ///
    /// `ESRCH` if the thread has ended; `EACCES` without the rights of ptrace.
    pub fn open(thread: ThreadId) -> io::Result<Self> {
        let path = format!("/proc/{}/mem", thread.number());
        let opened = fs::OpenOptions::new().read(true).write(true).open(path);
        opened.map(Self).map_err(|error| match is_gone(&error) {
            true => io::Error::from_raw_os_error(libc::ESRCH),
            false => error,
        })
    }

    /// Fills `buffer` with the memory at `address`.
    ///
    /// # Errors
    ///
    /// `EFAULT` if not all of it is readable, or the thread has ended.
    pub fn read(&self, address: u64, buffer: &mut [u8]) -> io::Result<()> {
        let read = self.0.read_at(buffer, address);
        all_or_fault(&read, buffer.len())
    }

    /// Writes `bytes` at `address`. As for a debugger, memory that is private and read-only for the program can be written.
    ///
    /// # Errors
    ///
    /// `EFAULT` if not all of it is writable, or the thread has ended. A part may have been written.
    pub fn write(&self, address: u64, bytes: &[u8]) -> io::Result<()> {
        all_or_fault(&self.0.write_at(bytes, address), bytes.len())
    }
}

fn all_or_fault(done: &io::Result<usize>, length: usize) -> io::Result<()> {
    match done {
        Ok(count) if *count == length => Ok(()),
        // The file has no position for the upper half of the addresses, and fails in the gaps of the lower one.
        _ => Err(io::Error::from_raw_os_error(libc::EFAULT)),
    }
}

fn remote_part(address: u64, length: usize) -> io::Result<libc::iovec> {
    let fault = || io::Error::from_raw_os_error(libc::EFAULT);
    let address = usize::try_from(address).map_err(|_| fault())?;
    Ok(libc::iovec {
        iov_base: std::ptr::without_provenance_mut(address),
        iov_len: length,
    })
}

fn complete(count: libc::ssize_t, length: usize) -> io::Result<()> {
    match usize::try_from(count) {
        Ok(count) if count == length => Ok(()),
        Ok(_) => Err(io::Error::from_raw_os_error(libc::EFAULT)),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

/// A descriptor of a thread (pidfd), for [`duplicate_fd`]. Before Linux 6.9 it is that of the thread's
/// process, whose descriptors are the thread's unless it has unshared them.
///
/// # Errors
///
/// `ESRCH` if it has ended; those of `pidfd_open`.
pub fn open_thread(thread: ThreadId) -> io::Result<OwnedFd> {
    if let Some(opened) = open_one_thread(thread)? {
        return Ok(opened);
    }
    let group = thread_group(thread)?.pid()?;
    Ok(rustix::process::pidfd_open(group, PidfdFlags::empty())?)
}

/// As [`open_thread`], but always that of the thread itself: it never stands for another one that gets the
/// number later. `None` before Linux 6.9.
///
/// # Errors
///
/// As [`open_thread`].
pub fn open_one_thread(thread: ThreadId) -> io::Result<Option<OwnedFd>> {
    let flags = PidfdFlags::from_bits_retain(PIDFD_THREAD);
    match rustix::process::pidfd_open(thread.pid()?, flags) {
        Err(rustix::io::Errno::INVAL) => Ok(None),
        opened => Ok(Some(opened?)),
    }
}

/// Duplicates a descriptor of another process into this one, close-on-exec.
///
/// # Errors
///
/// `EBADF` if that process has no such descriptor; `ESRCH` if it has ended; `EPERM` without the rights of ptrace, or if
/// an outer filter denies the call.
pub fn duplicate_fd(process: BorrowedFd<'_>, fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: numbers only.
    let copy = unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), fd, 0) };
    match RawFd::try_from(copy) {
        // SAFETY: it is a new descriptor that nobody else has.
        Ok(copy @ 0..) => Ok(unsafe { OwnedFd::from_raw_fd(copy) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// What the thread is doing.
///
/// # Errors
///
/// Those of reading `/proc`, other than that it has ended.
pub fn thread_state(thread: ThreadId) -> io::Result<ThreadState> {
    let stat = match read_proc(thread, "stat") {
        Ok(stat) => stat,
        Err(error) if is_gone(&error) => return Ok(ThreadState::Gone),
        Err(error) => return Err(error),
    };
    state_in(&stat).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// The first thread of the thread's process.
///
/// # Errors
///
/// `ESRCH` if it has ended; those of reading `/proc`.
pub fn thread_group(thread: ThreadId) -> io::Result<ThreadId> {
    let status = status(thread)?;
    let number = field(&status, "Tgid:").and_then(|value| value.trim().parse().ok());
    let number = number.ok_or(io::ErrorKind::InvalidData)?;
    Ok(ThreadId::new(number))
}

/// The thread's effective rights.
///
/// # Errors
///
/// `ESRCH` if it has ended; those of reading `/proc`.
pub fn credentials(thread: ThreadId) -> io::Result<Credentials> {
    credentials_in(&status(thread)?).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// The rights of one thread, to be read several times. It never stands for another one that gets the number
/// later.
#[derive(Debug)]
pub struct CredentialsFile(fs::File);

impl CredentialsFile {
    /// Opens it.
    ///
    /// # Errors
    ///
    /// As [`credentials`].
    pub fn open(thread: ThreadId) -> io::Result<Self> {
        let opened = fs::File::open(format!("/proc/{}/status", thread.number()));
        opened.map(Self).map_err(|error| match is_gone(&error) {
            true => io::Error::from_raw_os_error(libc::ESRCH),
            false => error,
        })
    }

    /// The thread's effective rights now.
    ///
    /// # Errors
    ///
    /// As [`credentials`].
    pub fn read(&self) -> io::Result<Credentials> {
        let mut content = vec![0; 4096];
        loop {
            let len = self.0.read_at(&mut content, 0)?;
            // What is longer has many groups.
            if len < content.len() {
                let status = String::from_utf8_lossy(&content[..len]);
                return credentials_in(&status).ok_or_else(|| io::ErrorKind::InvalidData.into());
            }
            if content.len() as u64 >= MAX_STATUS {
                return Err(io::ErrorKind::InvalidData.into());
            }
            content.resize(content.len() * 4, 0);
        }
    }
}

/// Whether the thread has a capability (`CAP_*` of linux/capability.h) in its own user namespace, effectively.
///
/// # Errors
///
/// `ESRCH` if it has ended; those of reading `/proc`.
pub fn has_capability(thread: ThreadId, capability: u8) -> io::Result<bool> {
    let status = status(thread)?;
    let mask =
        field(&status, "CapEff:").and_then(|value| u64::from_str_radix(value.trim(), 16).ok());
    let mask = mask.ok_or(io::ErrorKind::InvalidData)?;
    Ok(capability < 64 && mask >> capability & 1 == 1)
}

fn status(thread: ThreadId) -> io::Result<String> {
    match read_proc(thread, "status") {
        Ok(status) => Ok(String::from_utf8_lossy(&status).into_owned()),
        Err(error) if is_gone(&error) => Err(io::Error::from_raw_os_error(libc::ESRCH)),
        Err(error) => Err(error),
    }
}

fn read_proc(thread: ThreadId, name: &str) -> io::Result<Vec<u8>> {
    // A thread has its entry although it is not listed.
    let file = fs::File::open(format!("/proc/{}/{name}", thread.number()))?;
    // Most fit, and are read at once.
    let mut content = Vec::with_capacity(4096);
    file.take(MAX_STATUS).read_to_end(&mut content)?;
    Ok(content)
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

/// The state in `7 (name) S 1 …`. The name may contain anything.
fn state_in(stat: &[u8]) -> Option<ThreadState> {
    let end = stat.iter().rposition(|byte| *byte == b')')?;
    match stat.get(end + 1..)? {
        [b' ', b'S', ..] => Some(ThreadState::Sleeping),
        [b' ', b'D', ..] => Some(ThreadState::Uninterruptible),
        [b' ', b'Z' | b'X' | b'x', ..] => Some(ThreadState::Gone),
        [b' ', b'A'..=b'Z' | b'a'..=b'z', ..] => Some(ThreadState::Other),
        _ => None,
    }
}

/// The value of a field of `/proc/PID/status`. The first field is the name, in which newlines are escaped.
fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name))
}

fn credentials_in(status: &str) -> Option<Credentials> {
    // Real, effective, saved, file system.
    let effective = |name| {
        let mut ids = field(status, name)?.split_ascii_whitespace();
        ids.nth(1)?.parse().ok()
    };
    let groups = field(status, "Groups:")?.split_ascii_whitespace();
    Some(Credentials {
        user: effective("Uid:")?,
        group: effective("Gid:")?,
        groups: groups.map(|id| id.parse().ok()).collect::<Option<_>>()?,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt as _;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn the_state_of_a_thread_is_found_behind_any_name() {
        let state =
            |letter: &str, name: &str| state_in(format!("7 ({name}) {letter} 1").as_bytes());
        for name in ["cat", "a) D 1", "(", "", "a b\n"] {
            assert_eq!(state("S", name), Some(ThreadState::Sleeping), "{name}");
            assert_eq!(state("D", name), Some(ThreadState::Uninterruptible));
            assert_eq!(state("Z", name), Some(ThreadState::Gone));
            for other in ["R", "T", "t", "I", "P"] {
                assert_eq!(state(other, name), Some(ThreadState::Other), "{other}");
            }
        }
        for odd in [&b""[..], b"7 (cat", b"7 (cat)", b"7 (cat) ", b"7 (cat) 7"] {
            assert_eq!(state_in(odd), None);
        }
    }

    #[test]
    fn the_rights_are_the_effective_ones() {
        let status = "Name:\tUid:\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nGroups:\t9 10 \n";
        let rights = credentials_in(status).unwrap();
        assert_eq!((rights.user, rights.group), (2, 6));
        assert_eq!(rights.groups, [9, 10]);
        assert!(credentials_in("Uid:\t1\nGid:\t1\t1\nGroups:\n").is_none());
        assert!(credentials_in("").is_none());
        let own = credentials(ThreadId::new(std::process::id())).unwrap();
        assert_eq!(own.user, rustix::process::geteuid().as_raw());
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let mut command = Command::new("cat");
        command.uid(4711).gid(4712).stdin(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let rights = credentials(ThreadId::new(child.id())).unwrap();
        assert_eq!((rights.user, rights.group), (4711, 4712));
        assert!(rights.groups.is_empty());
        let file = CredentialsFile::open(ThreadId::new(child.id())).unwrap();
        assert_eq!(file.read().unwrap(), rights);
        drop(child.stdin.take());
        child.wait().unwrap();
        let error = file.read().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ESRCH));
    }

    #[test]
    fn a_number_that_no_thread_has_is_gone() {
        for number in [0, u32::MAX, i32::MAX as u32] {
            let thread = ThreadId::new(number);
            let gone = [
                read_memory(thread, 0, &mut [0]).map(drop),
                Memory::open(thread).map(drop),
                open_thread(thread).map(drop),
                thread_group(thread).map(drop),
                credentials(thread).map(drop),
            ];
            for result in gone {
                let number = result.unwrap_err().raw_os_error();
                assert_eq!(number, Some(libc::ESRCH), "{thread:?}");
            }
            assert_eq!(thread_state(thread).unwrap(), ThreadState::Gone);
        }
    }
}
