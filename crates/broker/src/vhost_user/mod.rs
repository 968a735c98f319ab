//! The vhost-user back end: one virtio-vsock device for each virtual machine, as a [`GuestLink`].
//!
//! A VMM such as QEMU, the vhost-user front end, connects to a VM's socket and shares the guest's
//! memory. Two threads serve it. The VMM thread ([`vmm`]) handles vhost-user requests ([`device`]) and may block
//! on the VMM. The data thread ([`worker`]) moves the [`traffic`] between the virtqueues ([`queues`]), the
//! vsock protocol's state ([`Muxer`](hvsock_virtio::Muxer)) and the [`links`] to the connections' peers. It
//! never blocks, and it owns all of these outright. It also knows the VM's phase ([`life_cycle`]). The core's
//! calls become [`Command`]s to it.

mod arenas;
mod command;
mod device;
mod device_state;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
#[cfg(test)]
mod handover_tests;
mod life_cycle;
mod lingering;
mod links;
mod mem_table;
mod memory;
mod next_request;
mod pause_check;
mod queues;
mod reports;
mod restart;
mod restarts;
mod snapshot;
mod spin;
mod state_file;
mod traffic;
mod transport_reset;
mod vmm;
mod vring;
mod wake;
mod worker;

use std::mem::ManuallyDrop;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use hvsock_sys::{bus_error, stream};
use hvsock_virtio::{Cid, Config, GuestCid};

use crate::gate::Gate;
use crate::guest_link::Resuming;
use crate::guest_link::{
    Capabilities, ConnectionId, ControlConnection, EventSender, GuestArena, GuestConnect,
    GuestLink, LinkEnd, LinkFactory, LinkSettings, PartitionState, Refusal, RequestId, SocketKind,
    Source,
};
use crate::handover::{Exports, HandoverError, Imports, LinkDocument};
use crate::loop_waker::LoopWaker;
use crate::sandbox;
use crate::watchdog::ThreadWatch;
use crate::{StartError, folders};
use command::{Command, ConnectCommand, DeviceSettings, DeviceState};
use worker::Worker;

/// Listen backlog of a VM's socket. One VMM is served at a time, and its successor may be waiting.
const VMM_BACKLOG: u32 = 128;

/// How long the end of a data thread is waited for. It never blocks, unless its VMM has made an eventfd
/// blocking and full.
const STOP_TIMEOUT: Duration = Duration::from_secs(1);
/// How long the core waits for the threads of a VM, which end at once unless their VMM prevents it.
const CORE_WAIT: Duration = Duration::from_millis(20);

/// What the device can do. Virtio-vsock has no reasons and no users, and a reset is an `RST`.
const CAPABILITIES: Capabilities = Capabilities {
    seqpacket: true,
    half_close: true,
    refusal_reason: false,
    identity: false,
    byte_counts: true,
    reset_notice: true,
};

/// The user that owns a VM's socket, if it is not the broker's.
#[derive(Clone, Debug)]
pub(crate) struct SocketOwner {
    pub(crate) uid: u32,
    pub(crate) name: String,
}

/// The settings of one VM's device.
#[derive(Clone, Debug)]
pub(crate) struct VhostUser {
    /// The path of the socket at which the VMM connects.
    pub(crate) socket: PathBuf,
    /// The user that the VMM runs as, if not the broker's.
    pub(crate) owner: Option<SocketOwner>,
    /// Accepts memory files that are not sealed against shrinking even if this program handles SIGBUS itself.
    /// Shrinking one may then end the program.
    pub(crate) unsealed_memory: bool,
}

impl LinkFactory for VhostUser {
    /// Opens the socket and starts the threads. They serve the VMMs that connect, one at a time.
    fn open(
        self: Box<Self>,
        settings: LinkSettings,
        events: EventSender,
    ) -> Result<Box<dyn GuestLink>, StartError> {
        Ok(Box::new(self.listen(settings, events)?))
    }

    fn resume(
        self: Box<Self>,
        document: LinkDocument,
        imports: &mut Imports,
        resuming: Resuming<'_>,
    ) -> Result<Box<dyn GuestLink>, HandoverError> {
        Ok(Box::new(self.resume_device(document, imports, &resuming)?))
    }
}

