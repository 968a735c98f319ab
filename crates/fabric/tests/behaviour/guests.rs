//! Guests: what they may ask for, and what is asked of them.

use super::*;

#[test]
fn a_guest_does_not_see_the_entries_of_a_list() {
    let mut host = Host::new();
    let (web, top) = (host.container("web"), host.host);
    let mut demo = registration();
    demo.connect.partitions = Some(vec!["secret".to_owned()]);
    host.fabric.update(top, demo).unwrap();
    let rule = "connect.partitions".to_owned();
    let denied = Err(Refusal::Denied { rule });
    for (reader, sees_entries) in [(Audience::Operator, true), (Audience::Requester, false)] {
        let explanation = host.why(&root(), web, VmId::PARENT, reader);
        assert_eq!(explanation.verdict, denied.clone().map(|()| unreachable!()));
        assert_eq!(
            format!("{explanation:?}").contains("secret"),
            sees_entries,
            "{explanation:#?}"
        );
        let rule = RuleRef {
            service: SERVICE,
            action: Action::Connect,
            scope: RuleScope::Registration,
        };
        let partition = name("web");
        assert_eq!(
            explanation.fix,
            Some(Fix::AllowPartition { rule, partition })
        );
        let step = explanation.steps.last().unwrap();
        assert_eq!(step.check, Check::MayConnect);
        assert_eq!(step.rule.as_deref(), Some("connect.partitions"));
    }
    // Every process in the partition that owns the registry may read it.
    let mut demo = registration();
    demo.connect.users = Some(vec!["alice".to_owned()]);
    host.fabric.update(top, demo).unwrap();
    let explanation = host.why(
        &user(1001, "bob"),
        top,
        VmId::of_container("web"),
        Audience::Requester,
    );
    let rule = "connect.users = [\"alice\"]".to_owned();
    assert_eq!(explanation.verdict.unwrap_err(), Refusal::Denied { rule });
    let Some(Fix::AllowUser { lists, user, .. }) = explanation.fix else {
        panic!("{:?}", explanation.fix);
    };
    assert_eq!(
        (lists, user.as_deref()),
        (vec!["users".into()], Some("bob"))
    );
}

#[test]
fn a_guest_may_offer_what_only_its_root_binds_on_privileged_ports_only() {
    for (port, allowed) in [(911, true), (1023, true), (1024, false), (2761, false)] {
        let mut host = Host::new();
        let top = host.host;
        let spec = PartitionSpec {
            kind: PartitionKind::Vm,
            name: name("vm"),
            vm_id: VmId::of_container("vm"),
            groups: vec![],
            state: PartitionState::Running,
        };
        host.fabric.add_partition(top, spec).unwrap();
        let service = ServiceId::from_port(port);
        let mut guests = Registration::new(service, ElementName::new("guests").unwrap());
        guests.only_root_binds = Some(true);
        if service == SERVICE {
            host.fabric.update(top, guests).unwrap();
        } else {
            host.fabric.register(top, guests).unwrap();
        }
        let connected = host.fabric.connect(&ConnectRequest {
            from: top,
            principal: &root(),
            vm: VmId::of_container("vm"),
            service,
        });
        assert_eq!(connected.is_ok(), allowed, "{port}: {connected:?}");
    }
}

#[test]
fn a_connect_without_a_listener_goes_to_the_guest_if_the_rules_allow() {
    let mut host = Host::new();
    let top = host.host;
    let (web, db) = (
        host.add(top, PartitionKind::Vm, "web"),
        host.add(top, PartitionKind::Vm, "db"),
    );
    let [web_id, db_id] = ["web", "db"].map(VmId::of_container);
    let route = host.connect(top, web_id).unwrap();
    assert_eq!(route.destination, Destination::Guest);
    assert!(
        host.fabric
            .connection(route.connection)
            .unwrap()
            .is_waiting()
    );
    host.fabric.accepted(route.connection);
    assert!(
        !host
            .fabric
            .connection(route.connection)
            .unwrap()
            .is_waiting()
    );

    // The same between two guests, once they share a group.
    assert_eq!(host.connect(web, db_id), Err(Refusal::NotReachable));
    for vm in [web, db] {
        host.fabric.set_groups(vm, vec!["blue".into()]).unwrap();
    }
    let route = host.connect(web, db_id).unwrap();
    assert_eq!(route.destination, Destination::Guest);
    assert_eq!((route.server.vm, route.client.vm), (db_id, web_id));
    // A guest's kernel has no HVSOCKET_CONNECTED_SUSPEND.
    host.fabric.set_state(db, PartitionState::Paused).unwrap();
    assert_eq!(
        host.effects(),
        [reset(route.connection, Refusal::PartitionPaused)]
    );
    assert_eq!(host.connect(top, db_id), Err(Refusal::PartitionPaused));
    host.fabric.set_state(db, PartitionState::Off).unwrap();
    assert_eq!(host.connect(top, db_id), Err(Refusal::PartitionOff));
    let explanation = host.why(&root(), top, db_id, Audience::Operator);
    let fix = Fix::StartPartition {
        partition: name("db"),
        kind: PartitionKind::Vm,
        id: db_id,
    };
    assert_eq!(explanation.fix, Some(fix));

    let mut rule = registration();
    rule.bind.partitions = Some(vec!["db".to_owned()]);
    host.fabric.update(top, rule).unwrap();
    let rule = "bind.partitions = [\"db\"]".to_owned();
    assert_eq!(host.connect(top, web_id), Err(Refusal::Denied { rule }));
    host.fabric.unregister(top, SERVICE);
    assert_eq!(host.connect(top, web_id), Err(Refusal::Unregistered));
    let [one] = &host.effects()[..] else {
        panic!("expected exactly one reset: the connection with web");
    };
    assert!(
        matches!(one, Effect::ResetConnection { refusal, .. } if *refusal == Refusal::Unregistered)
    );
}

