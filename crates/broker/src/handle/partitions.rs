//! Partitions: listing, adding, changing and removing containers and VMs.
//!
//! The lock of the partition files is held while a file and the core are changed, so that the core
//! applies the changes of all writers in the order of the files. A new partition is added to the core
//! first, which has the last word on names, ids and limits, and then gets its file; if that fails, it is
//! removed again. A file is removed or changed before the core follows, since closing connections
//! cannot be undone.

use hvsock_address::{PartitionName, PartitionRef, VmId};
use hvsock_fabric::{ContainerChange, Fix, PartitionError};
use hvsock_registry::atomic_file::WriteError;
use hvsock_registry::entry_folder::{Changed, EntryError};
use hvsock_registry::store::WatchFault;

use super::{ControlError, Handle};
use crate::core::{Core, Watched};
use crate::model::{NewContainer, Partition, PartitionKind, PartitionState};
use crate::stores::{PartitionClash, PartitionEntry, PartitionFiles, PartitionStep};

/// The maximum number of steps in one call of the core, which may open sockets and start threads.
const STEPS_PER_CALL: usize = 32;

impl Handle {
    /// Every partition: the broker's own first, then the others by name.
    ///
    /// # Errors
    ///
    /// [`ControlError::Busy`] or [`ControlError::Stopped`].
    pub fn partitions(&self) -> Result<Vec<Partition>, ControlError> {
        self.call(|core| core.partitions())
    }

    /// One partition.
    ///
    /// # Errors
    ///
    /// [`ControlError::NotFound`] if there is no such partition.
    pub fn partition(&self, partition: &PartitionRef) -> Result<Partition, ControlError> {
        let wanted = partition.clone();
        self.call(move |core| core.partition(&wanted))?
            .ok_or_else(|| ControlError::unknown_partition(partition))
    }

    /// Adds a container persistently, opens its endpoint and writes its CDI device. Without an id it gets one
    /// derived from its name. With `if_absent`, one with the same settings is enough; its endpoint
    /// and its device are repaired.
    ///
    /// A device that cannot be written is a problem in [`status`](Self::status), and no error: the endpoint can
    /// be mounted without it.
    ///
    /// # Errors
    ///
    /// [`ControlError::Add`] if the name or id is in use or a limit is reached,
    /// [`ControlError::Invalid`] if the id is a well-known address, [`ControlError::DeviceTaken`] if another
    /// broker has a CDI device of this name, [`ControlError::Differs`] if the container exists with other
    /// settings than those that are enough.
    pub fn add_container(&self, new: NewContainer) -> Result<Partition, ControlError> {
        check_new_name(&new.name)?;
        let id = new.id;
        let id = id.unwrap_or_else(|| VmId::of_container(new.name.as_str()));
        check_id(id)?;
        let entry = PartitionEntry {
            name: new.name,
            id,
            groups: new.groups,
            cdi: new.cdi,
            vm: None,
            ephemeral: new.ephemeral,
        };
        let mut files = self.partitions.lock();
        let name = PartitionRef::Name(entry.name.clone());
        if new.if_absent
            && let Ok(existing) = self.partition(&name)
        {
            check_same(&entry, &existing, files.in_force(&existing.name))?;
            self.on_partition(&name, Core::repair_endpoint)??;
            self.update_devices(&mut files, true);
            drop(files);
            self.check_mounts(false);
            return self.partition(&name);
        }
        if entry.cdi {
            let free = files.check_device(&entry.name);
            free.map_err(|error| ControlError::DeviceTaken {
                what: error.to_string(),
                container: entry.name.clone(),
            })?;
        }
        let (spec, ephemeral) = (entry.spec(), entry.ephemeral);
        self.call(move |core| core.add_container(spec, ephemeral))??;
        self.save(&mut files, &entry)?;
        self.update_devices(&mut files, false);
        // One that was removed while its container runs is bound to it again.
        self.restore_bindings(&mut files, vec![entry.name]);
        drop(files);
        self.check_mounts(false);
        self.partition(&name)
    }

    /// Looks for containers whose mounts lead to a removed folder, if one was replaced since the last call or
    /// `always`.
    pub(crate) fn check_mounts(&self, always: bool) {
        if always || self.call(Core::take_replaced_folders).unwrap_or_default() {
            let stale = crate::mounts::stale(&self.about.dirs);
            self.post(move |core| core.set_stale_mounts(&stale));
        }
    }

