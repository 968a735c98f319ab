//! Identifies the process at the other end of a socket by its kernel credentials.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hvsock_registry::Principal;
use hvsock_sys::accounts::Accounts;
use hvsock_sys::container_user::{self, ContainerUser};
use hvsock_sys::peer::{self, Credentials};

/// How long a cached name is valid.
const CACHE_TTL: Duration = Duration::from_secs(5);
/// Most cached names of each kind; one more clears the cache.
const MAX_NAMES: usize = 4096;
/// Most groups of a process that access rules see, the lowest ids first. A user with subordinate
/// group ids can be in 65,536 groups. Each costs a lookup per request and memory per listener.
/// Truncation is safe because rules only ever allow.
const MAX_GROUPS: usize = 256;

/// A process's credentials at the time when it connected (`SO_PEERCRED`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Caller {
    /// 0 if the process is not visible in the broker's PID namespace.
    pub(crate) pid: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

impl Caller {
    /// A process whose credentials mean nothing to the process that asks for them.
    pub(crate) const UNKNOWN: Self = Self {
        pid: 0,
        uid: u32::MAX,
        gid: u32::MAX,
    };

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

/// A cache of user and group names.
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

    /// The user's name, or `None` if the user database has none.
    pub(crate) fn user(&mut self, uid: u32) -> Option<Arc<str>> {
        let accounts = &mut self.accounts;
        cached(&mut self.users, uid, || accounts.user(uid))
    }

    /// The user and groups of the process at the other end of `socket`, for access rules.
    pub(crate) fn principal(&mut self, caller: Caller, socket: impl AsFd) -> Principal {
        let mut ids = peer::groups(socket).unwrap_or_default();
        ids.retain(|gid| *gid != caller.gid);
        ids.truncate(MAX_GROUPS - 1);
        ids.push(caller.gid);
        let accounts = &mut self.accounts;
        let groups = ids.into_iter().map(|gid| {
            let name = cached(&mut self.groups, gid, || accounts.group(gid));
            (gid, name.as_deref().map(str::to_owned))
        });
        let groups = groups.collect();
        let user = self.user(caller.uid).as_deref().map(str::to_owned);
        Principal {
            uid: caller.uid,
            user,
            groups,
            partition_uid: Some(caller.uid),
        }
    }
}

/// The user id inside its container of the process at the other end of `socket`, which came through
/// that container's endpoint. `broker` is the user that this process runs as.
pub(crate) fn uid_in_container(caller: Caller, socket: impl AsFd, broker: u32) -> Option<u32> {
    // Root of the host is root in any container.
    if caller.uid == 0 {
        return Some(0);
    }
    let peer = Credentials {
        pid: Some(caller.pid).filter(|pid| *pid != 0),
        uid: caller.uid,
        gid: caller.gid,
    };
    match container_user::of_peer(socket, &peer) {
        // A user's own broker has containers of that user. Where they have no user namespace of their
        // own, nobody in them has more rights than the broker.
        ContainerUser::Shared if caller.uid == broker => Some(0),
        ContainerUser::Shared => Some(caller.uid),
        ContainerUser::Mapped(uid) => Some(uid),
        ContainerUser::Unknown => None,
    }
}

fn cached(names: &mut Names, id: u32, read: impl FnOnce() -> Option<Arc<str>>) -> Option<Arc<str>> {
    let now = Instant::now();
    if let Some((since, name)) = names.get(&id)
        && now.duration_since(*since) < CACHE_TTL
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
