//! What an operator sees: the values that the control API sends and takes, as the broker's own
//! functions return them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use hvsock_address::{ElementName, PartitionName, PartitionRef, ServiceId, VmId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The broker at a glance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Status {
    /// The broker's version.
    pub version: String,
    /// The broker's process id.
    pub pid: u32,
    /// The user id that the broker runs as.
    pub uid: u32,
    /// Seconds since it started.
    pub uptime_seconds: u64,
    /// The folder of its sockets.
    #[schema(value_type = String)]
    pub run_dir: PathBuf,
    /// The folder of its configuration.
    #[schema(value_type = String)]
    pub config_dir: PathBuf,
    /// The name of the partition that it serves.
    #[schema(value_type = String)]
    pub partition: PartitionName,
    /// How many registrations there are.
    pub services: usize,
    /// How many partitions there are, its own among them.
    pub partitions: usize,
    /// How many listeners there are.
    pub listeners: usize,
    /// How many connections there are.
    pub connections: usize,
    /// Configuration files that could not be read, one sentence each.
    pub problems: Vec<String>,
}

/// A registration, with what is using it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Service {
    /// The service's GUID.
    #[schema(value_type = String, format = Uuid)]
    pub id: ServiceId,
    /// The friendly name.
    #[schema(value_type = String)]
    pub name: ElementName,
    /// The vsock port, for a GUID on the vsock template.
    pub port: Option<u32>,
    /// The vsock port by which guests reach it, for any other GUID.
    #[serde(default)]
    pub alias: Option<u32>,
    /// Whether it may be used.
    pub enabled: bool,
    /// Who may listen; lists left out fall to the defaults.
    #[serde(default)]
    pub bind: AccessList,
    /// Who may connect; lists left out fall to the defaults.
    #[serde(default)]
    pub connect: AccessList,
    /// Whether a listener may accept from every partition at once; absent: the default.
    pub allow_wildcard_binds: Option<bool>,
    /// What differs for one child partition.
    #[serde(default)]
    pub vm: BTreeMap<String, ServiceOverride>,
    /// The user who registered it.
    pub owner: Option<String>,
    /// The program that registered it.
    pub creator: Option<String>,
    /// What it is for.
    pub purpose: Option<String>,
    /// Whether it ends with the process that registered it.
    pub lease: bool,
    /// Whether it ships with Windows and is only listed so that nobody takes its GUID.
    pub in_box: bool,
    /// How many listeners offer it now.
    pub listeners: usize,
    /// How many connections it has now.
    pub connections: usize,
}

/// Who may do one thing with one service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AccessList {
    /// User names or ids of the partition that owns the registry; `*` is everyone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub users: Option<Vec<String>>,
    /// Group names or ids of the partition that owns the registry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub groups: Option<Vec<String>>,
    /// Names or ids of child partitions; `@group` is a sibling group, `*` is every child.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partitions: Option<Vec<String>>,
}

/// What differs for one child partition.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ServiceOverride {
    /// Replaces the service's `enabled`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// Lists given here replace those of the service's `bind`.
    #[serde(default)]
    pub bind: AccessList,
    /// Lists given here replace those of the service's `connect`.
    #[serde(default)]
    pub connect: AccessList,
    /// Replaces the service's `allow_wildcard_binds`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow_wildcard_binds: Option<bool>,
}

/// A service to register.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewService {
    /// The friendly name.
    #[schema(value_type = String)]
    pub name: ElementName,
    /// The GUID; a fresh one if absent.
    #[serde(default)]
    #[schema(value_type = Option<String>, format = Uuid)]
    pub id: Option<ServiceId>,
    /// Whether it may be used at once.
    #[serde(default = "yes")]
    pub enabled: bool,
    /// Who may listen.
    #[serde(default)]
    pub bind: AccessList,
    /// Who may connect.
    #[serde(default)]
    pub connect: AccessList,
    /// Whether a listener may accept from every partition at once.
    #[serde(default)]
    pub allow_wildcard_binds: Option<bool>,
    /// What differs for one child partition.
    #[serde(default)]
    pub vm: BTreeMap<String, ServiceOverride>,
    /// The program that registers it.
    #[serde(default)]
    pub creator: Option<String>,
    /// What it is for.
    #[serde(default)]
    pub purpose: Option<String>,
}

fn yes() -> bool {
    true
}

/// What to change of a service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ServiceChange {
    /// Whether it may be used. Disabling also cuts what is established.
    pub enabled: bool,
    /// Only for this child partition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub vm: Option<PartitionRef>,
}

/// What an import came to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Imported {
    /// What was registered. What was there already, by id and name, is not among it.
    pub added: Vec<Service>,
    /// What was unregistered, as it was.
    pub removed: Vec<Service>,
    /// What the file says that was left out or made up, and why.
    pub notes: Vec<String>,
}

/// What a partition is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PartitionKind {
    /// The machine that the broker runs on.
    Host,
    /// A virtual machine.
    Vm,
    /// A container.
    Container,
}

