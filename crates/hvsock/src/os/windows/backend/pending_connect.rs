//! A connect, blocking or not. Dropping it cancels it.

use std::io;
use std::os::windows::io::{AsSocket, BorrowedSocket, OwnedSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hvsock_address::SockAddrHv;
use hvsock_sys::hyperv::{self, HvOption};
use hvsock_sys::poll::PollFlags;

use super::endpoint::require_no_endpoint;
use super::resolve::Target;
use super::socket::socket;
use super::{Stream, refusal};
use crate::backend::{Request, RequestKind};
use crate::os::wait::{has_passed, poll_slice};
use crate::{Endpoint, error};

/// A connect in progress.
#[derive(Debug)]
pub(crate) struct PendingConnect {
    socket: Arc<OwnedSocket>,
    target: Target,
    timeout: Duration,
    /// The connect has completed or failed.
    done: AtomicBool,
}

impl PendingConnect {
    /// Starts a connect and returns at once.
    pub(crate) fn start(endpoint: &Endpoint, request: Request) -> io::Result<Self> {
        require_no_endpoint(endpoint)?;
        let Request {
            address,
            kind,
            settings,
            ..
        } = request;
        let RequestKind::Connect { timeout_ms } = kind else {
            return Err(error::invalid_input("the request is not a connect"));
        };
        let target = Target::of_connect(&address)?;
        let socket = socket(settings)?;
        hyperv::set_option(&socket, HvOption::ConnectTimeout, timeout_ms)?;
        hyperv::connect(&socket, &target.address().to_bytes())
            .map_err(|error| refusal::of_connect(&target, error))?;
        Ok(Self {
            socket: Arc::new(socket),
            target,
            timeout: Duration::from_millis(timeout_ms.into()),
            done: AtomicBool::new(false),
        })
    }

    /// Waits for the connection until `deadline`.
    pub(super) fn finish(&self, deadline: Instant) -> io::Result<Stream> {
        loop {
            match self.progress() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return result,
            }
            if has_passed(Some(deadline)) {
                return Err(self.no_reply_error());
            }
            self.wait(deadline)?;
        }
    }

    /// Returns the connection once it is established, `WouldBlock` before. Must not be called again
    /// after that.
    pub(crate) fn progress(&self) -> io::Result<Stream> {
        if self.done.load(Ordering::Acquire) {
            return Err(error::invalid_input("this connect has already completed"));
        }
        let connected = hyperv::connected(&self.socket);
        if let Ok(false) = connected {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        // Winsock reports the result of a connect once.
        if self.done.swap(true, Ordering::AcqRel) {
            return Err(error::invalid_input("this connect has already completed"));
        }
        connected.map_err(|error| refusal::of_connect(&self.target, error))?;
        let local = SockAddrHv::from_bytes(&hyperv::local_address(&self.socket)?)
            .map_err(|invalid| io::Error::new(io::ErrorKind::InvalidData, invalid))?;
        let socket = Arc::clone(&self.socket);
        Ok(Stream::new(socket, local, self.target.address(), None))
    }

    /// The error for a connect that takes too long.
    pub(crate) fn no_reply_error(&self) -> io::Error {
        refusal::no_reply_error(&self.target, self.timeout)
    }

    /// Waits for progress, for at most one interval or until `deadline`.
    pub(crate) fn wait(&self, deadline: Instant) -> io::Result<()> {
        poll_slice(&self.socket, PollFlags::OUT, Some(deadline)).map(|_| ())
    }

    /// The socket that is writable when the connection is established.
    pub(crate) fn descriptor(&self) -> BorrowedSocket<'_> {
        self.socket.as_socket()
    }
}
