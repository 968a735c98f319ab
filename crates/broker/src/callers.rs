//! Who calls, from what the kernel says about a socket.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hvsock_registry::Principal;
use hvsock_sys::accounts::Accounts;
use hvsock_sys::peer;

/// How long a name once read is believed.
const FRESH: Duration = Duration::from_secs(5);
/// How many names are kept; one more, and all are read anew.
const MAX_NAMES: usize = 4096;
/// How many groups of a process count, the lowest first. Any user who has subordinate group ids
/// can be in 65,536; each costs a look-up for every request, and memory for every listener. Rules
/// only ever allow, so what is left out opens nothing.
const MOST_GROUPS: usize = 256;

/// A process as the kernel named it when it connected.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Caller {
    /// 0 where it has none in the broker's PID namespace.
    pub(crate) pid: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

impl Caller {
    /// The process at the other end of `socket`.
    pub(crate) fn of(socket: impl AsFd) -> std::io::Result<Self> {
        let peer = peer::credentials(socket)?;
        Ok(Self {
            pid: peer.pid.unwrap_or(0),
            uid: peer.uid,
            gid: peer.gid,
        })
    }
}

/// Names of users and groups, looked up at most every few seconds.
pub(crate) struct Callers {
    accounts: Accounts,
    users: Names,
    groups: Names,
}

type Names = HashMap<u32, (Instant, Option<Arc<str>>)>;

impl Callers {
    pub(crate) fn new() -> Self {
        Self {
            accounts: Accounts::default(),
            users: Names::new(),
            groups: Names::new(),
        }
    }

    /// The user's name, where the machine has one.
    pub(crate) fn user(&mut self, uid: u32) -> Option<Arc<str>> {
        let accounts = &mut self.accounts;
        fresh(&mut self.users, uid, || accounts.user(uid))
    }

    /// All that access rules may ask about the process at the other end of `socket`.
    pub(crate) fn principal(&mut self, caller: Caller, socket: impl AsFd) -> Principal {
        let mut ids = peer::groups(socket).unwrap_or_default();
        ids.retain(|gid| *gid != caller.gid);
        ids.truncate(MOST_GROUPS - 1);
        ids.push(caller.gid);
        let accounts = &mut self.accounts;
        let groups = ids.into_iter().map(|gid| {
            let name = fresh(&mut self.groups, gid, || accounts.group(gid));
            (gid, name.as_deref().map(str::to_owned))
        });
        let groups = groups.collect();
        let user = self.user(caller.uid).as_deref().map(str::to_owned);
        Principal {
            uid: caller.uid,
            user,
            groups,
        }
    }
}

fn fresh(names: &mut Names, id: u32, read: impl FnOnce() -> Option<Arc<str>>) -> Option<Arc<str>> {
    let now = Instant::now();
    if let Some((since, name)) = names.get(&id)
        && now.duration_since(*since) < FRESH
    {
        return name.clone();
    }
    if names.len() >= MAX_NAMES {
        names.clear();
    }
    let name = read();
    names.insert(id, (now, name.clone()));
    name
}
