//! Whose vsock ports and CIDs they are: those of one network namespace, from Linux 7 on, or of the machine.

use crate::sandbox;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use hvsock_sys::netns::{NetworkNamespace, NetworkNamespaceId};

/// Says whether the CIDs of a namespace are its own (`local`) or the machine's (`global`). Older kernels do
/// not have it.
const MODE: &str = "/proc/sys/net/vsock/ns_mode";

/// Where sockets are made.
#[derive(Debug)]
pub(super) enum Namespace {
    /// In the namespace of the broker.
    Own,
    /// In another one.
    Other(NetworkNamespace),
}

/// A set of CIDs and ports: those of a namespace, or of all that have none of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Space {
    /// Those of the machine.
    Machine,
    /// Those of a namespace.
    Of(NetworkNamespaceId),
}

impl Namespace {
    /// Opens the namespace of a file; the broker's own without one.
    ///
    /// # Errors
    ///
    /// If the file is no network namespace, or the kernel has the same vsock sockets in all of them.
    pub(super) fn open(path: Option<&Path>) -> io::Result<(Self, Space)> {
        let own = NetworkNamespace::of_this_thread()?;
        let Some(path) = path else {
            let is_local = mode().is_some_and(|mode| mode == "local");
            return Ok((Self::Own, space(is_local, own.id()?)));
        };
        Self::of(NetworkNamespace::open(path)?, &own)
    }

    /// The namespace of a descriptor that another process has opened; the broker's own without one.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open).
    pub(super) fn resume(descriptor: Option<OwnedFd>) -> io::Result<(Self, Space)> {
        match descriptor {
            None => Self::open(None),
            Some(descriptor) => Self::of(descriptor.into(), &NetworkNamespace::of_this_thread()?),
        }
    }

    fn of(other: NetworkNamespace, own: &NetworkNamespace) -> io::Result<(Self, Space)> {
        let id = other.id()?;
        if id == own.id()? {
            return Self::open(None);
        }
        if mode().is_none() {
            let text = "this kernel has no vsock sockets of one network namespace (Linux 7.0 has): leave the \
                        namespace out";
            return Err(io::Error::new(io::ErrorKind::Unsupported, text));
        }
        let (is_local, other) = mode_in(other)?;
        Ok((Self::Other(other), space(is_local, id)))
    }
}

fn space(is_local: bool, id: NetworkNamespaceId) -> Space {
    match is_local {
        true => Space::Of(id),
        false => Space::Machine,
    }
}

/// The mode of this thread's namespace.
fn mode() -> Option<String> {
    let mode = std::fs::read_to_string(MODE).ok()?;
    Some(mode.trim().to_owned())
}

/// Whether a namespace has CIDs of its own.
fn mode_in(namespace: NetworkNamespace) -> io::Result<(bool, NetworkNamespace)> {
    let read = move || {
        namespace.enter()?;
        let is_local = mode().is_some_and(|mode| mode == "local");
        Ok((is_local, namespace))
    };
    let thread = std::thread::Builder::new().name("vsock-netns".into());
    let result = sandbox::outside(|| thread.spawn(read))?.join();
    result.unwrap_or_else(|_| {
        Err(io::Error::other(
            "the thread of the network namespace has ended",
        ))
    })
}
