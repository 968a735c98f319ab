//! A guest whose programs connect, listen, read and write.
//!
//! Threads follow the leader/followers pattern. A blocked thread processes the queues itself, so one
//! wakeup delivers a message to its reader. While no thread is blocked, the guest's worker thread does.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hvsock_sys::event::Event;
use hvsock_sys::poll::{self, PollFd, PollFlags};
use hvsock_sys::sync::{lock, unpoisoned};
use hvsock_virtio::{SocketKind, shutdown};

use super::connection::{CloseReason, Connection, Key};
use super::core::{Core, Leader, ListenerState, Message, message_end};
use super::driver::Driver;
use super::options::Options;

/// The host's context id (`VMADDR_CID_HOST`).
#[doc(alias = "VMADDR_CID_HOST")]
pub const HOST: u64 = 2;

/// How long to wait for the response to a connect. Linux waits 2 seconds (`VSOCK_DEFAULT_CONNECT_TIMEOUT`), which can pass
/// on a busy machine.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// How often the worker checks, while leaders change, whether it has to lead.
const TICK: Duration = Duration::from_millis(1);
/// The worker parks after this many ticks with the same leader.
const TICKS: u32 = 3;

/// A running guest. Dropping it disconnects the VMM; its connections end without a shutdown or reset.
#[derive(Debug)]
pub struct Guest {
    shared: Arc<Shared>,
    worker: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    core: Mutex<Core>,
    /// Wakes the worker while it does not lead.
    worker_wakeup: Condvar,
    /// Wakes a parked leader.
    leader_wakeup: Event,
    /// Wakes the worker while it leads.
    leading_worker_wakeup: Event,
    /// The call descriptors of all queues.
    calls: [OwnedFd; 3],
    spin: Duration,
}

impl Guest {
    /// Starts a guest whose vhost-user device listens at `path`. Blocked threads park at once.
    ///
    /// # Errors
    /// As [`Driver::start`].
    pub fn start(path: &Path, options: Options) -> io::Result<Self> {
        Self::with_spin(path, options, Duration::ZERO)
    }

