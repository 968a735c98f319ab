//! Examples of the fabric's rules. The test binary `agreement` checks all rules at random.

mod guests;
mod lasting;
mod nested;
mod outer;
mod transport;

use hvsock_address::{ElementName, PartitionName, PartitionRef, ServiceId, ServiceRef, VmId};
use hvsock_fabric::{
    Audience, Check, ConnectRequest, ConnectionEnd, ConnectionId, Destination, Effect, Explanation,
    Fabric, Fix, Limits, ListenRequest, ListenerId, Partition, PartitionKey, PartitionKind,
    PartitionSpec, PartitionState, Refusal, RootSpec, Route, RuleRef, RuleScope, Verdict,
};
use hvsock_registry::{Action, Override, Principal, Registration, TransportSetting};

const SERVICE: ServiceId = ServiceId::from_port(2761);

/// The user that the broker runs as.
const BROKER: u32 = 900;

/// A host with the service registered.
struct Host {
    fabric: Fabric,
    host: PartitionKey,
}

fn name(text: &str) -> PartitionName {
    PartitionName::new(text).unwrap()
}

fn registration() -> Registration {
    let mut demo = Registration::new(SERVICE, ElementName::new("HV Socket Demo").unwrap());
    demo.owner = Some("alice".to_owned());
    demo
}

fn root() -> Principal {
    Principal::default()
}

fn user(uid: u32, name: &str) -> Principal {
    Principal {
        uid,
        user: Some(name.to_owned()),
        groups: vec![],
        partition_uid: Some(uid),
    }
}

impl Host {
    fn new() -> Self {
        Self::with(Limits::default())
    }

    fn with(limits: Limits) -> Self {
        let spec = RootSpec {
            kind: PartitionKind::Host,
            name: name("top"),
            vm_id: VmId::random(),
        };
        let mut fabric = Fabric::new(spec, limits, BROKER);
        let host = fabric.root();
        fabric.register(host, registration()).unwrap();
        Host { fabric, host }
    }

    fn add(
        &mut self,
        parent: PartitionKey,
        kind: PartitionKind,
        partition_name: &str,
    ) -> PartitionKey {
        let spec = PartitionSpec {
            kind,
            name: name(partition_name),
            vm_id: VmId::of_container(partition_name),
            groups: vec![],
            state: PartitionState::Running,
        };
        self.fabric.add_partition(parent, spec).unwrap()
    }

    fn container(&mut self, partition_name: &str) -> PartitionKey {
        self.add(self.host, PartitionKind::Container, partition_name)
    }

    fn listen_as(
        &mut self,
        who: &Principal,
        from: PartitionKey,
        vm: VmId,
    ) -> Result<ListenerId, Refusal> {
        self.fabric.listen(&ListenRequest {
            from,
            principal: who,
            vm,
            service: SERVICE,
            backlog: 16,
        })
    }

    fn listen(&mut self, from: PartitionKey, vm: VmId) -> ListenerId {
        self.listen_as(&root(), from, vm).unwrap()
    }

    fn connect(&mut self, from: PartitionKey, vm: VmId) -> Result<Route, Refusal> {
        self.fabric.connect(&ConnectRequest {
            from,
            principal: &root(),
            vm,
            service: SERVICE,
        })
    }

    fn why(&self, who: &Principal, from: PartitionKey, vm: VmId, reader: Audience) -> Explanation {
        let request = ConnectRequest {
            from,
            principal: who,
            vm,
            service: SERVICE,
        };
        self.fabric.explain_connect(&request, reader)
    }

    fn effects(&mut self) -> Vec<Effect> {
        std::iter::from_fn(|| self.fabric.poll_effect()).collect()
    }
}

fn reset(id: ConnectionId, refusal: Refusal) -> Effect {
    Effect::ResetConnection { id, refusal }
}

#[test]
fn the_listener_with_the_most_specific_address_accepts() {
    let mut host = Host::new();
    let web = host.container("web");
    let top = host.host;
    let vms = [VmId::WILDCARD, VmId::CHILDREN, VmId::of_container("web")];
    let listeners = vms.map(|vm| host.listen(top, vm));
    for listener in listeners.into_iter().rev() {
        let destination = host.connect(web, VmId::PARENT).unwrap().destination;
        assert_eq!(destination, Destination::Listener(listener));
        host.fabric.close_listener(listener);
    }
    assert_eq!(host.connect(web, VmId::PARENT), Err(Refusal::NoListener));
}

