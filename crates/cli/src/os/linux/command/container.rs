//! `hvsock container`: containers as partitions.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Subcommand};
use hvsock::Fix;
use hvsock_address::{PartitionName, PartitionRef, VmId};
use hvsock_client::ClientError;
use hvsock_control::{NewContainer, Partition, PartitionKind, PartitionState};
use serde::Serialize;

use super::guest;
use super::integration_args::IntegrationArgs;
use super::mounts::{Format, Mounts, or_invalid_option};
use super::oci_hooks::OciHooks;
use super::partition::{Grouped, Named, Partitions, Shown, facts};
use super::seccomp_profile::{self, Base};
use super::wait::Wait;
use crate::context::Context;
use crate::failure::Failure;
use crate::fix;
use crate::os::linux::format;
use crate::os::linux::output::{self, Json};
use crate::table::Columns;

/// Make containers partitions of their own
#[derive(Debug, Subcommand)]
pub enum Container {
    Add(Add),
    /// List containers
    List(Json),
    /// Print a container's GUID
    Id(Named),
    Show(Show),
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
    #[command(subcommand)]
    OciHooks(OciHooks),
}

/// Add a container and print what mounts its endpoint
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
    /// Remove it when the container that is bound to it has ended
    #[arg(long)]
    ephemeral: bool,
    /// Succeed if it exists with these settings
    #[arg(long)]
    if_absent: bool,
    /// Write no CDI device for it
    #[arg(long)]
    no_cdi: bool,
    /// Print the seccomp profile with which programs in it that do not know hvsock use AF_VSOCK and AF_HYPERV
    #[arg(long, conflicts_with = "json")]
    unmodified: bool,
    /// The container's seccomp profile without hvsock, or a config.json [default: podman's default profile]
    #[arg(long, value_name = "FILE", requires = "unmodified")]
    seccomp_base: Option<PathBuf>,
    /// Keep signals from ending calls that are being answered; the runtime must know how: crun from 1.6, runc from 1.5
    #[arg(long, requires = "unmodified")]
    wait_killable: bool,
    /// For whom the mount or the profile is
    #[arg(long, value_enum, default_value_t, conflicts_with = "json")]
    format: Format,
    #[command(flatten)]
    json: Json,
}

/// Show one container
#[derive(Debug, Args)]
pub struct Show {
    #[command(flatten)]
    shown: Shown,
    /// Print only what mounts its endpoint
    #[arg(long, group = "printed", conflicts_with = "json")]
    mount: bool,
    /// Print only the seccomp profile with which programs in it that do not know hvsock use AF_VSOCK and AF_HYPERV
    #[arg(long, group = "printed", conflicts_with = "json")]
    seccomp_profile: bool,
    /// The container's seccomp profile without hvsock, or a config.json [default: podman's default profile]
    #[arg(long, value_name = "FILE", requires = "seccomp_profile")]
    seccomp_base: Option<PathBuf>,
    /// Keep signals from ending calls that are being answered; the runtime must know how: crun from 1.6, runc from 1.5
    #[arg(long, requires = "seccomp_profile")]
    wait_killable: bool,
    /// For whom the mount or the profile is
    #[arg(long, value_enum, default_value_t, requires = "printed")]
    format: Format,
}

impl Container {
    pub fn run(self, context: &Context) -> Result<()> {
        let containers = Partitions {
            context,
            kind: PartitionKind::Container,
        };
        match self {
            Self::Add(add) if add.json.json => add.run(context),
            Self::Add(add) if add.unmodified => add.run(context),
            Self::Add(add) => with_option("add", add.format, add.run(context)),
            Self::List(json) => list(containers, json),
            Self::Id(named) => containers.id(&named),
            Self::Show(show) if show.seccomp_profile => show.print_profile(containers),
            Self::Show(show) if !show.mount => show.print_all(containers),
            Self::Show(show) => with_option("show", show.format, show.print_mount(containers)),
            Self::Wait(wait) => wait.run(containers),
            Self::Pause(named) => containers.set_state(&named, PartitionState::Paused),
            Self::Resume(named) => containers.set_state(&named, PartitionState::Running),
            Self::Groups(grouped) => containers.set_groups(grouped),
            Self::Remove(named) => containers.remove(&named),
            Self::Integration(args) => args.run(containers),
            Self::OciHooks(command) => command.run(context),
        }
    }
}

#[derive(Debug, Serialize)]
struct Everything {
    #[serde(flatten)]
    partition: Partition,
    #[serde(flatten)]
    mounts: Mounts,
}

/// The result of a command that prints what mounts an endpoint.
fn with_option(verb: &str, format: Format, result: Result<()>) -> Result<()> {
    match format {
        Format::Podman | Format::Docker => or_invalid_option(verb, result),
        _ => result,
    }
}

impl Add {
    fn run(&self, context: &Context) -> Result<()> {
        let read = || {
            Base::read(
                self.seccomp_base.as_deref(),
                self.format,
                self.wait_killable,
            )
        };
        // Before anything is added.
        let base = self.unmodified.then(read).transpose()?;
        let client = context.client()?;
        let added = client.add_container(&NewContainer {
            name: self.name.clone(),
            id: self.id,
            groups: self.groups.clone(),
            cdi: !self.no_cdi,
            if_absent: self.if_absent,
            ephemeral: self.ephemeral,
        });
        let partition = added.map_err(|error| self.with_help(context, error))?;
        let mounts = Mounts::of(&partition)?;
        if self.json.json {
            return output::json(&Everything { partition, mounts });
        }
        context.note(&format!(
            "`{}` is a partition with the id {}",
            partition.name, partition.id
        ));
        if let Some(base) = base {
            let profile = base.profile(&partition)?;
            seccomp_profile::note(context, &mounts, self.format);
            return seccomp_profile::print(&profile);
        }
        if let Format::Podman | Format::Docker = self.format {
            context.note("Start the container with this option of podman or docker:");
        }
        mounts.print(self.format)?;
        if let (Format::Podman | Format::Docker, Some(note)) = (self.format, mounts.device_note()) {
            context.note(&format!("Its CDI device as well: {note}"));
        }
        Ok(())
    }
}

