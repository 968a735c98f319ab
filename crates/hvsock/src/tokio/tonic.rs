//! Connections for tonic's servers.

use tonic::transport::server::Connected;

use super::{HvConnectInfo, HvStream};

/// tonic's server takes accepted connections: `Server::serve_with_incoming(listener.into_incoming())`
/// with the feature `stream`. A handler gets the [`HvConnectInfo`] as an extension of its request.
impl Connected for HvStream {
    type ConnectInfo = HvConnectInfo;

    fn connect_info(&self) -> HvConnectInfo {
        HvStream::connect_info(self)
    }
}
