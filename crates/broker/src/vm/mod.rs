//! Virtual machines: the vhost-user back-end of a virtio-vsock device for each.
//!
//! A VMM, such as QEMU, connects to a VM's socket and shares the guest's
//! memory. Two threads serve it. [`vmm`] speaks vhost-user with the VMM, and may block on it. The
//! data thread ([`worker`]) has the virtqueues ([`queues`]), the protocol's state
//! ([`Muxer`](hvsock_virtio::Muxer)) and the [`links`] to which connections lead, and never
//! blocks. Like the data threads of [`pump`](crate::pump), it owns its connections outright; the
//! core steers it with [`Command`]s and hears of it by [`Report`](crate::pump::Report)s.

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

use hvsock_fabric::{ConnectionId, PartitionKey, PartitionState, Refusal};
use hvsock_virtio::{GuestCid, Handle, Key};
use mio::Waker;

pub(crate) use links::{LinkParts, Linked};
pub(crate) use sibling::pair as sibling_pair;

use crate::pump::{Control, Reports};

/// What a VM's data thread tells the core.
#[derive(Debug)]
pub(crate) enum VmNews {
    /// The VMM has started the guest's device, stopped it, or gone.
    State(PartitionState),
    /// The guest asks for a connection; to be answered with [`Command::Accept`] or
    /// [`Command::Refuse`].
    Request {
        /// What its answer must name.
        handle: Handle,
        /// From where to where.
        key: Key,
    },
    /// The guest has accepted a connection.
    Connected(ConnectionId),
    /// The guest has not accepted a connection, and why.
    Failed(ConnectionId, Refusal),
    /// Something is wrong with the guest or its VMM; for the log.
    Fault(String),
}

/// What the core tells a VM's data thread.
pub(crate) enum Command {
    /// Grants what the guest asked for.
    Accept { handle: Handle, linked: Linked },
    /// Turns it down.
    Refuse { handle: Handle },
    /// Asks the guest for a connection.
    Connect {
        key: Key,
        linked: Linked,
        timeout: Duration,
    },
    /// The process of a connection that the guest accepted has it.
    Establish {
        connection: ConnectionId,
        control: Control,
    },
    /// Ends a connection and tells both ends why.
    Cut {
        connection: ConnectionId,
        refusal: Refusal,
    },
    /// Stops a connection's data, or lets it flow again.
    Suspend {
        connection: ConnectionId,
        suspended: bool,
    },
    /// What the VMM wants.
    Vmm(queues::Order, Sender<queues::Answer>),
    /// Ends everything.
    Stop,
}

/// A VM as the core wants it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct VmSettings {
    pub(crate) partition: PartitionKey,
    pub(crate) cid: GuestCid,
    /// The VMM may share memory that it can shrink.
    pub(crate) unsealed_memory: bool,
    pub(crate) max_connections: usize,
}

/// A VM's threads, as the core holds them. Dropping it ends them and the VM's connections.
pub(crate) struct VmThreads {
    commands: Sender<Command>,
    waker: Arc<Waker>,
    vmm: vmm::VmmThread,
    worker: Option<std::thread::JoinHandle<()>>,
}

impl VmThreads {
    /// Serves VMMs that connect to `listener`, one at a time.
    pub(crate) fn start(
        settings: VmSettings,
        listener: UnixListener,
        reports: Reports,
    ) -> io::Result<Self> {
        let (commands, queue) = mpsc::channel();
        let worker = worker::Worker::new(settings, queue, reports)?;
        let waker = worker.waker();
        let name = format!("hvsock-vm-{}", settings.cid);
        let thread = std::thread::Builder::new().name(name);
        let worker = thread.spawn(move || worker.run())?;
        let link = vmm::WorkerLink {
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
        // A thread that is gone has nothing left to command.
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
