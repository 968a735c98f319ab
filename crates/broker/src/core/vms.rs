//! VMs: the state that only they have, their context ids (CIDs), and their run state, which both the
//! VMM and the operator control.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::time::Instant;

use hvsock_fabric::{PartitionKey, PartitionState};
use hvsock_virtio::GuestCid;

use super::log_limit::LogRateLimiter;
use crate::stores::VmEntry;

/// The first local port of connections to guests. The range is IANA's dynamic ports (RFC 6335), above
/// the ports of services.
const FIRST_PORT: u32 = 49_152;
const LAST_PORT: u32 = 65_535;

/// The VMs by partition. `T` is the handle of the threads that serve a VM's device.
#[derive(Debug)]
pub(super) struct Vms<T> {
    records: HashMap<PartitionKey, VmRecord<T>>,
    by_cid: BTreeMap<GuestCid, PartitionKey>,
    /// The next local port for a connection to a guest.
    next_port: u32,
}

/// A VM's state beside the fabric's.
#[derive(Debug)]
pub(super) struct VmRecord<T> {
    settings: VmEntry,
    socket: PathBuf,
    /// The state that the VMM reports.
    vmm: PartitionState,
    paused: bool,
    log_limit: LogRateLimiter,
    threads: Option<T>,
}

impl<T> VmRecord<T> {
    /// Its settings.
    pub(super) fn settings(&self) -> &VmEntry {
        &self.settings
    }

    /// The path of its vhost-user socket.
    pub(super) fn socket(&self) -> &PathBuf {
        &self.socket
    }

    /// Whether an operator has paused it.
    pub(super) fn is_paused_by_operator(&self) -> bool {
        self.paused
    }

    /// The effective state: off if the VMM is, and paused if the VMM or an operator has paused it.
    fn state(&self) -> PartitionState {
        match self.vmm {
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
            next_port: FIRST_PORT,
        }
    }
}

impl<T> Vms<T> {
    /// Adds a VM, which is off and has no threads. Its CID must be free.
    pub(super) fn insert(&mut self, key: PartitionKey, settings: VmEntry, socket: PathBuf) {
        self.by_cid.insert(settings.cid, key);
        let record = VmRecord {
            settings,
            socket,
            vmm: PartitionState::Off,
            paused: false,
            log_limit: LogRateLimiter::default(),
            threads: None,
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

    /// The lowest CID that no VM has.
    pub(super) fn free_cid(&self) -> Option<GuestCid> {
        let mut free = GuestCid::MIN;
        for taken in self.by_cid.keys() {
            if *taken != free {
                break;
            }
            free = GuestCid::try_from(u64::from(free.get()) + 1).ok()?;
        }
        Some(free)
    }

    /// Sets the handle of a VM's threads.
    pub(super) fn set_threads(&mut self, key: PartitionKey, threads: T) {
        if let Some(record) = self.records.get_mut(&key) {
            record.threads = Some(threads);
        }
    }

    /// The handle of a VM's threads.
    pub(super) fn threads(&self, key: PartitionKey) -> Option<&T> {
        self.records.get(&key)?.threads.as_ref()
    }

    /// Records the state that a VMM reports. Returns the VM's effective state.
    pub(super) fn set_vmm_state(
        &mut self,
        key: PartitionKey,
        state: PartitionState,
    ) -> Option<PartitionState> {
        let record = self.records.get_mut(&key)?;
        record.vmm = state;
        Some(record.state())
    }

    /// Records whether an operator has paused a VM, which stays paused while its VMM has paused it.
    /// Returns its effective state.
    pub(super) fn set_paused(&mut self, key: PartitionKey, paused: bool) -> Option<PartitionState> {
        let record = self.records.get_mut(&key)?;
        record.paused = paused;
        Some(record.state())
    }

    /// Whether a VM's guest may cause one more log line, and the number of lines suppressed since its
    /// last one.
    pub(super) fn allow_log(&mut self, key: PartitionKey, now: Instant) -> Option<u64> {
        self.records.get_mut(&key)?.log_limit.allow(now)
    }

    /// The next local port for a connection to a guest. Ports wrap around.
    pub(super) fn next_port(&mut self) -> u32 {
        let port = self.next_port;
        self.next_port = if port == LAST_PORT {
            FIRST_PORT
        } else {
            port + 1
        };
        port
    }
}
