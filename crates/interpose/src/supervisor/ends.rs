//! The end of bound sockets, so that their listeners end, too, and their addresses are free.
//!
//! The kernel reports it, and the supervisor sleeps until then. Where it cannot (a user may have a number of inotify
//! instances and watches, and some file systems have no links), bound sockets are [probed](super::probes).

use std::collections::HashMap;

use hvsock_sys::closed_sockets::{Closed, ClosedSockets, Watch};
use hvsock_sys::event::Set;
use hvsock_sys::foreign_socket::Name;

/// The bound sockets whose end is reported.
#[derive(Debug, Default)]
pub(crate) struct Ends {
    sockets: Option<ClosedSockets>,
    /// The inodes of the sockets.
    inodes: HashMap<Watch, u64>,
    /// The end of some sockets is not reported.
    is_incomplete: bool,
}

impl Ends {
    /// Whether there may be bound sockets whose end is not reported.
    pub(crate) fn is_incomplete(&self) -> bool {
        self.is_incomplete
    }

    /// A socket is not bound any more, or is another one now.
    pub(crate) fn forget(&mut self, watch: Option<Watch>) {
        if let (Some(watch), Some(sockets)) = (watch, &self.sockets)
            && self.inodes.remove(&watch).is_some()
        {
            sockets.forget(watch);
        }
    }

    /// Has the end of a socket reported. `None` if it is not.
    pub(crate) fn watch(&mut self, inode: u64, name: &Name) -> Option<Watch> {
        let sockets = self.sockets.as_ref();
        let watch = sockets.and_then(|sockets| sockets.watch(name).ok().flatten());
        match watch {
            Some(watch) => {
                self.inodes.insert(watch, inode);
            }
            None => self.is_incomplete = true,
        }
        watch
    }

    /// Has the end of sockets reported in an event set, if the system can.
    pub(crate) fn open(&mut self, set: &Set, number: u64) {
        let sockets = ClosedSockets::new().ok();
        self.sockets = sockets.filter(|sockets| set.add(sockets, number).is_ok());
    }

    /// The inodes of sockets whose end is reported.
    pub(crate) fn take(&mut self) -> Vec<u64> {
        let Some(sockets) = &self.sockets else {
            return Vec::new();
        };
        let Closed {
            sockets,
            is_incomplete,
        } = sockets.take();
        self.is_incomplete |= is_incomplete;
        let inodes = sockets.iter().filter_map(|watch| self.inodes.get(watch));
        inodes.copied().collect()
    }
}
