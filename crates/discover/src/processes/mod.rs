//! The processes of VMMs, by their command lines. A file for each VMM; [`VMMS`] has them all.
//!
//! A process can name itself as it likes, so what is found here is what its owner claims, and
//! [`Machine::uid`](crate::Machine::uid) says who that is, if it is known.

mod cloud_hypervisor;
mod crosvm;
mod description;
mod firecracker;
mod openvmm;
mod options;
mod process;
pub mod qemu;
mod uml;

use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::error::Unavailable;
use crate::kind::ManagerKind;
use crate::machine::{Machine, State};
use crate::manager::Manager;
use description::Description;
use process::Process;

/// Describes the virtual machine of a process, or `None` if the process is no such VMM.
type Describe = fn(&Process, Instant) -> Option<Description>;

/// The VMMs that are recognized.
const VMMS: [(&str, Describe); 6] = [
    ("qemu", qemu::describe),
    ("firecracker", firecracker::describe),
    ("cloud-hypervisor", cloud_hypervisor::describe),
    ("crosvm", crosvm::describe),
    ("openvmm", openvmm::describe),
    ("uml", uml::describe),
];

/// The number of virtual machines that are listed.
const MAX_MACHINES: usize = 4096;

/// The processes of this machine, as far as this user may read them.
#[derive(Debug)]
pub struct Processes {
    proc: PathBuf,
}

impl Processes {
    /// By `/proc`.
    pub fn of_this_machine() -> Self {
        Self::at("/proc".into())
    }

    /// By another folder of the same form.
    pub fn at(proc: PathBuf) -> Self {
        Self { proc }
    }
}

impl Manager for Processes {
    fn kind(&self) -> ManagerKind {
        ManagerKind::Processes
    }

    fn list(&self, deadline: Instant) -> Result<Vec<Machine>, Unavailable> {
        let pids = process::pids(&self.proc).map_err(|error| Unavailable::io(&self.proc, error))?;
        let mut machines = Vec::new();
        for pid in pids {
            if machines.len() == MAX_MACHINES {
                let path = self.proc.clone();
                let why = "it lists too many VMMs";
                return Err(Unavailable::Invalid { path, why });
            }
            if Instant::now() >= deadline {
                let path = self.proc.clone();
                return Err(Unavailable::Silent { path });
            }
            machines.extend(machine(&self.proc, pid, deadline));
        }
        Ok(machines)
    }
}

fn machine(proc: &Path, pid: u32, deadline: Instant) -> Option<Machine> {
    let process = Process::read(proc, pid)?;
    let (vmm, description) = VMMS
        .iter()
        .find_map(|(vmm, describe)| Some((vmm, describe(&process, deadline)?)))?;
    let name = description.name.filter(|name| !name.is_empty());
    Some(Machine {
        manager: ManagerKind::Processes,
        name: name.unwrap_or_else(|| format!("{vmm}-{pid}")),
        uuid: description.uuid,
        state: description.state.unwrap_or(State::Unknown),
        pid: Some(pid),
        uid: Some(process.uid).filter(|_| process.is_of_its_user),
        reach: description.reach,
    })
}
