//! A program in a session of its own, as a login makes one: cut off from the terminal and the
//! signals of who starts it, as a user, with a controlling terminal if it has one.

use std::error::Error;
use std::ffi::{CStr, CString};
use std::fmt;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command};

use rustix::fs::{Mode, OFlags};
use rustix::process::Signal;

/// What a program is started with beside what its [`Command`] says.
#[derive(Clone, Debug, Default)]
pub struct Session {
    /// Whether its standard input is a terminal, which is to be the controlling one.
    pub terminal: bool,
    /// As whom it runs; as the caller if not said.
    pub ids: Option<Ids>,
    /// Its working directory: the first of these that can be entered as that user. The caller's
    /// if there is none.
    pub folders: Vec<CString>,
}

/// A user and groups by number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ids {
    /// The user.
    pub uid: u32,
    /// The user's own group.
    pub gid: u32,
    /// All groups that the user is in.
    pub groups: Vec<u32>,
}

/// What could not be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A process, and a session for it.
    Session,
    /// The terminal as the controlling one.
    Terminal,
    /// The user and the groups.
    Ids,
    /// The working directory.
    Folder,
    /// The program itself: not there, or not executable.
    Program,
}

/// Why a program did not start.
#[derive(Debug)]
pub struct SpawnError {
    /// What could not be done.
    pub step: Step,
    /// Why.
    pub error: io::Error,
}

impl fmt::Display for SpawnError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let step = match self.step {
            Step::Session => "cannot make a process",
            Step::Terminal => "cannot take the terminal",
            Step::Ids => "cannot become the user",
            Step::Folder => "cannot enter the directory",
            Step::Program => "cannot run the program",
        };
        write!(f, "{step}: {}", self.error)
    }
}

impl Error for SpawnError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.error)
    }
}

/// Error numbers are below this; above it is the step, on the way from the new process.
const STEP: i32 = 1 << 16;

impl Step {
    /// Those that the new process makes after `fork` and before the program.
    const AFTER_FORK: [Self; 4] = [Self::Session, Self::Terminal, Self::Ids, Self::Folder];

    /// The last system call's error with this step, in the one number that the standard library
    /// takes to the parent.
    fn failed(self) -> io::Error {
        let errno = io::Error::last_os_error().raw_os_error();
        let errno = errno.unwrap_or(libc::EINVAL);
        let place = Self::AFTER_FORK.iter().position(|step| *step == self);
        let place = place.map_or(0, |place| place + 1);
        io::Error::from_raw_os_error(errno + STEP * i32::try_from(place).unwrap_or(0))
    }

    fn of(error: io::Error) -> SpawnError {
        let Some(number) = error.raw_os_error() else {
            let step = Self::Session;
            return SpawnError { step, error };
        };
        let place = usize::try_from(number / STEP).unwrap_or(0);
        let step = place
            .checked_sub(1)
            .and_then(|place| Self::AFTER_FORK.get(place))
            .copied();
        let error = io::Error::from_raw_os_error(number % STEP);
        let step = step.unwrap_or(match error.kind() {
            // Of `fork` and of the pipes, before there is a process.
            io::ErrorKind::WouldBlock | io::ErrorKind::OutOfMemory => Self::Session,
            _ => Self::Program,
        });
        SpawnError { step, error }
    }
}

/// Starts the program in a session of its own. Its signals are as a new process's should be: none
/// ignored, none blocked. If the caller is spared when memory runs out, it is not.
///
/// It is killed when the *thread* that calls this ends, however that comes about: a program that
/// must not outlive its starter has no other way to hear of a `SIGKILL`. (A program that changes
/// its user by itself, as `su` does, is let off that by the kernel.)
pub fn spawn(mut command: Command, session: Session) -> Result<Child, SpawnError> {
    let starter = rustix::process::getpid();
    let spared = is_spared();
    let prepare = move || {
        if spared {
            // More than it can do is not worth a failure.
            let _ = be_killed_as_others();
        }
        prepare(starter, &session)
    };
    // SAFETY: between fork and exec only system calls are made, on memory that was allocated
    // before; nothing is allocated, locked or freed.
    unsafe { command.pre_exec(prepare) };
    command.spawn().map_err(Step::of)
}

const OOM: &CStr = c"/proc/self/oom_score_adj";

/// Whether the kernel spares this process when memory runs out, as it does what a service manager
/// wants to have spared, and by inheritance all that it starts.
fn is_spared() -> bool {
    let score = std::fs::read_to_string("/proc/self/oom_score_adj");
    score.is_ok_and(|score| score.starts_with('-'))
}

fn be_killed_as_others() -> rustix::io::Result<()> {
    let score = rustix::fs::open(OOM, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&score, b"0").map(drop)
}

/// In the new process, before the program.
fn prepare(starter: rustix::process::Pid, session: &Session) -> io::Result<()> {
    default_signals();
    // SAFETY: no memory is involved, here and in the next two calls.
    if unsafe { libc::setsid() } < 0 {
        return Err(Step::Session.failed());
    }
    if session.terminal {
        // SAFETY: as above; the argument is a number.
        let taken = unsafe { libc::ioctl(libc::STDIN_FILENO, libc::TIOCSCTTY, 0) };
        if taken < 0 {
            return Err(Step::Terminal.failed());
        }
    }
    if let Some(ids) = &session.ids {
        become_user(ids)?;
    }
    // After the user: a change of it takes this back.
    let kill = Signal::KILL.as_raw();
    // SAFETY: as above.
    if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, kill) } < 0 {
        return Err(Step::Session.failed());
    }
    // Gone before the kernel knew that it matters.
    if rustix::process::getppid() != Some(starter) {
        // SAFETY: ends the process at once.
        unsafe { libc::_exit(128 + kill) };
    }
    enter_first(&session.folders)
}

