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
mod trust;
mod worker;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::Duration;

use hvsock_control::HybridStyle;

use crate::StartError;
use crate::guest_link::{
    Capabilities, ConnectionId, ControlConnection, EventSender, GuestConnect, GuestLink, LinkEnd,
    LinkFactory, LinkSettings, OfferedService, PartitionState, Refusal, RequestId, SocketKind,
};
use crate::loop_waker::LoopWaker;
use command::{Command, Place, SharedState};
use style::{Connects, Style};
use trust::Trust;
use worker::Worker;

/// How long the core waits for the end of the thread, which a file system may block.
const STOP_TIMEOUT: Duration = Duration::from_secs(1);

/// The longest name of a VMM's socket in bytes. With a suffix and the folder's number in `/proc/self/fd` it must
/// fit in the 107 bytes of a socket's address.
const MAX_NAME: usize = 48;

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

impl LinkFactory for Hybrid {
    /// Starts the thread. The folder and the VMM's socket need not exist: a file system may block, so only
    /// the thread looks at them.
    fn open(
        self: Box<Self>,
        _settings: LinkSettings,
        events: EventSender,
    ) -> Result<Box<dyn GuestLink>, StartError> {
        let path = self.path.display();
        let fault = |why: String| {
            let what = format!("use {path} as a VMM's socket");
            StartError::io(what)(io::Error::new(io::ErrorKind::InvalidInput, why))
        };
        let (Some(folder), Some(name)) = (self.path.parent(), self.path.file_name()) else {
            return Err(fault("it names no file".to_owned()));
        };
        if name.len() > MAX_NAME {
            return Err(fault(format!(
                "its last part is longer than {MAX_NAME} bytes, so that no port fits behind it"
            )));
        }
        let place = Place {
            folder: folder.to_owned(),
            name: name.to_owned(),
        };
        let style = style::of(self.style);
        let state = SharedState::new(PartitionState::Defined);
        let (commands, queue) = mpsc::channel();
        let trust = Trust::new(self.user);
        let link = Worker::new(place, style, trust, state.clone(), queue, events)
            .and_then(|worker| Link::start(worker, style, state, commands));
        let link = link.map_err(StartError::io("start a VM's thread"))?;
        Ok(Box::new(link))
    }
}

/// The core's handle of the thread. Dropping it removes the host's sockets.
struct Link {
    style: &'static Style,
    state: SharedState,
    commands: Sender<Command>,
    waker: Arc<LoopWaker>,
    thread: Option<std::thread::JoinHandle<()>>,
    /// Disconnected when the thread has ended.
    end: Receiver<()>,
}

impl Link {
    fn start(
        worker: Worker,
        style: &'static Style,
        state: SharedState,
        commands: Sender<Command>,
    ) -> io::Result<Self> {
        let waker = worker.waker();
        let (running, end) = mpsc::channel();
        let thread = std::thread::Builder::new().name("hvsock-hybrid".to_owned());
        let thread = thread.spawn(move || {
            worker.run();
            drop(running);
        })?;
        Ok(Self {
            style,
            state,
            commands,
            waker,
            thread: Some(thread),
            end,
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
}

impl Drop for Link {
    fn drop(&mut self) {
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