    /// Starts a guest whose blocked threads spin for `spin` before they park.
    ///
    /// # Errors
    /// As [`Driver::start`].
    pub fn with_spin(path: &Path, options: Options, spin: Duration) -> io::Result<Self> {
        let mut driver = Driver::start(path, options)?;
        let calls = [
            driver.rx().call_event().try_clone_to_owned()?,
            driver.tx().call_event().try_clone_to_owned()?,
            driver.events().call_event().try_clone_to_owned()?,
        ];
        let shared = Arc::new(Shared {
            core: Mutex::new(Core::new(driver)),
            worker_wakeup: Condvar::new(),
            leader_wakeup: Event::new()?,
            leading_worker_wakeup: Event::new()?,
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

    /// Connects to a port of the host, with Linux's timeout of 2 s.
    ///
    /// # Errors
    /// `ConnectionRefused` or `TimedOut`.
    pub fn connect(&self, port: u32) -> io::Result<GuestStream> {
        self.connect_to(SocketKind::Stream, HOST, port, CONNECT_TIMEOUT)
    }

    /// Connects to a port of any context id, from an ephemeral port.
    ///
    /// # Errors
    /// `ConnectionRefused` or `TimedOut`.
    pub fn connect_to(
        &self,
        kind: SocketKind,
        cid: u64,
        port: u32,
        timeout: Duration,
    ) -> io::Result<GuestStream> {
        let local = self.shared.lock().free_port();
        self.connect_from(local, kind, cid, port, timeout)
    }

    /// Connects from the given local port.
    ///
    /// # Errors
    /// `ConnectionRefused`, `TimedOut`, or `AddrInUse` if this connection exists.
    pub fn connect_from(
        &self,
        local: u32,
        kind: SocketKind,
        cid: u64,
        port: u32,
        timeout: Duration,
    ) -> io::Result<GuestStream> {
        let key = Key {
            kind,
            port: local,
            peer_cid: cid,
            peer_port: port,
        };
        let changed = self.shared.lock().start_connect(key)?;
        let until = Some(Instant::now() + timeout);
        let connected = self
            .shared
            .block(&changed, until, |core| core.connect_result(key));
        if let Err(error) = connected {
            self.shared.lock().reset(key);
            return Err(error);
        }
        Ok(GuestStream::new(&self.shared, key, changed))
    }

    /// Listens on a port for stream connections, with a backlog of 128.
    ///
    /// # Errors
    /// `AddrInUse` if the port has a listener.
    pub fn listen(&self, port: u32) -> io::Result<GuestListener> {
        self.listen_for(SocketKind::Stream, port, 128)
    }

    /// Listens on a port for connections of one kind.
    ///
    /// # Errors
    /// `AddrInUse` if the port has a listener.
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
        let listener = ListenerState {
            backlog,
            queue: Default::default(),
            changed: Arc::clone(&changed),
        };
        core.listeners.insert((kind, port), listener);
        Ok(GuestListener {
            shared: Arc::clone(&self.shared),
            kind,
            port,
            changed,
        })
    }

    /// Runs `action` on the driver while no other thread of the guest runs.
    pub fn with_driver<T>(&self, action: impl FnOnce(&mut Driver) -> T) -> T {
        action(&mut self.shared.lock().driver)
    }

    /// Pauses the VM (stops its queues) while `meanwhile` runs, and resumes it.
    ///
    /// # Errors
    /// If the device cannot be reached or rejects the setup.
    pub fn pause(&self, meanwhile: impl FnOnce(&mut Driver)) -> io::Result<()> {
        let driver = &mut self.shared.lock().driver;
        driver.stop_queues()?;
        meanwhile(driver);
        driver.resume_queues()
    }

    /// Takes a snapshot of the VM, which goes on after `meanwhile`. Returns the device's state, if there is one.
    ///
    /// # Errors
    /// If the device cannot be reached or rejects the transfer or the setup.
    pub fn snapshot(&self, meanwhile: impl FnOnce(&mut Driver)) -> io::Result<Option<Vec<u8>>> {
        let driver = &mut self.shared.lock().driver;
        driver.stop_queues()?;
        let state = driver.save()?;
        meanwhile(driver);
        driver.resume_saved()?;
        Ok(state)
    }

    /// Takes a snapshot of the VM, ends its VMM, and restores the VM in a new one. `change` may change the device's
    /// state. The guest goes on as if nothing had happened.
    ///
    /// # Errors
    /// `Unsupported` if the VMM restores no VM. If the device cannot be reached or rejects transfer or setup.
    pub fn restore(
        &self,
        change: impl FnOnce(Option<Vec<u8>>) -> Option<Vec<u8>>,
    ) -> io::Result<()> {
        let driver = &mut self.shared.lock().driver;
        driver.stop_queues()?;
        let state = change(driver.save()?);
        driver.disconnect();
        driver.restore(state)
    }

    /// Restarts the guest on the same VMM. Its listeners listen again.
    ///
    /// # Errors
    /// If the device cannot be reached or rejects the setup.
    pub fn reboot(&self) -> io::Result<()> {
        let mut core = self.shared.lock();
        core.restart();
        core.driver.reboot()
    }

    /// Restarts the guest with a new VMM, as after the VMM's process was killed.
    ///
    /// # Errors
    /// If the device cannot be reached or rejects the setup.
    pub fn restart_vmm(&self) -> io::Result<()> {
        let mut core = self.shared.lock();
        core.restart();
        core.driver.end_vmm()?;
        core.driver.connect()?;
        core.driver.refill();
        Ok(())
    }

    /// Reconnects the VMM to a device whose process was restarted.
    ///
    /// # Errors
    /// If the device cannot be reached or rejects the setup.
    pub fn reconnect(&self) -> io::Result<()> {
        let mut core = self.shared.lock();
        core.driver.disconnect();
        core.driver.connect()
    }

    /// Protocol violations of the device so far, at most 100.
    pub fn protocol_violations(&self) -> Vec<String> {
        self.shared.lock().violations.clone()
    }

    /// Count of transport resets that the device has reported.
    pub fn transport_resets(&self) -> u64 {
        let mut core = self.shared.lock();
        core.process_queues();
        core.transport_resets
    }

    /// Count of connections, including those that wait for the peer's reset.
    pub fn connections(&self) -> usize {
        self.shared.lock().connections.len()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let mut core = self.shared.lock();
        core.stopped = true;
        core.restart();
        core.driver.disconnect();
        drop(core);
        self.shared.leader_wakeup.set();
        self.shared.leading_worker_wakeup.set();
        self.shared.worker_wakeup.notify_all();
        if let Some(worker) = self.worker.take() {
            let _ = worker.join();
        }
    }
}

/// A connection: a stream, or of messages (seqpacket). Dropping the last clone closes it.
#[derive(Clone, Debug)]
pub struct GuestStream(Arc<Handle>);

#[derive(Debug)]
struct Handle {
    shared: Arc<Shared>,
    key: Key,
    changed: Arc<Condvar>,
    /// The read timeout and the write timeout.
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
        let timeout = lock(&self.0.timeouts)[timeout];
        let until = timeout.map(|timeout| Instant::now() + timeout);
        self.0.shared.block(&self.0.changed, until, attempt)
    }

    /// Sets the timeout of later reads; they then fail with `TimedOut`.
    pub fn set_read_timeout(&self, timeout: Option<Duration>) {
        lock(&self.0.timeouts)[0] = timeout;
    }

    /// Sets the timeout of later writes; they then fail with `TimedOut`.
    pub fn set_write_timeout(&self, timeout: Option<Duration>) {
        lock(&self.0.timeouts)[1] = timeout;
    }

    /// The local port.
    pub fn port(&self) -> u32 {
        self.0.key.port
    }

    /// The peer's context id and port.
    pub fn peer(&self) -> (u64, u32) {
        (self.0.key.peer_cid, self.0.key.peer_port)
    }

    /// Shuts down one direction (half-close) or both.
    ///
    /// # Errors
    /// `NotConnected` if the connection is closed.
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

    /// Shuts down both directions and waits for the peer's reset. Returns how the connection ended.
    ///
    /// # Errors
    /// `TimedOut` without a reset of the peer.
    pub fn close(self, timeout: Duration) -> io::Result<CloseReason> {
        let key = self.0.key;
        // It fails only if the connection is closed already.
        let _ = self.shutdown(Shutdown::Both);
        let until = Some(Instant::now() + timeout);
        self.0.shared.block(&self.0.changed, until, |core| {
            let connection = core.connections.get(&key)?;
            connection.close_reason.map(Ok)
        })
    }

    /// Why the connection is closed; `None` while it is open.
    pub fn close_reason(&self) -> Option<CloseReason> {
        let mut core = self.0.shared.lock();
        core.process_queues();
        core.connections.get(&self.0.key)?.close_reason
    }

    /// Resets the connection.
    pub fn reset(self) {
        self.0.shared.lock().reset(self.0.key);
    }

    /// Whether data is ready to read.
    pub fn has_data(&self) -> bool {
        let mut core = self.0.shared.lock();
        core.process_queues();
        let connection = core.connections.get(&self.0.key);
        connection.is_some_and(Connection::has_unread)
    }

    /// Whether a read would return data, end of file or an error without blocking.
    pub fn is_readable(&self) -> bool {
        let mut core = self.0.shared.lock();
        core.process_queues();
        core.is_readable(self.0.key)
    }

    /// Whether a write would accept bytes or fail without blocking.
    pub fn is_writable(&self) -> bool {
        let mut core = self.0.shared.lock();
        core.process_queues();
        core.is_writable(self.0.key)
    }

    /// Writes as many bytes as the credit allows, without waiting.
    ///
    /// # Errors
    /// `WouldBlock` without credit, `BrokenPipe` after a shutdown, or `ConnectionReset`.
    pub fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut core = self.0.shared.lock();
        core.process_queues();
        core.try_write(self.0.key, bytes)
    }

