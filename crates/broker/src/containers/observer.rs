//! The thread that waits for the ends and pauses of containers.
//!
//! It has a pidfd of each container's first process, and the freezers of that process's cgroups. It tells the
//! core what it sees, through a [`Handle`](crate::Handle), and removes the containers that are removed with
//! their end. If the core does not answer, it tries again.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hvsock_sys::cgroup_freezer::{CgroupFreezer, Frozen};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};
use rustix::fs::inotify::{self, CreateFlags, Reader, WatchFlags};
use rustix::io::Errno;
use slab::Slab;

use super::orders::{Observed, Order, Orders};
use crate::handle::{ControlError, Handle};
use crate::sandbox;
use crate::watchdog::{self, FILES, Role, Step};

const WAKE: Token = Token(usize::MAX);
const INOTIFY: Token = Token(usize::MAX - 1);

/// The delay before a cgroup that is partly frozen is read again.
const FREEZING: Duration = Duration::from_millis(20);
/// The same for one whose changes are not notified, and before the core is told again what it did not take.
const RETRY: Duration = Duration::from_secs(1);

/// The thread before its start. It needs a handle, and a handle its orders.
#[derive(Debug)]
pub(crate) struct Unstarted {
    poll: Poll,
    queue: Receiver<Order>,
    orders: Orders,
}

/// The running thread. It ends when this is dropped.
#[derive(Debug)]
pub(crate) struct ContainerObserver {
    orders: Orders,
    thread: Option<JoinHandle<()>>,
}

impl ContainerObserver {
    /// The thread's queue of orders.
    pub(crate) fn prepare() -> io::Result<(Unstarted, Orders)> {
        let poll = Poll::new()?;
        let (orders, queue) = Orders::new(Waker::new(poll.registry(), WAKE)?);
        let unstarted = Unstarted {
            poll,
            queue,
            orders: orders.clone(),
        };
        Ok((unstarted, orders))
    }

    /// Starts the thread.
    pub(crate) fn start(unstarted: Unstarted, handle: Handle) -> io::Result<Self> {
        let Unstarted {
            poll,
            queue,
            orders,
        } = unstarted;
        let observer = Observer {
            poll,
            queue,
            handle,
            containers: Slab::new(),
            inotify: None,
            watches: HashMap::new(),
        };
        let thread = std::thread::Builder::new()
            .name("hvsock-observer".into())
            .spawn(move || {
                sandbox::enter(sandbox::Kind::Observer);
                observer.run();
            })?;
        let thread = Some(thread);
        Ok(Self { orders, thread })
    }
}

