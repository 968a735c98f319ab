//! Virtual machines, as Hyper-V and the host compute service show them.

use std::fmt;

use hvsock_address::VmId;
use hvsock_fabric::PartitionState;

/// A virtual machine of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vm {
    /// The name that its owner gave it. It may hold anything, and two may have the same: see
    /// [`partition_names`](crate::partition_names).
    pub name: String,
    /// Its id: what a connect to it gives as the VmId.
    pub id: VmId,
    /// Whether it runs.
    pub state: VmState,
    /// Who runs it.
    pub kind: VmKind,
}

/// Who runs a virtual machine.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum VmKind {
    /// Hyper-V Manager's: one that `Get-VM` lists.
    HyperV,
    /// The one in which WSL runs every Linux distribution of a user.
    Wsl,
    /// Another of the host compute service's, such as a container's or a sandbox's; or one of
    /// which Windows shows no more than that it is there.
    Utility {
        /// Who had the service make it, where that is known.
        owner: Option<String>,
    },
}

/// Whether a virtual machine runs, in the words of `Get-VM`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum VmState {
    /// It is switched off.
    Off,
    /// It is off and its memory is kept.
    Saved,
    /// It is on its way to running.
    Starting,
    /// It runs.
    Running,
    /// It stands still.
    Paused,
    /// It is on its way to being off, saved or paused.
    Stopping,
    /// Windows says something else, or nothing.
    Unknown,
}

impl VmState {
    /// The meaning of `Msvm_ComputerSystem.EnabledState`.
    ///
    /// Source: learn.microsoft.com/windows/win32/hyperv_v2/msvm-computersystem for 0 to 10; the
    /// numbers from 32768 on are of version 1 of the provider, whose `RequestStateChange` page
    /// names them with what they correspond to, and the "critical" ones among them, in which a
    /// machine is when its storage has gone, are of Windows 10.
    pub fn of_enabled_state(state: u16) -> Self {
        match state {
            2 => Self::Running,
            3 => Self::Off,
            // Shutting down.
            4 => Self::Stopping,
            // Enabled but offline.
            6 => Self::Saved,
            // Quiesce.
            9 => Self::Paused,
            10 => Self::Starting,
            // Version 1: paused, suspended, starting, snapshotting (it goes on after it).
            32768 => Self::Paused,
            32769 => Self::Saved,
            32770 => Self::Starting,
            // Version 1: saving, stopping, pausing, resuming; 32779 and 32780 are fast saves.
            32773 | 32774 | 32776 | 32780 => Self::Stopping,
            32777 => Self::Starting,
            32779 => Self::Saved,
            // Critical: running, off, stopping, saved, paused, starting.
            32781 => Self::Running,
            32782 => Self::Off,
            32783 => Self::Stopping,
            32784 => Self::Saved,
            32785 => Self::Paused,
            32786 => Self::Starting,
            _ => Self::Unknown,
        }
    }

    /// The same as partitions know it. Only what is certain counts against a machine: one that is
    /// on its way somewhere may answer, and what Windows calls something else may, too.
    pub fn partition_state(self) -> PartitionState {
        match self {
            Self::Off | Self::Saved => PartitionState::Off,
            Self::Paused => PartitionState::Paused,
            Self::Starting | Self::Running | Self::Stopping | Self::Unknown => {
                PartitionState::Running
            }
        }
    }
}

impl fmt::Display for VmState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Off => "off",
            Self::Saved => "saved",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopping => "stopping",
            Self::Unknown => "unknown",
        })
    }
}

impl fmt::Display for VmKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HyperV => f.pad("hyper-v"),
            Self::Wsl => f.pad("wsl"),
            Self::Utility { owner: Some(owner) } => f.pad(owner),
            Self::Utility { owner: None } => f.pad("utility"),
        }
    }
}
