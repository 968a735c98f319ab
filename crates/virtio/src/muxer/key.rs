//! Names of connections: on the wire and between the muxer and its owner.

use std::hash::{Hash, Hasher};

use crate::{Cid, GuestCid, Header, Operation, SocketKind};

/// What tells the connections of one guest apart on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// The guest's port.
    pub guest_port: u32,
    /// Whom the guest has the connection with: the host, or another guest.
    pub peer: Cid,
    /// The peer's port.
    pub peer_port: u32,
    /// What kind of socket it is between.
    pub kind: SocketKind,
}

impl Key {
    /// The connection that a packet from the guest belongs to.
    pub(crate) fn of(header: &Header, kind: SocketKind) -> Self {
        Self {
            guest_port: header.src_port,
            peer: Cid(header.dst_cid),
            peer_port: header.dst_port,
            kind,
        }
    }

    /// A header to the guest.
    pub(crate) fn header(&self, guest: GuestCid, operation: Operation) -> Header {
        Header {
            src_cid: self.peer.0,
            dst_cid: u64::from(guest.get()),
            src_port: self.peer_port,
            dst_port: self.guest_port,
            kind: self.kind as u16,
            op: operation as u16,
            ..Header::default()
        }
    }
}

// Two words instead of four fields: the hash is looked up for every packet.
impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(u64::from(self.guest_port) << 32 | u64::from(self.peer_port));
        state.write_u64(self.peer.0 << 2 | self.kind as u64);
    }
}

/// What the owner calls a connection. No two connections of a [`Muxer`](super::Muxer) ever have
/// the same, and each method tolerates one whose connection is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Handle {
    pub(crate) index: u32,
    pub(crate) serial: u64,
}

impl Handle {
    /// A small number that no other connection has at the same time, to index a table by.
    pub fn index(self) -> usize {
        self.index as usize
    }
}
