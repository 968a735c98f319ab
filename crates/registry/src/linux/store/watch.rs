//! Being called when somebody changes the folder.
//!
//! This talks to the kernel's inotify itself and asks only for changes: a watcher that also hears
//! of every opened file (as the crate `notify` does) hears itself read a hundred thousand files,
//! and overflows. What is certain: after a change, and once at the start, the callback is called;
//! if the kernel lost count, or a folder comes or goes, it is told to look at everything.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};
use rustix::fd::OwnedFd;
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};

/// How long it must be quiet before the callback is called.
const QUIET: Duration = Duration::from_millis(20);
/// How long a change waits at most when it is never quiet.
const AT_MOST: Duration = Duration::from_millis(200);
/// How often a folder that is gone is looked for.
const LOOK_AGAIN: Duration = Duration::from_millis(250);
/// The most files that are named; with more it is everything.
const MOST_FILES: usize = 4096;

/// What may have changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Changed {
    /// These files, directly in the folders.
    Files(Vec<PathBuf>),
    /// Anything.
    Everything,
}

/// A running watch; it ends when this is dropped.
#[derive(Debug)]
pub struct Watch {
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

/// Calls `callback`, on a thread of its own, when something changes directly in `folder` or in
/// one of its folders `inside`, whether they are there yet or not; and once at the start, so that
/// nothing is missed between reading and watching.
pub fn watch(
    folder: &Path,
    inside: &[&str],
    callback: impl FnMut(Changed) + Send + 'static,
) -> io::Result<Watch> {
    let stop = Arc::new(rustix::event::eventfd(0, EventfdFlags::CLOEXEC)?);
    let mut watcher = Watcher {
        inotify: Arc::new(inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?),
        stop: Arc::clone(&stop),
        folders: std::iter::once(folder.to_owned())
            .chain(inside.iter().map(|name| folder.join(name)))
            .collect(),
        watched: HashMap::new(),
        changes: Changes::default(),
    };
    watcher.add_folders();
    watcher.changes.everything = true;
    let thread = std::thread::Builder::new()
        .name("hvsock-watch".to_owned())
        .spawn(move || watcher.run(callback))?;
    Ok(Watch {
        stop,
        thread: Some(thread),
    })
}

impl Drop for Watch {
    fn drop(&mut self) {
        let told = rustix::io::write(&*self.stop, &1u64.to_ne_bytes());
        let thread = self.thread.take().filter(|_| told.is_ok());
        // Not from inside the callback, where it would wait for itself. A panic there has been
        // reported by then.
        if let Some(thread) = thread.filter(|t| t.thread().id() != std::thread::current().id()) {
            let _ = thread.join();
        }
    }
}

struct Watcher {
    inotify: Arc<OwnedFd>,
    stop: Arc<OwnedFd>,
    folders: Vec<PathBuf>,
    /// The folders by the kernel's numbers for them.
    watched: HashMap<i32, PathBuf>,
    changes: Changes,
}

/// What was heard and not yet told.
#[derive(Default)]
struct Changes {
    everything: bool,
    files: BTreeSet<PathBuf>,
}

impl Watcher {
    fn run(mut self, mut callback: impl FnMut(Changed)) {
        loop {
            match self.gather() {
                Ok(true) => {}
                Ok(false) => return,
                // Only a bug or a lack of memory; try again, but not in a frenzy.
                Err(_) => std::thread::sleep(LOOK_AGAIN),
            }
            let Changes { everything, files } = std::mem::take(&mut self.changes);
            if everything {
                callback(Changed::Everything);
            } else if !files.is_empty() {
                callback(Changed::Files(files.into_iter().collect()));
            }
        }
    }

    /// Waits for a change and then for quiet; false if this is the end.
    fn gather(&mut self) -> io::Result<bool> {
        let mut first = None;
        loop {
            let now = Instant::now();
            if !self.changes.is_empty() {
                first.get_or_insert(now);
            }
            let wait = match first {
                Some(first) => {
                    let left = (first + AT_MOST).saturating_duration_since(now);
                    if left.is_zero() {
                        return Ok(true);
                    }
                    Some(left.min(QUIET))
                }
                None if self.watched.len() < self.folders.len() => Some(LOOK_AGAIN),
                None => None,
            };
            let (heard, stopped) = self.wait(wait)?;
            if stopped {
                return Ok(false);
            }
            if heard {
                self.read()?;
            } else if first.is_some() {
                return Ok(true);
            }
            if self.watched.len() < self.folders.len() && self.add_folders() {
                self.changes.everything = true;
            }
        }
    }

    /// Waits until there is something to read or it is the end, or for `wait`.
    fn wait(&self, wait: Option<Duration>) -> io::Result<(bool, bool)> {
        let wait = wait.and_then(|wait| Timespec::try_from(wait).ok());
        let mut fds = [
            PollFd::new(&*self.inotify, PollFlags::IN),
            PollFd::new(&*self.stop, PollFlags::IN),
        ];
        match rustix::event::poll(&mut fds, wait.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let ready = |fd: &PollFd<'_>| !fd.revents().is_empty();
        Ok((ready(&fds[0]), ready(&fds[1])))
    }

    /// Takes in all that the kernel has to say.
    fn read(&mut self) -> io::Result<()> {
        let mut buffer = [MaybeUninit::uninit(); 16 * 1024];
        let inotify = Arc::clone(&self.inotify);
        let mut reader = Reader::new(&*inotify, &mut buffer);
        loop {
            let event = match reader.next() {
                Ok(event) => event,
                Err(rustix::io::Errno::AGAIN) => return Ok(()),
                Err(rustix::io::Errno::INTR) => continue,
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
                _ if what.intersects(gone | ReadFlags::UNMOUNT) => self.forget(&folder),
                // Perhaps there is another folder under the old name.
                Some(path) if self.folders.contains(&path) => self.forget(&path),
                Some(path) if !is_hidden(&path) && !self.changes.everything => {
                    self.changes.files.insert(path);
                    self.changes.everything = self.changes.files.len() > MOST_FILES;
                }
                _ => {}
            }
        }
    }

    /// Stops watching a folder that may no longer be where it was, and what is inside it.
    fn forget(&mut self, folder: &Path) {
        let inotify = &self.inotify;
        self.watched.retain(|wd, watched| {
            let keep = !watched.starts_with(folder);
            if !keep {
                // Fails if the kernel has done so already.
                let _ = inotify::remove_watch(&**inotify, *wd);
            }
            keep
        });
        self.changes.everything = true;
    }

    /// Watches the folders that are there and not watched; says whether there was one.
    fn add_folders(&mut self) -> bool {
        let mut added = false;
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
            if let Ok(wd) = inotify::add_watch(&*self.inotify, folder, flags) {
                self.watched.insert(wd, folder.clone());
                added = true;
            }
        }
        added
    }
}

impl Changes {
    fn is_empty(&self) -> bool {
        !self.everything && self.files.is_empty()
    }
}

/// Temporary files, locks and editors' leavings.
fn is_hidden(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default();
    name.as_bytes().starts_with(b".")
}
