//! A socket that the runtime watches.
//!
//! On Windows, tokio watches sockets of its own types only. Its request to the system (AFD, through
//! mio) is the same for every stream socket. So a duplicate of the Hyper-V socket is registered as
//! a `TcpStream`, of which only the readiness is used. OpenVMM's tests poll such sockets with AFD
//! in the same way (microsoft/openvmm, `petri/src/vm/hyperv/mod.rs` over `pal_async`).

use std::io;
use std::net;
use std::os::windows::io::BorrowedSocket;
use std::task::{Context, Poll, ready};

use tokio::io::Interest;
use tokio::net::TcpStream;

/// A socket registered with the runtime.
#[derive(Debug)]
pub(super) struct Watch(TcpStream);

impl Watch {
    /// Registers a non-blocking socket. Panics outside of a runtime with I/O enabled, as all
    /// sockets of tokio do.
    pub(super) fn new(socket: BorrowedSocket<'_>) -> io::Result<Self> {
        let duplicate = socket.try_clone_to_owned()?;
        hvsock_sys::set_nonblocking(&duplicate, true)?;
        TcpStream::from_std(net::TcpStream::from(duplicate)).map(Self)
    }

    /// Repeats `attempt` whenever the socket may be ready for `interest`, until it returns
    /// something other than `WouldBlock`.
    pub(super) fn poll<T>(
        &self,
        cx: &mut Context<'_>,
        interest: Interest,
        mut attempt: impl FnMut() -> io::Result<T>,
    ) -> Poll<io::Result<T>> {
        loop {
            if interest.is_writable() {
                ready!(self.0.poll_write_ready(cx))?;
            } else {
                ready!(self.0.poll_read_ready(cx))?;
            }
            match self.attempt(interest, &mut attempt) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }

    /// Calls `attempt` once if the socket may be ready; `WouldBlock` if it is not.
    pub(super) fn attempt<T>(
        &self,
        interest: Interest,
        attempt: impl FnOnce() -> io::Result<T>,
    ) -> io::Result<T> {
        self.0.try_io(interest, attempt)
    }
}
