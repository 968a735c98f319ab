//! Who makes a request, as this program says. A guest writes it to its log and does nothing else with
//! it: the kernel's own account of the process is in the audit of the host's broker.

use hvsock_sys::accounts::Accounts;

use crate::wire::{copy, forward, session};

/// This process and its user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Requester {
    /// The user's name; empty if it has none.
    user: String,
    uid: u32,
    pid: u32,
    /// The name of this machine.
    host: String,
    /// The connection's number in the broker.
    connection: u64,
}

impl Requester {
    /// This process, which makes the request on this connection.
    pub(super) fn of(connection: u64) -> Self {
        let uid = rustix::process::geteuid().as_raw();
        let user = Accounts::default().user(uid);
        let host = rustix::system::uname();
        Self {
            user: user.as_deref().unwrap_or_default().to_owned(),
            uid,
            pid: std::process::id(),
            host: host.nodename().to_string_lossy().into_owned(),
            connection,
        }
    }
}

impl From<Requester> for session::Requester {
    fn from(one: Requester) -> Self {
        Self {
            user: one.user,
            uid: one.uid,
            pid: one.pid,
            host: one.host,
            connection: one.connection,
        }
    }
}

impl From<Requester> for copy::Requester {
    fn from(one: Requester) -> Self {
        Self {
            user: one.user,
            uid: one.uid,
            pid: one.pid,
            host: one.host,
            connection: one.connection,
        }
    }
}

impl From<Requester> for forward::Requester {
    fn from(one: Requester) -> Self {
        Self {
            user: one.user,
            uid: one.uid,
            pid: one.pid,
            host: one.host,
            connection: one.connection,
        }
    }
}
