//! Containers in virtual machines, as the host's fabric has them.

use hvsock_fabric::AddPartitionError;

use super::*;

/// A host with the VM `web`, the container `web/box` in it, and another VM.
fn with_box() -> (Host, PartitionKey, PartitionKey) {
    let mut host = Host::new();
    let top = host.host;
    let web = host.add(top, PartitionKind::Vm, "web");
    host.add(top, PartitionKind::Vm, "db");
    let inner = host.add(web, PartitionKind::Container, "web/box");
    (host, web, inner)
}

fn edit(host: &mut Host, change: impl FnOnce(&mut Registration)) {
    let mut demo = registration();
    change(&mut demo);
    host.fabric.update(host.host, demo).unwrap();
}

fn id(name: &str) -> VmId {
    VmId::of_container(name)
}

fn host_id(host: &Host) -> VmId {
    host.fabric.partition(host.host).unwrap().vm_id()
}

#[test]
fn a_nested_name_and_no_other_is_that_of_a_container_in_this_vm() {
    let (mut host, web, inner) = with_box();
    let top = host.host;
    let mut add = |parent, kind, text: &str| {
        let spec = PartitionSpec {
            kind,
            name: name(text),
            vm_id: VmId::random(),
            groups: vec![],
            state: PartitionState::Running,
        };
        host.fabric.add_partition(parent, spec).map(drop)
    };
    let refused = |result: Result<(), AddPartitionError>| result.unwrap_err().to_string();
    assert_eq!(
        refused(add(top, PartitionKind::Container, "web/other")),
        "the name web/other does not fit: only a container in a virtual machine has a name with /"
    );
    assert_eq!(
        refused(add(web, PartitionKind::Container, "other")),
        "the name other does not fit: a container in web has a name like web/NAME"
    );
    assert!(refused(add(web, PartitionKind::Container, "db/other")).contains("like web/NAME"));
    assert!(refused(add(top, PartitionKind::Vm, "web/vm")).contains("only a container"));
    let kind = refused(add(inner, PartitionKind::Container, "web/deeper"));
    assert_eq!(kind, "a container cannot contain a container");
    assert_eq!(add(web, PartitionKind::Container, "WEB/other"), Ok(()));
    let taken = refused(add(web, PartitionKind::Container, "web/Other"));
    assert!(
        taken.contains("a partition named WEB/other already exists"),
        "{taken}"
    );
}

#[test]
fn the_host_reaches_a_container_in_a_vm_if_its_registry_allows_it() {
    let (mut host, _, inner) = with_box();
    let top = host.host;
    let route = host.connect(top, id("web/box")).unwrap();
    assert_eq!(
        (route.destination, route.target),
        (Destination::Guest, inner)
    );
    assert_eq!(
        (route.server.vm, route.client.vm),
        (id("web/box"), host_id(&host))
    );
    assert!(!route.direct);

    edit(&mut host, |demo| {
        demo.connect.users = Some(vec![]);
    });
    let bob = user(1001, "bob");
    let request = ConnectRequest {
        from: top,
        principal: &bob,
        vm: id("web/box"),
        service: SERVICE,
    };
    let rule = "connect.users = []".to_owned();
    assert_eq!(host.fabric.judge(&request), Err(Refusal::Denied { rule }));
    // The container is not allowed to listen.
    edit(&mut host, |demo| {
        demo.bind.partitions = Some(vec!["db".to_owned()]);
    });
    let rule = "bind.partitions = [\"db\"]".to_owned();
    assert_eq!(
        host.connect(top, id("web/box")),
        Err(Refusal::Denied { rule })
    );
    // What names its VM covers it, and what names it does not cover its VM.
    edit(&mut host, |demo| {
        demo.bind.partitions = Some(vec!["web".to_owned()]);
    });
    assert!(host.connect(top, id("web/box")).is_ok());
    edit(&mut host, |demo| {
        demo.bind.partitions = Some(vec!["web/box".to_owned()]);
    });
    assert!(host.connect(top, id("web/box")).is_ok());
    assert!(host.connect(top, id("web")).is_err());
}

#[test]
fn a_container_in_a_vm_reaches_the_host_by_its_id_alone() {
    let (mut host, _, inner) = with_box();
    let top = host.host;
    let wildcard = host.listen(top, VmId::WILDCARD);
    host.listen(top, VmId::CHILDREN);
    let of_web = id("web");
    host.listen(top, of_web);
    let to_host = host_id(&host);
    // It is no child of the host, and not its VM.
    let route = host.connect(inner, to_host).unwrap();
    assert_eq!(route.destination, Destination::Listener(wildcard));
    assert_eq!((route.server.vm, route.client.vm), (to_host, id("web/box")));
    let own = host.listen(top, id("web/box"));
    let route = host.connect(inner, to_host).unwrap();
    assert_eq!(route.destination, Destination::Listener(own));
    // Its parent is the VM, whose registry here is empty.
    for vm in [VmId::PARENT, VmId::WILDCARD, VmId::SILOHOST] {
        assert_eq!(host.connect(inner, vm), Err(Refusal::Unregistered));
    }
    for vm in [id("db"), id("web"), VmId::random()] {
        assert_eq!(host.connect(inner, vm), Err(Refusal::NotReachable), "{vm}");
    }
}

