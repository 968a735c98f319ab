//! The vhost-user back end: one virtio-vsock device for each virtual machine.
//!
//! A VMM such as QEMU, the vhost-user front end, connects to a VM's socket and shares the guest's
//! memory. Two threads serve it. The VMM thread ([`vmm`]) handles vhost-user requests and may block
//! on the VMM. The data thread ([`worker`]) owns the virtqueues ([`queues`]), the vsock protocol's
//! state ([`Muxer`](hvsock_virtio::Muxer)) and the [`links`] to the connections' peers. It never
//! blocks, and it owns its connections outright. The core sends it [`Command`]s and receives
//! [`VmEvent`]s.

mod link;
mod links;
mod memory;
mod queues;
mod sibling;
mod vmm;
mod worker;

use std::io;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::time::Duration;

use hvsock_fabric::{ConnectionEnd, ConnectionId, PartitionState, Refusal};
use hvsock_virtio::{GuestCid, Handle, Key};
use mio::Waker;

pub(crate) use links::{LinkParts, Linked};
pub(crate) use sibling::pair as sibling_pair;

use crate::data_path::{ControlConnection, ReportSender};

/// An event that a VM's data thread reports to the core.
#[derive(Debug)]
pub(crate) enum VmEvent {
    /// The VMM has started the guest's device, stopped it, or disconnected.
    State(PartitionState),
    /// The guest requests a connection. The core answers with [`Command::Accept`] or
    /// [`Command::Refuse`].
    Request {
        /// The handle that the answer must name.
        handle: Handle,
        /// Source and destination.
        key: Key,
    },
    /// The guest has accepted a connection.
    Connected(ConnectionId),
    /// A connection to the guest has failed before it was established.
    Failed(ConnectionId, Refusal),
    /// The process at the other end set `HVSOCKET_CONNECTED_SUSPEND`.
    ConnectedSuspend {
        connection: ConnectionId,
        end: ConnectionEnd,
        value: bool,
    },
    /// A connection is closed. The reason is set unless both ends closed cleanly.
    Closed {
        connection: ConnectionId,
        reason: Option<Refusal>,
    },
    /// A fault of the guest or its VMM, for the log.
    Fault(String),
}

/// A command of the core to a VM's data thread.
pub(crate) enum Command {
    /// Accepts the guest's request.
    Accept { handle: Handle, linked: Linked },
    /// Refuses the guest's request.
    Refuse { handle: Handle },
    /// Requests a connection from the guest.
    Connect {
        key: Key,
        linked: Linked,
        timeout: Duration,
    },
    /// Sets the control connection of the process that owns the other end of a connection which
    /// the guest has accepted. From then on the connection's data flows.
    Establish {
        connection: ConnectionId,
        control: ControlConnection,
    },
    /// Resets a connection and reports the refusal to both ends.
    Reset {
        connection: ConnectionId,
        refusal: Refusal,
    },
    /// Suspends or resumes a connection's data.
    Suspend {
        connection: ConnectionId,
        suspended: bool,
    },
    /// A request of the VMM that concerns the virtqueues.
    Vmm(queues::QueueCommand, Sender<queues::QueueReply>),
    /// Resets all connections and ends the thread.
    Stop,
}

/// The settings of one VM's device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct VmSettings {
    pub(crate) cid: GuestCid,
    /// Accepts memory files that are not sealed against shrinking. Shrinking one then kills the
    /// broker with SIGBUS.
    pub(crate) unsealed_memory: bool,
    pub(crate) max_connections: usize,
}

/// The core's handle of a VM's two threads. Dropping it ends them and the VM's connections.
pub(crate) struct VmThreads {
    commands: Sender<Command>,
    waker: Arc<Waker>,
    vmm: vmm::VmmThread,
    worker: Option<std::thread::JoinHandle<()>>,
}

impl VmThreads {
    /// Starts the threads. They serve the VMMs that connect to `listener`, one at a time.
    pub(crate) fn start(
        settings: VmSettings,
        listener: UnixListener,
        reports: ReportSender<VmEvent>,
    ) -> io::Result<Self> {
        let (commands, queue) = mpsc::channel();
        let worker = worker::Worker::new(settings, queue, reports)?;
        let waker = worker.waker();
        let name = format!("hvsock-vm-{}", settings.cid);
        let thread = std::thread::Builder::new().name(name);
        let worker = thread.spawn(move || worker.run())?;
        let link = vmm::WorkerHandle {
            commands: commands.clone(),
            waker: Arc::clone(&waker),
        };
        let vmm = vmm::VmmThread::start(settings, listener, link);
        let mut threads = Self {
            commands,
            waker,
            vmm: vmm::VmmThread::none(),
            worker: Some(worker),
        };
        threads.vmm = vmm?;
        Ok(threads)
    }

    pub(crate) fn command(&self, command: Command) {
        // The send fails only if the thread has ended, with all its connections.
        if self.commands.send(command).is_ok() {
            let _ = self.waker.wake();
        }
    }
}

impl Drop for VmThreads {
    fn drop(&mut self) {
        self.vmm.stop();
        self.command(Command::Stop);
        if let Some(worker) = self.worker.take() {
            let _ = worker.join();
        }
        self.vmm.join();
    }
}
