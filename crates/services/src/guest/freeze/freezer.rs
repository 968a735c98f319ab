//! The freezer process: it freezes, and it thaws even if the agent dies.
//!
//! Filesystems stay frozen when the process that froze them is gone, so the agent does not freeze
//! them itself. The freezer is its child, with a pipe in each direction. A byte on standard input,
//! its end of file (the agent is gone), a signal or the time limit ends the freeze. The freezer
//! never waits for the agent. While filesystems are frozen it writes only to that pipe, from a
//! dedicated thread.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use hvsock_sys::freeze::{freeze, thaw};
use hvsock_sys::sync::lock;
use prost::Message;
use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags, open, statx};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep_until, timeout};
use tonic::Code;

use super::hooks::{self, HookTask};
use super::marker::{self, Marker};
use super::mounts::{self, Filesystem};
use super::state::{FreezeOutcome, FreezeState, NextStep};
use crate::wire::freeze::thaw_reply::Outcome;
use crate::wire::freeze::{FreezeReply, Skipped, ThawReply};

/// The most filesystems in one freeze.
pub(super) const MAX_FILESYSTEMS: usize = 256;

/// How long all hooks together may take to prepare.
pub(super) const HOOKS: Duration = Duration::from_secs(30);

/// The filesystems to freeze, and the time limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FreezeCommand {
    /// The time limit.
    pub limit: Duration,
    /// The folder of the hooks.
    pub hooks: PathBuf,
    /// The mount points; empty for all that can be frozen.
    pub mounts: Vec<PathBuf>,
}

/// A report of this process on its standard output: a length of four bytes, little-endian, then
/// this message.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Event {
    /// Everything is frozen.
    #[prost(message, optional, tag = "1")]
    pub frozen: Option<FreezeReply>,
    /// Nothing is frozen any more.
    #[prost(message, optional, tag = "2")]
    pub ended: Option<ThawReply>,
    /// The freeze failed.
    #[prost(message, optional, tag = "3")]
    pub failed: Option<Failed>,
}

/// Why the freeze failed.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Failed {
    /// A gRPC status code.
    #[prost(int32, tag = "1")]
    pub code: i32,
    /// The error text.
    #[prost(string, tag = "2")]
    pub text: String,
}

impl Failed {
    fn new(code: Code, text: impl std::fmt::Display) -> Self {
        let (code, text) = (code as i32, text.to_string());
        Self { code, text }
    }
}

/// Freezes, waits and thaws. It runs in the process that the agent starts for it.
///
/// # Errors
///
/// The system's error if the process cannot set itself up. Failures of the freeze are reported to
/// the agent.
pub fn run(command: &FreezeCommand) -> io::Result<()> {
    // Protects this process from the OOM killer.
    let _ = fs::write("/proc/self/oom_score_adj", "-1000");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let events = EventWriter::start();
    runtime.block_on(async {
        let mut commands = CommandReader::open()?;
        let mut ready = Vec::new();
        if let Err(failed) = freeze_and_thaw(command, &events, &mut commands, &mut ready).await {
            events.write(Event {
                failed: Some(failed),
                ..Event::default()
            });
        }
        for hook in ready.iter().rev() {
            if let Err(error) = hooks::run(hook, HookTask::Thaw).await {
                tracing::warn!("thaw hook failed: {error}");
            }
        }
        io::Result::Ok(())
    })?;
    events.end();
    Ok(())
}

