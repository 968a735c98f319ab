//! Descriptors that a service manager passes when it starts a program (socket activation, see
//! `sd_listen_fds(3)`).

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::FdFlags;

/// The first descriptor, `SD_LISTEN_FDS_START`.
const FIRST: RawFd = 3;
/// The most descriptors that are taken.
const MAX: u32 = 1024;
/// The name of a descriptor without one or with an empty one, as in `sd_listen_fds_with_names(3)`.
const UNNAMED: &str = "unknown";

/// A descriptor with its name.
#[derive(Debug)]
pub struct PassedFd {
    /// The descriptor, close-on-exec.
    pub fd: OwnedFd,
    /// Its name in `LISTEN_FDNAMES`, or `unknown`.
    pub name: String,
}

/// Takes the descriptors that `LISTEN_PID`, `LISTEN_FDS` and `LISTEN_FDNAMES` announce to this process,
/// and sets close-on-exec on them. Returns none if nothing is announced, if it is announced to another
/// process, and on every call after the first.
///
/// # Errors
///
/// `InvalidData` if a variable is malformed, if more than 1024 descriptors are announced, or if one of
/// them is not open. No descriptor is taken then.
pub fn take() -> io::Result<Vec<PassedFd>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    let env = |name: &str| std::env::var(name).ok();
    let names = announced(env, std::process::id())?;
    if names.is_empty() || TAKEN.swap(true, Ordering::AcqRel) {
        return Ok(Vec::new());
    }
    let fds = || (FIRST..).take(names.len());
    for fd in fds() {
        // SAFETY: the descriptor is used for these two calls only, which report one that is not open.
        let passed = unsafe { BorrowedFd::borrow_raw(fd) };
        rustix::io::fcntl_setfd(passed, FdFlags::CLOEXEC).map_err(|error| {
            let text = format!("LISTEN_FDS announces descriptor {fd}: {error}");
            io::Error::new(io::ErrorKind::InvalidData, text)
        })?;
    }
    let take = |(fd, name)| {
        // SAFETY: it is open. The service manager passed it to this process, and `TAKEN` sees to it that
        // nothing else has taken it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        PassedFd { fd, name }
    };
    Ok(fds().zip(names.clone()).map(take).collect())
}

/// Takes the one descriptor whose number is in this variable, and sets close-on-exec on it. Returns none if the
/// variable is not set, and on every call after the first.
///
/// # Errors
///
/// `InvalidData` if it is no number of a descriptor above standard error, or that descriptor is not open.
pub fn take_one(variable: &str) -> io::Result<Option<OwnedFd>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    let Ok(text) = std::env::var(variable) else {
        return Ok(None);
    };
    let number = number(variable, &text)?;
    let fd = RawFd::try_from(number).ok().filter(|fd| *fd >= FIRST);
    let invalid = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
    let fd = fd.ok_or_else(|| invalid(format!("{variable} is {number}, below {FIRST}")))?;
    if TAKEN.swap(true, Ordering::AcqRel) {
        return Ok(None);
    }
    // SAFETY: the descriptor is used for this call only, which reports one that is not open.
    let passed = unsafe { BorrowedFd::borrow_raw(fd) };
    rustix::io::fcntl_setfd(passed, FdFlags::CLOEXEC)
        .map_err(|error| invalid(format!("{variable} names the descriptor {fd}: {error}")))?;
    // SAFETY: it is open. Who started this process has passed it, and `TAKEN` sees to it that nothing else
    // has taken it.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) }))
}

