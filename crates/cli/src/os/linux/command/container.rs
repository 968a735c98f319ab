//! `hvsock container`: containers as partitions.

use anyhow::{Context as _, Result};
use clap::{Args, Subcommand};
use hvsock_address::{PartitionName, VmId};
use hvsock_control::{NewContainer, Partition, PartitionKind, PartitionState};
use serde::Serialize;

use super::guest;
use super::partition::{Grouped, Named, Partitions, Shown, facts};
use super::switches::Switches;
use super::wait::Wait;
use crate::context::Context;
use crate::os::linux::output::{self, Json};
use crate::os::linux::words;
use crate::table::Columns;

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
    /// List containers
    List(Json),
    /// Print a container's GUID
    Id(Named),
    /// Show one container
    Show(Shown),
    /// Wait until the agent in a container is heard, or for something else
    Wait(Wait),
    /// Let a container stand still; connections are cut unless they asked to be kept
    Pause(Named),
    /// Let a paused container go on
    Resume(Named),
    /// Put a container into sibling groups, in place of those that it is in
    Groups(Grouped),
    /// Remove a container and cut its connections
    Remove(Named),
    Integration(Switches),
}

/// Add a container; prints the --mount option for podman or docker, then the OCI mounts entry
#[derive(Debug, Args)]
pub struct Add {
    /// The container's name
    name: PartitionName,
    /// Its GUID; derived from the name, as Windows does, if left out
    #[arg(long, value_name = "GUID")]
    id: Option<VmId>,
    /// A sibling group: partitions of one group reach each other
    #[arg(long = "group", value_name = "GROUP")]
    groups: Vec<String>,
    #[command(flatten)]
    json: Json,
}

impl Container {
    pub fn run(self, context: &Context) -> Result<()> {
        let containers = Partitions {
            context,
            kind: PartitionKind::Container,
        };
        match self {
            Self::Add(add) => add.run(context),
            Self::List(json) => list(containers, json),
            Self::Id(named) => containers.id(&named),
            Self::Show(shown) => show(containers, &shown),
            Self::Wait(wait) => wait.run(containers),
            Self::Pause(named) => containers.change(&named, PartitionState::Paused),
            Self::Resume(named) => containers.change(&named, PartitionState::Running),
            Self::Groups(grouped) => containers.group(grouped),
            Self::Remove(named) => containers.remove(&named),
            Self::Integration(switches) => switches.run(containers),
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
struct Everything {
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
            return output::json(&Everything { partition, mounts });
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

fn list(containers: Partitions<'_>, json: Json) -> Result<()> {
    let containers = containers.all()?;
    if json.json {
        return output::json(&containers);
    }
    let headings = ["name", "id", "state", "guest", "groups", "listen", "conn"];
    let empty = "no containers; `hvsock container add NAME` makes one a partition";
    let mut table = Columns::new(&headings, empty).right(&[5, 6]).whole(1);
    for container in containers {
        table.row([
            container.name.to_string(),
            container.id.to_string(),
            words::standing(&container).to_owned(),
            guest::word(&container).unwrap_or_default().to_owned(),
            container.groups.join(", "),
            container.listeners.to_string(),
            container.connections.to_string(),
        ]);
    }
    table.print()
}

fn show(containers: Partitions<'_>, shown: &Shown) -> Result<()> {
    let partition = containers.find(&shown.named)?;
    let mounts = Mounts::of(&partition)?;
    if shown.json.json {
        return output::json(&Everything { partition, mounts });
    }
    let mut more = guest::facts(&partition);
    more.push(("mount", mounts.mount));
    output::text(&facts(&partition, &more))
}
