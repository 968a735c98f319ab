//! Which process holds an advisory lock on a file.
//!
//! The kernel is asked, never the file: a process id that a holder once wrote down may be that of a
//! process that is gone.

use std::fmt;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::os::fd::AsFd;

use rustix::process::{Flock, FlockType};

/// The most bytes that are read of `/proc/locks`, which lists the locks of all processes.
const MAX_LOCKS: u64 = 4 << 20;

/// The most bytes that are read of a file about one process.
const MAX_STATUS: u64 = 16 << 10;

/// A process that holds a lock, or a socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its process id.
    pub pid: u32,
    /// Its program, as it calls itself, of harmless characters only.
    pub program: Option<String>,
    /// Its real and effective user ids.
    pub users: Option<[u32; 2]>,
}

/// A lock of another process (`F_SETLK`) that is in the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordLock {
    /// Whether it is a write lock, and not one for reading.
    pub exclusive: bool,
    /// Its holder, if that is known.
    pub holder: Option<Holder>,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {}", self.pid)?;
        if let Some(program) = &self.program {
            write!(f, " ({program})")?;
        }
        match self.users {
            Some([user, _]) => write!(f, " of the user {user}"),
            None => Ok(()),
        }
    }
}

/// The process that holds a lock of `flock` on the file. `None` if nobody does, or if the kernel
/// does not tell: the holder is in another PID namespace, or there is no `/proc`.
pub fn flock_holder(file: impl AsFd) -> Option<Holder> {
    let stat = rustix::fs::fstat(file).ok()?;
    let (major, minor) = (
        rustix::fs::major(stat.st_dev),
        rustix::fs::minor(stat.st_dev),
    );
    let device = format!("{major:02x}:{minor:02x}");
    let locks = BufReader::new(File::open("/proc/locks").ok()?.take(MAX_LOCKS));
    let mut of_inode = Vec::new();
    for line in locks.lines().map_while(Result::ok) {
        let Some((pid, on, inode)) = parse(&line) else {
            continue;
        };
        if inode == stat.st_ino {
            of_inode.push((pid, on == device));
        }
    }
    // Some file systems report another device number by stat() than the kernel lists.
    let exact = of_inode.iter().find(|(_, same)| *same);
    let (pid, _) = exact.or(match &of_inode[..] {
        [only] => Some(only),
        _ => None,
    })?;
    Some(process(*pid))
}

/// Finds a lock that keeps this process from one on the whole file, for writing if `exclusive`.
///
/// # Errors
///
/// Those of `F_GETLK`.
pub fn conflicting_record_lock(file: impl AsFd, exclusive: bool) -> io::Result<Option<RecordLock>> {
    let wanted = Flock::from(match exclusive {
        true => FlockType::WriteLock,
        false => FlockType::ReadLock,
    });
    let found = rustix::process::fcntl_getlk(file, &wanted)?;
    Ok(found.map(|lock| RecordLock {
        exclusive: lock.typ == FlockType::WriteLock,
        // An open-file-description lock has the pid -1.
        holder: lock
            .pid
            .and_then(|pid| u32::try_from(pid.as_raw_pid()).ok())
            .filter(|pid| *pid != 0)
            .map(process),
    }))
}

/// The process id, the device and the inode of a line of `/proc/locks` about `flock`; `None` for other
/// kinds, for waiters, and for a holder without an id here.
fn parse(line: &str) -> Option<(u32, &str, u64)> {
    let mut words = line.split_ascii_whitespace().skip(1);
    if words.next()? != "FLOCK" {
        return None;
    }
    let pid = words.nth(2)?.parse().ok().filter(|pid| *pid != 0)?;
    let (device, inode) = words.next()?.rsplit_once(':')?;
    Some((pid, device, inode.parse().ok()?))
}

/// Describes a process.
pub(super) fn process(pid: u32) -> Holder {
    let status = read(&format!("/proc/{pid}/status"));
    let line = |name: &str| {
        let mut lines = status.lines();
        lines.find_map(|line| line.strip_prefix(name))
    };
    let program = line("Name:").map(|name| {
        let harmless = |c: char| c.is_ascii_alphanumeric() || "-_.:/+@".contains(c);
        let shown = name.trim().chars();
        shown.map(|c| if harmless(c) { c } else { '?' }).collect()
    });
    let users = line("Uid:").and_then(|ids| {
        let mut ids = ids.split_ascii_whitespace().map(str::parse);
        Some([ids.next()?.ok()?, ids.next()?.ok()?])
    });
    Holder {
        pid,
        program,
        users,
    }
}

fn read(path: &str) -> String {
    let mut bytes = Vec::new();
    if let Ok(file) = File::open(path) {
        let _ = file.take(MAX_STATUS).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_of_a_lock_is_the_process_that_the_kernel_names() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(flock_holder(file.as_file()), None);
        file.as_file().lock().unwrap();
        let other = File::open(file.path()).unwrap();
        let holder = flock_holder(&other).unwrap();
        assert_eq!(holder.pid, std::process::id());
        let uid = rustix::process::getuid().as_raw();
        assert_eq!(holder.users.map(|users| users[0]), Some(uid));
        let text = holder.to_string();
        let start = format!("process {} (", std::process::id());
        assert!(text.starts_with(&start), "{text}");
        assert!(text.ends_with(&format!(" of the user {uid}")), "{text}");
        file.as_file().unlock().unwrap();
        assert_eq!(flock_holder(&other), None);
    }

    #[test]
    fn lines_about_waiters_and_other_kinds_of_locks_are_skipped() {
        let line = "2: FLOCK  ADVISORY  WRITE 812 fe:01:1234 0 EOF";
        assert_eq!(parse(line), Some((812, "fe:01", 1234)));
        for line in [
            "2: -> FLOCK  ADVISORY  WRITE 813 fe:01:1234 0 EOF",
            "3: POSIX  ADVISORY  READ 812 fe:01:1234 0 EOF",
            "4: OFDLCK ADVISORY  READ -1 fe:01:1234 0 EOF",
            "5: FLOCK  ADVISORY  WRITE 0 fe:01:1234 0 EOF",
            "5: FLOCK  ADVISORY",
            "",
        ] {
            assert_eq!(parse(line), None, "{line}");
        }
    }

    #[test]
    fn a_lock_of_this_process_is_in_nobodys_way() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let lock = rustix::fs::FlockOperation::NonBlockingLockExclusive;
        rustix::fs::fcntl_lock(file.as_file(), lock).unwrap();
        assert_eq!(conflicting_record_lock(file.as_file(), true).unwrap(), None);
    }
}
