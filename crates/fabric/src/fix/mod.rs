//! What would turn a refusal into a success, as a value.
//!
//! A [`Fix`] names the action and the objects that it concerns. Its text is plain English without a
//! command: the programs that show it know their own commands, languages and shells. Outside this
//! process a fix is a [kind](Fix::kind), a text and [fields](Fix::fields), which are all strings. The
//! endpoint protocol and the control API spell these in their own ways.

mod fields;
#[cfg(test)]
pub(crate) mod tests;

use std::fmt;

use hvsock_address::{PartitionName, PartitionRef, ServiceId, ServiceRef, VmId};
use hvsock_registry::Action;

use crate::partition::PartitionKind;

/// An action that would turn a refusal into a success, or that shows what is missing.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fix {
    /// Register the service.
    RegisterService {
        /// The service. Its name is unknown unless this is one.
        service: ServiceRef,
    },
    /// Register the service at the host of this virtual machine.
    RegisterServiceOnHost {
        /// The service.
        service: ServiceRef,
    },
    /// Remove the registration that another one clashes with.
    UnregisterService {
        /// The registration to remove.
        service: ServiceRef,
    },
    /// Enable the service.
    EnableService {
        /// The service.
        service: ServiceRef,
        /// The partition to enable it for, if it is disabled for that one only.
        partition: Option<PartitionName>,
    },
    /// Enable the service for one partition while it is disabled for all others.
    EnableServiceAsException {
        /// The service.
        service: ServiceRef,
        /// The partition.
        partition: PartitionName,
    },
    /// Add the user, or one of its groups, to an access rule.
    AllowUser {
        /// The rule.
        rule: RuleRef,
        /// The lists that the rule has, of `users` and `groups`. Empty if it has none yet.
        lists: Vec<String>,
        /// The user, by name or id, if the reader may know it.
        user: Option<String>,
    },
    /// Add the partition, or one of its sibling groups, to an access rule.
    AllowPartition {
        /// The rule.
        rule: RuleRef,
        /// The partition.
        partition: PartitionName,
    },
    /// Listen as root of the partition, or allow its other users to listen for the service.
    BecomePartitionRoot {
        /// The service.
        service: ServiceId,
        /// The partition, if the reader may know it.
        partition: Option<PartitionName>,
    },
    /// Allow listeners of the service at the wildcard.
    AllowWildcardBinds {
        /// The service.
        service: ServiceId,
        /// Where the deciding setting is.
        scope: RuleScope,
    },
    /// Listen for the service at the target.
    StartListener {
        /// The service.
        service: ServiceRef,
        /// The partition that the listener must accept from, as the target sees it.
        from: PartitionRef,
    },
    /// Stop the listener that has the address.
    StopListener {
        /// The number of that listener.
        listener: u64,
    },
    /// Resume the partition.
    ResumePartition {
        /// The partition.
        partition: PartitionName,
        /// Its kind.
        kind: PartitionKind,
        /// Its id.
        id: VmId,
    },
    /// Start the partition.
    StartPartition {
        /// The partition.
        partition: PartitionName,
        /// Its kind.
        kind: PartitionKind,
        /// Its id.
        id: VmId,
    },
    /// Load the driver of the vsock device in the guest.
    LoadDriver {
        /// The virtual machine.
        partition: PartitionName,
    },
    /// Start the VMM, which makes the socket by which the virtual machine is reached.
    StartVmm {
        /// The virtual machine.
        partition: PartitionName,
        /// The path of the socket, if the reader may know it.
        path: Option<String>,
    },
    /// Start the virtual machine in the manager that it is known to.
    StartInManager {
        /// The virtual machine.
        partition: PartitionName,
        /// The manager, such as `libvirt`.
        manager: String,
        /// The name that the virtual machine has there.
        vm: String,
    },
    /// Start the virtual machine with the program that manages it, which is not Hyper-V.
    StartWithItsManager,
    /// Remove the partition.
    RemovePartition {
        /// The partition.
        partition: PartitionName,
    },
    /// Add the container without a CDI device.
    AddWithoutDevice {
        /// The container.
        partition: PartitionName,
    },
    /// Change a container in a virtual machine there, by its broker.
    ChangeInVm {
        /// The virtual machine.
        vm: PartitionName,
        /// The container, by its name there.
        container: PartitionName,
        /// The change.
        change: ContainerChange,
    },
    /// Use a well-known id instead of a partition's own id or its parent's.
    UseAddress {
        /// [`VmId::LOOPBACK`] or [`VmId::PARENT`].
        address: VmId,
    },
    /// Add two siblings to a common sibling group.
    JoinGroup {
        /// One partition.
        partition: PartitionName,
        /// The other one.
        other: PartitionName,
    },
    /// See which partitions exist.
    ListPartitions,
    /// See which services are registered.
    ListServices,
    /// See which services are registered at the host of this virtual machine.
    ListServicesOnHost,
    /// See which connections exist.
    ListConnections,
    /// Use the service's GUID or vsock port, which the host of this virtual machine knows.
    UseServiceId {
        /// The name that nothing here resolves.
        service: String,
    },
    /// Ask the host of this virtual machine, which decides.
    ExplainOnHost {
        /// The partition of the request.
        partition: PartitionRef,
        /// The service of the request.
        service: ServiceRef,
        /// Whether the request is a listen and not a connect.
        listening: bool,
    },
    /// Start a broker.
    StartBroker,
    /// Stop the broker that has these folders, or choose another folder for this one.
    StopOtherBroker,
    /// Choose another folder for the broker.
    ChooseFolder,
    /// Give a file or folder to the user who runs the broker.
    TakeOwnership {
        /// Its path.
        path: String,
        /// The id of that user.
        uid: u32,
    },
    /// Let only the owner of a file or folder write to it.
    RestrictWrites {
        /// Its path.
        path: String,
    },
    /// Run the request as a user who [may](crate::Operators) change this.
    BecomeOperator,
    /// Start the agent in the partition.
    StartAgent {
        /// The partition.
        partition: PartitionName,
    },
    /// Load a module of the Linux kernel.
    LoadModule {
        /// Its name.
        module: String,
    },
    /// Give the broker a capability of the Linux kernel.
    GrantCapability {
        /// Its name.
        capability: String,
    },
    /// Free a vsock port of the host, which another process has, or give the service another port.
    FreeVsockPort {
        /// The port.
        port: u32,
    },
    /// Raise this process's limit of open descriptors.
    RaiseDescriptorLimit,
    /// Raise a limit of the operating system's kernel.
    RaiseKernelLimit {
        /// Its name among the system's settings.
        name: String,
        /// A value that is likely to be enough.
        value: u64,
    },
    /// Let other users enter and list a folder.
    OpenFolder {
        /// Its path.
        path: String,
    },
    /// Enable Hyper-V on this machine.
    EnableHyperV,
    /// A fix that this version does not know. It is shown as its text.
    Other {
        /// The kind, empty if there is none.
        kind: String,
        /// The text.
        text: String,
    },
}

