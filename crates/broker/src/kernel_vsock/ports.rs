//! Which vsock ports of the host the broker owns: what the VMs want, what it has, and what is in the way.
//!
//! A registered service that nobody listens to has a socket that is bound and does not listen: the kernel
//! refuses connects, and no other process can take the port. A service that is listened to has one that
//! listens. A socket cannot stop to listen, so it is closed and bound again at once. A port that cannot be
//! had is tried again, after a backoff.
//!
//! The table makes no system call and reads no clock: [`PortIo`] and the time are arguments.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

#[cfg(test)]
mod tests;

/// The most ports that are owned, if the process may have many descriptors: each port costs one. Ports that
/// are listened to come first.
pub(super) const MAX_PORTS: usize = 512;

/// The wait after the first failure, and the longest one.
const FIRST_RETRY: Duration = Duration::from_millis(500);
pub(super) const LAST_RETRY: Duration = Duration::from_secs(15);

/// What the VMs want of a port, by how much it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Wanted {
    /// Its service is registered, and nobody listens.
    Bound,
    /// A connect would be accepted.
    Listening,
}

/// Why a port cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PortFault {
    /// Another socket has it.
    InUse,
    /// Ports below 1024 need `CAP_NET_BIND_SERVICE`.
    Privileged,
    /// The kernel has no `AF_VSOCK`.
    NoVsock,
    /// The broker owns as many as it may.
    TooMany,
    /// Another error of the system, by its number.
    System(i32),
}

/// The system calls of the table.
pub(super) trait PortIo {
    /// A bound socket. Dropping it frees the port.
    type Socket;

    /// Makes a socket and binds it.
    fn bind(&mut self, port: u32) -> Result<Self::Socket, PortFault>;

    /// Lets a socket listen.
    fn listen(&mut self, port: u32, socket: &Self::Socket) -> Result<(), PortFault>;
}

/// The ports of one network namespace.
#[derive(Debug)]
pub(super) struct Ports<S> {
    wanted: BTreeMap<u32, Wanted>,
    held: BTreeMap<u32, Held<S>>,
    blocked: BTreeMap<u32, Blocked>,
    /// The ports whose fault has changed since the last [`take_changed`](Self::take_changed).
    changed: BTreeSet<u32>,
    most: usize,
}

#[derive(Debug)]
struct Held<S> {
    socket: S,
    listens: bool,
}

#[derive(Clone, Copy, Debug)]
struct Blocked {
    fault: PortFault,
    wait: Duration,
    retry_at: Instant,
}

impl<S> Ports<S> {
    /// A table of at most `most` ports.
    pub(super) fn new(most: usize) -> Self {
        Self {
            wanted: BTreeMap::new(),
            held: BTreeMap::new(),
            blocked: BTreeMap::new(),
            changed: BTreeSet::new(),
            most,
        }
    }

    /// The ports that are held, with their sockets, and whether they listen.
    pub(super) fn held(&self) -> impl Iterator<Item = (u32, &S, bool)> {
        let held = self.held.iter();
        held.map(|(port, held)| (*port, &held.socket, held.listens))
    }

    /// Adds a port that another process has bound. Returns `false` if it is held already.
    pub(super) fn resume(&mut self, port: u32, socket: S, listens: bool) -> bool {
        let is_new = !self.held.contains_key(&port);
        if is_new {
            self.held.insert(port, Held { socket, listens });
        }
        is_new
    }

    /// Has a port be among those whose fault may have changed: what was said of it may be true no more.
    pub(super) fn judge_again(&mut self, port: u32) {
        self.changed.insert(port);
    }

    /// Sets what is wanted of all ports, and acts on it at once.
    pub(super) fn set_wanted(
        &mut self,
        io: &mut impl PortIo<Socket = S>,
        wanted: &BTreeMap<u32, Wanted>,
        now: Instant,
    ) {
        let allowed = within_limit(wanted, self.most);
        let before = std::mem::replace(&mut self.wanted, allowed);
        // Ports are freed before others are taken.
        self.held.retain(|port, _| self.wanted.contains_key(port));
        for port in before.keys().filter(|port| !self.wanted.contains_key(port)) {
            self.held.remove(port);
            if self.blocked.remove(port).is_some() {
                self.changed.insert(*port);
            }
        }
        self.blocked.retain(|port, blocked| {
            let is_stale = blocked.fault == PortFault::TooMany && !wanted.contains_key(port);
            if is_stale {
                self.changed.insert(*port);
            }
            !is_stale
        });
        let too_many = wanted
            .iter()
            .filter(|(port, _)| !self.wanted.contains_key(port));
        let too_many: Vec<u32> = too_many.map(|(port, _)| *port).collect();
        for port in too_many {
            self.block(port, PortFault::TooMany, now);
        }
        let due: Vec<u32> = self.wanted.keys().copied().collect();
        for port in due {
            let is_new = before.get(&port) != self.wanted.get(&port);
            self.reconcile(io, port, now, is_new);
        }
    }

