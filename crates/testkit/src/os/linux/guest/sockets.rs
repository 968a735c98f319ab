//! A guest whose programs connect, listen, read and write.
//!
//! The thread that waits for something looks at the queues itself, so that a message is with its
//! reader after one wake-up; while nobody waits, a thread of the guest's own does.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hvsock_sys::event::Event;
use hvsock_sys::poll::{self, PollFd, PollFlags};
use hvsock_virtio::{SocketKind, shutdown};

use super::connection::{Connection, Key, Over};
use super::core::{Core, Leader, Listening, Message, message_end};
use super::driver::{Driver, Options};

/// The host's context id.
pub const HOST: u64 = 2;

/// How long Linux waits for the answer to a connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// While threads come and go, how often the guest's own looks whether it has to lead.
const TICK: Duration = Duration::from_millis(1);
/// After so many ticks of the same leader it rests until it is called.
const TICKS: u32 = 3;

/// A running guest. Its connections end with it, without a word.
#[derive(Debug)]
pub struct Guest {
    shared: Arc<Shared>,
    worker: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    core: Mutex<Core>,
    /// What the worker rests on.
    rest: Condvar,
    /// Wakes a thread that leads and sleeps.
    nudge: Event,
    /// Wakes the worker while it leads.
    nudge_worker: Event,
    calls: [OwnedFd; 2],
    spin: Duration,
}

impl Guest {
    /// Starts a guest whose device is at `path`.
    pub fn start(path: &Path, options: Options) -> io::Result<Self> {
        Self::with_spin(path, options, Duration::ZERO)
    }

    /// Likewise; whoever waits looks for so long before it sleeps.
    pub fn with_spin(path: &Path, options: Options, spin: Duration) -> io::Result<Self> {
        let mut driver = Driver::start(path, options)?;
        let calls = [
            driver.rx().call_event().try_clone_to_owned()?,
            driver.tx().call_event().try_clone_to_owned()?,
        ];
        let shared = Arc::new(Shared {
            core: Mutex::new(Core::new(driver)),
            rest: Condvar::new(),
            nudge: Event::new()?,
            nudge_worker: Event::new()?,
            calls,
            spin,
        });
        let worker = Arc::clone(&shared);
        let worker = std::thread::Builder::new()
            .name("guest".to_owned())
            .stack_size(256 << 10)
            .spawn(move || worker.work())?;
        Ok(Self {
            shared,
            worker: Some(worker),
        })
    }

    /// Connects to a port of the host.
    pub fn connect(&self, port: u32) -> io::Result<GuestStream> {
        self.connect_to(SocketKind::Stream, HOST, port, CONNECT_TIMEOUT)
    }

    /// Connects to a port of anybody.
    pub fn connect_to(
        &self,
        kind: SocketKind,
        cid: u64,
        port: u32,
        timeout: Duration,
    ) -> io::Result<GuestStream> {
        let own = self.shared.lock().free_port();
        self.connect_from(own, kind, cid, port, timeout)
    }

    /// Connects from a port of one's own choice.
    pub fn connect_from(
        &self,
        own: u32,
        kind: SocketKind,
        cid: u64,
        port: u32,
        timeout: Duration,
    ) -> io::Result<GuestStream> {
        let key = Key {
            kind,
            port: own,
            peer_cid: cid,
            peer_port: port,
        };
        let changed = self.shared.lock().request(key)?;
        let until = Some(Instant::now() + timeout);
        let connected = self
            .shared
            .block(&changed, until, |core| core.connected(key));
        if let Err(error) = connected {
            self.shared.lock().reset(key);
            return Err(error);
        }
        Ok(GuestStream::new(&self.shared, key, changed))
    }

    /// Listens on a port for streams.
    pub fn listen(&self, port: u32) -> io::Result<GuestListener> {
        self.listen_for(SocketKind::Stream, port, 128)
    }

    /// Listens on a port.
    pub fn listen_for(
        &self,
        kind: SocketKind,
        port: u32,
        backlog: usize,
    ) -> io::Result<GuestListener> {
        let mut core = self.shared.lock();
        if core.listeners.contains_key(&(kind, port)) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        let changed = Arc::new(Condvar::new());
        let listening = Listening {
            backlog,
            queue: Default::default(),
            changed: Arc::clone(&changed),
        };
        core.listeners.insert((kind, port), listening);
        Ok(GuestListener {
            shared: Arc::clone(&self.shared),
            kind,
            port,
            changed,
        })
    }

