//! The end of bound sockets, so that their listeners end, too, and their addresses are free.
//!
//! The kernel reports it, and the supervisor sleeps until then. Where it cannot (a user may have a number of inotify
//! instances and watches, and some file systems have no links), bound sockets are [probed](super::probes).

use std::collections::HashMap;
use std::time::Instant;

use hvsock_sys::closed_sockets::{Closed, ClosedSockets, Watch};
use hvsock_sys::foreign_socket::Name;

use super::core::{CLOSED, Core};
use crate::model::Errno;

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
    fn watch(&mut self, inode: u64, name: &Name) -> Option<Watch> {
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
}

impl Core {
    /// Has the end of bound sockets reported if the system can.
    pub(crate) fn watch_ends(&mut self) {
        let sockets = ClosedSockets::new().ok();
        self.ends.sockets = sockets.filter(|sockets| self.set.add(sockets, CLOSED).is_ok());
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
        let Some(sockets) = &self.ends.sockets else {
            return;
        };
        let Closed {
            sockets,
            is_incomplete,
        } = sockets.take();
        let inodes = sockets.iter().filter_map(|it| self.ends.inodes.get(it));
        let inodes: Vec<u64> = inodes.copied().collect();
        self.ends.is_incomplete |= is_incomplete;
        self.remove_closed(&inodes);
    }
}
