//! Converts messages and failures of the broker to errors.

use std::fmt;
use std::io;
use std::time::Duration;

use hvsock_endpoint::Refused;
use hvsock_fabric::{Fix, Refusal};

use crate::error::{explanation_of, refusal_of, refused_with};
use crate::os::with_fix;

/// The refusal in a message.
pub(crate) fn refusal(refused: &Refused) -> Refusal {
    Refusal::from_wire(refused.code, &refused.detail)
}

/// The error of a request, with the time after which a peer that did not answer was given up.
pub(crate) fn with_timeout(error: io::Error, timeout: Duration) -> io::Error {
    match refusal_of(&error) {
        Some(refusal @ Refusal::TimedOut) if explanation_of(&error).is_none() => {
            refused_with(refusal.clone(), format!("{refusal} within {timeout:?}"))
        }
        _ => error,
    }
}

/// The error for an endpoint that closes without a message.
pub(crate) fn broker_gone() -> io::Error {
    Refusal::Reset {
        cause: "the broker went away".into(),
    }
    .into()
}

/// The error for a broker that violates the endpoint protocol.
pub(crate) fn protocol_error(which: &str, what: &dyn fmt::Display) -> io::Error {
    let text = format!("the broker {which} violated the endpoint protocol: {what}");
    io::Error::new(io::ErrorKind::InvalidData, text)
}

/// The error if the kernel could not pass the descriptors of a message to this process.
pub(crate) fn descriptor_limit() -> io::Error {
    let text = "this process has reached its limit of descriptors";
    with_fix(
        io::ErrorKind::QuotaExceeded,
        text,
        Fix::RaiseDescriptorLimit,
    )
}
