//! Conversions between the registry's types and the control API's.

use std::collections::BTreeMap;

use hvsock_address::{InvalidName, PartitionName, ServiceId};
use hvsock_registry::{
    AccessRule, EffectiveAccess, EffectiveFlag, EffectiveRules, Override, Policy, Registration,
};

use crate::{
    AccessInForce, AccessList, FlagRule, NewService, RuleSource, Service, ServiceOverride,
    ServiceRules, TransportRule, TransportSetting,
};

impl NewService {
    /// Converts it to a registration that `owner` owns. Its id is random if absent.
    ///
    /// # Errors
    ///
    /// [`InvalidName`] if an override is for an invalid partition name.
    pub fn registration(self, owner: Option<String>) -> Result<Registration, InvalidName> {
        let overrides = self.vm.into_iter();
        let vm = overrides.map(|(name, o)| Ok((PartitionName::new(name)?, o.into())));
        Ok(Registration {
            enabled: self.enabled,
            bind: self.bind.into(),
            connect: self.connect.into(),
            allow_wildcard_binds: self.allow_wildcard_binds,
            only_root_binds: self.only_root_binds,
            transport: self.transport.map(Into::into),
            vm: vm.collect::<Result<_, InvalidName>>()?,
            owner,
            creator: self.creator,
            purpose: self.purpose,
            ..Registration::new(self.id.unwrap_or_else(ServiceId::random), self.name)
        })
    }
}

/// Converts a registration to the request that registers it again.
impl From<Registration> for NewService {
    fn from(registration: Registration) -> Self {
        Self {
            id: Some(registration.id),
            name: registration.name,
            enabled: registration.enabled,
            bind: registration.bind.into(),
            connect: registration.connect.into(),
            allow_wildcard_binds: registration.allow_wildcard_binds,
            only_root_binds: registration.only_root_binds,
            transport: registration.transport.map(Into::into),
            vm: overrides(registration.vm),
            creator: registration.creator,
            purpose: registration.purpose,
        }
    }
}

impl Service {
    /// A registration with the numbers of its listeners and connections.
    pub fn new(registration: Registration, listeners: usize, connections: usize) -> Self {
        Self {
            id: registration.id,
            port: registration.port(),
            alias: registration.id.vsock_alias(),
            name: registration.name,
            enabled: registration.enabled,
            bind: registration.bind.into(),
            connect: registration.connect.into(),
            allow_wildcard_binds: registration.allow_wildcard_binds,
            only_root_binds: registration.only_root_binds,
            transport: registration.transport.map(Into::into),
            vm: overrides(registration.vm),
            owner: registration.owner,
            creator: registration.creator,
            purpose: registration.purpose,
            lease: registration.lease,
            in_box: false,
            built_in: false,
            listeners,
            connections,
            rules: None,
            rules_by_partition: BTreeMap::new(),
        }
    }

    /// Adds the rules in force.
    #[must_use]
    pub fn with_rules(self, policy: &Policy<'_>) -> Self {
        let children = policy.for_each_override().filter_map(|of_child| {
            let rules = ServiceRules::from(of_child.effective());
            Some((of_child.child()?.to_string(), rules))
        });
        Self {
            rules: Some(Box::new(policy.effective().into())),
            rules_by_partition: children.collect(),
            ..self
        }
    }

    /// The services that ship with Windows. Their GUIDs cannot be registered.
    pub fn in_box() -> [Self; 2] {
        Registration::in_box().map(|registration| Self {
            in_box: true,
            ..Self::new(registration, 0, 0)
        })
    }
}

impl From<EffectiveRules<'_>> for ServiceRules {
    fn from(rules: EffectiveRules<'_>) -> Self {
        let flag = |flag: EffectiveFlag<'_>| FlagRule {
            value: flag.value,
            source: flag.from.into(),
        };
        let access = |access: EffectiveAccess<'_>| AccessInForce {
            users: access.users,
            groups: access.groups,
            source: access.processes_from.into(),
            partitions: access.partitions,
            partitions_source: access.partitions_from.into(),
        };
        Self {
            enabled: flag(rules.enabled),
            connect: access(rules.connect),
            bind: access(rules.bind),
            allow_wildcard_binds: flag(rules.allow_wildcard_binds),
            only_root_binds: flag(rules.only_root_binds),
            transport: TransportRule {
                value: rules.transport.value.into(),
                source: rules.transport.from.into(),
            },
        }
    }
}