/// Moves standard input to descriptor 3, where a program that this process becomes by `exec` expects the
/// socket that a service manager passes, and opens `/dev/null` as standard input. Returns the variables that
/// announce it to this process. To be called before anything else opens a descriptor: descriptor 3 is replaced.
///
/// # Errors
///
/// Those of `dup3`, and of opening `/dev/null`.
pub fn pass_standard_input(name: &str) -> io::Result<[(&'static str, String); 3]> {
    let null = std::fs::File::open("/dev/null")?;
    // It may have the number that is replaced.
    let above = rustix::io::fcntl_dupfd_cloexec(&null, FIRST + 1)?;
    drop(null);
    // SAFETY: two numbers, and nothing in this process owns the second one.
    if unsafe { libc::dup2(libc::STDIN_FILENO, FIRST) } < 0 {
        return Err(io::Error::last_os_error());
    }
    rustix::stdio::dup2_stdin(&above)?;
    Ok([
        ("LISTEN_PID", std::process::id().to_string()),
        ("LISTEN_FDS", "1".to_owned()),
        ("LISTEN_FDNAMES", fd_name(name)),
    ])
}

/// Has a program that is started with `command` begin with these descriptors from number 3 on, and with the variables
/// that announce them, except `LISTEN_PID`: only the program knows its number ([`announce_to_self`]).
///
/// # Errors
///
/// Those of `fcntl`, as `EMFILE`.
pub fn pass(command: &mut Command, descriptors: &[(&str, BorrowedFd<'_>)]) -> io::Result<()> {
    use std::os::unix::process::CommandExt as _;

    let Ok(count) = RawFd::try_from(descriptors.len()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let names: Vec<String> = descriptors.iter().map(|(name, _)| fd_name(name)).collect();
    command.env("LISTEN_FDS", count.to_string());
    command.env("LISTEN_FDNAMES", names.join(":"));
    // Above all numbers that are replaced. Those in between are taken until the start, since the standard library
    // opens descriptors of its own then.
    let above = |fd: BorrowedFd<'_>| rustix::io::fcntl_dupfd_cloexec(fd, FIRST + count);
    let passed: Vec<OwnedFd> = descriptors
        .iter()
        .map(|(_, fd)| above(*fd))
        .collect::<rustix::io::Result<_>>()?;
    let null = OwnedFd::from(std::fs::File::open("/dev/null")?);
    let mut taken = vec![null];
    while let Some(last) = taken.last()
        && last.as_raw_fd() < FIRST + count
    {
        let next = rustix::io::fcntl_dupfd_cloexec(last, FIRST)?;
        taken.push(next);
    }
    let replace = move || {
        let _ = &taken;
        for (to, from) in (FIRST..).zip(&passed) {
            // SAFETY: two numbers. Whatever the second one is of in this process, it is about to become another
            // program. The call is safe between fork and exec.
            if unsafe { libc::dup2(from.as_raw_fd(), to) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: it makes system calls only, and allocates nothing.
    unsafe { command.pre_exec(replace) };
    Ok(())
}

/// The variable that announces descriptors to this process, and to the program that it becomes by `exec`, and its value.
pub fn announce_to_self() -> (&'static str, String) {
    ("LISTEN_PID", std::process::id().to_string())
}

/// A text as a name of a descriptor: at most 255 printable ASCII characters without a colon.
fn fd_name(text: &str) -> String {
    let allowed = |letter: char| (' '..='~').contains(&letter) && letter != ':';
    let letters = text.chars().take(255);
    letters
        .map(|letter| if allowed(letter) { letter } else { '_' })
        .collect()
}

/// The names of the descriptors that the variables announce to process `pid`.
fn announced(env: impl Fn(&str) -> Option<String>, pid: u32) -> io::Result<Vec<String>> {
    let (Some(to), Some(count)) = (env("LISTEN_PID"), env("LISTEN_FDS")) else {
        return Ok(Vec::new());
    };
    if number("LISTEN_PID", &to)? != pid {
        return Ok(Vec::new());
    }
    let count = number("LISTEN_FDS", &count)?;
    if count > MAX {
        let text = format!("LISTEN_FDS announces {count} descriptors; at most {MAX} are taken");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    let names = env("LISTEN_FDNAMES").unwrap_or_default();
    // An empty name counts, or the names after it would belong to other descriptors.
    let names = names.split(':').map(|name| match name {
        "" => UNNAMED,
        name => name,
    });
    let unnamed = std::iter::repeat(UNNAMED);
    let names = names.chain(unnamed).take(count as usize);
    Ok(names.map(str::to_owned).collect())
}

fn number(variable: &str, text: &str) -> io::Result<u32> {
    text.parse().map_err(|_| {
        let text = format!("{variable} is `{text}`, which is not a number");
        io::Error::new(io::ErrorKind::InvalidData, text)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(pid: &str, fds: &str, names: Option<&str>) -> io::Result<Vec<String>> {
        let env = |name: &str| match name {
            "LISTEN_PID" => Some(pid.to_owned()),
            "LISTEN_FDS" => Some(fds.to_owned()),
            _ => names.map(str::to_owned),
        };
        announced(env, 42)
    }

    #[test]
    fn descriptors_are_announced_to_one_process() {
        assert_eq!(names("42", "2", Some("web:db")).unwrap(), ["web", "db"]);
        assert_eq!(names("42", "2", Some("web")).unwrap(), ["web", "unknown"]);
        let gap = names("42", "3", Some("web::db")).unwrap();
        assert_eq!(gap, ["web", "unknown", "db"]);
        assert_eq!(names("42", "1", None).unwrap(), ["unknown"]);
        assert!(names("43", "2", None).unwrap().is_empty());
        assert!(announced(|_| None, 42).unwrap().is_empty());
    }

    #[test]
    fn a_variable_that_is_not_set_passes_nothing_and_one_that_is_no_number_is_an_error() {
        assert!(take_one("HVSOCK_TEST_NO_SUCH_VARIABLE").unwrap().is_none());
        // Always set, and never a number.
        let error = take_one("PATH").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn a_name_of_a_descriptor_has_no_colon_and_no_control_characters() {
        assert_eq!(fd_name("HV Socket Demo"), "HV Socket Demo");
        assert_eq!(fd_name("a:b\n\u{e9}"), "a_b__");
        assert_eq!(fd_name(&"x".repeat(300)).len(), 255);
    }

    #[test]
    fn a_program_begins_with_the_descriptors_that_are_passed_to_it() {
        use std::io::Write as _;
        use std::os::fd::AsFd as _;

        let files: Vec<_> = (0..3)
            .map(|number| {
                let mut file = tempfile::tempfile().unwrap();
                write!(file, "{number}").unwrap();
                file
            })
            .collect();
        let passed: Vec<_> = files.iter().map(|file| ("a:b", file.as_fd())).collect();
        let mut command = Command::new("/bin/sh");
        let script =
            "for fd in 3 4 5; do cat /proc/self/fd/$fd; done; echo $LISTEN_FDS $LISTEN_FDNAMES";
        command.args(["-c", script]);
        pass(&mut command, &passed).unwrap();
        let output = command.output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(text, "0123 a_b:a_b:a_b\n");
        // The standard library can still tell that a program is missing.
        let mut command = Command::new("/no/such/program");
        pass(&mut command, &passed).unwrap();
        assert_eq!(command.spawn().unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn malformed_variables_are_errors() {
        for (pid, fds) in [("x", "1"), ("42", "-1"), ("42", ""), ("42", "1025")] {
            let error = names(pid, fds, None).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{pid} {fds}");
        }
    }
}
