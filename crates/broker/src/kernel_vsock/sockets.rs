//! The system calls of the kernel's vhost-vsock, behind a trait: tests have Unix sockets in its place.

use crate::sandbox;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::mpsc::{self, SyncSender};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hvsock_address::SockAddrVm;
use hvsock_sys::netns::NetworkNamespace;
use hvsock_sys::sync::lock;
use hvsock_sys::{vsock, vsock_diag};

use super::namespace::Namespace;

/// Connections that may wait in the kernel to be accepted. The broker accepts at once, and the kernel
/// resets what is beyond; it limits the number to `net.core.somaxconn`.
const BACKLOG: u32 = 4096;

/// How much longer than the broker the kernel waits for a guest's answer.
const KERNEL_GRACE: Duration = Duration::from_secs(1);

/// Where a connection comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PeerAddress {
    /// The CID, which the kernel has checked.
    pub(super) cid: u32,
    /// The port.
    pub(super) port: u32,
}

/// The stream sockets of one network namespace. No call waits for a guest.
pub(super) trait Sockets: Send + Sync {
    /// A socket that is bound to a port of the host.
    fn bind(&self, port: u32) -> io::Result<OwnedFd>;

    /// Lets a bound socket listen.
    fn listen(&self, socket: &OwnedFd) -> io::Result<()>;

    /// Accepts a connection. `None` if none waits.
    fn accept(&self, listener: &OwnedFd) -> io::Result<Option<(OwnedFd, PeerAddress)>>;

    /// Starts to connect to a guest. The socket becomes writable once it is connected or has failed.
    fn connect(&self, cid: u32, port: u32, timeout: Duration) -> io::Result<OwnedFd>;

    /// Whether a connect has succeeded; `false` while it is in progress.
    fn connected(&self, socket: &OwnedFd) -> io::Result<bool>;

    /// Who has a port, in words. It may take a second.
    fn holder(&self, port: u32) -> Option<String>;

    /// The port of the host that a socket is bound to.
    fn port_of(&self, socket: &OwnedFd) -> io::Result<u32>;

    /// The network namespace, if it is not the broker's own.
    fn namespace(&self) -> Option<BorrowedFd<'_>>;

    /// Whether the kernel serves virtual machines: there can be no guest otherwise.
    fn serves_guests(&self) -> bool;
}

/// The kernel's.
pub(super) struct KernelSockets {
    /// `None` in the broker's own namespace.
    maker: Option<Maker>,
}

/// A thread in another network namespace that makes sockets there: they stay in the namespace that they
/// are made in.
struct Maker {
    namespace: Arc<NetworkNamespace>,
    requests: Mutex<SyncSender<Request>>,
}

/// Asks for a socket, which is sent back.
type Request = SyncSender<io::Result<OwnedFd>>;

impl KernelSockets {
    /// Those of a namespace.
    ///
    /// # Errors
    ///
    /// If the namespace cannot be entered, or no thread can be started.
    pub(super) fn new(namespace: Namespace) -> io::Result<Self> {
        let maker = match namespace {
            Namespace::Own => None,
            Namespace::Other(namespace) => Some(Maker::start(namespace)?),
        };
        Ok(Self { maker })
    }

    fn socket(&self) -> io::Result<OwnedFd> {
        match &self.maker {
            None => vsock::socket(),
            Some(maker) => maker.socket(),
        }
    }
}

impl Sockets for KernelSockets {
    fn bind(&self, port: u32) -> io::Result<OwnedFd> {
        let socket = self.socket()?;
        vsock::bind(
            &socket,
            &SockAddrVm::new(SockAddrVm::CID_ANY, port).to_bytes(),
        )?;
        Ok(socket)
    }

    fn listen(&self, socket: &OwnedFd) -> io::Result<()> {
        vsock::listen(socket, BACKLOG)
    }

    fn accept(&self, listener: &OwnedFd) -> io::Result<Option<(OwnedFd, PeerAddress)>> {
        let Some((socket, address)) = vsock::accept(listener)? else {
            return Ok(None);
        };
        let peer = SockAddrVm::from_bytes(&address)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        let (cid, port) = (peer.cid, peer.port);
        Ok(Some((socket, PeerAddress { cid, port })))
    }

