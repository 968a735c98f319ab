//! Hands a set of connections over within one process, for tests.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use mio::Registry;

use super::{ConnectionSet, ConnectionSetDocument, Restored};
use crate::budget::{Budget, Shares};
use crate::data_path::{Charging, UnreadSockets};
use crate::handover::HandoverError;
use crate::handover::testing::{self, kept};

/// A set as another process gets it.
pub(super) struct Exported {
    pub(super) json: Vec<u8>,
    pub(super) with: testing::Exported,
}

/// The budgets of the broker that takes over.
pub(super) struct Budgets {
    pub(super) descriptors: Budget,
    pub(super) messages: Budget,
    pub(super) unread: Arc<UnreadSockets>,
}

impl Budgets {
    pub(super) fn new() -> Self {
        let budget = || Budget::new(Shares::new(1000, 0));
        Self {
            descriptors: budget(),
            messages: budget(),
            unread: Arc::new(UnreadSockets::held()),
        }
    }

    pub(super) fn charging(&self) -> Charging<'_> {
        Charging {
            descriptors: &self.descriptors,
            messages: &self.messages,
            unread: &self.unread,
            in_flight: Vec::new(),
        }
    }
}

pub(super) fn export(set: &ConnectionSet) -> Exported {
    let (document, with) = kept(|exports| set.snapshot(exports).unwrap());
    let json = serde_json::to_vec(&document).unwrap();
    let read: ConnectionSetDocument = serde_json::from_slice(&json).unwrap();
    assert_eq!(read, document);
    Exported { json, with }
}

impl Exported {
    /// Restores the connections in an empty set.
    pub(super) fn import(
        self,
        set: &mut ConnectionSet,
        budgets: &Budgets,
    ) -> Result<Restored, HandoverError> {
        let document = serde_json::from_slice(&self.json);
        let document = document.map_err(|error| HandoverError::damaged(error.to_string()))?;
        let mut imports = self.with.imports();
        set.restore(document, &mut imports, &mut budgets.charging())
    }
}

/// Replaces a set by that of another broker. `registry` is of an epoll of its own.
pub(super) fn hand_over(set: &mut ConnectionSet, registry: Registry, busy_after: u64) -> Restored {
    let exported = export(set);
    let mut next = ConnectionSet::new(registry, 0, busy_after);
    let restored = exported.import(&mut next, &Budgets::new()).unwrap();
    *set = next;
    restored
}

/// A duplicate.
pub(super) fn duplicate(fd: impl AsFd) -> OwnedFd {
    fd.as_fd().try_clone_to_owned().unwrap()
}
