//! Partitions: the host, its virtual machines and its containers.

use std::path::PathBuf;

use hvsock_address::{PartitionName, VmId};
use serde::{Deserialize, Serialize};

use crate::{Guest, LinkSpec};

/// The kind of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum PartitionKind {
    /// The machine that the broker runs on.
    Host,
    /// A virtual machine.
    Vm,
    /// A container.
    Container,
}

/// The state of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum PartitionState {
    /// A VM whose VMM has not been seen since the broker started, or a container that its runtime has
    /// announced before and has not now.
    Defined,
    /// A VM whose VMM is there, and whose guest has not started its vsock driver.
    Connected,
    /// Running.
    Running,
    /// Paused: its connections are suspended or reset.
    Paused,
    /// Off: it has no connections.
    Off,
    /// A VM or container of which nobody says whether it runs: connects are tried.
    Unknown,
    /// A container whose first process has ended: it has no connections.
    Exited,
}

impl PartitionState {
    /// Whether it can have connections that carry data: it runs, as far as is known.
    pub fn is_up(self) -> bool {
        hvsock_fabric::PartitionState::from(self).is_up()
    }

    /// Whether it has neither connections nor listeners.
    pub fn is_down(self) -> bool {
        hvsock_fabric::PartitionState::from(self).is_down()
    }

    /// The state in one word, as in JSON.
    pub fn label(self) -> &'static str {
        hvsock_fabric::PartitionState::from(self).label()
    }
}

/// A partition and its status.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Partition {
    /// Its name.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub name: PartitionName,
    /// Its id.
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = Uuid))]
    pub id: VmId,
    /// Its kind.
    pub kind: PartitionKind,
    /// Its state.
    pub state: PartitionState,
    /// Its parent's name; absent for the broker's own partition.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub parent: Option<PartitionName>,
    /// The sibling groups that it is in.
    pub groups: Vec<String>,
    /// The endpoint by which its processes reach the broker.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub endpoint: Option<PathBuf>,
    /// The context id (CID) by which programs that know only `AF_VSOCK` name it. That of a VM is its VMM's, by
    /// which siblings reach it or, with a kernel link, the kernel. Absent for the broker's own partition.
    #[serde(default)]
    pub cid: Option<u32>,
    /// How a VM's connections reach its guest; absent for other partitions.
    #[serde(default)]
    pub link: Option<LinkSpec>,
    /// What the link to a VM's guest cannot do, in words.
    #[serde(default)]
    pub lacks: Vec<String>,
    /// What is in the way of its connections, in words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
    /// The vhost-user socket for the vsock device of a VM's VMM.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub socket: Option<PathBuf>,
    /// The Unix socket by which programs on the host reach a VM's guest with `CONNECT <port>` (hybrid
    /// vsock).
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub hybrid_socket: Option<PathBuf>,
    /// Whether a VM's memory is accepted unsealed even if the broker does not handle SIGBUS, since the program
    /// that it is in does. Its VMM could then end that program. Elsewhere unsealed memory is always accepted.
    #[serde(default)]
    pub unsealed_memory: bool,
    /// The user that a VM's VMM runs as, if not the broker's.
    #[serde(default)]
    pub user: Option<String>,
    /// Whether an operator paused it. A VM then stays paused even if its VMM resumes it.
    #[serde(default)]
    pub paused_by_operator: bool,
    /// The uplink to it, if it is the host of the virtual machine that the broker runs in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uplink: Option<Box<UplinkStatus>>,
    /// The number of its listeners now.
    pub listeners: usize,
    /// The number of its connections now. A connection within it counts once.
    pub connections: usize,
    /// The broker in a VM's guest, while it is connected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub broker: Option<GuestBroker>,
    /// The status of its guest; absent without a report since it started.
    #[serde(default)]
    pub guest: Option<Box<Guest>>,
    /// What only a container has; absent for other partitions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<Container>,
}

/// What only a container has.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Container {
    /// The id that its runtime has given the container that is bound to it; absent if none is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oci_id: Option<String>,
    /// The number of the first process of that container, as the broker numbers it; absent once it has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Whether it is removed with the container of its runtime.
    #[serde(default)]
    pub ephemeral: bool,
    /// The device by which container engines mount its endpoint; absent if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cdi: Option<CdiDevice>,
}

/// A device of the Container Device Interface (CDI), which mounts a container's endpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CdiDevice {
    /// Its qualified name, such as `hvsock.dev/endpoint=web`.
    pub device: String,
    /// The file that describes it.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub file: PathBuf,
}

/// The broker in the guest of a VM.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GuestBroker {
    /// Seconds since it connected.
    pub connected_seconds: f64,
    /// The number of containers that it has announced: partitions whose parent is the VM.
    pub containers: usize,
}

/// A container of a runtime that is to be bound to a container partition.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct NewBinding {
    /// The runtime's id of the container.
    pub oci_id: String,
    /// The number of its first process, as the broker numbers it. A pidfd of that process, sent with the first
    /// byte of the request (`SCM_RIGHTS`), replaces it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Whether containers may be started without being bound, for example while no broker runs. Then a
    /// broker that finds after its start that this one has ended knows nothing of the next.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub optional: bool,
}