impl VhostUser {
    /// Makes a device of a document. Its threads begin when it is thawed.
    fn resume_device(
        self,
        document: LinkDocument,
        imports: &mut Imports,
        resuming: &Resuming<'_>,
    ) -> Result<Device, HandoverError> {
        let resumed = snapshot::resume(document, self.unsealed_memory, imports, resuming)?;
        let mut device = Device {
            socket: self.socket,
            state: resumed.state,
            commands: resumed.commands,
            waker: resumed.waker,
            vmm: vmm::VmmThread::none(),
            gate: resumed.gate,
            worker: None,
            worker_end: mpsc::channel().1,
            is_dormant: AtomicBool::new(true),
        };
        device.gate.put(ManuallyDrop::into_inner(resumed.worker));
        let start = HandoverError::io("start a VM's threads");
        let watch = resuming.events.watch().clone();
        let started = device.spawn_worker(resumed.cid, watch.clone());
        let vmm =
            started.and_then(|()| vmm::VmmThread::start_frozen(resumed.event, resumed.vmm, watch));
        device.vmm = vmm.map_err(start)?;
        Ok(device)
    }

    /// Opens the socket and starts the threads.
    fn listen(self, settings: LinkSettings, events: EventSender) -> Result<Device, StartError> {
        let path = self.socket.clone();
        folders::check_socket(&path)?;
        let cid = GuestCid::try_from(u64::from(settings.cid.unwrap_or_default()))
            .map_err(|error| StartError::io("make a vsock device")(std::io::Error::other(error)))?;
        let owner = self.owner.as_ref();
        let for_user =
            owner.map_or_else(String::new, |user| format!(" for the user {}", user.name));
        let listener = stream::listen(&path, 0o600, owner.map(|user| user.uid), VMM_BACKLOG);
        let listener = listener
            .map_err(|error| match owner {
                Some(user) if is_not_permitted(&error) => cannot_give(&user.name),
                _ => error,
            })
            .map_err(StartError::io(format!(
                "listen at {}{for_user}",
                path.display()
            )))?;
        let device = Device::start(cid, self, UnixListener::from(listener), settings, events);
        if device.is_err() {
            let _ = std::fs::remove_file(&path);
        }
        device.map_err(StartError::io("start a VM's threads"))
    }
}

/// Whether the kernel refused for the want of a capability.
fn is_not_permitted(error: &std::io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::PERM.raw_os_error())
}

/// Why a socket cannot be another user's.
fn cannot_give(user: &str) -> std::io::Error {
    let text = format!(
        "a broker without the capability CAP_CHOWN cannot give a socket to another user; run the VMM as the broker's \
         user, without a user for the VM, or the VM with the broker of root or of {user}"
    );
    std::io::Error::new(std::io::ErrorKind::PermissionDenied, text)
}

/// The core's handle of a VM's two threads. Dropping it ends them and the VM's connections.
struct Device {
    socket: PathBuf,
    state: DeviceState,
    commands: Sender<Command>,
    waker: Arc<LoopWaker>,
    vmm: vmm::VmmThread,
    gate: Arc<Gate<Worker>>,
    worker: Option<std::thread::JoinHandle<()>>,
    /// Disconnected when the data thread has ended.
    worker_end: Receiver<()>,
    /// Its threads have not begun, and perhaps another process goes on: nothing of it may be noticed.
    is_dormant: AtomicBool,
}

impl Device {
    fn start(
        cid: GuestCid,
        device: VhostUser,
        listener: UnixListener,
        settings: LinkSettings,
        events: EventSender,
    ) -> std::io::Result<Self> {
        let (commands, queue) = mpsc::channel();
        let config = Config {
            max_connections: settings.max_connections,
            ..Config::new(cid)
        };
        let state = DeviceState::default();
        let watch = events.watch().clone();
        let worker = Worker::new(config, state.clone(), queue, events)?;
        let waker = worker.waker();
        let gate = Arc::new(Gate::open_with(Box::new(worker)));
        let mut started = Self::with_worker(
            device.socket,
            cid,
            commands,
            waker,
            state,
            gate,
            watch.clone(),
        )?;
        let settings = DeviceSettings {
            cid,
            unsealed_memory: device.unsealed_memory,
        };
        let link = started.worker_handle();
        started.vmm = vmm::VmmThread::start(settings, listener, link, watch)?;
        Ok(started)
    }

