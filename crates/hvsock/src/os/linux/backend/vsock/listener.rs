//! A listener of the kernel, with a filter for the peers that its address permits.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use hvsock_address::{ServiceId, SockAddrHv, SockAddrVm};
use hvsock_sys::poll::PollFlags;
use hvsock_sys::vsock;

use super::buffer::size_buffer;
use super::resolve::{AcceptFilter, ListenTarget, PeerKind};
use super::{Stream, refusal};
use crate::backend::{Request, next_local_id};
use crate::os::ready;
use crate::{Endpoint, Peer, wait};
use hvsock_sys::machine::Machine;

/// An established listener.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: OwnedFd,
    local: SockAddrHv,
    backlog: u32,
    id: u64,
    machine: Machine,
    filter: AcceptFilter,
    nonblocking: AtomicBool,
    rejected: AtomicU64,
}

impl Listener {
    pub(super) fn new(
        machine: Machine,
        target: &ListenTarget,
        backlog: u32,
        request: &Request,
    ) -> io::Result<Self> {
        let socket = vsock::socket().map_err(refusal::of_socket)?;
        size_buffer(&socket, request)?;
        let failed = |error| refusal::of_listen(target, error);
        vsock::bind(&socket, &target.address.to_bytes()).map_err(failed)?;
        vsock::listen(&socket, backlog).map_err(failed)?;
        Ok(Self::of_socket(machine, socket, target, backlog))
    }

    /// A listener on a non-blocking socket that listens.
    pub(super) fn of_socket(
        machine: Machine,
        socket: OwnedFd,
        target: &ListenTarget,
        backlog: u32,
    ) -> Self {
        Self {
            socket,
            local: target.local,
            backlog,
            id: next_local_id(),
            machine,
            filter: target.filter,
            nonblocking: AtomicBool::new(false),
            rejected: AtomicU64::new(0),
        }
    }

    pub(crate) fn local(&self) -> SockAddrHv {
        self.local
    }

    pub(crate) fn endpoint(&self) -> Endpoint {
        Endpoint::of_vsock()
    }

    pub(crate) fn backlog(&self) -> u32 {
        self.backlog
    }

    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    pub(crate) fn rejected(&self) -> u64 {
        self.rejected.load(Ordering::Relaxed)
    }

    pub(crate) fn set_connected_suspend(&self, _on: bool) -> io::Result<()> {
        Ok(())
    }

    /// The kernel needs no acknowledgement.
    #[cfg(feature = "tokio")]
    pub(crate) fn has_pending_acks(&self) -> bool {
        false
    }

    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    pub(crate) fn set_nonblocking(&self, nonblocking: bool) {
        self.nonblocking.store(nonblocking, Ordering::Relaxed);
    }

    /// Accepts a connection. Waits until `deadline` unless the listener is non-blocking.
    pub(crate) fn accept(&self, deadline: Option<Instant>) -> io::Result<Stream> {
        let may_wait = !self.nonblocking.load(Ordering::Relaxed);
        wait::accept(may_wait, || self.accept_now(), || self.wait(deadline))
    }

    /// Waits until there may be a connection to accept, or until `deadline`.
    pub(crate) fn wait(&self, deadline: Option<Instant>) -> io::Result<bool> {
        ready(&self.socket, PollFlags::IN, deadline)
    }

    /// Accepts a connection; `WouldBlock` if there is none.
    pub(crate) fn accept_now(&self) -> io::Result<Stream> {
        loop {
            let Some((socket, peer)) = vsock::accept(&self.socket)? else {
                return Err(io::ErrorKind::WouldBlock.into());
            };
            let peer = SockAddrVm::from_bytes(&peer)
                .map_err(|invalid| io::Error::new(io::ErrorKind::InvalidData, invalid))?;
            let kind = PeerKind::of(self.machine, peer.cid);
            if !self.filter.accepts(kind) {
                // The peer sees a closed connection and no reason.
                drop(socket);
                self.rejected.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            let address = SockAddrHv::new(kind.vm(), ServiceId::from_port(peer.port));
            let peer = Peer::of_partition(kind.name());
            return Ok(Stream::new(socket, self.local, address, Some(peer)));
        }
    }
}
