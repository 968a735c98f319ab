//! Processes by descriptor (pidfd), and their identity across the life of this process.
//!
//! A number may be that of another process as soon as the process has been waited for. A pidfd is always
//! that of one process, also in a process of another PID namespace that it was passed to.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags};

/// A process, which may have ended.
#[derive(Debug)]
pub struct Process(OwnedFd);

/// Which process it is or was, among all since the system started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ProcessId {
    /// Its number in this process's PID namespace.
    pub pid: u32,
    /// Its start in clock ticks since the system started (proc_pid_stat(5), field 22).
    pub started: u64,
}

impl Process {
    /// The process with this number in this process's PID namespace.
    ///
    /// # Errors
    ///
    /// `ESRCH` if there is none; `EINVAL` if it is a thread of a process; those of `pidfd_open`.
    pub fn open(pid: u32) -> io::Result<Self> {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or(io::ErrorKind::InvalidInput)?;
        let fd = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
        Ok(Self(fd))
    }

    /// The process that `found` was, if it has not ended.
    ///
    /// # Errors
    ///
    /// Those of `pidfd_open` and of reading `/proc`, other than that it is gone.
    pub fn find(found: ProcessId) -> io::Result<Option<Self>> {
        let process = match Self::open(found.pid) {
            Ok(process) => process,
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return Ok(None),
            Err(error) => return Err(error),
        };
        let is_it = process.id()? == Some(found);
        Ok(is_it.then_some(process))
    }

    /// The process of a descriptor from elsewhere.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if it is no pidfd.
    pub fn from_descriptor(descriptor: OwnedFd) -> io::Result<Self> {
        let process = Self(descriptor);
        match process.pid_field()? {
            Some(_) => Ok(process),
            None => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    /// Whether it has ended. It may not have been waited for.
    ///
    /// # Errors
    ///
    /// Those of `poll`.
    pub fn has_ended(&self) -> io::Result<bool> {
        let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
        let ready = super::retry(|| rustix::event::poll(&mut fds, Some(&Timespec::default())))?;
        Ok(ready > 0)
    }

    /// Ends it (`SIGKILL`). It may take a moment.
    ///
    /// # Errors
    ///
    /// `ESRCH` if it has ended; `EPERM` if this process may not.
    pub fn kill(&self) -> io::Result<()> {
        let kill = rustix::process::Signal::KILL;
        Ok(rustix::process::pidfd_send_signal(&self.0, kill)?)
    }

    /// Which process it is. `None` if it has ended, or has no number in this process's PID namespace.
    ///
    /// # Errors
    ///
    /// Those of reading `/proc`.
    pub fn id(&self) -> io::Result<Option<ProcessId>> {
        let Some(pid) = self.pid_field()?.and_then(|pid| u32::try_from(pid).ok()) else {
            return Ok(None);
        };
        if pid == 0 {
            return Ok(None);
        }
        let stat = match fs::read(format!("/proc/{pid}/stat")) {
            Ok(stat) => stat,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
            Err(error) => return Err(error),
        };
        let started = start_time(&stat).ok_or(io::ErrorKind::InvalidData)?;
        // While it has not ended, its number is that of no other process: so that one was read.
        Ok((!self.has_ended()?).then_some(ProcessId { pid, started }))
    }

    /// The field `Pid` of the descriptor: 0 if the process has no number in the PID namespace of `/proc`, −1
    /// once it has ended. `None` if it is no pidfd.
    fn pid_field(&self) -> io::Result<Option<i64>> {
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", self.0.as_raw_fd()))?;
        let mut lines = info.lines();
        let field = lines.find_map(|line| line.strip_prefix("Pid:"));
        Ok(field.and_then(|field| field.trim().parse().ok()))
    }
}

impl AsFd for Process {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Process {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.0.as_raw_fd()
    }
}

impl From<Process> for OwnedFd {
    fn from(process: Process) -> Self {
        process.0
    }
}

/// The id that the kernel has given this start of the system.
///
/// # Errors
///
/// Those of reading `/proc/sys/kernel/random/boot_id`.
pub fn boot_id() -> io::Result<String> {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Ok(id.trim().to_owned())
}

/// Field 22 of `/proc/PID/stat`. The second field is a name in parentheses, which may contain anything.
fn start_time(stat: &[u8]) -> Option<u64> {
    let end = stat.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(stat.get(end + 1..)?).ok()?;
    // The first of the rest is field 3.
    rest.split_ascii_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use super::*;

    fn child() -> Child {
        let mut command = Command::new("cat");
        command.stdin(Stdio::piped()).stdout(Stdio::null());
        command.spawn().unwrap()
    }

    #[test]
    fn a_process_is_found_again_until_it_has_ended_and_never_another_in_its_place() {
        let mut child = child();
        let process = Process::open(child.id()).unwrap();
        let id = process.id().unwrap().expect("it runs");
        assert_eq!(id.pid, child.id());
        assert!(!process.has_ended().unwrap());
        let again = Process::find(id).unwrap().expect("it runs");
        assert_eq!(again.id().unwrap(), Some(id));
        // Another process that has the number by now.
        let other = ProcessId {
            started: id.started + 1,
            ..id
        };
        assert!(Process::find(other).unwrap().is_none());
        child.kill().unwrap();
        let mut fds = [PollFd::new(&process, PollFlags::IN)];
        let limit = Timespec {
            tv_sec: 10,
            tv_nsec: 0,
        };
        rustix::event::poll(&mut fds, Some(&limit)).unwrap();
        // It has ended, although nobody has waited for it.
        assert!(process.has_ended().unwrap() && again.has_ended().unwrap());
        assert!(Process::find(id).unwrap().is_none());
        child.wait().unwrap();
        assert_eq!(process.id().unwrap(), None);
        assert!(Process::find(id).unwrap().is_none());
    }

    #[test]
    fn only_a_pidfd_is_the_descriptor_of_a_process() {
        let file = tempfile::tempfile().unwrap();
        let error = Process::from_descriptor(file.into()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        let (end, _other) = crate::stream::pair().unwrap();
        assert!(Process::from_descriptor(end).is_err());
        let own = Process::open(std::process::id()).unwrap();
        let own = Process::from_descriptor(own.into()).unwrap();
        assert_eq!(own.id().unwrap().unwrap().pid, std::process::id());
        for none in [0, u32::MAX, i32::MAX as u32] {
            assert!(Process::open(none).is_err(), "{none}");
        }
    }

    #[test]
    fn the_start_time_is_found_behind_any_name() {
        let rest = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20";
        for name in ["cat", "a b", ") S 1 2", "(", ""] {
            let stat = format!("7 ({name}) {rest}\n");
            assert_eq!(start_time(stat.as_bytes()), Some(4711), "{name}");
        }
        let unknown: [&[u8]; 4] = [b"", b"7 (cat", b"7 (cat) S 1", b"7 (\xff) S x"];
        for odd in unknown {
            assert_eq!(start_time(odd), None);
        }
    }
}
