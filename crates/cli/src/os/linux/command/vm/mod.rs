//! `hvsock vm`: virtual machines as partitions.

mod device;
mod freeze;
mod shutdown;

use std::ops::RangeInclusive;

use anyhow::{Context as _, Result};
use clap::{Args, Subcommand, value_parser};
use hvsock_address::{PartitionName, VmId};
use hvsock_control::{NewVm, Partition, PartitionKind, PartitionState};
use serde::Serialize;

use super::guest;
use super::partition::{Grouped, Named, Partitions, facts};
use super::switches::Switches;
use super::time::Time;
use super::wait::Wait;
use crate::context::Context;
use crate::os::linux::words;
use crate::output::{self, Json};
use crate::table::Columns;
use device::{Device, Memory};
use shutdown::Shutdown;

/// The context ids that a guest can have; those below are the host's and its own.
const CIDS: RangeInclusive<i64> = 3..=u32::MAX as i64 - 1;

/// Make virtual machines partitions of their own
#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  hvsock vm add web --cid 42
  qemu-system-x86_64 $(hvsock vm show web --memory 2G) ...
  sudo hvsock vm add db --group backend --user libvirt-qemu --libvirt
  hvsock connect web 'HV Socket Demo'")]
pub enum Vm {
    Add(Add),
    /// List virtual machines
    List(Json),
    /// Print a virtual machine's GUID
    Id(Named),
    Show(Show),
    /// Wait until a virtual machine's guest has started, or for something else
    Wait(Wait),
    Shutdown(Shutdown),
    /// Show how a guest's clock stands to this machine's
    Time(Time),
    /// Let a virtual machine stand still; connections are cut unless they asked to be kept
    Pause(Named),
    /// Let a paused virtual machine go on
    Resume(Named),
    /// Put a virtual machine into sibling groups, in place of those that it is in
    Groups(Grouped),
    /// Remove a virtual machine and cut its connections
    Remove(Named),
    Integration(Switches),
    Freeze(freeze::Freeze),
    Thaw(freeze::Thaw),
}

/// Add a virtual machine; prints what to add to QEMU's command line
#[derive(Debug, Args)]
pub struct Add {
    /// The virtual machine's name
    name: PartitionName,
    /// Its context id, by which its siblings reach it; the lowest that is free if left out
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(CIDS))]
    cid: Option<u32>,
    /// Its GUID, such as that of its libvirt domain; a fresh one if left out
    #[arg(long, value_name = "GUID")]
    id: Option<VmId>,
    /// A sibling group: partitions of one group reach each other
    #[arg(long = "group", value_name = "GROUP")]
    groups: Vec<String>,
    /// Take memory that is not sealed, too: by shrinking it the VMM can end the broker
    #[arg(long)]
    unsealed_memory: bool,
    /// The user that its VMM runs as, if not the broker's; libvirt's is libvirt-qemu or qemu
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    #[command(flatten)]
    form: Form,
}

/// Show one virtual machine, or only what its VMM needs
#[derive(Debug, Args)]
pub struct Show {
    #[command(flatten)]
    named: Named,
    #[command(flatten)]
    form: Form,
}

/// How to print what the VMM needs.
#[derive(Debug, Args)]
struct Form {
    /// Print what to add to QEMU's command line for so much memory, as after -m
    #[arg(long, value_name = "SIZE", conflicts_with = "libvirt")]
    memory: Option<Memory>,
    /// Print what to add to a libvirt domain
    #[arg(long)]
    libvirt: bool,
    /// Print JSON, with all forms in it
    #[arg(long, conflicts_with = "libvirt")]
    json: bool,
}

