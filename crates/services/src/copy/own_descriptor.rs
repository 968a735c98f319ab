//! Names of this process's own descriptors, such as `/dev/stdin`.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{self, CWD, Mode, OFlags};

use super::name::Name;

/// As [`named`], of a path.
pub(super) fn of(path: &Path, name: &Name) -> Option<i32> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = fs::openat(CWD, parent, flags, Mode::empty()).ok()?;
    named(&folder, name)
}

/// Whether a standard stream of this process is open for writing only, as one is that was closed when the
/// program was started. To open it by name would open the file anew, and find it empty.
pub(super) fn is_write_only(descriptor: i32) -> bool {
    let flags = match descriptor {
        0 => fs::fcntl_getfl(io::stdin()),
        1 => fs::fcntl_getfl(io::stdout()),
        2 => fs::fcntl_getfl(io::stderr()),
        _ => return false,
    };
    flags.is_ok_and(|flags| flags & OFlags::RWMODE == OFlags::WRONLY)
}

/// The descriptor of this process that a name such as `/dev/stdout`, `/dev/fd/3` or
/// `/proc/self/fd/3` stands for.
pub(super) fn named(folder: &OwnedFd, name: &Name) -> Option<i32> {
    /// The most links that are followed.
    const LINKS: usize = 8;
    let process = format!("/proc/{}", std::process::id());
    let mut folder = folder.try_clone().ok()?;
    let mut name = name.clone();
    for _ in 0..LINKS {
        // Opened in `folder`, the link's target is relative to it.
        let target = fs::readlinkat(&folder, name.as_os_str(), Vec::new()).ok()?;
        let path = std::fs::read_link(format!("/proc/self/fd/{}", folder.as_raw_fd())).ok()?;
        let within = path.strip_prefix(&process).ok();
        if let Some(within) = within
            && within.ends_with("fd")
            && (within == Path::new("fd") || within.starts_with("task"))
        {
            return name.as_os_str().to_str()?.parse().ok();
        }
        let target = target.as_bytes();
        let start = target.iter().rposition(|byte| *byte == b'/');
        let (parent, last) = target.split_at(start.map_or(0, |slash| slash + 1));
        name = Name::new(last).ok()?;
        if !parent.is_empty() {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let parent = OsStr::from_bytes(parent);
            folder = fs::openat(&folder, parent, flags, Mode::empty()).ok()?;
        }
    }
    None
}