    /// Brings the CDI devices in line with the containers. All of them are checked if `again` is set.
    fn update_devices(&self, files: &mut PartitionFiles, again: bool) {
        let changes = files.update_devices(again);
        if !changes.is_empty() {
            self.post(move |core| core.set_devices(changes));
        }
    }

    /// Writes the file of a partition that the core has added. Removes the partition if that fails.
    pub(super) fn save(
        &self,
        files: &mut PartitionFiles,
        entry: &PartitionEntry,
    ) -> Result<(), ControlError> {
        let saved = files.save(entry);
        let undo = match &saved {
            // The file is there, and so the partition stays.
            Ok(()) | Err(EntryError::Write(WriteError::NotDurable { .. })) => false,
            Err(_) => true,
        };
        let undone = match undo {
            true => self.remove_from_core(&entry.name),
            false => Ok(()),
        };
        // Once it is undone, the core has to apply even a file that says the same.
        self.follow(files, (!undo).then_some(entry));
        saved.map_err(file_error)?;
        undone
    }

    /// Removes a child partition and its endpoint, and resets its listeners and connections.
    ///
    /// # Errors
    ///
    /// [`ControlError::NotFound`] if there is no such partition, [`ControlError::Invalid`] if it is
    /// the broker's own.
    pub fn remove_partition(&self, partition: &PartitionRef) -> Result<Partition, ControlError> {
        let mut files = self.partitions.lock();
        let removed = self.own_child(partition, ContainerChange::Remove)?;
        let result = self.remove_locked(&mut files, &removed.name);
        result.map(|()| removed)
    }

    /// Removes a child partition and its file.
    pub(super) fn remove_locked(
        &self,
        files: &mut PartitionFiles,
        name: &PartitionName,
    ) -> Result<(), ControlError> {
        let file = files.remove(name).map_err(file_error);
        let result = file.and_then(|()| self.remove_from_core(name));
        if result.is_ok() {
            self.bindings.leave(name);
        }
        self.follow(files, None);
        self.update_devices(files, false);
        result
    }

    fn remove_from_core(&self, name: &PartitionName) -> Result<(), ControlError> {
        let name = PartitionRef::Name(name.clone());
        let binding = self.on_partition(&name, |core, key| {
            let binding = core.binding_number(key);
            core.remove_partition(key);
            binding
        })?;
        if let Some(binding) = binding {
            self.observer.forget(binding);
        }
        Ok(())
    }

    /// Pauses or resumes a child partition.
    ///
    /// A pause suspends a connection if either end has set `HVSOCKET_CONNECTED_SUSPEND`, and resets all
    /// others. It stops the traffic of a VM, not the VM or its processes.
    ///
    /// # Errors
    ///
    /// [`ControlError::NotFound`] for an unknown partition, [`ControlError::Invalid`] if it is the
    /// broker's own or `state` is neither running nor paused: no other can be requested.
    #[doc(alias = "suspend")]
    #[doc(alias = "resume")]
    pub fn set_state(
        &self,
        partition: &PartitionRef,
        state: PartitionState,
    ) -> Result<Partition, ControlError> {
        let change = match state {
            PartitionState::Paused => ContainerChange::Pause,
            _ => ContainerChange::Resume,
        };
        let child = self.own_child(partition, change)?;
        if !matches!(state, PartitionState::Running | PartitionState::Paused) {
            let partition = child.name;
            return Err(match child.kind {
                PartitionKind::Vm => {
                    let what = "a VM is off when its VMM has exited; stop the VMM instead";
                    ControlError::Invalid(what.into())
                }
                _ => ControlError::NotNow {
                    what: "a container cannot be switched off; remove it instead".into(),
                    fix: Box::new(Fix::RemovePartition { partition }),
                },
            });
        }
        self.on_partition(partition, move |core, key| {
            core.set_state(key, state.into())
        })??;
        self.partition(&PartitionRef::Name(child.name))
    }

