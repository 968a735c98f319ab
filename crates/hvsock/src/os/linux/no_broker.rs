//! The errors of a process without a broker, and of one that needs another's help.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::PathBuf;

use hvsock_address::{ElementName, ServiceRef};
use hvsock_fabric::Fix;

use crate::error::ErrorWithFix;

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
        f.write_str("; start one, or set HVSOCK_ENDPOINT to the endpoint of one")
    }
}

impl Error for NoBroker {}

impl From<NoBroker> for io::Error {
    fn from(error: NoBroker) -> Self {
        io::Error::new(io::ErrorKind::NotFound, error)
    }
}

/// No registry can resolve a name or register a service: this process is in a [virtual
/// machine](crate#in-a-virtual-machine) without a broker and uses the kernel's `AF_VSOCK`, and the broker of
/// its host did not resolve the name either. The kind of the [`io::Error`] that wraps it is `NotFound`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoRegistry {
    missing: Missing,
    /// Why the host gave no answer, if it was asked.
    cause: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Missing {
    Service(String),
    Partition(String),
    Registration(String),
}

impl NoRegistry {
    pub(crate) fn service(name: &str) -> Self {
        Self::of(Missing::Service(name.to_owned()))
    }

    pub(crate) fn partition(name: &str) -> Self {
        Self::of(Missing::Partition(name.to_owned()))
    }

    pub(crate) fn registration(name: &str) -> Self {
        Self::of(Missing::Registration(name.to_owned()))
    }

    fn of(missing: Missing) -> Self {
        let cause = None;
        Self { missing, cause }
    }

    /// Adds why the host gave no answer.
    pub(crate) fn because(self, cause: Option<String>) -> Self {
        Self { cause, ..self }
    }

    /// What would help, apart from a broker in this machine.
    fn fix(&self) -> Option<Fix> {
        match &self.missing {
            Missing::Service(name) => Some(Fix::UseServiceId {
                service: name.clone(),
            }),
            Missing::Registration(name) => {
                let name = ElementName::new(name).ok()?;
                let service = ServiceRef::Name(name);
                Some(Fix::RegisterServiceOnHost { service })
            }
            Missing::Partition(_) => Some(Fix::StartBroker),
        }
    }
}

impl fmt::Display for NoRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no broker runs in this virtual machine, so it uses AF_VSOCK, and ")?;
        match &self.missing {
            Missing::Service(name) => write!(
                f,
                "no registry resolves the service name `{name}`; use its GUID or vsock port, which \
                 the host knows"
            ),
            Missing::Partition(name) => write!(
                f,
                "no registry resolves the partition name `{name}`; only `parent` and `loopback` can \
                 be reached"
            ),
            Missing::Registration(name) => write!(
                f,
                "no registry can register `{name}`; register it on the host"
            ),
        }?;
        f.write_str(" (or start a broker here)")?;
        match &self.cause {
            Some(cause) => write!(f, "; the host was asked: {cause}"),
            None => Ok(()),
        }
    }
}

impl Error for NoRegistry {}

impl From<NoRegistry> for io::Error {
    fn from(error: NoRegistry) -> Self {
        io::Error::new(io::ErrorKind::NotFound, error)
    }
}

/// Creates an error that is no refusal, with the message `text` and what would help.
pub(crate) fn with_fix(kind: io::ErrorKind, text: impl Into<String>, fix: Fix) -> io::Error {
    let error = ErrorWithFix {
        refusal: None,
        text: text.into(),
        fix: Some(fix),
    };
    io::Error::new(kind, error)
}

/// What would help after one of these errors.
pub(crate) fn fix_of(error: &(dyn Error + 'static)) -> Option<Fix> {
    match error.downcast_ref::<NoRegistry>() {
        Some(missing) => missing.fix(),
        None => error.is::<NoBroker>().then_some(Fix::StartBroker),
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
        assert!(text.contains("; start one, or set"), "{text}");
        assert_eq!(crate::fix_of(&error), Some(Fix::StartBroker));
    }
}