#[test]
fn an_override_for_a_container_wins_over_that_for_its_vm_and_resets_its_connections_alone() {
    let (mut host, web, inner) = with_box();
    let top = host.host;
    host.add(web, PartitionKind::Container, "web/other");
    let connected = ["web", "web/box", "web/other", "db"]
        .map(|partition| host.connect(top, id(partition)).unwrap().connection);
    let disabled = |enabled| Override {
        enabled: Some(enabled),
        ..Override::default()
    };
    edit(&mut host, |demo| {
        demo.vm.insert(name("web"), disabled(false));
        demo.vm.insert(name("web/box"), disabled(true));
    });
    let by = "vm.web.enabled = false".to_owned();
    let refusal = Refusal::Disabled { by };
    assert_eq!(
        host.effects(),
        [connected[0], connected[2]].map(|id| reset(id, refusal.clone()))
    );
    edit(&mut host, |demo| {
        demo.vm.insert(name("web/box"), disabled(false));
    });
    let by = "vm.\"web/box\".enabled = false".to_owned();
    let refusal = Refusal::Disabled { by };
    assert_eq!(host.effects(), [reset(connected[1], refusal.clone())]);
    assert_eq!(host.connect(top, id("web/box")), Err(refusal.clone()));
    assert_eq!(host.connect(inner, host_id(&host)), Err(refusal));
}

#[test]
fn a_container_is_withdrawn_or_switched_off_with_its_connections_and_no_others() {
    let (mut host, web, inner) = with_box();
    let top = host.host;
    let mut connect =
        || ["web", "web/box", "db"].map(|it| host.connect(top, id(it)).unwrap().connection);
    let [of_vm, of_box, _] = connect();
    host.fabric.remove_partition(inner).unwrap();
    assert_eq!(host.effects(), [reset(of_box, Refusal::PartitionOff)]);
    assert_eq!(
        host.connect(top, id("web/box")),
        Err(Refusal::PartitionUnknown)
    );

    let again = host.add(web, PartitionKind::Container, "web/box");
    let of_box = host.connect(top, id("web/box")).unwrap().connection;
    let listener = host.listen(top, id("web/box"));
    host.fabric
        .set_state(again, PartitionState::Paused)
        .unwrap();
    assert_eq!(host.effects(), [reset(of_box, Refusal::PartitionPaused)]);
    let why = host.why(&root(), top, id("web/box"), Audience::Operator);
    let fix = why.fix.unwrap();
    assert_eq!(fix.to_string(), "resume the container box in web");
    host.fabric
        .set_state(again, PartitionState::Running)
        .unwrap();

    let of_box = host.connect(top, id("web/box")).unwrap().connection;
    host.fabric.set_state(web, PartitionState::Off).unwrap();
    assert_eq!(
        host.effects(),
        [of_vm, of_box].map(|id| reset(id, Refusal::PartitionOff))
    );
    assert_eq!(host.connect(top, id("web/box")), Err(Refusal::PartitionOff));
    // The listener of the host waits for it, and goes with it.
    host.fabric.remove_partition(web).unwrap();
    let refusal = Refusal::PartitionUnknown;
    let closed = Effect::CloseListener {
        id: listener,
        refusal,
    };
    assert_eq!(host.effects(), [closed]);
}

#[test]
fn the_explanation_names_the_broker_that_decides_after_the_host() {
    let (mut host, _, inner) = with_box();
    let (top, demo) = (host.host, "HV Socket Demo");
    let why = host.why(&root(), top, id("web/box"), Audience::Operator);
    let text: Vec<_> = why
        .steps
        .iter()
        .map(|it| format!("{} {}", it.question, it.answer))
        .collect();
    assert_eq!(
        text,
        [
            format!(
                "What is {} in top? web/box, a container in its child",
                id("web/box")
            ),
            "Is top running? yes".to_owned(),
            "Is web/box running? yes".to_owned(),
            format!("Is the service registered in top? yes, as \"{demo}\""),
            "Is it enabled? yes: enabled = true".to_owned(),
            "Is connecting allowed? yes: root is always allowed".to_owned(),
            "May the container web/box accept it? yes: the broker in web decides, by its registry \
             and listeners there"
                .to_owned(),
            "Is there a free slot? yes".to_owned(),
        ]
    );
    assert_eq!(why.verdict, Ok(Verdict::GuestDecides));
    edit(&mut host, |demo| {
        demo.connect.partitions = Some(vec!["db".to_owned()]);
    });
    let to_host = host_id(&host);
    let why = host.why(&root(), inner, to_host, Audience::Operator);
    let rule = "connect.partitions".to_owned();
    assert_eq!(why.refusal(), Some(&Refusal::Denied { rule }));
    let rule = RuleRef {
        service: SERVICE,
        action: Action::Connect,
        scope: RuleScope::Registration,
    };
    let partition = name("web/box");
    assert_eq!(why.fix, Some(Fix::AllowPartition { rule, partition }));
}

#[test]
fn the_rule_for_root_of_a_partition_leaves_root_of_a_container_in_a_vm_to_the_vm() {
    let (mut host, ..) = with_box();
    let top = host.host;
    edit(&mut host, |demo| {
        demo.only_root_binds = Some(true);
    });
    assert!(host.connect(top, id("web/box")).is_ok());
    let rule = "only_root_binds = true".to_owned();
    assert_eq!(host.connect(top, id("web")), Err(Refusal::Denied { rule }));
}
