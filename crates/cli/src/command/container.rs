//! `hvsock container`: containers as partitions.

use anyhow::{Context as _, Result};
use clap::{Args, Subcommand};
use hvsock_address::{PartitionName, PartitionRef, VmId};
use hvsock_broker::model::{NewContainer, Partition, PartitionKind, PartitionState};
use serde::Serialize;

use crate::context::Context;
use crate::failure::Failure;
use crate::output::{self, Json};
use crate::table::Columns;
use crate::words;

/// Where a container finds its endpoint.
const INSIDE: &str = "/run/hvsock";

/// Make containers partitions of their own
#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  podman run $(hvsock -q container add web | head -n 1) IMAGE
  hvsock container add db --group backend
  hvsock connect web 'HV Socket Demo'")]
pub enum Container {
    Add(Add),
    List(List),
    Id(Id),
    Show(Show),
    Pause(Pause),
    Resume(Resume),
    Groups(Groups),
    Remove(Remove),
}

/// Add a container; prints the --mount option for podman or docker, then the OCI mounts entry
#[derive(Debug, Args)]
pub struct Add {
    /// The container's name
    name: PartitionName,
    /// Its GUID; derived from the name, as Windows does, if left out
    #[arg(long, value_name = "GUID")]
    id: Option<VmId>,
    /// A sibling group: containers of one group reach each other
    #[arg(long = "group", value_name = "GROUP")]
    groups: Vec<String>,
    #[command(flatten)]
    json: Json,
}

/// List containers
#[derive(Debug, Args)]
pub struct List {
    #[command(flatten)]
    json: Json,
}

/// Print a container's GUID
#[derive(Debug, Args)]
pub struct Id {
    /// The container's name
    container: PartitionRef,
}

/// Show one container
#[derive(Debug, Args)]
pub struct Show {
    /// The container's name or GUID
    container: PartitionRef,
    #[command(flatten)]
    json: Json,
}

/// Let a container stand still; connections are cut unless they asked to be kept
#[derive(Debug, Args)]
pub struct Pause {
    /// The container's name or GUID
    container: PartitionRef,
}

/// Let a paused container go on
#[derive(Debug, Args)]
pub struct Resume {
    /// The container's name or GUID
    container: PartitionRef,
}

/// Put a container into sibling groups, in place of those that it is in
#[derive(Debug, Args)]
pub struct Groups {
    /// The container's name or GUID
    container: PartitionRef,
    /// The groups; none at all takes it out of every one
    groups: Vec<String>,
}

/// Remove a container and cut its connections
#[derive(Debug, Args)]
pub struct Remove {
    /// The container's name or GUID
    container: PartitionRef,
}

impl Container {
    pub fn run(self, context: &Context) -> Result<()> {
        match self {
            Self::Add(add) => add.run(context),
            Self::List(list) => list.run(context),
            Self::Id(id) => output::line(context.client()?.partition(&id.container)?.id),
            Self::Show(show) => show.run(context),
            Self::Pause(pause) => change(context, &pause.container, PartitionState::Paused),
            Self::Resume(resume) => change(context, &resume.container, PartitionState::Running),
            Self::Groups(groups) => groups.run(context),
            Self::Remove(remove) => remove.run(context),
        }
    }
}

/// How a container gets its endpoint.
#[derive(Debug, Serialize)]
struct Mounts {
    /// The option for podman and docker.
    mount: String,
    /// The entry for `mounts` of an OCI runtime's `config.json`.
    oci: OciMount,
}