    /// Reads available data, without waiting.
    ///
    /// # Errors
    /// `WouldBlock` without data, or `ConnectionReset`.
    pub fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut core = self.0.shared.lock();
        core.process_queues();
        let read = core.read(self.0.key, buffer);
        read.unwrap_or(Err(io::ErrorKind::WouldBlock.into()))
    }

    /// Sends a message. With `record` it also ends a record (`MSG_EOR`).
    ///
    /// # Errors
    /// `InvalidInput` if the message is larger than the peer's receive buffer, `TimedOut`, `BrokenPipe` or
    /// `ConnectionReset`.
    pub fn send_message(&self, bytes: &[u8], record: bool) -> io::Result<()> {
        let key = self.0.key;
        let mut sent = 0;
        self.block(1, |core| {
            let most = core.connections.get(&key).map(Connection::peer_buf_alloc);
            if most.is_some_and(|most| bytes.len() > most) {
                return Some(Err(io::ErrorKind::InvalidInput.into()));
            }
            core.write(key, bytes, &mut sent, Some(message_end(record)))
        })
    }

    /// Receives the next message, and whether it ends a record. `None` is end of file.
    ///
    /// # Errors
    /// `TimedOut` or `ConnectionReset`.
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

/// A listener. Dropping it resets the connections in its backlog.
#[derive(Debug)]
pub struct GuestListener {
    shared: Arc<Shared>,
    kind: SocketKind,
    port: u32,
    changed: Arc<Condvar>,
}

impl GuestListener {
    /// Accepts the next connection.
    ///
    /// # Errors
    /// `TimedOut` after `timeout`.
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

    /// The local port.
    pub fn port(&self) -> u32 {
        self.port
    }
}