impl Vm {
    pub fn run(self, context: &Context) -> Result<()> {
        let vms = Partitions {
            context,
            kind: PartitionKind::Vm,
        };
        match self {
            Self::Add(add) => add.run(context),
            Self::List(json) => list(vms, json),
            Self::Id(named) => vms.id(&named),
            Self::Show(show) => show.run(vms),
            Self::Wait(wait) => wait.run(vms),
            Self::Shutdown(shutdown) => shutdown.run(vms),
            Self::Time(time) => time.run(vms),
            Self::Pause(named) => vms.change(&named, PartitionState::Paused),
            Self::Resume(named) => vms.change(&named, PartitionState::Running),
            Self::Groups(grouped) => vms.group(grouped),
            Self::Remove(named) => vms.remove(&named),
            Self::Integration(switches) => switches.run(vms),
            Self::Freeze(freeze) => freeze.run(context),
            Self::Thaw(thaw) => thaw.run(context),
        }
    }
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Everything {
    #[serde(flatten)]
    partition: Partition,
    #[serde(flatten)]
    device: Device,
}

impl Form {
    fn device(&self, vm: &Partition) -> Result<Device> {
        let socket = vm.socket.as_ref();
        let socket = socket.context("the broker made no socket for this VM")?;
        let socket = socket.to_str().context("the socket's path is not UTF-8")?;
        Ok(Device::new(&vm.name, socket, self.memory.as_ref()))
    }
}

impl Add {
    fn run(self, context: &Context) -> Result<()> {
        let partition = context.client()?.add_vm(&NewVm {
            name: self.name,
            cid: self.cid,
            id: self.id,
            groups: self.groups,
            unsealed_memory: self.unsealed_memory,
            user: self.user,
        })?;
        let device = self.form.device(&partition)?;
        if self.form.json {
            return output::json(&Everything { partition, device });
        }
        let cid = partition.cid.unwrap_or_default();
        context.note(&format!(
            "`{}` is a partition, with the CID {cid} and the id {}",
            partition.name, partition.id
        ));
        if self.form.libvirt {
            let user = match &partition.user {
                Some(user) => format!("user {user}"),
                None => "broker's user (or say which with --user)".to_owned(),
            };
            context.note(&format!(
                "Add this to its domain (`virsh edit`), whose QEMU must run as the {user}:"
            ));
            return output::text(&device.libvirt);
        }
        let size = match self.form.memory {
            Some(_) => "",
            None => ", with the VM's memory, as after -m, in place of SIZE",
        };
        context.note(&format!("Add both lines to QEMU's command line{size}:"));
        output::text(&device.options())
    }
}

impl Show {
    fn run(self, vms: Partitions<'_>) -> Result<()> {
        let partition = vms.find(&self.named)?;
        let device = self.form.device(&partition)?;
        if self.form.json {
            return output::json(&Everything { partition, device });
        }
        if self.form.libvirt {
            return output::text(&device.libvirt);
        }
        if self.form.memory.is_some() {
            return output::text(&device.options());
        }
        let mut more = guest::facts(&partition);
        more.extend(partition.cid.map(|cid| ("CID", cid.to_string())));
        let socket = partition.socket.as_ref();
        more.extend(socket.map(|socket| ("socket", socket.display().to_string())));
        more.extend(partition.user.clone().map(|user| ("user", user)));
        if partition.unsealed_memory {
            let text = "taken unsealed: its VMM can end the broker".to_owned();
            more.push(("memory", text));
        }
        let options = device.options();
        more.extend(options.lines().map(|line| ("QEMU", line.to_owned())));
        output::text(&facts(&partition, &more))
    }
}

fn list(vms: Partitions<'_>, json: Json) -> Result<()> {
    let vms = vms.all()?;
    if json.json {
        return output::json(&vms);
    }
    let headings = ["name", "id", "cid", "state", "guest", "groups", "conn"];
    let empty = "no virtual machines; `hvsock vm add NAME` makes one a partition";
    let mut table = Columns::new(&headings, empty).right(&[2, 6]).whole(1);
    for vm in vms {
        table.row([
            vm.name.to_string(),
            vm.id.to_string(),
            vm.cid.map_or_else(String::new, |cid| cid.to_string()),
            words::standing(&vm).to_owned(),
            guest::word(&vm).unwrap_or_default().to_owned(),
            vm.groups.join(", "),
            vm.connections.to_string(),
        ]);
    }
    table.print()
}
