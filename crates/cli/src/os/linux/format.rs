//! Formats what the control API reports for people.

use std::time::Duration;

use hvsock_address::{ElementName, ServiceId, ServiceRef};
use hvsock_control::{Partition, PartitionKind, PartitionState};

pub use crate::format::{bytes, count};

/// A duration in its two largest units: `3 s`, `2 min 5 s`, `4 d 1 h`.
pub fn age(seconds: f64) -> String {
    let seconds = Duration::try_from_secs_f64(seconds)
        .unwrap_or_default()
        .as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {} s", seconds % 60),
        (0, _, _) => format!("{hours} h {} min", minutes % 60),
        _ => format!("{days} d {} h", hours % 24),
    }
}

/// A partition's state.
pub fn state(state: PartitionState) -> &'static str {
    match state {
        PartitionState::Defined => "defined",
        PartitionState::Connected => "connected, no driver",
        PartitionState::Running => "running",
        PartitionState::Paused => "paused",
        PartitionState::Off => "off",
        PartitionState::Unknown => "unknown",
        PartitionState::Exited => "exited",
    }
}

/// A partition's state, with the pauser if that is its VMM, and with a pause that is pending.
pub fn detailed_state(partition: &Partition) -> &'static str {
    let is_vm = partition.kind == PartitionKind::Vm;
    match (partition.state, partition.paused_by_operator) {
        (PartitionState::Off, true) => "off, and paused when it starts",
        (PartitionState::Defined, true) => "defined, and paused when it starts",
        (PartitionState::Exited, true) => "exited, and paused when it starts",
        (PartitionState::Paused, false) if is_vm => "paused by its VMM",
        (PartitionState::Paused, false) if partition.container.is_some() => "paused by its runtime",
        (state, _) => self::state(state),
    }
}

/// A partition's kind.
pub fn kind(kind: PartitionKind) -> &'static str {
    match kind {
        PartitionKind::Host => "host",
        PartitionKind::Vm => "vm",
        PartitionKind::Container => "container",
    }
}

/// A service's friendly name, or its GUID or port if it has none.
pub fn service(id: ServiceId, name: Option<&ElementName>) -> String {
    match name {
        Some(name) => name.to_string(),
        None => ServiceRef::Id(id).to_string(),
    }
}

/// A number of bytes, or that nobody counts them.
pub fn counted(bytes: Option<u64>) -> String {
    bytes.map_or_else(|| "not counted".to_owned(), crate::format::bytes)
}

/// The bytes of both directions, or that nobody counts them: `3 B sent and 2.0 KiB received`.
pub fn traffic(sent: Option<u64>, received: Option<u64>) -> String {
    match (sent, received) {
        (Some(sent), Some(received)) => {
            format!("{} sent and {} received", bytes(sent), bytes(received))
        }
        _ => "bytes that are not counted".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_has_its_two_largest_units() {
        for (seconds, want) in [
            (0.4, "0 s"),
            (59.9, "59 s"),
            (125.0, "2 min 5 s"),
            (3600.0, "1 h 0 min"),
            (90_000.0, "1 d 1 h"),
            (f64::NAN, "0 s"),
            (-1.0, "0 s"),
        ] {
            assert_eq!(age(seconds), want);
        }
    }
}
