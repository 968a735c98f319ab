//! Uses of hvsock's API beyond a plain stream: the transport, spinning, and wakeup counts.

use std::time::Duration;

use hvsock::{ConnectOptions, HvStream, Transport};

use super::wakeups::WakeupCounts;

/// The name of a connection's transport.
pub(super) fn transport(stream: &HvStream) -> &'static str {
    name(stream.transport())
}

/// Like [`transport`], for tokio streams.
pub(super) fn transport_in_tokio(stream: &hvsock::tokio::HvStream) -> &'static str {
    name(stream.transport())
}

fn name(transport: Transport) -> &'static str {
    match transport {
        Transport::Ring => "ring",
        Transport::Descriptor => "descriptor",
        Transport::Direct => "direct",
        _ => "other",
    }
}

/// Options without shared memory.
pub(super) fn without_shared_memory(options: ConnectOptions) -> ConnectOptions {
    options.shared_memory(false)
}

/// Makes this end park without spinning.
pub(super) fn disable_spin(stream: &HvStream) {
    stream.set_spin(Duration::ZERO);
}

/// Wakeup counts of this end of a ring. `None` for a descriptor, where the kernel does the wakeups.
pub(super) fn wakeups(stream: &HvStream) -> Option<WakeupCounts> {
    let stats = stream.ring_stats()?;
    Some(WakeupCounts {
        notifications: stats.notifications,
        parks: Some(stats.parks),
    })
}

/// Like [`wakeups`], for tokio streams. Waits of tasks are not counted as parks.
pub(super) fn wakeups_in_tokio(stream: &hvsock::tokio::HvStream) -> Option<WakeupCounts> {
    let stats = stream.ring_stats()?;
    Some(WakeupCounts {
        notifications: stats.notifications,
        parks: None,
    })
}
