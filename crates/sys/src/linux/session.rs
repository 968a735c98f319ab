//! Starting a program in a session of its own (`setsid`), as a login does: detached from the caller's
//! terminal and signals, as a given user, optionally with a controlling terminal.

use std::error::Error;
use std::ffi::{CStr, CString};
use std::fmt;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command};

use rustix::fs::{Mode, OFlags};
use rustix::process::Signal;

/// How to start a program, in addition to its [`Command`].
#[derive(Clone, Debug, Default)]
pub struct Session {
    /// Make standard input, a terminal, the controlling terminal.
    pub terminal: bool,
    /// User and groups of the program; the caller's if `None`.
    pub ids: Option<Ids>,
    /// Candidates for the working directory: the first one that the user can enter. The caller's working
    /// directory if the list is empty.
    pub folders: Vec<CString>,
}

/// A user id and group ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ids {
    /// The user.
    pub uid: u32,
    /// The primary group.
    pub gid: u32,
    /// The supplementary groups.
    pub groups: Vec<u32>,
}

/// The step at which starting a program failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpawnStep {
    /// Creating the process and its session.
    Session,
    /// Setting the controlling terminal.
    Terminal,
    /// Changing to the user and groups.
    Ids,
    /// Entering the working directory.
    Folder,
    /// Executing the program: it does not exist or is not executable.
    Program,
}

/// Why a program did not start.
#[derive(Debug)]
pub struct SpawnError {
    /// The step at which starting a program failed.
    pub step: SpawnStep,
    /// The system's error.
    pub error: io::Error,
}

impl fmt::Display for SpawnError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let step = match self.step {
            SpawnStep::Session => "cannot create a process",
            SpawnStep::Terminal => "cannot set the controlling terminal",
            SpawnStep::Ids => "cannot change to the user",
            SpawnStep::Folder => "cannot enter the directory",
            SpawnStep::Program => "cannot execute the program",
        };
        write!(f, "{step}: {}", self.error)
    }
}

impl Error for SpawnError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.error)
    }
}

/// Error numbers are below this. The new process adds a multiple of it, the step, to report both in one
/// number.
const STEP_UNIT: i32 = 1 << 16;

impl SpawnStep {
    /// The steps of the new process between `fork` and `exec`.
    const AFTER_FORK: [Self; 4] = [Self::Session, Self::Terminal, Self::Ids, Self::Folder];

    /// Encodes the last system call's error and this step in one number, because the standard library
    /// passes one number from the child to the parent.
    pub(super) fn failed(self) -> io::Error {
        let errno = io::Error::last_os_error().raw_os_error();
        let errno = errno.unwrap_or(libc::EINVAL);
        let index = Self::AFTER_FORK.iter().position(|step| *step == self);
        let index = index.map_or(0, |index| index + 1);
        io::Error::from_raw_os_error(errno + STEP_UNIT * i32::try_from(index).unwrap_or(0))
    }

    /// Decodes the number of [`failed`](Self::failed).
    pub(super) fn decode(error: io::Error) -> SpawnError {
        let Some(number) = error.raw_os_error() else {
            let step = Self::Session;
            return SpawnError { step, error };
        };
        let index = usize::try_from(number / STEP_UNIT).unwrap_or(0);
        let step = index
            .checked_sub(1)
            .and_then(|index| Self::AFTER_FORK.get(index))
            .copied();
        let error = io::Error::from_raw_os_error(number % STEP_UNIT);
        let step = step.unwrap_or(match error.kind() {
            // `fork` or `pipe` failed, so no process exists.
            io::ErrorKind::WouldBlock | io::ErrorKind::OutOfMemory => Self::Session,
            _ => Self::Program,
        });
        SpawnError { step, error }
    }
}

