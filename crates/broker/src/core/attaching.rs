//! Established connections whose process has not connected its own socket yet.
//!
//! A program that blocks connects its socket when it knows that the connection is established. It has
//! [`TIMEOUT`] for that.

use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use hvsock_fabric::{ConnectionId, PartitionKey};
use slab::Slab;

use super::attachments::Attachment;
use super::resources::BrokerPart;
use crate::data_path::ProcessSocket;

/// How long a process may take to connect its socket.
pub(super) const TIMEOUT: Duration = Duration::from_secs(2);

/// The connections, by index and by id.
#[derive(Default)]
pub(super) struct Attaching {
    waiting: Slab<Waiting>,
    by_id: HashMap<ConnectionId, usize>,
    /// Their deadlines, the first one first. Those of connections that do not wait any more stay.
    deadlines: VecDeque<(Instant, ConnectionId)>,
}

/// A connection without its process's socket.
pub(super) struct Waiting {
    pub(super) id: ConnectionId,
    pub(super) attachment: Box<Attachment>,
    pub(super) ends: Ends,
    pub(super) suspended: bool,
}

/// What else a connection has: the process's control connection, and the other end.
pub(super) struct Ends {
    pub(super) control: ProcessSocket,
    pub(super) peer: AttachedPeer,
}

/// The other end of a connection whose process has its own socket.
#[allow(
    clippy::large_enum_variant,
    reason = "one for each attached connect, while it waits"
)]
pub(super) enum AttachedPeer {
    /// A process.
    Process { part: BrokerPart, raw_fd: bool },
    /// A guest whose link has handed out its socket.
    Guest { socket: OwnedFd, half_close: bool },
    /// A guest whose link moves the bytes.
    Link(PartitionKey),
}

impl Attaching {
    /// Adds a connection. Returns its index.
    pub(super) fn insert(&mut self, waiting: Waiting, now: Instant) -> usize {
        let id = waiting.id;
        let index = self.waiting.insert(waiting);
        self.by_id.insert(id, index);
        self.deadlines.push_back((now + TIMEOUT, id));
        index
    }

    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// The connection with this index.
    pub(super) fn get(&self, index: usize) -> Option<&Waiting> {
        self.waiting.get(index)
    }

    /// Takes a connection out, which has its socket now or is closed.
    pub(super) fn remove(&mut self, id: ConnectionId) -> Option<Waiting> {
        let index = self.by_id.remove(&id)?;
        self.waiting.try_remove(index)
    }

    /// Records whether a connection is suspended once it has its socket.
    pub(super) fn suspend(&mut self, id: ConnectionId, suspended: bool) {
        let index = self.by_id.get(&id);
        if let Some(waiting) = index.and_then(|index| self.waiting.get_mut(*index)) {
            waiting.suspended = suspended;
        }
    }

    /// When the first one has waited for long enough.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.front().map(|(deadline, _)| *deadline)
    }

    /// The next one that has waited for long enough. It still waits.
    pub(super) fn pop_expired(&mut self, now: Instant) -> Option<ConnectionId> {
        while let Some((deadline, id)) = self.deadlines.front().copied()
            && deadline <= now
        {
            self.deadlines.pop_front();
            if self.by_id.contains_key(&id) {
                return Some(id);
            }
        }
        None
    }
}