    /// Replaces the sibling groups of a child partition. Its file keeps everything else.
    ///
    /// # Errors
    ///
    /// [`ControlError::NotFound`] for an unknown partition, [`ControlError::Invalid`] for the
    /// broker's own, [`ControlError::Partition`] for too many groups.
    pub fn set_groups(
        &self,
        partition: &PartitionRef,
        groups: Vec<String>,
    ) -> Result<Partition, ControlError> {
        let mut files = self.partitions.lock();
        let child = self.own_child(partition, ContainerChange::SetGroups)?;
        // Check the limit first, so that a refused change leaves no file.
        if groups.len() > self.call(|core| core.fabric.limits().groups_per_partition)? {
            let which = "groups_per_partition";
            return Err(PartitionError::LimitReached { which }.into());
        }
        // A VM whose link the embedding program brought has no file.
        let changed = match files.set_groups(&child.name, &groups) {
            Ok(changed) => changed,
            Err(error) => {
                self.follow(&mut files, None);
                return Err(file_error(error));
            }
        };
        let name = PartitionRef::Name(child.name);
        let wanted = name.clone();
        let result = self.on_partition(&name, move |core, key| {
            core.set_groups(key, groups)?;
            Ok::<_, PartitionError>(core.partition(&wanted))
        });
        self.follow(&mut files, changed.as_ref());
        result??.ok_or_else(|| ControlError::unknown_partition(&name))
    }

    /// Brings the partition files into force at the start.
    pub(crate) fn restore_partitions(&self) {
        let mut files = self.partitions.lock();
        let steps = files.first_steps();
        self.apply_steps(&mut files, steps, false);
        self.update_devices(&mut files, true);
    }

    /// Brings the partition files into force in a core that was taken over.
    pub(crate) fn resume_partitions(&self) {
        let known = self.call(|core| core.names_of_own_children());
        let known = known.unwrap_or_else(|error| {
            tracing::error!("cannot compare the partition files: {error}");
            Default::default()
        });
        let mut files = self.partitions.lock();
        let steps = files.first_steps_with(known);
        self.apply_steps(&mut files, steps, false);
        self.update_devices(&mut files, true);
        drop(files);
        self.resume_bindings();
    }

    /// Reads changed partition files, and applies what changed.
    pub(crate) fn follow_partitions(&self, changed: &Changed, fault: Option<WatchFault>) {
        let mut files = self.partitions.lock();
        files.reload(changed);
        self.follow(&mut files, None);
        self.update_devices(&mut files, false);
        self.post(move |core| core.set_watch_fault(Watched::Partitions, fault));
    }

    /// Reads again the partition files that could not be read, and tries those again that the core has
    /// refused: the cause may be gone without a change of a file.
    pub(crate) fn retry_partitions(&self) {
        let mut files = self.partitions.lock();
        files.reload(&Changed::Everything);
        let steps = files.take_all_steps();
        self.apply_steps(&mut files, steps, true);
        self.update_devices(&mut files, true);
    }

    /// Applies what changed in the partition files. `own` is an entry that the core has already.
    fn follow(&self, files: &mut PartitionFiles, own: Option<&PartitionEntry>) {
        let steps = files.take_steps(own);
        self.apply_steps(files, steps, true);
    }

    fn apply_steps(&self, files: &mut PartitionFiles, mut steps: Vec<PartitionStep>, edited: bool) {
        while !steps.is_empty() {
            let rest = steps.split_off(steps.len().min(STEPS_PER_CALL));
            let now = std::mem::replace(&mut steps, rest);
            // A call that is not answered in time still takes effect.
            let unanswered: Vec<_> = now.iter().filter_map(PartitionStep::presumed).collect();
            let results = self.call(move |core| core.apply_partitions(now, edited));
            let results = results.unwrap_or_else(|error| {
                tracing::warn!("cannot apply changed partition files: {error}");
                unanswered
            });
            let names: Vec<PartitionName> = results
                .iter()
                .filter(|result| result.in_force)
                .map(|result| result.name.clone())
                .collect();
            for result in results {
                files.record(result);
            }
            self.restore_bindings(files, names);
        }
    }

