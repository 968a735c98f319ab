//! Numbers and names as people read them.

use std::time::Duration;

use hvsock_address::{ElementName, ServiceId, ServiceRef};
use hvsock_broker::model::{Partition, PartitionKind, PartitionState};

/// Bytes, with three digits or so: `999 B`, `1.5 KiB`, `20 MiB`.
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut units = UNITS.iter();
    let mut unit = units.next().unwrap_or(&"KiB");
    while value >= 1023.5 {
        let Some(next) = units.next() else { break };
        unit = next;
        value /= 1024.0;
    }
    if value < 9.95 {
        format!("{value:.1} {unit}")
    } else {
        format!("{value:.0} {unit}")
    }
}

/// How long ago, by its two largest units: `3 s`, `2 min 5 s`, `4 d 1 h`.
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

/// A count with its noun: `1 service`, `2 services`.
pub fn count(count: usize, noun: &str) -> String {
    match count {
        1 => format!("1 {noun}"),
        _ => format!("{count} {noun}s"),
    }
}

/// A partition's state.
pub fn state(state: PartitionState) -> &'static str {
    match state {
        PartitionState::Off => "off",
        PartitionState::Running => "running",
        PartitionState::Paused => "paused",
    }
}

/// How a partition stands, and on whose account where that is not plain.
pub fn standing(partition: &Partition) -> &'static str {
    let is_vm = partition.kind == PartitionKind::Vm;
    match (partition.state, partition.paused_by_operator) {
        (PartitionState::Off, true) => "off, and paused when it starts",
        (PartitionState::Paused, false) if is_vm => "paused by its VMM",
        (state, _) => self::state(state),
    }
}

/// What kind of partition it is.
pub fn kind(kind: PartitionKind) -> &'static str {
    match kind {
        PartitionKind::Host => "host",
        PartitionKind::Vm => "vm",
        PartitionKind::Container => "container",
    }
}

/// A service by its friendly name, or by its GUID or port where it has none.
pub fn service(id: ServiceId, name: Option<&ElementName>) -> String {
    match name {
        Some(name) => name.to_string(),
        None => ServiceRef::Id(id).to_string(),
    }
}

/// `text` as one word of a POSIX shell.
pub fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-/:@%+".contains(c);
    if !text.is_empty() && text.chars().all(plain) && !text.starts_with('-') {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_a_fitting_unit() {
        for (number, want) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (10 * 1024, "10 KiB"),
            (1024 * 1024 - 1, "1.0 MiB"),
            (20 << 20, "20 MiB"),
            (u64::MAX, "16384 PiB"),
        ] {
            assert_eq!(bytes(number), want);
        }
    }

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

    #[test]
    fn a_shell_word_stays_one() {
        assert_eq!(shell_word("/tmp/x"), "/tmp/x");
        assert_eq!(shell_word("HV Socket Demo"), "'HV Socket Demo'");
        assert_eq!(shell_word("a'b"), r"'a'\''b'");
        assert_eq!(shell_word(""), "''");
    }
}
