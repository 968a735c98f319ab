//! Which users' processes and files are taken for the VMM's.

use std::io;
use std::os::fd::AsFd;

use hvsock_sys::peer;

/// The user that the VMM runs as, and those that may act as it anyway: root and the broker's own.
#[derive(Clone, Copy, Debug)]
pub(super) struct Trust {
    broker: u32,
    vmm: Option<u32>,
}

impl Trust {
    /// `vmm` is the user that the VMM runs as, if it is not the broker's.
    pub(super) fn new(vmm: Option<u32>) -> Self {
        let broker = rustix::process::geteuid().as_raw();
        Self { broker, vmm }
    }

    /// Whether this user is trusted.
    pub(super) fn allows(self, uid: u32) -> bool {
        uid == 0 || uid == self.broker || self.vmm == Some(uid)
    }

    /// The user that the host's sockets are to belong to, if it is not the broker's.
    pub(super) fn owner(self) -> Option<u32> {
        self.vmm.filter(|uid| *uid != self.broker)
    }

    /// Checks the process at the other end of a socket.
    ///
    /// # Errors
    ///
    /// `PermissionDenied` with its user, if that is not trusted.
    pub(super) fn check(self, socket: impl AsFd) -> io::Result<()> {
        let peer = peer::credentials(socket)?;
        if self.allows(peer.uid) {
            return Ok(());
        }
        let message = format!("a process of the user {} is there", peer.uid);
        Err(io::Error::new(io::ErrorKind::PermissionDenied, message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_the_brokers_user_and_the_vmms_are_trusted_and_nobody_else() {
        let trust = |vmm| Trust { broker: 900, vmm };
        for uid in [0, 900, 1000] {
            assert!(trust(Some(1000)).allows(uid));
        }
        assert!(!trust(Some(1000)).allows(1001) && !trust(None).allows(1000));
        assert_eq!(trust(Some(1000)).owner(), Some(1000));
        assert_eq!(trust(Some(900)).owner(), None);
        assert_eq!(trust(None).owner(), None);
    }
}
