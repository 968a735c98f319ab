//! VMs: the state that only they have, their context ids (CIDs), and their run state, which both the
//! VMM and the operator control.

pub(super) mod snapshot;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use hvsock_address::ServiceId;
use hvsock_fabric::{PartitionKey, PartitionState};
use hvsock_virtio::GuestCid;

use crate::guest_link::OfferedService;
use crate::stores::{CidKey, CidSpace, VmEntry, hybrid_path};

/// The VMs by partition. `T` is a VM's link to its guest.
#[derive(Debug)]
pub(super) struct Vms<T> {
    records: HashMap<PartitionKey, VmRecord<T>>,
    by_cid: BTreeMap<CidKey, PartitionKey>,
}

/// A VM's state beside the fabric's.
#[derive(Debug)]
pub(super) struct VmRecord<T> {
    settings: VmEntry,
    /// The state that the link reports.
    guest: PartitionState,
    paused: bool,
    link: Option<T>,
    /// The host's services that the link knows of.
    offered: BTreeMap<ServiceId, OfferedService>,
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

    /// The effective state: that of the link, and paused if the VMM or an operator has paused it.
    fn state(&self) -> PartitionState {
        match self.guest.is_up() && self.paused {
            true => PartitionState::Paused,
            false => self.guest,
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
    /// Adds a VM, which is defined and has no link. Its CID must be free.
    pub(super) fn insert(&mut self, key: PartitionKey, settings: VmEntry) {
        if let Some(cid) = settings.cid_key() {
            self.by_cid.insert(cid, key);
        }
        let record = VmRecord {
            settings,
            guest: PartitionState::Defined,
            paused: false,
            link: None,
            offered: BTreeMap::new(),
        };
        self.records.insert(key, record);
    }

    /// Removes a VM and frees its CID.
    pub(super) fn remove(&mut self, key: PartitionKey) -> Option<VmRecord<T>> {
        let record = self.records.remove(&key)?;
        if let Some(cid) = record.settings.cid_key() {
            self.by_cid.remove(&cid);
        }
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
    pub(super) fn by_cid(&self, cid: &CidKey) -> Option<PartitionKey> {
        self.by_cid.get(cid).copied()
    }

    /// The VM that is reached by the VMM's socket at this path, which [`hybrid_path`] has normalized.
    pub(super) fn by_hybrid_path(&self, path: &Path) -> Option<PartitionKey> {
        let mut all = self.records.iter();
        let found =
            all.find(|(_, vm)| hybrid_path(&vm.settings.spec.link).as_deref() == Some(path));
        found.map(|(key, _)| *key)
    }

    /// The VM to which the broker has given this CID.
    pub(super) fn sibling(&self, cid: GuestCid) -> Option<PartitionKey> {
        let space = CidSpace::Broker;
        self.by_cid(&CidKey { space, cid })
    }

    /// The lowest CID that the broker has given no VM and that is not reserved.
    pub(super) fn free_cid(&self, reserved: &BTreeSet<GuestCid>) -> Option<GuestCid> {
        let mut free = GuestCid::MIN;
        while self.sibling(free).is_some() || reserved.contains(&free) {
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

    /// The VMs.
    pub(super) fn keys(&self) -> impl Iterator<Item = PartitionKey> {
        self.records.keys().copied()
    }

    /// Records what the host offers a VM of one service now. Returns whether that is new.
    pub(super) fn set_offered(
        &mut self,
        key: PartitionKey,
        service: ServiceId,
        offered: Option<OfferedService>,
    ) -> bool {
        let Some(record) = self.records.get_mut(&key) else {
            return false;
        };
        let before = match offered {
            Some(offered) => record.offered.insert(service, offered),
            None => record.offered.remove(&service),
        };
        before != offered
    }

    /// The services that a VM's link knows of.
    pub(super) fn offered(&self, key: PartitionKey) -> Vec<OfferedService> {
        let record = self.records.get(&key);
        let offered = record.map(|record| record.offered.values().copied());
        offered.into_iter().flatten().collect()
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
