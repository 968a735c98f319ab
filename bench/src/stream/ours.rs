//! What a bench asks of hvsock beyond what every stream does: which transport it got, to sleep
//! at once, and how often it slept and woke the other end.

use std::time::Duration;

use hvsock::{ConnectOptions, HvStream, Transport};

use super::bells::Bells;

/// The name of the transport that the connection goes over.
pub(super) fn transport(stream: &HvStream) -> &'static str {
    name(stream.transport())
}

/// As [`transport`], of a stream in tokio.
pub(super) fn transport_in_tokio(stream: &hvsock::tokio::HvStream) -> &'static str {
    name(stream.transport())
}

fn name(transport: Transport) -> &'static str {
    match transport {
        Transport::Ring => "ring",
        Transport::Descriptor => "descriptor",
        _ => "by another way",
    }
}

/// Options that leave shared memory out.
pub(super) fn without_shared_memory(options: ConnectOptions) -> ConnectOptions {
    options.shared_memory(false)
}

/// Makes this end sleep at once where it would wait.
pub(super) fn park(stream: &HvStream) {
    stream.set_spin(Duration::ZERO);
}

/// How often this end has woken the other by a system call of its own, and slept; on a descriptor
/// the kernel does the waking by itself.
pub(super) fn bells(stream: &HvStream) -> Option<Bells> {
    let stats = stream.ring_stats()?;
    Some(Bells {
        rings: stats.notifications,
        sleeps: Some(stats.parks),
    })
}

/// As [`bells`], of a stream in tokio, whose tasks wait without a sleep that is counted.
pub(super) fn bells_in_tokio(stream: &hvsock::tokio::HvStream) -> Option<Bells> {
    let stats = stream.ring_stats()?;
    Some(Bells {
        rings: stats.notifications,
        sleeps: None,
    })
}
