//! The kind of this machine.

use hvsock_address::VmId;

/// The kind of this machine: a host of virtual machines, a virtual machine, both (nested
/// virtualization), or neither.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    /// Its computer name, if known.
    pub name: Option<String>,
    /// Whether it can run virtual machines.
    pub is_host: bool,
    /// Its identity as a virtual machine of Hyper-V, if it is one.
    pub guest: Option<Guest>,
}

/// The identity of a guest of Hyper-V. The host sends it through the data exchange service (KVP);
/// without that service all fields are empty.
///
/// Source: the values under `HKLM\SOFTWARE\Microsoft\Virtual Machine\Guest\Parameters`
/// (learn.microsoft.com/windows/win32/vpc/ivmguestos-getparameter for the names; for the id:
/// learn.microsoft.com/previous-versions/windows/it-pro/windows-server-2012-r2-and-2012/dn798287,
/// "Hyper-V Data Exchange Service (KVP)").
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Guest {
    /// Its id at its host (`VirtualMachineId`).
    pub id: Option<VmId>,
    /// Its name at its host (`VirtualMachineName`).
    pub name: Option<String>,
    /// Its host's name (`PhysicalHostName`).
    pub host: Option<String>,
}