#[test]
fn connected_suspend_of_the_process_alone_decides_for_a_paused_guest() {
    let mut host = Host::new();
    let top = host.host;
    let web = host.add(top, PartitionKind::Vm, "web");
    let web_id = VmId::of_container("web");
    let [kept, lost] = [web_id; 2].map(|vm| host.connect(top, vm).unwrap().connection);
    host.listen(top, VmId::CHILDREN);
    let from_guest = host.connect(web, VmId::PARENT).unwrap().connection;
    host.fabric
        .set_connected_suspend(kept, ConnectionEnd::Client, true);
    host.fabric
        .set_connected_suspend(from_guest, ConnectionEnd::Server, true);
    host.fabric.set_state(web, PartitionState::Paused).unwrap();
    let mut effects = host.effects();
    effects.sort_by_key(|effect| matches!(effect, Effect::Suspend { .. }));
    let suspended = [kept, from_guest].map(|id| Effect::Suspend { id });
    assert_eq!(effects[0], reset(lost, Refusal::PartitionPaused));
    assert_eq!(effects[1..], suspended);
    host.fabric.set_state(web, PartitionState::Running).unwrap();
    let resumed = [kept, from_guest].map(|id| Effect::Resume { id });
    assert_eq!(host.effects(), resumed);
}

#[test]
fn a_guest_addresses_a_registered_service_by_port_or_alias() {
    let mut host = Host::new();
    let top = host.host;
    let web = host.add(top, PartitionKind::Vm, "web");
    let id: ServiceId = "0b2f1f0e-0000-4000-8000-000000000001".parse().unwrap();
    let port = id.vsock_alias().unwrap();
    let of = |host: &Host, port| host.fabric.service_for_port(web, port);
    assert_eq!(of(&host, port), ServiceId::from_port(port));
    let backup = Registration::new(id, ElementName::new("Backup").unwrap());
    host.fabric.register(top, backup).unwrap();
    assert_eq!(of(&host, port), id);
    assert_eq!(of(&host, 2761), SERVICE);
    assert_eq!(of(&host, 1), ServiceId::from_port(1));
    // The root has no parent, so only the template applies.
    let in_root = host.fabric.service_for_port(top, port);
    assert_eq!(in_root, ServiceId::from_port(port));
}

#[test]
fn an_explanation_states_that_the_guest_decides() {
    let mut host = Host::new();
    let top = host.host;
    host.add(top, PartitionKind::Vm, "web");
    let explanation = host.why(&root(), top, VmId::of_container("web"), Audience::Operator);
    assert!(explanation.verdict.is_ok());
    let step = explanation
        .steps
        .iter()
        .find(|step| step.question == "May the guest web accept it?");
    assert_eq!(
        step.unwrap().answer,
        "yes: the guest decides, by its listeners on vsock port 2761"
    );
}

#[test]
fn connects_to_a_guest_have_no_backlog_but_are_limited() {
    let mut host = Host::with(Limits {
        backlog_max: 1,
        connections_per_partition: 3,
        ..Limits::default()
    });
    let top = host.host;
    host.add(top, PartitionKind::Vm, "web");
    let web = VmId::of_container("web");
    let made: Vec<_> = (0..3).map(|_| host.connect(top, web).unwrap()).collect();
    let which = "connections_per_partition".to_owned();
    assert_eq!(host.connect(top, web), Err(Refusal::LimitReached { which }));
    host.fabric.close_connection(made[1].connection);
    assert!(host.connect(top, web).is_ok());
}
