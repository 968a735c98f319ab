//! What a server framework passes to the handlers of a connection.

use hvsock_address::SockAddrHv;

use super::HvStream;
use crate::Peer;

/// The ends of an accepted connection, for the handlers of a server.
///
/// With axum (feature `axum`) a handler gets it as
/// `axum::extract::ConnectInfo<HvConnectInfo>`, if the router was made with
/// `into_make_service_with_connect_info::<HvConnectInfo>()`. With tonic (feature `tonic`) it is a
/// request extension: `request.extensions().get::<HvConnectInfo>()`.
///
/// The broker has verified the peer, who cannot forge it.
#[doc(alias = "TcpConnectInfo")]
#[doc(alias = "SO_PEERCRED")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HvConnectInfo {
    peer: Option<Peer>,
    peer_addr: SockAddrHv,
    local_addr: SockAddrHv,
    connection_id: u64,
}

impl HvConnectInfo {
    /// Returns the process that connected, or `None` on the connecting end.
    pub fn peer(&self) -> Option<&Peer> {
        self.peer.as_ref()
    }

    /// Returns the address of the peer; see [`crate::HvStream::peer_addr`].
    pub fn peer_addr(&self) -> SockAddrHv {
        self.peer_addr
    }

    /// Returns the address of this end; see [`crate::HvStream::local_addr`].
    pub fn local_addr(&self) -> SockAddrHv {
        self.local_addr
    }

    /// Returns the id of the connection in the broker's list; see
    /// [`crate::HvStream::connection_id`].
    pub fn connection_id(&self) -> u64 {
        self.connection_id
    }
}

impl HvStream {
    /// Returns the ends of the connection, for the handlers of a server.
    pub fn connect_info(&self) -> HvConnectInfo {
        let info = self.stream().end().info();
        HvConnectInfo {
            peer: info.peer_process.as_deref().cloned(),
            peer_addr: info.peer,
            local_addr: info.local,
            connection_id: info.id,
        }
    }
}
