//! The other end of a guest's connection in the document of a link.

use hvsock_fabric::ConnectionId;
use hvsock_ring::{Doorbells, RingEnd, RingEndSnapshot};
use serde::{Deserialize, Serialize};

use super::ring::Ring;
use super::socket::Socket;
use super::socket::snapshot::SocketState;
use super::{End, Peer};
use crate::data_path::{ControlConnection, ControlSnapshot};
use crate::guest_link::pipe::PipeEnd;
use crate::guest_link::pipe::snapshot::PipeEndState;
use crate::handover::{Exports, FdIndex, HandoverError, Imports};

/// The other end of a connection, and the process's control connection.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct PeerState {
    end: EndState,
    control: Option<ControlSnapshot>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum EndState {
    Ring {
        end: RingEndSnapshot,
        memory: FdIndex,
        /// This end's, and the process's.
        doorbells: [FdIndex; 2],
    },
    /// In an arena, which has its memory.
    Slot(RingEndSnapshot),
    Socket(SocketState),
    Sibling(PipeEndState),
}

impl Peer {
    /// The other end as a value, while nobody uses it.
    pub(crate) fn hand_over(
        &self,
        connection: ConnectionId,
        exports: &mut Exports,
    ) -> Result<PeerState, HandoverError> {
        let end = match &self.end {
            End::Ring(ring) => ring.hand_over(exports)?,
            End::Socket(socket) => EndState::Socket(socket.hand_over(exports)?),
            End::Sibling(end) => EndState::Sibling(end.hand_over(connection, exports)?),
        };
        let control = self.control.as_ref();
        Ok(PeerState {
            end,
            control: control.map(|one| one.snapshot(exports)).transpose()?,
        })
    }

    /// The other end with this state. A ring's does nothing when it is dropped before [`wake`](Self::wake). `slot` makes
    /// the end of a connection in an arena.
    pub(crate) fn resume(
        state: PeerState,
        connection: ConnectionId,
        imports: &mut Imports,
        slot: impl FnOnce(RingEndSnapshot) -> Result<Self, HandoverError>,
    ) -> Result<Self, HandoverError> {
        let PeerState { end, control } = state;
        let control = control
            .map(|state| ControlConnection::restore_uncharged(state, imports))
            .transpose()?;
        let mut peer = match end {
            EndState::Ring {
                end,
                memory,
                doorbells: [own, peer],
            } => {
                let memory = imports.fd(memory)?;
                let doorbells = Doorbells {
                    own: imports.fd(own)?,
                    peer: imports.fd(peer)?,
                };
                let end = RingEnd::restore(end, &memory, doorbells);
                let end = end.map_err(|error| HandoverError::damaged(error.to_string()))?;
                Self::ring(end, memory)
            }
            EndState::Slot(end) => slot(end)?,
            EndState::Socket(socket) => Self::new(End::Socket(Socket::resume(socket, imports)?)),
            EndState::Sibling(end) => {
                Self::new(End::Sibling(PipeEnd::resume(end, connection, imports)?))
            }
        };
        peer.control = control;
        Ok(peer)
    }

    /// Makes a resumed end the only one: the process that has handed it over uses it no more.
    pub(crate) fn wake(&self) {
        if let End::Ring(ring) = &self.end {
            ring.end.wake();
        }
    }
}

impl Ring {
    fn hand_over(&self, exports: &mut Exports) -> Result<EndState, HandoverError> {
        let end = self.end.snapshot();
        let (Some(memory), Some([own, peer])) = (&self.memory, self.end.doorbells()) else {
            return Ok(EndState::Slot(end));
        };
        Ok(EndState::Ring {
            end,
            memory: exports.fd(memory)?,
            doorbells: [exports.fd(own)?, exports.fd(peer)?],
        })
    }
}
