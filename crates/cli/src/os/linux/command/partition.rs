//! Shared code of `hvsock vm` and `hvsock container`.

use anyhow::Result;
use clap::Args;
use hvsock_address::PartitionRef;
use hvsock_control::{Partition, PartitionKind, PartitionState};

use crate::context::Context;
use crate::failure::Failure;
use crate::os::linux::format;
use crate::output::{self, Json, Lines};

/// A partition of the command's kind.
#[derive(Debug, Args)]
pub struct Named {
    /// Its name or GUID
    #[arg(value_name = "NAME")]
    partition: PartitionRef,
}

/// A partition and its new groups.
#[derive(Debug, Args)]
pub struct Grouped {
    #[command(flatten)]
    named: Named,
    /// The groups; none removes it from all groups
    groups: Vec<String>,
}

/// A partition to show.
#[derive(Debug, Args)]
pub struct Shown {
    #[command(flatten)]
    pub named: Named,
    #[command(flatten)]
    pub json: Json,
}

/// The partitions of one kind at one broker.
#[derive(Clone, Copy, Debug)]
pub struct Partitions<'a> {
    pub context: &'a Context,
    pub kind: PartitionKind,
}

impl Partitions<'_> {
    /// All partitions of this kind, sorted by name.
    pub fn all(self) -> Result<Vec<Partition>> {
        let mut all = self.context.client()?.partitions()?;
        all.retain(|partition| partition.kind == self.kind);
        Ok(all)
    }

    /// The named partition.
    ///
    /// # Errors
    ///
    /// Fails if it does not exist or is of another kind.
    pub fn find(self, named: &Named) -> Result<Partition> {
        let found = self.context.client()?.partition(&named.partition)?;
        if found.kind == self.kind {
            return Ok(found);
        }
        let (name, kind) = (&found.name, format::kind(found.kind));
        let failure = Failure::new(format!("{name} is a {kind}"));
        let other = match found.kind {
            PartitionKind::Host => return Err(failure.into()),
            PartitionKind::Vm | PartitionKind::Container => format!("hvsock {kind} show {name}"),
        };
        Err(failure.help(self.context.command(&other)).into())
    }

    /// Prints the GUID of a partition.
    pub fn id(self, named: &Named) -> Result<()> {
        output::line(self.find(named)?.id)
    }

    /// Pauses or resumes a partition.
    pub fn set_state(self, named: &Named, state: PartitionState) -> Result<()> {
        let found = self.find(named)?;
        let partition = self.context.client()?.set_state(&found.id.into(), state)?;
        let state = match partition.state {
            // Nobody says whether it runs.
            PartitionState::Unknown => "resumed",
            _ => format::detailed_state(&partition),
        };
        self.context
            .note(&format!("`{}` is {state}", partition.name));
        Ok(())
    }

    /// Replaces the groups of a partition.
    pub fn set_groups(self, grouped: Grouped) -> Result<()> {
        let found = self.find(&grouped.named)?;
        let client = self.context.client()?;
        let partition = client.set_groups(&found.id.into(), grouped.groups)?;
        let groups = match partition.groups.as_slice() {
            [] => "no group".to_owned(),
            groups => groups.join(", "),
        };
        self.context
            .note(&format!("`{}` is in {groups}", partition.name));
        Ok(())
    }

    /// Removes a partition.
    pub fn remove(self, named: &Named) -> Result<()> {
        let found = self.find(named)?;
        let gone = self.context.client()?.remove_partition(&found.id.into())?;
        self.context.note(&format!("`{}` is removed", gone.name));
        Ok(())
    }
}

/// The fields of every partition as labelled lines, followed by `more`.
pub fn facts(partition: &Partition, more: &[(&str, String)]) -> Lines {
    let groups = match partition.groups.join(", ") {
        groups if groups.is_empty() => "none".to_owned(),
        groups => groups,
    };
    let listeners = format::count(partition.listeners, "listener");
    let connections = format::count(partition.connections, "connection");
    let first = [
        ("name", partition.name.to_string()),
        ("id", partition.id.to_string()),
        ("state", format::detailed_state(partition).to_owned()),
        ("groups", groups),
        ("in use", format!("{listeners}, {connections}")),
    ];
    let mut lines = Lines::default();
    for (label, fact) in first.iter().chain(more) {
        lines.fact(label, fact);
    }
    lines
}
