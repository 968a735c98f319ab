//! Containers: which container of a runtime each of them is, and their run state, which its runtime, its
//! freezer and the operator control.
//!
//! A runtime's hooks [bind](Containers::bind) a container to a partition and [release](Containers::release)
//! it. In between, its first process may end and its cgroup may be frozen, as others observe and report. This
//! table makes no system call.

pub(super) mod snapshot;
#[cfg(test)]
mod tests;

use std::collections::HashMap;

use hvsock_fabric::{PartitionKey, PartitionState};
use hvsock_sys::pidfd::ProcessId;

/// The containers by partition.
#[derive(Debug, Default)]
pub(super) struct Containers {
    records: HashMap<PartitionKey, ContainerRecord>,
    last: u64,
}

/// A container's state beside the fabric's.
#[derive(Debug)]
pub(super) struct ContainerRecord {
    /// Whether it is removed with the container of its runtime.
    ephemeral: bool,
    /// Whether an operator has paused it.
    paused: bool,
    phase: Phase,
}

/// What its runtime has said about it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Phase {
    /// Nothing.
    Unknown,
    /// A container that the runtime has removed.
    Defined,
    /// A container.
    Bound(Binding),
}

/// The container of a runtime that is bound to a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Binding {
    /// Distinguishes it from earlier ones, of which reports may still come.
    pub(crate) number: BindingNumber,
    /// The runtime's id of it.
    pub(crate) oci_id: String,
    /// Its first process, unless this process's PID namespace does not show that.
    pub(crate) process: Option<ProcessId>,
    /// That process has ended.
    pub(crate) ended: bool,
    frozen: bool,
}

/// Which binding of a broker it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct BindingNumber(u64);

/// Why a container cannot be bound to a partition.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BindError {
    /// Another one that has not ended is bound to it.
    #[error("the container {oci_id}{} is bound to it and runs", process_text(*.process))]
    Taken {
        oci_id: String,
        process: Option<ProcessId>,
    },
    /// It is bound to another partition.
    #[error("it is bound to another container partition already")]
    Elsewhere(PartitionKey),
}

fn process_text(process: Option<ProcessId>) -> String {
    process.map_or_else(String::new, |process| format!(" (process {})", process.pid))
}

impl Binding {
    /// Whether its cgroup is frozen.
    pub(super) fn is_frozen(&self) -> bool {
        self.frozen
    }
}

impl ContainerRecord {
    /// Whether it is removed with the container of its runtime.
    pub(super) fn is_ephemeral(&self) -> bool {
        self.ephemeral
    }

    /// Whether an operator has paused it.
    pub(super) fn is_paused_by_operator(&self) -> bool {
        self.paused
    }

    /// The container of a runtime that is bound to it.
    pub(super) fn binding(&self) -> Option<&Binding> {
        match &self.phase {
            Phase::Bound(binding) => Some(binding),
            Phase::Unknown | Phase::Defined => None,
        }
    }

    /// Whether no runtime has said anything about it.
    pub(super) fn is_unknown(&self) -> bool {
        self.phase == Phase::Unknown
    }

    /// The effective state. It is paused if its runtime or an operator has paused it.
    fn state(&self) -> PartitionState {
        let state = match &self.phase {
            Phase::Unknown => PartitionState::Unknown,
            Phase::Defined => PartitionState::Defined,
            Phase::Bound(binding) if binding.ended => PartitionState::Exited,
            Phase::Bound(binding) if binding.frozen => PartitionState::Paused,
            Phase::Bound(_) => PartitionState::Running,
        };
        match state.is_up() && self.paused {
            true => PartitionState::Paused,
            false => state,
        }
    }
}

impl Containers {
    /// Adds a container, of which nothing is known yet.
    pub(super) fn insert(&mut self, key: PartitionKey, ephemeral: bool) {
        let record = ContainerRecord {
            ephemeral,
            paused: false,
            phase: Phase::Unknown,
        };
        self.records.insert(key, record);
    }

    /// Removes a container.
    pub(super) fn remove(&mut self, key: PartitionKey) {
        self.records.remove(&key);
    }

    /// A container.
    pub(super) fn get(&self, key: PartitionKey) -> Option<&ContainerRecord> {
        self.records.get(&key)
    }