/// Undoes what the starter ignores and would pass on.
fn default_signals() {
    for signal in 1..=64 {
        // SAFETY: sets no handler. It fails for the two signals that always have their default
        // and for those that are the C library's own.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

fn become_user(ids: &Ids) -> io::Result<()> {
    // SAFETY: the list is as long as it says.
    let grouped = unsafe { libc::setgroups(ids.groups.len(), ids.groups.as_ptr()) };
    // SAFETY: numbers only.
    if grouped < 0 || unsafe { libc::setgid(ids.gid) } < 0 || unsafe { libc::setuid(ids.uid) } < 0 {
        return Err(Step::Ids.failed());
    }
    Ok(())
}

fn enter_first(folders: &[CString]) -> io::Result<()> {
    for folder in folders {
        // SAFETY: a string with its end.
        if unsafe { libc::chdir(folder.as_ptr()) } == 0 {
            return Ok(());
        }
    }
    match folders {
        [] => Ok(()),
        _ => Err(Step::Folder.failed()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::Stdio;
    use std::sync::mpsc;
    use std::time::{Duration, Instant};

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

    fn says(command: Command, session: Session) -> String {
        let child = spawn(command, session).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// Pid, process group, session and terminal of a process, which has a name without blanks.
    const IDS: &str = "cut -d' ' -f1,5,6,7 /proc/$$/stat";

    #[test]
    fn a_program_leads_a_session_of_its_own_without_a_terminal() {
        let said = says(shell(IDS), Session::default());
        let ids: Vec<&str> = said.split(' ').collect();
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
        assert_eq!(says(command, session.clone()), "typed");

        let error = spawn(shell("exit 0"), session).unwrap_err();
        assert_eq!(error.step, Step::Terminal, "{error}");
    }

    #[test]
    fn a_program_runs_as_the_user_in_the_users_groups() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: only root can become others");
            return;
        }
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
        let said = says(shell(status), session);
        let said: Vec<&str> = said.split_whitespace().collect();
        let uid = ["Uid:", "4711", "4711", "4711", "4711"];
        let gid = ["Gid:", "4712", "4712", "4712", "4712"];
        let groups = ["Groups:", "4712", "4713"];
        assert_eq!(said, [&uid[..], &gid, &groups].concat());
    }

    #[test]
    fn the_first_directory_that_can_be_entered_is_the_programs() {
        let session = |folders: &[&str]| Session {
            folders: folders
                .iter()
                .map(|folder| CString::new(*folder).unwrap())
                .collect(),
            ..Session::default()
        };
        assert_eq!(says(shell("pwd"), session(&["/no/such", "/proc"])), "/proc");
        let error = spawn(shell("pwd"), session(&["/no/such"])).unwrap_err();
        assert_eq!(error.step, Step::Folder);
        assert_eq!(error.error.raw_os_error(), Some(libc::ENOENT));
        let error = spawn(Command::new("/no/such"), Session::default()).unwrap_err();
        assert_eq!(error.step, Step::Program);
        assert_eq!(error.error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn signals_that_the_starter_ignores_end_the_program() {
        // SAFETY: nothing in this process is sent this signal.
        unsafe { libc::signal(libc::SIGUSR2, libc::SIG_IGN) };
        let child = spawn(shell("kill -USR2 $$; echo alive"), Session::default()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.signal(), Some(libc::SIGUSR2), "{output:?}");
    }

    #[test]
    fn a_program_is_not_spared_because_its_starter_is() {
        // It takes a right.
        let lower = Command::new("sh")
            .args(["-c", "echo -5 >/proc/self/oom_score_adj"])
            .stderr(Stdio::null())
            .status();
        if !lower.unwrap().success() {
            eprintln!("skipped: the score cannot be made less here");
            return;
        }
        let before = std::fs::read("/proc/self/oom_score_adj").unwrap();
        std::fs::write("/proc/self/oom_score_adj", "-5").unwrap();
        let said = says(shell("cat /proc/$$/oom_score_adj"), Session::default());
        std::fs::write("/proc/self/oom_score_adj", before).unwrap();
        assert_eq!(said, "0");
    }

    #[test]
    fn a_program_dies_with_the_thread_that_started_it() {
        let (tell, told) = mpsc::channel();
        let starter = std::thread::spawn(move || {
            let mut child = spawn(shell("echo up; exec sleep 600"), Session::default()).unwrap();
            let mut up = [0; 3];
            let mut stdout = child.stdout.take().unwrap();
            stdout.read_exact(&mut up).unwrap();
            tell.send(child).unwrap();
        });
        let mut child = told.recv().unwrap();
        starter.join().unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "it lives on");
            std::thread::sleep(Duration::from_millis(5));
        };
        assert_eq!(status.signal(), Some(libc::SIGKILL));
    }
}