impl From<hvsock_registry::RuleSource<'_>> for RuleSource {
    fn from(source: hvsock_registry::RuleSource<'_>) -> Self {
        use hvsock_registry::RuleSource as Source;
        match source {
            Source::Override(_) => Self::Override,
            Source::OverrideOfVm(_) => Self::OverrideOfVm,
            Source::Registration => Self::Registration,
            Source::BuiltIn => Self::BuiltIn,
            Source::Defaults => Self::Defaults,
            Source::None => Self::Unset,
        }
    }
}

impl From<TransportSetting> for hvsock_registry::TransportSetting {
    fn from(transport: TransportSetting) -> Self {
        match transport {
            TransportSetting::Auto => Self::Auto,
            TransportSetting::Direct => Self::Direct,
        }
    }
}

impl From<hvsock_registry::TransportSetting> for TransportSetting {
    fn from(transport: hvsock_registry::TransportSetting) -> Self {
        match transport {
            hvsock_registry::TransportSetting::Auto => Self::Auto,
            hvsock_registry::TransportSetting::Direct => Self::Direct,
        }
    }
}

impl From<AccessList> for AccessRule {
    fn from(list: AccessList) -> Self {
        Self {
            users: list.users,
            groups: list.groups,
            partitions: list.partitions,
        }
    }
}

impl From<AccessRule> for AccessList {
    fn from(rule: AccessRule) -> Self {
        Self {
            users: rule.users,
            groups: rule.groups,
            partitions: rule.partitions,
        }
    }
}

impl From<ServiceOverride> for Override {
    fn from(o: ServiceOverride) -> Self {
        Self {
            enabled: o.enabled,
            bind: o.bind.into(),
            connect: o.connect.into(),
            allow_wildcard_binds: o.allow_wildcard_binds,
            only_root_binds: o.only_root_binds,
            transport: o.transport.map(Into::into),
        }
    }
}

impl From<Override> for ServiceOverride {
    fn from(o: Override) -> Self {
        Self {
            enabled: o.enabled,
            bind: o.bind.into(),
            connect: o.connect.into(),
            allow_wildcard_binds: o.allow_wildcard_binds,
            only_root_binds: o.only_root_binds,
            transport: o.transport.map(Into::into),
        }
    }
}

fn overrides(vm: BTreeMap<PartitionName, Override>) -> BTreeMap<String, ServiceOverride> {
    vm.into_iter()
        .map(|(name, o)| (name.to_string(), o.into()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registration_survives_a_round_trip_except_for_its_owner() {
        let text = r#"{"name": "Backup", "id": "0b2f1f0e-0000-4000-8000-000000000001",
            "enabled": false, "bind": {"users": ["alice"]}, "connect": {"partitions": []},
            "allow_wildcard_binds": false, "only_root_binds": true, "transport": "direct", "creator": "tool", "purpose": "nightly",
            "vm": {"web": {"enabled": true, "transport": "auto", "connect": {"groups": ["ops"]}}}}"#;
        let new: NewService = serde_json::from_str(text).unwrap();
        let registration = new.clone().registration(Some("bob".into())).unwrap();
        assert_eq!(registration.owner.as_deref(), Some("bob"));
        assert_eq!(NewService::from(registration.clone()), new);
        let service = Service::new(registration, 1, 2);
        assert_eq!(
            (service.vm, service.listeners, service.connections),
            (new.vm, 1, 2)
        );
    }

    #[test]
    fn an_override_for_an_invalid_name_is_refused() {
        let text = r#"{"name": "Backup", "vm": {"../etc": {}}}"#;
        let new: NewService = serde_json::from_str(text).unwrap();
        assert!(new.registration(None).is_err());
    }
}