#[test]
fn each_end_sees_the_peers_address_relative_to_itself() {
    let mut host = Host::new();
    let (web, top) = (host.container("web"), host.host);
    host.listen(top, VmId::WILDCARD);
    host.listen(web, VmId::PARENT);
    let ends = |route: Route| (route.server.vm, route.client.vm);
    let web_id = VmId::of_container("web");
    let up = host.connect(web, VmId::SILOHOST).unwrap();
    assert_eq!(ends(up), (VmId::PARENT, web_id));
    assert_eq!(
        (up.server.service, up.client.service),
        (SERVICE, ServiceId::ZERO)
    );
    assert_eq!(
        ends(host.connect(top, web_id).unwrap()),
        (web_id, VmId::PARENT)
    );
    let own = host.connect(top, VmId::LOOPBACK).unwrap();
    assert_eq!(ends(own), (VmId::LOOPBACK, VmId::LOOPBACK));
}

#[test]
fn a_disabled_service_is_disabled_within_the_partition_too() {
    let mut host = Host::new();
    let (web, top) = (host.container("web"), host.host);
    host.fabric.unregister(top, SERVICE).unwrap();
    let listener = host.listen(top, VmId::LOOPBACK);
    host.connect(top, VmId::LOOPBACK).expect("not registered");
    host.fabric.register(top, registration()).unwrap();
    let connection = host.connect(top, VmId::LOOPBACK).unwrap().connection;
    // A container has no registry, and its host's does not apply within the container.
    host.listen(web, VmId::LOOPBACK);
    host.connect(web, VmId::LOOPBACK).unwrap();
    let mut off = registration();
    off.enabled = false;
    host.fabric.update(top, off).unwrap();
    let refusal = Refusal::Disabled {
        by: "enabled = false".to_owned(),
    };
    let effects = host.effects();
    assert!(
        effects.contains(&reset(connection, refusal.clone())),
        "{effects:?}"
    );
    assert!(effects.contains(&Effect::CloseListener {
        id: listener,
        refusal: refusal.clone()
    }));
    assert_eq!(host.connect(top, VmId::LOOPBACK), Err(refusal.clone()));
    assert_eq!(host.listen_as(&root(), top, VmId::LOOPBACK), Err(refusal));
    host.connect(web, VmId::LOOPBACK).unwrap();
}

#[test]
fn silohost_in_a_container_is_the_same_address_as_parent() {
    let mut host = Host::new();
    let web = host.container("web");
    host.listen(web, VmId::PARENT);
    let again = host.listen_as(&root(), web, VmId::SILOHOST);
    assert_eq!(again, Err(Refusal::AddressInUse));
}

#[test]
fn a_listener_that_may_not_accept_is_skipped() {
    let mut host = Host::new();
    let (web, top) = (host.container("web"), host.host);
    let mut demo = registration();
    let mut over = Override::default();
    over.bind.users = Some(vec!["bob".to_owned()]);
    demo.vm.insert(name("web"), over);
    host.fabric.update(top, demo.clone()).unwrap();
    // Alice may listen for children in general, but not for this one.
    let alice = user(1000, "alice");
    let children = host.listen_as(&alice, top, VmId::CHILDREN).unwrap();
    let denied = Err(Refusal::Denied {
        rule: "vm.web.bind.users".to_owned(),
    });
    assert_eq!(host.connect(web, VmId::PARENT), denied);
    let wildcard = host.listen(top, VmId::WILDCARD);
    let destination = host.connect(web, VmId::PARENT).unwrap().destination;
    assert_eq!(destination, Destination::Listener(wildcard));
    // If no listener may accept, the refusal is that of the most specific one.
    if let Some(over) = demo.vm.get_mut(&name("web")) {
        over.allow_wildcard_binds = Some(false);
    }
    host.fabric.update(top, demo).unwrap();
    assert_eq!(host.connect(web, VmId::PARENT), denied);
    host.fabric.close_listener(children);
    assert_eq!(
        host.connect(web, VmId::PARENT),
        Err(Refusal::WildcardNotAllowed)
    );
}

