//! Guests behind Unix sockets of their VMM ("hybrid vsock"), as a [`GuestLink`].
//!
//! Firecracker, Cloud Hypervisor, OpenVMM, libkrun and vhost-device-vsock have no vhost-user device for
//! vsock, or are used without one: they move the bytes between the guest's vsock connections and Unix sockets of
//! the host. The link is a client of theirs. What differs between them is in [`style`].
//!
//! - *To the guest*: an [`attempt`] connects to the VMM's socket and sends `CONNECT <port>`. The VMM may leave
//!   it without an answer, so the link has a time limit of its own.
//! - *From the guest*: the VMM connects to `PATH_<port>`, one of the host's [`sockets`]. Such a socket
//!   exists only while its service can be reached, because its absence is the only refusal.
//! - *State*: [`presence`] is what can be known. The VMM's death is seen by its pidfd, a new VMM by inotify,
//!   and both are looked at every few seconds, too.
//!
//! The folder of the sockets often belongs to the VMM's user, so all of its files are untrusted
//! ([`hvsock_sys::socket_folder`]). One thread, [`worker`], does all of this. It never waits for a VMM; the core
//! waits for it neither.

mod attempt;
mod command;
mod presence;
mod sockets;
mod style;
#[cfg(test)]
mod tests;
mod trust;
mod worker;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use hvsock_control::HybridStyle;

use crate::StartError;
use crate::gate::Gate;
use crate::guest_link::{
    Capabilities, ConnectionId, ControlConnection, EventSender, GuestConnect, GuestLink, LinkEnd,
    LinkFactory, LinkSettings, OfferedService, PartitionState, Refusal, RequestId, Resuming,
    SocketKind,
};
use crate::handover::{Exports, HandoverError, Imports, LinkDocument};
use crate::loop_waker::LoopWaker;
use crate::sandbox;
use command::{Command, Place, SharedState};
use style::{Connects, Style};
use trust::Trust;
use worker::Worker;
use worker::snapshot::HybridSnapshot;

/// How long the core waits for the end of the thread, which a file system may block.
const STOP_TIMEOUT: Duration = Duration::from_secs(1);

/// The longest name of a VMM's socket in bytes. With a suffix and the folder's number in `/proc/self/fd` it must
/// fit in the 107 bytes of a socket's address.
const MAX_NAME: usize = 48;

/// The kind of the link in its [`LinkDocument`].
const KIND: &str = "hybrid";

/// What follows from connections without a source port.
const UPLINK: &str = "containers in the guest: nothing says that its broker is root's";

/// The settings of one VM's link.
#[derive(Clone, Debug)]
pub(crate) struct Hybrid {
    /// The path of the VMM's socket. Where the VMM has none, that to which it appends the ports.
    pub(crate) path: PathBuf,
    /// What kind of VMM it is.
    pub(crate) style: HybridStyle,
    /// The user that the VMM runs as, if not the broker's.
    pub(crate) user: Option<u32>,
}

impl Hybrid {
    /// Where the VMM's socket is.
    fn place(&self) -> io::Result<Place> {
        let fault = |why: String| io::Error::new(io::ErrorKind::InvalidInput, why);
        let (Some(folder), Some(name)) = (self.path.parent(), self.path.file_name()) else {
            return Err(fault("it names no file".to_owned()));
        };
        if name.len() > MAX_NAME {
            return Err(fault(format!(
                "its last part is longer than {MAX_NAME} bytes, so that no port fits behind it"
            )));
        }
        Ok(Place {
            folder: folder.to_owned(),
            name: name.to_owned(),
        })
    }

    fn what(&self) -> String {
        format!("use {} as a VMM's socket", self.path.display())
    }

    /// The thread's state, and how commands reach it.
    fn worker(&self, place: Place, events: EventSender) -> io::Result<(Worker, Sender<Command>)> {
        let state = SharedState::new(PartitionState::Defined);
        let (commands, queue) = mpsc::channel();
        let trust = Trust::new(self.user);
        let worker = Worker::new(place, style::of(self.style), trust, state, queue, events)?;
        Ok((worker, commands))
    }
}

impl LinkFactory for Hybrid {
    /// Starts the thread. The folder and the VMM's socket need not exist: a file system may block, so only
    /// the thread looks at them.
    fn open(
        self: Box<Self>,
        _settings: LinkSettings,
        events: EventSender,
    ) -> Result<Box<dyn GuestLink>, StartError> {
        let place = self.place().map_err(StartError::io(self.what()))?;
        let link = self.worker(place, events).and_then(|(worker, commands)| {
            Link::start(worker, self.style, commands, Gate::open_with)
        });
        let link = link.map_err(StartError::io("start a VM's thread"))?;
        Ok(Box::new(link))
    }

    fn resume(
        self: Box<Self>,
        document: LinkDocument,
        imports: &mut Imports,
        resuming: Resuming<'_>,
    ) -> Result<Box<dyn GuestLink>, HandoverError> {
        let snapshot: HybridSnapshot = document.read(KIND)?;
        let place = self.place().map_err(HandoverError::io(self.what()))?;
        let start = || "start a VM's thread";
        let worker = self.worker(place, resuming.events);
        let (mut worker, commands) = worker.map_err(HandoverError::io(start()))?;
        worker.restore(snapshot, (self.style, &self.path), imports)?;
        let link = Link::start(worker, self.style, commands, Gate::closed_with);
        Ok(Box::new(link.map_err(HandoverError::io(start()))?))
    }
}

