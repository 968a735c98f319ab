//! The thread that serves a VM's VMM over vhost-user.
//!
//! It serves one VMM at a time and rejects a second connection. Requests that concern the queues
//! are passed to the data thread, which replies when they have taken effect. So once the VMM has
//! the reply to `GET_VRING_BASE` for a queue, the broker accesses no buffer of that queue and
//! sends no more notifications for it.

use crate::sandbox;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hvsock_sys::bus_error;
use hvsock_sys::event::Event;
use hvsock_sys::poll::{self, PollFd, PollFlags};
use hvsock_sys::sync::lock;
use vhost::vhost_user::{BackendReqHandler, Error, Result};

use super::command::DeviceSettings;
use super::device::{Device, WorkerHandle};
use super::mem_table;
use super::next_request::{Channel, NextRequest};
use super::queues::QueueCommand;
use crate::gate::Gate;
use crate::watchdog::{self, Step, ThreadWatch};

/// The most failed requests of one VMM connection before it is closed.
const MAX_FAILURES: u32 = 32;
/// Backoff after an `accept` that failed.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// How long the thread first waits for the rest of a request of which a part has arrived. Each further time takes
/// twice as long.
pub(super) const FIRST_PART_WAIT: Duration = Duration::from_millis(1);
/// The longest time between two looks for the rest of a request.
const LONGEST_PART_WAIT: Duration = Duration::from_millis(100);

/// The owner's handle of the VMM thread.
#[derive(Default)]
pub(super) struct VmmThread {
    thread: Option<std::thread::JoinHandle<()>>,
    /// Disconnected when the thread has ended.
    end: Option<Receiver<()>>,
    stop: Option<Arc<StopSignal>>,
}

/// Wakes the thread from every wait, and stops or freezes it.
struct StopSignal {
    /// Set when the thread is to stop.
    event: Arc<Event>,
    /// Set when the thread is to look at its gate.
    look: Event,
    stopping: AtomicBool,
    worker: WorkerHandle,
    gate: Gate<Vmm>,
}

/// What the thread serves its VMM with.
pub(super) struct Vmm {
    settings: DeviceSettings,
    listener: UnixListener,
    worker: WorkerHandle,
    session: Option<Session>,
}

/// The connection of a VMM.
pub(super) struct Session {
    pub(super) connection: UnixStream,
    pub(super) device: Arc<Mutex<Device>>,
    pub(super) handler: BackendReqHandler<Mutex<Device>>,
    /// Failed requests so far.
    pub(super) failures: u32,
    /// How long to wait for the rest of a request of which a part has arrived.
    pub(super) part_wait: Duration,
}

impl VmmThread {
    /// A handle of no thread.
    pub(super) fn none() -> Self {
        Self::default()
    }

    /// Starts the thread.
    pub(super) fn start(
        settings: DeviceSettings,
        listener: UnixListener,
        worker: WorkerHandle,
        watch: ThreadWatch,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let event = Arc::new(Event::new()?);
        let vmm = Vmm::new(settings, listener, worker, None);
        Self::spawn(event, Gate::open_with, vmm, watch)
    }

    /// Starts the thread with what another process has served the VMM with. It does nothing before
    /// [`open`](Self::open). `event` is that of the session's device.
    pub(super) fn start_frozen(
        event: Arc<Event>,
        vmm: Vmm,
        watch: ThreadWatch,
    ) -> io::Result<Self> {
        Self::spawn(event, Gate::closed_with, vmm, watch)
    }

    fn spawn(
        event: Arc<Event>,
        gate: impl FnOnce(Box<Vmm>) -> Gate<Vmm>,
        vmm: Vmm,
        watch: ThreadWatch,
    ) -> io::Result<Self> {
        let cid = vmm.settings.cid;
        let stop = Arc::new(StopSignal {
            event,
            look: Event::new()?,
            stopping: AtomicBool::new(false),
            worker: vmm.worker.clone(),
            gate: gate(Box::new(vmm)),
        });
        let seen = Arc::clone(&stop);
        let (running, end) = mpsc::channel();
        let thread = std::thread::Builder::new().name(format!("hvsock-vmm-{cid}"));
        let run = move || {
            bus_error::unblock();
            sandbox::enter(sandbox::Kind::Vmm);
            let _watched = watch.enter();
            run(&seen, &watch);
            drop::<mpsc::Sender<()>>(running);
        };
        let thread = sandbox::outside(|| thread.spawn(run))?;
        Ok(Self {
            thread: Some(thread),
            end: Some(end),
            stop: Some(stop),
        })
    }

    /// Makes the thread end. Does not wait for it.
    pub(super) fn stop(&self) {
        if let Some(stop) = &self.stop {
            stop.stopping.store(true, Ordering::SeqCst);
            stop.event.set();
            stop.worker.state.disconnect();
            stop.gate.open();
        }
    }

