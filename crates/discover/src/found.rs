//! What all managers know together, and the state of one virtual machine.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::error::Unavailable;
use crate::kind::ManagerKind;
use crate::machine::{Machine, Reach, State};
use crate::manager::Manager;

/// What the managers of this machine know.
#[derive(Debug, Default, Serialize)]
pub struct Found {
    /// The virtual machines, each once, even if several managers know it.
    pub machines: Vec<Machine>,
    /// The managers that did not answer, or not in full.
    pub notes: Vec<Note>,
}

/// A manager that did not answer, or not in full.
#[derive(Debug, Serialize)]
pub struct Note {
    /// Which one.
    pub manager: ManagerKind,
    /// Why.
    #[serde(serialize_with = "as_text")]
    pub why: Unavailable,
}

fn as_text<S: serde::Serializer>(why: &Unavailable, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(why)
}

/// Asks each of `managers`, `limit` at most each, and merges what they say: of two descriptions of one virtual
/// machine (the same process, UUID or way to it) the first one stays. A virtual machine that is off has
/// no process, and its context id may be in use by another one.
pub fn discover(managers: &[Box<dyn Manager>], limit: Duration) -> Found {
    let mut found = Found::default();
    let mut pids = HashSet::new();
    let mut uuids = HashSet::new();
    let mut ways: HashSet<Reach> = HashSet::new();
    for manager in managers {
        let (machines, why) = manager.list_found(Instant::now() + limit);
        if let Some(why) = why {
            let manager = manager.kind();
            found.notes.push(Note { manager, why });
        }
        for machine in machines {
            let live = machine.state != State::Off;
            let known = machine.pid.is_some_and(|pid| pids.contains(&pid))
                || machine
                    .uuid
                    .as_ref()
                    .is_some_and(|uuid| uuids.contains(uuid))
                || machine.reach.iter().any(|way| ways.contains(way));
            if live && known {
                continue;
            }
            if live {
                pids.extend(machine.pid);
                uuids.extend(machine.uuid.clone());
                ways.extend(machine.reach.iter().cloned());
            }
            found.machines.push(machine);
        }
    }
    found
}

/// The state of the virtual machine that has this context id of the kernel's vsock in the network namespace of
/// this process. One that the manager does not list is off: a context id is free when its VMM ends. A call
/// costs the manager one listing, so once a second is enough.
///
/// # Errors
///
/// [`Unavailable`] if the manager cannot be asked: the state is then unknown.
pub fn state_of_cid(
    manager: &dyn Manager,
    cid: u32,
    limit: Duration,
) -> Result<State, Unavailable> {
    let (machines, why) = manager.list_found(Instant::now() + limit);
    let has_it = |machine: &&Machine| {
        let way = Reach::Kernel { cid, netns: None };
        machine.state != State::Off && machine.reach.contains(&way)
    };
    let state = machines.iter().find(has_it).map(|machine| machine.state);
    match (state, why) {
        (Some(state), _) => Ok(state),
        (None, Some(why)) => Err(why),
        (None, None) => Ok(State::Off),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Fixed(ManagerKind, Option<Vec<Machine>>);

    impl Manager for Fixed {
        fn kind(&self) -> ManagerKind {
            self.0
        }

        fn list(&self, _deadline: Instant) -> Result<Vec<Machine>, Unavailable> {
            let path = "/run/manager".into();
            self.1.clone().ok_or(Unavailable::Forbidden { path })
        }
    }

    fn machine(manager: ManagerKind, name: &str, state: State, cid: u32, pid: u32) -> Machine {
        Machine {
            manager,
            name: name.to_owned(),
            uuid: None,
            state,
            pid: Some(pid).filter(|pid| *pid > 0),
            uid: None,
            reach: vec![Reach::Kernel { cid, netns: None }],
        }
    }

    #[test]
    fn a_virtual_machine_that_two_managers_know_is_found_once_and_those_that_are_off_stay() {
        use ManagerKind::{Incus, Libvirt, Machined, Processes};
        let managers: [Box<dyn Manager>; 4] = [
            Box::new(Fixed(
                Libvirt,
                Some(vec![
                    machine(Libvirt, "off", State::Off, 7, 0),
                    machine(Libvirt, "web", State::Paused, 7, 0),
                ]),
            )),
            Box::new(Fixed(Incus, None)),
            Box::new(Fixed(
                Machined,
                Some(vec![
                    machine(Machined, "qemu-1-web", State::Running, 7, 10),
                    machine(Machined, "spawned", State::Running, 8, 11),
                ]),
            )),
            Box::new(Fixed(
                Processes,
                Some(vec![
                    machine(Processes, "x", State::Unknown, 9, 11),
                    machine(Processes, "own", State::Unknown, 10, 12),
                ]),
            )),
        ];
        let found = discover(&managers, Duration::from_secs(1));
        let names: Vec<_> = found.machines.iter().map(|m| m.name.as_str()).collect();
        assert_eq!(names, ["off", "web", "spawned", "own"]);
        assert_eq!(found.notes.len(), 1);
        let state = |cid| state_of_cid(&*managers[0], cid, Duration::from_secs(1)).ok();
        assert_eq!(state(7), Some(State::Paused));
        assert_eq!(state(8), Some(State::Off));
        assert!(state_of_cid(&*managers[1], 7, Duration::from_secs(1)).is_err());
    }
}
