//! Services: registrations, and requests to a registry.

use std::collections::BTreeMap;

use hvsock_address::{ElementName, PartitionRef, ServiceId};
use serde::{Deserialize, Serialize};

/// A registration and its use.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Service {
    /// The service's GUID.
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = Uuid))]
    pub id: ServiceId,
    /// The friendly name.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub name: ElementName,
    /// The vsock port, for a GUID on the vsock template.
    pub port: Option<u32>,
    /// The vsock port by which guests reach it, for any other GUID.
    #[serde(default)]
    pub alias: Option<u32>,
    /// Whether it is enabled.
    pub enabled: bool,
    /// Who may listen. The defaults apply to absent lists.
    #[serde(default)]
    pub bind: AccessList,
    /// Who may connect. The defaults apply to absent lists.
    #[serde(default)]
    pub connect: AccessList,
    /// Whether a listener may accept from every partition (wildcard bind); if absent, the default.
    pub allow_wildcard_binds: Option<bool>,
    /// Whether in a child only root may listen; if absent, the default.
    #[serde(default)]
    pub only_root_binds: Option<bool>,
    /// How the bytes of its connections travel; if absent, the default.
    #[serde(default)]
    pub transport: Option<TransportSetting>,
    /// Overrides for single child partitions, by name.
    #[serde(default)]
    pub vm: BTreeMap<String, ServiceOverride>,
    /// The user who registered it.
    pub owner: Option<String>,
    /// The program that registered it.
    pub creator: Option<String>,
    /// Its purpose.
    pub purpose: Option<String>,
    /// Whether it is a lease, which ends with the process that registered it.
    pub lease: bool,
    /// Whether it ships with Windows. It is listed because its GUID is reserved.
    pub in_box: bool,
    /// Whether it is built into the broker and unchanged.
    #[serde(default)]
    pub built_in: bool,
    /// The number of its listeners now.
    pub listeners: usize,
    /// The number of its connections now.
    pub connections: usize,
    /// The rules in force, each with the level that defines it. Absent in lists of services.
    #[serde(default)]
    pub rules: Option<Box<ServiceRules>>,
    /// The same for each child partition that has an override.
    #[serde(default)]
    pub rules_by_partition: BTreeMap<String, ServiceRules>,
}

/// The rules in force for a service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ServiceRules {
    /// Whether it is enabled.
    pub enabled: FlagRule,
    /// Who may connect.
    pub connect: AccessInForce,
    /// Who may listen.
    pub bind: AccessInForce,
    /// Whether a listener may accept from every partition (wildcard bind).
    pub allow_wildcard_binds: FlagRule,
    /// Whether in a child only root may listen.
    pub only_root_binds: FlagRule,
    /// How the bytes of connections travel.
    #[serde(default)]
    pub transport: TransportRule,
}

/// How the bytes of connections between two processes travel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum TransportSetting {
    /// The best that both processes and the broker support.
    #[default]
    Auto,
    /// Through one socket pair that both processes hold. The broker counts no bytes and cannot suspend
    /// such a connection, but still closes it. With a guest as with `auto`.
    Direct,
}

/// How bytes travel, and the level that says so.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TransportRule {
    /// The value.
    pub value: TransportSetting,
    /// The level that defines it.
    pub source: RuleSource,
}

impl Default for TransportRule {
    fn default() -> Self {
        Self {
            value: TransportSetting::Auto,
            source: RuleSource::Unset,
        }
    }
}

/// A setting in force.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FlagRule {
    /// The value.
    pub value: bool,
    /// The level that defines it.
    pub source: RuleSource,
}

/// Who may connect or listen. Root and the broker's other operators always may. An empty list is no
/// one, `*` is everyone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AccessInForce {
    /// Users of the partition that owns the registry.
    pub users: Vec<String>,
    /// Groups of that partition. A match in either list is enough.
    pub groups: Vec<String>,
    /// The level that defines users and groups.
    pub source: RuleSource,
    /// Child partitions.
    pub partitions: Vec<String>,
    /// The level that defines the child partitions.
    pub partitions_source: RuleSource,
}

/// The level that defines a rule, the most specific first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum RuleSource {
    /// The service's override for the child partition.
    Override,
    /// The service's override for the virtual machine that the child partition is a container in.
    OverrideOfVm,
    /// The service's registration.
    Registration,
    /// The service's built-in registration.
    BuiltIn,
    /// The defaults for all services.
    Defaults,
    /// No level: what holds where nothing is said.
    Unset,
}

