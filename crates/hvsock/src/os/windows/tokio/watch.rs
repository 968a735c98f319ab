//! A socket watched by the runtime.
//!
//! tokio watches nothing on Windows but sockets of its own types. What it asks the system (AFD,
//! by way of mio) is the same for every stream socket, so a duplicate of the Hyper-V socket goes
//! in as a `TcpStream`, of which nothing but its readiness is used. OpenVMM's tests ask AFD about
//! such sockets likewise (microsoft/openvmm, `petri/src/vm/hyperv/mod.rs` over `pal_async`).

use std::io;
use std::net;
use std::os::windows::io::BorrowedSocket;
use std::task::{Context, Poll, ready};

use tokio::io::Interest;
use tokio::net::TcpStream;

/// What the runtime watches.
#[derive(Debug)]
pub(super) struct Watch(TcpStream);

impl Watch {
    /// Watches a non-blocking socket. Panics outside of a runtime with I/O enabled, as all of
    /// tokio's sockets do.
    pub(super) fn new(socket: BorrowedSocket<'_>) -> io::Result<Self> {
        let duplicate = socket.try_clone_to_owned()?;
        hvsock_sys::set_nonblocking(&duplicate, true)?;
        TcpStream::from_std(net::TcpStream::from(duplicate)).map(Self)
    }

    /// Tries, whenever the socket may be ready for `interest`, until it is something other than
    /// `WouldBlock`.
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

    /// Tries once, if the socket may be ready; `WouldBlock` if it is not.
    pub(super) fn attempt<T>(
        &self,
        interest: Interest,
        attempt: impl FnOnce() -> io::Result<T>,
    ) -> io::Result<T> {
        self.0.try_io(interest, attempt)
    }
}
