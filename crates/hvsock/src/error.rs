//! Errors: every error is an [`io::Error`]. If the broker or the system refused the request, the
//! error contains the [`Refusal`].

use std::error::Error;
use std::fmt;
use std::io;

use hvsock_fabric::{Explanation, Fix, Refusal};

/// Returns the [`Refusal`] in an error: why a connect or listen was refused, or why a connection or
/// listener was reset.
///
/// Returns `None` if the error is of another kind. Follows the chain of sources, also through
/// nested [`io::Error`]s.
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
#[doc(alias = "WSAGetLastError")]
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

/// The fix in this link of a chain of errors, if an error of this module is there.
pub(crate) fn own_fix(error: &(dyn Error + 'static)) -> Option<Fix> {
    if let Some(explained) = error.downcast_ref::<ExplainedError>() {
        return explained.explanation.fix.clone();
    }
    error.downcast_ref::<ErrorWithFix>()?.fix.clone()
}

/// An error with a text other than that of its refusal, because the back-end has more or less
/// information, or with a fix.
#[derive(Debug)]
pub(crate) struct ErrorWithFix {
    pub(crate) refusal: Option<Refusal>,
    pub(crate) text: String,
    /// What would help. The message ends with it.
    pub(crate) fix: Option<Fix>,
}

impl fmt::Display for ErrorWithFix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)?;
        match &self.fix {
            Some(fix) => write!(f, "; {fix}"),
            None => Ok(()),
        }
    }
}

impl Error for ErrorWithFix {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.refusal.as_ref().map(|refusal| refusal as _)
    }
}

/// Returns why the broker or the system refused a connect or listen, check by check, if the request
/// was made with [`explain_refusal`](crate::ConnectOptions::explain_refusal).
///
/// Follows the chain of sources, as [`refusal_of`] does.
///
/// ```no_run
/// use hvsock::HvStream;
///
/// let options = HvStream::options().explain_refusal(true);
/// if let Err(error) = options.connect(("parent", "HV Socket Demo")) {
///     match hvsock::explanation_of(&error) {
///         Some(explanation) => println!("{explanation}"),
///         None => println!("failed: {error}"),
///     }
/// }
/// ```
pub fn explanation_of(error: &io::Error) -> Option<&Explanation> {
    let mut inner: &(dyn Error + 'static) = error.get_ref()?;
    loop {
        if let Some(explained) = inner.downcast_ref::<ExplainedError>() {
            return Some(&explained.explanation);
        }
        if let Some(nested) = inner.downcast_ref::<io::Error>() {
            return explanation_of(nested);
        }
        inner = inner.source()?;
    }
}

/// The error of a refused request with its explanation. The message is that of the error alone.
#[derive(Debug)]
struct ExplainedError {
    error: io::Error,
    explanation: Explanation,
}

impl fmt::Display for ExplainedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl Error for ExplainedError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.error)
    }
}

/// Adds the explanation to the error of a refused request.
pub(crate) fn explained(error: io::Error, explanation: Explanation) -> io::Error {
    io::Error::new(error.kind(), ExplainedError { error, explanation })
}

/// Creates the error for a refusal with the message `text`.
pub(crate) fn refused_with(refusal: Refusal, text: impl Into<String>) -> io::Error {
    refused_with_fix(refusal, text, None)
}

/// Creates the error for a refusal with the message `text` and what would help, which the message
/// ends with.
pub(crate) fn refused_with_fix(
    refusal: Refusal,
    text: impl Into<String>,
    fix: impl Into<Option<Fix>>,
) -> io::Error {
    let (kind, text, fix) = (refusal.kind(), text.into(), fix.into());
    let refusal = Some(refusal);
    io::Error::new(kind, ErrorWithFix { refusal, text, fix })
}

/// Creates an error of `kind` with the message `text`.
pub(crate) fn new(kind: io::ErrorKind, text: &'static str) -> io::Error {
    io::Error::new(kind, text)
}

/// Creates the error for an invalid argument.
pub(crate) fn invalid_input(text: &'static str) -> io::Error {
    new(io::ErrorKind::InvalidInput, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_found_at_any_depth() {
        let refused = io::Error::from(Refusal::NoListener);
        assert_eq!(refusal_of(&refused), Some(&Refusal::NoListener));
        let refused_with = refused_with(Refusal::TimedOut, "the host is silent");
        assert_eq!(refusal_of(&refused_with), Some(&Refusal::TimedOut));
        assert_eq!(refused_with.kind(), io::ErrorKind::TimedOut);
        assert_eq!(refused_with.to_string(), "the host is silent");
        let wrapped = io::Error::other(refused);
        assert_eq!(refusal_of(&wrapped), Some(&Refusal::NoListener));
        let fixed = refused_with_fix(Refusal::NoListener, "none", Fix::ListServices);
        assert_eq!(refusal_of(&fixed), Some(&Refusal::NoListener));
        assert_eq!(refusal_of(&io::Error::other("x")), None);
        assert_eq!(refusal_of(&io::ErrorKind::NotFound.into()), None);
    }
}
