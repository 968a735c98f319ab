//! Verdicts on connects and listens on Windows, derived from the state of the machine.

use hvsock_address::{ElementName, PartitionName, ServiceId, ServiceRef, SockAddrHv, VmId};
use hvsock_fabric::{Explanation, Fix, PartitionKind, Refusal};
use hvsock_hyperv::{Facts, Guest, Missing, ServicePolicy, Switch, Vm, VmKind, VmState, refusal};
use hvsock_registry::{Registration, Registry};
use proptest::prelude::*;

type Verdict = Result<hvsock_fabric::Verdict, Refusal>;

const OPEN: Verdict = Ok(hvsock_fabric::Verdict::SystemDecides);
const HOST_DECIDES: Verdict = Ok(hvsock_fabric::Verdict::HostDecides);

fn service() -> ServiceId {
    ServiceId::from_port(2761)
}

fn id(digit: char) -> VmId {
    let group = |count| digit.to_string().repeat(count);
    let text = [8, 4, 4, 4, 12].map(group).join("-");
    text.parse().unwrap()
}

fn vm(name: &str, digit: char, state: VmState) -> Vm {
    Vm {
        name: name.to_owned(),
        id: id(digit),
        state,
        kind: VmKind::HyperV,
    }
}

fn registered(enabled: bool) -> Registry {
    let mut registry = Registry::new();
    let name = ElementName::new("HV Socket Demo").unwrap();
    let entry = Registration {
        enabled,
        ..Registration::new(service(), name)
    };
    registry.insert(entry).unwrap();
    registry
}

/// A host without problems, with a machine in each state.
fn host() -> Facts {
    let mut facts = Facts {
        registry: registered(true),
        vms: vec![
            vm("My VM", 'a', VmState::Running),
            vm("off", 'b', VmState::Off),
            vm("saved", 'c', VmState::Saved),
            vm("paused", 'd', VmState::Paused),
        ],
        ..Facts::default()
    };
    facts.machine.name = Some("DESKTOP-1".to_owned());
    facts.machine.is_host = true;
    facts
}

fn guest() -> Facts {
    let mut facts = host();
    facts.vms.clear();
    facts.machine.is_host = false;
    facts.machine.guest = Some(Guest {
        id: Some(id('e')),
        name: Some("My VM".to_owned()),
        host: Some("BIG-HOST".to_owned()),
    });
    facts
}

/// The complete text of an explanation.
fn text(explanation: &Explanation) -> String {
    let steps = explanation.steps.iter();
    let steps = steps.map(|step| format!("{} {}\n", step.question, step.answer));
    format!("{}{:?}", steps.collect::<String>(), explanation.fix)
}

#[test]
fn a_host_connects_to_a_running_machine_with_a_registered_enabled_service() {
    let unregistered = Facts {
        registry: Registry::new(),
        ..host()
    };
    let disabled = Facts {
        registry: registered(false),
        ..host()
    };
    let off = Refusal::Disabled {
        by: "enabled = false".to_owned(),
    };
    let cases: [(&str, &Facts, VmId, Verdict); 14] = [
        ("running", &host(), id('a'), OPEN),
        ("off", &host(), id('b'), Err(Refusal::PartitionOff)),
        ("saved", &host(), id('c'), Err(Refusal::PartitionOff)),
        ("paused", &host(), id('d'), Err(Refusal::PartitionPaused)),
        ("unknown", &host(), id('9'), Err(Refusal::PartitionUnknown)),
        (
            "unregistered",
            &unregistered,
            id('a'),
            Err(Refusal::Unregistered),
        ),
        ("disabled", &disabled, id('a'), Err(off.clone())),
        ("loopback", &unregistered, VmId::LOOPBACK, OPEN),
        ("loopback, disabled", &disabled, VmId::LOOPBACK, Err(off)),
        ("parent", &host(), VmId::PARENT, Err(Refusal::NotSupported)),
        (
            "wildcard",
            &host(),
            VmId::WILDCARD,
            Err(Refusal::AddressNotAvailable),
        ),
        (
            "children",
            &host(),
            VmId::CHILDREN,
            Err(Refusal::AddressNotAvailable),
        ),
        (
            "broadcast",
            &host(),
            VmId::BROADCAST,
            Err(Refusal::AddressNotAvailable),
        ),
        (
            "silohost",
            &host(),
            VmId::SILOHOST,
            Err(Refusal::AddressNotAvailable),
        ),
    ];
    for (case, facts, vm, want) in cases {
        let explanation = facts.explain_connect(vm, service());
        assert_eq!(explanation.verdict, want, "{case}: {}", text(&explanation));
        let failed = explanation.steps.iter().filter(|step| !step.pass).count();
        assert_eq!(failed, usize::from(want.is_err()), "{case}");
        assert!(want.is_err() || explanation.fix.is_none(), "{case}");
    }
}