#[test]
fn closing_a_listener_resets_only_its_pending_connections() {
    let mut host = Host::new();
    let (web, top) = (host.container("web"), host.host);
    let listener = host.listen(top, VmId::CHILDREN);
    let taken = host.connect(web, VmId::PARENT).unwrap().connection;
    host.fabric.accepted(taken);
    let waiting = host.connect(web, VmId::PARENT).unwrap().connection;
    host.fabric.close_listener(listener);
    assert_eq!(host.effects(), [reset(waiting, Refusal::NoListener)]);
    assert!(host.fabric.connection(taken).is_some());
}

#[test]
fn disabling_a_service_closes_its_connections_and_listeners_and_refuses_new_ones() {
    let mut host = Host::new();
    let (web, top) = (host.container("web"), host.host);
    let listener = host.listen(top, VmId::CHILDREN);
    let connection = host.connect(web, VmId::PARENT).unwrap().connection;
    let mut disabled = registration();
    disabled.enabled = false;
    host.fabric.update(top, disabled).unwrap();
    let refusal = Refusal::Disabled {
        by: "enabled = false".to_owned(),
    };
    let ended = Effect::CloseListener {
        id: listener,
        refusal: refusal.clone(),
    };
    assert_eq!(host.effects(), [reset(connection, refusal.clone()), ended]);
    assert_eq!(host.connect(web, VmId::PARENT), Err(refusal));
}

#[test]
fn disabling_a_service_for_one_child_does_not_affect_others() {
    let mut host = Host::new();
    let (web, db, top) = (host.container("web"), host.container("db"), host.host);
    host.listen(top, VmId::CHILDREN);
    let [of_web, of_db] = [web, db].map(|p| host.connect(p, VmId::PARENT).unwrap().connection);
    let mut demo = registration();
    let off = Override {
        enabled: Some(false),
        ..Override::default()
    };
    demo.vm.insert(name("WEB"), off);
    host.fabric.update(top, demo).unwrap();
    let by = "vm.WEB.enabled = false".to_owned();
    assert_eq!(host.effects(), [reset(of_web, Refusal::Disabled { by })]);
    assert!(host.fabric.connection(of_db).is_some());
}

#[test]
fn a_pause_suspends_local_connections_and_those_with_connected_suspend() {
    let mut host = Host::new();
    let (web, db, top) = (host.container("web"), host.container("db"), host.host);
    host.fabric
        .set_groups(web, vec!["blue".to_owned()])
        .unwrap();
    host.fabric.set_groups(db, vec!["blue".to_owned()]).unwrap();
    host.listen(top, VmId::CHILDREN);
    host.listen(web, VmId::WILDCARD);
    let up = host.connect(web, VmId::PARENT).unwrap().connection;
    let inside = host.connect(web, VmId::LOOPBACK).unwrap().connection;
    let across = host
        .connect(db, VmId::of_container("web"))
        .unwrap()
        .connection;
    host.fabric
        .set_connected_suspend(across, ConnectionEnd::Server, true);

    host.fabric.set_state(web, PartitionState::Paused).unwrap();
    let paused = [
        reset(up, Refusal::PartitionPaused),
        Effect::Suspend { id: inside },
        Effect::Suspend { id: across },
    ];
    assert_eq!(host.effects(), paused);
    host.fabric.set_state(db, PartitionState::Paused).unwrap();
    assert_eq!(host.effects(), [], "already suspended");
    host.fabric.set_state(web, PartitionState::Running).unwrap();
    assert_eq!(
        host.effects(),
        [Effect::Resume { id: inside }],
        "one end is still paused"
    );
    host.fabric.set_state(db, PartitionState::Running).unwrap();
    assert_eq!(host.effects(), [Effect::Resume { id: across }]);
}

