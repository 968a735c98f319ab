//! VMs: the state that only they have, their context ids (CIDs), and their run state, which both the
//! VMM and the operator control.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use hvsock_fabric::{PartitionKey, PartitionState};
use hvsock_virtio::GuestCid;

use crate::stores::VmEntry;

/// The VMs by partition. `T` is a VM's link to its guest.
#[derive(Debug)]
pub(super) struct Vms<T> {
    records: HashMap<PartitionKey, VmRecord<T>>,
    by_cid: BTreeMap<GuestCid, PartitionKey>,
}

/// A VM's state beside the fabric's.
#[derive(Debug)]
pub(super) struct VmRecord<T> {
    settings: VmEntry,
    /// The state that the link reports.
    guest: PartitionState,
    paused: bool,
    link: Option<T>,
}

impl<T> VmRecord<T> {
    /// Its settings.
    pub(super) fn settings(&self) -> &VmEntry {
        &self.settings
    }

    /// Its link.
    pub(super) fn link(&self) -> Option<&T> {
        self.link.as_ref()
    }

    /// Whether an operator has paused it.
    pub(super) fn is_paused_by_operator(&self) -> bool {
        self.paused
    }

    /// The effective state: off if the VMM is, and paused if the VMM or an operator has paused it.
    fn state(&self) -> PartitionState {
        match self.guest {
            PartitionState::Running if self.paused => PartitionState::Paused,
            state => state,
        }
    }
}

impl<T> Default for Vms<T> {
    fn default() -> Self {
        Self {
            records: HashMap::new(),
            by_cid: BTreeMap::new(),
        }
    }
}

impl<T> Vms<T> {
    /// Adds a VM, which is off and has no link. Its CID must be free.
    pub(super) fn insert(&mut self, key: PartitionKey, settings: VmEntry) {
        self.by_cid.insert(settings.cid, key);
        let record = VmRecord {
            settings,
            guest: PartitionState::Off,
            paused: false,
            link: None,
        };
        self.records.insert(key, record);
    }

    /// Removes a VM and frees its CID.
    pub(super) fn remove(&mut self, key: PartitionKey) -> Option<VmRecord<T>> {
        let record = self.records.remove(&key)?;
        self.by_cid.remove(&record.settings.cid);
        Some(record)
    }

    /// A VM.
    pub(super) fn get(&self, key: PartitionKey) -> Option<&VmRecord<T>> {
        self.records.get(&key)
    }

    /// Whether the partition is a VM.
    pub(super) fn contains(&self, key: PartitionKey) -> bool {
        self.records.contains_key(&key)
    }

    /// The VM with this CID.
    pub(super) fn by_cid(&self, cid: GuestCid) -> Option<PartitionKey> {
        self.by_cid.get(&cid).copied()
    }

    /// The lowest CID that no VM has and that is not reserved.
    pub(super) fn free_cid(&self, reserved: &BTreeSet<GuestCid>) -> Option<GuestCid> {
        let mut free = GuestCid::MIN;
        while self.by_cid.contains_key(&free) || reserved.contains(&free) {
            free = GuestCid::try_from(u64::from(free.get()) + 1).ok()?;
        }
        Some(free)
    }

    /// Sets a VM's link.
    pub(super) fn set_link(&mut self, key: PartitionKey, link: T) {
        if let Some(record) = self.records.get_mut(&key) {
            record.link = Some(link);
        }
    }

    /// A VM's link.
    pub(super) fn link(&self, key: PartitionKey) -> Option<&T> {
        self.records.get(&key)?.link.as_ref()
    }

    /// Records the state that a VM's link reports. Returns the VM's effective state.
    pub(super) fn set_link_state(
        &mut self,
        key: PartitionKey,
        state: PartitionState,
    ) -> Option<PartitionState> {
        let record = self.records.get_mut(&key)?;
        record.guest = state;
        Some(record.state())
    }

    /// Records whether an operator has paused a VM, which stays paused while its VMM has paused it.
    /// Returns its effective state.
    pub(super) fn set_paused(&mut self, key: PartitionKey, paused: bool) -> Option<PartitionState> {
        let record = self.records.get_mut(&key)?;
        record.paused = paused;
        Some(record.state())
    }
}