/// The core's handle of the thread. Dropping it removes the host's sockets.
struct Link {
    kind: HybridStyle,
    style: &'static Style,
    state: SharedState,
    commands: Sender<Command>,
    waker: Arc<LoopWaker>,
    gate: Arc<Gate<Worker>>,
    thread: Option<std::thread::JoinHandle<()>>,
    /// Disconnected when the thread has ended.
    end: Receiver<()>,
    /// The thread has not begun, and perhaps another process goes on: the sockets' files are not removed.
    is_dormant: AtomicBool,
}

impl Link {
    fn start(
        worker: Worker,
        kind: HybridStyle,
        commands: Sender<Command>,
        gate: impl FnOnce(Box<Worker>) -> Gate<Worker>,
    ) -> io::Result<Self> {
        let (waker, state) = (worker.waker(), worker.state());
        let watch = worker.watch().clone();
        let gate = Arc::new(gate(Box::new(worker)));
        let is_dormant = gate.is_closed();
        let entered = Arc::clone(&gate);
        let (running, end) = mpsc::channel();
        let thread = std::thread::Builder::new().name("hvsock-hybrid".to_owned());
        let run = move || {
            sandbox::enter(sandbox::Kind::Hybrid);
            let _watched = watch.enter();
            Worker::run(&entered);
            drop::<Sender<()>>(running);
        };
        let thread = sandbox::outside(|| thread.spawn(run))?;
        Ok(Self {
            kind,
            style: style::of(kind),
            state,
            commands,
            waker,
            gate,
            thread: Some(thread),
            end,
            is_dormant: AtomicBool::new(is_dormant),
        })
    }

    fn command(&self, command: Command) {
        // The send fails only if the thread has ended.
        if self.commands.send(command).is_ok() {
            self.waker.wake();
        }
    }
}

impl GuestLink for Link {
    fn capabilities(&self) -> Capabilities {
        self.style.capabilities()
    }

    fn state(&self) -> PartitionState {
        self.state.get()
    }

    fn connect(&self, connect: GuestConnect) -> Result<(), Refusal> {
        if connect.kind != SocketKind::Stream {
            return Err(Refusal::NotSupported);
        }
        let names = self.style.names_of(connect.service);
        if names.is_empty() {
            return Err(Refusal::ServiceNotMappable);
        }
        self.command(Command::Connect {
            connection: connect.connection,
            names,
            timeout: connect.timeout,
        });
        Ok(())
    }

    fn accept(&self, request: RequestId, _connection: ConnectionId, _end: LinkEnd) {
        self.command(Command::Answered(request));
    }

    fn refuse(&self, request: RequestId, _reason: Option<&Refusal>) {
        // The socket is closed by whoever has the request.
        self.command(Command::Answered(request));
    }

    fn taken(&self, request: RequestId) {
        self.command(Command::Answered(request));
    }

    fn establish(&self, _connection: ConnectionId, _control: ControlConnection) {}

    fn close(&self, connection: ConnectionId, _refusal: Refusal) {
        self.command(Command::GiveUp(connection));
    }

    fn suspend(&self, _connection: ConnectionId, _suspended: bool) {}

    fn limits(&self) -> &'static [&'static str] {
        match self.style.connects {
            Connects::ByLine => &[UPLINK],
            Connects::ByPath => &["whether the guest has accepted a connect", UPLINK],
        }
    }

    fn takes_services(&self) -> bool {
        true
    }

    fn descriptors_for(&self, services: &[OfferedService]) -> usize {
        self.style.descriptors_for(services)
    }

    fn set_services(&self, services: Vec<OfferedService>) {
        self.command(Command::Services(services));
    }

    fn freeze(&self) -> Result<(), HandoverError> {
        self.gate.close();
        self.waker.wake();
        Ok(())
    }

    fn frozen(&self, deadline: Instant) -> Result<(), HandoverError> {
        let begun = Instant::now();
        if !self.gate.wait(deadline) {
            return Err(HandoverError::TimedOut {
                what: "a turn of the thread of its sockets".into(),
                limit: deadline.saturating_duration_since(begun),
            });
        }
        self.gate.with(Worker::settle);
        Ok(())
    }

    fn hand_over(&self, exports: &mut Exports) -> Result<LinkDocument, HandoverError> {
        let snapshot = self.gate.with(|worker| worker.snapshot(self.kind, exports));
        let none = || HandoverError::inconsistent("the thread of a VM's sockets is not frozen");
        LinkDocument::new(KIND, &snapshot.ok_or_else(none)??)
    }

    fn thaw(&self) {
        self.is_dormant.store(false, Ordering::Relaxed);
        self.gate.open();
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if *self.is_dormant.get_mut() {
            drop(self.gate.take());
        }
        self.gate.open();
        self.command(Command::Stop);
        if self.end.recv_timeout(STOP_TIMEOUT) == Err(RecvTimeoutError::Timeout) {
            tracing::error!(
                "a file system blocks the thread of a VM's sockets, which is left behind"
            );
            return;
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
