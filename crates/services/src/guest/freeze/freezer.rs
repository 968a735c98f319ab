//! The process that freezes, and that thaws whatever becomes of the agent.
//!
//! What is frozen stays so when whoever froze it is gone, so the agent does not do it itself: this
//! is a child of its, with a pipe each way. A byte on its standard input, the end of it (the agent
//! is gone), a signal or the time limit ends the freeze. Nothing here waits for the agent, and while
//! something is frozen nothing is written but to that pipe, by a thread that does nothing else.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use hvsock_sys::freeze::{freeze, thaw};
use prost::Message;
use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags, open, statx};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep_until, timeout};
use tonic::Code;

use super::course::{Course, Fate, Next};
use super::hooks::{self, Errand};
use super::mark::{self, Mark};
use super::mounts::{self, Filesystem};
use crate::wire::freeze::thaw_reply::Outcome;
use crate::wire::freeze::{FreezeReply, Skipped, ThawReply};

/// The most filesystems of one freeze.
pub(super) const MOST: usize = 256;

/// How long all hooks together may take to get ready.
pub(super) const HOOKS: Duration = Duration::from_secs(30);

/// What to freeze, and for how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// The longest time that anything is frozen.
    pub limit: Duration,
    /// The folder of the hooks.
    pub hooks: PathBuf,
    /// The mount points; all that there are if none is named.
    pub mounts: Vec<PathBuf>,
}

/// What this process says on its standard output: a length of four bytes, little-endian, then this.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Said {
    /// Everything is frozen.
    #[prost(message, optional, tag = "1")]
    pub frozen: Option<FreezeReply>,
    /// Nothing is, any more.
    #[prost(message, optional, tag = "2")]
    pub ended: Option<ThawReply>,
    /// It came to nothing.
    #[prost(message, optional, tag = "3")]
    pub failed: Option<Failed>,
}

/// Why nothing is frozen.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Failed {
    /// A code of gRPC's.
    #[prost(int32, tag = "1")]
    pub code: i32,
    /// In words.
    #[prost(string, tag = "2")]
    pub text: String,
}

impl Failed {
    fn new(code: Code, text: impl std::fmt::Display) -> Self {
        let (code, text) = (code as i32, text.to_string());
        Self { code, text }
    }
}

/// Freezes, waits and thaws, as the process that the agent started for it.
pub fn run(order: &Order) -> io::Result<()> {
    // Whoever is killed for memory, not this one.
    let _ = fs::write("/proc/self/oom_score_adj", "-1000");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let voice = Voice::start();
    runtime.block_on(async {
        let mut ears = Ears::open()?;
        let mut ready = Vec::new();
        if let Err(failed) = whole(order, &voice, &mut ears, &mut ready).await {
            voice.say(Said {
                failed: Some(failed),
                ..Said::default()
            });
        }
        for hook in ready.iter().rev() {
            if let Err(error) = hooks::run(hook, Errand::Thaw).await {
                tracing::warn!("after the thaw: {error}");
            }
        }
        io::Result::Ok(())
    })?;
    voice.end();
    Ok(())
}

