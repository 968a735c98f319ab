//! What this machine is.

use hvsock_address::VmId;

/// What this machine is: a host of virtual machines, a virtual machine, both where virtualization
/// is nested, or neither.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    /// Its own name, as far as it says it.
    pub name: Option<String>,
    /// Whether it can have virtual machines.
    pub is_host: bool,
    /// What it knows of itself as a virtual machine of Hyper-V, if it is one.
    pub guest: Option<Guest>,
}

/// What a guest of Hyper-V knows of itself: its host tells it by the data exchange service, so
/// where that is off there is nothing of this.
///
/// Source: the values under `HKLM\SOFTWARE\Microsoft\Virtual Machine\Guest\Parameters`
/// (learn.microsoft.com/windows/win32/vpc/ivmguestos-getparameter for the names; the id beside them:
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
