//! A socket that listens.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use hvsock::{HvListener, HvStream, SockAddrHv};
use hvsock_sys::event::Event;
use hvsock_sys::poll;
use hvsock_sys::poll::{PollFd, PollFlags};

/// A listener, and what wakes the threads that wait in accept when the program closes it.
#[derive(Debug)]
pub(crate) struct Listening {
    listener: HvListener,
    closed: AtomicBool,
    close: Event,
}

impl Listening {
    /// Takes a listener whose connections have the semantics of RAW_FD.
    pub(crate) fn new(listener: HvListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self {
            listener,
            closed: AtomicBool::new(false),
            close: Event::new()?,
        })
    }

    /// A descriptor for the program, readable when there is a connection.
    pub(crate) fn descriptor(&self) -> io::Result<OwnedFd> {
        self.listener.as_fd().try_clone_to_owned()
    }

    pub(crate) fn local(&self) -> io::Result<SockAddrHv> {
        self.listener.local_addr()
    }

    /// Accepts a connection. Waits for one if `may_wait`, until the listener is closed.
    pub(crate) fn accept(&self, may_wait: bool) -> io::Result<HvStream> {
        loop {
            if self.closed.load(Ordering::Acquire) {
                // Windows ends a blocked accept of a closed socket so.
                return Err(io::Error::from_raw_os_error(libc::EINTR));
            }
            match self.listener.accept() {
                Ok((stream, _)) => return Ok(stream),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && may_wait => {}
                Err(error) => return Err(error),
            }
            let mut fds = [
                PollFd::new(&self.listener, PollFlags::IN),
                PollFd::new(&self.close, PollFlags::IN),
            ];
            poll::wait(&mut fds, None)?;
        }
    }

    /// Ends it for all threads that wait.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.close.set();
    }
}
