//! A real guest with a broker, a container in it, and one of this machine, for upgrades.

use std::path::PathBuf;

use hvsock_guests::{Attached, Kit, Vmm};
use hvsock_testkit::nested::{ContainerInVm, ContainerOnHost, GuestBroker, Programs};
use hvsock_testkit::require;

use crate::load::process::Process;
use crate::upgrade::World;
use crate::util::eventually;

/// What the host is called by the brokers in its guests.
pub const HOST: &str = "upgraded";

/// The guest `machine`.
pub struct Stage {
    pub load: PathBuf,
    guest: GuestBroker,
    programs: Programs,
}

impl Stage {
    /// Boots the guest and starts its broker. The host's broker has the name [`HOST`].
    pub fn new(world: &World) -> Option<Self> {
        let load = require::example("hvsock-cli", "hvsock-load")?;
        let programs = Programs {
            hvsock: PathBuf::from(env!("CARGO_BIN_EXE_hvsock")),
            probe: require::example("hvsock-cli", "hvsock-probe")?,
            agent: None,
            load: Some(load.clone()),
            runtime: require::runc()?,
        };
        let kit = require::found(Kit::find_for(Vmm::Uml))?;
        world.ok(&["vm", "add", "machine", "--cid", "44"]);
        let socket = world.dir().join("vm/machine.sock");
        let guest = GuestBroker::boot(&kit, "machine", &socket, programs.clone());
        let guest = guest.unwrap_or_else(|error| panic!("{error}"));
        guest.start();
        Some(Self {
            load,
            guest,
            programs,
        })
    }

    /// Runs a command in the guest, at its own broker.
    pub fn hvsock(&self, arguments: &[&str]) {
        self.guest.shell(&format!("hvsock {}", arguments.join(" ")));
    }

    /// Starts `hvsock-load ARGUMENTS` in a partition: the guest, a new container in it (`machine/NAME`), or a new one of
    /// this machine.
    pub fn start(&self, world: &World, partition: &str, arguments: &[&str]) -> Process {
        let machine = self.guest.guest().name();
        if partition == machine {
            let command = format!("exec hvsock-load {}", arguments.join(" "));
            return process(self.guest.attach(&command));
        }
        if let Some((_, name)) = partition.split_once('/') {
            let arguments = [&["/bin/hvsock-load"], arguments].concat();
            let attached = ContainerInVm::attach(&self.guest, name, &arguments);
            eventually("the host knows the container", || {
                world.ok(&["container", "list"]).contains(partition)
            });
            return process(attached);
        }
        world.ok(&["-q", "container", "add", partition]);
        let show = ["container", "show", partition, "--mount", "--format", "oci"];
        let printed = world.ok(&show);
        let arguments = [&["/opt/hvsock-load"], arguments].concat();
        let started = ContainerOnHost::attach(&self.programs, partition, &printed, &arguments);
        let (input, output, running) = started.expect("the container");
        Process::of(input, output, running)
    }
}

fn process(attached: Attached) -> Process {
    attached.set_read_timeout(None).expect("no limit");
    let output = attached.try_clone().expect("a handle");
    Process::of(attached, output, ())
}