#[test]
fn a_host_listens_for_addresses_that_can_connect() {
    let unregistered = Facts {
        registry: Registry::new(),
        ..host()
    };
    let cases: [(&str, &Facts, VmId, Verdict); 9] = [
        ("wildcard", &host(), VmId::WILDCARD, OPEN),
        ("children", &host(), VmId::CHILDREN, OPEN),
        ("one machine", &host(), id('a'), OPEN),
        // It may be started later.
        ("a machine that is off", &host(), id('b'), OPEN),
        ("loopback", &unregistered, VmId::LOOPBACK, OPEN),
        (
            "unregistered",
            &unregistered,
            VmId::WILDCARD,
            Err(Refusal::Unregistered),
        ),
        ("parent", &host(), VmId::PARENT, Err(Refusal::NotSupported)),
        (
            "broadcast",
            &host(),
            VmId::BROADCAST,
            Err(Refusal::AddressNotAvailable),
        ),
        ("unknown", &host(), id('9'), Err(Refusal::PartitionUnknown)),
    ];
    for (case, facts, vm, want) in cases {
        let explanation = facts.explain_listen(vm, service());
        assert_eq!(explanation.verdict, want, "{case}: {}", text(&explanation));
    }
}

#[test]
fn a_policy_disables_a_service_for_one_machine_only() {
    let mut facts = host();
    facts.vms.push(vm("other", 'e', VmState::Running));
    let policy = |service, switch| ServicePolicy {
        vm: id('a'),
        service,
        switch,
    };
    facts.policies = vec![policy(Some(service()), Switch::Disabled)];
    let explanation = facts.explain_connect(id('a'), service());
    let by = "vm.My-VM.enabled = false".to_owned();
    assert_eq!(explanation.verdict, Err(Refusal::Disabled { by }));
    let fix = Fix::EnableService {
        service: ServiceRef::Name(ElementName::new("HV Socket Demo").unwrap()),
        partition: Some(PartitionName::new("My-VM").unwrap()),
    };
    assert_eq!(explanation.fix, Some(fix));
    assert_eq!(facts.explain_connect(id('e'), service()).verdict, OPEN);
    assert_eq!(
        facts.explain_listen(VmId::CHILDREN, service()).verdict,
        OPEN
    );
    assert!(facts.explain_listen(id('a'), service()).verdict.is_err());
    // The machine's default, and a policy that overrides it.
    facts.policies = vec![policy(None, Switch::Disabled)];
    assert!(facts.explain_connect(id('a'), service()).verdict.is_err());
    facts
        .policies
        .push(policy(Some(service()), Switch::Enabled));
    assert_eq!(facts.explain_connect(id('a'), service()).verdict, OPEN);
}

#[test]
fn a_guest_defers_to_its_host_and_names_what_shows_more_there() {
    let nested = |mut facts: Facts| {
        facts.machine.is_host = true;
        facts.vms = host().vms;
        facts
    };
    for facts in [guest(), nested(guest())] {
        for vm in [VmId::PARENT, VmId::ZERO] {
            let explanation = facts.explain_connect(vm, service());
            assert_eq!(explanation.verdict, HOST_DECIDES);
            let text = text(&explanation);
            assert!(text.contains("BIG-HOST"), "{text}");
            assert_eq!(explanation.fix, Some(Fix::ListServicesOnHost));
            assert!(!text.contains("not registered"), "{text}");
        }
        assert_eq!(
            facts.explain_listen(VmId::PARENT, service()).verdict,
            HOST_DECIDES
        );
        assert_eq!(
            facts.explain_connect(VmId::LOOPBACK, service()).verdict,
            OPEN
        );
    }
    let mere = guest();
    assert_eq!(
        mere.explain_listen(VmId::WILDCARD, service()).verdict,
        HOST_DECIDES
    );
    let stranger = mere.explain_connect(id('9'), service()).verdict;
    assert_eq!(stranger, Err(Refusal::NotReachable));
    // With nested virtualization it decides about its own machines.
    let nested = nested(guest());
    assert_eq!(nested.explain_connect(id('a'), service()).verdict, OPEN);
    assert_eq!(
        nested.explain_listen(VmId::WILDCARD, service()).verdict,
        OPEN
    );
}