    /// Whether the partition is a container of this table.
    pub(super) fn contains(&self, key: PartitionKey) -> bool {
        self.records.contains_key(&key)
    }

    /// The effective state of a container.
    pub(super) fn state(&self, key: PartitionKey) -> Option<PartitionState> {
        self.records.get(&key).map(ContainerRecord::state)
    }

    /// Sets whether it is removed with the container of its runtime.
    pub(super) fn set_ephemeral(&mut self, key: PartitionKey, ephemeral: bool) {
        if let Some(record) = self.records.get_mut(&key) {
            record.ephemeral = ephemeral;
        }
    }

    /// Binds a container of a runtime, whose first process is `process`. Does nothing if it is bound already,
    /// and takes the place of one that has ended.
    ///
    /// # Errors
    ///
    /// [`BindError`] if another one that has not ended has the place, or if this one has another place.
    pub(super) fn bind(
        &mut self,
        key: PartitionKey,
        oci_id: &str,
        process: Option<ProcessId>,
    ) -> Result<Option<BindingNumber>, BindError> {
        let is_it = |binding: &Binding| process.is_some() && binding.process == process;
        let elsewhere = self.records.iter().find(|(other, record)| {
            let bound = record.binding().filter(|binding| !binding.ended);
            **other != key && bound.is_some_and(is_it)
        });
        if let Some((other, _)) = elsewhere {
            return Err(BindError::Elsewhere(*other));
        }
        let Some(record) = self.records.get_mut(&key) else {
            return Ok(None);
        };
        if let Some(bound) = record.binding().filter(|bound| !bound.ended) {
            if bound.oci_id == oci_id && is_it(bound) {
                return Ok(Some(bound.number));
            }
            return Err(BindError::Taken {
                oci_id: bound.oci_id.clone(),
                process: bound.process,
            });
        }
        self.last += 1;
        let number = BindingNumber(self.last);
        record.phase = Phase::Bound(Binding {
            number,
            oci_id: oci_id.to_owned(),
            process,
            ended: false,
            frozen: false,
        });
        Ok(Some(number))
    }

    /// Records that the runtime has removed a container. Returns the binding that it had. `None` if another
    /// container is bound, or none.
    pub(super) fn release(&mut self, key: PartitionKey, oci_id: &str) -> Option<Binding> {
        let record = self.records.get_mut(&key)?;
        let bound = record.binding().filter(|bound| bound.oci_id == oci_id)?;
        let bound = bound.clone();
        record.phase = Phase::Defined;
        Some(bound)
    }

    /// Records that a container was bound before, and is not now.
    pub(super) fn set_defined(&mut self, key: PartitionKey) {
        if let Some(record) = self.records.get_mut(&key) {
            record.phase = Phase::Defined;
        }
    }

    /// Forgets a binding, as if it had never been made.
    pub(super) fn forget(&mut self, key: PartitionKey, number: BindingNumber) {
        let record = self.records.get_mut(&key);
        if let Some(record) = record
            && record.binding().is_some_and(|bound| bound.number == number)
        {
            record.phase = Phase::Unknown;
        }
    }

    /// Records that the first process of a binding has ended. Returns whether it is the present one.
    pub(super) fn ended(&mut self, key: PartitionKey, number: BindingNumber) -> bool {
        self.update(key, number, |bound| bound.ended = true)
    }

    /// Records whether the cgroup of a binding is frozen. Returns whether it is the present one.
    pub(super) fn frozen(
        &mut self,
        key: PartitionKey,
        number: BindingNumber,
        frozen: bool,
    ) -> bool {
        self.update(key, number, |bound| bound.frozen = frozen)
    }

    fn update(
        &mut self,
        key: PartitionKey,
        number: BindingNumber,
        change: impl FnOnce(&mut Binding),
    ) -> bool {
        match self.records.get_mut(&key).map(|record| &mut record.phase) {
            Some(Phase::Bound(bound)) if bound.number == number => {
                change(bound);
                true
            }
            _ => false,
        }
    }

    /// Records whether an operator has paused a container.
    pub(super) fn set_paused(&mut self, key: PartitionKey, paused: bool) {
        if let Some(record) = self.records.get_mut(&key) {
            record.paused = paused;
        }
    }
}
