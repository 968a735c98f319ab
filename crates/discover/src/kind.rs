//! The managers that are known.

use std::fmt;

use serde::Serialize;

/// The managers that are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ManagerKind {
    /// systemd-machined, with which systemd-vmspawn and libvirt register virtual machines.
    Machined,
    /// libvirt, of the system and of this user's session.
    Libvirt,
    /// Incus, or LXD before it.
    Incus,
    /// The processes of VMMs that this user may read.
    Processes,
}

impl ManagerKind {
    /// All of them, those first that know most about a virtual machine.
    pub const ALL: [Self; 4] = [Self::Libvirt, Self::Incus, Self::Machined, Self::Processes];

    /// Its name, as JSON has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Machined => "machined",
            Self::Libvirt => "libvirt",
            Self::Incus => "incus",
            Self::Processes => "processes",
        }
    }

    /// The one with this [`name`](Self::name).
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

impl fmt::Display for ManagerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
