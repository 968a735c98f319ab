//! Forgetting the sockets that programs have closed, as far as nothing tells the supervisor of it: it looks.

use std::collections::HashSet;
use std::fs;
use std::time::Instant;

use hvsock_sys::foreign_socket::{self, Name};

use super::core::Core;
use super::sweeps::FIRST;
use crate::model::Errno;

/// How many bound sockets are looked at at once: that takes a millisecond, in which no call is answered.
const BOUND_AT_ONCE: usize = 128;

impl Core {
    /// Forgets bound sockets that are closed, so that their listeners end. Looks at some of them, and at the others the
    /// next time. Returns whether these were the last.
    pub(crate) fn probe_bound(&mut self) -> bool {
        if self.sweep.bound.is_empty() {
            self.sweep.bound.extend(self.ports.bound());
        }
        let count = self.sweep.bound.len().min(BOUND_AT_ONCE);
        let some: Vec<u64> = self.sweep.bound.drain(..count).collect();
        self.remove_closed(&some);
        self.sweep.bound.is_empty()
    }

    /// A socket of the program has got a name. It is open.
    ///
    /// # Errors
    ///
    /// `EBADF` if it is unknown.
    pub(crate) fn named(&mut self, inode: u64, name: Name) -> Result<(), Errno> {
        let entry = self.sockets.get_mut(&inode).ok_or(Errno::EBADF)?;
        entry.watch = self.ends.watch(inode, &name);
        entry.name = Some(name);
        self.probes.changed(Instant::now());
        Ok(())
    }

    /// Forgets the sockets whose end is reported.
    pub(crate) fn remove_ended(&mut self) {
        let inodes = self.ends.take();
        self.remove_closed(&inodes);
    }

    /// Whether there may be bound sockets to look at.
    pub(crate) fn must_probe(&self) -> bool {
        self.ends.is_incomplete() && self.ports.bound().next().is_some()
    }

    /// Forgets the sockets that no process has, if there are many.
    pub(crate) fn sweep(&mut self, now: Instant) {
        if !self.sweep.is_due(now, self.sockets.len()) {
            return;
        }
        // What cannot be read tells nothing.
        let listed = foreign_socket::open_inodes().unwrap_or_default();
        if !listed.is_empty() {
            self.forget_all_but(&listed);
        }
        self.sweep.done(now, self.sockets.len());
    }

    fn forget_all_but(&mut self, listed: &HashSet<u64>) {
        let missing = self.sockets.iter().filter(|(inode, entry)| {
            entry.attempt.is_none() && entry.name.is_none() && !listed.contains(inode)
        });
        let (mut closed, mut unknown) = (Vec::new(), Vec::new());
        for (inode, entry) in missing {
            match entry.is_listed {
                true => closed.push(*inode),
                false => unknown.push(*inode),
            }
        }
        // The broker may be in another network namespace.
        if !unknown.is_empty() {
            let open = open_sockets();
            closed.extend(unknown.into_iter().filter(|inode| !open.contains(inode)));
        }
        for inode in closed {
            self.remove(inode);
        }
        if self.sockets.len() < self.sockets.capacity() / 4 {
            self.sockets.shrink_to(FIRST);
        }
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
        let inode = |fd: &std::os::fd::OwnedFd| foreign_socket::inode(fd).unwrap();
        let (one_inode, other_inode) = (inode(&one), inode(&other));
        drop(other);
        let open = open_sockets();
        assert!(open.contains(&one_inode));
        assert!(!open.contains(&other_inode));
    }
}