#[test]
fn containers_in_a_vm_are_paused_and_removed_with_it() {
    let mut host = Host::new();
    let top = host.host;
    let vm = host.add(top, PartitionKind::Vm, "vm");
    let inner = host.add(vm, PartitionKind::Container, "vm/inner");
    host.fabric.register(vm, registration()).unwrap();
    let listener = host.listen(vm, VmId::CHILDREN);
    let connection = host.connect(inner, VmId::PARENT).unwrap().connection;
    host.fabric.set_state(vm, PartitionState::Paused).unwrap();
    assert_eq!(host.effects(), [Effect::Suspend { id: connection }]);
    assert_eq!(host.fabric.state(inner), PartitionState::Paused);
    assert_eq!(
        host.connect(inner, VmId::PARENT),
        Err(Refusal::PartitionPaused)
    );
    host.fabric.remove_partition(vm).unwrap();
    let refusal = Refusal::PartitionOff;
    let ended = Effect::CloseListener {
        id: listener,
        refusal: refusal.clone(),
    };
    assert_eq!(host.effects(), [reset(connection, refusal), ended]);
    assert!(host.fabric.partition(inner).is_none());
}

#[test]
fn the_key_of_a_removed_partition_is_never_reused() {
    let mut host = Host::new();
    let old = host.container("web");
    host.fabric.remove_partition(old).unwrap();
    let new = host.container("web");
    assert_ne!(old, new);
    assert!(host.fabric.partition(old).is_none());
    assert_eq!(host.connect(old, VmId::PARENT), Err(Refusal::PartitionOff));
}

#[test]
fn an_explanation_has_the_rule_and_the_fix() {
    let mut host = Host::new();
    let (web, top) = (host.container("web"), host.host);
    let web_id = VmId::of_container("web");
    let fix = |host: &Host| host.why(&root(), top, web_id, Audience::Operator).fix;
    let demo_name = || ServiceRef::Name(registration().name);

    let from = VmId::PARENT.into();
    let service = demo_name();
    assert_eq!(fix(&host), Some(Fix::StartListener { service, from }));
    host.fabric.set_state(web, PartitionState::Paused).unwrap();
    let resume = Fix::ResumePartition {
        partition: name("web"),
        kind: PartitionKind::Container,
        id: web_id,
    };
    assert_eq!(fix(&host), Some(resume));
    host.fabric.set_state(web, PartitionState::Running).unwrap();
    let mut demo = registration();
    let off = Override {
        enabled: Some(false),
        ..Override::default()
    };
    demo.vm.insert(name("web"), off);
    host.fabric.update(top, demo).unwrap();
    let enable = Fix::EnableService {
        service: demo_name(),
        partition: Some(name("web")),
    };
    assert_eq!(fix(&host), Some(enable));
    host.fabric.unregister(top, SERVICE);
    let service = ServiceRef::Id(SERVICE);
    assert_eq!(fix(&host), Some(Fix::RegisterService { service }));

    let explanation = host.why(&root(), top, web_id, Audience::Operator);
    let steps = explanation
        .steps
        .iter()
        .map(|step| (step.question.as_str(), step.answer.as_str()));
    let want = [
        (format!("What is {web_id} in top?"), "web, its child"),
        ("Is top running?".to_owned(), "yes"),
        ("Is web running?".to_owned(), "yes"),
        ("Is the service registered in top?".to_owned(), "no"),
    ];
    let want = want
        .iter()
        .map(|(question, answer)| (question.as_str(), *answer));
    assert!(steps.eq(want), "{explanation:#?}");
    assert_eq!(explanation.verdict, Err(Refusal::Unregistered));
}

#[test]
fn no_rule_restricts_root_and_the_brokers_user() {
    let mut host = Host::new();
    let (web, top) = (host.container("web"), host.host);
    let mut demo = registration();
    demo.connect.users = Some(vec![]);
    host.fabric.update(top, demo).unwrap();
    host.listen(web, VmId::PARENT);
    let web_id = VmId::of_container("web");
    for (who, rule) in [
        (root(), "yes: root is always allowed"),
        (
            user(BROKER, "x"),
            "yes: the broker's own user is always allowed",
        ),
    ] {
        let explanation = host.why(&who, top, web_id, Audience::Requester);
        assert_eq!(explanation.verdict, Ok(Verdict::Connect));
        let allowed = explanation
            .steps
            .iter()
            .find(|step| step.check == Check::MayConnect);
        assert_eq!(allowed.unwrap().answer, rule);
    }
    let other = host.why(&user(1001, "bob"), top, web_id, Audience::Requester);
    assert!(matches!(other.verdict, Err(Refusal::Denied { .. })));
    assert_eq!(host.fabric.check_lease(top, &user(BROKER, "x")), Ok(()));
    assert!(host.fabric.check_lease(web, &user(BROKER, "x")).is_err());
}