    /// Stops all of the guest's processors, and lets something be done to it.
    pub fn stopped<T>(&self, what: impl FnOnce(&mut Driver) -> T) -> T {
        what(&mut self.shared.lock().driver)
    }

    /// Pauses the machine for as long as `meanwhile` takes.
    pub fn pause(&self, meanwhile: impl FnOnce(&mut Driver)) -> io::Result<()> {
        let driver = &mut self.shared.lock().driver;
        let bases = driver.stop_queues()?;
        meanwhile(driver);
        driver.start_queues(bases)
    }

    /// Restarts the guest. Its listeners listen again.
    pub fn reboot(&self) -> io::Result<()> {
        let mut core = self.shared.lock();
        core.forget();
        core.driver.reboot()
    }

    /// Restarts the machine: its process was killed, and another began.
    pub fn kill_and_start(&self) -> io::Result<()> {
        let mut core = self.shared.lock();
        core.forget();
        core.driver.disconnect();
        core.driver.forget();
        core.driver.connect()?;
        core.driver.refill();
        Ok(())
    }

    /// Connects the machine to a device whose process was restarted.
    pub fn reconnect(&self) -> io::Result<()> {
        let mut core = self.shared.lock();
        core.driver.disconnect();
        core.driver.connect()
    }

    /// What the device did that it must not do.
    pub fn faults(&self) -> Vec<String> {
        self.shared.lock().faults.clone()
    }

    /// How many connections there are, those that are being closed included.
    pub fn connections(&self) -> usize {
        self.shared.lock().connections.len()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let mut core = self.shared.lock();
        core.ended = true;
        core.forget();
        core.driver.disconnect();
        drop(core);
        self.shared.nudge.set();
        self.shared.nudge_worker.set();
        self.shared.rest.notify_all();
        if let Some(worker) = self.worker.take() {
            let _ = worker.join();
        }
    }
}

/// A stream or a connection of messages. The last of its clones to go closes it.
#[derive(Clone, Debug)]
pub struct GuestStream(Arc<Handle>);

#[derive(Debug)]
struct Handle {
    shared: Arc<Shared>,
    key: Key,
    changed: Arc<Condvar>,
    /// Of reading and of writing.
    timeouts: Mutex<[Option<Duration>; 2]>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        let mut core = self.shared.lock();
        core.release(self.key);
        self.shared.wake(&core);
    }
}

impl GuestStream {
    fn new(shared: &Arc<Shared>, key: Key, changed: Arc<Condvar>) -> Self {
        Self(Arc::new(Handle {
            shared: Arc::clone(shared),
            key,
            changed,
            timeouts: Mutex::default(),
        }))
    }

    fn block<T>(
        &self,
        timeout: usize,
        attempt: impl FnMut(&mut Core) -> Option<io::Result<T>>,
    ) -> io::Result<T> {
        let timeouts = self.0.timeouts.lock();
        let timeout = timeouts.unwrap_or_else(PoisonError::into_inner)[timeout];
        let until = timeout.map(|timeout| Instant::now() + timeout);
        self.0.shared.block(&self.0.changed, until, attempt)
    }

    /// Bounds each read from now on; the error is `TimedOut`.
    pub fn set_read_timeout(&self, timeout: Option<Duration>) {
        let timeouts = self.0.timeouts.lock();
        timeouts.unwrap_or_else(PoisonError::into_inner)[0] = timeout;
    }

    /// Bounds each write from now on; the error is `TimedOut`.
    pub fn set_write_timeout(&self, timeout: Option<Duration>) {
        let timeouts = self.0.timeouts.lock();
        timeouts.unwrap_or_else(PoisonError::into_inner)[1] = timeout;
    }

    /// Its port in the guest.
    pub fn port(&self) -> u32 {
        self.0.key.port
    }

    /// The peer's context id and port.
    pub fn peer(&self) -> (u64, u32) {
        (self.0.key.peer_cid, self.0.key.peer_port)
    }

