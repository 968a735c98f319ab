//! The facts as a tree of partitions, which the fabric judges.

use hvsock_address::{PartitionName, VmId};
use hvsock_fabric::{
    Audience, ConnectRequest, Explanation, Fabric, Limits, ListenRequest, PartitionKey,
    PartitionKind, PartitionSpec, PartitionState, RootSpec,
};
use hvsock_registry::{Defaults, Principal, Registry};

use crate::facts::Question;
use crate::name::{base, partition_names};
use crate::{Facts, Vm, VmKind, VmState, policy};

/// A fabric of this machine, and where in it the asker is.
pub(crate) struct View {
    fabric: Fabric,
    here: PartitionKey,
    /// The root's name.
    pub(crate) host: PartitionName,
    /// The name of the virtual machine that is asked about.
    pub(crate) asked: Option<PartitionName>,
}

impl View {
    pub(crate) fn new(facts: &Facts, question: Question) -> Self {
        if facts.asks_host(question) {
            Self::of_guest(facts, question)
        } else {
            Self::of_host(facts, question)
        }
    }

    /// The judge's answer, for somebody with the rights that every user has.
    pub(crate) fn judge(&self, question: Question) -> Explanation {
        // Neither root nor a broker's user: Windows has no rule about either.
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

    /// A machine with its virtual machines under it.
    fn of_host(facts: &Facts, question: Question) -> Self {
        let mut vms = facts.vms.clone();
        // One that is not shown and yet may be there is taken for one that runs.
        if !question.vm.is_well_known() && facts.vm(question.vm).is_none() && facts.may_hide_vms() {
            vms.insert(0, hidden(question.vm));
        }
        let names = partition_names(&vms);
        let name = called(facts.machine.name.as_deref(), "this-host", &names);
        let (mut fabric, here) = rooted(&name);
        let mut asked = None;
        let mut registry = registry(facts);
        // Another's policies and names change nothing about a question, but a listen for all.
        for (vm, name) in vms.iter().zip(names) {
            if vm.id == question.vm {
                asked = Some(name.clone());
            }
            let of = policy::switch(&facts.policies, vm.id, question.service);
            let entry = registry.get(question.service).cloned();
            if let (Some(enabled), Some(mut entry)) = (of, entry) {
                entry.vm.entry(name.clone()).or_default().enabled = Some(enabled);
                // It is there already, so nothing clashes.
                let _ = registry.replace(entry);
            }
            // One too many, or one whose id is another's too, is not asked about.
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
            asked,
        }
    }

    /// A virtual machine under a host of which no more than its name is known.
    fn of_guest(facts: &Facts, question: Question) -> Self {
        let guest = facts.machine.guest.clone().unwrap_or_default();
        let host = called(guest.host.as_deref(), "its-host", &[]);
        let own = guest.name.as_deref().or(facts.machine.name.as_deref());
        let name = called(own, "this-vm", std::slice::from_ref(&host));
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
        // Its own registry is for its children; who listens for all waits for its host, too.
        if question.vm != VmId::WILDCARD {
            let _ = fabric.set_registry(here, registry(facts));
        }
        Self {
            fabric,
            here,
            host,
            asked: None,
        }
    }
}

/// A fabric with nothing but a root of this name.
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

/// The registry, with what Windows has in place of rules: who is registered may be offered by
/// everybody, as far as the registry goes.
fn registry(facts: &Facts) -> Registry {
    let mut registry = facts.registry.clone();
    let mut defaults = Defaults::default();
    defaults.bind.users = Some(vec!["*".to_owned()]);
    registry.set_defaults(defaults);
    registry
}

/// A partition's name for this text that is none of `taken`.
fn called(text: Option<&str>, or: &str, taken: &[PartitionName]) -> PartitionName {
    let wanted = text.and_then(base);
    let numbered = (1_u64..).map(|n| match n {
        1 => or.to_owned(),
        n => format!("{or}-{n}"),
    });
    let numbered = numbered.filter_map(|text| PartitionName::new(text).ok());
    let mut names = wanted.into_iter().chain(numbered);
    names
        .find(|name| !taken.contains(name))
        .expect("numbers do not end")
}

fn hidden(id: VmId) -> Vm {
    Vm {
        name: String::new(),
        id,
        state: VmState::Unknown,
        kind: VmKind::HyperV,
    }
}