    /// Tries again what is due. Returns the ports that were tried.
    pub(super) fn retry(&mut self, io: &mut impl PortIo<Socket = S>, now: Instant) -> Vec<u32> {
        let due = self.blocked.iter().filter(|(_, one)| one.retry_at <= now);
        let due: Vec<u32> = due.map(|(port, _)| *port).collect();
        for port in &due {
            self.reconcile(io, *port, now, true);
        }
        due
    }

    /// When [`retry`](Self::retry) has something to do.
    pub(super) fn next_retry(&self) -> Option<Instant> {
        let waiting = self
            .blocked
            .iter()
            .filter(|(port, _)| self.wanted.contains_key(port));
        waiting.map(|(_, one)| one.retry_at).min()
    }

    /// The socket of a port that listens.
    pub(super) fn listener(&self, port: u32) -> Option<&S> {
        self.held
            .get(&port)
            .filter(|held| held.listens)
            .map(|held| &held.socket)
    }

    /// Why a wanted port cannot be had.
    pub(super) fn fault(&self, port: u32) -> Option<PortFault> {
        self.blocked.get(&port).map(|blocked| blocked.fault)
    }

    /// The ports whose fault is new, another, or gone since the last call.
    pub(super) fn take_changed(&mut self) -> BTreeSet<u32> {
        std::mem::take(&mut self.changed)
    }

    /// Makes one port what is wanted of it. A port that is blocked is tried only if `again`.
    fn reconcile(
        &mut self,
        io: &mut impl PortIo<Socket = S>,
        port: u32,
        now: Instant,
        again: bool,
    ) {
        let Some(wanted) = self.wanted.get(&port).copied() else {
            return;
        };
        if self.blocked.contains_key(&port) && !again {
            return;
        }
        let is_past = |held: &Held<S>| held.listens && wanted == Wanted::Bound;
        if self.held.get(&port).is_some_and(is_past) {
            self.held.remove(&port);
        }
        match self.establish(io, port, wanted) {
            Ok(()) => {
                if self.blocked.remove(&port).is_some() {
                    self.changed.insert(port);
                }
            }
            Err(fault) => self.block(port, fault, now),
        }
    }

    fn establish(
        &mut self,
        io: &mut impl PortIo<Socket = S>,
        port: u32,
        wanted: Wanted,
    ) -> Result<(), PortFault> {
        let held = match self.held.entry(port) {
            Entry::Occupied(held) => held.into_mut(),
            Entry::Vacant(free) => free.insert(Held {
                socket: io.bind(port)?,
                listens: false,
            }),
        };
        if wanted == Wanted::Listening && !held.listens {
            io.listen(port, &held.socket)?;
            held.listens = true;
        }
        Ok(())
    }

    fn block(&mut self, port: u32, fault: PortFault, now: Instant) {
        let before = self.blocked.get(&port);
        if before.map(|before| before.fault) != Some(fault) {
            self.changed.insert(port);
        }
        let wait = match before {
            Some(before) if before.fault == fault => (before.wait * 2).min(LAST_RETRY),
            _ => FIRST_RETRY,
        };
        let retry_at = now + wait;
        self.blocked.insert(
            port,
            Blocked {
                fault,
                wait,
                retry_at,
            },
        );
    }
}

/// The wanted ports that the broker may own.
fn within_limit(wanted: &BTreeMap<u32, Wanted>, most: usize) -> BTreeMap<u32, Wanted> {
    let of = |kind: Wanted| wanted.iter().filter(move |(_, one)| **one == kind);
    let first = of(Wanted::Listening).chain(of(Wanted::Bound)).take(most);
    first.map(|(port, wanted)| (*port, *wanted)).collect()
}