#[test]
fn another_user_of_a_container_cannot_take_the_place_of_its_root() {
    let mut host = Host::new();
    let (web, top) = (host.container("web"), host.host);
    let mut session = registration();
    session.only_root_binds = Some(true);
    host.fabric.update(top, session.clone()).unwrap();
    let listen = |host: &mut Host, who: &Principal, vm| {
        host.fabric.listen(&ListenRequest {
            from: web,
            principal: who,
            vm,
            service: SERVICE,
            backlog: 1,
        })
    };
    let inside = |partition_uid| Principal {
        uid: 1000,
        partition_uid,
        ..Principal::default()
    };
    let web_id = VmId::of_container("web");
    for uid in [Some(1000), Some(u32::MAX), None] {
        let rule = "only_root_binds = true".to_owned();
        let denied = Err(Refusal::Denied { rule });
        for vm in [VmId::PARENT, VmId::WILDCARD, VmId::SILOHOST] {
            assert_eq!(listen(&mut host, &inside(uid), vm), denied, "{uid:?}");
        }
        // In its own partition it may do as it likes, and nobody else reaches it there.
        let own = listen(&mut host, &inside(uid), VmId::LOOPBACK).unwrap();
        assert_eq!(host.connect(top, web_id), Err(Refusal::NoListener));
        host.fabric.close_listener(own);
    }
    let request = ListenRequest {
        from: web,
        principal: &inside(Some(1000)),
        vm: VmId::PARENT,
        service: SERVICE,
        backlog: 1,
    };
    let why = host.fabric.explain_listen(&request, Audience::Operator);
    let fix = Fix::BecomePartitionRoot {
        service: SERVICE,
        partition: Some(name("web")),
    };
    assert_eq!(why.fix, Some(fix));
    listen(&mut host, &inside(Some(0)), VmId::PARENT).unwrap();
    // A rule that comes later closes the listener of another user.
    session.only_root_binds = None;
    host.fabric.update(top, session.clone()).unwrap();
    let other = listen(&mut host, &inside(Some(1000)), VmId::WILDCARD).unwrap();
    session.only_root_binds = Some(true);
    host.fabric.update(top, session).unwrap();
    let closed = host.effects();
    let is_other =
        |effect: &Effect| matches!(effect, Effect::CloseListener { id, .. } if *id == other);
    assert!(
        matches!(&closed[..], [only] if is_other(only)),
        "{closed:?}"
    );
}

#[test]
fn only_names_of_reachable_partitions_are_resolved() {
    let mut host = Host::new();
    let (web, db, top) = (host.container("web"), host.container("db"), host.host);
    let vm = host.add(top, PartitionKind::Vm, "vm");
    let inner = host.add(vm, PartitionKind::Container, "vm/inner");
    let id = |from, partition_name| host.fabric.vm_id_by_name(from, &name(partition_name));
    assert_eq!(id(web, "WEB"), Some(VmId::LOOPBACK));
    assert_eq!(id(web, "top"), Some(VmId::PARENT));
    assert_eq!(id(web, "db"), None);
    assert_eq!(
        id(inner, "top"),
        host.fabric.partition(top).map(Partition::vm_id)
    );
    assert_eq!(id(top, "VM/Inner"), Some(VmId::of_container("vm/inner")));
    assert_eq!((id(top, "inner"), id(web, "vm/inner")), (None, None));
    for partition in [web, db] {
        let groups = vec!["blue".to_owned()];
        host.fabric.set_groups(partition, groups).unwrap();
    }
    let found = host.fabric.vm_id_by_name(web, &name("db"));
    assert_eq!(found, Some(VmId::of_container("db")));

    let demo = ElementName::new("hv socket demo").unwrap();
    assert_eq!(host.fabric.service_id_by_name(web, &demo), Some(SERVICE));
    assert_eq!(host.fabric.service_id_by_name(inner, &demo), None);
    assert_eq!(
        host.fabric.find(&PartitionRef::Name(name("Web"))),
        Some(web)
    );
    assert_eq!(host.fabric.find(&VmId::PARENT.into()), None);
}