/// Starts a program in a session of its own, with all signals at their defaults. If the caller is
/// protected from the OOM killer (a negative `oom_score_adj`), the program is not.
///
/// The kernel kills the program when the calling *thread* ends (`PR_SET_PDEATHSIG`), so that it cannot
/// outlive a starter that is killed by `SIGKILL`. The kernel clears this for a program that changes its
/// user by itself, such as `su`.
///
/// # Errors
///
/// [`SpawnError`], with the step that failed.
pub fn spawn(mut command: Command, session: Session) -> Result<Child, SpawnError> {
    let starter = rustix::process::getpid();
    let oom_protected = is_oom_protected();
    let prepare = move || {
        if oom_protected {
            // Best effort: the program can run with the protection.
            let _ = reset_oom_score();
        }
        prepare(starter, &session)
    };
    // SAFETY: between fork and exec it only makes system calls, on memory allocated before. It
    // allocates, locks and frees nothing.
    unsafe { command.pre_exec(prepare) };
    command.spawn().map_err(SpawnStep::decode)
}

const OOM: &CStr = c"/proc/self/oom_score_adj";

/// Whether this process has a negative `oom_score_adj`, as a service manager may set it. Children inherit
/// it.
pub(super) fn is_oom_protected() -> bool {
    let score = std::fs::read_to_string("/proc/self/oom_score_adj");
    score.is_ok_and(|score| score.starts_with('-'))
}

pub(super) fn reset_oom_score() -> rustix::io::Result<()> {
    let score = rustix::fs::open(OOM, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&score, b"0").map(drop)
}

/// Runs in the new process between `fork` and `exec`.
pub(super) fn prepare(starter: rustix::process::Pid, session: &Session) -> io::Result<()> {
    default_signals();
    // SAFETY: no memory is involved, here and in the next two calls.
    if unsafe { libc::setsid() } < 0 {
        return Err(SpawnStep::Session.failed());
    }
    if session.terminal {
        // SAFETY: as above; the argument is a number.
        let taken = unsafe { libc::ioctl(libc::STDIN_FILENO, libc::TIOCSCTTY, 0) };
        if taken < 0 {
            return Err(SpawnStep::Terminal.failed());
        }
    }
    if let Some(ids) = &session.ids {
        change_user(ids)?;
    }
    // After the change of user, which clears it.
    let kill = Signal::KILL.as_raw();
    // SAFETY: as above.
    if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, kill) } < 0 {
        return Err(SpawnStep::Session.failed());
    }
    // The starter ended before the previous call.
    if rustix::process::getppid() != Some(starter) {
        // SAFETY: ends the process at once.
        unsafe { libc::_exit(128 + kill) };
    }
    enter_first(&session.folders)
}