/// Runs from the first hook to the thaw. `ready` collects the hooks that must be run at the thaw.
async fn freeze_and_thaw(
    command: &FreezeCommand,
    events: &EventWriter,
    commands: &mut CommandReader,
    ready: &mut Vec<PathBuf>,
) -> Result<(), Failed> {
    let cancelled = || Failed::new(Code::Cancelled, "the freeze was cancelled");
    tokio::select! {
        prepared = timeout(HOOKS, prepare(&command.hooks, ready)) => match prepared {
            Ok(prepared) => prepared?,
            Err(_) => {
                let text = format!("the hooks exceeded their limit of {} s", HOOKS.as_secs());
                return Err(Failed::new(Code::Aborted, text));
            }
        },
        _ = commands.next() => return Err(cancelled()),
    }
    let table = fs::read("/proc/self/mountinfo");
    let table = table.map_err(|error| Failed::new(Code::FailedPrecondition, error))?;
    let selection = mounts::select(&mounts::parse(&table), &command.mounts)
        .map_err(|error| Failed::new(Code::FailedPrecondition, error))?;
    if selection.freeze.len() > MAX_FILESYSTEMS {
        let text = format!("more than {MAX_FILESYSTEMS} filesystems to freeze");
        return Err(Failed::new(Code::ResourceExhausted, text));
    }
    let mut reply = FreezeReply {
        skipped: selection.skipped,
        ..FreezeReply::default()
    };
    let mut opened = Vec::new();
    for filesystem in selection.freeze {
        match open_mount(&filesystem) {
            Ok(file) => opened.push((filesystem, file)),
            Err(why) => reply.skipped.push(skipped(&filesystem, &why)),
        }
    }

    // Removed when nothing is frozen any more. A freeze without the marker still works: it is
    // needed only if the agent and the freezer are both killed.
    let points = opened
        .iter()
        .filter_map(|(filesystem, _)| filesystem.mounts.first());
    let _marker = Marker::set(
        Path::new(marker::PATH),
        points.map(|mount| mount.point.as_path()),
    );
    let freezing = Freezing::begin(opened, command.limit);
    let due = sleep_until(freezing.due.into());
    tokio::pin!(due);
    let result = tokio::select! {
        result = freezing.result => result.unwrap_or_else(|_| Err(cancelled())),
        _ = commands.next() => Err(cancelled()),
        () = &mut due => Err(Failed::new(Code::DeadlineExceeded, "freezing took longer than the time limit")),
    };
    let result = result.and_then(|result| {
        reply.skipped.extend(result.skipped);
        reply.skipped.truncate(MAX_FILESYSTEMS);
        reply.frozen = result.frozen.iter().map(Filesystem::to_wire).collect();
        match reply.frozen.is_empty() {
            true => Err(Failed::new(
                Code::FailedPrecondition,
                nothing_to_freeze(&reply.skipped),
            )),
            false => Ok(()),
        }
    });
    let outcome = match result {
        Err(failed) => {
            freezing.work.end();
            let _ = freezing.thread.join();
            return Err(failed);
        }
        Ok(()) => {
            events.write(Event {
                frozen: Some(reply),
                ..Event::default()
            });
            tokio::select! {
                command = commands.next() => match command {
                    Command::Thaw => Outcome::Thawed,
                    Command::End => Outcome::Earlier,
                },
                () = due => Outcome::Expired,
            }
        }
    };
    let frozen_ms = freezing.work.age().as_millis() as u64;
    let end = freezing.work.end();
    let outcome = match end.earlier {
        true => Outcome::Earlier,
        false => outcome,
    };
    let ended = ThawReply {
        outcome: outcome.into(),
        frozen_ms,
        failures: end.failures,
    };
    events.write(Event {
        ended: Some(ended),
        ..Event::default()
    });
    Ok(())
}

/// Runs all hooks before the freeze. A hook that fails is run at the thaw as well, because it may
/// have done half of its task.
async fn prepare(folder: &Path, ready: &mut Vec<PathBuf>) -> Result<(), Failed> {
    let failed = |error| Failed::new(Code::Aborted, error);
    for hook in hooks::all(folder).map_err(failed)? {
        ready.push(hook.clone());
        hooks::run(&hook, HookTask::Freeze).await.map_err(failed)?;
    }
    Ok(())
}

fn skipped(filesystem: &Filesystem, why: &str) -> Skipped {
    Skipped {
        filesystem: Some(filesystem.to_wire()),
        why: why.to_string(),
    }
}

/// The error text if there is nothing to freeze, with reasons.
fn nothing_to_freeze(skipped: &[Skipped]) -> String {
    let mut text = "no filesystem here can be frozen".to_owned();
    for one in skipped.iter().take(4) {
        let mount = one.filesystem.as_ref().map(|filesystem| &filesystem.mount);
        text += &format!("; {}: {}", mount.map_or("", |mount| mount), one.why);
    }
    text
}

/// Opens a filesystem at a mount point that is not covered by another mount.
pub(super) fn open_mount(filesystem: &Filesystem) -> Result<File, String> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let mut why = "another filesystem is mounted over it".to_owned();
    for mount in &filesystem.mounts {
        let opened = open(&mount.point, flags, Mode::empty()).and_then(|fd| {
            let stat = statx(&fd, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?;
            // Kernels before 5.8 do not report the mount's id.
            let has_id = StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::MNT_ID);
            Ok((fd, !has_id || stat.stx_mnt_id == mount.id))
        });
        match opened {
            Ok((fd, true)) => return Ok(fd.into()),
            Ok((_, false)) => {}
            Err(error) => why = error.to_string(),
        }
    }
    Err(why)
}

/// The result of the thread that freezes.
struct FreezeResult {
    frozen: Vec<Filesystem>,
    skipped: Vec<Skipped>,
}

/// The thread that freezes. It may be blocked by a disk long after the time limit.
struct Freezing {
    work: Arc<Work>,
    result: oneshot::Receiver<Result<FreezeResult, Failed>>,
    thread: JoinHandle<()>,
    due: Instant,
}

/// The state shared between that thread and the one that ends the freeze.
struct Work {
    opened: Vec<(Filesystem, File)>,
    state: Mutex<FreezeState>,
}

/// The result of the thaw.
#[derive(Default)]
struct ThawResult {
    failures: Vec<String>,
    /// Another process had already thawed a filesystem.
    earlier: bool,
}