/// Whether a partition takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PartitionState {
    /// Known, and not there.
    Off,
    /// There.
    Running,
    /// There, and standing still.
    Paused,
}

/// A partition, with what is in it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Partition {
    /// Its name.
    #[schema(value_type = String)]
    pub name: PartitionName,
    /// Its id.
    #[schema(value_type = String, format = Uuid)]
    pub id: VmId,
    /// What it is.
    pub kind: PartitionKind,
    /// Whether it takes part.
    pub state: PartitionState,
    /// Its parent's name; absent for the broker's own partition.
    #[schema(value_type = Option<String>)]
    pub parent: Option<PartitionName>,
    /// The sibling groups that it is in.
    pub groups: Vec<String>,
    /// The endpoint by which its processes reach the broker.
    #[schema(value_type = Option<String>)]
    pub endpoint: Option<PathBuf>,
    /// A VM's context id, by which its siblings reach it.
    #[serde(default)]
    pub cid: Option<u32>,
    /// The vhost-user socket for the vsock device of a VM's VMM.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub socket: Option<PathBuf>,
    /// Whether a VM's memory is taken even if its VMM can shrink it and end the broker by that.
    #[serde(default)]
    pub unsealed_memory: bool,
    /// The user that a VM's VMM runs as, if not the broker's.
    #[serde(default)]
    pub user: Option<String>,
    /// Whether an operator paused it: a VM then stands still whatever its VMM does.
    #[serde(default)]
    pub paused_by_operator: bool,
    /// How many listeners it has now.
    pub listeners: usize,
    /// How many connections it has now; one inside it counts once.
    pub connections: usize,
}

/// A container to add.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewContainer {
    /// Its name.
    #[schema(value_type = String)]
    pub name: PartitionName,
    /// Its id; derived from the name as Windows does if absent.
    #[serde(default)]
    #[schema(value_type = Option<String>, format = Uuid)]
    pub id: Option<VmId>,
    /// The sibling groups that it is in: members of one group reach each other.
    #[serde(default)]
    pub groups: Vec<String>,
}

/// A virtual machine to add.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewVm {
    /// Its name.
    #[schema(value_type = String)]
    pub name: PartitionName,
    /// Its context id, from 3 to 4294967294; the lowest that no VM here has if absent.
    #[serde(default)]
    pub cid: Option<u32>,
    /// Its id; a fresh one if absent.
    #[serde(default)]
    #[schema(value_type = Option<String>, format = Uuid)]
    pub id: Option<VmId>,
    /// The sibling groups that it is in: members of one group reach each other.
    #[serde(default)]
    pub groups: Vec<String>,
    /// Whether its memory is taken even if its VMM can shrink it and end the broker by that.
    #[serde(default)]
    pub unsealed_memory: bool,
    /// The name or number of the user that its VMM runs as, if not the broker's. It takes a broker
    /// run by root.
    #[serde(default)]
    pub user: Option<String>,
}

/// What to change of a partition; what is left out stays.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PartitionChange {
    /// Its state. Pausing cuts its connections, except those that asked to be kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<PartitionState>,
    /// Its sibling groups.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub groups: Option<Vec<String>>,
}

/// A socket that accepts connections.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Listener {
    /// Its number.
    pub id: u64,
    /// The service that it offers.
    #[schema(value_type = String, format = Uuid)]
    pub service: ServiceId,
    /// The service's friendly name, where it is registered.
    #[schema(value_type = Option<String>)]
    pub service_name: Option<ElementName>,
    /// Whom it accepts from: a well-known word, or a partition's name or id.
    pub from: String,
    /// The process behind it.
    pub end: End,
    /// How many connections may wait to be taken.
    pub backlog: u32,
    /// How many wait now.
    pub waiting: u32,
    /// Seconds since it began.
    pub age_seconds: f64,
}

/// A process, or a guest, at one end of a connection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct End {
    /// The name of its partition.
    #[schema(value_type = String)]
    pub partition: PartitionName,
    /// The id of its partition.
    #[schema(value_type = String, format = Uuid)]
    pub vm_id: VmId,
    /// Whether it is a guest, of whose processes and users only its own kernel knows.
    #[serde(default)]
    pub guest: bool,
    /// Its process id on this machine; a guest has none, which is 0.
    pub pid: u32,
    /// Its user id on this machine; a guest has none, which is 4294967295.
    pub uid: u32,
    /// Its user's name on this machine.
    pub user: Option<String>,
    /// Whether it set `HVSOCKET_CONNECTED_SUSPEND`.
    pub connected_suspend: bool,
}

/// How a connection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ConnectionState {
    /// Waiting for the listener to take it.
    Waiting,
    /// Data may flow.
    Open,
    /// Kept, and standing still, while a partition is paused.
    Suspended,
}