    /// Waits until the thread has ended. Returns whether it has, within `timeout`.
    pub(super) fn join(&mut self, timeout: Duration) -> bool {
        let end = self.end.take().map(|end| end.recv_timeout(timeout));
        if end == Some(Err(RecvTimeoutError::Timeout)) {
            return false;
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        true
    }

    /// Asks the thread to leave what it serves the VMM with, and then to freeze the data thread.
    pub(super) fn close(&self) {
        if let Some(stop) = &self.stop {
            stop.gate.close();
            stop.look.set();
        }
    }

    /// Lets the thread go on.
    pub(super) fn open(&self) {
        if let Some(stop) = &self.stop {
            stop.gate.open();
        }
    }

    /// Waits until the thread is between two requests. Returns whether it is, by the deadline.
    pub(super) fn wait(&self, deadline: Instant) -> bool {
        let stop = self.stop.as_ref();
        stop.is_some_and(|stop| stop.gate.wait(deadline))
    }

    /// Gives `to` what the thread has left.
    pub(super) fn with<R>(&self, to: impl FnOnce(&mut Vmm) -> R) -> Option<R> {
        self.stop.as_ref()?.gate.with(to)
    }

    /// Ends a thread that has not begun, and that nobody may notice. What it has is leaked: closing the VMM's
    /// connection here changes nothing for the process that has it, but the thread's handler is the crate's.
    pub(super) fn forget(&self) {
        if let Some(stop) = &self.stop {
            std::mem::forget(stop.gate.take());
            stop.gate.open();
        }
    }
}

impl StopSignal {
    fn is_set(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }
}

fn run(stop: &StopSignal, watch: &ThreadWatch) {
    let Some(mut vmm) = stop.gate.enter() else {
        return;
    };
    while !stop.is_set() {
        if stop.gate.is_closed() {
            let worker = vmm.worker.clone();
            let Some(left) = stop.gate.pass(vmm, || worker.freeze()) else {
                return;
            };
            vmm = left;
            stop.look.clear();
            continue;
        }
        if catch_unwind(AssertUnwindSafe(|| vmm.turn(stop))).is_err() {
            watch.count_panic();
            vmm.failed(stop);
        }
    }
    vmm.disconnected(Ok(()), stop);
}

impl Vmm {
    /// `session` is that of a VMM that is connected already.
    pub(super) fn new(
        settings: DeviceSettings,
        listener: UnixListener,
        worker: WorkerHandle,
        session: Option<Session>,
    ) -> Self {
        Self {
            settings,
            listener,
            worker,
            session,
        }
    }

    pub(super) fn settings(&self) -> DeviceSettings {
        self.settings
    }

    /// Where VMMs connect.
    pub(super) fn listener(&self) -> &UnixListener {
        &self.listener
    }

    /// The connected VMM.
    pub(super) fn session(&self) -> Option<&Session> {
        self.session.as_ref()
    }

    /// Waits for one thing, and handles it.
    fn turn(&mut self, stop: &StopSignal) {
        let Some(session) = &mut self.session else {
            return self.accept(stop);
        };
        match session.turn(self.settings, &self.listener, &self.worker, stop) {
            Ok(true) => {}
            Ok(false) => self.disconnected(Ok(()), stop),
            Err(error) => self.disconnected(Err(error), stop),
        }
    }

    /// Waits for a VMM, and accepts it.
    fn accept(&mut self, stop: &StopSignal) {
        let fds = [self.listener.as_fd(), stop.event.as_fd(), stop.look.as_fd()];
        match wait(&fds, None) {
            Ok(ready) if ready.contains(&0) && ready.len() == 1 => {}
            Ok(_) => return,
            // A lack of memory, which passes.
            Err(_) => return std::thread::sleep(ACCEPT_RETRY),
        }
        match self.listener.accept() {
            Ok((connection, _)) => {
                let cid = self.settings.cid;
                match Session::begin(self.settings, connection, &self.worker, &stop.event) {
                    Ok(session) => {
                        self.session = Some(session);
                        tracing::info!(%cid, "VMM connected");
                        let _ = self.worker.send(QueueCommand::Connected);
                    }
                    Err(error) => {
                        tracing::warn!(%cid, %error, "VMM connection failed");
                    }
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                tracing::warn!(cid = %self.settings.cid, %error, "cannot accept a VMM connection");
                let fds = [stop.event.as_fd(), stop.look.as_fd()];
                let _ = wait(&fds, Some(Instant::now() + ACCEPT_RETRY));
            }
        }
    }

    /// Gives the VMM up after a panic. What it has shared may be inconsistent here.
    fn failed(&mut self, stop: &StopSignal) {
        let cid = self.settings.cid;
        tracing::error!(%cid, "the thread that serves the VMM has failed; the VMM is disconnected");
        self.disconnected(Ok(()), stop);
        // Should it fail again at once.
        std::thread::sleep(ACCEPT_RETRY);
    }

    /// Forgets the VMM, if there is one.
    fn disconnected(&mut self, served: Result<()>, stop: &StopSignal) {
        if self.session.take().is_none() {
            return;
        }
        self.worker.state.set_connection(None);
        self.worker.state.set_serving(false);
        if let Err(error) = served
            && !stop.is_set()
        {
            tracing::warn!(cid = %self.settings.cid, %error, "VMM connection failed");
        }
        let _ = self.worker.send(QueueCommand::Disconnected);
    }
}

impl Session {
    fn begin(
        settings: DeviceSettings,
        connection: UnixStream,
        worker: &WorkerHandle,
        stop: &Arc<Event>,
    ) -> Result<Self> {
        connection
            .set_nonblocking(false)
            .map_err(Error::SocketError)?;
        let polled = connection.try_clone().map_err(Error::SocketError)?;
        let kept = connection.try_clone().map_err(Error::SocketError)?;
        worker.state.set_connection(Some(kept));
        let device = Device::new(settings, worker.clone(), Arc::clone(stop));
        let device = Arc::new(Mutex::new(device));
        Ok(Self {
            connection: polled,
            handler: BackendReqHandler::from_stream(connection, Arc::clone(&device)),
            device,
            failures: 0,
            part_wait: FIRST_PART_WAIT,
        })
    }