    /// Ends one direction or both.
    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        let bits = match how {
            Shutdown::Read => shutdown::RECEIVE,
            Shutdown::Write => shutdown::SEND,
            Shutdown::Both => shutdown::BOTH,
        };
        let mut core = self.0.shared.lock();
        core.shutdown(self.0.key, bits)?;
        self.0.shared.wake(&core);
        Ok(())
    }

    /// Closes it, and waits for the answer: how it ended. Only the last of its clones can.
    pub fn close(self, timeout: Duration) -> io::Result<Over> {
        let key = self.0.key;
        // An error is that it is over already.
        let _ = self.shutdown(Shutdown::Both);
        let until = Some(Instant::now() + timeout);
        self.0.shared.block(&self.0.changed, until, |core| {
            let connection = core.connections.get(&key)?;
            connection.over.map(Ok)
        })
    }

    /// How it ended, if it did.
    pub fn over(&self) -> Option<Over> {
        let mut core = self.0.shared.lock();
        core.turn();
        core.connections.get(&self.0.key)?.over
    }

    /// Ends it by a reset.
    pub fn reset(self) {
        self.0.shared.lock().reset(self.0.key);
    }

    /// Whether a read would not wait.
    pub fn has_data(&self) -> bool {
        let mut core = self.0.shared.lock();
        core.turn();
        let connection = core.connections.get(&self.0.key);
        connection.is_some_and(Connection::has_unread)
    }

    /// Whether a read would give bytes, an end or an error.
    pub fn is_readable(&self) -> bool {
        let mut core = self.0.shared.lock();
        core.turn();
        core.is_readable(self.0.key)
    }

    /// Whether a write would take bytes or give an error.
    pub fn is_writable(&self) -> bool {
        let mut core = self.0.shared.lock();
        core.turn();
        core.is_writable(self.0.key)
    }

    /// Writes as much as there is credit for, at most all, and never waits.
    pub fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut core = self.0.shared.lock();
        core.turn();
        core.try_write(self.0.key, bytes)
    }

    /// Reads what there is, and never waits.
    pub fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut core = self.0.shared.lock();
        core.turn();
        let read = core.read(self.0.key, buffer);
        read.unwrap_or(Err(io::ErrorKind::WouldBlock.into()))
    }

    /// Sends a message; with `record` its end is that of a record, too.
    pub fn send_message(&self, bytes: &[u8], record: bool) -> io::Result<()> {
        let key = self.0.key;
        let mut sent = 0;
        self.block(1, |core| {
            let most = core.connections.get(&key).map(Connection::peer_buffer);
            if most.is_some_and(|most| bytes.len() > most) {
                return Some(Err(io::ErrorKind::InvalidInput.into()));
            }
            core.write(key, bytes, &mut sent, Some(message_end(record)))
        })
    }

    /// Takes the next message, and whether it ended a record; `None` at the end.
    pub fn receive_message(&self) -> io::Result<Message> {
        let key = self.0.key;
        self.block(0, |core| core.read_message(key))
    }
}

impl Read for &GuestStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let key = self.0.key;
        if buffer.is_empty() {
            return Ok(0);
        }
        self.block(0, |core| core.read(key, buffer))
    }
}

impl Write for &GuestStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let key = self.0.key;
        let mut sent = 0;
        self.block(1, |core| core.write(key, bytes, &mut sent, None))?;
        Ok(sent)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for GuestStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        (&*self).read(buffer)
    }
}

impl Write for GuestStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&*self).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A listener; the connections that it has not accepted end with it.
#[derive(Debug)]
pub struct GuestListener {
    shared: Arc<Shared>,
    kind: SocketKind,
    port: u32,
    changed: Arc<Condvar>,
}

impl GuestListener {
    /// Takes the next connection; waits so long for it.
    pub fn accept(&self, timeout: Duration) -> io::Result<GuestStream> {
        let until = Some(Instant::now() + timeout);
        let name = (self.kind, self.port);
        let (key, changed) = self.shared.block(&self.changed, until, |core| {
            let key = core.listeners.get_mut(&name)?.queue.pop_front()?;
            let connection = core.connections.get(&key)?;
            Some(Ok((key, Arc::clone(&connection.changed))))
        })?;
        Ok(GuestStream::new(&self.shared, key, changed))
    }

    /// Its port.
    pub fn port(&self) -> u32 {
        self.port
    }
}