impl Drop for GuestListener {
    fn drop(&mut self) {
        let mut core = self.shared.lock();
        if let Some(listener) = core.listeners.remove(&(self.kind, self.port)) {
            listener.queue.into_iter().for_each(|key| core.reset(key));
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Core> {
        lock(&self.core)
    }

    /// Wakes a parked leader after a change made by this thread.
    fn wake(&self, core: &Core) {
        match core.leader {
            Leader::User if core.parked => self.leader_wakeup.set(),
            Leader::Worker => self.leading_worker_wakeup.set(),
            _ => {}
        }
    }

    /// Repeats `attempt` until it returns a result or the deadline passes. Between attempts the thread
    /// leads or follows.
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
            if core.stopped {
                break Err(io::ErrorKind::NotConnected.into());
            }
            if leads || core.driver.rx().has_used() || core.driver.events().has_used() {
                core.process_queues();
            }
            if let Some(result) = attempt(&mut core) {
                break result;
            }
            let now = Instant::now();
            if until.is_some_and(|until| now >= until) {
                break Err(io::ErrorKind::TimedOut.into());
            }
            if core.leader == Leader::User && !leads {
                // The leader must also request calls for the TX queue that this thread waits for.
                if !core.tx_waiters.is_empty() {
                    self.wake(&core);
                }
                core.followers += 1;
                let left = until.map_or(Duration::from_secs(3600), |until| until - now);
                let woken = changed.wait_timeout(core, left);
                core = unpoisoned(woken).0;
                core.followers -= 1;
                continue;
            }
            if !leads {
                leads = true;
                if core.leader == Leader::Worker {
                    self.leading_worker_wakeup.set();
                    core.parked = false;
                }
                core.leader = Leader::User;
                core.leader_changes += 1;
            }
            if now.duration_since(began) < self.spin {
                drop(core);
                (0..64).for_each(|_| std::hint::spin_loop());
                core = self.lock();
                continue;
            }
            core = self.park(core, until, Leader::User, &self.leader_wakeup);
        };
        if leads {
            core.leader = Leader::None;
            // The followers need a new leader.
            if core.followers > 0 || core.worker_parked {
                core.worker_parked = false;
                self.worker_wakeup.notify_one();
            }
        }
        result
    }

    /// Parks the leader until the device calls or another thread wakes it.
    fn park<'a>(
        &'a self,
        mut core: MutexGuard<'a, Core>,
        until: Option<Instant>,
        leader: Leader,
        wakeup: &Event,
    ) -> MutexGuard<'a, Core> {
        if core.enable_notifications() {
            return core;
        }
        core.parked = true;
        let until = until.into_iter().chain(core.deadline()).min();
        drop(core);
        let [rx, tx, events] = &self.calls;
        let mut fds = [
            PollFd::new(rx, PollFlags::IN),
            PollFd::new(tx, PollFlags::IN),
            PollFd::new(wakeup, PollFlags::IN),
            PollFd::new(events, PollFlags::IN),
        ];
        // An error acts like a spurious wakeup.
        let _ = poll::wait(&mut fds, until);
        let ready = [0, 1, 2, 3].map(|at| !fds[at].revents().is_empty());
        let mut core = self.lock();
        if ready[2] {
            wakeup.clear();
        }
        // If another thread leads by now, it drains the calls.
        if core.leader == leader {
            core.parked = false;
            if ready[0] {
                core.driver.rx().clear_call();
            }
            if ready[1] {
                core.driver.tx().clear_call();
            }
            if ready[3] {
                core.driver.events().clear_call();
            }
        }
        core
    }

    /// Body of the worker thread.
    fn work(&self) {
        let mut core = self.lock();
        let (mut last_change, mut ticks) = (0, 0);
        while !core.stopped {
            let quiet = core.leader_changes == last_change;
            last_change = core.leader_changes;
            if core.leader == Leader::User || !quiet {
                ticks = if quiet { ticks + 1 } else { 0 };
                core.worker_parked = ticks > TICKS;
                core = if core.worker_parked {
                    let woken = self.worker_wakeup.wait(core);
                    unpoisoned(woken)
                } else {
                    let woken = self.worker_wakeup.wait_timeout(core, TICK);
                    unpoisoned(woken).0
                };
                // Woken explicitly: followers wait for a leader.
                if core.leader == Leader::None && core.followers > 0 {
                    last_change = core.leader_changes;
                }
                continue;
            }
            core.leader = Leader::Worker;
            core.process_queues();
            core = self.park(core, None, Leader::Worker, &self.leading_worker_wakeup);
        }
    }
}
