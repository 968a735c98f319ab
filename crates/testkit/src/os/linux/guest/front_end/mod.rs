//! The front ends of vhost-user: which messages each VMM sends, in its order.
//!
//! A VMM is a [`Script`]: tables of `Step`s, written from the VMM's source and named with it. One
//! `Session` sends them, checks the replies, and can falsify one message as a hostile VMM
//! would. The driver, its queues and its sockets are the same with every front end. No VMM runs: what such a test
//! shows is that the device takes this VMM's messages.

mod cloud_hypervisor;
mod crosvm;
pub mod fault;
mod libkrun;
mod openvmm;
mod qemu;
pub mod script;
pub(super) mod session;
mod state;
mod uml;

use script::Script;

/// The VMM whose vhost-user messages are sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FrontEnd {
    /// QEMU.
    #[default]
    Qemu,
    /// User-mode Linux. Its device is a VM that accepts unsealed memory.
    UserModeLinux,
    /// Cloud Hypervisor. Its device is a VM that accepts unsealed memory.
    CloudHypervisor,
    /// crosvm.
    Crosvm,
    /// libkrun. Its device is a VM that accepts unsealed memory.
    Libkrun,
    /// OpenVMM. Its device is a VM that accepts unsealed memory.
    OpenVmm,
}

impl FrontEnd {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Qemu,
        Self::UserModeLinux,
        Self::CloudHypervisor,
        Self::Crosvm,
        Self::Libkrun,
        Self::OpenVmm,
    ];

    /// Its messages.
    pub fn script(self) -> &'static Script {
        match self {
            Self::Qemu => &qemu::SCRIPT,
            Self::UserModeLinux => &uml::SCRIPT,
            Self::CloudHypervisor => &cloud_hypervisor::SCRIPT,
            Self::Crosvm => &crosvm::SCRIPT,
            Self::Libkrun => &libkrun::SCRIPT,
            Self::OpenVmm => &openvmm::SCRIPT,
        }
    }
}
