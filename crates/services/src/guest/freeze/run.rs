//! One freeze, as the agent follows it: the process that does it, and what that has said.

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
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::watch;
use tonic::{Code, Status};

use super::Desk;
use super::freezer::{Order, Said, open_one};
use super::hooks::{self, Errand};
use super::mark::{self, Mark};
use super::mounts;
use crate::wire::freeze::thaw_reply::Outcome;
use crate::wire::freeze::{FreezeReply, ThawReply};

/// The most bytes of one message from the freezer: all mounts with the longest paths fit.
const MESSAGE: u32 = 16 << 20;

/// How far a freeze is.
#[derive(Clone, Debug)]
pub(super) enum Stage {
    Freezing,
    Frozen(FreezeReply),
    /// Nothing is frozen any more.
    Thawed(ThawReply),
    /// Nothing came of it, and nothing is frozen.
    Failed(Status),
}

/// A freeze, from its begin until its last hook has run.
pub(super) struct Run {
    pub id: u64,
    /// Dropped, or with a byte written to it, the freeze ends.
    pub stdin: Option<ChildStdin>,
    pub stage: watch::Receiver<Stage>,
}

impl Run {
    /// Starts the process, and a task that follows it.
    pub(super) fn start(order: &Order, desk: &Arc<Desk>) -> io::Result<Self> {
        // Not to be met again by a host that remembers one of an agent before this.
        let id = RandomState::new().build_hasher().finish().max(1);
        // This very program, even if its file has been replaced since it was started.
        let mut command = Command::new("/proc/self/exe");
        command.args(arguments(order));
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        // Away from what is sent to the agent's group.
        command.process_group(0);
        let mut child = command.spawn()?;
        let pipes = (child.stdin.take(), child.stdout.take());
        let (Some(stdin), Some(stdout)) = pipes else {
            return Err(io::Error::other("it has no pipes"));
        };
        let (tell, stage) = watch::channel(Stage::Freezing);
        let follow = Follow {
            id,
            order: order.clone(),
            desk: Arc::clone(desk),
            tell,
            begun: Instant::now(),
        };
        tokio::spawn(follow.follow(child, stdout));
        Ok(Self {
            id,
            stdin: Some(stdin),
            stage,
        })
    }
}

/// What makes the agent the freezer: see `agent`.
fn arguments(order: &Order) -> Vec<OsString> {
    let limit = order.limit.as_millis().to_string();
    let mut arguments: Vec<OsString> = vec!["freezer".into(), "--limit-ms".into(), limit.into()];
    arguments.extend(["--hooks".into(), order.hooks.clone().into(), "--".into()]);
    arguments.extend(order.mounts.iter().map(|mount| mount.clone().into()));
    arguments
}

struct Follow {
    id: u64,
    order: Order,
    desk: Arc<Desk>,
    tell: watch::Sender<Stage>,
    begun: Instant,
}

impl Follow {
    async fn follow(self, mut child: Child, mut stdout: ChildStdout) {
        while let Ok(said) = hear(&mut stdout).await {
            if let Some(reply) = said.frozen {
                self.tell.send_replace(Stage::Frozen(reply));
            } else if let Some(reply) = said.ended {
                self.thawed(reply);
            } else if let Some(failed) = said.failed {
                let status = Status::new(Code::from(failed.code), failed.text);
                self.desk.still.set(false);
                self.tell.send_replace(Stage::Failed(status));
            }
        }
        let ended = child.wait().await;
        let stage = self.tell.borrow().clone();
        if matches!(stage, Stage::Freezing | Stage::Frozen(_)) {
            tracing::error!("the freezer was killed ({ended:?}): its filesystems are thawed");
            self.recover(stage).await;
        }
        self.desk.over();
    }

    fn thawed(&self, reply: ThawReply) {
        self.desk.thawed(self.id, &reply);
        self.tell.send_replace(Stage::Thawed(reply));
    }

    /// Thaws in place of the freezer.
    async fn recover(&self, stage: Stage) {
        let wanted = match &stage {
            Stage::Frozen(reply) => {
                let mounts = reply.frozen.iter().map(|one| PathBuf::from(&one.mount));
                mounts.collect()
            }
            _ => self.order.mounts.clone(),
        };
        let failures = in_place_of_the_freezer(wanted).await;
        self.thawed(ThawReply {
            outcome: Outcome::Lost.into(),
            frozen_ms: self.begun.elapsed().as_millis() as u64,
            failures,
        });
        tell_hooks(&self.order.hooks).await;
    }
}

/// Thaws what an agent before this one left frozen, when it and its freezer were killed at once.
pub(in crate::guest) async fn thaw_what_was_left() {
    let left = tokio::task::spawn_blocking(|| Mark::left(Path::new(mark::PLACE)));
    match left.await {
        Ok(Ok(Some((mark, mounts)))) => {
            tracing::error!("an agent was killed while filesystems were frozen: they are thawed");
            in_place_of_the_freezer(mounts).await;
            drop(mark);
            tell_hooks(Path::new(super::HOOKS)).await;
        }
        Ok(Ok(None)) | Err(_) => {}
        Ok(Err(error)) => tracing::warn!("{}: {error}", mark::PLACE),
    }
}

/// Thaws these, or all that could be frozen, and says what could not be thawed.
async fn in_place_of_the_freezer(wanted: Vec<PathBuf>) -> Vec<String> {
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

async fn tell_hooks(folder: &Path) {
    for hook in hooks::all(folder).into_iter().flatten().rev() {
        if let Err(error) = hooks::run(&hook, Errand::Thaw).await {
            tracing::warn!("after the thaw: {error}");
        }
    }
}

/// Thaws whatever is frozen of these, or of all that could be frozen.
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
    // The other way round: what lies on another can only be written to once that is thawed.
    for filesystem in selection.freeze.iter().rev() {
        let thawed = match open_one(filesystem) {
            Ok(file) => thaw(file).map_err(|error| (error.raw_os_error(), error.to_string())),
            Err(error) => Err((None, error)),
        };
        match thawed {
            // Not frozen.
            Err((Some(code), _)) if code == rustix::io::Errno::INVAL.raw_os_error() => {}
            Err((_, error)) => {
                let mount = filesystem.told().mount;
                failures.push(format!("{mount} cannot be thawed: {error}"));
            }
            Ok(()) => {}
        }
    }
    Ok(failures)
}

async fn hear(stdout: &mut ChildStdout) -> io::Result<Said> {
    let length = stdout.read_u32_le().await?;
    if length > MESSAGE {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut said = vec![0; length as usize];
    stdout.read_exact(&mut said).await?;
    Said::decode(said.as_slice()).map_err(io::Error::other)
}
