//! Services: what is registered, and what may be asked of a registry.

use std::collections::BTreeMap;

use hvsock_address::{ElementName, PartitionRef, ServiceId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

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
    /// Whether it is built into the broker and nobody has changed it.
    #[serde(default)]
    pub built_in: bool,
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