    /// Waits for one thing, and handles it. Returns whether the VMM is still connected.
    fn turn(
        &mut self,
        settings: DeviceSettings,
        listener: &UnixListener,
        worker: &WorkerHandle,
        stop: &StopSignal,
    ) -> Result<bool> {
        let state = lock(&self.device).state_file();
        let mut fds = vec![
            self.connection.as_fd(),
            listener.as_fd(),
            stop.event.as_fd(),
            stop.look.as_fd(),
        ];
        fds.extend(state.as_deref().map(AsFd::as_fd));
        let ready = wait(&fds, None).map_err(Error::SocketError)?;
        if stop.is_set() || ready.contains(&3) {
            return Ok(true);
        }
        if ready.contains(&4) {
            lock(&self.device).read_state();
        }
        // Requests of the first VMM are handled first: it may have disconnected so that the second
        // can connect.
        if ready.contains(&1) && !ready.contains(&0) {
            match listener.accept() {
                Ok((second, _)) => {
                    tracing::warn!(cid = %settings.cid, "a second VMM connection is rejected");
                    drop(second);
                }
                // It stays in the queue. Without this wait, the loop would spin until it can be accepted.
                Err(_) => {
                    let fds = [
                        self.connection.as_fd(),
                        stop.event.as_fd(),
                        stop.look.as_fd(),
                    ];
                    let _ = wait(&fds, Some(Instant::now() + ACCEPT_RETRY));
                }
            }
        }
        if !ready.contains(&0) {
            return Ok(true);
        }
        worker.state.set_serving(true);
        let handled = self.handle(stop);
        worker.state.set_serving(false);
        match handled {
            Ok(()) => Ok(true),
            Err(Error::Disconnected | Error::PartialMessage) => Ok(false),
            // The VMM has received a failure reply and may continue without this request.
            Err(Error::ReqHandlerError(error)) if self.failures < MAX_FAILURES => {
                self.failures += 1;
                tracing::warn!(cid = %settings.cid, %error, "vhost-user request failed");
                Ok(true)
            }
            Err(error) => Err(error),
        }
    }

    /// Handles the next request, or waits for more of it.
    fn handle(&mut self, stop: &StopSignal) -> Result<()> {
        let next = NextRequest::of(&self.connection).map_err(Error::SocketError)?;
        if next == NextRequest::Part {
            // The socket stays readable, so this thread looks again now and then.
            let until = Instant::now() + self.part_wait;
            self.part_wait = (self.part_wait * 2).min(LONGEST_PART_WAIT);
            let waited = wait(&[stop.event.as_fd(), stop.look.as_fd()], Some(until));
            return waited.map(drop).map_err(Error::SocketError);
        }
        self.part_wait = FIRST_PART_WAIT;
        match next {
            NextRequest::MemTable => set_mem_table(&self.connection, &self.device),
            NextRequest::Channel => {
                let channel = Channel::receive(&self.connection)?;
                let acknowledges = lock(&self.device).set_channel(&channel)?;
                match acknowledges {
                    true => channel.acknowledge(&self.connection),
                    false => Ok(()),
                }
            }
            NextRequest::Part | NextRequest::Other => self.handler.handle_request(),
        }
    }
}

/// Handles SET_MEM_TABLE.
fn set_mem_table(connection: &UnixStream, device: &Mutex<Device>) -> Result<()> {
    let table = mem_table::receive(connection)?;
    let mut device = lock(device);
    let handled = device.set_regions(&table.regions, &table.files);
    if table.need_reply && device.acknowledges() {
        mem_table::acknowledge(connection, handled.is_ok()).map_err(Error::SocketError)?;
    }
    handled
}

/// Waits until one of `fds` is ready. Returns the indices of those that are.
fn wait(fds: &[std::os::fd::BorrowedFd<'_>], deadline: Option<Instant>) -> io::Result<Vec<usize>> {
    let mut polled: Vec<_> = fds
        .iter()
        .map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN))
        .collect();
    watchdog::wait();
    let waited = poll::wait(&mut polled, deadline);
    watchdog::begin(Step::VmmRequest);
    waited?;
    let is_ready = |fd: &PollFd<'_>| !fd.revents().is_empty();
    let ready = polled.iter().enumerate().filter(|(_, fd)| is_ready(fd));
    Ok(ready.map(|(index, _)| index).collect())
}
