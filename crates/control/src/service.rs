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
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct ServiceChange {
    /// Whether it is enabled. Disabling also resets its established connections.
    pub enabled: bool,
    /// Only for this child partition.
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