    /// Starts the data thread, which enters its gate, without the other one.
    fn with_worker(
        socket: PathBuf,
        cid: GuestCid,
        commands: Sender<Command>,
        waker: Arc<LoopWaker>,
        state: DeviceState,
        gate: Arc<Gate<Worker>>,
        watch: ThreadWatch,
    ) -> std::io::Result<Self> {
        let mut device = Self {
            socket,
            state,
            commands,
            waker,
            vmm: vmm::VmmThread::none(),
            gate,
            worker: None,
            worker_end: mpsc::channel().1,
            is_dormant: AtomicBool::new(false),
        };
        device.spawn_worker(cid, watch)?;
        Ok(device)
    }

    /// Starts the data thread, which enters its gate.
    fn spawn_worker(&mut self, cid: GuestCid, watch: ThreadWatch) -> std::io::Result<()> {
        let thread = std::thread::Builder::new().name(format!("hvsock-vm-{cid}"));
        let (running, worker_end) = mpsc::channel();
        let entered = Arc::clone(&self.gate);
        let run = move || {
            bus_error::unblock();
            sandbox::enter(sandbox::Kind::VmData);
            let _watched = watch.enter();
            Worker::run(&entered);
            drop::<Sender<()>>(running);
        };
        let worker = sandbox::outside(|| thread.spawn(run))?;
        (self.worker, self.worker_end) = (Some(worker), worker_end);
        Ok(())
    }

    fn worker_handle(&self) -> device::WorkerHandle {
        device::WorkerHandle {
            commands: self.commands.clone(),
            waker: Arc::clone(&self.waker),
            state: self.state.clone(),
            gate: Arc::clone(&self.gate),
        }
    }

    fn command(&self, command: Command) {
        // The send fails only if the thread has ended, with all its connections.
        if self.commands.send(command).is_ok() {
            self.waker.wake();
        }
    }
}

impl GuestLink for Device {
    fn capabilities(&self) -> Capabilities {
        CAPABILITIES
    }

    fn state(&self) -> PartitionState {
        self.state.phase().partition_state()
    }

    fn socket(&self) -> Option<&Path> {
        Some(&self.socket)
    }

    fn connect(&self, connect: GuestConnect) -> Result<(), Refusal> {
        let guest_port = connect.service.port();
        let guest_port = guest_port.ok_or(Refusal::ServiceNotMappable)?;
        // The core gives an end to every link that moves its bytes.
        let end = connect.end.ok_or(Refusal::NotSupported)?;
        if connect.kind == SocketKind::Seqpacket && !self.state.has_seqpacket() {
            return Err(Refusal::NotSupported);
        }
        let (peer, peer_port) = match connect.source {
            Source::Host => (Cid::HOST, None),
            Source::Sibling { cid, port } => (Cid(u64::from(cid)), port),
        };
        self.command(Command::Connect(Box::new(ConnectCommand {
            connection: connect.connection,
            guest_port,
            peer,
            peer_port,
            kind: match connect.kind {
                SocketKind::Stream => hvsock_virtio::SocketKind::Stream,
                SocketKind::Seqpacket => hvsock_virtio::SocketKind::Seqpacket,
            },
            timeout: connect.timeout,
            end,
        })));
        Ok(())
    }

    fn accept(&self, request: RequestId, connection: ConnectionId, end: LinkEnd) {
        self.command(Command::Accept(request, connection, Box::new(end)));
    }

    fn refuse(&self, request: RequestId, _reason: Option<&Refusal>) {
        self.command(Command::Refuse(request));
    }

    fn establish(&self, connection: ConnectionId, control: ControlConnection) {
        self.command(Command::Establish(connection, Box::new(control)));
    }

    fn close(&self, connection: ConnectionId, refusal: Refusal) {
        self.command(Command::Close(connection, refusal));
    }

    fn suspend(&self, connection: ConnectionId, suspended: bool) {
        self.command(Command::Suspend(connection, suspended));
    }

    fn takes_arenas(&self) -> bool {
        true
    }

    fn open_arena(&self, arena: GuestArena, request: RequestId) {
        self.command(Command::OpenArena(Box::new(arena), request));
    }

    fn connect_in_arena(&self, request: RequestId) {
        self.command(Command::AcceptInArena(request));
    }

    fn close_arena(&self, arena: ConnectionId, refusal: Refusal) {
        self.command(Command::CloseArena(arena, refusal));
    }

    fn freeze(&self) -> Result<(), HandoverError> {
        self.vmm.close();
        Ok(())
    }