/// Resets all signal dispositions: ignored signals are inherited.
fn default_signals() {
    for signal in 1..=64 {
        // SAFETY: sets no handler. Fails for SIGKILL, SIGSTOP and the C library's own signals, which
        // keep their defaults.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

fn change_user(ids: &Ids) -> io::Result<()> {
    // SAFETY: pointer and length are of one slice.
    let grouped = unsafe { libc::setgroups(ids.groups.len(), ids.groups.as_ptr()) };
    // SAFETY: numbers only.
    if grouped < 0 || unsafe { libc::setgid(ids.gid) } < 0 || unsafe { libc::setuid(ids.uid) } < 0 {
        return Err(SpawnStep::Ids.failed());
    }
    Ok(())
}

fn enter_first(folders: &[CString]) -> io::Result<()> {
    for folder in folders {
        // SAFETY: a NUL-terminated string.
        if unsafe { libc::chdir(folder.as_ptr()) } == 0 {
            return Ok(());
        }
    }
    match folders {
        [] => Ok(()),
        _ => Err(SpawnStep::Folder.failed()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::Stdio;
    use std::sync::mpsc;
    use std::time::{Duration, Instant};

    use hvsock_testkit::require;

    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit());
        command
    }

    fn stdout_of(command: Command, session: Session) -> String {
        let child = spawn(command, session).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// Pid, process group, session and terminal of a process whose name has no spaces.
    const IDS: &str = "cut -d' ' -f1,5,6,7 /proc/$$/stat";

    #[test]
    fn a_program_leads_its_own_session_without_a_terminal() {
        let stdout = stdout_of(shell(IDS), Session::default());
        let ids: Vec<&str> = stdout.split(' ').collect();
        assert_eq!(ids[0], ids[1]);
        assert_eq!(ids[0], ids[2]);
        assert_eq!(ids[3], "0");
    }

    #[test]
    fn a_terminal_becomes_the_controlling_one() {
        use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};

        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let terminal = openpt(flags).unwrap();
        unlockpt(&terminal).unwrap();
        let inner = ioctl_tiocgptpeer(&terminal, flags).unwrap();
        let mut command = shell("read line </dev/tty; echo \"$line\"");
        command.stdin(inner);
        let session = Session {
            terminal: true,
            ..Session::default()
        };
        std::fs::File::from(terminal.try_clone().unwrap())
            .write_all(b"typed\n")
            .unwrap();
        assert_eq!(stdout_of(command, session.clone()), "typed");

        let error = spawn(shell("exit 0"), session).unwrap_err();
        assert_eq!(error.step, SpawnStep::Terminal, "{error}");
    }

    #[test]
    fn a_program_runs_as_the_user_in_the_users_groups() {
        let Some(()) = require::root() else { return };
        let ids = Ids {
            uid: 4711,
            gid: 4712,
            groups: vec![4712, 4713],
        };
        let session = Session {
            ids: Some(ids),
            ..Session::default()
        };
        let status = "grep -E '^(Uid|Gid|Groups):' /proc/self/status";
        let stdout = stdout_of(shell(status), session);
        let stdout: Vec<&str> = stdout.split_whitespace().collect();
        let uid = ["Uid:", "4711", "4711", "4711", "4711"];
        let gid = ["Gid:", "4712", "4712", "4712", "4712"];
        let groups = ["Groups:", "4712", "4713"];
        assert_eq!(stdout, [&uid[..], &gid, &groups].concat());
    }

    #[test]
    fn the_working_directory_is_the_first_one_that_can_be_entered() {
        let session = |folders: &[&str]| Session {
            folders: folders
                .iter()
                .map(|folder| CString::new(*folder).unwrap())
                .collect(),
            ..Session::default()
        };
        assert_eq!(
            stdout_of(shell("pwd"), session(&["/no/such", "/proc"])),
            "/proc"
        );
        let error = spawn(shell("pwd"), session(&["/no/such"])).unwrap_err();
        assert_eq!(error.step, SpawnStep::Folder);
        assert_eq!(error.error.raw_os_error(), Some(libc::ENOENT));
        let error = spawn(Command::new("/no/such"), Session::default()).unwrap_err();
        assert_eq!(error.step, SpawnStep::Program);
        assert_eq!(error.error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn signals_that_the_starter_ignores_kill_the_program() {
        // SAFETY: no one sends this signal to this process.
        unsafe { libc::signal(libc::SIGUSR2, libc::SIG_IGN) };
        let child = spawn(shell("kill -USR2 $$; echo alive"), Session::default()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.signal(), Some(libc::SIGUSR2), "{output:?}");
    }

    #[test]
    fn a_program_does_not_inherit_protection_from_the_oom_killer() {
        // Lowering the score requires CAP_SYS_RESOURCE.
        let lower = Command::new("sh")
            .args(["-c", "echo -5 >/proc/self/oom_score_adj"])
            .stderr(Stdio::null())
            .status();
        let lowered = lower.unwrap().success().then_some(());
        let missing = "it needs CAP_SYS_RESOURCE to lower oom_score_adj";
        let Some(()) = require::of_this_machine(lowered.ok_or(missing)) else {
            return;
        };
        let before = std::fs::read("/proc/self/oom_score_adj").unwrap();
        std::fs::write("/proc/self/oom_score_adj", "-5").unwrap();
        let stdout = stdout_of(shell("cat /proc/$$/oom_score_adj"), Session::default());
        std::fs::write("/proc/self/oom_score_adj", before).unwrap();
        assert_eq!(stdout, "0");
    }

    #[test]
    fn a_program_is_killed_when_its_starting_thread_ends() {
        let (sender, receiver) = mpsc::channel();
        let starter = std::thread::spawn(move || {
            let mut child = spawn(shell("echo up; exec sleep 600"), Session::default()).unwrap();
            let mut up = [0; 3];
            let mut stdout = child.stdout.take().unwrap();
            stdout.read_exact(&mut up).unwrap();
            sender.send(child).unwrap();
        });
        let mut child = receiver.recv().unwrap();
        starter.join().unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "the program is still running");
            std::thread::sleep(Duration::from_millis(5));
        };
        assert_eq!(status.signal(), Some(libc::SIGKILL));
    }
}
