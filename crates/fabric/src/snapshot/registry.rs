//! A registry in a snapshot.

use std::collections::BTreeMap;

use hvsock_address::{ElementName, PartitionName, ServiceId};
use hvsock_registry::{AccessRule, Defaults, Override, Registration, Registry, TransportSetting};
use serde::{Deserialize, Serialize};

use super::error::{SnapshotError, check_size, inconsistent};

/// Most built-in registrations of a snapshot. The limits of the fabric do not count them, since the program that runs it
/// sets them.
const MOST_BUILT_IN: usize = 4096;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RegistryRecord {
    defaults: DefaultsRecord,
    /// By name.
    registrations: Vec<RegistrationRecord>,
    /// What registrations of the same services inherit, by id. Absent in snapshots of older releases:
    /// there, every registration states what it inherits.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    built_in: Vec<RegistrationRecord>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct DefaultsRecord {
    bind: RuleRecord,
    connect: RuleRecord,
    allow_wildcard_binds: bool,
    #[serde(default, skip_serializing_if = "is_false")]
    only_root_binds: bool,
    #[serde(default, skip_serializing_if = "is_auto")]
    transport: TransportRecord,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct RegistrationRecord {
    id: ServiceId,
    name: ElementName,
    enabled: bool,
    bind: RuleRecord,
    connect: RuleRecord,
    allow_wildcard_binds: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    only_root_binds: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    transport: Option<TransportRecord>,
    vm: BTreeMap<PartitionName, OverrideRecord>,
    owner: Option<String>,
    creator: Option<String>,
    purpose: Option<String>,
    lease: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct OverrideRecord {
    enabled: Option<bool>,
    bind: RuleRecord,
    connect: RuleRecord,
    allow_wildcard_binds: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    only_root_binds: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    transport: Option<TransportRecord>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct RuleRecord {
    users: Option<Vec<String>>,
    groups: Option<Vec<String>>,
    partitions: Option<Vec<String>>,
}

/// How bytes travel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum TransportRecord {
    #[default]
    Auto,
    Direct,
}

impl TransportRecord {
    fn new(transport: TransportSetting) -> Self {
        match transport {
            TransportSetting::Auto => Self::Auto,
            TransportSetting::Direct => Self::Direct,
        }
    }

    fn restore(self) -> TransportSetting {
        match self {
            Self::Auto => TransportSetting::Auto,
            Self::Direct => TransportSetting::Direct,
        }
    }
}

fn is_auto(transport: &TransportRecord) -> bool {
    *transport == TransportRecord::Auto
}

/// Whether a flag has the value that it has in snapshots without it.
fn is_false(flag: &bool) -> bool {
    !flag
}

impl RegistryRecord {
    pub(super) fn new(registry: &Registry) -> Self {
        let Defaults {
            bind,
            connect,
            allow_wildcard_binds,
            only_root_binds,
            transport,
        } = registry.defaults();
        Self {
            defaults: DefaultsRecord {
                bind: RuleRecord::new(bind),
                connect: RuleRecord::new(connect),
                allow_wildcard_binds: *allow_wildcard_binds,
                only_root_binds: *only_root_binds,
                transport: TransportRecord::new(*transport),
            },
            registrations: registry.iter().map(RegistrationRecord::new).collect(),
            built_in: registry
                .all_built_in()
                .map(RegistrationRecord::new)
                .collect(),
        }
    }

    /// The registry, with at most `limit` registrations.
    pub(super) fn restore(self, limit: usize) -> Result<Registry, SnapshotError> {
        check_size("registrations", self.registrations.len(), limit)?;
        check_size("built-in registrations", self.built_in.len(), MOST_BUILT_IN)?;
        let mut registry = Registry::new();
        let built_in = self.built_in.into_iter();
        registry.set_built_in(built_in.map(RegistrationRecord::restore));
        registry.set_defaults(Defaults {
            bind: self.defaults.bind.restore(),
            connect: self.defaults.connect.restore(),
            allow_wildcard_binds: self.defaults.allow_wildcard_binds,
            only_root_binds: self.defaults.only_root_binds,
            transport: self.defaults.transport.restore(),
        });
        for registration in self.registrations {
            let added = registry.insert(registration.restore());
            added.map_err(|_| inconsistent("two registrations clash, or one is reserved"))?;
        }
        Ok(registry)
    }
}

impl RegistrationRecord {
    fn new(registration: &Registration) -> Self {
        let Registration {
            id,
            name,
            enabled,
            bind,
            connect,
            allow_wildcard_binds,
            only_root_binds,
            transport,
            vm,
            owner,
            creator,
            purpose,
            lease,
        } = registration;
        let overrides = vm.iter();
        Self {
            id: *id,
            name: name.clone(),
            enabled: *enabled,
            bind: RuleRecord::new(bind),
            connect: RuleRecord::new(connect),
            allow_wildcard_binds: *allow_wildcard_binds,
            only_root_binds: *only_root_binds,
            transport: transport.map(TransportRecord::new),
            vm: overrides
                .map(|(name, over)| (name.clone(), OverrideRecord::new(over)))
                .collect(),
            owner: owner.clone(),
            creator: creator.clone(),
            purpose: purpose.clone(),
            lease: *lease,
        }
    }

    fn restore(self) -> Registration {
        let overrides = self.vm.into_iter();
        Registration {
            id: self.id,
            name: self.name,
            enabled: self.enabled,
            bind: self.bind.restore(),
            connect: self.connect.restore(),
            allow_wildcard_binds: self.allow_wildcard_binds,
            only_root_binds: self.only_root_binds,
            transport: self.transport.map(TransportRecord::restore),
            vm: overrides
                .map(|(name, over)| (name, over.restore()))
                .collect(),
            owner: self.owner,
            creator: self.creator,
            purpose: self.purpose,
            lease: self.lease,
        }
    }
}

impl OverrideRecord {
    fn new(over: &Override) -> Self {
        let Override {
            enabled,
            bind,
            connect,
            allow_wildcard_binds,
            only_root_binds,
            transport,
        } = over;
        Self {
            enabled: *enabled,
            bind: RuleRecord::new(bind),
            connect: RuleRecord::new(connect),
            allow_wildcard_binds: *allow_wildcard_binds,
            only_root_binds: *only_root_binds,
            transport: transport.map(TransportRecord::new),
        }
    }

    fn restore(self) -> Override {
        Override {
            enabled: self.enabled,
            bind: self.bind.restore(),
            connect: self.connect.restore(),
            allow_wildcard_binds: self.allow_wildcard_binds,
            only_root_binds: self.only_root_binds,
            transport: self.transport.map(TransportRecord::restore),
        }
    }
}

impl RuleRecord {
    fn new(rule: &AccessRule) -> Self {
        let AccessRule {
            users,
            groups,
            partitions,
        } = rule.clone();
        Self {
            users,
            groups,
            partitions,
        }
    }

    fn restore(self) -> AccessRule {
        AccessRule {
            users: self.users,
            groups: self.groups,
            partitions: self.partitions,
        }
    }
}
