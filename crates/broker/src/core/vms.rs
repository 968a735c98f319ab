//! VMs as partitions: the core's state of each VM, and its run state, which both the VMM and the
//! operator control.

use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use hvsock_fabric::{PartitionError, PartitionKey, PartitionSpec, PartitionState};
use hvsock_sys::stream;
use hvsock_virtio::GuestCid;

use super::labels::partition_label;
use super::{AddError, Core};
use crate::model::EventKind;
use crate::stores::{VmEntry, VmmUser};
use crate::vhost_user::{VmSettings, VmThreads};
use crate::{StartError, folders};

/// Listen backlog of a VM's socket. One VMM is served at a time, and its successor may be waiting.
const VMM_BACKLOG: u32 = 128;

/// The core's state of a VM, beside the fabric's.
pub(super) struct VmRecord {
    pub(super) cid: GuestCid,
    /// Maps its memory even if its VMM can shrink it.
    pub(super) unsealed_memory: bool,
    /// The user that the VMM runs as, if not the broker's.
    pub(super) user: Option<VmmUser>,
    /// The path of the vhost-user socket.
    pub(super) socket: PathBuf,
    /// The state that the VMM reports.
    vmm: PartitionState,
    /// An operator has paused it.
    pub(super) paused: bool,
    /// Number of its connections, in both directions.
    pub(super) connections: usize,
    /// Rate limit of log lines that its guest can cause.
    pub(super) log_limit: LogRateLimiter,
    /// The threads that serve its device.
    pub(super) threads: Option<VmThreads>,
}

/// A rate limiter (token bucket) for log lines that a guest can cause: a burst of 10, then one per
/// second.
#[derive(Debug, Default)]
pub(super) struct LogRateLimiter {
    /// When the bucket is full again.
    full_at: Option<Instant>,
    suppressed: u64,
}

impl LogRateLimiter {
    const BURST: u32 = 10;
    const INTERVAL: Duration = Duration::from_secs(1);

    /// Allows one more line, and returns the number of lines suppressed since the last one. `None`
    /// suppresses the line.
    pub(super) fn allow(&mut self) -> Option<u64> {
        self.allow_at(Instant::now())
    }

    fn allow_at(&mut self, now: Instant) -> Option<u64> {
        let full_at = self.full_at.map_or(now, |at| at.max(now)) + Self::INTERVAL;
        if full_at - now > Self::INTERVAL * Self::BURST {
            self.suppressed += 1;
            return None;
        }
        self.full_at = Some(full_at);
        Some(std::mem::take(&mut self.suppressed))
    }
}

impl VmRecord {
    /// The effective state: off if the VMM is, and paused if the VMM or an operator has paused it.
    fn state(&self) -> PartitionState {
        match self.vmm {
            PartitionState::Running if self.paused => PartitionState::Paused,
            state => state,
        }
    }
}

impl Core {
    /// Adds a VM and opens the socket for its VMM. It is off until the VMM connects.
    pub(crate) fn add_vm(&mut self, spec: PartitionSpec, vm: VmEntry) -> Result<(), AddError> {
        if let Some(key) = self.by_cid(vm.cid) {
            let name = partition_label(&self.fabric, key);
            return Err(AddError::CidTaken { cid: vm.cid, name });
        }
        let name = spec.name.clone();
        let socket = self.dirs.vm_socket(name.as_str());
        folders::check_socket(&socket)?;
        let root = self.fabric.root();
        let key = self.fabric.add_partition(root, spec)?;
        let record = VmRecord {
            cid: vm.cid,
            unsealed_memory: vm.unsealed_memory,
            user: vm.user,
            socket,
            vmm: PartitionState::Off,
            paused: false,
            connections: 0,
            log_limit: LogRateLimiter::default(),
            threads: None,
        };
        self.vms.insert(key, record);
        self.cids.insert(vm.cid, key);
        if let Err(error) = self.open_vm(key) {
            self.remove_vm_record(key);
            let _ = self.fabric.remove_partition(key);
            return Err(error.into());
        }
        self.events.publish(|| EventKind::PartitionAdded {
            partition: name.to_string(),
        });
        Ok(())
    }