impl Drop for GuestListener {
    fn drop(&mut self) {
        let mut core = self.shared.lock();
        if let Some(listening) = core.listeners.remove(&(self.kind, self.port)) {
            listening.queue.into_iter().for_each(|key| core.reset(key));
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes a leader that sleeps: something that it waits for may have been done here.
    fn wake(&self, core: &Core) {
        match core.leader {
            Leader::User if core.asleep => self.nudge.set(),
            Leader::Worker => self.nudge_worker.set(),
            _ => {}
        }
    }

    /// Attempts something until it is done, and meanwhile leads or follows.
    fn block<T>(
        &self,
        changed: &Condvar,
        until: Option<Instant>,
        mut attempt: impl FnMut(&mut Core) -> Option<io::Result<T>>,
    ) -> io::Result<T> {
        let mut core = self.lock();
        let began = Instant::now();
        let mut leads = false;
        let result = loop {
            if core.ended {
                break Err(io::ErrorKind::NotConnected.into());
            }
            if leads || core.driver.rx().has_used() {
                core.turn();
            }
            if let Some(result) = attempt(&mut core) {
                break result;
            }
            let now = Instant::now();
            if until.is_some_and(|until| now >= until) {
                break Err(io::ErrorKind::TimedOut.into());
            }
            if core.leader == Leader::User && !leads {
                // The leader has to be called for what is waited for here, too.
                if !core.want_room.is_empty() {
                    self.wake(&core);
                }
                core.followers += 1;
                let left = until.map_or(Duration::from_secs(3600), |until| until - now);
                let woken = changed.wait_timeout(core, left);
                core = woken.unwrap_or_else(PoisonError::into_inner).0;
                core.followers -= 1;
                continue;
            }
            if !leads {
                leads = true;
                if core.leader == Leader::Worker {
                    self.nudge_worker.set();
                    core.asleep = false;
                }
                core.leader = Leader::User;
                core.terms += 1;
            }
            if now.duration_since(began) < self.spin {
                drop(core);
                (0..64).for_each(|_| std::hint::spin_loop());
                core = self.lock();
                continue;
            }
            core = self.sleep(core, until, Leader::User, &self.nudge);
        };
        if leads {
            core.leader = Leader::Nobody;
            // Those who followed need somebody to lead.
            if core.followers > 0 || core.worker_rests {
                core.worker_rests = false;
                self.rest.notify_one();
            }
        }
        result
    }

    /// The leader's sleep, until the device calls or somebody here does.
    fn sleep<'a>(
        &'a self,
        mut core: MutexGuard<'a, Core>,
        until: Option<Instant>,
        leader: Leader,
        nudge: &Event,
    ) -> MutexGuard<'a, Core> {
        if core.arm() {
            return core;
        }
        core.asleep = true;
        let until = until.into_iter().chain(core.deadline()).min();
        drop(core);
        let [rx, tx] = &self.calls;
        let mut fds = [
            PollFd::new(rx, PollFlags::IN),
            PollFd::new(tx, PollFlags::IN),
            PollFd::new(nudge, PollFlags::IN),
        ];
        // If it fails, what it waits for is looked at once more.
        let _ = poll::wait(&mut fds, until);
        let came = [0, 1, 2].map(|at| !fds[at].revents().is_empty());
        let mut core = self.lock();
        if came[2] {
            nudge.clear();
        }
        // What another leads by now is his to take back.
        if core.leader == leader {
            core.asleep = false;
            if came[0] {
                core.driver.rx().clear_call();
            }
            if came[1] {
                core.driver.tx().clear_call();
            }
        }
        core
    }

    /// What the guest's own thread does.
    fn work(&self) {
        let mut core = self.lock();
        let (mut term, mut ticks) = (0, 0);
        while !core.ended {
            let quiet = core.terms == term;
            term = core.terms;
            if core.leader == Leader::User || !quiet {
                ticks = if quiet { ticks + 1 } else { 0 };
                core.worker_rests = ticks > TICKS;
                core = if core.worker_rests {
                    let woken = self.rest.wait(core);
                    woken.unwrap_or_else(PoisonError::into_inner)
                } else {
                    let woken = self.rest.wait_timeout(core, TICK);
                    woken.unwrap_or_else(PoisonError::into_inner).0
                };
                // Called, not by the clock: those who follow wait for it.
                if core.leader == Leader::Nobody && core.followers > 0 {
                    term = core.terms;
                }
                continue;
            }
            core.leader = Leader::Worker;
            core.turn();
            core = self.sleep(core, None, Leader::Worker, &self.nudge_worker);
        }
    }
}
