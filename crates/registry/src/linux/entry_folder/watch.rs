//! Watches the directories for changes, with inotify.
//!
//! It uses inotify directly and subscribes to changes only. The crate `notify` also subscribes to opens:
//! it would report this process's own reads of a hundred thousand files and overflow the event queue.
//! Guarantees: the callback is called once at the start and after each change. If the event queue
//! overflows, or a directory appears or disappears, the callback gets [`Changed::Everything`].
//!
//! If the kernel has no inotify instance or watch left, which other processes of the user may have taken,
//! the callback is called at intervals instead, [`WatchHealth`] says why, and inotify is tried again.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};
use rustix::fd::OwnedFd;
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;

use crate::store::WatchFault;

/// The debounce time: the callback is called after this time without a change.
const DEBOUNCE: Duration = Duration::from_millis(20);
/// The maximum delay of a change while further changes arrive.
const MAX_DELAY: Duration = Duration::from_millis(200);
/// The poll interval for a missing directory.
const RETRY_INTERVAL: Duration = Duration::from_millis(250);
/// The shortest interval of the calls without inotify. A slow callback makes it longer.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// The longest interval of the calls without inotify.
const MAX_POLL_INTERVAL: Duration = Duration::from_secs(60);
/// How often longer than the callback takes an interval is: it uses 5 % of a processor at most.
const POLL_COST: u32 = 20;
/// The maximum number of listed files. Above it, [`Changed::Everything`] is reported.
const MAX_FILES: usize = 4096;

/// The limit of inotify instances of one user, and that of watches, as sysctl(8) names them.
const INSTANCES: &str = "fs.inotify.max_user_instances";
const WATCHES: &str = "fs.inotify.max_user_watches";

/// What may have changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Changed {
    /// These files, directly in the watched directories.
    Files(Vec<PathBuf>),
    /// Any file.
    Everything,
}

/// A running watch of directories. Dropping it stops its thread.
#[derive(Debug)]
pub struct FolderWatch {
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

/// Whether a watch is notified of changes. Clones are about the same watch.
#[derive(Clone, Debug, Default)]
pub struct WatchHealth(Arc<Mutex<Option<WatchFault>>>);

impl WatchHealth {
    /// Why changes are not notified but polled for; `None` while they are.
    pub fn fault(&self) -> Option<WatchFault> {
        self.locked().clone()
    }

    /// A fault is complete at any time, also if a thread panicked while it held the lock.
    fn locked(&self) -> MutexGuard<'_, Option<WatchFault>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Watches `folder` and its subdirectories `inside`, which need not exist yet. Calls `callback` on a new
/// thread after each change directly in one of them. Also calls it once at the start, so that no change
/// between reading and watching is missed. `health` says whether inotify serves it, and changes before a
/// call.
///
/// # Errors
/// The system's error if the eventfd or the thread cannot be created.
#[doc(alias = "inotify")]
pub fn watch(
    folder: &Path,
    inside: &[&str],
    health: &WatchHealth,
    callback: impl FnMut(Changed) + Send + 'static,
) -> io::Result<FolderWatch> {
    let stop = Arc::new(rustix::event::eventfd(0, EventfdFlags::CLOEXEC)?);
    let mut watcher = Watcher {
        inotify: None,
        health: health.clone(),
        poll_interval: POLL_INTERVAL,
        stop: Arc::clone(&stop),
        folders: std::iter::once(folder.to_owned())
            .chain(inside.iter().map(|name| folder.join(name)))
            .collect(),
        watched: HashMap::new(),
        changes: PendingChanges::default(),
    };
    watcher.watch_folders();
    watcher.changes.everything = true;
    let thread = std::thread::Builder::new()
        .name("hvsock-watch".to_owned())
        .spawn(move || watcher.run(callback))?;
    Ok(FolderWatch {
        stop,
        thread: Some(thread),
    })
}

impl Drop for FolderWatch {
    fn drop(&mut self) {
        let signalled = rustix::io::write(&*self.stop, &1u64.to_ne_bytes());
        let thread = self.thread.take().filter(|_| signalled.is_ok());
        // Do not join from within the callback: the thread would wait for itself. The panic hook has
        // already reported a panic of the callback.
        if let Some(thread) = thread.filter(|t| t.thread().id() != std::thread::current().id()) {
            let _ = thread.join();
        }
    }
}

impl Changed {
    /// Adds what changed later.
    pub fn merge(&mut self, later: Changed) {
        match (&mut *self, later) {
            (Changed::Files(files), Changed::Files(more))
                if files.len() + more.len() <= MAX_FILES =>
            {
                files.extend(more);
            }
            _ => *self = Changed::Everything,
        }
    }
}

struct Watcher {
    /// `None` if the kernel has no instance left.
    inotify: Option<Arc<OwnedFd>>,
    health: WatchHealth,
    /// The interval of the calls while there is a fault.
    poll_interval: Duration,
    stop: Arc<OwnedFd>,
    folders: Vec<PathBuf>,
    /// The watched directories by watch descriptor.
    watched: HashMap<i32, PathBuf>,
    changes: PendingChanges,
}

/// Changes that are not yet reported.
#[derive(Default)]
struct PendingChanges {
    everything: bool,
    files: BTreeSet<PathBuf>,
}

impl Watcher {
    fn run(mut self, mut callback: impl FnMut(Changed)) {
        loop {
            match self.collect_changes() {
                Ok(true) => {}
                Ok(false) => return,
                // Only a bug or a lack of memory. Retry, but do not spin.
                Err(_) => std::thread::sleep(RETRY_INTERVAL),
            }
            let PendingChanges { everything, files } = std::mem::take(&mut self.changes);
            let start = Instant::now();
            if everything {
                callback(Changed::Everything);
            } else if !files.is_empty() {
                callback(Changed::Files(files.into_iter().collect()));
            }
            let cost = start.elapsed().saturating_mul(POLL_COST);
            self.poll_interval = cost.clamp(POLL_INTERVAL, MAX_POLL_INTERVAL);
        }
    }

