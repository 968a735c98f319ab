//! The processes of VMMs, by their command lines. A file for each VMM; [`VMMS`] has them all.
//!
//! A process can name itself as it likes, so what is found here is what its owner claims, and
//! [`Machine::uid`](crate::Machine::uid) says who that is, if it is known.

mod cloud_hypervisor;
mod crosvm;
mod description;
mod firecracker;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
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
const MAX_MACHINES: usize = 16 * 1024;
/// The number of one user's. So no user can hide those of the others.
const MAX_OF_ONE_USER: usize = 1024;
/// The processes of one user take at most this part of the time.
const PART_OF_THE_TIME: u32 = 4;

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
        match self.list_found(deadline) {
            (machines, None) => Ok(machines),
            (_, Some(why)) => Err(why),
        }
    }

    fn list_found(&self, deadline: Instant) -> (Vec<Machine>, Option<Unavailable>) {
        let users = match process::pids_by_user(&self.proc) {
            Ok(users) => users,
            Err(error) => return (Vec::new(), Some(Unavailable::io(&self.proc, error))),
        };
        let share = deadline.saturating_duration_since(Instant::now()) / PART_OF_THE_TIME;
        let (mut machines, mut uids) = (Vec::new(), Vec::new());
        for (uid, pids) in users {
            let room = MAX_MACHINES - machines.len();
            let limit = deadline.min(Instant::now() + share);
            let (found, is_all) = self.of_one_user(&pids, room.min(MAX_OF_ONE_USER), limit);
            machines.extend(found);
            if !is_all {
                uids.push(uid);
            }
        }
        machines.sort_unstable_by_key(|machine| machine.pid);
        let path = self.proc.clone();
        let why = (!uids.is_empty()).then_some(Unavailable::Partial { path, uids });
        (machines, why)
    }
}

impl Processes {
    /// The virtual machines of one user's processes, `most` at most. Returns whether these are all.
    fn of_one_user(&self, pids: &[u32], most: usize, limit: Instant) -> (Vec<Machine>, bool) {
        let mut machines = Vec::new();
        for pid in pids {
            if Instant::now() >= limit {
                return (machines, false);
            }
            let found = machine(&self.proc, *pid, limit);
            if found.is_some() && machines.len() == most {
                return (machines, false);
            }
            machines.extend(found);
        }
        (machines, true)
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
