//! VMs as partitions: what the core knows of each beyond what the fabric does, and the two who say
//! whether it runs, its VMM and the operator.

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
use crate::vm::{VmSettings, VmThreads};
use crate::{StartError, folders};

/// VMMs that may wait at one socket: one is served, and another may be about to take its place.
const VMM_BACKLOG: u32 = 128;

/// What the core knows of a VM.
pub(super) struct VmRecord {
    pub(super) cid: GuestCid,
    /// Whether its memory is taken even if its VMM can shrink it.
    pub(super) unsealed_memory: bool,
    /// The user that its VMM runs as, if not the broker's.
    pub(super) user: Option<VmmUser>,
    /// Where its VMM connects.
    pub(super) socket: PathBuf,
    /// What its VMM says.
    vmm: PartitionState,
    /// Whether an operator wants it to stand still.
    pub(super) paused: bool,
    /// How many connections it has, those among them that others have with it.
    pub(super) connections: usize,
    /// What may be said of its guest's doing.
    pub(super) words: Words,
    /// What serves its device.
    pub(super) threads: Option<VmThreads>,
}

/// How much of a guest's doing goes to the log: a few lines at once, and no more than one a second
/// in the long run.
#[derive(Debug, Default)]
pub(super) struct Words {
    /// When all of it may be said again.
    full_at: Option<Instant>,
    silenced: u64,
}

impl Words {
    const BURST: u32 = 10;
    const EACH: Duration = Duration::from_secs(1);

    /// Whether one more line may be said: then how many were not since the last one.
    pub(super) fn may_speak(&mut self) -> Option<u64> {
        self.may_speak_at(Instant::now())
    }

    fn may_speak_at(&mut self, now: Instant) -> Option<u64> {
        let full_at = self.full_at.map_or(now, |at| at.max(now)) + Self::EACH;
        if full_at - now > Self::EACH * Self::BURST {
            self.silenced += 1;
            return None;
        }
        self.full_at = Some(full_at);
        Some(std::mem::take(&mut self.silenced))
    }
}

impl VmRecord {
    /// Off when it is off; else it runs if neither its VMM nor an operator has paused it.
    fn state(&self) -> PartitionState {
        match self.vmm {
            PartitionState::Running if self.paused => PartitionState::Paused,
            state => state,
        }
    }
}

impl Core {
    /// Adds a VM and opens the socket for its VMM. It is off until the VMM says otherwise.
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
            words: Words::default(),
            threads: None,
        };
        self.vms.insert(key, record);
        self.cids.insert(vm.cid, key);
        if let Err(error) = self.open_vm(key) {
            self.forget_vm(key);
            let _ = self.fabric.remove_partition(key);
            return Err(error.into());
        }
        self.events.publish(|| EventKind::PartitionAdded {
            partition: name.to_string(),
        });
        Ok(())
    }

    /// Serves the device of a VM that was added.
    fn open_vm(&mut self, key: PartitionKey) -> Result<(), StartError> {
        let Some(record) = self.vms.get_mut(&key) else {
            return Ok(());
        };
        let path = &record.socket;
        let owner = record.user.as_ref();
        let whose = owner.map_or_else(String::new, |user| format!(" for the user {}", user.name));
        let listener =
            stream::listen(path, 0o600, owner.map(|user| user.uid), VMM_BACKLOG).map_err(
                StartError::io(format!("listen at {}{whose}", path.display())),
            )?;
        let listener = UnixListener::from(listener);
        let settings = VmSettings {
            partition: key,
            cid: record.cid,
            unsealed_memory: record.unsealed_memory,
            max_connections: self.fabric.limits().connections_per_partition,
        };
        let threads = VmThreads::start(settings, listener, self.reports.clone());
        record.threads = Some(threads.map_err(StartError::io("start a VM's threads"))?);
        Ok(())
    }

    /// Ends the device of a VM that is about to be removed, and removes its socket.
    pub(super) fn close_vm(&mut self, key: PartitionKey) {
        self.forget_vm(key);
    }

    fn forget_vm(&mut self, key: PartitionKey) {
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

    /// Takes in what a VM's VMM says of its state.
    pub(super) fn vmm_state(&mut self, key: PartitionKey, state: PartitionState) {
        if let Some(record) = self.vms.get_mut(&key) {
            record.vmm = state;
            // The partition is there: its record is.
            let _ = self.apply_vm_state(key);
        }
    }

    /// Pauses a VM for an operator, whatever its VMM says, or lets it go on if its VMM does.
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
    fn a_guest_that_does_much_wrong_fills_no_log() {
        let (mut words, start) = (Words::default(), Instant::now());
        for _ in 0..10 {
            assert_eq!(words.may_speak_at(start), Some(0));
        }
        for _ in 0..1000 {
            assert_eq!(words.may_speak_at(start), None);
        }
        assert_eq!(
            words.may_speak_at(start + Duration::from_secs(1)),
            Some(1000)
        );
        assert_eq!(words.may_speak_at(start + Duration::from_secs(1)), None);
        let later = start + Duration::from_secs(3600);
        assert_eq!(words.may_speak_at(later), Some(1));
    }

    #[test]
    fn a_vm_runs_when_neither_its_vmm_nor_an_operator_has_it_otherwise() {
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
                words: Words::default(),
                threads: None,
            };
            assert_eq!(record.state(), want);
        }
    }
}
