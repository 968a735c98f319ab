//! The process of a command: starts it, waits for its exit, and keeps its process id reserved until
//! all of its session has been ended.

use std::collections::BTreeSet;
use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::sync::{Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use hvsock_sys::session::{self, Ids, Session, SpawnError, SpawnStep};
use hvsock_sys::sync::lock;
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use rustix::rand::{GetRandomFlags, getrandom};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::plan::Plan;
use super::user::Account;
use super::{environment, sweep, terminal};
use crate::wire::session::exited::How;
use crate::wire::session::{Failed, Reason};

/// A running command. Dropping it ends the command with all of its session.
#[derive(Debug)]
pub(super) struct Process {
    pid: Pid,
    exit: Option<oneshot::Receiver<How>>,
    live: Option<Live>,
}

/// Kept for as long as processes of the session may exist.
#[derive(Debug)]
struct Live {
    cookie: String,
    /// While this exists the process stays a zombie, so its process id is not reused.
    _hold: mpsc::Sender<()>,
    /// The permit for one of the concurrent commands.
    _permit: OwnedSemaphorePermit,
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
/// Each command has a thread of its own, because the process dies with the thread that started it
/// (`PR_SET_PDEATHSIG`), and because the lookups before may block.
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

/// The thread of one command: from before its start until after its exit.
fn run(
    plan: &Plan,
    permit: OwnedSemaphorePermit,
    sender: oneshot::Sender<Result<(Process, Streams), Failed>>,
) {
    let begun = cookie().and_then(|cookie| Ok((begin(plan, &cookie)?, cookie)));
    let ((mut child, streams), cookie) = match begun {
        Ok(begun) => begun,
        Err(failed) => {
            // The caller may be gone.
            let _ = sender.send(Err(failed));
            return;
        }
    };
    let pid = Pid::from_child(&child);
    held_pids().insert(child.id());
    let (exit_sender, exit) = oneshot::channel();
    let (hold, held) = mpsc::channel();
    let process = Process {
        pid,
        exit: Some(exit),
        live: Some(Live {
            cookie,
            _hold: hold,
            _permit: permit,
        }),
    };
    // If the receiver is gone, the process is dropped and so ended.
    drop(sender.send(Ok((process, streams))));
    if let Some(how) = end_of(pid) {
        let _ = exit_sender.send(how);
    }
    // Nothing is ever sent: this waits until the sender is dropped.
    let _ = held.recv();
    held_pids().remove(&child.id());
    let _ = child.wait();
}

/// The process ids of commands, which must not be reaped elsewhere.
static HELD: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());

fn held_pids() -> MutexGuard<'static, BTreeSet<u32>> {
    lock(&HELD)
}

/// Whether this is the process id of a command, and so held.
pub(super) fn is_held(pid: i32) -> bool {
    u32::try_from(pid).is_ok_and(|pid| held_pids().contains(&pid))
}

/// Waits for the exit of a process without reaping it.
fn end_of(pid: Pid) -> Option<How> {
    loop {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        match waitid(WaitId::Pid(pid), options) {
            Ok(Some(status)) => {
                let number = |number: i32| u32::try_from(number).ok();
                return match status.exit_status() {
                    Some(status) => number(status).map(How::Status),
                    None => status
                        .terminating_signal()
                        .and_then(number)
                        .map(How::Signal),
                };
            }
            Ok(None) | Err(Errno::INTR) => {}
            Err(_) => return None,
        }
    }
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

fn begin(plan: &Plan, cookie: &str) -> Result<(Child, Streams), Failed> {
    let account = match &plan.user {
        Some(user) => Account::find(user).map_err(|what| failed(Reason::User, what))?,
        None => Account::own(),
    };
    let ids = plan.user.as_ref().and_then(|_| other_ids(&account));
    let mut command = program(plan, &account);
    let environment = environment::of(plan, &account, std::env::vars_os(), cookie);
    let folders = folders(plan, environment.get(OsStr::new("HOME")));
    command.env_clear().envs(environment);
    let outer = match &plan.terminal {
        Some(terminal) => {
            let owner = ids.as_ref().map(|ids| ids.uid);
            let pair = terminal::open(terminal.size, owner).map_err(|error| no_terminal(&error))?;
            let inner = || pair.inner.try_clone().map_err(|error| no_terminal(&error));
            command.stdin(inner()?).stdout(inner()?).stderr(inner()?);
            Some(pair.outer)
        }
        None => {
            let stdin = match (plan.stdin, File::open("/dev/null")) {
                (false, Ok(nothing)) => nothing.into(),
                // Without input, and without that file, the pipe is closed below.
                _ => Stdio::piped(),
            };
            command
                .stdin(stdin)
                .stdout(Stdio::piped())
                .stderr(Stdio::piped());
            None
        }
    };
    let session = Session {
        terminal: outer.is_some(),
        ids,
        folders,
    };
    let mut child =
        session::spawn(command, session).map_err(|error| start_failed(plan, &account, &error))?;
    let streams = match outer {
        Some(outer) => Streams::Terminal(outer),
        None => {
            let stdin = child.stdin.take().filter(|_| plan.stdin);
            let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
                // Cannot happen: both were requested.
                let _ = child.kill().and_then(|()| child.wait());
                return Err(failed(Reason::Resources, "it has no pipes".to_owned()));
            };
            Streams::Pipes {
                stdin: stdin.map(OwnedFd::from),
                stdout: stdout.into(),
                stderr: stderr.into(),
            }
        }
    };
    Ok((child, streams))
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
fn program(plan: &Plan, account: &Account) -> Command {
    if let Some((program, arguments)) = plan.argv.split_first() {
        let mut command = Command::new(program);
        command.args(arguments);
        return command;
    }
    let mut command = Command::new(&account.shell);
    let mut name = OsString::from("-");
    name.push(account.shell.file_name().unwrap_or("sh".as_ref()));
    command.arg0(name);
    command
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

    /// Leaves the remaining processes of the session running.
    pub(super) fn leave(mut self) {
        self.live = None;
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
        let Some(live) = self.live.take() else {
            return;
        };
        let pid = self.pid;
        // At once, because the agent may be exiting too.
        let _ = kill_process_group(pid, Signal::HUP);
        let _ = kill_process_group(pid, Signal::CONT);
        SWEEPS.fetch_add(1, Ordering::SeqCst);
        let sweeping = thread::Builder::new()
            .name("sweep".to_owned())
            .stack_size(256 << 10)
            .spawn(move || {
                sweep::end(pid, &live.cookie);
                drop(live);
                SWEEPS.fetch_sub(1, Ordering::SeqCst);
            });
        if sweeping.is_err() {
            SWEEPS.fetch_sub(1, Ordering::SeqCst);
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }
}
