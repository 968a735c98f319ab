//! The streams between this machine and its host, behind a trait: tests have Unix sockets in its place.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use hvsock_address::{AddressError, SockAddrVm};
use hvsock_endpoint::uplink::PRIVILEGED_PORTS;
use hvsock_sys::{errno, vsock};

/// Connections that may wait in the kernel to be accepted.
const BACKLOG: u32 = 1024;
/// The lowest port that an uplink comes from. Services of guests have the ports below.
const FIRST_SOURCE_PORT: u32 = 600;
/// How much longer than the broker the kernel waits for the host's answer.
const KERNEL_GRACE: Duration = Duration::from_secs(1);

/// The streams between a virtual machine and its host. No call waits for the host.
///
/// The kernel's `AF_VSOCK` is one. A program that embeds the broker, such as a test, can bring another by
/// [`Uplink::Over`](crate::Uplink::Over).
pub trait UplinkTransport: fmt::Debug + Send + Sync {
    /// Starts to connect a stream to a port of the host: from a port below 1024 if `privileged`. The socket
    /// does not block, and is writable once it is connected or has failed.
    ///
    /// # Errors
    ///
    /// `PermissionDenied` if the process may not have such a port; those of `connect`.
    fn connect(&self, port: u32, privileged: bool, timeout: Duration) -> io::Result<OwnedFd>;

    /// Whether such a socket is connected; `false` while the connect is in progress.
    ///
    /// # Errors
    ///
    /// The error of the connect, once.
    fn connected(&self, socket: &OwnedFd) -> io::Result<bool>;

    /// Listens at a port of this machine, or at any free one. Returns the port.
    ///
    /// # Errors
    ///
    /// `AddrInUse` if the port is taken, and those of `bind` and `listen`.
    fn listen(&self, port: Option<u32>) -> io::Result<(OwnedFd, u32)>;

    /// Accepts a stream, with the context id of its other end. `None` if none waits.
    ///
    /// # Errors
    ///
    /// Those of `accept`.
    fn accept(&self, listener: &OwnedFd) -> io::Result<Option<(OwnedFd, u32)>>;
}

/// The kernel's.
#[derive(Debug)]
pub(crate) struct KernelTransport;

impl KernelTransport {
    /// A socket that is bound to a port below 1024.
    fn privileged_socket() -> io::Result<OwnedFd> {
        let socket = vsock::socket()?;
        for port in (FIRST_SOURCE_PORT..PRIVILEGED_PORTS).rev() {
            let address = SockAddrVm::new(SockAddrVm::CID_ANY, port).to_bytes();
            match vsock::bind(&socket, &address) {
                Ok(()) => return Ok(socket),
                Err(error) if error.raw_os_error() == Some(errno::EADDRINUSE) => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::ErrorKind::AddrInUse.into())
    }
}

impl UplinkTransport for KernelTransport {
    fn connect(&self, port: u32, privileged: bool, timeout: Duration) -> io::Result<OwnedFd> {
        let socket = match privileged {
            true => Self::privileged_socket()?,
            false => vsock::socket()?,
        };
        vsock::set_connect_timeout(&socket, timeout + KERNEL_GRACE)?;
        let address = SockAddrVm::new(SockAddrVm::CID_HOST, port).to_bytes();
        vsock::connect(&socket, &address)?;
        Ok(socket)
    }

    fn connected(&self, socket: &OwnedFd) -> io::Result<bool> {
        vsock::connected(socket)
    }

    fn listen(&self, port: Option<u32>) -> io::Result<(OwnedFd, u32)> {
        let socket = vsock::socket()?;
        let wanted = port.unwrap_or(SockAddrVm::PORT_ANY);
        let address = SockAddrVm::new(SockAddrVm::CID_ANY, wanted).to_bytes();
        vsock::bind(&socket, &address)?;
        let bound = SockAddrVm::from_bytes(&vsock::local_address(&socket)?).map_err(invalid)?;
        vsock::listen(&socket, BACKLOG)?;
        Ok((socket, bound.port))
    }

    fn accept(&self, listener: &OwnedFd) -> io::Result<Option<(OwnedFd, u32)>> {
        let Some((socket, address)) = vsock::accept(listener)? else {
            return Ok(None);
        };
        let peer = SockAddrVm::from_bytes(&address).map_err(invalid)?;
        Ok(Some((socket, peer.cid)))
    }
}

fn invalid(error: AddressError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
