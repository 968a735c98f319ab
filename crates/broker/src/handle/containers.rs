//! The containers of runtimes: binding them to partitions, and what follows from their ends and pauses.
//!
//! The lock of the partition files is held meanwhile, so that no partition is removed or added under a
//! binding, and the file of a binding says what the core knows.

use std::collections::BTreeSet;
use std::sync::Arc;

use hvsock_address::{PartitionName, PartitionRef};
use hvsock_fabric::PartitionKey;
use hvsock_sys::pidfd::Process;

use super::{ControlError, Handle};
use crate::containers::{Found, Kept, Observed};
use crate::core::{BindFailure, BindingNumber, BoundContainer, ToBind, UnboundContainer};
use crate::model::{NewBinding, Partition};
use crate::stores::PartitionFiles;

/// Most bytes of a runtime's id of a container.
const MAX_ID: usize = 1024;

impl Handle {
    /// Binds a container of a runtime to a container partition, until its first process ends. A runtime's
    /// `createRuntime` hook does this. `process` is that process; without it, `new.pid` is its number.
    ///
    /// # Errors
    ///
    /// [`ControlError::NotFound`] for an unknown partition, [`ControlError::Invalid`] for an id or process that
    /// is not valid or has ended, and if the partition is none that can be bound,
    /// [`ControlError::ContainerTaken`] if another container that runs is bound to it, or this one to another.
    pub fn bind_container(
        &self,
        partition: &PartitionRef,
        new: NewBinding,
        process: Option<Process>,
    ) -> Result<Partition, ControlError> {
        check_id(&new.oci_id)?;
        let invalid = |what: String| Err(ControlError::Invalid(what));
        let process = match (process, new.pid) {
            (Some(process), _) => process,
            (None, Some(pid)) => Process::open(pid).map_err(|error| {
                ControlError::Invalid(format!("cannot open the process {pid}: {error}"))
            })?,
            (None, None) => {
                return invalid("the first process of the container is missing".to_owned());
            }
        };
        let system = |error: std::io::Error| ControlError::System(error.to_string());
        let id = process.id().map_err(system)?;
        if process.has_ended().map_err(system)? {
            return invalid("the first process of the container has ended".to_owned());
        }
        let files = self.partitions.lock();
        let bound = self.bind_in_core(partition, new.oci_id.clone(), Arc::new(process), id)?;
        let kept = id.map(|process| Kept::Bound {
            oci_id: new.oci_id,
            process,
            optional: new.optional,
        });
        let written = match &kept {
            Some(kept) => self
                .bindings
                .keep(&bound.partition.name, bound.partition.id, kept),
            // After a restart nothing could tell which process it was.
            None => {
                self.bindings.forget(&bound.partition.name);
                Ok(())
            }
        };
        if let Err(error) = written {
            let (key, number) = (bound.key, bound.number);
            if bound.is_new {
                self.observer.forget(number);
                self.call(move |core| core.forget_binding(key, number))?;
            }
            let name = &bound.partition.name;
            let what = format!("cannot keep the binding of {name}: {error}");
            return Err(ControlError::System(what));
        }
        drop(files);
        Ok(bound.partition)
    }

    /// Records that a runtime has removed a container. Its `poststop` hook does this. Does nothing if another
    /// container is bound to the partition, or none. Returns the partition after it; before it, if the
    /// partition is removed with the container.
    ///
    /// # Errors
    ///
    /// [`ControlError::NotFound`] for an unknown partition.
    pub fn release_container(
        &self,
        partition: &PartitionRef,
        oci_id: &str,
    ) -> Result<Partition, ControlError> {
        let mut files = self.partitions.lock();
        let (wanted, oci_id) = (partition.clone(), oci_id.to_owned());
        let released = self.on_partition(partition, move |core, key| {
            let before = core.partition(&wanted);
            let number = core.release_container(key, &oci_id);
            let is_ephemeral = core.is_ephemeral(key);
            (before, number, is_ephemeral)
        })?;
        let unknown = || ControlError::unknown_partition(partition);
        let (before, number, is_ephemeral) = released;
        let before = before.ok_or_else(unknown)?;
        let Some(number) = number else {
            return Ok(before);
        };
        self.observer.forget(number);
        if is_ephemeral {
            self.remove_with_file(&mut files, &before.name)?;
            return Ok(before);
        }
        let kept = self.bindings.keep(&before.name, before.id, &Kept::Released);
        if let Err(error) = kept {
            tracing::warn!(%error, "cannot keep that {} is not bound", before.name);
            self.bindings.forget(&before.name);
        }
        drop(files);
        self.partition(partition)
    }

    /// Records that the first process of a container has ended, and removes the partition that is removed with
    /// it.
    pub(crate) fn container_ended(
        &self,
        key: PartitionKey,
        number: BindingNumber,
    ) -> Result<(), ControlError> {
        let ephemeral = self.call(move |core| {
            core.container_ended(key, number);
            core.is_removed_with(key, number)
        })?;
        if !ephemeral {
            return Ok(());
        }
        let mut files = self.partitions.lock();
        let name = self.call(move |core| {
            let partition = core.fabric.partition(key)?;
            let is_it = core.is_removed_with(key, number);
            is_it.then(|| partition.name().clone())
        })?;
        match name {
            Some(name) => self.remove_with_file(&mut files, &name),
            None => Ok(()),
        }
    }

