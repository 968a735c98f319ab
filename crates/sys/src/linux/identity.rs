//! Who this process is for the peer of a socket: its number and the ids that the kernel reports.

use rustix::process;

/// The process, and the ids with which the calling thread connects (`SO_PEERCRED`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// Process id. It differs in a child that was forked.
    pub pid: u32,
    /// Effective user id of the thread.
    pub uid: u32,
    /// Effective group id of the thread.
    pub gid: u32,
}

impl Identity {
    /// The identity now: three system calls that read a number each.
    pub fn now() -> Self {
        Self {
            pid: std::process::id(),
            uid: process::geteuid().as_raw(),
            gid: process::getegid().as_raw(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_identity_is_what_a_peer_sees() {
        let (a, _b) = crate::stream::pair().unwrap();
        let seen = crate::peer::credentials(&a).unwrap();
        let now = Identity::now();
        assert_eq!(
            (seen.pid, seen.uid, seen.gid),
            (Some(now.pid), now.uid, now.gid)
        );
    }
}
