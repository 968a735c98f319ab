//! A connect, for those who wait for it and those who do not.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hvsock_address::{ServiceId, SockAddrHv, SockAddrVm, VmId};
use hvsock_sys::poll::PollFlags;
use hvsock_sys::{event, vsock};

use super::machine::Machine;
use super::resolve::ConnectTarget;
use super::{Stream, refusal, size_buffer};
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

/// A connect that nobody waits for.
#[derive(Debug)]
pub(crate) struct PendingConnect {
    /// Until it has become a connection, or failed.
    attempt: Mutex<Option<ConnectAttempt>>,
    /// Ready for reading when the socket is for writing, so that every back-end's connect is
    /// waited for in one way.
    when_writable: OwnedFd,
    target: ConnectTarget,
}

impl ConnectAttempt {
    /// Begins to connect.
    pub(super) fn start(machine: Machine, request: &Request) -> io::Result<Self> {
        let RequestKind::Connect { timeout_ms } = request.kind else {
            return Err(error::invalid_input("this is no connect"));
        };
        let timeout = Duration::from_millis(timeout_ms.into());
        let target = ConnectTarget::of(machine, &request.address)?;
        let socket = vsock::socket().map_err(refusal::of_socket)?;
        size_buffer(&socket, request)?;
        let failed = |error| refusal::of_connect(machine, &target, error);
        if target.is_local() {
            // Without loopback the kernel would send it to the host; this address is not to be
            // had then.
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

    /// Waits until `deadline` for the connection.
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
        // Its own id is known to the host only.
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
    /// Begins to connect and returns at once.
    pub(crate) fn start(request: &Request) -> io::Result<Self> {
        let attempt = ConnectAttempt::start(Machine::detect(), request)?;
        Ok(Self {
            when_writable: event::when_writable(&attempt.socket)?,
            target: attempt.target,
            attempt: Mutex::new(Some(attempt)),
        })
    }

    /// The connection, once it stands; `WouldBlock` before. Not to be asked again afterwards.
    pub(crate) fn progress(&self) -> io::Result<Stream> {
        let mut slot = self.attempt();
        let Some(attempt) = slot.take() else {
            return Err(error::invalid_input("this connect is over"));
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
        self.attempt.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsFd for PendingConnect {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.when_writable.as_fd()
    }
}