/// A change that an operator makes to a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ContainerChange {
    /// Add it.
    Add,
    /// Remove it.
    Remove,
    /// Pause it.
    Pause,
    /// Resume it.
    Resume,
    /// Set its sibling groups.
    SetGroups,
}

impl ContainerChange {
    /// All changes.
    pub const ALL: [Self; 5] = [
        Self::Add,
        Self::Remove,
        Self::Pause,
        Self::Resume,
        Self::SetGroups,
    ];

    /// The change in one word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Add => "add",
            Self::Remove => "remove",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::SetGroups => "groups",
        }
    }
}

/// An access rule of a service: who may listen for it, or who may connect to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleRef {
    /// The service.
    pub service: ServiceId,
    /// Whether the rule is for listening or connecting.
    pub action: Action,
    /// Where the rule is.
    pub scope: RuleScope,
}

/// Where a rule of a service is defined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RuleScope {
    /// In the service's registration.
    Registration,
    /// In the service's override for one partition.
    Partition(PartitionName),
    /// In the defaults for all services.
    Defaults,
}

impl Fix {
    /// The kind, as the endpoint protocol and the control API spell it.
    pub fn kind(&self) -> &str {
        match self {
            Self::RegisterService { .. } => "register_service",
            Self::RegisterServiceOnHost { .. } => "register_service_on_host",
            Self::UnregisterService { .. } => "unregister_service",
            Self::EnableService { .. } => "enable_service",
            Self::EnableServiceAsException { .. } => "enable_service_as_exception",
            Self::AllowUser { .. } => "allow_user",
            Self::AllowPartition { .. } => "allow_partition",
            Self::BecomePartitionRoot { .. } => "become_partition_root",
            Self::AllowWildcardBinds { .. } => "allow_wildcard_binds",
            Self::StartListener { .. } => "start_listener",
            Self::StopListener { .. } => "stop_listener",
            Self::ResumePartition { .. } => "resume_partition",
            Self::StartPartition { .. } => "start_partition",
            Self::LoadDriver { .. } => "load_driver",
            Self::StartVmm { .. } => "start_vmm",
            Self::StartInManager { .. } => "start_in_manager",
            Self::StartWithItsManager => "start_with_its_manager",
            Self::RemovePartition { .. } => "remove_partition",
            Self::AddWithoutDevice { .. } => "add_without_device",
            Self::ChangeInVm { .. } => "change_in_vm",
            Self::UseAddress { .. } => "use_address",
            Self::JoinGroup { .. } => "join_group",
            Self::ListPartitions => "list_partitions",
            Self::ListServices => "list_services",
            Self::ListServicesOnHost => "list_services_on_host",
            Self::ListConnections => "list_connections",
            Self::UseServiceId { .. } => "use_service_id",
            Self::ExplainOnHost { .. } => "explain_on_host",
            Self::StartBroker => "start_broker",
            Self::StopOtherBroker => "stop_other_broker",
            Self::ChooseFolder => "choose_folder",
            Self::TakeOwnership { .. } => "take_ownership",
            Self::RestrictWrites { .. } => "restrict_writes",
            Self::BecomeOperator => "become_operator",
            Self::StartAgent { .. } => "start_agent",
            Self::LoadModule { .. } => "load_module",
            Self::GrantCapability { .. } => "grant_capability",
            Self::FreeVsockPort { .. } => "free_vsock_port",
            Self::RaiseDescriptorLimit => "raise_descriptor_limit",
            Self::RaiseKernelLimit { .. } => "raise_kernel_limit",
            Self::OpenFolder { .. } => "open_folder",
            Self::EnableHyperV => "enable_hyper_v",
            Self::Other { kind, .. } => kind,
        }
    }
}

