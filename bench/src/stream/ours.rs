//! What a bench asks of hvsock beyond what every stream does: which transport it got, to sleep
//! at once, and how often it woke the other end.

use hvsock::{ConnectOptions, HvStream};

/// The name of the transport that the connection goes over.
pub(super) fn transport(_stream: &HvStream) -> &'static str {
    "descriptor"
}

/// Options that leave shared memory out, if there is something that they change.
pub(super) fn without_shared_memory(_options: ConnectOptions) -> Option<ConnectOptions> {
    None
}

/// Makes this end sleep at once where it would wait.
pub(super) fn park(_stream: &HvStream) {}

/// Times that this end has woken the other by a system call.
pub(super) fn bells(_stream: &HvStream) -> Option<u64> {
    None
}

/// As [`bells`], of a stream in tokio.
pub(super) fn bells_in_tokio(_stream: &hvsock::tokio::HvStream) -> Option<u64> {
    None
}

/// As [`transport`], of a stream in tokio.
pub(super) fn transport_in_tokio(_stream: &hvsock::tokio::HvStream) -> &'static str {
    "descriptor"
}
