//! What a broker says, or fails to say, as errors.

use std::fmt;
use std::io;

use hvsock_endpoint::Refused;
use hvsock_fabric::Refusal;

/// The refusal in a message.
pub(crate) fn refusal(refused: &Refused) -> Refusal {
    Refusal::from_wire(refused.code, &refused.detail)
}

/// The error for an endpoint that closes without a word.
pub(crate) fn broker_gone() -> io::Error {
    Refusal::Reset {
        cause: "the broker went away".into(),
    }
    .into()
}

/// The error for a broker that says what this library does not understand.
pub(crate) fn protocol_error(which: &str, what: &dyn fmt::Display) -> io::Error {
    let text = format!("the broker {which} does not keep to the endpoint protocol: {what}");
    io::Error::new(io::ErrorKind::InvalidData, text)
}

/// The error for descriptors that the kernel could not give to this process.
pub(crate) fn descriptor_limit() -> io::Error {
    let text = "this process may have no more descriptors; raise its limit (`ulimit -n`)";
    io::Error::new(io::ErrorKind::QuotaExceeded, text)
}
