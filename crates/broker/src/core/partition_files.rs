//! Partitions from files: applies what an operator or a configuration manager wrote.

use std::collections::BTreeSet;
use std::path::Path;

use hvsock_address::PartitionName;
use hvsock_fabric::{PartitionKey, PartitionSpec};
use hvsock_registry::store::Problem;

use super::partitions::AddError;
use super::state::Core;
use crate::stores::{PartitionStep, PutResult, VmEntry};

/// What only a VM or a container has.
struct Settings {
    vm: Option<VmEntry>,
    ephemeral: bool,
}

impl Core {
    /// The containers and VMs of this broker.
    pub(crate) fn names_of_own_children(&self) -> BTreeSet<PartitionName> {
        let all = self.fabric.partitions();
        let own = all.filter(|(key, _)| self.containers.contains(*key) || self.vms.contains(*key));
        own.map(|(_, partition)| partition.name().clone()).collect()
    }

    /// Applies changes of the partition files in order. A partition that cannot be added or changed is
    /// reported as a problem of its file: a container's processes may be able to write to the folder of
    /// its endpoint, so that must not stop anything else.
    ///
    /// `edited` says that others changed the files since the start, which the audit records.
    pub(crate) fn apply_partitions(
        &mut self,
        steps: Vec<PartitionStep>,
        edited: bool,
    ) -> Vec<PutResult> {
        if edited {
            for step in self.first_edits(&steps) {
                self.audit_step(step);
            }
        }
        let mut results = Vec::new();
        for step in steps {
            match step {
                PartitionStep::Put {
                    key,
                    path,
                    spec,
                    vm,
                    ephemeral,
                    known,
                    edited: _,
                } => {
                    let vm = vm.map(|vm| vm.map(|vm| *vm));
                    let settings = vm.map(|vm| Settings { vm, ephemeral });
                    results.push(self.put_partition(key, &path, spec, settings, known));
                }
                PartitionStep::Remove { path, name } => {
                    self.repair_refused(&path);
                    if let Some(key) = name.and_then(|name| self.fabric.by_name(&name)) {
                        self.remove_partition(key);
                    }
                }
                PartitionStep::Broken(problem) => self.report_problem(&problem),
                PartitionStep::Repaired(path) => self.repair_problem(&path),
            }
        }
        results
    }

    fn audit_step(&mut self, step: &PartitionStep) {
        match step {
            PartitionStep::Put { edited: false, .. } | PartitionStep::Remove { name: None, .. } => {
            }
            PartitionStep::Put { path, known, .. } => {
                let what = match known {
                    true => "changed",
                    false => "added",
                };
                self.audit_edit(what, None, Some(path), None);
            }
            PartitionStep::Remove { path, .. } => {
                self.audit_edit("removed", None, Some(path), None);
            }
            PartitionStep::Broken(problem) => {
                let reason = Some(problem.to_string());
                self.audit_edit("not valid", None, Some(&problem.path), reason);
            }
            PartitionStep::Repaired(path) => {
                self.audit_edit("valid again", None, Some(path), None);
            }
        }
    }

    fn put_partition(
        &mut self,
        key: String,
        path: &Path,
        spec: PartitionSpec,
        settings: Result<Settings, String>,
        known: bool,
    ) -> PutResult {
        let (kind, name) = (spec.kind, spec.name.clone());
        let existing = self.fabric.by_name(&name).filter(|_| known);
        let done = settings.and_then(|settings| {
            let done = match existing {
                Some(key) => self.change_partition(key, spec, settings),
                None => self.add_partition(spec, settings),
            };
            done.map_err(|error| error.to_string())
        });
        let in_force = match &done {
            Ok(()) => true,
            // A partition whose file cannot be applied stays as it is, unless it had to make room.
            Err(_) => existing.is_some_and(|key| self.fabric.partition(key).is_some()),
        };
        let refused = match done {
            Ok(()) => {
                self.repair_refused(path);
                false
            }
            Err(error) => {
                let what = match in_force {
                    true => format!("the {kind} {name} was not changed: {error}"),
                    false => format!("the {kind} {name} was not added: {error}"),
                };
                self.report_refused(&Problem::whole(path, what));
                true
            }
        };
        PutResult {
            key,
            name,
            in_force,
            refused,
        }
    }

    fn add_partition(&mut self, spec: PartitionSpec, settings: Settings) -> Result<(), AddError> {
        match settings.vm {
            Some(vm) => self.add_vm(spec, vm, None),
            None => self.add_container(spec, settings.ephemeral),
        }
    }

    /// Changes a partition. Only its groups, and whether it is ephemeral, can change while it is there; anything else makes another
    /// partition of it, whose connections are reset.
    fn change_partition(
        &mut self,
        key: PartitionKey,
        spec: PartitionSpec,
        new: Settings,
    ) -> Result<(), AddError> {
        let vm = self.vms.get(key).map(|record| record.settings().clone());
        let is_same = self.fabric.partition(key).is_some_and(|partition| {
            let id = (partition.kind(), partition.vm_id());
            id == (spec.kind, spec.vm_id) && vm == new.vm
        });
        if !is_same {
            self.remove_partition(key);
            return self.add_partition(spec, new);
        }
        self.containers.set_ephemeral(key, new.ephemeral);
        let groups = self.fabric.partition(key).map(|old| old.groups().to_vec());
        if groups.is_some_and(|groups| groups != spec.groups) {
            self.set_groups(key, spec.groups)?;
        }
        Ok(())
    }
}
