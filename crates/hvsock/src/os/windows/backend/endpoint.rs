//! What an endpoint selects: nothing, since the system itself is the broker.

use std::io;

use crate::endpoint::UseVsock;
use crate::{Endpoint, error};

/// Windows has no `AF_VSOCK`.
pub(crate) fn uses_vsock(_endpoint: &Endpoint) -> bool {
    false
}

/// An endpoint socket means a broker. The request must not reach anything else.
pub(super) fn require_no_endpoint(endpoint: &Endpoint) -> io::Result<()> {
    let text = match endpoint.vsock() {
        UseVsock::WithoutBroker => return Ok(()),
        UseVsock::Always => "Windows has no AF_VSOCK; its Hyper-V sockets need no endpoint",
        UseVsock::Never => {
            "Windows has no endpoint sockets, since the system itself is the broker; name no \
             endpoint, and unset HVSOCK_ENDPOINT and HVSOCK_DIR"
        }
    };
    Err(error::new(io::ErrorKind::Unsupported, text))
}