#[test]
fn a_guest_of_which_only_the_hosts_name_is_known_is_a_guest() {
    let mut facts = guest();
    facts.machine.name = None;
    facts.machine.guest = Some(Guest {
        host: Some("host".to_owned()),
        ..Guest::default()
    });
    let explanation = facts.explain_connect(VmId::PARENT, service());
    assert_eq!(explanation.verdict, HOST_DECIDES, "{}", text(&explanation));
}

#[test]
fn hidden_machines_are_unknown_and_not_absent() {
    for missing in [
        Missing::Rights,
        Missing::NotQueried,
        Missing::ComputeService {
            why: "it is busy".to_owned(),
        },
    ] {
        let mut facts = host();
        facts.missing = vec![missing.clone()];
        let explanation = facts.explain_connect(id('9'), service());
        assert_eq!(explanation.verdict, OPEN);
        let text = text(&explanation);
        assert!(text.contains("unknown: Windows does not show"), "{text}");
        assert!(text.contains(&missing.to_string()), "{text}");
        // A known obstacle still applies.
        facts.registry = Registry::new();
        let verdict = facts.explain_connect(id('9'), service()).verdict;
        assert_eq!(verdict, Err(Refusal::Unregistered));
    }
    // A registry that cannot be read refuses nothing.
    let why = "it is locked".to_owned();
    let mut facts = host();
    facts.registry = Registry::new();
    facts.missing = vec![Missing::Registry { why }];
    let explanation = facts.explain_connect(id('a'), service());
    assert_eq!(explanation.verdict, OPEN);
    assert!(text(&explanation).contains("it is locked"));
    let unknown = facts.explain_connect(id('9'), service());
    assert_eq!(unknown.verdict, Err(Refusal::PartitionUnknown));
    // Without Hyper-V there is nothing to hide.
    let mut facts = host();
    facts.missing = vec![Missing::HyperV];
    let explanation = facts.explain_connect(id('9'), service());
    assert_eq!(explanation.verdict, Err(Refusal::PartitionUnknown));
    assert_eq!(explanation.fix, Some(Fix::EnableHyperV));
}

#[test]
fn a_machine_that_is_changing_its_state_may_accept_connections() {
    for (state, words) in [
        (VmState::Starting, "it is starting"),
        (VmState::Stopping, "it is stopping"),
        (VmState::Unknown, "Windows does not report it"),
    ] {
        let mut facts = host();
        facts.vms[0].state = state;
        let explanation = facts.explain_connect(id('a'), service());
        assert_eq!(explanation.verdict, OPEN);
        let text = text(&explanation);
        assert!(
            text.contains(&format!("Is My-VM running? {words}")),
            "{text}"
        );
    }
}

#[test]
fn wsls_machine_needs_no_registration_and_reaches_no_wildcard_listener() {
    let mut facts = host();
    facts.registry = Registry::new();
    facts.vms.push(Vm {
        kind: VmKind::Wsl,
        ..vm("WSL", 'e', VmState::Running)
    });
    let explanation = facts.explain_connect(id('e'), service());
    assert_eq!(explanation.verdict, OPEN, "{}", text(&explanation));
    assert_eq!(facts.explain_listen(id('e'), service()).verdict, OPEN);
    // A machine that may be Hyper-V's needs a registration.
    facts.vms[4].kind = VmKind::Utility { owner: None };
    facts.missing = vec![Missing::NotQueried];
    let explanation = facts.explain_connect(id('e'), service());
    assert_eq!(explanation.verdict, OPEN);
    assert!(text(&explanation).contains("Windows does not show who runs it"));
    facts.missing.clear();
    facts.vms[4].kind = VmKind::Wsl;
    facts.registry = registered(true);
    for vm in [VmId::WILDCARD, VmId::CHILDREN] {
        let explanation = facts.explain_listen(vm, service());
        assert_eq!(explanation.verdict, OPEN);
        assert!(text(&explanation).contains(&id('e').to_string()));
    }
}

