//! The thread that serves a VM's VMM over vhost-user.
//!
//! It serves one VMM at a time and rejects a second connection. Requests that concern the queues
//! are passed to the data thread, which replies when they have taken effect. So once the VMM has
//! the reply to `GET_VRING_BASE` for a queue, the broker accesses no buffer of that queue and
//! sends no more notifications for it.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
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
use super::queues::QueueCommand;

/// The most failed requests of one VMM connection before it is closed.
const MAX_FAILURES: u32 = 32;
/// Backoff after an `accept` that failed.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// The owner's handle of the VMM thread.
#[derive(Default)]
pub(super) struct VmmThread {
    thread: Option<std::thread::JoinHandle<()>>,
    /// Disconnected when the thread has ended.
    end: Option<Receiver<()>>,
    stop: Option<Arc<StopSignal>>,
}

/// Wakes the thread from every wait, and stops it.
struct StopSignal {
    event: Arc<Event>,
    stopping: AtomicBool,
    worker: WorkerHandle,
}

impl VmmThread {
    /// A handle of no thread.
    pub(super) fn none() -> Self {
        Self::default()
    }

    pub(super) fn start(
        settings: DeviceSettings,
        listener: UnixListener,
        worker: WorkerHandle,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let stop = Arc::new(StopSignal {
            event: Arc::new(Event::new()?),
            stopping: AtomicBool::new(false),
            worker: worker.clone(),
        });
        let seen = Arc::clone(&stop);
        let (running, end) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name(format!("hvsock-vmm-{}", settings.cid))
            .spawn(move || {
                bus_error::unblock();
                serve(settings, &listener, &worker, &seen);
                drop::<mpsc::Sender<()>>(running);
            })?;
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
}

impl StopSignal {
    fn is_set(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }
}

/// Accepts and serves one VMM after the other.
fn serve(
    settings: DeviceSettings,
    listener: &UnixListener,
    worker: &WorkerHandle,
    stop: &StopSignal,
) {
    while !stop.is_set() {
        match wait(&[listener.as_fd(), stop.event.as_fd()], None) {
            Ok(_) if stop.is_set() => return,
            Ok(ready) if ready.contains(&0) => {}
            Ok(_) => continue,
            // A lack of memory, which passes.
            Err(_) => {
                std::thread::sleep(ACCEPT_RETRY);
                continue;
            }
        }
        match listener.accept() {
            Ok((connection, _)) => {
                let served = serve_one(settings, listener, connection, worker, stop);
                worker.state.set_connection(None);
                worker.state.set_serving(false);
                if let Err(error) = served
                    && !stop.is_set()
                {
                    tracing::warn!(cid = %settings.cid, %error, "VMM connection failed");
                }
                let _ = worker.send(QueueCommand::Disconnected);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                tracing::warn!(cid = %settings.cid, %error, "cannot accept a VMM connection");
                let _ = wait(&[stop.event.as_fd()], Some(Instant::now() + ACCEPT_RETRY));
            }
        }
    }
}

/// Serves one VMM until it disconnects.
fn serve_one(
    settings: DeviceSettings,
    listener: &UnixListener,
    connection: UnixStream,
    worker: &WorkerHandle,
    stop: &StopSignal,
) -> Result<()> {
    connection
        .set_nonblocking(false)
        .map_err(Error::SocketError)?;
    let polled = connection.try_clone().map_err(Error::SocketError)?;
    let kept = connection.try_clone().map_err(Error::SocketError)?;
    worker.state.set_connection(Some(kept));
    let device = Device::new(settings, worker.clone(), Arc::clone(&stop.event));
    let device = Arc::new(Mutex::new(device));
    let mut handler = BackendReqHandler::from_stream(connection, Arc::clone(&device));
    tracing::info!(cid = %settings.cid, "VMM connected");
    let _ = worker.send(QueueCommand::Connected);
    let mut failures = 0;
    loop {
        let state = lock(&device).state_file();
        let mut fds = vec![polled.as_fd(), listener.as_fd(), stop.event.as_fd()];
        fds.extend(state.as_deref().map(AsFd::as_fd));
        let ready = wait(&fds, None).map_err(Error::SocketError)?;
        if stop.is_set() {
            return Ok(());
        }
        if ready.contains(&3) {
            lock(&device).read_state();
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
                    let fds = [polled.as_fd(), stop.event.as_fd()];
                    let _ = wait(&fds, Some(Instant::now() + ACCEPT_RETRY));
                }
            }
        }
        if ready.contains(&0) {
            worker.state.set_serving(true);
            let handled = match mem_table::is_next(&polled).map_err(Error::SocketError)? {
                true => set_mem_table(&polled, &device),
                false => handler.handle_request(),
            };
            worker.state.set_serving(false);
            match handled {
                Ok(()) => {}
                Err(Error::Disconnected | Error::PartialMessage) => return Ok(()),
                // The VMM has received a failure reply and may continue without this request.
                Err(Error::ReqHandlerError(error)) if failures < MAX_FAILURES => {
                    failures += 1;
                    tracing::warn!(cid = %settings.cid, %error, "vhost-user request failed");
                }
                Err(error) => return Err(error),
            }
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
    poll::wait(&mut polled, deadline)?;
    let is_ready = |fd: &PollFd<'_>| !fd.revents().is_empty();
    let ready = polled.iter().enumerate().filter(|(_, fd)| is_ready(fd));
    Ok(ready.map(|(index, _)| index).collect())
}
