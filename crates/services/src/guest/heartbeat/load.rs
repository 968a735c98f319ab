//! This machine's load and memory, from the kernel.

use std::fs;

use rustix::time::{ClockId, clock_gettime};

use crate::wire::heartbeat::Beat;

/// Fills in the values that change with every beat. Values that the kernel does not report stay zero.
pub(super) fn fill(beat: &mut Beat) {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    [beat.load_1_milli, beat.load_5_milli, beat.load_15_milli] = loads(&read("/proc/loadavg"));
    [beat.memory_total, beat.memory_available] = memory(&read("/proc/meminfo"));
    let uptime = clock_gettime(ClockId::Boottime);
    let milliseconds = uptime.tv_sec.saturating_mul(1000) + uptime.tv_nsec / 1_000_000;
    beat.uptime_ms = u64::try_from(milliseconds).unwrap_or_default();
}

/// The three load averages in thousandths, from `0.20 0.18 0.12 1/80 11206`.
fn loads(loadavg: &str) -> [u32; 3] {
    let mut words = loadavg.split_ascii_whitespace().map(|word| {
        let load: f64 = word.parse().unwrap_or_default();
        // The cast saturates. An invalid number is 0.
        (load * 1000.0).round() as u32
    });
    std::array::from_fn(|_| words.next().unwrap_or_default())
}

/// Total and available memory in bytes, from `MemTotal:  8010948 kB` and so on.
fn memory(meminfo: &str) -> [u64; 2] {
    let of = |label: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(label));
        let number = line.and_then(|rest| rest.split_ascii_whitespace().next());
        let kib: u64 = number.and_then(|n| n.parse().ok()).unwrap_or_default();
        kib.saturating_mul(1024)
    };
    [of("MemTotal:"), of("MemAvailable:")]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn load_and_memory_are_parsed() {
        assert_eq!(loads("0.20 1.18 12.125 1/80 11206\n"), [200, 1180, 12125]);
        let meminfo = "MemTotal:        8010948 kB\nMemFree: 5 kB\nMemAvailable:    6 kB\n";
        assert_eq!(memory(meminfo), [8_010_948 * 1024, 6 * 1024]);
        let mut beat = Beat::default();
        fill(&mut beat);
        assert!(beat.uptime_ms > 0 && beat.memory_available > 0);
        assert!(beat.memory_total >= beat.memory_available);
    }

    proptest! {
        #[test]
        fn any_text_is_handled(text in ".*") {
            loads(&text);
            memory(&text);
            memory(&format!("MemTotal:{text}\nMemAvailable: {text}"));
        }
    }
}