#[test]
fn services_that_ship_with_windows_need_no_registration() {
    for shipped in Registration::in_box() {
        let explanation = host().explain_connect(id('a'), shipped.id);
        assert_eq!(explanation.verdict, OPEN);
    }
}

#[test]
fn a_fix_names_the_machine_to_start_or_resume() {
    let (name, kind) = (|text| PartitionName::new(text).unwrap(), PartitionKind::Vm);
    let start = Fix::StartPartition {
        partition: name("off"),
        kind,
        id: id('b'),
    };
    let resume = Fix::ResumePartition {
        partition: name("paused"),
        kind,
        id: id('d'),
    };
    for (vm, fix) in [
        (id('b'), start),
        (id('d'), resume),
        (id('9'), Fix::ListPartitions),
    ] {
        let explanation = host().explain_connect(vm, service());
        assert_eq!(explanation.fix, Some(fix));
    }
    let unregistered = Facts::default();
    let fix = unregistered.explain_listen(VmId::CHILDREN, service()).fix;
    let service = ServiceRef::Id(service());
    assert_eq!(fix, Some(Fix::RegisterService { service }));
}

/// The table of error numbers, without facts.
#[test]
fn an_error_number_of_windows_maps_to_a_refusal() {
    let denied = |rule: &str| Refusal::Denied {
        rule: rule.to_owned(),
    };
    let cases: [(i32, VmId, bool, Option<Refusal>); 16] = [
        (
            10013,
            id('a'),
            false,
            Some(denied("a security descriptor of Windows")),
        ),
        (
            10013,
            id('a'),
            true,
            Some(denied("a security descriptor of Windows")),
        ),
        (
            10022,
            id('a'),
            true,
            Some(Refusal::Disabled {
                by: "a setting of Windows".to_owned(),
            }),
        ),
        (10045, VmId::PARENT, false, Some(Refusal::NotSupported)),
        (10047, VmId::PARENT, false, Some(Refusal::NotSupported)),
        (10048, VmId::WILDCARD, true, Some(Refusal::AddressInUse)),
        (
            10049,
            VmId::WILDCARD,
            false,
            Some(Refusal::AddressNotAvailable),
        ),
        (10049, id('a'), false, Some(Refusal::PartitionUnknown)),
        (10049, id('a'), true, Some(Refusal::AddressNotAvailable)),
        (10050, id('a'), false, Some(Refusal::PartitionPaused)),
        (10051, id('a'), false, Some(Refusal::PartitionOff)),
        (10060, id('a'), false, Some(Refusal::TimedOut)),
        (10061, id('a'), false, Some(Refusal::NoListener)),
        (10038, id('a'), false, None),
        (0, id('a'), false, None),
        (i32::MIN, id('a'), true, None),
    ];
    for (wsa, vm, listening, want) in cases {
        let found = refusal(wsa, None, SockAddrHv::new(vm, service()), listening);
        assert_eq!(found, want, "{wsa} {vm}");
    }
    for wsa in [10054, 10055] {
        let found = refusal(wsa, None, SockAddrHv::new(id('a'), service()), false);
        assert_eq!(found.map(|refusal| refusal.wsa()), Some(wsa));
    }
}

#[test]
fn facts_refine_an_ambiguous_error_number() {
    let unregistered = Facts {
        registry: Registry::new(),
        ..host()
    };
    let connect =
        |wsa, facts: &Facts, vm| refusal(wsa, Some(facts), SockAddrHv::new(vm, service()), false);
    for (wsa, facts, vm, want) in [
        (10061, &unregistered, id('a'), Refusal::Unregistered),
        (10013, &unregistered, id('a'), Refusal::Unregistered),
        (10061, &host(), id('a'), Refusal::NoListener),
        // A guest whose host is unknown still has one.
        (10061, &unregistered, VmId::PARENT, Refusal::NoListener),
        (10060, &unregistered, id('9'), Refusal::TimedOut),
        (10060, &host(), id('a'), Refusal::TimedOut),
        (10060, &host(), id('d'), Refusal::PartitionPaused),
        (10049, &host(), id('9'), Refusal::PartitionUnknown),
        (10049, &guest(), id('9'), Refusal::NotReachable),
        // An unambiguous number of Windows takes precedence over the facts.
        (10051, &host(), id('d'), Refusal::PartitionOff),
    ] {
        assert_eq!(connect(wsa, facts, vm), Some(want), "{wsa} {vm}");
    }
    let mut facts = host();
    facts.policies = vec![ServicePolicy {
        vm: id('a'),
        service: Some(service()),
        switch: Switch::Disabled,
    }];
    let by = "vm.My-VM.enabled = false".to_owned();
    assert_eq!(
        connect(10022, &facts, id('a')),
        Some(Refusal::Disabled { by })
    );
}

