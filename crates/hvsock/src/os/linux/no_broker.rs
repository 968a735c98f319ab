//! What is missing where there is no broker, as errors.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::PathBuf;

/// No broker answers where one was looked for. The [`io::Error`] that carries it is of kind
/// `NotFound`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoBroker {
    pub(super) tried: Vec<PathBuf>,
}

impl NoBroker {
    /// The endpoint sockets that were tried.
    pub fn tried(&self) -> &[PathBuf] {
        &self.tried
    }
}

impl fmt::Display for NoBroker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no broker answers at ")?;
        for (index, path) in self.tried.iter().enumerate() {
            let or = if index == 0 { "" } else { " or " };
            write!(f, "{or}{}", path.display())?;
        }
        f.write_str(
            "; start one with `hvsock broker`, or name the endpoint of one that runs in \
             HVSOCK_ENDPOINT",
        )
    }
}

impl Error for NoBroker {}

impl From<NoBroker> for io::Error {
    fn from(error: NoBroker) -> Self {
        io::Error::new(io::ErrorKind::NotFound, error)
    }
}

/// There is no broker here that could look a name up, or register a service: this process is in a
/// [virtual machine](crate#in-a-virtual-machine) that reaches services by the kernel's `AF_VSOCK`. The [`io::Error`] that
/// carries it is of kind `NotFound`.
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
        f.write_str(
            "no broker runs in this virtual machine, so its host is reached by AF_VSOCK, and ",
        )?;
        match &self.missing {
            Missing::Service(name) => write!(
                f,
                "nobody here knows the service `{name}` by name; use its GUID or vsock port, which \
                 `hvsock service show` tells on the host"
            ),
            Missing::Partition(name) => write!(
                f,
                "nobody here knows the partition `{name}`; those that can be reached are `parent` \
                 and `loopback`"
            ),
            Missing::Registration(name) => write!(
                f,
                "there is no registry for `{name}` here; register it on the host with `hvsock \
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
    fn where_a_broker_was_looked_for_is_named_with_the_next_step() {
        let tried = vec!["/a/endpoint".into(), "/b".into()];
        let error = io::Error::from(NoBroker { tried });
        let text = error.to_string();
        assert!(text.contains("/a/endpoint or /b;"), "{text}");
        assert!(text.contains("`hvsock broker`"), "{text}");
    }
}
