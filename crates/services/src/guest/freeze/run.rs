//! The agent's part in a freeze: starts the freezer process, follows it, and thaws in its place.

use std::ffi::OsString;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Instant;

use hvsock_sys::freeze::thaw;
use prost::Message as _;
use tokio::io::AsyncReadExt as _;
use tokio::process::{Child, ChildStdout, Command};
use tokio::sync::watch;
use tonic::{Code, Status};

use super::freezer::{Event, FreezeCommand, open_mount};
use super::hooks::{self, HookTask};
use super::manager::{FreezeManager, FreezeRun, Stage};
use super::marker::{self, Marker};
use super::mounts;
use crate::wire::freeze::ThawReply;
use crate::wire::freeze::thaw_reply::Outcome;

/// The largest message from the freezer, in bytes; all mounts with the longest paths fit.
const MESSAGE: u32 = 16 << 20;

/// Starts the freezer process, and a task that follows it.
pub(super) fn start(freeze: &FreezeCommand, manager: &Arc<FreezeManager>) -> io::Result<FreezeRun> {
    // Random, so that a host that remembers the id of an earlier agent does not match this freeze.
    let id = RandomState::new().build_hasher().finish().max(1);
    // The running program, even if its file has been replaced.
    let mut command = Command::new("/proc/self/exe");
    command.args(arguments(freeze));
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    // A process group of its own, so that signals to the agent's group do not reach it.
    command.process_group(0);
    let mut child = command.spawn()?;
    let pipes = (child.stdin.take(), child.stdout.take());
    let (Some(stdin), Some(stdout)) = pipes else {
        return Err(io::Error::other("the freezer has no pipes"));
    };
    let (sender, stage) = watch::channel(Stage::Freezing);
    let follow = Follow {
        id,
        command: freeze.clone(),
        manager: Arc::clone(manager),
        sender,
        begun: Instant::now(),
    };
    tokio::spawn(follow.follow(child, stdout));
    Ok(FreezeRun {
        id,
        stdin: Some(stdin),
        stage,
    })
}

/// The command line of the freezer; see `agent`.
fn arguments(command: &FreezeCommand) -> Vec<OsString> {
    let limit = command.limit.as_millis().to_string();
    let mut arguments: Vec<OsString> = vec!["freezer".into(), "--limit-ms".into(), limit.into()];
    arguments.extend(["--hooks".into(), command.hooks.clone().into(), "--".into()]);
    arguments.extend(command.mounts.iter().map(|mount| mount.clone().into()));
    arguments
}

struct Follow {
    id: u64,
    command: FreezeCommand,
    manager: Arc<FreezeManager>,
    sender: watch::Sender<Stage>,
    begun: Instant,
}

impl Follow {
    async fn follow(self, mut child: Child, mut stdout: ChildStdout) {
        while let Ok(event) = read_event(&mut stdout).await {
            if let Some(reply) = event.frozen {
                self.sender.send_replace(Stage::Frozen(reply));
            } else if let Some(reply) = event.ended {
                self.thawed(reply);
            } else if let Some(failed) = event.failed {
                let status = Status::new(Code::from(failed.code), failed.text);
                self.manager.frozen.set(false);
                self.sender.send_replace(Stage::Failed(status));
            }
        }
        let ended = child.wait().await;
        let stage = self.sender.borrow().clone();
        if matches!(stage, Stage::Freezing | Stage::Frozen(_)) {
            tracing::error!("the freezer was killed ({ended:?}); thawing its filesystems");
            self.recover(stage).await;
        }
        self.manager.over();
    }

    fn thawed(&self, reply: ThawReply) {
        self.manager.thawed(self.id, &reply);
        self.sender.send_replace(Stage::Thawed(reply));
    }

    /// Thaws in place of a killed freezer.
    async fn recover(&self, stage: Stage) {
        let wanted = match &stage {
            Stage::Frozen(reply) => {
                let mounts = reply.frozen.iter().map(|one| PathBuf::from(&one.mount));
                mounts.collect()
            }
            _ => self.command.mounts.clone(),
        };
        let failures = thaw_for_the_freezer(wanted).await;
        self.thawed(ThawReply {
            outcome: Outcome::Lost.into(),
            frozen_ms: self.begun.elapsed().as_millis() as u64,
            failures,
        });
        run_thaw_hooks(&self.command.hooks).await;
    }
}

/// Thaws what an earlier agent left frozen, if it and its freezer were both killed.
pub(in crate::guest) async fn thaw_leftovers() {
    let left = tokio::task::spawn_blocking(|| Marker::leftover(Path::new(marker::PATH)));
    match left.await {
        Ok(Ok(Some((marker, mounts)))) => {
            tracing::error!(
                "an earlier agent was killed while filesystems were frozen; thawing them"
            );
            thaw_for_the_freezer(mounts).await;
            drop(marker);
            run_thaw_hooks(Path::new(hooks::FOLDER)).await;
        }
        Ok(Ok(None)) | Err(_) => {}
        Ok(Err(error)) => tracing::warn!("{}: {error}", marker::PATH),
    }
}

/// Thaws these filesystems, or all that can be frozen. Returns the failures.
async fn thaw_for_the_freezer(wanted: Vec<PathBuf>) -> Vec<String> {
    let thawed = tokio::task::spawn_blocking(move || thaw_all(wanted)).await;
    let failures = match thawed {
        Ok(Ok(failures)) => failures,
        Ok(Err(error)) => vec![error.to_string()],
        Err(error) => vec![error.to_string()],
    };
    for failure in &failures {
        tracing::error!("{failure}");
    }
    failures
}

async fn run_thaw_hooks(folder: &Path) {
    for hook in hooks::all(folder).into_iter().flatten().rev() {
        if let Err(error) = hooks::run(&hook, HookTask::Thaw).await {
            tracing::warn!("thaw hook failed: {error}");
        }
    }
}

/// Thaws the frozen ones of these filesystems, or of all that can be frozen.
fn thaw_all(mut wanted: Vec<PathBuf>) -> io::Result<Vec<String>> {
    let table = mounts::parse(&std::fs::read("/proc/self/mountinfo")?);
    let mut failures = Vec::new();
    let selection = loop {
        match mounts::select(&table, &wanted) {
            Ok(selection) => break selection,
            Err(gone) => {
                failures.push(gone.to_string());
                wanted.retain(|point| *point != gone.0);
                if wanted.is_empty() {
                    return Ok(failures);
                }
            }
        }
    };
    // In reverse order: a filesystem that is stored on another one can only be written to when the
    // other one is thawed.
    for filesystem in selection.freeze.iter().rev() {
        let thawed = match open_mount(filesystem) {
            Ok(file) => thaw(file).map_err(|error| (error.raw_os_error(), error.to_string())),
            Err(error) => Err((None, error)),
        };
        match thawed {
            // It was not frozen.
            Err((Some(code), _)) if code == rustix::io::Errno::INVAL.raw_os_error() => {}
            Err((_, error)) => {
                let mount = filesystem.to_wire().mount;
                failures.push(format!("cannot thaw \"{mount}\": {error}"));
            }
            Ok(()) => {}
        }
    }
    Ok(failures)
}

async fn read_event(stdout: &mut ChildStdout) -> io::Result<Event> {
    let length = stdout.read_u32_le().await?;
    if length > MESSAGE {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut event = vec![0; length as usize];
    stdout.read_exact(&mut event).await?;
    Event::decode(event.as_slice()).map_err(io::Error::other)
}
