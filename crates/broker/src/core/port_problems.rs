//! The vsock ports of the host that the broker does not have, for each VM whose guest wants them.

use std::collections::BTreeMap;

use hvsock_fabric::PartitionKey;

use crate::guest_link::PortProblem;

/// What is in the way of services of the host, by VM and port.
#[derive(Debug, Default)]
pub(super) struct PortProblems(BTreeMap<PartitionKey, BTreeMap<u32, PortProblem>>);

impl PortProblems {
    /// Adds one, or changes it.
    pub(super) fn insert(&mut self, vm: PartitionKey, port: u32, problem: PortProblem) {
        self.0.entry(vm).or_default().insert(port, problem);
    }

    /// Removes one.
    pub(super) fn remove(&mut self, vm: PartitionKey, port: u32) -> Option<PortProblem> {
        let of_vm = self.0.get_mut(&vm)?;
        let removed = of_vm.remove(&port);
        if of_vm.is_empty() {
            self.0.remove(&vm);
        }
        removed
    }

    /// One.
    pub(super) fn get(&self, vm: PartitionKey, port: u32) -> Option<&PortProblem> {
        self.0.get(&vm)?.get(&port)
    }

    /// The problems of one VM, in words.
    pub(super) fn texts(&self, vm: PartitionKey) -> Vec<String> {
        let problems = self.0.get(&vm).into_iter().flat_map(BTreeMap::values);
        problems.map(|problem| problem.text.clone()).collect()
    }

    /// The ports with a problem of one VM.
    pub(super) fn ports_of(&self, vm: PartitionKey) -> Vec<u32> {
        let problems = self.0.get(&vm).into_iter().flat_map(BTreeMap::keys);
        problems.copied().collect()
    }

    /// Whether any VM has a problem with this port.
    pub(super) fn has_port(&self, port: u32) -> bool {
        self.0.values().any(|of_vm| of_vm.contains_key(&port))
    }
}
