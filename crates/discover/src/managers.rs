//! The managers of this machine. A further one is a file, a [`ManagerKind`] and a line of [`manager`].

use crate::incus::Incus;
use crate::kind::ManagerKind;
use crate::libvirt::Libvirt;
use crate::machined::Machined;
use crate::manager::Manager;
use crate::processes::Processes;

/// The managers of this machine, where their packages and this user's environment place them.
pub fn managers() -> Vec<Box<dyn Manager>> {
    ManagerKind::ALL.into_iter().map(manager).collect()
}

/// The manager of this kind on this machine.
pub fn manager(kind: ManagerKind) -> Box<dyn Manager> {
    match kind {
        ManagerKind::Machined => Box::new(Machined::of_this_machine()),
        ManagerKind::Libvirt => Box::new(Libvirt::of_this_machine()),
        ManagerKind::Incus => Box::new(Incus::of_this_machine()),
        ManagerKind::Processes => Box::new(Processes::of_this_machine()),
    }
}
