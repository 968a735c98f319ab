//! What a manager says about a virtual machine.

use std::path::PathBuf;

use serde::Serialize;

use crate::kind::ManagerKind;

/// A virtual machine, as its manager describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Machine {
    /// Who described it.
    pub manager: ManagerKind,
    /// Its name for its manager. Untrusted text, which need not be a name of a partition.
    pub name: String,
    /// Its UUID, in the form `xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx`, if its manager has one.
    pub uuid: Option<String>,
    /// Its state, as the manager says.
    pub state: State,
    /// The process that runs it.
    pub pid: Option<u32>,
    /// The user that this process runs as and whose words its arguments are. `None` if they may be those of
    /// another: of whoever has run a set-user-ID program, or of a container.
    pub uid: Option<u32>,
    /// How it can be reached. Empty for one without a vsock device.
    pub reach: Vec<Reach>,
}

/// The state of a virtual machine, as its manager says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It runs.
    Running,
    /// Its processors are stopped, and its connections with them.
    Paused,
    /// It does not run.
    Off,
    /// The manager does not say. A VMM's process alone does not show whether its guest is paused.
    Unknown,
}

/// A way to a virtual machine.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(tag = "link", rename_all = "snake_case")]
pub enum Reach {
    /// The kernel's vhost-vsock.
    Kernel {
        /// The context id.
        cid: u32,
        /// The network namespace of the VMM, if it is not that of this process. From Linux 7.0 on, a
        /// context id belongs to one.
        netns: Option<PathBuf>,
    },
    /// A VMM's own Unix socket.
    Hybrid {
        /// The socket's path, as this process reaches it.
        path: PathBuf,
        /// The conventions of the VMM.
        style: HybridStyle,
    },
    /// A vhost-user device, whose back-end listens on this socket: this broker's or another program's.
    VhostUser {
        /// The socket's path, as this process reaches it.
        socket: PathBuf,
    },
}

/// Whose conventions a hybrid socket follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum HybridStyle {
    /// Firecracker's.
    Firecracker,
    /// Cloud Hypervisor's.
    CloudHypervisor,
    /// OpenVMM's.
    #[serde(rename = "openvmm")]
    OpenVmm,
}