    /// Records whether the cgroup of a container is frozen.
    pub(crate) fn container_frozen(
        &self,
        key: PartitionKey,
        number: BindingNumber,
        frozen: bool,
    ) -> Result<(), ControlError> {
        self.call(move |core| core.container_frozen(key, number, frozen))
    }

    /// Binds the containers again that were bound before and run, and records what is known of the others.
    pub(super) fn restore_bindings(&self, files: &mut PartitionFiles, names: Vec<PartitionName>) {
        let unbound = self.call(move |core| core.unbound_containers(&names));
        let restored = unbound.and_then(|unbound| {
            unbound
                .iter()
                .try_for_each(|container| self.restore_binding(files, container))
        });
        if let Err(error) = restored {
            tracing::warn!("cannot restore the bindings of containers: {error}");
        }
    }

    /// Observes the containers of a core that was taken over.
    pub(super) fn resume_bindings(&self) {
        let bound = self.call(|core| core.bound_containers());
        let (running, ended) = match bound {
            Ok(bound) => bound,
            Err(error) => {
                return tracing::error!("cannot observe the containers: {error}");
            }
        };
        for container in running {
            let BoundContainer {
                key,
                number,
                process,
                id,
                frozen,
            } = container;
            self.observer.observe(Observed {
                key,
                number,
                process,
                id,
                frozen,
            });
        }
        // The other process may have ended between the end of one and its removal.
        for (key, number) in ended {
            if let Err(error) = self.container_ended(key, number) {
                tracing::warn!("cannot remove a container that has ended: {error}");
            }
        }
    }

    /// Removes what is kept of containers that are gone.
    pub(crate) fn remove_unknown_bindings(&self) {
        let Ok(partitions) = self.partitions() else {
            return;
        };
        let names = partitions
            .iter()
            .map(|one| one.name.as_str().to_ascii_lowercase());
        let names: BTreeSet<String> = names.collect();
        self.bindings.remove_unknown(|name| names.contains(name));
    }

    fn restore_binding(
        &self,
        files: &mut PartitionFiles,
        container: &UnboundContainer,
    ) -> Result<(), ControlError> {
        let UnboundContainer {
            key,
            name,
            id,
            is_ephemeral,
        } = container;
        let (key, is_ephemeral) = (*key, *is_ephemeral);
        match self.bindings.find(name, *id) {
            Found::Nothing => self.bindings.forget(name),
            Found::Released | Found::Ended { .. } if is_ephemeral => {
                return self.remove_with_file(files, name);
            }
            Found::Released => self.call(move |core| core.restore_released(key))?,
            Found::Ended { oci_id, process } => {
                self.call(move |core| core.restore_ended(key, &oci_id, process))?;
            }
            Found::Runs { oci_id, process } => {
                let process_id = process.id().ok().flatten();
                let reference = PartitionRef::Name(name.clone());
                self.bind_in_core(&reference, oci_id, Arc::new(process), process_id)?;
            }
        }
        Ok(())
    }

    fn bind_in_core(
        &self,
        partition: &PartitionRef,
        oci_id: String,
        process: Arc<Process>,
        id: Option<hvsock_sys::pidfd::ProcessId>,
    ) -> Result<Bound, ControlError> {
        let wanted = partition.clone();
        let new = ToBind {
            oci_id,
            process: Arc::clone(&process),
            id,
        };
        let bound = self.on_partition(partition, move |core, key| {
            let (number, is_new) = core.bind_container(key, &new)?;
            Ok::<_, BindFailure>((key, number, is_new, core.partition(&wanted)))
        })??;
        let (key, number, is_new, partition_now) = bound;
        if is_new {
            self.observer.observe(Observed {
                key,
                number,
                process,
                id,
                frozen: false,
            });
        }
        Ok(Bound {
            key,
            number,
            is_new,
            partition: partition_now.ok_or_else(|| ControlError::unknown_partition(partition))?,
        })
    }

    /// Removes a partition with its file.
    fn remove_with_file(
        &self,
        files: &mut PartitionFiles,
        name: &PartitionName,
    ) -> Result<(), ControlError> {
        let removed = self.remove_locked(files, name);
        self.bindings.forget(name);
        removed
    }
}

/// A binding in the core.
struct Bound {
    key: PartitionKey,
    number: BindingNumber,
    is_new: bool,
    partition: Partition,
}

/// Fails for an id that no runtime would give a container.
fn check_id(id: &str) -> Result<(), ControlError> {
    let what = match id.len() {
        0 => "the id of the container is empty".to_owned(),
        1..=MAX_ID if hvsock_text::first_escaped(id).is_none() => return Ok(()),
        1..=MAX_ID => "the id of the container has characters that cannot be shown".to_owned(),
        _ => format!("the id of the container has more than {MAX_ID} bytes"),
    };
    Err(ControlError::Invalid(what))
}

impl From<BindFailure> for ControlError {
    fn from(error: BindFailure) -> Self {
        match error {
            BindFailure::Taken { .. } | BindFailure::Removed { .. } => {
                Self::ContainerTaken(error.to_string())
            }
            BindFailure::Kind { .. } => Self::Invalid(error.to_string()),
        }
    }
}
