//! What a process uses, as the kernel reports it.

use std::fs;

/// The count of open descriptors of a process.
///
/// # Panics
/// If there is no such process, or it belongs to another user.
pub fn descriptors(pid: u32) -> usize {
    let folder = fs::read_dir(format!("/proc/{pid}/fd"));
    folder.expect("a process of this user").count()
}

/// The resident memory of a process in bytes.
///
/// # Panics
/// If there is no such process.
pub fn resident_bytes(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    let kib = kib.and_then(|kib| kib.trim().parse::<u64>().ok());
    kib.expect("the kernel reports a size") * 1024
}