    /// Looks up a partition that this broker has itself, for a change. Others are the broker's own, its
    /// outer one, and those in a virtual machine, which the broker there changes.
    fn own_child(
        &self,
        partition: &PartitionRef,
        change: ContainerChange,
    ) -> Result<Partition, ControlError> {
        let wanted = partition.clone();
        let found = self.call(move |core| {
            let key = core.find(&wanted)?;
            let is_own = key == core.fabric.root();
            let is_outer = Some(key) == core.fabric.outer();
            Some((core.partition(&wanted)?, is_own, is_outer))
        })?;
        let (child, is_own, is_outer) =
            found.ok_or_else(|| ControlError::unknown_partition(partition))?;
        if is_own {
            let what = format!("{} is the broker's own partition", child.name);
            return Err(ControlError::Invalid(what));
        }
        if is_outer {
            let what = format!("{} is the host of this virtual machine", child.name);
            return Err(ControlError::Invalid(what));
        }
        check_not_in_vm(&child.name, change)?;
        Ok(child)
    }
}

/// Compares the settings of an existing partition with those of a container that is wanted.
fn check_same(
    wanted: &PartitionEntry,
    existing: &Partition,
    file: Option<&PartitionEntry>,
) -> Result<(), ControlError> {
    let name = &existing.name;
    let differs = |what: String| Err(ControlError::Differs(what));
    if existing.kind != PartitionKind::Container {
        return differs(format!("{name} is not a container"));
    }
    if existing.id != wanted.id {
        let (id, other) = (existing.id, wanted.id);
        return differs(format!("{name} exists with the id {id}, not {other}"));
    }
    let sorted = |groups: &[String]| {
        let mut groups = groups.to_vec();
        groups.sort_unstable();
        groups.dedup();
        groups
    };
    if sorted(&existing.groups) != sorted(&wanted.groups) {
        let words = |groups: &[String]| match groups {
            [] => "no group".to_owned(),
            groups => groups.join(", "),
        };
        let (groups, others) = (words(&existing.groups), words(&wanted.groups));
        return differs(format!("{name} exists in {groups}, not {others}"));
    }
    let is_ephemeral = existing.container.as_ref().is_some_and(|one| one.ephemeral);
    if is_ephemeral != wanted.ephemeral {
        let (is, not) = match is_ephemeral {
            true => ("as an ephemeral container", "as one that stays"),
            false => ("as a container that stays", "as an ephemeral one"),
        };
        return differs(format!("{name} exists {is}, not {not}"));
    }
    match file {
        Some(file) if file.cdi != wanted.cdi => {
            let (is, not) = if file.cdi {
                ("with", "without one")
            } else {
                ("without", "with one")
            };
            differs(format!("{name} exists {is} a CDI device, not {not}"))
        }
        _ => Ok(()),
    }
}

/// Refuses to add a container under the name of one in a virtual machine.
fn check_new_name(name: &PartitionName) -> Result<(), ControlError> {
    check_not_in_vm(name, ContainerChange::Add)
}

/// Refuses a change of a container in a virtual machine.
fn check_not_in_vm(name: &PartitionName, change: ContainerChange) -> Result<(), ControlError> {
    let Some((vm, container)) = name.parts() else {
        return Ok(());
    };
    let does = match change {
        ContainerChange::Add => "adds",
        ContainerChange::Remove => "removes",
        ContainerChange::Pause => "pauses",
        ContainerChange::Resume => "resumes",
        ContainerChange::SetGroups => "sets the groups of",
    };
    let what = format!(
        "{name} is the name of a container in the virtual machine {vm}; only the broker in {vm} {does} it"
    );
    let fix = Box::new(Fix::ChangeInVm {
        vm,
        container,
        change,
    });
    Err(ControlError::NotNow { what, fix })
}

/// Refuses an id that processes use as an address with a meaning of its own.
pub(super) fn check_id(id: VmId) -> Result<(), ControlError> {
    if id.is_well_known() {
        let what = format!("{id} is a well-known address and cannot be a partition's id");
        return Err(ControlError::Invalid(what));
    }
    Ok(())
}

fn file_error(error: EntryError<PartitionClash>) -> ControlError {
    match error {
        EntryError::Clash(PartitionClash::Fabric(error)) => error.into(),
        EntryError::Clash(error @ PartitionClash::Cid { .. }) => {
            ControlError::CidTaken(error.to_string())
        }
        EntryError::Clash(error @ PartitionClash::HybridPath { .. }) => {
            ControlError::HybridPathTaken(error.to_string())
        }
        error => ControlError::System(error.to_string()),
    }
}