    /// Waits for a change and then for the debounce time. Returns false if the watch was stopped.
    fn collect_changes(&mut self) -> io::Result<bool> {
        let mut first = None;
        loop {
            let now = Instant::now();
            if !self.changes.is_empty() {
                first.get_or_insert(now);
            }
            let wait = match first {
                Some(first) => {
                    let left = (first + MAX_DELAY).saturating_duration_since(now);
                    if left.is_zero() {
                        return Ok(true);
                    }
                    Some(left.min(DEBOUNCE))
                }
                None if self.is_faulty() => Some(self.poll_interval),
                None if self.watched.len() < self.folders.len() => Some(RETRY_INTERVAL),
                None => None,
            };
            let (readable, stopped) = self.wait(wait)?;
            if stopped {
                return Ok(false);
            }
            if readable {
                self.read()?;
            } else if first.is_some() {
                return Ok(true);
            }
            if self.watched.len() < self.folders.len() && self.watch_folders() {
                self.changes.everything = true;
            }
        }
    }

    /// Polls for events and for the stop signal, at most for `wait`. Returns which of them is ready.
    fn wait(&self, wait: Option<Duration>) -> io::Result<(bool, bool)> {
        let wait = wait.and_then(|wait| Timespec::try_from(wait).ok());
        let mut fds = vec![PollFd::new(&*self.stop, PollFlags::IN)];
        fds.extend(
            self.inotify
                .as_deref()
                .map(|inotify| PollFd::new(inotify, PollFlags::IN)),
        );
        match rustix::event::poll(&mut fds, wait.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let ready = |fd: &PollFd<'_>| !fd.revents().is_empty();
        Ok((fds.get(1).is_some_and(ready), ready(&fds[0])))
    }

    /// Drains the event queue.
    fn read(&mut self) -> io::Result<()> {
        let Some(inotify) = self.inotify.clone() else {
            return Ok(());
        };
        let mut buffer = [MaybeUninit::uninit(); 16 * 1024];
        let mut reader = Reader::new(&*inotify, &mut buffer);
        loop {
            let event = match reader.next() {
                Ok(event) => event,
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(errno.into()),
            };
            let (wd, what) = (event.wd(), event.events());
            let name = event
                .file_name()
                .map(|name| OsStr::from_bytes(name.to_bytes()));
            if what.intersects(ReadFlags::QUEUE_OVERFLOW) {
                self.changes.everything = true;
            }
            let Some(folder) = self.watched.get(&wd).cloned() else {
                continue;
            };
            let gone = ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF | ReadFlags::IGNORED;
            match name.map(|name| folder.join(name)) {
                _ if what.intersects(gone | ReadFlags::UNMOUNT) => self.unwatch(&folder),
                // A watched directory was replaced by another one with the same name.
                Some(path) if self.folders.contains(&path) => self.unwatch(&path),
                Some(path) if !is_hidden(&path) && !self.changes.everything => {
                    self.changes.files.insert(path);
                    self.changes.everything = self.changes.files.len() > MAX_FILES;
                }
                _ => {}
            }
        }
    }

    /// Stops watching a directory that may have moved, and its subdirectories.
    fn unwatch(&mut self, folder: &Path) {
        let inotify = self.inotify.as_deref();
        self.watched.retain(|wd, watched| {
            let keep = !watched.starts_with(folder);
            if let Some(inotify) = inotify.filter(|_| !keep) {
                // Fails if the kernel has already removed the watch.
                let _ = inotify::remove_watch(inotify, *wd);
            }
            keep
        });
        self.changes.everything = true;
    }

    /// Watches the directories that exist and are not watched yet, and records why one cannot be.
    /// Returns whether there may be changes that nobody was notified of.
    fn watch_folders(&mut self) -> bool {
        let (added, fault) = match self.add_folders() {
            Ok(added) => (added, None),
            Err(fault) => (false, Some(fault)),
        };
        let is_faulty = fault.is_some();
        let mut known = self.health.locked();
        let was_faulty = known.is_some();
        *known = fault;
        added || is_faulty || was_faulty
    }

    fn is_faulty(&self) -> bool {
        self.health.locked().is_some()
    }

    /// Watches the directories that exist and are not watched yet. Returns whether there were any.
    fn add_folders(&mut self) -> Result<bool, WatchFault> {
        let inotify = match &self.inotify {
            Some(inotify) => Arc::clone(inotify),
            None => {
                let flags = CreateFlags::CLOEXEC | CreateFlags::NONBLOCK;
                let new = inotify::init(flags).map_err(|errno| self.no_instance(errno))?;
                Arc::clone(self.inotify.insert(Arc::new(new)))
            }
        };
        let (mut added, mut fault) = (false, None);
        for folder in &self.folders {
            if self.watched.values().any(|watched| watched == folder) {
                continue;
            }
            let flags = WatchFlags::CREATE
                | WatchFlags::CLOSE_WRITE
                | WatchFlags::ATTRIB
                | WatchFlags::DELETE
                | WatchFlags::MOVED_FROM
                | WatchFlags::MOVED_TO
                | WatchFlags::DELETE_SELF
                | WatchFlags::MOVE_SELF
                | WatchFlags::ONLYDIR
                | WatchFlags::EXCL_UNLINK;
            match inotify::add_watch(&*inotify, folder, flags) {
                Ok(wd) => {
                    self.watched.insert(wd, folder.clone());
                    added = true;
                }
                // There is none now, which the retries notice.
                Err(Errno::NOENT | Errno::NOTDIR) => {}
                Err(errno) => fault = fault.or(Some(self.no_watch(errno))),
            }
        }
        match fault {
            None => Ok(added),
            Some(fault) => Err(fault),
        }
    }

    fn no_instance(&self, errno: Errno) -> WatchFault {
        // The kernel reports its limit for each user as it does the limit of the process.
        let is_users = errno == Errno::MFILE && rustix::io::dup(&*self.stop).is_ok();
        let (why, limit) = match is_users {
            true => (
                "this user has no inotify instance left".to_owned(),
                Some(INSTANCES),
            ),
            false => (
                format!("no inotify instance: {}", io::Error::from(errno)),
                None,
            ),
        };
        self.fault(&why, limit)
    }

    fn no_watch(&self, errno: Errno) -> WatchFault {
        match errno {
            Errno::NOSPC => self.fault("this user has no inotify watch left", Some(WATCHES)),
            errno => {
                let why = format!("it cannot be watched: {}", io::Error::from(errno));
                self.fault(&why, None)
            }
        }
    }

    fn fault(&self, why: &str, limit: Option<&'static str>) -> WatchFault {
        let path = self.folders.last().cloned().unwrap_or_default();
        let what = format!(
            "changes in {} are found late, by reading it at intervals: {why}",
            path.display()
        );
        WatchFault { path, what, limit }
    }
}

impl PendingChanges {
    fn is_empty(&self) -> bool {
        !self.everything && self.files.is_empty()
    }
}

/// Whether the name has a leading dot: temporary files, locks and backup files.
fn is_hidden(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default();
    name.as_bytes().starts_with(b".")
}
