//! A service of the host as this machine may know it.

use hvsock_address::ElementName;
use hvsock_endpoint::uplink::{BindScope, Service};
use hvsock_registry::{AccessRule, Registration};

/// A registration with the rules that the host has for this machine. `None` if the name is none.
pub(crate) fn registration(service: &Service) -> Option<Registration> {
    let name = ElementName::new(service.name.clone()).ok()?;
    let flags = service.flags;
    let allowed = |yes: bool| AccessRule {
        partitions: Some(match yes {
            true => vec!["*".to_owned()],
            false => Vec::new(),
        }),
        ..AccessRule::default()
    };
    Some(Registration {
        enabled: flags.enabled,
        connect: allowed(flags.may_connect),
        bind: allowed(flags.bind != BindScope::Nobody),
        only_root_binds: Some(flags.bind == BindScope::Root),
        allow_wildcard_binds: Some(flags.wildcard),
        ..Registration::new(service.service, name)
    })
}

#[cfg(test)]
mod tests {
    use hvsock_address::{PartitionName, ServiceId, VmId};
    use hvsock_endpoint::uplink::ServiceFlags;
    use hvsock_registry::{Action, PartitionIdentity, Registry, Requester};

    use super::*;

    #[test]
    fn the_mirror_says_what_the_host_says_for_every_set_of_flags() {
        let name = PartitionName::new("web").unwrap();
        for bits in 0..2 * 2 * 3 * 2 {
            let flags = ServiceFlags {
                enabled: bits & 1 != 0,
                may_connect: bits & 2 != 0,
                wildcard: bits & 4 != 0,
                bind: [BindScope::Nobody, BindScope::Root, BindScope::Everyone][bits / 8],
            };
            let id = ServiceId::from_port(7);
            let service = Service {
                service: id,
                flags,
                name: "Demo".into(),
            };
            let mut registry = Registry::new();
            registry.insert(registration(&service).unwrap()).unwrap();
            let policy = registry.policy(id).unwrap();
            for is_root in [false, true] {
                let requester = requester(&name, VmId::random(), is_root);
                let may = |action| policy.access(action, &requester).allowed;
                assert_eq!(may(Action::Connect), flags.may_connect, "{flags:?}");
                let binds = match flags.bind {
                    BindScope::Nobody => false,
                    BindScope::Root => is_root,
                    BindScope::Everyone => true,
                };
                assert_eq!(may(Action::Bind), binds, "{flags:?}");
            }
            assert_eq!(policy.enabled().allowed, flags.enabled);
            assert_eq!(policy.wildcard().allowed, flags.wildcard);
        }
    }

    fn requester(name: &PartitionName, id: VmId, is_root: bool) -> Requester<'_> {
        Requester::Partition {
            own: PartitionIdentity {
                name,
                id,
                groups: &[],
                is_parent: false,
            },
            vm: None,
            is_root,
        }
    }

    #[test]
    fn a_name_that_is_none_is_no_registration() {
        let service = Service {
            service: ServiceId::from_port(7),
            flags: ServiceFlags::default(),
            name: "a\nb".into(),
        };
        assert!(registration(&service).is_none());
    }
}