#[derive(Debug, Serialize)]
struct OciMount {
    destination: &'static str,
    #[serde(rename = "type")]
    kind: &'static str,
    source: String,
    options: [&'static str; 4],
}

impl Mounts {
    fn of(container: &Partition) -> Result<Self> {
        if container.kind != PartitionKind::Container {
            let kind = words::kind(container.kind);
            return Err(Failure::new(format!("{} is a {kind}", container.name)).into());
        }
        let endpoint = container.endpoint.as_ref();
        let folder = endpoint.and_then(|endpoint| endpoint.parent());
        let folder = folder.context("the broker made no endpoint for this container")?;
        let source = folder
            .to_str()
            .context("the endpoint's folder is not UTF-8")?;
        Ok(Self {
            mount: format!("--mount type=bind,src={source},dst={INSIDE},readonly"),
            oci: OciMount {
                destination: INSIDE,
                kind: "bind",
                source: source.to_owned(),
                // Connecting to a socket needs no write access to where it lies.
                options: ["bind", "ro", "nosuid", "nodev"],
            },
        })
    }
}

#[derive(Debug, Serialize)]
struct Shown {
    #[serde(flatten)]
    partition: Partition,
    #[serde(flatten)]
    mounts: Mounts,
}

impl Add {
    fn run(self, context: &Context) -> Result<()> {
        let partition = context.client()?.add_container(&NewContainer {
            name: self.name,
            id: self.id,
            groups: self.groups,
        })?;
        let mounts = Mounts::of(&partition)?;
        if self.json.json {
            return output::json(&Shown { partition, mounts });
        }
        context.note(&format!(
            "`{}` is a partition, with the id {}\nStart it with the first line (podman, docker) or \
             the second (config.json):",
            partition.name, partition.id
        ));
        output::line(&mounts.mount)?;
        output::json_line(&mounts.oci)
    }
}

impl List {
    fn run(self, context: &Context) -> Result<()> {
        let mut containers = context.client()?.partitions()?;
        containers.retain(|partition| partition.kind == PartitionKind::Container);
        if self.json.json {
            return output::json(&containers);
        }
        let headings = ["name", "id", "state", "groups", "listen", "conn"];
        let empty = "no containers; `hvsock container add NAME` makes one a partition";
        let mut table = Columns::new(&headings, empty).right(&[4, 5]).whole(1);
        for container in containers {
            table.row([
                container.name.to_string(),
                container.id.to_string(),
                words::state(container.state).to_owned(),
                container.groups.join(", "),
                container.listeners.to_string(),
                container.connections.to_string(),
            ]);
        }
        table.print()
    }
}

impl Show {
    fn run(self, context: &Context) -> Result<()> {
        let partition = context.client()?.partition(&self.container)?;
        let mounts = Mounts::of(&partition)?;
        if self.json.json {
            return output::json(&Shown { partition, mounts });
        }
        let groups = match partition.groups.join(", ") {
            groups if groups.is_empty() => "none".to_owned(),
            groups => groups,
        };
        output::text(&format!(
            "name          {}\nid            {}\nstate         {}\ngroups        {}\n\
             in use        {}, {}\nmount         {}\n",
            partition.name,
            partition.id,
            words::state(partition.state),
            crate::failure::printable(&groups),
            words::count(partition.listeners, "listener"),
            words::count(partition.connections, "connection"),
            mounts.mount,
        ))
    }
}

fn change(context: &Context, container: &PartitionRef, state: PartitionState) -> Result<()> {
    let partition = context.client()?.set_state(container, state)?;
    let state = words::state(partition.state);
    context.note(&format!("`{}` is {state}", partition.name));
    Ok(())
}

impl Groups {
    fn run(self, context: &Context) -> Result<()> {
        let partition = context.client()?.set_groups(&self.container, self.groups)?;
        let groups = match partition.groups.as_slice() {
            [] => "no group".to_owned(),
            groups => groups.join(", "),
        };
        context.note(&format!("`{}` is in {groups}", partition.name));
        Ok(())
    }
}

impl Remove {
    fn run(self, context: &Context) -> Result<()> {
        let gone = context.client()?.remove_partition(&self.container)?;
        context.note(&format!("`{}` is no longer a partition", gone.name));
        Ok(())
    }
}
