//! Errors as Python's package needs them.

use std::fmt::Write as _;
use std::io::{self, ErrorKind};

use hvsock::{Explanation, Refusal, explanation_of, refusal_of};
use pyo3::exceptions::PyOSError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;

/// Makes the exception of an error.
static FACTORY: PyOnceLock<Py<PyAny>> = PyOnceLock::new();

/// Sets what makes the exception of an error from its errno, text, code of the refusal or 0, its detail, and the text
/// of EXPLAINED or `None`. Only the first one counts.
#[pyfunction]
pub(crate) fn set_errors(py: Python<'_>, factory: Py<PyAny>) {
    let _ = FACTORY.set(py, factory);
}

/// What the factory gets.
type Arguments = (i32, String, u32, String, Option<String>);

fn exception(arguments: Arguments) -> PyErr {
    Python::attach(|py| match FACTORY.get(py) {
        None => PyOSError::new_err((arguments.0, arguments.1)),
        Some(factory) => match factory.bind(py).call1(arguments) {
            Ok(exception) => PyErr::from_value(exception),
            Err(error) => error,
        },
    })
}

/// The error number of an error without one.
fn errno_of(error: &io::Error) -> i32 {
    const EIO: i32 = 5;
    let of_kind = match error.kind() {
        ErrorKind::WouldBlock => 11,
        ErrorKind::TimedOut => 110,
        ErrorKind::ConnectionReset => 104,
        ErrorKind::BrokenPipe => 32,
        ErrorKind::NotFound => 2,
        ErrorKind::PermissionDenied => 13,
        ErrorKind::InvalidInput => 22,
        ErrorKind::NotConnected => 107,
        ErrorKind::Unsupported => 95,
        _ => EIO,
    };
    error.raw_os_error().unwrap_or(of_kind)
}

pub(crate) fn of(error: io::Error) -> PyErr {
    let refusal = refusal_of(&error);
    // An established connection that is closed is a reset, whatever the reason.
    let errno = match (refusal, error.kind()) {
        (Some(_), ErrorKind::ConnectionReset) | (None, _) => errno_of(&error),
        (Some(refusal), _) => refusal.errno(),
    };
    let (code, detail) = refusal.map_or((0, String::new()), |refusal| {
        (refusal.code(), refusal.detail().to_owned())
    });
    let explained = refusal
        .zip(explanation_of(&error))
        .map(|(refusal, explanation)| text_of(refusal, explanation));
    exception((errno, error.to_string(), code, detail, explained))
}

/// The error of a closed socket.
pub(crate) fn closed() -> PyErr {
    const EBADF: i32 = 9;
    exception((
        EBADF,
        "Bad file descriptor".to_owned(),
        0,
        String::new(),
        None,
    ))
}

/// The text of EXPLAINED for an explanation.
fn text_of(refusal: &Refusal, explanation: &Explanation) -> String {
    let mut text = String::new();
    let _ = write!(text, "{}\n{}", refusal.detail(), explanation.to_lines());
    text
}