#[test]
fn a_backlog_is_clamped_between_one_and_the_limit() {
    let limits = Limits {
        backlog_max: 2,
        ..Limits::default()
    };
    let mut host = Host::with(limits);
    let (web, top) = (host.container("web"), host.host);
    for (vm, backlog, want) in [(VmId::CHILDREN, 0, 1), (VmId::WILDCARD, u32::MAX, 2)] {
        let id = host.fabric.listen(&ListenRequest {
            from: top,
            principal: &root(),
            vm,
            service: SERVICE,
            backlog,
        });
        assert_eq!(host.fabric.listener(id.unwrap()).unwrap().backlog(), want);
    }
    let first = host.connect(web, VmId::PARENT).unwrap().connection;
    assert_eq!(host.connect(web, VmId::PARENT), Err(Refusal::BacklogFull));
    host.fabric.accepted(first);
    assert!(host.connect(web, VmId::PARENT).is_ok());
}

/// All tables at their limits. Every operation must be a lookup, or this takes minutes.
#[test]
fn requests_on_a_full_fabric_are_lookups() {
    let limits = Limits {
        listeners_per_partition: usize::MAX,
        connections: Limits::default().listeners,
        connections_per_partition: usize::MAX,
        ..Limits::default()
    };
    let mut host = Host::with(limits);
    let (web, top) = (host.container("web"), host.host);
    for port in 10_000..110_000 {
        let name = ElementName::new(format!("service {port}")).unwrap();
        let new = Registration::new(ServiceId::from_port(port), name);
        host.fabric.register(top, new).unwrap();
    }
    let (who, service) = (root(), ServiceId::from_port);
    for port in 10_000..10_000 + limits.listeners as u32 {
        let request = ListenRequest {
            from: top,
            principal: &who,
            vm: VmId::CHILDREN,
            service: service(port),
            backlog: 1,
        };
        host.fabric.listen(&request).unwrap();
        let request = ConnectRequest {
            from: web,
            principal: &who,
            vm: VmId::PARENT,
            service: service(port),
        };
        let route = host.fabric.connect(&request).unwrap();
        host.fabric.accepted(route.connection);
    }
    let which = "connections".to_owned();
    let one_more = host.fabric.connect(&ConnectRequest {
        from: web,
        principal: &who,
        vm: VmId::PARENT,
        service: service(10_000),
    });
    assert_eq!(one_more, Err(Refusal::LimitReached { which }));
    for port in 10_000..20_000 {
        host.fabric.unregister(top, service(port));
    }
    assert_eq!(host.effects().len(), 20_000);
    host.fabric.remove_partition(web).unwrap();
    assert_eq!(host.fabric.connections().len(), 0);
}

#[test]
fn without_listeners_all_other_checks_still_run() {
    let mut host = Host::new();
    let spec = RootSpec {
        kind: PartitionKind::Host,
        name: name("top"),
        vm_id: VmId::random(),
    };
    host.fabric = Fabric::without_listeners(spec, Limits::default());
    host.host = host.fabric.root();
    let vm = host.add(host.host, PartitionKind::Vm, "web");
    let id = host.fabric.partition(vm).unwrap().vm_id();
    let why = |host: &Host| host.why(&root(), host.host, id, Audience::Operator);
    assert_eq!(why(&host).verdict, Err(Refusal::Unregistered));
    host.fabric.register(host.host, registration()).unwrap();
    for vm in [id, VmId::LOOPBACK] {
        let explanation = host.why(&root(), host.host, vm, Audience::Operator);
        assert_eq!(explanation.verdict, Ok(Verdict::SystemDecides));
        let last = explanation.steps.last().unwrap();
        assert!(last.question.contains("listener"), "{last:?}");
        assert!(!last.answer.contains("port"), "{last:?}");
    }
    host.fabric.set_state(vm, PartitionState::Off).unwrap();
    assert_eq!(why(&host).verdict, Err(Refusal::PartitionOff));
    let request = ListenRequest {
        from: host.host,
        principal: &root(),
        vm: VmId::WILDCARD,
        service: SERVICE,
        backlog: 1,
    };
    let listen = host.fabric.explain_listen(&request, Audience::Operator);
    assert_eq!(listen.verdict, Ok(Verdict::SystemDecides));
}
