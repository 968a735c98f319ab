//! Virtual machines, as listed by Hyper-V and the host compute service.

use std::fmt;

use hvsock_address::VmId;
use hvsock_fabric::PartitionState;

/// A virtual machine of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vm {
    /// The name given by its owner. It may contain any text and need not be unique: see
    /// [`partition_names`](crate::partition_names).
    pub name: String,
    /// Its id: the `VmId` for a connect.
    pub id: VmId,
    /// Its state.
    pub state: VmState,
    /// The service that runs it.
    pub kind: VmKind,
}

/// The service that runs a virtual machine.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum VmKind {
    /// Hyper-V's management service: `Get-VM` lists it.
    HyperV,
    /// WSL: it runs all Linux distributions of a user.
    Wsl,
    /// The host compute service, for a container or a sandbox, for example. Also a machine of which
    /// Windows shows only the id.
    Utility {
        /// The program that created it, if known.
        owner: Option<String>,
    },
}

/// The state of a virtual machine, in the terms of `Get-VM`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum VmState {
    /// Off.
    Off,
    /// Off, with its memory saved.
    Saved,
    /// Changing to running.
    Starting,
    /// Running.
    Running,
    /// Paused.
    Paused,
    /// Changing to off, saved or paused.
    Stopping,
    /// Another state, or none reported.
    Unknown,
}

impl VmState {
    /// The meaning of `Msvm_ComputerSystem.EnabledState`.
    ///
    /// Source: learn.microsoft.com/windows/win32/hyperv_v2/msvm-computersystem for 0 to 10. The
    /// numbers from 32768 on are those of version 1 of the provider; its `RequestStateChange` page
    /// names them. The "critical" states are of Windows 10, for a machine that has lost its storage.
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
            // Version 1: paused, suspended, starting, snapshotting (it continues afterwards).
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

    /// The corresponding state of a partition. A machine that is changing its state, or in an
    /// unknown state, may still accept connections, so it counts as running.
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