    fn frozen(&self, deadline: Instant) -> Result<(), HandoverError> {
        let begun = Instant::now();
        let late = |what: &str| HandoverError::TimedOut {
            what: what.into(),
            limit: deadline.saturating_duration_since(begun),
        };
        if !self.vmm.wait(deadline) {
            return Err(late("a request of its VMM"));
        }
        // The VMM thread has done that, unless it has not left its gate since the last thaw.
        self.gate.close();
        self.waker.wake();
        if !self.gate.wait(deadline) {
            return Err(late("a round of its data thread"));
        }
        self.gate.with(Worker::settle);
        Ok(())
    }

    fn hand_over(&self, exports: &mut Exports) -> Result<LinkDocument, HandoverError> {
        snapshot::hand_over(&self.vmm, &self.gate, exports)
    }

    fn thaw(&self) {
        self.is_dormant.store(false, Ordering::Relaxed);
        // In this order: the VMM thread freezes the data thread only behind a closed gate of its own.
        self.vmm.open();
        self.gate.open();
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if *self.is_dormant.get_mut() {
            self.vmm.forget();
            // The ends of its connections would tell the processes at the other ends that they are closed.
            std::mem::forget(self.gate.take());
            self.gate.open();
            return;
        }
        self.vmm.stop();
        self.gate.open();
        self.command(Command::Stop);
        let (_, none) = mpsc::channel();
        let ending = EndingThreads {
            socket: std::mem::take(&mut self.socket),
            worker: self.worker.take(),
            worker_end: std::mem::replace(&mut self.worker_end, none),
            vmm: std::mem::take(&mut self.vmm),
        };
        // The core serves every VM, so one VMM must not make it wait.
        let (running, end) = mpsc::channel::<()>();
        let thread = std::thread::Builder::new().name("hvsock-vm-end".into());
        let waiting = thread.spawn(move || {
            ending.wait();
            drop(running);
        });
        if let Err(error) = waiting {
            tracing::error!(%error, "the end of a VM's threads is not waited for");
            return;
        }
        let _ = end.recv_timeout(CORE_WAIT);
    }
}

/// The threads of a VM that were told to end.
struct EndingThreads {
    socket: PathBuf,
    worker: Option<std::thread::JoinHandle<()>>,
    worker_end: Receiver<()>,
    vmm: vmm::VmmThread,
}

impl EndingThreads {
    /// Waits for them. Those that a VMM blocks are left behind, and end as soon as it lets them.
    fn wait(mut self) {
        let socket = self.socket.display();
        if self.worker_end.recv_timeout(STOP_TIMEOUT) == Err(RecvTimeoutError::Timeout) {
            // The VMM thread may wait for this one.
            tracing::error!(%socket, "the VMM blocks its VM's data thread, which is left behind");
            return;
        }
        if let Some(worker) = self.worker.take() {
            let _ = worker.join();
        }
        if !self.vmm.join(STOP_TIMEOUT) {
            tracing::error!(%socket, "the VMM blocks its VM's vhost-user thread, which is left behind");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn threads_that_a_vmm_blocks_do_not_keep_the_core_waiting() {
        let dir = tempfile::tempdir().unwrap();
        let state = DeviceState::default();
        let (commands, queue) = mpsc::channel();
        let poll = mio::Poll::new().unwrap();
        let waker = Arc::new(LoopWaker::new(poll.registry(), mio::Token(0)).unwrap());
        let (running, worker_end) = mpsc::channel();
        let (release, released) = mpsc::channel::<()>();
        let worker = std::thread::spawn(move || {
            let _ = released.recv();
            drop::<Sender<()>>(running);
            drop(queue);
        });
        let config = Config::new(GuestCid::try_from(3).unwrap());
        let events = crate::data_path::ReportSender::new(drop);
        let idle = Worker::new(config, state.clone(), mpsc::channel().1, events).unwrap();
        let device = Device {
            socket: dir.path().join("vm.sock"),
            state,
            commands,
            waker,
            vmm: vmm::VmmThread::none(),
            gate: Arc::new(Gate::open_with(Box::new(idle))),
            worker: Some(worker),
            worker_end,
            is_dormant: AtomicBool::new(false),
        };
        let before = Instant::now();
        drop(device);
        assert!(before.elapsed() < STOP_TIMEOUT / 2);
        drop(release);
    }
}