    fn connect(&self, cid: u32, port: u32, timeout: Duration) -> io::Result<OwnedFd> {
        if !serves_guests() {
            // Without a transport of its own for guests, the kernel of a virtual machine would ask the
            // machine's own host.
            return Err(io::Error::from_raw_os_error(hvsock_sys::errno::ENODEV));
        }
        let socket = self.socket()?;
        vsock::set_connect_timeout(&socket, timeout + KERNEL_GRACE)?;
        vsock::connect(&socket, &SockAddrVm::new(cid, port).to_bytes())?;
        Ok(socket)
    }

    fn port_of(&self, socket: &OwnedFd) -> io::Result<u32> {
        let address = SockAddrVm::from_bytes(&vsock::local_address(socket)?);
        let address = address.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        Ok(address.port)
    }

    fn namespace(&self) -> Option<BorrowedFd<'_>> {
        let maker = self.maker.as_ref()?;
        Some(maker.namespace.as_fd())
    }

    fn serves_guests(&self) -> bool {
        serves_guests()
    }

    fn connected(&self, socket: &OwnedFd) -> io::Result<bool> {
        vsock::connected(socket)
    }

    fn holder(&self, port: u32) -> Option<String> {
        match &self.maker {
            None => find_holder(port),
            Some(maker) => maker.holder(port),
        }
    }
}

impl Maker {
    fn start(namespace: NetworkNamespace) -> io::Result<Self> {
        let (requests, queue) = mpsc::sync_channel::<Request>(16);
        let (entered, result) = mpsc::sync_channel(1);
        let namespace = Arc::new(namespace);
        let own = Arc::clone(&namespace);
        let thread = move || {
            let done = own.enter();
            let is_in = done.is_ok();
            let _ = entered.send(done);
            // Until the sender is dropped.
            for reply in queue.iter().take_while(|_| is_in) {
                let _ = reply.send(vsock::socket());
            }
        };
        let builder = std::thread::Builder::new().name("vsock-netns".into());
        sandbox::outside(|| builder.spawn(thread))?;
        let entered = result.recv();
        entered.map_err(|_| ended())??;
        Ok(Self {
            namespace,
            requests: Mutex::new(requests),
        })
    }

    fn socket(&self) -> io::Result<OwnedFd> {
        let (reply, result) = mpsc::sync_channel(1);
        let sent = lock(&self.requests).send(reply);
        sent.map_err(|_| ended())?;
        result.recv().map_err(|_| ended())?
    }

    /// Searches on a thread of its own, so that nobody who wants a socket waits for it.
    fn holder(&self, port: u32) -> Option<String> {
        let namespace = Arc::clone(&self.namespace);
        let search = move || {
            namespace.enter().ok()?;
            find_holder(port)
        };
        let thread = std::thread::Builder::new().name("vsock-holder".into());
        let searching = sandbox::outside(|| thread.spawn(search));
        searching.ok()?.join().ok()?
    }
}

fn ended() -> io::Error {
    io::Error::other("the thread of the network namespace has ended")
}

/// Whether the kernel is the host of virtual machines: the transport `vhost_vsock`, or another one, is
/// loaded.
fn serves_guests() -> bool {
    std::path::Path::new("/sys/module/vhost_vsock").exists()
        || vsock::local_cid().is_ok_and(|cid| cid == SockAddrVm::CID_HOST)
}

fn find_holder(port: u32) -> Option<String> {
    let sockets = vsock_diag::sockets().ok()?;
    let has_it = |socket: &&vsock_diag::Socket| {
        let is_bound = matches!(
            socket.state,
            vsock_diag::State::Listening | vsock_diag::State::Closed
        );
        socket.port == port && is_bound
    };
    let socket = sockets.iter().find(has_it)?;
    let holder = vsock_diag::holder(socket.inode)?;
    Some(holder.to_string())
}

/// Enlarges the receive buffer of a guest's connection, which is the credit that the guest has. Other
/// sockets are left alone.
pub(crate) fn raise_credit(socket: BorrowedFd<'_>, bytes: u64) {
    let socket = socket.as_fd();
    if vsock::is_vsock(socket) {
        // Without it the connection is slower.
        let _ = vsock::set_buffer_size(socket, bytes);
    }
}
