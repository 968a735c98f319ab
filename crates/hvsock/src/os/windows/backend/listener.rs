//! A listener of the system.

use std::io;
use std::os::windows::io::{AsSocket, BorrowedSocket, OwnedSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use hvsock_address::{PartitionRef, SockAddrHv};
use hvsock_sys::hyperv::{self, HvOption};
use hvsock_sys::poll::PollFlags;

use super::resolve::Target;
use super::socket::socket;
use super::{Stream, refusal};
use crate::backend::{Request, next_local_id};
use crate::os::wait::{has_passed, poll_slice};
use crate::{Endpoint, Peer, wait};

/// An established listener.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: OwnedSocket,
    local: SockAddrHv,
    backlog: u32,
    id: u64,
    nonblocking: AtomicBool,
    /// Whether accepted connections survive a pause. Whether they inherit this from the listener's
    /// socket is undocumented, so it is set on each.
    connected_suspend: AtomicBool,
}

impl Listener {
    pub(super) fn new(target: &Target, backlog: u32, request: &Request) -> io::Result<Self> {
        let socket = socket(request.settings)?;
        let failed = |error| refusal::of_listen(target, error);
        hyperv::bind(&socket, &target.address().to_bytes()).map_err(failed)?;
        hyperv::listen(&socket, backlog).map_err(failed)?;
        Ok(Self {
            socket,
            local: target.address(),
            backlog,
            id: next_local_id(),
            nonblocking: AtomicBool::new(false),
            connected_suspend: AtomicBool::new(request.settings.connected_suspend),
        })
    }

    pub(crate) fn local(&self) -> SockAddrHv {
        self.local
    }

    pub(crate) fn endpoint(&self) -> Endpoint {
        Endpoint::from_env()
    }

    pub(crate) fn backlog(&self) -> u32 {
        self.backlog
    }

    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// The system filters.
    pub(crate) fn rejected(&self) -> u64 {
        0
    }

    pub(crate) fn set_nonblocking(&self, nonblocking: bool) {
        self.nonblocking.store(nonblocking, Ordering::Relaxed);
    }

    pub(crate) fn set_connected_suspend(&self, on: bool) -> io::Result<()> {
        hyperv::set_option(&self.socket, HvOption::ConnectedSuspend, on.into())?;
        self.connected_suspend.store(on, Ordering::Relaxed);
        Ok(())
    }

    /// Accepts a connection. Waits until `deadline` unless the listener is non-blocking.
    pub(crate) fn accept(&self, deadline: Option<Instant>) -> io::Result<Stream> {
        let may_wait = !self.nonblocking.load(Ordering::Relaxed);
        wait::accept(may_wait, || self.accept_now(), || self.wait(deadline))
    }

    /// Waits until there may be a connection to accept, or until `deadline`.
    pub(crate) fn wait(&self, deadline: Option<Instant>) -> io::Result<bool> {
        loop {
            if !poll_slice(&self.socket, PollFlags::IN, deadline)?.is_empty() {
                return Ok(true);
            }
            if has_passed(deadline) {
                return Ok(false);
            }
        }
    }

    /// Accepts a connection; `WouldBlock` if there is none.
    pub(crate) fn accept_now(&self) -> io::Result<Stream> {
        loop {
            let Some((socket, peer)) = hyperv::accept(&self.socket)? else {
                return Err(io::ErrorKind::WouldBlock.into());
            };
            let peer = SockAddrHv::from_bytes(&peer)
                .map_err(|invalid| io::Error::new(io::ErrorKind::InvalidData, invalid))?;
            if self.connected_suspend.load(Ordering::Relaxed)
                && hyperv::set_option(&socket, HvOption::ConnectedSuspend, 1).is_err()
            {
                // The listener's socket accepted the option, so this connection is gone again.
                continue;
            }
            // The keyword of the partition or its id. Querying its name would take longer than the
            // connect.
            let caller = Peer::of_partition(PartitionRef::Id(peer.vm).to_string());
            let (socket, caller) = (Arc::new(socket), Some(caller));
            return Ok(Stream::new(socket, self.local, peer, caller));
        }
    }

    pub(crate) fn descriptor(&self) -> BorrowedSocket<'_> {
        self.socket.as_socket()
    }
}