/// Users, groups and partitions to allow or deny.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct AccessChange {
    /// Whether they may afterwards.
    pub allow: bool,
    /// The rule for listening instead of the one for connecting.
    #[serde(default)]
    pub bind: bool,
    /// Users by name or id; `*` is everyone.
    #[serde(default)]
    pub users: Vec<String>,
    /// Groups by name or id.
    #[serde(default)]
    pub groups: Vec<String>,
    /// Child partitions by name or id; `@group` is a sibling group, `*` is every child.
    #[serde(default)]
    pub partitions: Vec<String>,
    /// Every user of the child partitions that may listen, and not their root only. Needs `bind`.
    #[serde(default)]
    pub any_partition_user: bool,
    /// Only for connections with this child partition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub vm: Option<PartitionRef>,
    /// Also for the child partitions with a rule of their own. Without `vm` only.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub everywhere: bool,
}

/// The result of an [`AccessChange`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AccessChanged {
    /// The service afterwards.
    pub service: Service,
    /// What became of each entry of the request, in its order.
    pub entries: Vec<AccessEntry>,
}

/// What became of one entry of an [`AccessChange`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AccessEntry {
    /// The list: `users`, `groups`, `partitions` or `only_root_binds`.
    pub list: String,
    /// The entry, as in the request.
    pub entry: String,
    /// Whether the request changed anything for it, except in rules of child partitions' own.
    pub changed: bool,
    /// The child partitions with rules of their own, in which the request changed what is decided.
    #[serde(default)]
    pub changed_for: Vec<String>,
    /// Whether the rules allow it afterwards.
    pub allowed: bool,
    /// The rule that decides that.
    pub rule: String,
    /// The child partitions whose own rules decide otherwise.
    #[serde(default)]
    pub exceptions: Vec<String>,
}

/// Who may connect to, or listen for, a service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
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

/// Overrides of a service for one child partition.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct ServiceOverride {
    /// Replaces the service's `enabled`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// Lists that replace those of the service's `bind`.
    #[serde(default)]
    pub bind: AccessList,
    /// Lists that replace those of the service's `connect`.
    #[serde(default)]
    pub connect: AccessList,
    /// Replaces the service's `allow_wildcard_binds`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow_wildcard_binds: Option<bool>,
    /// Replaces the service's `only_root_binds`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub only_root_binds: Option<bool>,
    /// Replaces the service's `transport`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transport: Option<TransportSetting>,
}

/// A service to register.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct NewService {
    /// The friendly name.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub name: ElementName,
    /// The GUID; if absent, a random one.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = Uuid))]
    pub id: Option<ServiceId>,
    /// Whether it is enabled from the start.
    #[serde(default = "yes")]
    pub enabled: bool,
    /// Who may listen.
    #[serde(default)]
    pub bind: AccessList,
    /// Who may connect.
    #[serde(default)]
    pub connect: AccessList,
    /// Whether a listener may accept from every partition (wildcard bind).
    #[serde(default)]
    pub allow_wildcard_binds: Option<bool>,
    /// Whether in a child only root may listen.
    #[serde(default)]
    pub only_root_binds: Option<bool>,
    /// How the bytes of its connections travel.
    #[serde(default)]
    pub transport: Option<TransportSetting>,
    /// Overrides for single child partitions, by name.
    #[serde(default)]
    pub vm: BTreeMap<String, ServiceOverride>,
    /// The program that registers it.
    #[serde(default)]
    pub creator: Option<String>,
    /// Its purpose.
    #[serde(default)]
    pub purpose: Option<String>,
}

fn yes() -> bool {
    true
}

/// Changes to a service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct ServiceChange {
    /// Whether it is enabled. Disabling also resets its established connections.
    pub enabled: bool,
    /// Only for this child partition. Enabled, it has no setting of its own any more and follows the
    /// service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub vm: Option<PartitionRef>,
    /// Keeps it enabled for that child partition while it is disabled for all others.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub exception: bool,
    /// Also for the child partitions with another setting of their own. Without `vm` only.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub everywhere: bool,
}

/// A change to how the bytes of a service's new connections travel.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct TransportChange {
    /// The setting; if absent, there is none afterwards, and the level below applies.
    #[serde(default)]
    pub transport: Option<TransportSetting>,
    /// Only for connections with this child partition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub vm: Option<PartitionRef>,
}

/// The result of an import.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Imported {
    /// The services that were registered, without those registered before by the same id and name.
    pub added: Vec<Service>,
    /// The services that were unregistered.
    pub removed: Vec<Service>,
    /// Remarks on entries of the file that were left out or completed, and why.
    pub notes: Vec<String>,
}
