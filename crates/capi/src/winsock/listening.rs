//! A socket that listens.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use hvsock::{HvListener, HvStream, SockAddrHv};
use hvsock_sys::event::Event;
use hvsock_sys::poll;
use hvsock_sys::poll::{PollFd, PollFlags};

use super::calls::Waiters;
use crate::abi::system;

/// A listener, and what wakes the threads that wait in accept when the program closes it.
#[derive(Debug)]
pub(crate) struct Listening {
    listener: HvListener,
    closed: AtomicBool,
    close: Event,
    /// It is an endpoint connection, in which the kernel waits for a message.
    is_endpoint: bool,
    waiters: Waiters,
}

impl Listening {
    /// Takes a listener whose connections have the semantics of RAW_FD.
    pub(crate) fn new(listener: HvListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self {
            is_endpoint: system::is_seqpacket(listener.as_fd()),
            listener,
            closed: AtomicBool::new(false),
            close: Event::new()?,
            waiters: Waiters::default(),
        })
    }

    /// Whether the mode and the timeouts of the descriptor are the program's. The library itself never waits in a call
    /// with it.
    pub(crate) fn keeps_options(&self) -> bool {
        self.is_endpoint
    }

    /// A descriptor for the program, readable when there is a connection.
    pub(crate) fn descriptor(&self) -> io::Result<OwnedFd> {
        self.listener.as_fd().try_clone_to_owned()
    }

    pub(crate) fn local(&self) -> io::Result<SockAddrHv> {
        self.listener.local_addr()
    }

    /// Accepts a connection. Waits for one if `may_wait`, until the listener is closed, a signal is handled, or the time
    /// of `SO_RCVTIMEO` is over (`WouldBlock`).
    pub(crate) fn accept(&self, may_wait: bool) -> io::Result<HvStream> {
        loop {
            if self.closed.load(Ordering::SeqCst) {
                // Windows ends a blocked accept of a closed socket so.
                return Err(io::Error::from_raw_os_error(libc::EINTR));
            }
            match self.listener.accept() {
                Ok((stream, _)) => return Ok(stream),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && may_wait => {}
                Err(error) => return Err(error),
            }
            if !self.is_endpoint {
                let mut fds = [
                    PollFd::new(&self.listener, PollFlags::IN),
                    PollFd::new(&self.close, PollFlags::IN),
                ];
                poll::wait(&mut fds, None)?;
                continue;
            }
            self.waiters.enter();
            // A poll would not be restarted after a signal whose handler has SA_RESTART.
            let waited = match self.closed.load(Ordering::SeqCst) {
                true => Ok(()),
                false => system::wait_for_message(self.listener.as_fd()),
            };
            self.waiters.leave();
            match waited {
                Err(_) if self.closed.load(Ordering::SeqCst) => {}
                waited => waited?,
            }
        }
    }

    /// Ends it for all threads that wait.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.close.set();
        if self.is_endpoint && self.waiters.any() {
            system::shutdown(self.listener.as_fd());
        }
    }
}
