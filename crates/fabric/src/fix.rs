//! What would turn a refusal into a success, as a value.
//!
//! A [`Fix`] names the action and the objects that it concerns. Its text is plain English without a
//! command: the programs that show it know their own commands, languages and shells. Outside this
//! process a fix is a [kind](Fix::kind), a text and [fields](Fix::fields), which are all strings. The
//! endpoint protocol and the control API spell these in their own ways.

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
    /// Start the virtual machine with the program that manages it, which is not Hyper-V.
    StartWithItsManager,
    /// Remove the partition.
    RemovePartition {
        /// The partition.
        partition: PartitionName,
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
    /// Raise this process's limit of open descriptors.
    RaiseDescriptorLimit,
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

/// The keys of [`Fix::fields`].
mod key {
    pub(super) const SERVICE: &str = "service";
    pub(super) const PARTITION: &str = "partition";
    pub(super) const OTHER: &str = "other";
    pub(super) const PARTITION_KIND: &str = "partition_kind";
    pub(super) const ID: &str = "id";
    pub(super) const ACTION: &str = "action";
    pub(super) const SCOPE: &str = "scope";
    pub(super) const SCOPE_PARTITION: &str = "scope_partition";
    pub(super) const LISTS: &str = "lists";
    pub(super) const USER: &str = "user";
    pub(super) const FROM: &str = "from";
    pub(super) const LISTENER: &str = "listener";
    pub(super) const ADDRESS: &str = "address";
    pub(super) const LISTENING: &str = "listening";
    pub(super) const MODULE: &str = "module";
    pub(super) const PATH: &str = "path";
    pub(super) const UID: &str = "uid";
}

impl Fix {
    /// The kind, as the endpoint protocol and the control API spell it.
    pub fn kind(&self) -> &str {
        match self {
            Self::RegisterService { .. } => "register_service",
            Self::RegisterServiceOnHost { .. } => "register_service_on_host",
            Self::UnregisterService { .. } => "unregister_service",
            Self::EnableService { .. } => "enable_service",
            Self::AllowUser { .. } => "allow_user",
            Self::AllowPartition { .. } => "allow_partition",
            Self::AllowWildcardBinds { .. } => "allow_wildcard_binds",
            Self::StartListener { .. } => "start_listener",
            Self::StopListener { .. } => "stop_listener",
            Self::ResumePartition { .. } => "resume_partition",
            Self::StartPartition { .. } => "start_partition",
            Self::StartWithItsManager => "start_with_its_manager",
            Self::RemovePartition { .. } => "remove_partition",
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
            Self::RaiseDescriptorLimit => "raise_descriptor_limit",
            Self::EnableHyperV => "enable_hyper_v",
            Self::Other { kind, .. } => kind,
        }
    }

    /// The data of this fix, as keys and values. Optional data that is absent has no key.
    pub fn fields(&self) -> Vec<(&'static str, String)> {
        let mut fields = Vec::new();
        let mut add = |key, value: &dyn fmt::Display| fields.push((key, value.to_string()));
        match self {
            Self::RegisterService { service }
            | Self::RegisterServiceOnHost { service }
            | Self::UnregisterService { service } => add(key::SERVICE, service),
            Self::EnableService { service, partition } => {
                add(key::SERVICE, service);
                if let Some(partition) = partition {
                    add(key::PARTITION, partition);
                }
            }
            Self::AllowUser { rule, lists, user } => {
                rule.add_fields(&mut add);
                if !lists.is_empty() {
                    add(key::LISTS, &lists.join(","));
                }
                if let Some(user) = user {
                    add(key::USER, user);
                }
            }
            Self::AllowPartition { rule, partition } => {
                rule.add_fields(&mut add);
                add(key::PARTITION, partition);
            }
            Self::AllowWildcardBinds { service, scope } => {
                add(key::SERVICE, service);
                scope.add_fields(&mut add);
            }
            Self::StartListener { service, from } => {
                add(key::SERVICE, service);
                add(key::FROM, from);
            }
            Self::StopListener { listener } => add(key::LISTENER, listener),
            Self::ResumePartition {
                partition,
                kind,
                id,
            }
            | Self::StartPartition {
                partition,
                kind,
                id,
            } => {
                add(key::PARTITION, partition);
                add(key::PARTITION_KIND, &kind_word(*kind));
                add(key::ID, id);
            }
            Self::RemovePartition { partition } | Self::StartAgent { partition } => {
                add(key::PARTITION, partition);
            }
            Self::UseAddress { address } => add(key::ADDRESS, address),
            Self::JoinGroup { partition, other } => {
                add(key::PARTITION, partition);
                add(key::OTHER, other);
            }
            Self::UseServiceId { service } => add(key::SERVICE, service),
            Self::ExplainOnHost {
                partition,
                service,
                listening,
            } => {
                add(key::PARTITION, partition);
                add(key::SERVICE, service);
                add(key::LISTENING, listening);
            }
            Self::LoadModule { module } => add(key::MODULE, module),
            Self::TakeOwnership { path, uid } => {
                add(key::PATH, path);
                add(key::UID, uid);
            }
            Self::RestrictWrites { path } => add(key::PATH, path),
            Self::StartWithItsManager
            | Self::ListPartitions
            | Self::ListServices
            | Self::ListServicesOnHost
            | Self::ListConnections
            | Self::StartBroker
            | Self::StopOtherBroker
            | Self::ChooseFolder
            | Self::BecomeOperator
            | Self::RaiseDescriptorLimit
            | Self::EnableHyperV
            | Self::Other { .. } => {}
        }
        fields
    }

    /// Reads a fix from its [kind](Self::kind), its text and its [fields](Self::fields). An unknown
    /// kind, or a known one without the data that it needs, becomes [`Fix::Other`].
    pub fn from_fields<'a>(
        kind: &str,
        text: &str,
        field: impl Fn(&str) -> Option<&'a str>,
    ) -> Self {
        let fields = Fields(&field);
        fields.read(kind).unwrap_or_else(|| Self::Other {
            kind: kind.to_owned(),
            text: text.to_owned(),
        })
    }
}

