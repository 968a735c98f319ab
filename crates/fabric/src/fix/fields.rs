//! A fix as a kind, a text and fields of text.

use std::fmt;

use hvsock_registry::Action;

use super::{ContainerChange, Fix, RuleRef, RuleScope};
use crate::partition::PartitionKind;

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
    pub(super) const NAME: &str = "name";
    pub(super) const VALUE: &str = "value";
    pub(super) const CAPABILITY: &str = "capability";
    pub(super) const PORT: &str = "port";
    pub(super) const MANAGER: &str = "manager";
    pub(super) const VM: &str = "vm";
    pub(super) const CONTAINER: &str = "container";
    pub(super) const CHANGE: &str = "change";
}

impl Fix {
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
            Self::EnableServiceAsException { service, partition } => {
                add(key::SERVICE, service);
                add(key::PARTITION, partition);
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
            Self::BecomePartitionRoot { service, partition } => {
                add(key::SERVICE, service);
                if let Some(partition) = partition {
                    add(key::PARTITION, partition);
                }
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
            Self::StartVmm { partition, path } => {
                add(key::PARTITION, partition);
                if let Some(path) = path {
                    add(key::PATH, path);
                }
            }
            Self::StartInManager {
                partition,
                manager,
                vm,
            } => {
                add(key::PARTITION, partition);
                add(key::MANAGER, manager);
                add(key::VM, vm);
            }
            Self::RemovePartition { partition }
            | Self::AddWithoutDevice { partition }
            | Self::StartAgent { partition }
            | Self::LoadDriver { partition } => {
                add(key::PARTITION, partition);
            }
            Self::ChangeInVm {
                vm,
                container,
                change,
            } => {
                add(key::VM, vm);
                add(key::CONTAINER, container);
                add(key::CHANGE, &change.word());
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
            Self::GrantCapability { capability } => add(key::CAPABILITY, capability),
            Self::FreeVsockPort { port } => add(key::PORT, port),
            Self::TakeOwnership { path, uid } => {
                add(key::PATH, path);
                add(key::UID, uid);
            }
            Self::RestrictWrites { path } | Self::OpenFolder { path } => add(key::PATH, path),
            Self::RaiseKernelLimit { name, value } => {
                add(key::NAME, name);
                add(key::VALUE, value);
            }
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
            "enable_service_as_exception" => Fix::EnableServiceAsException {
                service: service()?,
                partition: self.get(key::PARTITION)?,
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
            "become_partition_root" => Fix::BecomePartitionRoot {
                service: self.get(key::SERVICE)?,
                partition: self.optional(key::PARTITION)?,
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
            "load_driver" => Fix::LoadDriver {
                partition: self.get(key::PARTITION)?,
            },
            "start_vmm" => Fix::StartVmm {
                partition: self.get(key::PARTITION)?,
                path: self.optional(key::PATH)?,
            },
            "start_in_manager" => Fix::StartInManager {
                partition: self.get(key::PARTITION)?,
                manager: self.get(key::MANAGER)?,
                vm: self.get(key::VM)?,
            },
            "start_with_its_manager" => Fix::StartWithItsManager,
            "remove_partition" => Fix::RemovePartition {
                partition: self.get(key::PARTITION)?,
            },
            "add_without_device" => Fix::AddWithoutDevice {
                partition: self.get(key::PARTITION)?,
            },
            "change_in_vm" => Fix::ChangeInVm {
                vm: self.get(key::VM)?,
                container: self.get(key::CONTAINER)?,
                change: {
                    let word = (self.0)(key::CHANGE)?;
                    let mut all = ContainerChange::ALL.into_iter();
                    all.find(|change| change.word() == word)?
                },
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
            "grant_capability" => Fix::GrantCapability {
                capability: self.get(key::CAPABILITY)?,
            },
            "free_vsock_port" => Fix::FreeVsockPort {
                port: self.get(key::PORT)?,
            },
            "raise_descriptor_limit" => Fix::RaiseDescriptorLimit,
            "raise_kernel_limit" => Fix::RaiseKernelLimit {
                name: self.get(key::NAME)?,
                value: self.get(key::VALUE)?,
            },
            "open_folder" => Fix::OpenFolder {
                path: self.get(key::PATH)?,
            },
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

/// The word of a partition kind in the fields.
fn kind_word(kind: PartitionKind) -> &'static str {
    match kind {
        PartitionKind::Host => "host",
        PartitionKind::Vm => "vm",
        PartitionKind::Container => "container",
    }
}
