//! `hvsock container`: containers as partitions.

use anyhow::{Context as _, Result};
use clap::{Args, Subcommand};
use hvsock_address::{PartitionName, VmId};
use hvsock_control::{NewContainer, Partition, PartitionKind, PartitionState};
use serde::Serialize;

use super::guest;
use super::integration_args::IntegrationArgs;
use super::partition::{Grouped, Named, Partitions, Shown, facts};
use super::wait::Wait;
use crate::context::Context;
use crate::os::linux::format;
use crate::os::linux::output::{self, Json};
use crate::table::Columns;

/// The folder of the endpoint in a container.
const INSIDE: &str = "/run/hvsock";

/// Make containers partitions of their own
#[derive(Debug, Subcommand)]
pub enum Container {
    Add(Add),
    /// List containers
    List(Json),
    /// Print a container's GUID
    Id(Named),
    /// Show one container
    Show(Shown),
    /// Wait until a container is ready, or for another state
    Wait(Wait),
    /// Pause the hvsock traffic of a container
    Pause(Named),
    /// Resume the hvsock traffic of a container
    Resume(Named),
    /// Replace the sibling groups of a container
    Groups(Grouped),
    /// Remove a container and close its connections
    Remove(Named),
    Integration(IntegrationArgs),
}

/// Add a container and print its endpoint's mount
#[derive(Debug, Args)]
pub struct Add {
    /// The container's name
    name: PartitionName,
    /// Its GUID [default: derived from the name, as on Windows]
    #[arg(long, value_name = "GUID")]
    id: Option<VmId>,
    /// Add it to this sibling group; may be repeated
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
            Self::Pause(named) => containers.set_state(&named, PartitionState::Paused),
            Self::Resume(named) => containers.set_state(&named, PartitionState::Running),
            Self::Groups(grouped) => containers.set_groups(grouped),
            Self::Remove(named) => containers.remove(&named),
            Self::Integration(args) => args.run(containers),
        }
    }
}

/// How to mount the endpoint into a container.
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
        let folder = folder.context("the broker has no endpoint for this container")?;
        let source = folder
            .to_str()
            .context("the endpoint's folder is not UTF-8")?;
        Ok(Self {
            mount: format!("--mount type=bind,src={source},dst={INSIDE},readonly"),
            oci: OciMount {
                destination: INSIDE,
                kind: "bind",
                source: source.to_owned(),
                // A process can connect to a socket in a read-only mount.
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
            "`{}` is a partition with the id {}",
            partition.name, partition.id
        ));
        context.note(
            "Start the container with the first line (podman, docker) or the second (config.json):",
        );
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
    let empty = "no containers; add one with `hvsock container add NAME`";
    let mut table = Columns::new(&headings, empty).right(&[5, 6]).whole(1);
    for container in containers {
        table.row([
            container.name.to_string(),
            container.id.to_string(),
            format::detailed_state(&container).to_owned(),
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
    facts(&partition, &more).print()
}
