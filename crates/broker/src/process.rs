//! The broker's own resource usage, from `/proc`. Values that cannot be read are 0.

/// Number of open descriptors.
pub(crate) fn open_descriptors() -> u64 {
    std::fs::read_dir("/proc/self/fd").map_or(0, |entries| {
        // One of them is that of the directory listing itself.
        u64::try_from(entries.count())
            .unwrap_or(u64::MAX)
            .saturating_sub(1)
    })
}

/// Resident memory in bytes.
pub(crate) fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = statm
        .split_whitespace()
        .nth(1)
        .and_then(|n| n.parse().ok())
        .unwrap_or(0);
    pages * u64::try_from(rustix::param::page_size()).unwrap_or(4096)
}