impl fmt::Display for RuleScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registration => f.write_str("in its registration"),
            Self::Partition(name) => write!(f, "in its override for {name}"),
            Self::Defaults => f.write_str("in the defaults for all services"),
        }
    }
}

/// A service in a sentence: `the service "HV Socket Demo"`, `the service 2761`.
struct Named<'a>(&'a ServiceRef);

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            ServiceRef::Name(name) => write!(f, "the service \"{name}\""),
            ServiceRef::Id(_) => write!(f, "the service {}", self.0),
        }
    }
}

impl fmt::Display for Fix {
    /// One sentence in plain English, without a command and without a full stop.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RegisterService { service } => write!(f, "register {}", Named(service)),
            Self::RegisterServiceOnHost { service } => {
                write!(f, "register {} on the host", Named(service))
            }
            Self::UnregisterService { service } => write!(f, "unregister {}", Named(service)),
            Self::EnableService { service, partition } => {
                write!(f, "enable {}", Named(service))?;
                match partition {
                    Some(partition) => write!(f, " for {partition}"),
                    None => Ok(()),
                }
            }
            Self::EnableServiceAsException { service, partition } => {
                let service = Named(service);
                write!(f, "enable {service} for {partition} as an exception")
            }
            Self::AllowUser { rule, user, .. } => {
                let user = user.as_deref().unwrap_or("the user");
                write!(f, "allow {user}{rule}")
            }
            Self::AllowPartition { rule, partition } => write!(f, "allow {partition}{rule}"),
            Self::BecomePartitionRoot { service, partition } => {
                let service = ServiceRef::Id(*service);
                let name = partition.as_ref().map(PartitionName::as_str);
                let name = name.unwrap_or("the partition");
                write!(
                    f,
                    "listen as root of {name}, or allow its other users to listen for {}",
                    Named(&service)
                )
            }
            Self::AllowWildcardBinds { service, scope } => {
                let service = ServiceRef::Id(*service);
                let service = Named(&service);
                write!(f, "allow listeners of {service} at the wildcard {scope}")
            }
            Self::StartListener { service, from } => {
                let service = Named(service);
                write!(f, "start a listener for {service} that accepts from {from}")
            }
            Self::StopListener { listener } => {
                write!(f, "stop listener {listener}, or listen at another address")
            }
            Self::ResumePartition {
                partition,
                kind: PartitionKind::Vm,
                ..
            } => {
                write!(
                    f,
                    "resume the VM {partition}, or resume it in its VMM, if that paused it"
                )
            }
            Self::ResumePartition {
                partition, kind, ..
            } => write!(f, "resume the {kind} {partition}"),
            Self::StartPartition {
                partition,
                kind: PartitionKind::Vm,
                ..
            } => write!(f, "start the VMM of {partition}"),
            Self::StartPartition {
                partition, kind, ..
            } => write!(f, "start the {kind} {partition}"),
            Self::LoadDriver { partition } => write!(
                f,
                "wait until the guest of {partition} has booted, or load its module \
                 vmw_vsock_virtio_transport there"
            ),
            Self::StartVmm { partition, path } => {
                write!(f, "start the VMM of {partition}")?;
                match path {
                    Some(path) => write!(f, ", whose socket is {path}"),
                    None => Ok(()),
                }
            }
            Self::StartInManager {
                partition,
                manager,
                vm,
            } => {
                write!(f, "start {partition} in {manager}")?;
                match vm == partition.as_str() {
                    true => Ok(()),
                    false => write!(f, ", which calls it {vm}"),
                }
            }
            Self::StartWithItsManager => f.write_str("start it with the program that runs it"),
            Self::RemovePartition { partition } => write!(f, "remove {partition}"),
            Self::AddWithoutDevice { partition } => {
                write!(f, "add {partition} without a CDI device")
            }
            Self::ChangeInVm {
                vm,
                container,
                change,
            } => match change {
                ContainerChange::SetGroups => write!(f, "set the groups of {container} in {vm}"),
                change => write!(f, "{} the container {container} in {vm}", change.word()),
            },
            Self::UseAddress { address } if *address == VmId::LOOPBACK => {
                f.write_str("use LOOPBACK instead of the partition's own id")
            }
            Self::UseAddress { address } if *address == VmId::PARENT => {
                f.write_str("use PARENT instead of the parent's id")
            }
            Self::UseAddress { address } => write!(f, "use the address {address}"),
            Self::JoinGroup { .. } => f.write_str("add both partitions to a common sibling group"),
            Self::ListPartitions => f.write_str("see which partitions exist"),
            Self::ListServices => f.write_str("see which services are registered"),
            Self::ListServicesOnHost => {
                f.write_str("see which services are registered on the host")
            }
            Self::ListConnections => f.write_str("see which connections exist"),
            Self::UseServiceId { service } => {
                write!(
                    f,
                    "use the GUID or vsock port that \"{service}\" has on the host"
                )
            }
            Self::ExplainOnHost { .. } => f.write_str("have the host explain it"),
            Self::StartBroker => f.write_str("start a broker"),
            Self::StopOtherBroker => f.write_str("stop that broker, or choose another folder"),
            Self::ChooseFolder => f.write_str("choose another folder for the broker"),
            Self::BecomeOperator => {
                f.write_str("do this as root or as the user who runs the broker")
            }
            Self::TakeOwnership { path, uid } => write!(f, "give {path} to the user {uid}"),
            Self::RestrictWrites { path } => write!(f, "let only the owner write to {path}"),
            Self::StartAgent { partition } => write!(f, "start the agent in {partition}"),
            Self::LoadModule { module } => write!(f, "load the kernel module {module}"),
            Self::GrantCapability { capability } => {
                write!(f, "run the broker as root or with {capability}")
            }
            Self::FreeVsockPort { port } => {
                write!(
                    f,
                    "free the vsock port {port}, or give the service another one"
                )
            }
            Self::RaiseDescriptorLimit => {
                f.write_str("raise the limit of open files of this process")
            }
            Self::RaiseKernelLimit { name, value } => {
                write!(f, "set the kernel's limit {name} to {value}")
            }
            Self::OpenFolder { path } => write!(f, "let other users enter and list {path}"),
            Self::EnableHyperV => f.write_str("enable Hyper-V on this machine, then restart it"),
            Self::Other { text, .. } => f.write_str(text),
        }
    }
}

impl fmt::Display for RuleRef {
    /// The end of a sentence: ` to connect to the service 2761 in its registration`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            service,
            action,
            scope,
        } = self;
        let verb = match action {
            Action::Bind => "listen for",
            Action::Connect => "connect to",
        };
        let service = ServiceRef::Id(*service);
        write!(f, " to {verb} {} {scope}", Named(&service))
    }
}
