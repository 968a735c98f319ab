//! Which connections are direct.

use super::*;

const DIRECT: Option<TransportSetting> = Some(TransportSetting::Direct);
const AUTO: Option<TransportSetting> = Some(TransportSetting::Auto);

/// The registration with this transport, and with overrides for children.
fn with(
    transport: Option<TransportSetting>,
    overrides: &[(&str, Option<TransportSetting>)],
) -> Registration {
    let vm = overrides.iter().map(|(child, transport)| {
        let over = Override {
            transport: *transport,
            ..Override::default()
        };
        (name(child), over)
    });
    Registration {
        transport,
        vm: vm.collect(),
        ..registration()
    }
}

#[test]
fn the_most_specific_level_decides_and_between_siblings_both_must_be_direct() {
    for (transport, overrides, from_web, from_db_to_web) in [
        (None, &[][..], false, false),
        (DIRECT, &[], true, true),
        (AUTO, &[], false, false),
        (DIRECT, &[("web", AUTO)], false, false),
        (DIRECT, &[("db", AUTO)], true, false),
        (None, &[("web", DIRECT)], true, false),
        (None, &[("web", DIRECT), ("db", DIRECT)], true, true),
    ] {
        let mut host = Host::new();
        let top = host.host;
        let [web, db] = ["web", "db"].map(|child| {
            let spec = PartitionSpec {
                kind: PartitionKind::Container,
                name: name(child),
                vm_id: VmId::of_container(child),
                groups: vec!["siblings".to_owned()],
                state: PartitionState::Running,
            };
            host.fabric.add_partition(top, spec).unwrap()
        });
        host.fabric.update(top, with(transport, overrides)).unwrap();
        let listen = |fabric: &mut Fabric, from, vm| {
            fabric
                .listen(&ListenRequest {
                    from,
                    principal: &root(),
                    vm,
                    service: SERVICE,
                    backlog: 8,
                })
                .unwrap();
        };
        listen(&mut host.fabric, top, VmId::WILDCARD);
        listen(&mut host.fabric, web, VmId::WILDCARD);
        let case = format!("{transport:?} {overrides:?}");
        let route = host.connect(web, VmId::PARENT).unwrap();
        assert_eq!(route.direct, from_web, "{case}");
        let route = host.connect(db, VmId::of_container("web")).unwrap();
        assert_eq!(route.direct, from_db_to_web, "{case}");
    }
}

#[test]
fn a_connection_with_a_guest_is_never_direct_and_why_says_so() {
    let mut host = Host::new();
    let top = host.host;
    let vm = host.add(top, PartitionKind::Vm, "vm");
    host.fabric.update(top, with(DIRECT, &[])).unwrap();
    let route = host.connect(top, VmId::of_container("vm")).unwrap();
    assert_eq!(
        (route.destination, route.direct),
        (Destination::Guest, false)
    );
    let request = ListenRequest {
        from: top,
        principal: &root(),
        vm: VmId::CHILDREN,
        service: SERVICE,
        backlog: 8,
    };
    host.fabric.listen(&request).unwrap();
    assert!(!host.connect(vm, VmId::PARENT).unwrap().direct);
    let request = ConnectRequest {
        from: vm,
        principal: &root(),
        vm: VmId::PARENT,
        service: SERVICE,
    };
    let explanation = host.fabric.explain_connect(&request, Audience::Operator);
    let steps = explanation.steps();
    let step = steps.iter().find(|step| step.check == Check::Transport);
    let answer = step
        .map(|step| step.answer().to_owned())
        .unwrap_or_default();
    assert_eq!(
        answer,
        "no: one end is a guest, in spite of transport = \"direct\""
    );
}
