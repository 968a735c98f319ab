//! `hvsock vm`: virtual machines as partitions.

mod device;
mod discover;
mod freeze;
mod hybrid_socket;
mod link;
mod reconnect;
mod shutdown;

use anyhow::{Context as _, Result};
use clap::{Args, Subcommand};
use hvsock_address::{PartitionName, VmId};
use hvsock_control::{LinkSpec, NewVm, Partition, PartitionKind, PartitionState};
use serde::Serialize;

use super::guest;
use super::integration_args::IntegrationArgs;
use super::partition::{Grouped, Named, Partitions, facts};
use super::time::Time;
use super::wait::Wait;
use crate::context::Context;
use crate::failure::Failure;
use crate::os::linux::format;
use crate::output::{self, Json};
use crate::table::Columns;
use device::{Machine, MachineType, Memory, Vmm};
use link::{LinkArgs, guest_cid};
use shutdown::Shutdown;

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
    Reconnect(reconnect::Reconnect),
    Discover(discover::Discover),
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
    #[arg(long, value_name = "N", value_parser = guest_cid)]
    cid: Option<u32>,
    /// Its GUID, such as that of its libvirt domain [default: a random one]
    #[arg(long, value_name = "GUID")]
    id: Option<VmId>,
    /// Add it to this sibling group; may be repeated
    #[arg(long = "group", value_name = "GROUP")]
    groups: Vec<String>,
    /// Accept unsealed memory from a program with its own broker that handles SIGBUS itself
    #[arg(long)]
    unsealed_memory: bool,
    /// The user that runs its VMM [default: the broker's user]
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    #[command(flatten)]
    link: LinkArgs,
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
    /// Print the options for this VMM [default: qemu]
    #[arg(long, value_name = "VMM", value_parser = device::parser())]
    vmm: Option<&'static dyn Vmm>,
    /// Print the options for this much memory, in the form of QEMU's -m
    #[arg(long, value_name = "SIZE")]
    memory: Option<Memory>,
    /// The machine type of QEMU, which decides the bus of the device
    #[arg(long, value_name = "TYPE")]
    machine: Option<MachineType>,
    /// The same as --vmm libvirt
    #[arg(long, hide = true, conflicts_with = "vmm")]
    libvirt: bool,
    /// Print JSON with the options for each VMM
    #[arg(long, conflicts_with_all = ["libvirt", "vmm"])]
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
            Self::Reconnect(reconnect) => reconnect.run(vms),
            Self::Discover(discover) => discover.run(context),
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
    options: serde_json::Map<String, serde_json::Value>,
}

impl Form {
    /// The VMM that the caller asked for.
    fn chosen(&self) -> Option<&'static dyn Vmm> {
        self.vmm.or_else(|| self.libvirt.then(device::libvirt))
    }

    /// The first option given that only the broker's own device has a use for.
    fn device_option(&self) -> Option<String> {
        let vmm = self.chosen().map(|vmm| format!("--vmm {}", vmm.name()));
        let memory = || self.memory.as_ref().map(|_| "--memory".to_owned());
        let machine = || self.machine.as_ref().map(|_| "--machine".to_owned());
        vmm.or_else(memory).or_else(machine)
    }

    fn machine<'a>(&'a self, vm: &'a Partition) -> Result<Machine<'a>> {
        let socket = vm.socket.as_ref().ok_or_else(|| {
            let what = format!(
                "`{}` does not use the broker's device, so there are no options for its VMM",
                vm.name
            );
            Failure::new(what).help(format!("hvsock vm show {}", vm.name))
        })?;
        let socket = socket.to_str().context("the socket's path is not UTF-8")?;
        Ok(Machine {
            name: &vm.name,
            socket,
            memory: self.memory.as_ref(),
            machine: self.machine.as_ref(),
        })
    }

    fn options(&self, vm: &Partition, vmm: &dyn Vmm) -> Result<device::Options> {
        let options = vmm.options(&self.machine(vm)?);
        Ok(options.map_err(Failure::from)?)
    }

    fn json(&self, partition: Partition) -> Result<()> {
        let options = match partition.socket.is_some() {
            true => device::all(&self.machine(&partition)?),
            false => serde_json::Map::new(),
        };
        output::json(&Everything { partition, options })
    }
}

