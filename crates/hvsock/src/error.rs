//! Errors: every one is an [`io::Error`], and one that a broker decided carries the [`Refusal`].

use std::error::Error;
use std::fmt;
use std::io;

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
}