/// The fields of a fix to read.
struct Fields<'f, F>(&'f F);

impl<'a, F: Fn(&str) -> Option<&'a str>> Fields<'_, F> {
    fn get<T: std::str::FromStr>(&self, key: &str) -> Option<T> {
        (self.0)(key)?.parse().ok()
    }

    /// A value that may be absent, but not invalid.
    fn optional<T: std::str::FromStr>(&self, key: &str) -> Option<Option<T>> {
        match (self.0)(key) {
            Some(text) => text.parse().ok().map(Some),
            None => Some(None),
        }
    }

    fn scope(&self) -> Option<RuleScope> {
        Some(match (self.0)(key::SCOPE)? {
            "registration" => RuleScope::Registration,
            "partition" => RuleScope::Partition(self.get(key::SCOPE_PARTITION)?),
            "defaults" => RuleScope::Defaults,
            _ => return None,
        })
    }

    fn rule(&self) -> Option<RuleRef> {
        Some(RuleRef {
            service: self.get(key::SERVICE)?,
            action: match (self.0)(key::ACTION)? {
                "bind" => Action::Bind,
                "connect" => Action::Connect,
                _ => return None,
            },
            scope: self.scope()?,
        })
    }

    fn partition_kind(&self) -> Option<PartitionKind> {
        let word = (self.0)(key::PARTITION_KIND)?;
        let kinds = [
            PartitionKind::Host,
            PartitionKind::Vm,
            PartitionKind::Container,
        ];
        kinds.into_iter().find(|kind| kind_word(*kind) == word)
    }

    fn read(&self, kind: &str) -> Option<Fix> {
        let service = || self.get(key::SERVICE);
        Some(match kind {
            "register_service" => Fix::RegisterService {
                service: service()?,
            },
            "register_service_on_host" => Fix::RegisterServiceOnHost {
                service: service()?,
            },
            "unregister_service" => Fix::UnregisterService {
                service: service()?,
            },
            "enable_service" => Fix::EnableService {
                service: service()?,
                partition: self.optional(key::PARTITION)?,
            },
            "allow_user" => Fix::AllowUser {
                rule: self.rule()?,
                lists: match (self.0)(key::LISTS) {
                    Some(lists) => lists.split(',').map(str::to_owned).collect(),
                    None => Vec::new(),
                },
                user: self.optional(key::USER)?,
            },
            "allow_partition" => Fix::AllowPartition {
                rule: self.rule()?,
                partition: self.get(key::PARTITION)?,
            },
            "allow_wildcard_binds" => Fix::AllowWildcardBinds {
                service: self.get(key::SERVICE)?,
                scope: self.scope()?,
            },
            "start_listener" => Fix::StartListener {
                service: service()?,
                from: self.get(key::FROM)?,
            },
            "stop_listener" => Fix::StopListener {
                listener: self.get(key::LISTENER)?,
            },
            "resume_partition" => Fix::ResumePartition {
                partition: self.get(key::PARTITION)?,
                kind: self.partition_kind()?,
                id: self.get(key::ID)?,
            },
            "start_partition" => Fix::StartPartition {
                partition: self.get(key::PARTITION)?,
                kind: self.partition_kind()?,
                id: self.get(key::ID)?,
            },
            "start_with_its_manager" => Fix::StartWithItsManager,
            "remove_partition" => Fix::RemovePartition {
                partition: self.get(key::PARTITION)?,
            },
            "use_address" => Fix::UseAddress {
                address: self.get(key::ADDRESS)?,
            },
            "join_group" => Fix::JoinGroup {
                partition: self.get(key::PARTITION)?,
                other: self.get(key::OTHER)?,
            },
            "list_partitions" => Fix::ListPartitions,
            "list_services" => Fix::ListServices,
            "list_services_on_host" => Fix::ListServicesOnHost,
            "list_connections" => Fix::ListConnections,
            "use_service_id" => Fix::UseServiceId {
                service: self.get(key::SERVICE)?,
            },
            "explain_on_host" => Fix::ExplainOnHost {
                partition: self.get(key::PARTITION)?,
                service: service()?,
                listening: self.get(key::LISTENING)?,
            },
            "start_broker" => Fix::StartBroker,
            "stop_other_broker" => Fix::StopOtherBroker,
            "choose_folder" => Fix::ChooseFolder,
            "take_ownership" => Fix::TakeOwnership {
                path: self.get(key::PATH)?,
                uid: self.get(key::UID)?,
            },
            "restrict_writes" => Fix::RestrictWrites {
                path: self.get(key::PATH)?,
            },
            "become_operator" => Fix::BecomeOperator,
            "start_agent" => Fix::StartAgent {
                partition: self.get(key::PARTITION)?,
            },
            "load_module" => Fix::LoadModule {
                module: self.get(key::MODULE)?,
            },
            "raise_descriptor_limit" => Fix::RaiseDescriptorLimit,
            "enable_hyper_v" => Fix::EnableHyperV,
            _ => return None,
        })
    }
}

