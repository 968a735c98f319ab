//! The choice between the back-ends, at run time.

use std::io;
use std::path::Path;

use super::vsock;
use crate::Endpoint;
use crate::endpoint::UseVsock;

/// The back-end for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Backend {
    Broker,
    Vsock,
}

/// Chooses the back-end: a broker if an endpoint socket exists.
pub(super) fn choose(endpoint: &Endpoint) -> Backend {
    let broker = match endpoint.vsock() {
        UseVsock::Never => true,
        UseVsock::Always => false,
        UseVsock::WithoutBroker => {
            endpoint.paths().iter().any(|path| may_exist(path)) || !vsock::is_available()
        }
    };
    if broker {
        Backend::Broker
    } else {
        Backend::Vsock
    }
}

/// Returns true if a request to `endpoint` would use the kernel's `AF_VSOCK` now.
pub(crate) fn uses_vsock(endpoint: &Endpoint) -> bool {
    choose(endpoint) == Backend::Vsock
}

/// Returns true if `path` exists, or if that cannot be determined.
fn may_exist(path: &Path) -> bool {
    match path.symlink_metadata() {
        Ok(_) => true,
        Err(error) => !matches!(
            error.kind(),
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
        ),
    }
}