impl Drop for ContainerObserver {
    fn drop(&mut self) {
        self.orders.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Observer {
    poll: Poll,
    queue: Receiver<Order>,
    handle: Handle,
    containers: Slab<Container>,
    inotify: Option<OwnedFd>,
    /// The containers that a watched file concerns.
    watches: HashMap<i32, BTreeSet<usize>>,
}

struct Container {
    observed: Observed,
    freezers: Vec<CgroupFreezer>,
    /// What the core was told last.
    frozen: bool,
    has_ended: bool,
    /// When to look again without a notification.
    again: Option<Instant>,
    /// Changes of some freezer are not notified.
    polled: bool,
}

/// The broker stops.
struct Stopped;

impl Observer {
    fn run(mut self) {
        let _watched = self.handle.watch(Role::Helper).enter();
        let mut events = Events::with_capacity(256);
        loop {
            if self.take_orders().is_err() {
                return;
            }
            let next = self
                .containers
                .iter()
                .filter_map(|(_, one)| one.again)
                .min();
            let timeout = next.map(|next| next.saturating_duration_since(Instant::now()));
            watchdog::wait();
            let polled = self.poll.poll(&mut events, timeout);
            watchdog::begin_within(Step::Files, FILES);
            match polled {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    tracing::warn!(%error, "cannot wait for containers; trying again");
                    std::thread::sleep(RETRY);
                    continue;
                }
            }
            let mut changed: BTreeSet<usize> = BTreeSet::new();
            for event in &events {
                match event.token() {
                    WAKE => {}
                    INOTIFY => changed.extend(self.modified()),
                    Token(slot) => {
                        changed.insert(slot);
                    }
                }
            }
            let now = Instant::now();
            let due = self.containers.iter();
            let due = due.filter(|(_, one)| one.again.is_some_and(|again| again <= now));
            changed.extend(due.map(|(slot, _)| slot));
            for slot in changed {
                if self.look(slot).is_err() {
                    return;
                }
            }
        }
    }

    fn take_orders(&mut self) -> Result<(), Stopped> {
        loop {
            match self.queue.try_recv() {
                Ok(Order::Observe(observed)) => self.observe(observed)?,
                Ok(Order::Forget(number)) => {
                    let mut all = self.containers.iter();
                    let found = all.find(|(_, one)| one.observed.number == number);
                    if let Some(slot) = found.map(|(slot, _)| slot) {
                        self.remove(slot);
                    }
                }
                Ok(Order::Stop) | Err(TryRecvError::Disconnected) => return Err(Stopped),
                Err(TryRecvError::Empty) => return Ok(()),
            }
        }
    }

    fn observe(&mut self, observed: Observed) -> Result<(), Stopped> {
        let pid = observed.id.map(|id| id.pid);
        let freezers = match pid.map(CgroupFreezer::of_process) {
            Some(Ok(freezers)) => freezers,
            // It may have ended.
            Some(Err(error)) => {
                tracing::debug!(%error, "cannot find the cgroup of the process {pid:?}");
                Vec::new()
            }
            None => Vec::new(),
        };
        let frozen = observed.frozen;
        let slot = self.containers.insert(Container {
            observed,
            freezers,
            frozen,
            has_ended: false,
            again: None,
            polled: false,
        });
        self.register(slot);
        self.look(slot)
    }

    fn register(&mut self, slot: usize) {
        let Some(container) = self.containers.get_mut(slot) else {
            return;
        };
        let registry = self.poll.registry();
        let process = container.observed.process.as_raw_fd();
        let registered =
            registry.register(&mut SourceFd(&process), Token(slot), Interest::READABLE);
        if let Err(error) = registered {
            tracing::warn!(%error, "cannot wait for the end of a container");
            container.polled = true;
        }
        for freezer in &container.freezers {
            if freezer.watched().is_empty() {
                let fd = freezer.as_raw_fd();
                let changes = Interest::PRIORITY;
                let registered = registry.register(&mut SourceFd(&fd), Token(slot), changes);
                container.polled |= registered.is_err();
                continue;
            }
            let inotify = self.inotify.take().or_else(|| new_inotify(registry));
            let mut count = 0;
            for path in freezer.watched() {
                let added = inotify
                    .as_ref()
                    .map(|fd| inotify::add_watch(fd, path, WatchFlags::MODIFY));
                if let Some(Ok(watch)) = added {
                    self.watches.entry(watch).or_default().insert(slot);
                    count += 1;
                }
            }
            // The outermost cgroup may have no such file.
            container.polled |= count + 1 < freezer.watched().len() || count == 0;
            self.inotify = inotify;
        }
    }

    /// The containers whose freezer files were written to.
    fn modified(&mut self) -> BTreeSet<usize> {
        let mut slots = BTreeSet::new();
        let Some(inotify) = &self.inotify else {
            return slots;
        };
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = Reader::new(inotify.as_fd(), &mut buffer);
        loop {
            match reader.next() {
                Ok(event) => match self.watches.get(&event.wd()) {
                    Some(of_file) => slots.extend(of_file),
                    // The queue has overflowed, or a file is gone.
                    None => slots.extend(self.containers.iter().map(|(slot, _)| slot)),
                },
                Err(Errno::INTR) => {}
                Err(_) => return slots,
            }
        }
    }

    /// Looks at a container, and tells the core what has changed.
    fn look(&mut self, slot: usize) -> Result<(), Stopped> {
        let Some(container) = self.containers.get_mut(slot) else {
            return Ok(());
        };
        let Observed {
            key,
            number,
            process,
            ..
        } = &container.observed;
        let (key, number) = (*key, *number);
        container.has_ended |= process.has_ended().unwrap_or(false);
        container.again = None;
        if container.has_ended {
            return match self.handle.container_ended(key, number) {
                Ok(()) => {
                    self.remove(slot);
                    Ok(())
                }
                Err(ControlError::Stopped) => Err(Stopped),
                Err(error) => {
                    tracing::warn!("cannot record the end of a container: {error}; trying again");
                    container.again = Some(Instant::now() + RETRY);
                    Ok(())
                }
            };
        }
        let states = container.freezers.iter().map(CgroupFreezer::state);
        let states: Vec<Frozen> = states.filter_map(Result::ok).collect();
        let frozen = states.contains(&Frozen::Yes);
        let mut delay = container.polled.then_some(RETRY);
        if states.contains(&Frozen::Partly) {
            delay = Some(FREEZING);
        }
        if frozen != container.frozen {
            match self.handle.container_frozen(key, number, frozen) {
                Ok(()) => container.frozen = frozen,
                Err(ControlError::Stopped) => return Err(Stopped),
                Err(error) => {
                    tracing::warn!("cannot record the pause of a container: {error}; trying again");
                    delay = Some(RETRY);
                }
            }
        }
        container.again = delay.map(|delay| Instant::now() + delay);
        Ok(())
    }

    fn remove(&mut self, slot: usize) {
        let Some(container) = self.containers.try_remove(slot) else {
            return;
        };
        // The core may have a copy of the descriptor, which would keep it in epoll.
        let registry = self.poll.registry();
        let process = container.observed.process.as_raw_fd();
        let _ = registry.deregister(&mut SourceFd(&process));
        let inotify = self.inotify.as_ref();
        self.watches.retain(|watch, slots| {
            slots.remove(&slot);
            if let (true, Some(inotify)) = (slots.is_empty(), inotify) {
                let _ = inotify::remove_watch(inotify, *watch);
            }
            !slots.is_empty()
        });
    }
}

/// A new inotify descriptor; `None` if the user has too many.
fn new_inotify(registry: &mio::Registry) -> Option<OwnedFd> {
    let made = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK);
    let made = made.map_err(io::Error::from).and_then(|inotify| {
        let fd = inotify.as_raw_fd();
        registry.register(&mut SourceFd(&fd), INOTIFY, Interest::READABLE)?;
        Ok(inotify)
    });
    made.inspect_err(|error| {
        tracing::warn!(%error, "no inotify: the pauses of containers are polled for");
    })
    .ok()
}