/// The uplink of the broker in a virtual machine to the broker of its host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct UplinkStatus {
    /// Whether there is one.
    pub state: UplinkState,
    /// Seconds since it has this state.
    pub age_seconds: f64,
    /// The name of this virtual machine at the host, while the uplink is open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name_at_host: Option<String>,
    /// The id of this virtual machine at the host, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = Uuid))]
    pub id_at_host: Option<VmId>,
    /// Why there is none, as a clause.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// The state of an uplink.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum UplinkState {
    /// It is being made for the first time.
    Connecting,
    /// There is one.
    Open,
    /// There is none. It is tried again.
    Down,
}

/// A container to add.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct NewContainer {
    /// Its name.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub name: PartitionName,
    /// Its id; if absent, derived from the name as Windows does.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = Uuid))]
    pub id: Option<VmId>,
    /// The sibling groups that it is in: members of one group reach each other.
    #[serde(default)]
    pub groups: Vec<String>,
    /// Whether it is removed when the container of its runtime has ended.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ephemeral: bool,
    /// Whether it has a CDI device, if its broker writes such devices.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub cdi: bool,
    /// Whether it is enough that it exists with these settings.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub if_absent: bool,
}

fn yes() -> bool {
    true
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_yes(value: &bool) -> bool {
    *value
}

impl NewContainer {
    /// A container with the default settings.
    pub fn new(name: PartitionName) -> Self {
        Self {
            name,
            id: None,
            groups: Vec::new(),
            cdi: true,
            if_absent: false,
            ephemeral: false,
        }
    }
}

/// The settings that only a virtual machine has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VmSpec {
    /// Its context id (CID), from 3 to 4294967294. If absent, the lowest free one for a vhost-user
    /// device, and none for hybrid sockets.
    pub cid: Option<u32>,
    /// How its connections reach its guest.
    pub link: LinkSpec,
    /// Whether its memory is accepted unsealed even if the broker does not handle SIGBUS, since the program
    /// that it is in does. Its VMM could then end that program. Elsewhere unsealed memory is always accepted.
    pub unsealed_memory: bool,
    /// The name or number of the user that its VMM runs as, if not the broker's.
    pub user: Option<String>,
}

/// A virtual machine to add.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct NewVm {
    /// Its name.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub name: PartitionName,
    /// Its context id (CID), from 3 to 4294967294. If absent, the lowest free one for a vhost-user
    /// device, and none for hybrid sockets. A kernel link requires it.
    #[serde(default)]
    pub cid: Option<u32>,
    /// How its connections reach its guest.
    #[serde(default)]
    pub link: LinkSpec,
    /// Its id; if absent, a random one.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = Uuid))]
    pub id: Option<VmId>,
    /// The sibling groups that it is in: members of one group reach each other.
    #[serde(default)]
    pub groups: Vec<String>,
    /// Whether its memory is accepted unsealed even if the broker does not handle SIGBUS, since the program
    /// that it is in does. Its VMM could then end that program. Elsewhere unsealed memory is always accepted.
    #[serde(default)]
    pub unsealed_memory: bool,
    /// The name or number of the user that its VMM runs as, if not the broker's. Requires a broker
    /// that runs as root.
    #[serde(default)]
    pub user: Option<String>,
}

/// Changes to a partition. Absent fields stay unchanged.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct PartitionChange {
    /// Its state. Pausing resets its connections, except those with `HVSOCKET_CONNECTED_SUSPEND`,
    /// which are suspended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<PartitionState>,
    /// Its sibling groups.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub groups: Option<Vec<String>>,
}

impl From<hvsock_fabric::PartitionKind> for PartitionKind {
    fn from(kind: hvsock_fabric::PartitionKind) -> Self {
        match kind {
            hvsock_fabric::PartitionKind::Host => Self::Host,
            hvsock_fabric::PartitionKind::Vm => Self::Vm,
            hvsock_fabric::PartitionKind::Container => Self::Container,
        }
    }
}

impl From<hvsock_fabric::PartitionState> for PartitionState {
    fn from(state: hvsock_fabric::PartitionState) -> Self {
        match state {
            hvsock_fabric::PartitionState::Defined => Self::Defined,
            hvsock_fabric::PartitionState::Connected => Self::Connected,
            hvsock_fabric::PartitionState::Running => Self::Running,
            hvsock_fabric::PartitionState::Paused => Self::Paused,
            hvsock_fabric::PartitionState::Off => Self::Off,
            hvsock_fabric::PartitionState::Unknown => Self::Unknown,
            hvsock_fabric::PartitionState::Exited => Self::Exited,
        }
    }
}

impl From<PartitionState> for hvsock_fabric::PartitionState {
    fn from(state: PartitionState) -> Self {
        match state {
            PartitionState::Defined => Self::Defined,
            PartitionState::Connected => Self::Connected,
            PartitionState::Running => Self::Running,
            PartitionState::Paused => Self::Paused,
            PartitionState::Off => Self::Off,
            PartitionState::Unknown => Self::Unknown,
            PartitionState::Exited => Self::Exited,
        }
    }
}
