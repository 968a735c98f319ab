//! A connect, blocking or not.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use hvsock_address::{ServiceId, SockAddrHv, SockAddrVm, VmId};
use hvsock_sys::poll::PollFlags;
use hvsock_sys::sync::lock;
use hvsock_sys::{event, vsock};

use super::buffer::size_buffer;
use super::machine::Machine;
use super::resolve::ConnectTarget;
use super::{Stream, refusal};
use crate::backend::{Request, RequestKind};
use crate::error;
use crate::os::ready;

/// A socket that connects.
#[derive(Debug)]
pub(super) struct ConnectAttempt {
    socket: OwnedFd,
    machine: Machine,
    target: ConnectTarget,
    timeout: Duration,
}

/// A non-blocking connect.
#[derive(Debug)]
pub(crate) struct PendingConnect {
    /// Empty after the connect has completed or failed.
    attempt: Mutex<Option<ConnectAttempt>>,
    /// An epoll descriptor that is readable when the socket is writable, so that the connects of
    /// all back-ends are waited for in the same way.
    when_writable: OwnedFd,
    target: ConnectTarget,
}

impl ConnectAttempt {
    /// Starts a connect.
    pub(super) fn start(machine: Machine, request: &Request) -> io::Result<Self> {
        let RequestKind::Connect { timeout_ms } = request.kind else {
            return Err(error::invalid_input("the request is not a connect"));
        };
        let timeout = Duration::from_millis(timeout_ms.into());
        let target = ConnectTarget::of(machine, &request.address)?;
        let socket = vsock::socket().map_err(refusal::of_socket)?;
        size_buffer(&socket, request)?;
        let failed = |error| refusal::of_connect(machine, &target, error);
        if target.is_local() {
            // Without the loopback module the kernel would send the connect to the host. Binding to
            // this address fails then.
            let own = SockAddrVm::new(SockAddrVm::CID_LOCAL, SockAddrVm::PORT_ANY);
            vsock::bind(&socket, &own.to_bytes()).map_err(failed)?;
        }
        vsock::set_connect_timeout(&socket, timeout).map_err(failed)?;
        vsock::connect(&socket, &target.address.to_bytes()).map_err(failed)?;
        Ok(Self {
            socket,
            machine,
            target,
            timeout,
        })
    }

    /// Waits for the connection until `deadline`.
    pub(super) fn wait(self, deadline: Instant) -> io::Result<Stream> {
        while ready(&self.socket, PollFlags::OUT, Some(deadline))? {
            if self.is_connected()? {
                return self.into_stream();
            }
        }
        Err(refusal::no_reply_error(&self.target, Some(self.timeout)))
    }

    fn is_connected(&self) -> io::Result<bool> {
        vsock::connected(&self.socket)
            .map_err(|error| refusal::of_connect(self.machine, &self.target, error))
    }

    fn into_stream(self) -> io::Result<Stream> {
        let own = SockAddrVm::from_bytes(&vsock::local_address(&self.socket)?)
            .map_err(|invalid| io::Error::new(io::ErrorKind::InvalidData, invalid))?;
        hvsock_sys::set_nonblocking(&self.socket, false)?;
        // Only the host has the id of this partition.
        let vm = if self.target.is_local() {
            VmId::LOOPBACK
        } else {
            VmId::ZERO
        };
        let local = SockAddrHv::new(vm, ServiceId::from_port(own.port));
        Ok(Stream::new(self.socket, local, self.target.peer, None))
    }
}

impl PendingConnect {
    /// Starts a connect and returns at once.
    pub(crate) fn start(request: &Request) -> io::Result<Self> {
        let attempt = ConnectAttempt::start(Machine::detect(), request)?;
        Ok(Self {
            when_writable: event::when_writable(&attempt.socket)?,
            target: attempt.target,
            attempt: Mutex::new(Some(attempt)),
        })
    }

    /// Returns the connection once it is established, `WouldBlock` before. Must not be called again
    /// after that.
    pub(crate) fn progress(&self) -> io::Result<Stream> {
        let mut slot = self.attempt();
        let Some(attempt) = slot.take() else {
            return Err(error::invalid_input("this connect has already completed"));
        };
        let done = ready(&attempt.socket, PollFlags::OUT, Some(Instant::now()))?;
        if !done || !attempt.is_connected()? {
            *slot = Some(attempt);
            return Err(io::ErrorKind::WouldBlock.into());
        }
        attempt.into_stream()
    }

    /// The error for a connect that takes too long.
    pub(crate) fn no_reply_error(&self) -> io::Error {
        let after = self.attempt().as_ref().map(|attempt| attempt.timeout);
        refusal::no_reply_error(&self.target, after)
    }

    fn attempt(&self) -> MutexGuard<'_, Option<ConnectAttempt>> {
        lock(&self.attempt)
    }
}

impl AsFd for PendingConnect {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.when_writable.as_fd()
    }
}