impl RuleRef {
    fn add_fields(&self, add: &mut impl FnMut(&'static str, &dyn fmt::Display)) {
        add(key::SERVICE, &self.service);
        add(key::ACTION, &self.action);
        self.scope.add_fields(add);
    }
}

impl RuleScope {
    fn add_fields(&self, add: &mut impl FnMut(&'static str, &dyn fmt::Display)) {
        match self {
            Self::Registration => add(key::SCOPE, &"registration"),
            Self::Defaults => add(key::SCOPE, &"defaults"),
            Self::Partition(name) => {
                add(key::SCOPE, &"partition");
                add(key::SCOPE_PARTITION, name);
            }
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
            Self::AllowUser { rule, user, .. } => {
                let user = user.as_deref().unwrap_or("the user");
                write!(f, "allow {user}{rule}")
            }
            Self::AllowPartition { rule, partition } => write!(f, "allow {partition}{rule}"),
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
            Self::StartWithItsManager => f.write_str("start it with the program that runs it"),
            Self::RemovePartition { partition } => write!(f, "remove {partition}"),
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
            Self::RaiseDescriptorLimit => {
                f.write_str("raise the limit of open files of this process")
            }
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

/// The word of a partition kind in the fields.
fn kind_word(kind: PartitionKind) -> &'static str {
    match kind {
        PartitionKind::Host => "host",
        PartitionKind::Vm => "vm",
        PartitionKind::Container => "container",
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use hvsock_address::ElementName;
    use proptest::prelude::*;

    use super::*;

    fn services() -> impl Strategy<Value = ServiceRef> {
        let named = "[A-Z][a-z' ]{0,12}[a-z]".prop_map(|text| ElementName::new(text).unwrap());
        prop_oneof![
            any::<u32>().prop_map(|port| ServiceRef::Id(ServiceId::from_port(port))),
            Just(ServiceRef::Id(ServiceId::random())),
            named.prop_map(ServiceRef::Name),
        ]
    }

    fn names() -> impl Strategy<Value = PartitionName> {
        "[x-z][a-z0-9.-]{0,6}[a-z]".prop_map(|text| PartitionName::new(text).unwrap())
    }

    fn scopes() -> impl Strategy<Value = RuleScope> {
        prop_oneof![
            Just(RuleScope::Registration),
            Just(RuleScope::Defaults),
            names().prop_map(RuleScope::Partition),
        ]
    }

    fn rules() -> impl Strategy<Value = RuleRef> {
        let actions = prop_oneof![Just(Action::Bind), Just(Action::Connect)];
        (any::<u32>(), actions, scopes()).prop_map(|(port, action, scope)| RuleRef {
            service: ServiceId::from_port(port),
            action,
            scope,
        })
    }

    /// Any fix of a known kind.
    pub(crate) fn fixes() -> impl Strategy<Value = Fix> {
        use proptest::option;

        let lists = prop_oneof![
            Just(vec![]),
            Just(vec!["users".to_owned()]),
            Just(vec!["users".to_owned(), "groups".to_owned()]),
        ];
        let kinds = prop_oneof![
            Just(PartitionKind::Host),
            Just(PartitionKind::Vm),
            Just(PartitionKind::Container),
        ];
        let plain = [
            Fix::StartWithItsManager,
            Fix::ListPartitions,
            Fix::ListServices,
            Fix::ListServicesOnHost,
            Fix::ListConnections,
            Fix::StartBroker,
            Fix::StopOtherBroker,
            Fix::ChooseFolder,
            Fix::BecomeOperator,
            Fix::RaiseDescriptorLimit,
            Fix::EnableHyperV,
            Fix::UseAddress {
                address: VmId::PARENT,
            },
        ];
        let of_service = services().prop_flat_map(|service| {
            prop::sample::select(vec![
                Fix::RegisterService {
                    service: service.clone(),
                },
                Fix::RegisterServiceOnHost {
                    service: service.clone(),
                },
                Fix::UnregisterService {
                    service: service.clone(),
                },
                Fix::ExplainOnHost {
                    partition: VmId::PARENT.into(),
                    service: service.clone(),
                    listening: true,
                },
                Fix::StartListener {
                    service,
                    from: VmId::PARENT.into(),
                },
            ])
        });
        let of_partition = (names(), names(), kinds).prop_flat_map(|(partition, other, kind)| {
            let id = VmId::of_container(partition.as_str());
            prop::sample::select(vec![
                Fix::ResumePartition {
                    partition: partition.clone(),
                    kind,
                    id,
                },
                Fix::StartPartition {
                    partition: partition.clone(),
                    kind,
                    id,
                },
                Fix::RemovePartition {
                    partition: partition.clone(),
                },
                Fix::StartAgent {
                    partition: partition.clone(),
                },
                Fix::UseServiceId {
                    service: partition.to_string(),
                },
                Fix::LoadModule {
                    module: partition.to_string(),
                },
                Fix::TakeOwnership {
                    path: partition.to_string(),
                    uid: 7,
                },
                Fix::RestrictWrites {
                    path: partition.to_string(),
                },
                Fix::JoinGroup { partition, other },
            ])
        });
        prop_oneof![
            prop::sample::select(plain.to_vec()),
            of_service,
            of_partition,
            (services(), option::of(names()))
                .prop_map(|(service, partition)| Fix::EnableService { service, partition }),
            (rules(), lists, option::of("[a-z]{1,8}"))
                .prop_map(|(rule, lists, user)| Fix::AllowUser { rule, lists, user }),
            (rules(), names())
                .prop_map(|(rule, partition)| Fix::AllowPartition { rule, partition }),
            (any::<u32>(), scopes()).prop_map(|(port, scope)| Fix::AllowWildcardBinds {
                service: ServiceId::from_port(port),
                scope,
            }),
            any::<u64>().prop_map(|listener| Fix::StopListener { listener }),
        ]
    }

    proptest! {
        #[test]
        fn a_fix_is_the_same_after_its_fields_are_read(fix in fixes()) {
            let fields = fix.fields();
            let field = |key: &str| {
                let found = fields.iter().find(|(known, _)| *known == key);
                found.map(|(_, value)| value.as_str())
            };
            prop_assert_eq!(Fix::from_fields(fix.kind(), "text", field), fix);
        }

        #[test]
        fn a_fix_is_one_line_without_a_command(fix in fixes()) {
            let text = fix.to_string();
            prop_assert!(!text.contains('\n') && !text.ends_with('.'), "{}", text);
            prop_assert!(!text.contains('`') && !text.contains("hvsock"), "{}", text);
        }
    }

    #[test]
    fn an_unknown_or_incomplete_fix_is_kept_as_its_text() {
        for kind in ["reboot_the_moon", "enable_service", "allow_user", ""] {
            let fix = Fix::from_fields(kind, "do it", |_| None);
            assert_eq!((fix.kind(), fix.to_string().as_str()), (kind, "do it"));
        }
    }
}
