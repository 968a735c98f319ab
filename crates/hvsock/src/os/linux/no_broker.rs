//! The errors of a process without a broker.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::PathBuf;

/// No broker listens at the endpoint. The kind of the [`io::Error`] that wraps it is `NotFound`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoBroker {
    pub(super) tried: Vec<PathBuf>,
}

impl NoBroker {
    /// Returns the paths of the endpoint sockets that were tried.
    pub fn tried(&self) -> &[PathBuf] {
        &self.tried
    }
}

impl fmt::Display for NoBroker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no broker listens at ")?;
        for (index, path) in self.tried.iter().enumerate() {
            let or = if index == 0 { "" } else { " or " };
            write!(f, "{or}{}", path.display())?;
        }
        f.write_str(
            "; start one with `hvsock broker`, or set HVSOCK_ENDPOINT to the endpoint of one",
        )
    }
}

impl Error for NoBroker {}

impl From<NoBroker> for io::Error {
    fn from(error: NoBroker) -> Self {
        io::Error::new(io::ErrorKind::NotFound, error)
    }
}

/// No registry can resolve a name or register a service: this process is in a [virtual
/// machine](crate#in-a-virtual-machine) without a broker and uses the kernel's `AF_VSOCK`. The kind
/// of the [`io::Error`] that wraps it is `NotFound`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoRegistry {
    missing: Missing,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Missing {
    Service(String),
    Partition(String),
    Registration(String),
}

impl NoRegistry {
    pub(crate) fn service(name: &str) -> Self {
        let missing = Missing::Service(name.to_owned());
        Self { missing }
    }

    pub(crate) fn partition(name: &str) -> Self {
        let missing = Missing::Partition(name.to_owned());
        Self { missing }
    }

    pub(crate) fn registration(name: &str) -> Self {
        let missing = Missing::Registration(name.to_owned());
        Self { missing }
    }
}

impl fmt::Display for NoRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no broker runs in this virtual machine, so it uses AF_VSOCK, and ")?;
        match &self.missing {
            Missing::Service(name) => write!(
                f,
                "no registry resolves the service name `{name}`; use its GUID or vsock port, which \
                 `hvsock service show` prints on the host"
            ),
            Missing::Partition(name) => write!(
                f,
                "no registry resolves the partition name `{name}`; only `parent` and `loopback` can \
                 be reached"
            ),
            Missing::Registration(name) => write!(
                f,
                "no registry can register `{name}`; register it on the host with `hvsock \
                 service register`"
            ),
        }?;
        f.write_str(" (or start a broker here with `hvsock broker`)")
    }
}

impl Error for NoRegistry {}

impl From<NoRegistry> for io::Error {
    fn from(error: NoRegistry) -> Self {
        io::Error::new(io::ErrorKind::NotFound, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_names_the_tried_paths_and_the_next_step() {
        let tried = vec!["/a/endpoint".into(), "/b".into()];
        let error = io::Error::from(NoBroker { tried });
        let text = error.to_string();
        assert!(text.contains("/a/endpoint or /b;"), "{text}");
        assert!(text.contains("`hvsock broker`"), "{text}");
    }
}
