//! The partitions of the tests: this host, a container of it, a VM with a broker, and two containers in it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use hvsock_guests::{Kit, Vmm};
use hvsock_testkit::nested::{ContainerInVm, ContainerOnHost, GuestBroker, Probe, Programs};
use hvsock_testkit::process::Running;
use hvsock_testkit::require;

use crate::util::{TIMEOUT, World};

/// The host's name, which [`World`] gives its broker.
pub const HOST: &str = "machine";
pub const VM: &str = "web";
pub const CID: u32 = 42;

/// The kit of the guests. `HVSOCK_TEST_VMM=qemu` runs the same tests under QEMU.
pub fn kit() -> Option<Kit> {
    let vmm = match std::env::var("HVSOCK_TEST_VMM").as_deref() {
        Ok("qemu") => Vmm::Qemu,
        _ => Vmm::Uml,
    };
    require::found(Kit::find_for(vmm))
}

/// The programs of this build. Skips the test (`None`) if one is missing.
pub fn programs() -> Option<Programs> {
    Some(Programs {
        hvsock: PathBuf::from(env!("CARGO_BIN_EXE_hvsock")),
        probe: require::example("hvsock-cli", "hvsock-probe")?,
        agent: Some(require::example("hvsock-cli", "hvsock-agent")?),
        load: None,
        runtime: require::runc()?,
    })
}

/// A host with a VM in which a broker runs. Fields are dropped in this order.
pub struct Stage {
    pub host: Probe,
    pub vm: Probe,
    pub guest: GuestBroker,
    pub world: World,
    programs: Programs,
}

impl Stage {
    /// Boots the VM and starts both brokers. Skips the test (`None`) if a program is missing.
    pub fn new() -> Option<Self> {
        let programs = programs()?;
        Some(Self::of(&kit()?, programs.clone(), programs))
    }

    /// As [`new`](Self::new), under QEMU, where a program takes long to start.
    pub fn in_qemu() -> Option<Self> {
        let kit = require::found(Kit::find_for(Vmm::Qemu))?;
        let programs = programs()?;
        let mut in_guest = programs.clone();
        if let Some(crun) = faster_runtime() {
            in_guest.runtime = crun;
        }
        Some(Self::of(&kit, programs, in_guest))
    }

    fn of(kit: &Kit, programs: Programs, in_guest: Programs) -> Self {
        let world = World::logged();
        world.ok(["vm", "add", VM, "--cid", &CID.to_string()]);
        let socket = world.dir().join(format!("vm/{VM}.sock"));
        let guest = GuestBroker::boot(kit, VM, &socket, in_guest);
        let guest = guest.unwrap_or_else(|error| panic!("{error}"));
        guest.start();
        Self {
            host: probe_on_host(&programs, world.dir()),
            vm: guest.probe(),
            guest,
            world,
            programs,
        }
    }

    /// Starts a container of the VM.
    pub fn container(&self, name: &str) -> ContainerInVm {
        ContainerInVm::start(&self.guest, name)
    }

    /// Starts a container of this host.
    pub fn container_on_host(&self, name: &str) -> ContainerOnHost {
        self.world.ok(["-q", "container", "add", name]);
        let show = ["container", "show", name, "--mount", "--format", "oci"];
        let printed = self.world.ok(show);
        let started = ContainerOnHost::start(&self.programs, name, &printed);
        started.unwrap_or_else(|error| panic!("{error}"))
    }
}

/// crun starts a container in a tenth of runc's time.
fn faster_runtime() -> Option<PathBuf> {
    let crun = PathBuf::from("/usr/bin/crun");
    crun.is_file().then_some(crun)
}

fn probe_on_host(programs: &Programs, dir: &Path) -> Probe {
    let mut command = Command::new(&programs.probe);
    command.env("HVSOCK_DIR", dir).env_remove("HVSOCK_ENDPOINT");
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut running = Running::start(&mut command).expect("the probe");
    let (input, output) = (running.take_stdin(), running.take_stdout());
    let (input, output) = input.zip(output).expect("pipes");
    let probe = Probe::new(HOST, input, output, TIMEOUT).expect("a probe");
    let program = programs.hvsock.to_string_lossy().into_owned();
    probe.with_hvsock(&[&program]).keeping(running)
}
