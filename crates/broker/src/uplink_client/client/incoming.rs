//! The connections that the host has requested and that have no stream yet.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use hvsock_address::{ServiceId, VmId};
use hvsock_endpoint::uplink::{MAX_PENDING, Request};

/// A requested connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Downward {
    pub(super) child: Option<VmId>,
    pub(super) service: ServiceId,
    pub(super) deadline: Instant,
    /// The host has the port, or will have it: the request was accepted.
    pub(super) accepted: bool,
}

/// Why a request is not in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotAdded {
    /// There are as many as there may be.
    Full,
    /// Another request has the number.
    Twice,
}

/// The requests by their number.
#[derive(Debug, Default)]
pub(super) struct Downwards {
    table: BTreeMap<Request, Downward>,
    deadlines: BTreeSet<(Instant, Request)>,
}

impl Downwards {
    /// Adds one.
    pub(super) fn add(&mut self, request: Request, downward: Downward) -> Result<(), NotAdded> {
        if self.table.contains_key(&request) {
            return Err(NotAdded::Twice);
        }
        if self.table.len() >= MAX_PENDING {
            return Err(NotAdded::Full);
        }
        self.deadlines.insert((downward.deadline, request));
        self.table.insert(request, downward);
        Ok(())
    }

    /// Records that one was accepted. Returns `false` if it is gone.
    pub(super) fn accept(&mut self, request: Request) -> bool {
        let found = self.table.get_mut(&request);
        found.map(|downward| downward.accepted = true).is_some()
    }

    /// Whether one is there.
    pub(super) fn contains(&self, request: Request) -> bool {
        self.table.contains_key(&request)
    }

    /// Removes one.
    pub(super) fn remove(&mut self, request: Request) -> Option<Downward> {
        let downward = self.table.remove(&request)?;
        self.deadlines.remove(&(downward.deadline, request));
        Some(downward)
    }

    /// Removes all.
    pub(super) fn take_all(&mut self) -> Vec<(Request, Downward)> {
        self.deadlines.clear();
        std::mem::take(&mut self.table).into_iter().collect()
    }

    /// Those to a container.
    pub(super) fn of_child(&self, child: VmId) -> Vec<Request> {
        let of_child = self.table.iter();
        let of_child = of_child.filter(|(_, downward)| downward.child == Some(child));
        of_child.map(|(request, _)| *request).collect()
    }

    /// The next deadline.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    /// Removes one whose deadline has passed.
    pub(super) fn take_expired(&mut self, now: Instant) -> Option<(Request, Downward)> {
        let (at, request) = self.deadlines.first().copied()?;
        let expired = (at <= now).then(|| self.remove(request))?;
        Some((request, expired?))
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.table.len()
    }
}