impl Add {
    fn run(self, context: &Context) -> Result<()> {
        let (link, kernel_cid) = self.link.link(self.name.as_str())?;
        let device = link == LinkSpec::VhostUser;
        if let (false, Some(option)) = (device, self.form.device_option()) {
            let what = format!("{option} is for the broker's own device");
            return Err(Failure::usage(what).into());
        }
        let vmm = self.form.chosen().unwrap_or_else(device::default);
        let client = context.client()?;
        let partition = client.add_vm(&NewVm {
            name: self.name,
            cid: self.cid.or(kernel_cid),
            id: self.id,
            groups: self.groups,
            link,
            unsealed_memory: self.unsealed_memory,
            user: self.user,
        })?;
        if self.form.json {
            return self.form.json(partition);
        }
        if !device {
            context.note(&format!(
                "`{}` is a partition with the id {}",
                partition.name, partition.id
            ));
            for problem in &partition.problems {
                context.note(problem);
            }
            if let Some(LinkSpec::Kernel { .. }) = &partition.link {
                let (name, cid) = (&partition.name, partition.cid.unwrap_or_default());
                context.note(&format!(
                    "The kernel reaches it at the CID {cid}. What the broker cannot enforce or count \
                     there: hvsock vm show {name}"
                ));
            }
            return Ok(());
        }
        let options = self.form.options(&partition, vmm).map_err(|error| {
            // The broker alone knows the socket's path. Without its options nobody can use the VM.
            match client.remove_partition(&partition.id.into()) {
                Ok(_) => error,
                Err(left) => error.context(format!("`{}` is left: {left}", partition.name)),
            }
        })?;
        let cid = partition.cid.unwrap_or_default();
        context.note(&format!(
            "`{}` is a partition with the CID {cid} and the id {}",
            partition.name, partition.id
        ));
        let machine = self.form.machine(&partition)?;
        for note in vmm.notes(&machine) {
            context.note(&note);
        }
        let user = vmm.user(partition.user.as_deref());
        let user = user.map_or_else(String::new, |user| format!(". {user}"));
        let text = options.text();
        let size = match text.contains("size=SIZE") && self.form.memory.is_none() {
            true => ", with the VM's memory in place of SIZE",
            false => "",
        };
        context.note(&format!("{}{size}{user}:", vmm.place()));
        output::text(&text)
    }
}

impl Show {
    fn run(self, vms: Partitions<'_>) -> Result<()> {
        let partition = vms.find(&self.named)?;
        if self.form.json {
            return self.form.json(partition);
        }
        let form = &self.form;
        if form.chosen().is_some() || form.memory.is_some() || form.machine.is_some() {
            let vmm = form.chosen().unwrap_or_else(device::default);
            return output::text(&form.options(&partition, vmm)?.text());
        }
        let mut more = guest::facts(&partition);
        more.extend(partition.broker.as_ref().map(|broker| {
            let age = format::age(broker.connected_seconds);
            let containers = format::count(broker.containers, "container");
            ("broker", format!("connected for {age}, {containers}"))
        }));
        more.extend(link::facts(&partition));
        more.extend(partition.cid.map(|cid| ("CID", cid.to_string())));
        let socket = partition.socket.as_ref();
        more.extend(socket.map(|socket| ("socket", socket.display().to_string())));
        more.extend(hybrid_socket::facts(&partition));
        more.extend(partition.user.clone().map(|user| ("user", user)));
        if partition.unsealed_memory {
            let text = "unsealed, even if its loss is not handled".to_owned();
            more.push(("memory", text));
        }
        if partition.socket.is_some() {
            let options = form.options(&partition, device::default())?.text();
            more.extend(options.lines().map(|line| ("QEMU", line.to_owned())));
        }
        facts(&partition, &more).print()
    }
}

fn list(vms: Partitions<'_>, json: Json) -> Result<()> {
    let vms = vms.all()?;
    if json.json {
        return output::json(&vms);
    }
    let headings = [
        "name", "id", "cid", "link", "state", "guest", "groups", "conn",
    ];
    let empty = "no virtual machines; add one with `hvsock vm add NAME`";
    let mut table = Columns::new(&headings, empty).right(&[2, 7]).whole(1);
    for vm in vms {
        table.row([
            vm.name.to_string(),
            vm.id.to_string(),
            vm.cid.map_or_else(String::new, |cid| cid.to_string()),
            link::word(&vm).to_owned(),
            format::detailed_state(&vm).to_owned(),
            guest::word(&vm).unwrap_or_default().to_owned(),
            vm.groups.join(", "),
            vm.connections.to_string(),
        ]);
    }
    table.print()
}