fn any_vm_id() -> impl Strategy<Value = VmId> {
    let known = (0..VmId::WELL_KNOWN.len()).prop_map(|at| VmId::WELL_KNOWN[at].1);
    let own = proptest::sample::select("abcdef9".chars().collect::<Vec<_>>()).prop_map(id);
    prop_oneof![known, own]
}

fn any_vm() -> impl Strategy<Value = Vm> {
    let states = proptest::sample::select(vec![
        VmState::Off,
        VmState::Saved,
        VmState::Starting,
        VmState::Running,
        VmState::Paused,
        VmState::Stopping,
        VmState::Unknown,
    ]);
    let kinds = proptest::sample::select(vec![
        VmKind::HyperV,
        VmKind::Wsl,
        VmKind::Utility { owner: None },
    ]);
    let parts = ("(?s).{0,20}|My-VM|DESKTOP-1", any_vm_id(), states, kinds);
    parts.prop_map(|(name, id, state, kind)| Vm {
        name,
        id,
        state,
        kind,
    })
}

fn any_facts() -> impl Strategy<Value = Facts> {
    let policy = (any_vm_id(), any::<bool>(), 0..10_u16).prop_filter_map("", |it| {
        Some(ServicePolicy {
            vm: it.0,
            service: it.1.then(service),
            switch: Switch::of_number(it.2)?,
        })
    });
    let guest =
        (proptest::option::of(any_vm_id()), "(?s).{0,20}|parent").prop_map(|(id, name)| Guest {
            id,
            host: Some(name.clone()),
            name: Some(name),
        });
    (
        proptest::option::of(any::<bool>()),
        proptest::collection::vec(any_vm(), 0..5),
        proptest::collection::vec(policy, 0..4),
        proptest::option::of(guest),
        any::<bool>(),
        proptest::sample::subsequence(
            vec![Missing::HyperV, Missing::Rights, Missing::NotQueried],
            0..3,
        ),
    )
        .prop_map(|(entry, vms, policies, guest, is_host, missing)| {
            let mut facts = Facts {
                registry: entry.map_or_else(Registry::new, registered),
                vms,
                policies,
                missing,
                ..Facts::default()
            };
            facts.machine.guest = guest;
            facts.machine.is_host = is_host;
            facts
        })
}

proptest! {
    /// Every number maps to a refusal with the same number or to none. Only the ambiguous numbers map
    /// to a refusal with a more specific number.
    #[test]
    fn every_number_is_a_refusal_with_that_number_or_none(
        wsa in prop_oneof![any::<i32>(), 10000..10110],
        facts in proptest::option::of(any_facts()),
        vm in any_vm_id(),
        listening: bool,
        zero: bool,
    ) {
        let service = if zero { ServiceId::ZERO } else { service() };
        let found = refusal(wsa, facts.as_ref(), SockAddrHv::new(vm, service), listening);
        if let Some(found) = found {
            let same = found.wsa() == wsa || wsa == 10047 && found == Refusal::NotSupported;
            prop_assert!(same || [10013, 10060, 10061].contains(&wsa), "{wsa}: {found}");
        }
    }

    /// Explanations are consistent: a refusal has at least one failed check, a success has none.
    #[test]
    fn every_explanation_is_consistent(facts in any_facts(), vm in any_vm_id(), listening: bool) {
        let explanation = if listening {
            facts.explain_listen(vm, service())
        } else {
            facts.explain_connect(vm, service())
        };
        let failed = explanation.steps.iter().filter(|step| !step.pass).count();
        prop_assert_eq!(failed > 0, explanation.verdict.is_err(), "{}", text(&explanation));
        if explanation.verdict.is_ok() {
            let shows_more = [Fix::ListServicesOnHost, Fix::ListPartitions];
            prop_assert!(explanation.fix.iter().all(|fix| shows_more.contains(fix)));
        }
        let host_decides = explanation.verdict == Ok(hvsock_fabric::Verdict::HostDecides);
        prop_assert!(!host_decides || facts.machine.guest.is_some());
    }
}
