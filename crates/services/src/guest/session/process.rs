//! The process of a command: starts it under a supervisor, waits for its exit, and ends all of its
//! processes if nobody is there to receive it.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CString, NulError, OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::thread;
use std::time::{Duration, Instant};

use hvsock_sys::session::{Ids, Session, SpawnError, SpawnStep};
use hvsock_sys::supervisor::{self, Control, Exit, Program, Supervised};
use hvsock_sys::sync::lock;
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, kill_process_group};
use rustix::rand::{GetRandomFlags, getrandom};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::plan::Plan;
use super::sweep::Swept;
use super::user::Account;
use super::{environment, sweep, terminal};
use crate::wire::session::exited::How;
use crate::wire::session::{Failed, Reason};

/// A running command. Dropping it ends the command with all of its processes.
#[derive(Debug)]
pub(super) struct Process {
    pid: Pid,
    exit: Option<oneshot::Receiver<How>>,
    live: Option<Live>,
}

/// Kept for as long as processes of the command may exist.
#[derive(Debug)]
struct Live {
    supervisor: Pid,
    cookie: String,
    control: Arc<Control>,
    /// Receives, when the supervisor has ended, whether all processes have.
    ended: Mutex<mpsc::Receiver<bool>>,
    /// While this exists the supervisor stays a zombie, so its process id is not reused.
    _hold: mpsc::Sender<()>,
}

/// The agent's ends of the command's streams.
#[derive(Debug)]
pub(super) enum Streams {
    Pipes {
        stdin: Option<OwnedFd>,
        stdout: OwnedFd,
        stderr: OwnedFd,
    },
    Terminal(OwnedFd),
}

/// Starts the command.
///
/// Each command has a thread of its own, because the lookups before its start may block, and to wait
/// for its end.
pub(super) async fn start(
    plan: Plan,
    permit: OwnedSemaphorePermit,
) -> Result<(Process, Streams), Failed> {
    let (sender, started) = oneshot::channel();
    let thread = thread::Builder::new()
        .name("command".to_owned())
        .stack_size(256 << 10)
        .spawn(move || run(&plan, permit, sender));
    thread.map_err(|error| failed(Reason::Resources, format!("cannot start a thread: {error}")))?;
    started.await.unwrap_or_else(|_| {
        Err(failed(
            Reason::Resources,
            "the thread of the command is gone".to_owned(),
        ))
    })
}

/// The thread of one command: from before its start until all of its processes have ended or are left.
fn run(
    plan: &Plan,
    permit: OwnedSemaphorePermit,
    sender: oneshot::Sender<Result<(Process, Streams), Failed>>,
) {
    let begun = cookie().and_then(|cookie| Ok((begin(plan, &cookie)?, cookie)));
    let (begun, cookie) = match begun {
        Ok(begun) => begun,
        Err(failed) => {
            // The caller may be gone.
            let _ = sender.send(Err(failed));
            return;
        }
    };
    let Begun {
        mut supervised,
        control,
        streams,
    } = begun;
    let supervisor = supervised.supervisor;
    held_pids().insert(supervisor.as_raw_nonzero().get());
    let (exit_sender, exit) = oneshot::channel();
    let (ended_sender, ended) = mpsc::channel();
    let (hold, held) = mpsc::channel();
    let process = Process {
        pid: supervised.program,
        exit: Some(exit),
        live: Some(Live {
            supervisor,
            cookie,
            control: Arc::new(control),
            ended: Mutex::new(ended),
            _hold: hold,
        }),
    };
    // If the receiver is gone, the process is dropped and so ended.
    drop(sender.send(Ok((process, streams))));
    if let Some(exit) = supervised.exited() {
        let _ = exit_sender.send(match exit {
            Exit::Status(status) => How::Status(status),
            Exit::Signal(signal) => How::Signal(signal),
        });
    } else {
        drop(exit_sender);
    }
    let _ = ended_sender.send(supervised.ended());
    // Nothing is ever sent: this waits until the sender is dropped.
    let _ = held.recv();
    held_pids().remove(&supervisor.as_raw_nonzero().get());
    supervised.reap();
    drop(permit);
}

/// The process ids of supervisors, which must not be reaped elsewhere.
static HELD: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

fn held_pids() -> MutexGuard<'static, BTreeSet<i32>> {
    lock(&HELD)
}

/// Whether this is the process id of a supervisor, and so held.
pub(super) fn is_held(pid: i32) -> bool {
    held_pids().contains(&pid)
}

/// A random token. It comes from the system call, because a container may have no `/dev/urandom`.
fn cookie() -> Result<String, Failed> {
    let mut bytes = [0; 16];
    let got = rustix::io::retry_on_intr(|| getrandom(&mut bytes, GetRandomFlags::empty()));
    match got {
        Ok(16) => Ok(format!("{:032x}", u128::from_be_bytes(bytes))),
        _ => Err(failed(
            Reason::Resources,
            "no random numbers are available".to_owned(),
        )),
    }
}

