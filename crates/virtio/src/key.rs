//! Identifiers of connections: on the wire ([`Key`]) and for the owner ([`Handle`]).

use std::hash::{Hash, Hasher};

use crate::{Cid, GuestCid, Header, Operation, SocketKind};

/// Identifies a connection of one guest on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// The guest's port.
    pub guest_port: u32,
    /// The other end's CID: the host, or another guest.
    pub peer: Cid,
    /// The peer's port.
    pub peer_port: u32,
    /// The socket type.
    pub kind: SocketKind,
}

impl Key {
    /// The key of a packet from the guest.
    pub(crate) fn of(header: &Header, kind: SocketKind) -> Self {
        Self {
            guest_port: header.src_port,
            peer: Cid(header.dst_cid),
            peer_port: header.dst_port,
            kind,
        }
    }

    /// Makes a header to the guest.
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

// Two words instead of four fields, because every packet is hashed.
impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(u64::from(self.guest_port) << 32 | u64::from(self.peer_port));
        state.write_u64(self.peer.0 << 2 | self.kind as u64);
    }
}

/// Identifies a connection for the owner. A [`Muxer`](crate::Muxer) never reuses a handle, and its
/// methods do nothing for one whose connection is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Handle {
    pub(crate) index: u32,
    pub(crate) serial: u64,
}

impl Handle {
    /// A small number, unique among the existing connections, to index a table with.
    pub fn index(self) -> usize {
        self.index as usize
    }
}
