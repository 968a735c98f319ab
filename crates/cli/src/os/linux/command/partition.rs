//! What `hvsock vm` and `hvsock container` have in common.

use anyhow::Result;
use clap::Args;
use hvsock_address::PartitionRef;
use hvsock_control::{Partition, PartitionKind, PartitionState};

use crate::context::Context;
use crate::failure::Failure;
use crate::os::linux::words;
use crate::output::{self, Json};

/// A partition of the kind that the command is about.
#[derive(Debug, Args)]
pub struct Named {
    /// Its name or GUID
    #[arg(value_name = "NAME")]
    partition: PartitionRef,
}

/// A partition to put into groups.
#[derive(Debug, Args)]
pub struct Grouped {
    #[command(flatten)]
    named: Named,
    /// The groups; none at all takes it out of every one
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

/// The partitions of one kind, with those of the broker behind `context`.
#[derive(Clone, Copy, Debug)]
pub struct Partitions<'a> {
    pub context: &'a Context,
    pub kind: PartitionKind,
}

impl Partitions<'_> {
    /// All of them, by name.
    pub fn all(self) -> Result<Vec<Partition>> {
        let mut all = self.context.client()?.partitions()?;
        all.retain(|partition| partition.kind == self.kind);
        Ok(all)
    }

    /// The one that is meant, if it is of this kind.
    pub fn find(self, named: &Named) -> Result<Partition> {
        let found = self.context.client()?.partition(&named.partition)?;
        if found.kind == self.kind {
            return Ok(found);
        }
        let (name, kind) = (&found.name, words::kind(found.kind));
        let failure = Failure::new(format!("{name} is a {kind}"));
        let other = match found.kind {
            PartitionKind::Host => return Err(failure.into()),
            PartitionKind::Vm | PartitionKind::Container => format!("hvsock {kind} show {name}"),
        };
        Err(failure.help(self.context.command(&other)).into())
    }

    /// Prints its GUID.
    pub fn id(self, named: &Named) -> Result<()> {
        output::line(self.find(named)?.id)
    }

    /// Pauses it, or lets it go on.
    pub fn change(self, named: &Named, state: PartitionState) -> Result<()> {
        let found = self.find(named)?;
        let partition = self.context.client()?.set_state(&found.id.into(), state)?;
        let standing = words::standing(&partition);
        self.context
            .note(&format!("`{}` is {standing}", partition.name));
        Ok(())
    }

    /// Puts it into groups.
    pub fn group(self, grouped: Grouped) -> Result<()> {
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

    /// Removes it.
    pub fn remove(self, named: &Named) -> Result<()> {
        let found = self.find(named)?;
        let gone = self.context.client()?.remove_partition(&found.id.into())?;
        self.context
            .note(&format!("`{}` is no longer a partition", gone.name));
        Ok(())
    }
}

/// What every partition has, as labelled lines, with `more` between its state and its use.
pub fn facts(partition: &Partition, more: &[(&str, String)]) -> String {
    let groups = match partition.groups.join(", ") {
        groups if groups.is_empty() => "none".to_owned(),
        groups => groups,
    };
    let listeners = words::count(partition.listeners, "listener");
    let connections = words::count(partition.connections, "connection");
    let first = [
        ("name", partition.name.to_string()),
        ("id", partition.id.to_string()),
        ("state", words::standing(partition).to_owned()),
        ("groups", groups),
        ("in use", format!("{listeners}, {connections}")),
    ];
    let all = first.iter().chain(more);
    all.map(|(label, fact)| format!("{label:<14}{}\n", crate::failure::printable(fact)))
        .collect()
}