/// A command that runs.
struct Begun {
    supervised: Supervised,
    control: Control,
    streams: Streams,
}

fn begin(plan: &Plan, cookie: &str) -> Result<Begun, Failed> {
    let account = match &plan.user {
        Some(user) => Account::find(user).map_err(|what| failed(Reason::User, what))?,
        None => Account::own(),
    };
    let ids = plan.user.as_ref().and_then(|_| other_ids(&account));
    let environment = environment::of(plan, &account, std::env::vars_os(), cookie);
    let session = Session {
        terminal: plan.terminal.is_some(),
        folders: folders(plan, environment.get(OsStr::new("HOME"))),
        ids,
    };
    let program = program(plan, &account, environment)
        .map_err(|_| failed(Reason::NotExecutable, "its name contains a NUL".to_owned()))?;
    let (theirs, streams) = match &plan.terminal {
        Some(terminal) => {
            let owner = session.ids.as_ref().map(|ids| ids.uid);
            open_terminal(terminal.size, owner).map_err(|error| no_terminal(&error))?
        }
        None => open_pipes(plan.stdin)
            .map_err(|error| failed(Reason::Resources, format!("no pipe: {error}")))?,
    };
    let [stdin, stdout, stderr] = theirs;
    let theirs = supervisor::Streams {
        stdin,
        stdout,
        stderr,
        input: match &streams {
            Streams::Pipes { stdin, .. } => stdin.as_ref(),
            Streams::Terminal(outer) => Some(outer),
        },
    };
    let (supervised, control) = supervisor::start(&program, theirs, &session)
        .map_err(|error| start_failed(plan, &account, &error))?;
    Ok(Begun {
        supervised,
        control,
        streams,
    })
}

/// The command's standard streams, and the agent's ends.
type BothEnds = ([OwnedFd; 3], Streams);

fn open_terminal(size: rustix::termios::Winsize, owner: Option<u32>) -> io::Result<BothEnds> {
    let pair = terminal::open(size, owner)?;
    let (stdin, stdout) = (pair.inner.try_clone()?, pair.inner.try_clone()?);
    Ok(([stdin, stdout, pair.inner], Streams::Terminal(pair.outer)))
}

fn open_pipes(with_stdin: bool) -> io::Result<BothEnds> {
    let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(io::Error::from);
    let (their_stdin, stdin) = match (with_stdin, File::open("/dev/null")) {
        (false, Ok(nothing)) => (OwnedFd::from(nothing), None),
        // Without input, and without that file, the pipe is closed at once.
        _ => {
            let (theirs, stdin) = pipe()?;
            (theirs, with_stdin.then_some(stdin))
        }
    };
    let (stdout, their_stdout) = pipe()?;
    let (stderr, their_stderr) = pipe()?;
    let streams = Streams::Pipes {
        stdin,
        stdout,
        stderr,
    };
    Ok(([their_stdin, their_stdout, their_stderr], streams))
}

/// The ids of another user; `None` if this process has them already and needs no privilege.
fn other_ids(account: &Account) -> Option<Ids> {
    let own = (
        rustix::process::geteuid().as_raw(),
        rustix::process::getegid().as_raw(),
    );
    (own != (account.uid, account.gid)).then(|| Ids {
        uid: account.uid,
        gid: account.gid,
        groups: account.groups.clone(),
    })
}

/// The command to run: the plan's words, or the user's shell as a login shell.
fn program(
    plan: &Plan,
    account: &Account,
    environment: BTreeMap<OsString, OsString>,
) -> Result<Program, NulError> {
    let text = |text: &OsStr| CString::new(text.as_bytes());
    let variable = |(mut name, value): (OsString, OsString)| {
        name.push("=");
        name.push(value);
        CString::new(name.into_vec())
    };
    let (path, arguments) = match plan.argv.first() {
        Some(program) => {
            let arguments = plan.argv.iter().map(|word| text(word)).collect();
            (text(program)?, arguments)
        }
        None => {
            let mut name = OsString::from("-");
            name.push(account.shell.file_name().unwrap_or("sh".as_ref()));
            (
                text(account.shell.as_os_str())?,
                text(&name).map(|name| vec![name]),
            )
        }
    };
    Ok(Program {
        path,
        arguments: arguments?,
        environment: environment
            .into_iter()
            .map(variable)
            .collect::<Result<_, _>>()?,
    })
}

/// The working directories to try: the plan's directory, or else the home and then `/`.
fn folders(plan: &Plan, home: Option<&OsString>) -> Vec<CString> {
    match &plan.folder {
        Some(folder) => vec![folder.clone()],
        None => {
            let home = home.and_then(|home| CString::new(home.as_bytes()).ok());
            home.into_iter().chain([c"/".to_owned()]).collect()
        }
    }
}