    /// Opens the socket of a new VM and starts its threads.
    fn open_vm(&mut self, key: PartitionKey) -> Result<(), StartError> {
        let Some(record) = self.vms.get_mut(&key) else {
            return Ok(());
        };
        let path = &record.socket;
        let owner = record.user.as_ref();
        let for_user =
            owner.map_or_else(String::new, |user| format!(" for the user {}", user.name));
        let listener =
            stream::listen(path, 0o600, owner.map(|user| user.uid), VMM_BACKLOG).map_err(
                StartError::io(format!("listen at {}{for_user}", path.display())),
            )?;
        let listener = UnixListener::from(listener);
        let settings = VmSettings {
            cid: record.cid,
            unsealed_memory: record.unsealed_memory,
            max_connections: self.fabric.limits().connections_per_partition,
        };
        let reports = self.reports.of_vm(key);
        let threads = VmThreads::start(settings, listener, reports);
        record.threads = Some(threads.map_err(StartError::io("start a VM's threads"))?);
        Ok(())
    }

    /// Stops the device of a VM that is being removed, and removes its socket.
    pub(super) fn close_vm(&mut self, key: PartitionKey) {
        self.remove_vm_record(key);
    }

    fn remove_vm_record(&mut self, key: PartitionKey) {
        if let Some(record) = self.vms.remove(&key) {
            self.cids.remove(&record.cid);
            let _ = std::fs::remove_file(&record.socket);
        }
    }

    /// The VM with this context id.
    pub(super) fn by_cid(&self, cid: GuestCid) -> Option<PartitionKey> {
        self.cids.get(&cid).copied()
    }

    /// The lowest context id that no VM has.
    pub(crate) fn free_cid(&self) -> Option<GuestCid> {
        let mut free = GuestCid::MIN;
        for taken in self.cids.keys() {
            if *taken != free {
                break;
            }
            free = GuestCid::try_from(u64::from(free.get()) + 1).ok()?;
        }
        Some(free)
    }

    /// Records the state that a VMM reports.
    pub(super) fn vmm_state(&mut self, key: PartitionKey, state: PartitionState) {
        if let Some(record) = self.vms.get_mut(&key) {
            record.vmm = state;
            // The call cannot fail: a VM with a record has a partition.
            let _ = self.apply_vm_state(key);
        }
    }

    /// Pauses or resumes a VM for an operator. A resumed VM stays paused while its VMM has paused it.
    pub(super) fn pause_vm(
        &mut self,
        key: PartitionKey,
        paused: bool,
    ) -> Result<(), PartitionError> {
        let record = self.vms.get_mut(&key).ok_or(PartitionError::Gone)?;
        record.paused = paused;
        self.apply_vm_state(key)
    }

    fn apply_vm_state(&mut self, key: PartitionKey) -> Result<(), PartitionError> {
        let record = self.vms.get(&key).ok_or(PartitionError::Gone)?;
        let (old, new) = (self.fabric.partition(key), record.state());
        if old.is_some_and(|partition| partition.state() == new) {
            return Ok(());
        }
        self.change_state(key, new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_lines_that_a_guest_causes_are_rate_limited() {
        let (mut limit, start) = (LogRateLimiter::default(), Instant::now());
        for _ in 0..10 {
            assert_eq!(limit.allow_at(start), Some(0));
        }
        for _ in 0..1000 {
            assert_eq!(limit.allow_at(start), None);
        }
        assert_eq!(limit.allow_at(start + Duration::from_secs(1)), Some(1000));
        assert_eq!(limit.allow_at(start + Duration::from_secs(1)), None);
        let later = start + Duration::from_secs(3600);
        assert_eq!(limit.allow_at(later), Some(1));
    }

    #[test]
    fn a_vm_runs_unless_its_vmm_or_an_operator_has_paused_it() {
        use PartitionState::{Off, Paused, Running};

        for (vmm, paused, want) in [
            (Off, false, Off),
            (Off, true, Off),
            (Paused, false, Paused),
            (Paused, true, Paused),
            (Running, false, Running),
            (Running, true, Paused),
        ] {
            let record = VmRecord {
                cid: GuestCid::MIN,
                unsealed_memory: false,
                user: None,
                socket: PathBuf::new(),
                vmm,
                paused,
                connections: 0,
                log_limit: LogRateLimiter::default(),
                threads: None,
            };
            assert_eq!(record.state(), want);
        }
    }
}
