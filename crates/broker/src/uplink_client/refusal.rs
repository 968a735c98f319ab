//! What the system's error numbers mean.

use std::io;

use hvsock_fabric::Refusal;
use hvsock_sys::errno;

/// Why a stream to the host could not be connected.
pub(super) fn of_connect(error: &io::Error) -> Refusal {
    match error.raw_os_error() {
        Some(errno::ECONNRESET | errno::ECONNREFUSED) => Refusal::NoListener,
        Some(errno::ENODEV | errno::EHOSTUNREACH | errno::ENETUNREACH) => Refusal::PartitionOff,
        Some(errno::ETIMEDOUT) => Refusal::TimedOut,
        Some(errno::EAFNOSUPPORT) => Refusal::NotSupported,
        _ => shortage(error).unwrap_or_else(|| Refusal::Reset {
            cause: format!("the kernel could not connect to the host: {error}"),
        }),
    }
}

/// Why a port of this machine cannot be had.
pub(super) fn of_listen(error: &io::Error) -> Refusal {
    match error.raw_os_error() {
        Some(errno::EADDRINUSE) => Refusal::AddressInUse,
        Some(errno::EACCES | errno::EPERM) => Refusal::Denied {
            rule: "CAP_NET_BIND_SERVICE".into(),
        },
        Some(errno::EAFNOSUPPORT) => Refusal::NotSupported,
        _ => shortage(error).unwrap_or_else(|| limit("the kernel's sockets")),
    }
}

fn shortage(error: &io::Error) -> Option<Refusal> {
    match error.raw_os_error()? {
        errno::EMFILE | errno::ENFILE => Some(limit("open files")),
        errno::ENOMEM | errno::ENOBUFS => Some(limit("the kernel's memory")),
        _ => None,
    }
}

fn limit(which: &str) -> Refusal {
    Refusal::LimitReached {
        which: which.to_owned(),
    }
}