fn failed(reason: Reason, what: String) -> Failed {
    Failed {
        reason: reason.into(),
        what,
    }
}

fn no_terminal(error: &io::Error) -> Failed {
    let what = match Errno::from_io_error(error) {
        Some(Errno::NOENT | Errno::NODEV | Errno::NXIO) => {
            "the guest has no pseudo-terminals: mount devpts at /dev/pts".to_owned()
        }
        _ => format!("no pseudo-terminal: {error}"),
    };
    failed(Reason::Terminal, what)
}

fn start_failed(plan: &Plan, account: &Account, error: &SpawnError) -> Failed {
    let why = match error.error.kind() {
        io::ErrorKind::NotFound => "not found".to_owned(),
        kind => kind.to_string(),
    };
    let what = match (error.step, plan.argv.first(), &plan.folder) {
        (SpawnStep::Program, Some(program), _) => format!("{}: {why}", program.display()),
        (SpawnStep::Program, None, _) => format!("{}: {why}", account.shell.display()),
        (SpawnStep::Folder, _, Some(folder)) => format!("{}: {why}", folder.to_string_lossy()),
        (SpawnStep::Ids, ..) => {
            let user = plan.user.as_deref().unwrap_or_default();
            format!("the agent cannot switch to user {user}: {why}")
        }
        _ => error.to_string(),
    };
    let reason = match error.step {
        SpawnStep::Session => Reason::Resources,
        SpawnStep::Terminal => Reason::Terminal,
        SpawnStep::Ids => Reason::User,
        SpawnStep::Folder => Reason::Directory,
        SpawnStep::Program if error.error.kind() == io::ErrorKind::NotFound => Reason::NotFound,
        SpawnStep::Program => Reason::NotExecutable,
    };
    failed(reason, what)
}

impl Process {
    /// The process id.
    pub(super) fn id(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// The process id.
    pub(super) fn pid(&self) -> Pid {
        self.pid
    }

    /// Waits for the exit; `None` if its status is unknown.
    pub(super) async fn exited(&mut self) -> Option<How> {
        self.exit.take()?.await.ok()
    }

    /// Closes the command's standard input.
    pub(super) fn input_closer(&self) -> InputCloser {
        let control = self.live.as_ref().map(|live| Arc::downgrade(&live.control));
        InputCloser(control.unwrap_or_default())
    }

    /// Leaves the remaining processes of the command running.
    pub(super) fn leave(mut self) {
        if let Some(live) = self.live.take() {
            live.control.leave();
        }
    }

    /// Ends the command with all of its processes, and waits for their end.
    pub(super) async fn end(mut self) -> Swept {
        let unknown = Swept {
            unknown: true,
            ..Swept::default()
        };
        match self.sweep() {
            Some(swept) => swept.await.unwrap_or(unknown),
            None => unknown,
        }
    }

    /// Ends the command in a thread.
    fn sweep(&mut self) -> Option<oneshot::Receiver<Swept>> {
        let live = self.live.take()?;
        // At once, because the agent may be exiting too. The process is not reaped before its
        // supervisor ends, so its id is not reused.
        if matches!(lock(&live.ended).try_recv(), Err(mpsc::TryRecvError::Empty)) {
            let _ = kill_process_group(self.pid, Signal::HUP);
            let _ = kill_process_group(self.pid, Signal::CONT);
        }
        let (report, swept) = oneshot::channel();
        SWEEPS.fetch_add(1, Ordering::SeqCst);
        let sweeping = thread::Builder::new()
            .name("sweep".to_owned())
            .stack_size(256 << 10)
            .spawn(move || {
                let Live {
                    supervisor,
                    cookie,
                    control,
                    ended,
                    _hold,
                } = live;
                let ended = lock(&ended);
                let swept = sweep::end(supervisor, &cookie, || drop(control), &ended);
                // The agent may be gone.
                let _ = report.send(swept);
                SWEEPS.fetch_sub(1, Ordering::SeqCst);
            });
        if sweeping.is_err() {
            // The control is closed, so the supervisor kills all processes.
            SWEEPS.fetch_sub(1, Ordering::SeqCst);
        }
        Some(swept)
    }
}

/// Closes a command's standard input, once the agent's end is closed.
#[derive(Debug)]
pub(super) struct InputCloser(Weak<Control>);

impl InputCloser {
    pub(super) fn close(&self) {
        if let Some(control) = self.0.upgrade() {
            control.close_input();
        }
    }
}

/// The number of sessions that are being ended.
static SWEEPS: AtomicUsize = AtomicUsize::new(0);

/// Waits until all dropped commands have been ended, which takes a few seconds at most. For an
/// agent that exits.
pub(crate) fn wait_for_sweeps() {
    let deadline = Instant::now() + 2 * sweep::GRACE;
    while SWEEPS.load(Ordering::SeqCst) > 0 && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(10));
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.sweep());
    }
}
