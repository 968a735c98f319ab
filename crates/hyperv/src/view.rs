//! The facts as a tree of partitions, which the fabric evaluates.

use hvsock_address::{PartitionName, VmId};
use hvsock_fabric::{
    Audience, ConnectRequest, Explanation, Fabric, Limits, ListenRequest, PartitionKey,
    PartitionKind, PartitionSpec, PartitionState, RootSpec,
};
use hvsock_registry::{Defaults, Principal, Registry};

use crate::facts::Question;
use crate::name::{base, partition_names};
use crate::{Facts, Vm, VmKind, VmState, policy};

/// A fabric with the partitions of this machine.
pub(crate) struct View {
    fabric: Fabric,
    /// The partition of the caller.
    here: PartitionKey,
    /// The name of the root partition.
    pub(crate) host: PartitionName,
    /// The name of the virtual machine in question.
    pub(crate) target: Option<PartitionName>,
}

impl View {
    pub(crate) fn new(facts: &Facts, question: Question) -> Self {
        if facts.host_decides(question) {
            Self::of_guest(facts, question)
        } else {
            Self::of_host(facts, question)
        }
    }

    /// The verdict of the fabric, for a user without special rights.
    pub(crate) fn evaluate(&self, question: Question) -> Explanation {
        // Neither root nor the broker's user: Windows has no rules for them.
        let principal = &Principal {
            uid: 1,
            ..Principal::default()
        };
        let Question { vm, service, .. } = question;
        let from = self.here;
        if question.listening {
            let request = ListenRequest {
                from,
                principal,
                vm,
                service,
                backlog: 1,
            };
            self.fabric.explain_listen(&request, Audience::Operator)
        } else {
            let request = ConnectRequest {
                from,
                principal,
                vm,
                service,
            };
            self.fabric.explain_connect(&request, Audience::Operator)
        }
    }

    /// A host with its virtual machines as children.
    fn of_host(facts: &Facts, question: Question) -> Self {
        let mut vms = facts.vms.clone();
        // A machine that may exist but is not shown is assumed to run.
        if !question.vm.is_well_known() && facts.vm(question.vm).is_none() && facts.may_hide_vms() {
            vms.insert(0, hidden(question.vm));
        }
        let names = partition_names(&vms);
        let name = partition_name(facts.machine.name.as_deref(), "this-host", &names);
        let (mut fabric, here) = rooted(&name);
        let mut target = None;
        let mut registry = registry(facts);
        // The policies and names of other machines matter only for a wildcard listen.
        for (vm, name) in vms.iter().zip(names) {
            if vm.id == question.vm {
                target = Some(name.clone());
            }
            let of = policy::switch(&facts.policies, vm.id, question.service);
            let entry = registry.get(question.service).cloned();
            if let (Some(enabled), Some(mut entry)) = (of, entry) {
                entry.vm.entry(name.clone()).or_default().enabled = Some(enabled);
                // It replaces itself, so there is no conflict.
                let _ = registry.replace(entry);
            }
            // Fails for a machine beyond the limit or with a duplicate id: it is left out.
            let _ = fabric.add_partition(
                here,
                PartitionSpec {
                    kind: PartitionKind::Vm,
                    name,
                    vm_id: vm.id,
                    groups: Vec::new(),
                    state: vm.state.partition_state(),
                },
            );
        }
        let _ = fabric.set_registry(here, registry);
        Self {
            fabric,
            here,
            host: name,
            target,
        }
    }

    /// A virtual machine as the child of its host, of which only the name is known.
    fn of_guest(facts: &Facts, question: Question) -> Self {
        let guest = facts.machine.guest.clone().unwrap_or_default();
        let host = partition_name(guest.host.as_deref(), "its-host", &[]);
        let own = guest.name.as_deref().or(facts.machine.name.as_deref());
        let name = partition_name(own, "this-vm", std::slice::from_ref(&host));
        let (mut fabric, root) = rooted(&host);
        let id = guest.id.filter(|id| !id.is_well_known());
        let spec = PartitionSpec {
            kind: PartitionKind::Vm,
            name,
            vm_id: id.unwrap_or_else(|| VmId::of_container("this virtual machine")),
            groups: Vec::new(),
            state: PartitionState::Running,
        };
        let here = fabric.add_partition(root, spec).unwrap_or(root);
        // Its own registry is for its children. A wildcard listen also accepts from its host.
        if question.vm != VmId::WILDCARD {
            let _ = fabric.set_registry(here, registry(facts));
        }
        Self {
            fabric,
            here,
            host,
            target: None,
        }
    }
}

/// A fabric with only a root of this name.
fn rooted(name: &PartitionName) -> (Fabric, PartitionKey) {
    let root = RootSpec {
        kind: PartitionKind::Host,
        name: name.clone(),
        vm_id: VmId::of_container("this host"),
    };
    let fabric = Fabric::without_listeners(root, Limits::default());
    let key = fabric.root();
    (fabric, key)
}

/// The registry with the defaults of Windows, which has no access rules in the registry: every user
/// may listen for a registered service.
fn registry(facts: &Facts) -> Registry {
    let mut registry = facts.registry.clone();
    let mut defaults = Defaults::default();
    defaults.bind.users = Some(vec!["*".to_owned()]);
    registry.set_defaults(defaults);
    registry
}

/// A partition name derived from `text`, or else from `or`, that is not in `taken`.
fn partition_name(text: Option<&str>, or: &str, taken: &[PartitionName]) -> PartitionName {
    let wanted = text.and_then(base);
    let numbered = (1_u64..).map(|n| match n {
        1 => or.to_owned(),
        n => format!("{or}-{n}"),
    });
    let numbered = numbered.filter_map(|text| PartitionName::new(text).ok());
    let mut names = wanted.into_iter().chain(numbered);
    names
        .find(|name| !taken.contains(name))
        .expect("the numbers are unlimited")
}

fn hidden(id: VmId) -> Vm {
    Vm {
        name: String::new(),
        id,
        state: VmState::Unknown,
        kind: VmKind::HyperV,
    }
}
