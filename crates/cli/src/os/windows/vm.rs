//! `hvsock vm`: shows the virtual machines of Hyper-V and of the host compute service.

use anyhow::Result;
use clap::{Args, Subcommand};
use hvsock_address::{PartitionName, VmId};
use hvsock_hyperv::{Facts, Switch, partition_names};
use serde::Serialize;

use super::{local, missing};
use crate::context::Context;
use crate::failure::Failure;
use crate::output::{self, Json, Lines};
use crate::table::Columns;

/// Show virtual machines
#[derive(Debug, Subcommand)]
pub enum Vm {
    /// List virtual machines
    List(Json),
    Id(Named),
    Show(Show),
}

/// Print a virtual machine's GUID
#[derive(Debug, Args)]
pub struct Named {
    /// Its name or GUID
    #[arg(value_name = "NAME")]
    partition: String,
}

/// Show one virtual machine and its policies for services
#[derive(Debug, Args)]
pub struct Show {
    #[command(flatten)]
    named: Named,
    #[command(flatten)]
    json: Json,
}

/// A virtual machine, as `--json` prints it.
#[derive(Debug, Serialize)]
pub struct Shown {
    pub name: String,
    pub partition: PartitionName,
    pub id: VmId,
    pub kind: String,
    pub state: String,
}

impl Shown {
    /// All virtual machines, sorted by name.
    pub fn all(vms: Vec<hvsock_hyperv::Vm>) -> Vec<Self> {
        let partitions = partition_names(&vms);
        let shown = vms.into_iter().zip(partitions);
        let mut shown: Vec<_> = shown
            .map(|(vm, partition)| Self {
                name: vm.name,
                partition,
                id: vm.id,
                kind: vm.kind.to_string(),
                state: vm.state.to_string(),
            })
            .collect();
        shown.sort_by_cached_key(|vm| (vm.name.to_lowercase(), vm.id));
        shown
    }
}

impl Vm {
    pub fn run(self, context: &Context) -> Result<()> {
        match self {
            Self::List(json) => list(context, json),
            Self::Id(named) => output::line(local::vm(&named.partition)?.id),
            Self::Show(show) => show.run(),
        }
    }
}

fn list(context: &Context, json: Json) -> Result<()> {
    let (vms, hidden) = hvsock_hyperv::virtual_machines();
    if let ([], [first, ..]) = (&vms[..], &hidden[..]) {
        return Err(Failure::new(missing::text(first)).into());
    }
    for hidden in hidden {
        context.note(&missing::text(&hidden));
    }
    let vms = Shown::all(vms);
    if json.json {
        return output::json(&vms);
    }
    let headings = ["name", "partition", "id", "kind", "state"];
    let mut table = Columns::new(&headings, "no virtual machines").whole(2);
    for vm in vms {
        table.row([
            vm.name,
            vm.partition.to_string(),
            vm.id.to_string(),
            vm.kind,
            vm.state,
        ]);
    }
    table.print()
}

/// One virtual machine, as `show --json` prints it.
#[derive(Debug, Serialize)]
struct Everything {
    #[serde(flatten)]
    vm: Shown,
    policies: Vec<Policy>,
}

/// Hyper-V's policy for one service, or for all services without one of their own.
#[derive(Debug, Serialize)]
struct Policy {
    service: Option<String>,
    switch: &'static str,
}

impl Show {
    fn run(self) -> Result<()> {
        let facts = hvsock_hyperv::facts();
        let id = local::find(&facts.vms, &facts.missing, &self.named.partition)?.id;
        let policies = policies(&facts, id);
        let shown = Shown::all(facts.vms).into_iter().find(|vm| vm.id == id);
        let Some(vm) = shown else {
            return Err(Failure::new("the virtual machine no longer exists").into());
        };
        if self.json.json {
            return output::json(&Everything { vm, policies });
        }
        let mut lines = vec![
            ("name", vm.name),
            ("partition", vm.partition.to_string()),
            ("id", vm.id.to_string()),
            ("kind", vm.kind),
            ("state", vm.state),
        ];
        lines.extend(policies.into_iter().map(|policy| {
            let service = policy
                .service
                .unwrap_or_else(|| "other services".to_owned());
            ("policy", format!("{service}: {}", policy.switch))
        }));
        let mut shown = Lines::default();
        for (label, fact) in lines {
            shown.fact(label, fact);
        }
        shown.print()
    }
}

fn policies(facts: &Facts, vm: VmId) -> Vec<Policy> {
    let of_vm = facts.policies.iter().filter(|policy| policy.vm == vm);
    let shown = of_vm.map(|policy| Policy {
        service: policy.service.map(|id| match facts.registry.get(id) {
            Some(registration) => registration.name.to_string(),
            None => id.to_string(),
        }),
        switch: match policy.switch {
            Switch::Enabled => "enabled",
            Switch::Disabled => "disabled",
            Switch::Deferred => "by default",
        },
    });
    shown.collect()
}

#[cfg(test)]
mod tests {
    use hvsock_hyperv::{Vm, VmKind, VmState};

    use super::*;

    #[test]
    fn machines_are_shown_with_their_names_in_hyper_v_and_as_partitions() {
        let vm = |name: &str, kind| Vm {
            name: name.to_owned(),
            id: VmId::random(),
            state: VmState::Running,
            kind,
        };
        let shown = Shown::all(vec![
            vm("web", VmKind::HyperV),
            vm("Windows 11 (dev)", VmKind::HyperV),
            vm("WSL", VmKind::Wsl),
        ]);
        let shown: Vec<_> = shown
            .iter()
            .map(|vm| (vm.name.as_str(), vm.partition.as_str(), vm.kind.as_str()))
            .collect();
        assert_eq!(
            shown,
            [
                ("web", "web", "hyper-v"),
                ("Windows 11 (dev)", "Windows-11-dev", "hyper-v"),
                ("WSL", "WSL", "wsl"),
            ]
        );
    }
}
