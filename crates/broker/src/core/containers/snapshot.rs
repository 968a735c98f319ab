//! The snapshot of the containers. [`crate::handover::snapshot`] describes its format.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use hvsock_fabric::PartitionKey;
use hvsock_sys::pidfd::{Process, ProcessId};
use serde::{Deserialize, Serialize};

use super::{Binding, BindingNumber, ContainerRecord, Containers, Phase};
use crate::handover::snapshot::{check_version, ensure, read_version};
use crate::handover::{Exports, FdIndex, HandoverError, Imports};

/// The version of [`ContainersSnapshot`] that this release writes.
const CONTAINERS_SNAPSHOT_VERSION: u32 = 1;

/// The first processes of the containers that are bound and have not ended.
pub(in crate::core) type Processes = HashMap<PartitionKey, (BindingNumber, Arc<Process>)>;

/// All containers of this broker.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::core) struct ContainersSnapshot {
    #[serde(deserialize_with = "read_version::<_, CONTAINERS_SNAPSHOT_VERSION>")]
    version: u32,
    /// The number of the last binding.
    last_binding: u64,
    /// In the order of their partitions.
    containers: Vec<ContainerSnapshot>,
}

#[derive(Debug, Serialize, Deserialize)]
struct ContainerSnapshot {
    partition: u64,
    ephemeral: bool,
    paused: bool,
    phase: PhaseSnapshot,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum PhaseSnapshot {
    Unknown,
    Defined,
    Bound(BindingSnapshot),
}

#[derive(Debug, Serialize, Deserialize)]
struct BindingSnapshot {
    number: u64,
    oci_id: String,
    /// The number of the first process, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    process: Option<ProcessSnapshot>,
    ended: bool,
    frozen: bool,
    /// Of the first process, if it has not ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pidfd: Option<FdIndex>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
struct ProcessSnapshot {
    pid: u32,
    /// Clock ticks since the system started.
    started: u64,
}

impl Containers {
    /// The containers as a value.
    ///
    /// # Errors
    ///
    /// If a descriptor cannot be handed over.
    pub(in crate::core) fn snapshot(
        &self,
        processes: &Processes,
        exports: &mut Exports,
    ) -> Result<ContainersSnapshot, HandoverError> {
        let Self { records, last } = self;
        let mut all: Vec<_> = records.iter().collect();
        all.sort_by_key(|(key, _)| **key);
        let mut containers = Vec::with_capacity(all.len());
        for (key, record) in all {
            let ContainerRecord {
                ephemeral,
                paused,
                phase,
            } = record;
            let phase = match phase {
                Phase::Unknown => PhaseSnapshot::Unknown,
                Phase::Defined => PhaseSnapshot::Defined,
                Phase::Bound(binding) => {
                    let Binding {
                        number,
                        oci_id,
                        process,
                        ended,
                        frozen,
                    } = binding;
                    let found = processes.get(key);
                    let pidfd = found.filter(|(of, _)| of == number);
                    PhaseSnapshot::Bound(BindingSnapshot {
                        number: number.0,
                        oci_id: oci_id.clone(),
                        process: process
                            .map(|ProcessId { pid, started }| ProcessSnapshot { pid, started }),
                        ended: *ended,
                        frozen: *frozen,
                        pidfd: pidfd.map(|(_, process)| exports.fd(process)).transpose()?,
                    })
                }
            };
            containers.push(ContainerSnapshot {
                partition: key.as_u64(),
                ephemeral: *ephemeral,
                paused: *paused,
                phase,
            });
        }
        Ok(ContainersSnapshot {
            version: CONTAINERS_SNAPSHOT_VERSION,
            last_binding: *last,
            containers,
        })
    }

    /// The containers of a snapshot, and the processes of those that are bound. `is_known` says which
    /// partitions are containers of this broker.
    ///
    /// # Errors
    ///
    /// [`HandoverError`] for another version, for repeated or unknown partitions, and for repeated bindings,
    /// processes or descriptors.
    pub(in crate::core) fn restore(
        snapshot: ContainersSnapshot,
        imports: &mut Imports,
        is_known: impl Fn(PartitionKey) -> bool,
    ) -> Result<(Self, Processes), HandoverError> {
        let ContainersSnapshot {
            version,
            last_binding,
            containers,
        } = snapshot;
        check_version(version, CONTAINERS_SNAPSHOT_VERSION)?;
        ensure(
            last_binding <= u64::MAX / 2,
            "the numbers of bindings are used up",
        )?;
        let mut restored = Self {
            records: HashMap::new(),
            last: last_binding,
        };
        let mut processes = Processes::new();
        let (mut numbers, mut bound) = (HashSet::new(), HashSet::new());
        for container in containers {
            let ContainerSnapshot {
                partition,
                ephemeral,
                paused,
                phase,
            } = container;
            let key = PartitionKey::from_u64(partition);
            ensure(is_known(key), "a container is of no partition")?;
            let phase = match phase {
                PhaseSnapshot::Unknown => Phase::Unknown,
                PhaseSnapshot::Defined => Phase::Defined,
                PhaseSnapshot::Bound(binding) => {
                    let number = binding.number;
                    let is_new = number <= last_binding && numbers.insert(number);
                    ensure(is_new, "a binding has a number that is used or none yet")?;
                    let runs = binding.process.filter(|_| !binding.ended);
                    let is_alone = runs.is_none_or(|process| bound.insert(process));
                    ensure(is_alone, "a process is bound to two containers")?;
                    let number = BindingNumber(number);
                    if let Some(pidfd) = binding.pidfd {
                        ensure(!binding.ended, "a process has ended and has not")?;
                        let process = Process::from_descriptor(imports.fd(pidfd)?);
                        let process = process
                            .map_err(HandoverError::io("take the process of a container"))?;
                        processes.insert(key, (number, Arc::new(process)));
                    }
                    Phase::Bound(Binding {
                        number,
                        oci_id: binding.oci_id,
                        process: binding
                            .process
                            .map(|ProcessSnapshot { pid, started }| ProcessId { pid, started }),
                        ended: binding.ended,
                        frozen: binding.frozen,
                    })
                }
            };
            let record = ContainerRecord {
                ephemeral,
                paused,
                phase,
            };
            let before = restored.records.insert(key, record);
            ensure(before.is_none(), "a container occurs twice")?;
        }
        Ok((restored, processes))
    }
}
