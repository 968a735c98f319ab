//! `hvsock vm`: virtual machines as partitions.

mod device;
mod freeze;
mod shutdown;

use std::ops::RangeInclusive;

use anyhow::{Context as _, Result};
use clap::{Args, Subcommand, value_parser};
use hvsock_address::{PartitionName, VmId};
use hvsock_control::{LinkSpec, NewVm, Partition, PartitionKind, PartitionState};
use serde::Serialize;

use super::guest;
use super::integration_args::IntegrationArgs;
use super::partition::{Grouped, Named, Partitions, facts};
use super::time::Time;
use super::wait::Wait;
use crate::context::Context;
use crate::os::linux::format;
use crate::output::{self, Json};
use crate::table::Columns;
use device::{Device, Memory};
use shutdown::Shutdown;

/// The context ids of guests. Lower ids are reserved (vsock(7)), and the highest is VMADDR_CID_ANY.
const CIDS: RangeInclusive<i64> = 3..=u32::MAX as i64 - 1;

/// Make virtual machines partitions of their own
#[derive(Debug, Subcommand)]
pub enum Vm {
    Add(Add),
    /// List virtual machines
    List(Json),
    /// Print a virtual machine's GUID
    Id(Named),
    Show(Show),
    /// Wait until a virtual machine is ready, or for another state
    Wait(Wait),
    Shutdown(Shutdown),
    /// Show the offset of a guest's clock
    Time(Time),
    /// Pause the hvsock traffic of a virtual machine
    Pause(Named),
    /// Resume the hvsock traffic of a virtual machine
    Resume(Named),
    /// Replace the sibling groups of a virtual machine
    Groups(Grouped),
    /// Remove a virtual machine and close its connections
    Remove(Named),
    Integration(IntegrationArgs),
    Freeze(freeze::Freeze),
    Thaw(freeze::Thaw),
}

/// Add a virtual machine, and print the options for its VMM
#[derive(Debug, Args)]
pub struct Add {
    /// The virtual machine's name
    name: PartitionName,
    /// Its context id (CID) [default: the lowest free one]
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(CIDS))]
    cid: Option<u32>,
    /// Its GUID, such as that of its libvirt domain [default: a random one]
    #[arg(long, value_name = "GUID")]
    id: Option<VmId>,
    /// Add it to this sibling group; may be repeated
    #[arg(long = "group", value_name = "GROUP")]
    groups: Vec<String>,
    /// Accept unsealed memory, with which its VMM can crash the broker
    #[arg(long)]
    unsealed_memory: bool,
    /// The user that runs its VMM [default: the broker's user]
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    #[command(flatten)]
    form: Form,
}

/// Show one virtual machine, or the options for its VMM
#[derive(Debug, Args)]
pub struct Show {
    #[command(flatten)]
    named: Named,
    #[command(flatten)]
    form: Form,
}

/// The form of the options for the VMM.
#[derive(Debug, Args)]
struct Form {
    /// Print QEMU's options for this much memory, in the form of -m
    #[arg(long, value_name = "SIZE", conflicts_with = "libvirt")]
    memory: Option<Memory>,
    /// Print the XML for a libvirt domain
    #[arg(long)]
    libvirt: bool,
    /// Print JSON with all forms
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
            Self::Pause(named) => vms.set_state(&named, PartitionState::Paused),
            Self::Resume(named) => vms.set_state(&named, PartitionState::Running),
            Self::Groups(grouped) => vms.set_groups(grouped),
            Self::Remove(named) => vms.remove(&named),
            Self::Integration(args) => args.run(vms),
            Self::Freeze(freeze) => freeze.run(context),
            Self::Thaw(thaw) => thaw.run(context),
        }
    }
}

/// The output of `--json`.
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
        let socket = socket.context("the broker has no socket for this VM")?;
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
            link: LinkSpec::default(),
            unsealed_memory: self.unsealed_memory,
            user: self.user,
        })?;
        let device = self.form.device(&partition)?;
        if self.form.json {
            return output::json(&Everything { partition, device });
        }
        let cid = partition.cid.unwrap_or_default();
        context.note(&format!(
            "`{}` is a partition with the CID {cid} and the id {}",
            partition.name, partition.id
        ));
        if self.form.libvirt {
            let user = match &partition.user {
                Some(user) => format!("user {user}"),
                None => "broker's user (or give another with --user)".to_owned(),
            };
            context.note(&format!(
                "Add this to the domain (`virsh edit`). Its QEMU must run as the {user}:"
            ));
            return output::text(&device.libvirt);
        }
        let size = match self.form.memory {
            Some(_) => "",
            None => ", with the VM's memory in place of SIZE",
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
            let text = "unsealed: its VMM can crash the broker".to_owned();
            more.push(("memory", text));
        }
        let options = device.options();
        more.extend(options.lines().map(|line| ("QEMU", line.to_owned())));
        facts(&partition, &more).print()
    }
}

fn list(vms: Partitions<'_>, json: Json) -> Result<()> {
    let vms = vms.all()?;
    if json.json {
        return output::json(&vms);
    }
    let headings = ["name", "id", "cid", "state", "guest", "groups", "conn"];
    let empty = "no virtual machines; add one with `hvsock vm add NAME`";
    let mut table = Columns::new(&headings, empty).right(&[2, 6]).whole(1);
    for vm in vms {
        table.row([
            vm.name.to_string(),
            vm.id.to_string(),
            vm.cid.map_or_else(String::new, |cid| cid.to_string()),
            format::detailed_state(&vm).to_owned(),
            guest::word(&vm).unwrap_or_default().to_owned(),
            vm.groups.join(", "),
            vm.connections.to_string(),
        ]);
    }
    table.print()
}
