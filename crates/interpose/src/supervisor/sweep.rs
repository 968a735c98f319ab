//! Forgetting the sockets that programs have closed. Nothing tells the supervisor of a close, so it looks.

use std::collections::HashSet;
use std::fs;

use super::core::Core;

/// From how many sockets on all of them are looked at.
const FIRST_SWEEP: usize = 4096;

impl Core {
    /// Forgets bound sockets that are closed, so that their listeners end.
    pub(crate) fn probe_bound(&mut self) {
        let bound: Vec<u64> = self.ports.bound().collect();
        self.remove_closed(&bound);
    }

    /// Whether there are bound sockets to look at.
    pub(crate) fn has_bound(&self) -> bool {
        self.ports.bound().next().is_some()
    }

    /// Forgets the sockets that no process has, if there are many. Returns from how many on to look again.
    pub(crate) fn sweep(&mut self, from: usize) -> usize {
        if self.sockets.len() < from.max(FIRST_SWEEP) {
            return from;
        }
        let open = open_sockets();
        let closed: Vec<u64> = self
            .sockets
            .iter()
            .filter(|(inode, entry)| {
                entry.attempt.is_none() && entry.name.is_none() && !open.contains(inode)
            })
            .map(|(inode, _)| *inode)
            .collect();
        for inode in closed {
            self.remove(inode);
        }
        self.sockets.len() * 2
    }
}

/// The inodes of all sockets that this process can see open.
fn open_sockets() -> HashSet<u64> {
    let mut open = HashSet::new();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    for process in processes {
        let name = process.file_name();
        if !name
            .to_string_lossy()
            .bytes()
            .all(|byte| byte.is_ascii_digit())
        {
            continue;
        }
        let descriptors = fs::read_dir(process.path().join("fd"));
        for descriptor in descriptors.into_iter().flatten().flatten() {
            let Ok(target) = fs::read_link(descriptor.path()) else {
                continue;
            };
            let target = target.to_string_lossy();
            let inode = target.strip_prefix("socket:[");
            let inode = inode.and_then(|inode| inode.strip_suffix(']'));
            open.extend(inode.and_then(|inode| inode.parse::<u64>().ok()));
        }
    }
    open
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_sockets_are_those_of_all_processes_that_can_be_seen() {
        let (one, other) = hvsock_sys::stream::pair().unwrap();
        let inode = |fd: &std::os::fd::OwnedFd| hvsock_sys::foreign_socket::inode(fd).unwrap();
        let (one_inode, other_inode) = (inode(&one), inode(&other));
        drop(other);
        let open = open_sockets();
        assert!(open.contains(&one_inode));
        assert!(!open.contains(&other_inode));
    }
}
