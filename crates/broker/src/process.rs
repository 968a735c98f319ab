//! Processes, from `/proc`: the broker's own resource usage, and the programs of others. Values of the
//! broker's own that cannot be read are 0.

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

/// The path of the program that a process runs now, or else the name that it has given itself. `None`
/// if the process is gone.
pub(crate) fn program(pid: u32) -> Option<String> {
    let folder = format!("/proc/{pid}");
    match std::fs::read_link(format!("{folder}/exe")) {
        Ok(path) => Some(path.to_string_lossy().into_owned()),
        Err(_) => {
            let name = std::fs::read(format!("{folder}/comm")).ok()?;
            Some(String::from_utf8_lossy(name.trim_ascii_end()).into_owned())
        }
    }
}