/// From the first hook to the thaw. `ready` are the hooks that are to hear of the thaw.
async fn whole(
    order: &Order,
    voice: &Voice,
    ears: &mut Ears,
    ready: &mut Vec<PathBuf>,
) -> Result<(), Failed> {
    let given_up = || Failed::new(Code::Cancelled, "the freeze was given up");
    tokio::select! {
        made = timeout(HOOKS, make_ready(&order.hooks, ready)) => match made {
            Ok(made) => made?,
            Err(_) => {
                let text = format!("the hooks took longer than {} s", HOOKS.as_secs());
                return Err(Failed::new(Code::Aborted, text));
            }
        },
        _ = ears.wish() => return Err(given_up()),
    }
    let table = fs::read("/proc/self/mountinfo");
    let table = table.map_err(|error| Failed::new(Code::FailedPrecondition, error))?;
    let selection = mounts::select(&mounts::parse(&table), &order.mounts)
        .map_err(|error| Failed::new(Code::FailedPrecondition, error))?;
    if selection.freeze.len() > MOST {
        let text = format!("there are more than {MOST} filesystems");
        return Err(Failed::new(Code::ResourceExhausted, text));
    }
    let mut reply = FreezeReply {
        skipped: selection.skipped,
        ..FreezeReply::default()
    };
    let mut opened = Vec::new();
    for filesystem in selection.freeze {
        match open_one(&filesystem) {
            Ok(file) => opened.push((filesystem, file)),
            Err(why) => reply.skipped.push(skipped(&filesystem, &why)),
        }
    }

    // Removed again when nothing is frozen. Without it a freeze is as good, but for one case.
    let points = opened
        .iter()
        .filter_map(|(filesystem, _)| filesystem.mounts.first());
    let _mark = Mark::set(
        Path::new(mark::PLACE),
        points.map(|mount| mount.point.as_path()),
    );
    let freezing = Freezing::begin(opened, order.limit);
    let due = sleep_until(freezing.due.into());
    tokio::pin!(due);
    let told = tokio::select! {
        told = freezing.told => told.unwrap_or_else(|_| Err(given_up())),
        _ = ears.wish() => Err(given_up()),
        () = &mut due => Err(Failed::new(Code::DeadlineExceeded, "to freeze took longer than the time limit")),
    };
    let told = told.and_then(|told| {
        reply.skipped.extend(told.skipped);
        reply.skipped.truncate(MOST);
        reply.frozen = told.frozen.iter().map(Filesystem::told).collect();
        match reply.frozen.is_empty() {
            true => Err(Failed::new(
                Code::FailedPrecondition,
                nothing(&reply.skipped),
            )),
            false => Ok(()),
        }
    });
    let outcome = match told {
        Err(failed) => {
            freezing.work.end();
            let _ = freezing.thread.join();
            return Err(failed);
        }
        Ok(()) => {
            voice.say(Said {
                frozen: Some(reply),
                ..Said::default()
            });
            tokio::select! {
                wish = ears.wish() => match wish {
                    Wish::Thaw => Outcome::Thawed,
                    Wish::End => Outcome::Earlier,
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
    voice.say(Said {
        ended: Some(ended),
        ..Said::default()
    });
    Ok(())
}

/// Has all hooks get ready. One that fails hears of the thaw as well: it may have done half of it.
async fn make_ready(folder: &Path, ready: &mut Vec<PathBuf>) -> Result<(), Failed> {
    let failed = |error| Failed::new(Code::Aborted, error);
    for hook in hooks::all(folder).map_err(failed)? {
        ready.push(hook.clone());
        hooks::run(&hook, Errand::Freeze).await.map_err(failed)?;
    }
    Ok(())
}

fn skipped(filesystem: &Filesystem, why: &str) -> Skipped {
    Skipped {
        filesystem: Some(filesystem.told()),
        why: why.to_string(),
    }
}

/// That there is nothing to freeze, and why.
fn nothing(skipped: &[Skipped]) -> String {
    let mut text = "there is nothing here that can be frozen".to_owned();
    for one in skipped.iter().take(4) {
        let mount = one.filesystem.as_ref().map(|filesystem| &filesystem.mount);
        text += &format!("; {}: {}", mount.map_or("", |mount| mount), one.why);
    }
    text
}

/// Opens a filesystem where it is mounted and not covered by another mount.
pub(super) fn open_one(filesystem: &Filesystem) -> Result<File, String> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let mut why = "another one is mounted over it".to_owned();
    for mount in &filesystem.mounts {
        let opened = open(&mount.point, flags, Mode::empty()).and_then(|fd| {
            let stat = statx(&fd, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?;
            // Kernels before 5.8 do not say.
            let said = StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::MNT_ID);
            Ok((fd, !said || stat.stx_mnt_id == mount.id))
        });
        match opened {
            Ok((fd, true)) => return Ok(fd.into()),
            Ok((_, false)) => {}
            Err(error) => why = error.to_string(),
        }
    }
    Err(why)
}

/// What the thread that freezes says in the end.
struct Told {
    frozen: Vec<Filesystem>,
    skipped: Vec<Skipped>,
}

/// The thread that freezes, which may have to wait for a disk long after the time limit.
struct Freezing {
    work: Arc<Work>,
    told: oneshot::Receiver<Result<Told, Failed>>,
    thread: JoinHandle<()>,
    due: Instant,
}

/// What it shares with whoever ends it.
struct Work {
    opened: Vec<(Filesystem, File)>,
    course: Mutex<Course>,
}

/// What the end came to.
#[derive(Default)]
struct End {
    failures: Vec<String>,
    /// Somebody else had thawed something.
    earlier: bool,
}

impl Freezing {
    fn begin(opened: Vec<(Filesystem, File)>, limit: Duration) -> Self {
        let course = Course::new(opened.len(), Instant::now(), limit);
        let due = course.due();
        let course = Mutex::new(course);
        let work = Arc::new(Work { opened, course });
        let (tell, told) = oneshot::channel();
        let thread = thread::spawn({
            let work = Arc::clone(&work);
            move || {
                let _ = tell.send(work.freeze_all());
            }
        });
        Self {
            work,
            told,
            thread,
            due,
        }
    }
}

impl Work {
    fn course(&self) -> MutexGuard<'_, Course> {
        self.course.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn age(&self) -> Duration {
        self.course().age(Instant::now())
    }

    fn freeze_all(&self) -> Result<Told, Failed> {
        let (mut frozen, mut others) = (Vec::new(), Vec::new());
        loop {
            let next = self.course().next(Instant::now());
            let which = match next {
                Next::Freeze(which) => which,
                Next::Complete => break,
                Next::Over => {
                    return Err(Failed::new(
                        Code::DeadlineExceeded,
                        "the time limit is over",
                    ));
                }
            };
            let (filesystem, file) = &self.opened[which];
            match freeze(file) {
                Ok(()) => {
                    if self.course().froze(which) == Fate::Thaw {
                        self.thaw_one(which, &mut End::default());
                    }
                    frozen.push(filesystem.clone());
                }
                Err(error) => match error.raw_os_error() {
                    Some(code) if code == rustix::io::Errno::BUSY.raw_os_error() => {
                        others.push(skipped(filesystem, "something else has frozen it"));
                    }
                    Some(code) if code == rustix::io::Errno::OPNOTSUPP.raw_os_error() => {
                        others.push(skipped(filesystem, "its kind cannot be frozen"));
                    }
                    _ => {
                        let mount = filesystem.told().mount;
                        let text = format!("{mount} cannot be frozen: {error}");
                        let code = match error.kind() {
                            io::ErrorKind::PermissionDenied => Code::PermissionDenied,
                            _ => Code::Aborted,
                        };
                        return Err(Failed::new(code, text));
                    }
                },
            }
        }
        Ok(Told {
            frozen,
            skipped: others,
        })
    }

    /// Thaws what is frozen.
    fn end(&self) -> End {
        let frozen = self.course().end();
        let mut end = End::default();
        for which in frozen {
            self.thaw_one(which, &mut end);
        }
        end
    }

    fn thaw_one(&self, which: usize, end: &mut End) {
        let (filesystem, file) = &self.opened[which];
        if let Err(error) = thaw(file) {
            let mount = filesystem.told().mount;
            match error.raw_os_error() {
                Some(code) if code == rustix::io::Errno::INVAL.raw_os_error() => {
                    end.earlier = true;
                    end.failures.push(format!("{mount} was thawed before"));
                }
                _ => end
                    .failures
                    .push(format!("{mount} cannot be thawed: {error}")),
            }
        }
    }
}

/// What the agent wants, or that it is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    Thaw,
    End,
}

struct Ears {
    wishes: mpsc::Receiver<Wish>,
    signals: [Signal; 3],
}

impl Ears {
    fn open() -> io::Result<Self> {
        let (tell, wishes) = mpsc::channel(2);
        thread::spawn(move || {
            let wish = match io::stdin().read(&mut [0]) {
                Ok(1..) => Wish::Thaw,
                Ok(0) | Err(_) => Wish::End,
            };
            let _ = tell.blocking_send(wish);
        });
        let signals = [
            signal(SignalKind::terminate())?,
            signal(SignalKind::interrupt())?,
            signal(SignalKind::hangup())?,
        ];
        Ok(Self { wishes, signals })
    }

    async fn wish(&mut self) -> Wish {
        let [terminate, interrupt, hangup] = &mut self.signals;
        tokio::select! {
            wish = self.wishes.recv() => wish.unwrap_or(Wish::End),
            _ = terminate.recv() => Wish::End,
            _ = interrupt.recv() => Wish::End,
            _ = hangup.recv() => Wish::End,
        }
    }
}

/// Says things to the agent without waiting for it.
struct Voice {
    tell: std::sync::mpsc::Sender<Said>,
    thread: JoinHandle<()>,
}

impl Voice {
    fn start() -> Self {
        let (tell, hear) = std::sync::mpsc::channel::<Said>();
        let thread = thread::spawn(move || {
            let mut stdout = io::stdout().lock();
            for said in hear {
                let said = said.encode_to_vec();
                let mut frame = (said.len() as u32).to_le_bytes().to_vec();
                frame.extend(said);
                if stdout
                    .write_all(&frame)
                    .and_then(|()| stdout.flush())
                    .is_err()
                {
                    return;
                }
            }
        });
        Self { tell, thread }
    }

    fn say(&self, said: Said) {
        // It is gone with the agent.
        let _ = self.tell.send(said);
    }

    /// Waits until all is said. By now nothing is frozen.
    fn end(self) {
        drop(self.tell);
        let _ = self.thread.join();
    }
}
