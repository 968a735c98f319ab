//! Converts error numbers of Windows to refusals.

use std::io;
use std::time::Duration;

use hvsock_fabric::{Fix, Refusal};
use hvsock_sys::errno;
use hvsock_sys::hyperv::HvOption;

use super::facts;
use super::resolve::Target;
use crate::error::{refused_with, refused_with_fix};

/// The error of creating a socket.
pub(super) fn of_socket(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(errno::EAFNOSUPPORT | errno::ESOCKTNOSUPPORT | errno::EPROTONOSUPPORT) => {
            refused_with_fix(
                Refusal::NotSupported,
                "this Windows has no Hyper-V sockets (AF_HYPERV)",
                Fix::EnableHyperV,
            )
        }
        _ => error,
    }
}

/// The error of setting an option.
pub(super) fn of_option(option: HvOption, error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(errno::ENOPROTOOPT | errno::EINVAL | errno::EOPNOTSUPP) => refused_with(
            Refusal::NotSupported,
            format!("this Windows does not support the socket option {option:?}: {error}"),
        ),
        _ => error,
    }
}

/// The error of a connect.
pub(super) fn of_connect(target: &Target, error: io::Error) -> io::Error {
    of(target, error, false)
}

/// The error of a bind or listen.
pub(super) fn of_listen(target: &Target, error: io::Error) -> io::Error {
    of(target, error, true)
}

fn of(target: &Target, error: io::Error, listening: bool) -> io::Error {
    let number = error.raw_os_error();
    let refusal = number.and_then(|number| facts::refusal(number, target.address(), listening));
    match refusal {
        Some(Refusal::TimedOut) => refused_with(
            Refusal::TimedOut,
            format!("timed out: {} did not reply", target.shown()),
        ),
        Some(refusal) => refusal.into(),
        None => error,
    }
}

/// The error for a connect without a reply.
pub(super) fn no_reply_error(target: &Target, after: Duration) -> io::Error {
    let text = format!(
        "timed out: {} did not reply within {after:?}",
        target.shown()
    );
    refused_with(Refusal::TimedOut, text)
}

/// Converts an error of an established connection.
pub(super) fn of_connection(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted => Refusal::Reset {
            cause: "the peer or Windows reset it".to_owned(),
        }
        .into_reset_error(),
        _ => error,
    }
}

/// Returns true if the error means that the connection is closed in both directions.
pub(super) fn is_over(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(errno::ENOTCONN | errno::ECONNRESET | errno::ECONNABORTED)
    )
}
