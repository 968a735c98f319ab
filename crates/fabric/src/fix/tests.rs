//! A fix survives its fields, and is plain English.

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
    "[x-z][a-z0-9.-]{0,6}[a-z](/[x-z][a-z0-9.-]{0,6}[a-z])?"
        .prop_map(|text| PartitionName::new(text).unwrap())
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
            Fix::AddWithoutDevice {
                partition: partition.clone(),
            },
            Fix::StartVmm {
                partition: partition.clone(),
                path: Some(other.to_string()),
            },
            Fix::StartVmm {
                partition: partition.clone(),
                path: None,
            },
            Fix::StartInManager {
                partition: partition.clone(),
                manager: "libvirt".to_owned(),
                vm: other.to_string(),
            },
            Fix::StartAgent {
                partition: partition.clone(),
            },
            Fix::LoadDriver {
                partition: partition.clone(),
            },
            Fix::UseServiceId {
                service: partition.to_string(),
            },
            Fix::LoadModule {
                module: partition.to_string(),
            },
            Fix::GrantCapability {
                capability: partition.to_string(),
            },
            Fix::FreeVsockPort { port: 7 },
            Fix::TakeOwnership {
                path: partition.to_string(),
                uid: 7,
            },
            Fix::RestrictWrites {
                path: partition.to_string(),
            },
            Fix::OpenFolder {
                path: partition.to_string(),
            },
            Fix::RaiseKernelLimit {
                name: partition.to_string(),
                value: 7,
            },
            Fix::ChangeInVm {
                vm: partition.clone(),
                container: other.clone(),
                change: ContainerChange::SetGroups,
            },
            Fix::ChangeInVm {
                vm: partition.clone(),
                container: other.clone(),
                change: ContainerChange::Add,
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
        (rules(), lists, option::of("[a-z]{1,8}")).prop_map(|(rule, lists, user)| Fix::AllowUser {
            rule,
            lists,
            user
        }),
        (services(), names()).prop_map(|(service, partition)| {
            Fix::EnableServiceAsException { service, partition }
        }),
        (rules(), names()).prop_map(|(rule, partition)| Fix::AllowPartition { rule, partition }),
        (any::<u32>(), scopes()).prop_map(|(port, scope)| Fix::AllowWildcardBinds {
            service: ServiceId::from_port(port),
            scope,
        }),
        (any::<u32>(), option::of(names())).prop_map(|(port, partition)| {
            Fix::BecomePartitionRoot {
                service: ServiceId::from_port(port),
                partition,
            }
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
