//! Errors: every one is an [`io::Error`], and one that a broker decided carries the [`Refusal`].

use std::error::Error;
use std::fmt;
use std::io;
use std::path::PathBuf;

use hvsock_fabric::Refusal;

/// The refusal that an error carries, if it was one: why a connect or listen was turned down, or
/// why a connection or listener was cut.
///
/// ```no_run
/// use hvsock::{HvStream, Refusal};
///
/// match HvStream::connect("hvsock://parent/HV%20Socket%20Demo") {
///     Ok(_) => println!("connected"),
///     Err(error) => match hvsock::refusal_of(&error) {
///         Some(Refusal::Unregistered) => println!("ask the operator to register the service"),
///         Some(refusal) => println!("refused: {refusal}"),
///         None => println!("failed: {error}"),
///     },
/// }
/// ```
pub fn refusal_of(error: &io::Error) -> Option<&Refusal> {
    let mut inner: &(dyn Error + 'static) = error.get_ref()?;
    loop {
        if let Some(refusal) = inner.downcast_ref() {
            return Some(refusal);
        }
        if let Some(nested) = inner.downcast_ref::<io::Error>() {
            return refusal_of(nested);
        }
        inner = inner.source()?;
    }
}

/// No broker answers where one was looked for. The [`io::Error`] that carries it is of kind
/// `NotFound`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoBroker {
    pub(crate) tried: Vec<PathBuf>,
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
    wanted: Wanted,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Wanted {
    Service(String),
    Partition(String),
    Registration(String),
}

impl NoRegistry {
    pub(crate) fn service(name: &str) -> Self {
        let wanted = Wanted::Service(name.to_owned());
        Self { wanted }
    }

    pub(crate) fn partition(name: &str) -> Self {
        let wanted = Wanted::Partition(name.to_owned());
        Self { wanted }
    }

    pub(crate) fn registration(name: &str) -> Self {
        let wanted = Wanted::Registration(name.to_owned());
        Self { wanted }
    }
}

impl fmt::Display for NoRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "no broker runs in this virtual machine, so its host is reached by AF_VSOCK, and ",
        )?;
        match &self.wanted {
            Wanted::Service(name) => write!(
                f,
                "nobody here knows the service `{name}` by name; use its GUID or vsock port, which \
                 `hvsock service show` tells on the host"
            ),
            Wanted::Partition(name) => write!(
                f,
                "nobody here knows the partition `{name}`; those that can be reached are `parent` \
                 and `loopback`"
            ),
            Wanted::Registration(name) => write!(
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

/// A refusal in words of its own, for a back-end that knows more than the refusal says, or less.
#[derive(Debug)]
struct Worded {
    refusal: Refusal,
    text: String,
}

impl fmt::Display for Worded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Error for Worded {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.refusal)
    }
}

/// The error for a refusal, which says `text`.
pub(crate) fn worded(refusal: Refusal, text: impl Into<String>) -> io::Error {
    let text = text.into();
    io::Error::new(refusal.kind(), Worded { refusal, text })
}

/// An error of `kind` that says `text`.
pub(crate) fn plain(kind: io::ErrorKind, text: &'static str) -> io::Error {
    io::Error::new(kind, text)
}

/// The error for an argument that no system would take.
pub(crate) fn invalid(text: &'static str) -> io::Error {
    plain(io::ErrorKind::InvalidInput, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_found_at_any_depth() {
        let refused = io::Error::from(Refusal::NoListener);
        assert_eq!(refusal_of(&refused), Some(&Refusal::NoListener));
        let worded = worded(Refusal::TimedOut, "the host is silent");
        assert_eq!(refusal_of(&worded), Some(&Refusal::TimedOut));
        assert_eq!(worded.kind(), io::ErrorKind::TimedOut);
        assert_eq!(worded.to_string(), "the host is silent");
        let wrapped = io::Error::other(refused);
        assert_eq!(refusal_of(&wrapped), Some(&Refusal::NoListener));
        assert_eq!(refusal_of(&io::Error::other("x")), None);
        assert_eq!(refusal_of(&io::ErrorKind::NotFound.into()), None);
    }

    #[test]
    fn where_a_broker_was_looked_for_is_named_with_the_next_step() {
        let tried = vec!["/a/endpoint".into(), "/b".into()];
        let error = io::Error::from(NoBroker { tried });
        let text = error.to_string();
        assert!(text.contains("/a/endpoint or /b;"), "{text}");
        assert!(text.contains("`hvsock broker`"), "{text}");
    }
}
