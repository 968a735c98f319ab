//! Hands a set of connections over within one process, for tests.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};

use mio::Registry;

use super::{ConnectionSet, ConnectionSetDocument, Restored};
use crate::budget::{Budget, Shares};
use crate::data_path::{Charging, UnreadSockets};
use crate::handover::bundle::Carrier;
use crate::handover::{Exports, HandoverError, Imports};

/// Keeps duplicates of the descriptors.
#[derive(Clone, Default)]
pub(super) struct Descriptors(Arc<Mutex<Vec<OwnedFd>>>);

impl Carrier for Descriptors {
    fn carry(&mut self, first: u32, batch: &[BorrowedFd<'_>]) -> Result<(), HandoverError> {
        let mut all = self.0.lock().unwrap();
        assert_eq!(all.len(), first as usize);
        all.extend(batch.iter().map(|fd| fd.try_clone_to_owned().unwrap()));
        Ok(())
    }
}

/// A set as another process gets it.
pub(super) struct Exported {
    pub(super) json: Vec<u8>,
    pub(super) descriptors: Vec<OwnedFd>,
    pub(super) blobs: Vec<Vec<u8>>,
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
    let descriptors = Descriptors::default();
    let mut exports = Exports::new(Box::new(descriptors.clone()));
    let document = set.snapshot(&mut exports).unwrap();
    let json = serde_json::to_vec(&document).unwrap();
    let read: ConnectionSetDocument = serde_json::from_slice(&json).unwrap();
    assert_eq!(read, document);
    let (_, blobs) = exports.finish().unwrap();
    let descriptors = std::mem::take(&mut *descriptors.0.lock().unwrap());
    Exported {
        json,
        descriptors,
        blobs,
    }
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
        let mut imports = Imports::new(self.descriptors, self.blobs);
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