/// A connection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Connection {
    /// Its number.
    pub id: u64,
    /// The service.
    #[schema(value_type = String, format = Uuid)]
    pub service: ServiceId,
    /// The service's friendly name, where it is registered.
    #[schema(value_type = Option<String>)]
    pub service_name: Option<ElementName>,
    /// The end that connected.
    pub from: End,
    /// The end that accepted.
    pub to: End,
    /// How its bytes move: `ring`, between its ends, or `descriptor`, through the broker.
    pub transport: String,
    /// How it stands.
    pub state: ConnectionState,
    /// Bytes from the connecting end to the accepting end; with a ring, as that end says.
    pub bytes_sent: u64,
    /// Bytes from the accepting end to the connecting end; with a ring, as that end says.
    pub bytes_received: u64,
    /// Seconds since it began.
    pub age_seconds: f64,
}

/// A refusal in words and in numbers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RefusalReport {
    /// The word that metrics and logs use, such as `no_listener`.
    pub reason: String,
    /// One sentence.
    pub message: String,
    /// The errno that a program gets.
    pub errno: i32,
    /// What to do about it, where a command would help.
    pub fix: Option<String>,
}

/// One question on the way to a verdict.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Step {
    /// What was asked.
    pub question: String,
    /// What the answer was, and which rule gave it.
    pub answer: String,
    /// Whether the connect or listen could go on.
    pub pass: bool,
}

/// What would happen, and why.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Explanation {
    /// One sentence.
    pub verdict: String,
    /// Why it would be refused; absent if it would succeed.
    pub refusal: Option<RefusalReport>,
    /// The questions in the order in which they were asked.
    pub steps: Vec<Step>,
}

/// Something that happened, for those who follow along.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// Milliseconds since 1970, UTC.
    pub time_ms: u64,
    /// What happened.
    #[serde(flatten)]
    pub what: EventKind,
}

/// The kinds of event.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum EventKind {
    /// A service was registered.
    ServiceRegistered {
        /// The service as it is now.
        service: String,
    },
    /// A service's entry changed.
    ServiceChanged {
        /// The service.
        service: String,
        /// Whether it may be used now.
        enabled: bool,
    },
    /// A service's entry is gone.
    ServiceUnregistered {
        /// The service.
        service: String,
    },
    /// A partition was added.
    PartitionAdded {
        /// Its name.
        partition: String,
    },
    /// A partition was removed.
    PartitionRemoved {
        /// Its name.
        partition: String,
    },
    /// A partition's state changed.
    PartitionState {
        /// Its name.
        partition: String,
        /// Its state now.
        state: PartitionState,
    },
    /// A listener began.
    ListenerOpened {
        /// Its number.
        listener: u64,
        /// Its service.
        service: String,
        /// Its partition.
        partition: String,
    },
    /// A listener ended.
    ListenerClosed {
        /// Its number.
        listener: u64,
        /// Its service.
        service: String,
        /// Its partition.
        partition: String,
        /// Why, if it was cut.
        reason: Option<String>,
    },
    /// A connection began.
    ConnectionOpened {
        /// Its number.
        connection: u64,
        /// Its service.
        service: String,
        /// The partition that connected.
        from: String,
        /// The partition that accepted.
        to: String,
    },
    /// A connection ended.
    ConnectionClosed {
        /// Its number.
        connection: u64,
        /// Its service.
        service: String,
        /// Bytes from the connecting end.
        bytes_sent: u64,
        /// Bytes from the accepting end.
        bytes_received: u64,
        /// Why, if it was cut or broke.
        reason: Option<String>,
    },
    /// A connect or listen was refused.
    Refused {
        /// The partition that asked.
        from: String,
        /// The address that was asked for.
        address: String,
        /// The refusal's word.
        reason: String,
        /// The refusal's sentence.
        message: String,
    },
    /// A configuration file cannot be read.
    ConfigProblem {
        /// One sentence with file and line.
        problem: String,
    },
    /// The reader was too slow; events are missing here.
    Missed {
        /// How many.
        events: u64,
    },
}

/// What went wrong with a request, for programs and for people.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// One sentence, with the next step where there is one.
    pub error: String,
}

/// Everything that the broker counts, as it stands at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MetricsSnapshot {
    /// By service.
    pub services: Vec<ServiceMetrics>,
    /// Refusals since the broker started, by the refusal's word.
    pub refusals: BTreeMap<String, u64>,
    /// How many partitions there are of each kind in each state.
    pub partitions: Vec<(PartitionKind, PartitionState, u64)>,
    /// The broker's open descriptors.
    pub open_fds: u64,
    /// The broker's resident memory in bytes.
    pub resident_bytes: u64,
    /// When the broker started, in seconds since 1970, UTC.
    pub start_time_seconds: f64,
}

/// What is counted for one service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ServiceMetrics {
    /// The friendly name; absent for everything that is not registered, counted as one.
    pub service: Option<String>,
    /// Connections since the broker started.
    pub connections_total: u64,
    /// Connections now.
    pub connections: u64,
    /// Listeners now.
    pub listeners: u64,
    /// Bytes from connecting ends since the broker started.
    pub sent_bytes: u64,
    /// Bytes from accepting ends since the broker started.
    pub received_bytes: u64,
}