impl Add {
    /// The error of adding the container, with the command that helps at this broker. If there is a container of
    /// this name, that is how to use it.
    fn with_help(&self, context: &Context, error: ClientError) -> anyhow::Error {
        if let ClientError::Refused { fix: Some(fix), .. } = &error {
            let help = context.help(&fix::help(&Fix::from(fix)));
            return Failure::new(error.to_string()).help(help).into();
        }
        let is_taken = matches!(
            &error,
            ClientError::Refused {
                status: 409,
                fix: None,
                ..
            }
        );
        let name = PartitionRef::Name(self.name.clone());
        let existing = || context.client().ok()?.partition(&name).ok();
        let is_container = |one: &Partition| one.kind == PartitionKind::Container;
        if !is_taken || !existing().as_ref().is_some_and(is_container) {
            return error.into();
        }
        let help = match self.if_absent {
            true => format!("hvsock container show {}", self.name),
            false => format!("hvsock container add {} --if-absent", self.name),
        };
        Failure::new(error.to_string())
            .help(context.command(&help))
            .into()
    }
}

impl Show {
    fn print_all(&self, containers: Partitions<'_>) -> Result<()> {
        show_all(containers, &self.shown)
    }

    fn print_profile(&self, containers: Partitions<'_>) -> Result<()> {
        let partition = self.find(containers)?;
        let base = Base::read(
            self.seccomp_base.as_deref(),
            self.format,
            self.wait_killable,
        )?;
        seccomp_profile::print(&base.profile(&partition)?)
    }

    fn print_mount(&self, containers: Partitions<'_>) -> Result<()> {
        Mounts::of(&self.find(containers)?)?.print(self.format)
    }

    /// The container, if it is one of this machine.
    fn find(&self, containers: Partitions<'_>) -> Result<Partition> {
        let partition = containers.find(&self.shown.named)?;
        if let Some((vm, container)) = partition.name.parts() {
            let text = format!(
                "{} is in the virtual machine {vm}, and so is its mount",
                partition.name
            );
            let help = format!("in {vm}: hvsock container show --mount {container}");
            return Err(Failure::new(text).help(help).into());
        }
        Ok(partition)
    }
}

fn list(containers: Partitions<'_>, json: Json) -> Result<()> {
    let containers = containers.all()?;
    if json.json {
        return output::json(&containers);
    }
    let headings = [
        "name", "id", "cid", "state", "guest", "groups", "listen", "conn",
    ];
    let empty = "no containers; add one with `hvsock container add NAME`";
    let mut table = Columns::new(&headings, empty).right(&[2, 6, 7]).whole(1);
    for container in containers {
        table.row([
            container.name.to_string(),
            container.id.to_string(),
            cid(&container).unwrap_or_default(),
            format::detailed_state(&container).to_owned(),
            guest::word(&container).unwrap_or_default().to_owned(),
            container.groups.join(", "),
            container.listeners.to_string(),
            container.connections.to_string(),
        ]);
    }
    table.print()
}

fn show_all(containers: Partitions<'_>, shown: &Shown) -> Result<()> {
    let partition = containers.find(&shown.named)?;
    if let Some(vm) = partition.name.vm() {
        if shown.json.json {
            return output::json(&partition);
        }
        let mut more = vec![("in", format!("the virtual machine {vm}"))];
        more.extend(cid(&partition).map(|cid| ("CID", cid)));
        more.extend(guest::facts(&partition));
        return facts(&partition, &more).print();
    }
    let mounts = Mounts::of(&partition)?;
    if shown.json.json {
        return output::json(&Everything { partition, mounts });
    }
    let mut more: Vec<_> = cid(&partition)
        .map(|cid| ("CID", cid))
        .into_iter()
        .collect();
    more.extend(runtime_facts(&partition));
    more.extend(guest::facts(&partition));
    if let Some(device) = mounts.device() {
        more.push(("device", device.device.clone()));
        more.push(("device file", device.file.display().to_string()));
    }
    let option = mounts.option();
    more.push(("mount", option.unwrap_or_else(|error| error.to_string())));
    let problems = partition.problems.iter();
    more.extend(problems.map(|problem| ("problem", problem.clone())));
    facts(&partition, &more).print()
}

/// The context id by which programs that know only `AF_VSOCK` name a container.
fn cid(container: &Partition) -> Option<String> {
    Some(container.cid?.to_string())
}

/// What a container's runtime has said about it.
fn runtime_facts(partition: &Partition) -> Vec<(&'static str, String)> {
    let mut facts = Vec::new();
    let Some(container) = &partition.container else {
        return facts;
    };
    if let Some(id) = &container.oci_id {
        let process = container.pid.map(|pid| format!(", process {pid}"));
        facts.push(("container", format!("{id}{}", process.unwrap_or_default())));
    }
    if container.ephemeral {
        facts.push((
            "ephemeral",
            "removed when its container has ended".to_owned(),
        ));
    }
    facts
}