impl Freezing {
    fn begin(opened: Vec<(Filesystem, File)>, limit: Duration) -> Self {
        let state = FreezeState::new(opened.len(), Instant::now(), limit);
        let due = state.due();
        let state = Mutex::new(state);
        let work = Arc::new(Work { opened, state });
        let (sender, result) = oneshot::channel();
        let thread = thread::spawn({
            let work = Arc::clone(&work);
            move || {
                let _ = sender.send(work.freeze_all());
            }
        });
        Self {
            work,
            result,
            thread,
            due,
        }
    }
}

impl Work {
    fn state(&self) -> MutexGuard<'_, FreezeState> {
        lock(&self.state)
    }

    fn age(&self) -> Duration {
        self.state().age(Instant::now())
    }

    fn freeze_all(&self) -> Result<FreezeResult, Failed> {
        let (mut frozen, mut others) = (Vec::new(), Vec::new());
        loop {
            let next = self.state().next(Instant::now());
            let which = match next {
                NextStep::Freeze(which) => which,
                NextStep::Complete => break,
                NextStep::Over => {
                    return Err(Failed::new(
                        Code::DeadlineExceeded,
                        "the time limit has passed",
                    ));
                }
            };
            let (filesystem, file) = &self.opened[which];
            match freeze(file) {
                Ok(()) => {
                    if self.state().froze(which) == FreezeOutcome::Thaw {
                        self.thaw_one(which, &mut ThawResult::default());
                    }
                    frozen.push(filesystem.clone());
                }
                Err(error) => match error.raw_os_error() {
                    Some(code) if code == rustix::io::Errno::BUSY.raw_os_error() => {
                        others.push(skipped(filesystem, "another program has frozen it"));
                    }
                    Some(code) if code == rustix::io::Errno::OPNOTSUPP.raw_os_error() => {
                        others.push(skipped(
                            filesystem,
                            "this type of filesystem cannot be frozen",
                        ));
                    }
                    _ => {
                        let mount = filesystem.to_wire().mount;
                        let text = format!("cannot freeze \"{mount}\": {error}");
                        let code = match error.kind() {
                            io::ErrorKind::PermissionDenied => Code::PermissionDenied,
                            _ => Code::Aborted,
                        };
                        return Err(Failed::new(code, text));
                    }
                },
            }
        }
        Ok(FreezeResult {
            frozen,
            skipped: others,
        })
    }

    /// Thaws all frozen filesystems.
    fn end(&self) -> ThawResult {
        let frozen = self.state().end();
        let mut result = ThawResult::default();
        for which in frozen {
            self.thaw_one(which, &mut result);
        }
        result
    }

    fn thaw_one(&self, which: usize, result: &mut ThawResult) {
        let (filesystem, file) = &self.opened[which];
        if let Err(error) = thaw(file) {
            let mount = filesystem.to_wire().mount;
            match error.raw_os_error() {
                Some(code) if code == rustix::io::Errno::INVAL.raw_os_error() => {
                    result.earlier = true;
                    result
                        .failures
                        .push(format!("\"{mount}\" was already thawed"));
                }
                _ => result
                    .failures
                    .push(format!("cannot thaw \"{mount}\": {error}")),
            }
        }
    }
}

/// A command of the agent, or its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Command {
    Thaw,
    End,
}

struct CommandReader {
    received: mpsc::Receiver<Command>,
    signals: [Signal; 3],
}

impl CommandReader {
    fn open() -> io::Result<Self> {
        let (sender, received) = mpsc::channel(2);
        thread::spawn(move || {
            let command = match io::stdin().read(&mut [0]) {
                Ok(1..) => Command::Thaw,
                Ok(0) | Err(_) => Command::End,
            };
            let _ = sender.blocking_send(command);
        });
        let signals = [
            signal(SignalKind::terminate())?,
            signal(SignalKind::interrupt())?,
            signal(SignalKind::hangup())?,
        ];
        Ok(Self { received, signals })
    }

    async fn next(&mut self) -> Command {
        let [terminate, interrupt, hangup] = &mut self.signals;
        tokio::select! {
            command = self.received.recv() => command.unwrap_or(Command::End),
            _ = terminate.recv() => Command::End,
            _ = interrupt.recv() => Command::End,
            _ = hangup.recv() => Command::End,
        }
    }
}

/// Writes events to the agent without blocking the caller.
struct EventWriter {
    sender: std::sync::mpsc::Sender<Event>,
    thread: JoinHandle<()>,
}

impl EventWriter {
    fn start() -> Self {
        let (sender, queue) = std::sync::mpsc::channel::<Event>();
        let thread = thread::spawn(move || {
            let mut stdout = io::stdout().lock();
            for event in queue {
                let event = event.encode_to_vec();
                let mut frame = (event.len() as u32).to_le_bytes().to_vec();
                frame.extend(event);
                if stdout
                    .write_all(&frame)
                    .and_then(|()| stdout.flush())
                    .is_err()
                {
                    return;
                }
            }
        });
        Self { sender, thread }
    }

    fn write(&self, event: Event) {
        // An error means that the agent is gone.
        let _ = self.sender.send(event);
    }

    /// Waits until all events are written. Nothing is frozen by now.
    fn end(self) {
        drop(self.sender);
        let _ = self.thread.join();
    }
}
