//! Sockets of the kernel that were not created by this library.

use std::io;
use std::os::fd::OwnedFd;

use hvsock_address::{ServiceId, SockAddrHv, SockAddrVm, VmId};
use hvsock_sys::vsock;

use super::resolve::{AcceptFilter, ListenTarget, PeerKind};
use super::{Listener, Stream};
use crate::{Peer, error};
use hvsock_sys::machine::Machine;

impl Stream {
    /// Takes a connected socket and sets blocking mode.
    pub(crate) fn from_fd(socket: OwnedFd) -> io::Result<Self> {
        let local = local_address(&socket)?;
        if vsock::is_listening(&socket)? {
            return Err(error::invalid_input(
                "the socket listens; it is no connection",
            ));
        }
        let peer = address(&vsock::peer_address(&socket)?)?;
        let machine = Machine::detect();
        let kind = PeerKind::of(machine, peer.cid);
        let vm = match machine.is_local_cid(local.cid) && matches!(kind, PeerKind::Loopback) {
            true => VmId::LOOPBACK,
            false => VmId::ZERO,
        };
        hvsock_sys::set_nonblocking(&socket, false)?;
        Ok(Self::new(
            socket,
            SockAddrHv::new(vm, ServiceId::from_port(local.port)),
            SockAddrHv::new(kind.vm(), ServiceId::from_port(peer.port)),
            Some(Peer::of_partition(kind.name())),
        ))
    }
}

impl Listener {
    /// Takes a listening socket and sets non-blocking mode, as on every listener of this library.
    pub(crate) fn from_fd(socket: OwnedFd) -> io::Result<Self> {
        let address = local_address(&socket)?;
        if !vsock::is_listening(&socket)? {
            return Err(error::invalid_input("the socket does not listen"));
        }
        let (vm, filter) = match address.cid {
            SockAddrVm::CID_LOCAL => (VmId::LOOPBACK, AcceptFilter::Loopback),
            _ => (VmId::WILDCARD, AcceptFilter::Any),
        };
        hvsock_sys::set_nonblocking(&socket, true)?;
        let local = SockAddrHv::new(vm, ServiceId::from_port(address.port));
        let target = ListenTarget {
            address,
            local,
            filter,
        };
        // The kernel does not report the backlog.
        Ok(Self::of_socket(Machine::detect(), socket, &target, 0))
    }
}

/// The socket's own address. An error if it is of another kind.
fn local_address(socket: &OwnedFd) -> io::Result<SockAddrVm> {
    if !vsock::is_vsock(socket) {
        let text = "the descriptor is no AF_VSOCK stream socket; connections and listeners of a \
                    broker consist of more than one descriptor and cannot be taken from one";
        return Err(error::new(io::ErrorKind::Unsupported, text));
    }
    address(&vsock::local_address(socket)?)
}

fn address(bytes: &vsock::Address) -> io::Result<SockAddrVm> {
    SockAddrVm::from_bytes(bytes)
        .map_err(|invalid| io::Error::new(io::ErrorKind::InvalidData, invalid))
}
