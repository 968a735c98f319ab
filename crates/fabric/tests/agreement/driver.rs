//! Applies each operation to the fabric and to the model, and compares them.

use hvsock_address::{PartitionName, ServiceId, SockAddrHv, VmId};
use hvsock_fabric::{
    AddPartitionError, Audience, Block, Changes, ConnectRequest, ConnectionEnd, ConnectionId,
    Destination, Effect, Explanation, Fabric, FabricSnapshot, Limits, ListenRequest, ListenerId,
    Operators, OuterSpec, PartitionError, PartitionKey, PartitionKind, PartitionSpec, Refusal,
    RegisterError, RootSpec, Verdict,
};
use hvsock_registry::{Clash, Override, Principal, Registry};

use super::coverage::{Coverage, Row, Verb};
use super::model::{Model, ModelEffect, ModelListener, ModelPartition};
use super::ops::{BROKER_UID, Case, Op, Pick, Request, partition_name, vm_id};
use super::resolve;

/// The fabric and the model. The vectors map the model's indexes to the fabric's keys and ids.
struct Comparison<'t> {
    fabric: Fabric,
    model: Model,
    keys: Vec<PartitionKey>,
    listeners: Vec<ListenerId>,
    connections: Vec<ConnectionId>,
    /// Requests that were made, with their verdicts at present.
    judged: Vec<Judged>,
    /// The number of the next connection.
    next_id: u64,
    coverage: &'t mut Coverage,
    limits: Limits,
    run: Run,
}

/// A request whose verdict lasts until the fabric reports a change.
struct Judged {
    from: usize,
    who: Principal,
    vm: VmId,
    service: ServiceId,
    verdict: Result<Destination, Refusal>,
}

/// Requests that are judged again after every operation: the newest ones.
const JUDGED: usize = 6;

/// What a run returns, and where its fabric is replaced.
#[derive(Debug, Default)]
pub struct Run {
    /// Everything that the fabric has returned, in order, if that is recorded.
    pub output: Option<Vec<String>>,
    /// The fabric at the end.
    pub last: Option<FabricSnapshot>,
    /// Points where the fabric may be replaced, so far.
    pub points: usize,
    /// The point where it is replaced by one made from its snapshot.
    pub restore_at: Option<usize>,
}

const ROOT_ID: u128 = 1000;

pub fn run(case: Case, coverage: &mut Coverage) {
    run_recorded(case, coverage, Run::default());
}

pub fn run_recorded(case: Case, coverage: &mut Coverage, run: Run) -> Run {
    let (name, id) = (partition_name("top"), vm_id(ROOT_ID));
    let root = RootSpec {
        kind: case.root,
        name: name.clone(),
        vm_id: id,
    };
    let fabric = Fabric::new(root, case.limits, BROKER_UID);
    let mut comparison = Comparison {
        keys: vec![fabric.root()],
        fabric,
        model: Model::new(case.root, name, id, case.limits),
        listeners: vec![],
        connections: vec![],
        judged: vec![],
        next_id: 1,
        coverage,
        limits: case.limits,
        run,
    };
    for op in case.ops {
        comparison.step(op);
        comparison.compare();
        comparison.judge_again();
    }
    comparison.coverage.cases += 1;
    comparison.run.last = Some(comparison.fabric.snapshot());
    comparison.run
}

/// A fabric made from the snapshot of another, by way of its bytes.
fn replace(fabric: &Fabric, limits: Limits) -> Fabric {
    let bytes = serde_json::to_vec(&fabric.snapshot()).expect("a snapshot is JSON");
    let snapshot = serde_json::from_slice(&bytes).expect("a snapshot that was written");
    let operators = Operators::of_broker(BROKER_UID);
    let restored = Fabric::restore(snapshot, limits, operators).expect("a fabric's snapshot");
    // Equal fabrics have equal bytes, whatever the order in their tables.
    let again = serde_json::to_vec(&restored.snapshot()).expect("a snapshot is JSON");
    assert_eq!(bytes, again);
    restored
}

impl Comparison<'_> {
    /// A point where the fabric may be replaced.
    fn point(&mut self) {
        if self.run.restore_at == Some(self.run.points) {
            self.fabric = replace(&self.fabric, self.limits);
        }
        self.run.points += 1;
    }

    fn record(&mut self, returned: &impl std::fmt::Debug) {
        if let Some(output) = &mut self.run.output {
            output.push(format!("{returned:?}"));
        }
    }

    fn step(&mut self, op: Op) {
        self.point();
        match op {
            Op::AddPartition(new) => {
                let parent = resolve::pick(&self.model, new.parent, |p| match p.kind {
                    PartitionKind::Host => new.kind != PartitionKind::Host,
                    PartitionKind::Vm => new.kind == PartitionKind::Container,
                    PartitionKind::Container => false,
                });
                let mut new = new;
                // Mostly as it must be.
                if parent != 0 && new.id.to_guid_bytes()[0] % 8 != 0 {
                    let vm = self.model.partitions[parent].name.clone();
                    new.name = PartitionName::nested(&vm, &new.name).unwrap_or(new.name);
                }
                let spec = PartitionSpec {
                    kind: new.kind,
                    name: new.name.clone(),
                    vm_id: new.id,
                    groups: new.groups.clone(),
                    state: new.state,
                };
                let got = self.fabric.add_partition(self.keys[parent], spec);
                let want = self.model.add_partition(new, parent);
                self.record(&got);
                self.same_change(&got.clone().map(drop).map_err(|e| add_word(&e)), &want);
                self.keys.extend(got);
            }
            Op::SetOuter(name, id) => {
                let spec = OuterSpec {
                    name: name.clone(),
                    vm_id: id,
                };
                let before = self.fabric.outer();
                let got = self.fabric.set_outer(spec);
                let want = self.model.set_outer(&name, id);
                self.record(&got);
                self.same_change(&got.clone().map(drop).map_err(|e| add_word(&e)), &want);
                if before.is_none() {
                    self.keys.extend(got);
                }
            }
            Op::SetMirrored(mirrored) => {
                self.fabric.set_outer_mirrored(mirrored);
                self.model.set_mirrored(mirrored);
                assert_eq!(self.fabric.outer_is_mirrored(), self.model.mirrored);
                self.effects();
            }
            Op::RemovePartition(p) => {
                let p = resolve::pick(&self.model, p, |p| p.parent.is_some());
                let got = self
                    .fabric
                    .remove_partition(self.keys[p])
                    .map_err(|e| partition_word(&e));
                let want = self.model.remove_partition(p);
                self.same_change(&got, &want);
            }
            Op::SetState(p, state) => {
                let p = resolve::pick(&self.model, p, |p| p.parent.is_some() && p.state != state);
                let got = self
                    .fabric
                    .set_state(self.keys[p], state)
                    .map_err(|e| partition_word(&e));
                let want = self.model.set_state(p, state);
                self.same_change(&got, &want);
            }
            Op::SetGroups(p, groups) => {
                let p = resolve::pick(&self.model, p, |p| p.parent.is_some());
                let got = self.fabric.set_groups(self.keys[p], groups.clone());
                let want = self.model.set_groups(p, groups);
                self.same_change(&got.map_err(|e| partition_word(&e)), &want);
            }
            Op::Register(p, new) => {
                let p = resolve::owner(&self.model, p);
                let got = self.fabric.register(self.keys[p], new.clone());
                let want = self.model.register(p, new, false);
                self.same_change(&got.map_err(|e| register_word(&e)), &want);
            }
            Op::Update(p, new) => {
                let p = resolve::owner(&self.model, p);
                let got = self.fabric.update(self.keys[p], new.clone()).map(drop);
                let want = self.model.register(p, new, true);
                self.same_change(&got.map_err(|e| register_word(&e)), &want);
            }
            Op::Enable(p, service, child, on) => {
                let p = resolve::owner(&self.model, p);
                let services = &self.model.partitions[p].services;
                let Some(entry) = services.iter().find(|entry| entry.id == service) else {
                    return;
                };
                let mut new = entry.clone();
                match child {
                    None => new.enabled = on,
                    Some(child) => {
                        let over: &mut Override = new.vm.entry(child).or_default();
                        over.enabled = Some(on);
                    }
                }
                self.step(Op::Update(Pick::Any(p), new));
            }
            Op::Unregister(p, service) => {
                let p = resolve::owner(&self.model, p);
                let got = self.fabric.unregister(self.keys[p], service).is_some();
                let want = self.model.unregister(p, service);
                assert_eq!(got, want, "whether existing was an entry");
                self.effects();
            }
            Op::SetDefaults(p, defaults) => {
                let p = resolve::owner(&self.model, p);
                let got = self.fabric.set_defaults(self.keys[p], defaults.clone());
                let want = self.model.set_defaults(p, defaults);
                self.same_change(&got.map_err(|e| register_word(&e)), &want);
            }
            Op::SetRegistry(p, all, built_in) => {
                let p = resolve::owner(&self.model, p);
                let mut registry = Registry::new();
                registry.set_built_in(built_in.clone());
                let all = all
                    .into_iter()
                    .filter(|new| registry.insert(new.clone()).is_ok());
                let all: Vec<_> = all.collect();
                let got = self.fabric.set_registry(self.keys[p], registry);
                let want = self.model.set_registry(p, all, built_in);
                self.same_change(&got.map_err(|e| register_word(&e)), &want);
            }
            Op::Listen(request, backlog) => self.listen(&request, backlog),
            Op::ListenBeside(n, who, vm, backlog) => {
                if let Some(n) = resolve::listener(&self.model, n) {
                    let listener = &self.model.listeners[n];
                    let request = Request {
                        from: Pick::Any(listener.partition),
                        who,
                        vm,
                        service: listener.service,
                    };
                    self.listen(&request, backlog);
                }
            }
            Op::Connect(request) => {
                self.connect(&request, Block::SINGLE);
            }
            Op::ConnectBlock(listener, from, who, block) => {
                if let Some(request) = resolve::request_to(&self.model, listener, from, who) {
                    self.connect(&request, block);
                }
            }
            Op::SetWeight(n, weight) => {
                if let Some(n) = resolve::connection(&self.model, n) {
                    let got = self.fabric.set_weight(self.connections[n], weight);
                    let want = self.model.set_weight(n, weight.max(1) as usize);
                    assert_eq!(got, want, "weight {weight} of {n}");
                    self.coverage.event(match want {
                        Ok(()) => "weight changed",
                        Err(Refusal::NoListener) => "weight of what is gone",
                        Err(_) => "weight refused",
                    });
                    self.effects();
                }
            }
            Op::ConnectTo(listener, from, who, keep) => {
                if let Some(request) = resolve::request_to(&self.model, listener, from, who) {
                    self.connect_with_suspend(&request, keep);
                }
            }
            Op::ConnectInto(vm, from, who, service, keep) => {
                let is_vm = |p: &ModelPartition| {
                    p.exists && p.kind == PartitionKind::Vm && p.parent.is_some()
                };
                let parts = &self.model.partitions;
                let vms: Vec<_> = (0..parts.len()).filter(|p| is_vm(&parts[*p])).collect();
                let request = resolve::nth(vm, vms.len())
                    .and_then(|n| resolve::request_into(&self.model, vms[n], service, from, who));
                if let Some(request) = request {
                    self.connect_with_suspend(&request, keep);
                }
            }
            Op::SetStateAt(n, end, state) => {
                if let Some(n) = resolve::connection(&self.model, n) {
                    let connection = &self.model.connections[n];
                    let p = match end {
                        ConnectionEnd::Client => connection.from,
                        ConnectionEnd::Server => connection.to,
                    };
                    self.step(Op::SetState(Pick::Any(p), state));
                }
            }
            Op::Accept(n) => {
                if let Some(n) = resolve::connection(&self.model, n) {
                    self.fabric.accepted(self.connections[n]);
                    self.model.accept(n);
                    self.effects();
                }
            }
            Op::CloseListener(n) => {
                if let Some(n) = resolve::listener(&self.model, n) {
                    self.fabric.close_listener(self.listeners[n]);
                    self.model.close_listener(n);
                    self.effects();
                }
            }
            Op::CloseConnection(n) => {
                if let Some(n) = resolve::connection(&self.model, n) {
                    self.fabric.close_connection(self.connections[n]);
                    self.model.close_connection(n);
                    self.effects();
                }
            }
            Op::SetConnectedSuspend(n, end, keep) => {
                if let Some(n) = resolve::connection(&self.model, n) {
                    self.fabric
                        .set_connected_suspend(self.connections[n], end, keep);
                    self.model.set_connected_suspend(n, end, keep);
                    self.effects();
                }
            }
        }
    }

    fn listen(&mut self, drawn: &Request, backlog: u32) {
        let from = resolve::pick(&self.model, drawn.from, |_| true);
        let vm = resolve::vm_id(&self.model, from, drawn.vm);
        let row = resolve::row(&self.model, from, vm, drawn.service);
        let request = ListenRequest {
            from: self.keys[from],
            principal: &drawn.who,
            vm,
            service: drawn.service,
            backlog,
        };
        let explanation = [Audience::Operator, Audience::Requester]
            .map(|audience| self.fabric.explain_listen(&request, audience));
        let got = self.fabric.listen(&request);
        self.record(&(&explanation, &got));
        let want = self
            .model
            .listen(from, &drawn.who, vm, drawn.service, backlog);
        assert_eq!(
            got.clone().map(drop),
            want,
            "listen {drawn:?} as {vm} in {from}"
        );
        for explanation in explanation {
            check_explanation(&explanation, &got.clone().map(|_| Verdict::Listen));
        }
        self.coverage
            .request(row, Verb::Listen, want.as_ref().copied());
        self.listeners.extend(got);
        self.effects();
    }

    /// Connects, and sets HVSOCKET_CONNECTED_SUSPEND at that end.
    fn connect_with_suspend(&mut self, request: &Request, keep: bool) {
        if self.connect(request, Block::SINGLE) {
            let n = self.connections.len() - 1;
            let id = self.connections[n];
            self.fabric
                .set_connected_suspend(id, ConnectionEnd::Client, keep);
            self.model
                .set_connected_suspend(n, ConnectionEnd::Client, keep);
        }
    }

    /// Connects. Returns whether it succeeded.
    fn connect(&mut self, drawn: &Request, block: Block) -> bool {
        let from = resolve::pick(&self.model, drawn.from, |_| true);
        let vm = resolve::vm_id(&self.model, from, drawn.vm);
        let row = resolve::row(&self.model, from, vm, drawn.service);
        let request = ConnectRequest {
            from: self.keys[from],
            principal: &drawn.who,
            vm,
            service: drawn.service,
        };
        let [operator, requester] = [Audience::Operator, Audience::Requester]
            .map(|audience| self.fabric.explain_connect(&request, audience));
        if from > 0 && row == Some(Row::UnrelatedId) {
            self.check_hidden(&request, &requester);
        }
        let judged = self.fabric.judge(&request);
        let got = match block {
            Block::SINGLE => self.fabric.connect(&request),
            block => self.fabric.connect_block(&request, block),
        };
        self.record(&(&operator, &requester, &got));
        let weight = block.weight.max(1) as usize;
        let want = self
            .model
            .connect(from, &drawn.who, vm, drawn.service, weight);
        self.judged.truncate(JUDGED - 1);
        self.judged.insert(
            0,
            Judged {
                from,
                who: drawn.who.clone(),
                vm,
                service: drawn.service,
                verdict: judged,
            },
        );
        let named = want
            .clone()
            .map(|(listener, to)| (self.destination(listener), self.keys[to]));
        let reached = got.as_ref().map(|route| (route.destination, route.target));
        let reached = reached.map_err(Clone::clone);
        assert_eq!(reached, named, "connect {drawn:?} as {vm} in {from}");
        // An explanation is about one connection.
        let explained = [operator, requester].into_iter().filter(|_| weight == 1);
        for explanation in explained {
            let outer = self.fabric.outer();
            let connect = |(destination, to)| match destination {
                Destination::Guest if Some(to) == outer => Verdict::HostDecides,
                Destination::Listener(_) => Verdict::Connect,
                Destination::Guest => Verdict::GuestDecides,
            };
            let verdict = reached.clone().map(connect);
            check_explanation(&explanation, &verdict);
        }
        self.coverage
            .request(row, Verb::Connect, want.as_ref().map(drop));
        let granted = want.is_ok();
        if let (Ok(route), Ok((listener, to))) = (got, want) {
            let (server, client) = self.seen(from, to);
            assert_eq!(route.server, SockAddrHv::new(server, drawn.service));
            assert_eq!(route.client, SockAddrHv::new(client, ServiceId::ZERO));
            assert_eq!(
                route.connection.as_u64(),
                self.next_id,
                "ids are not used twice"
            );
            self.next_id += block.ids.max(1);
            self.connections.push(route.connection);
            if self.model.outer == Some(from) {
                self.coverage.event("from the host of this VM");
            }
            match listener {
                Some(listener) => self.count_precedence(from, to, listener, drawn.service),
                None if self.model.outer == Some(to) => {
                    self.coverage.event("to the host of this VM");
                }
                None if self.model.grandparent(to) == Some(from) => {
                    self.coverage.event("to a container in a guest");
                }
                None if self.model.in_one_group(from, to) => {
                    self.coverage.event("to a sibling that is a guest");
                }
                None => self.coverage.event("to a child that is a guest"),
            }
        }
        self.effects();
        granted
    }

    /// Judges requests again, and checks that the fabric reports each change of a verdict.
    fn judge_again(&mut self) {
        let generation = self.fabric.generation();
        let changes = self.fabric.take_changes();
        assert_eq!(self.fabric.take_changes(), Changes::None);
        assert!(changes == Changes::None || changes == Changes::All || generation > 0);
        let mut judged = std::mem::take(&mut self.judged);
        for one in &mut judged {
            let request = ConnectRequest {
                from: self.keys[one.from],
                principal: &one.who,
                vm: one.vm,
                service: one.service,
            };
            let got = self.fabric.judge(&request);
            let want = self.model.judge(one.from, &one.who, one.vm, one.service);
            let want = want.map(|(listener, _)| self.destination(listener));
            assert_eq!(got, want, "judged again");
            if got != one.verdict {
                assert!(changes.concern(one.service), "{changes:?} {got:?}");
                self.coverage.event("a verdict changed");
            } else if !changes.concern(one.service) {
                self.coverage.event("a verdict lasted");
            }
            one.verdict = got;
        }
        self.judged = judged;
    }

    fn destination(&self, listener: Option<usize>) -> Destination {
        listener.map_or(Destination::Guest, |n| {
            Destination::Listener(self.listeners[n])
        })
    }

    /// The peer's address as each end sees it, the connecting end first.
    fn seen(&self, from: usize, to: usize) -> (VmId, VmId) {
        let of = |own: usize, other: usize| {
            if own == other {
                VmId::LOOPBACK
            } else if self.model.partitions[own].parent == Some(other) {
                VmId::PARENT
            } else {
                self.model.partitions[other].id
            }
        };
        (of(from, to), of(to, from))
    }

    /// Counts connects where several listeners have matching addresses.
    fn count_precedence(&mut self, from: usize, to: usize, taken: usize, service: ServiceId) {
        let from_id = self.model.partitions[from].id;
        let is_child = self.model.partitions[from].parent == Some(to);
        let here = |l: &&ModelListener| l.exists && l.partition == to && l.service == service;
        let existing: Vec<_> = self
            .model
            .listeners
            .iter()
            .filter(here)
            .map(|l| l.vm)
            .collect();
        let taken = self.model.listeners[taken].vm;
        let wildcard = existing.contains(&VmId::WILDCARD);
        if taken == VmId::WILDCARD && is_child && existing.contains(&VmId::CHILDREN) {
            self.coverage.event("a denied listener is skipped");
        }
        if taken != VmId::WILDCARD && taken != from_id && wildcard {
            self.coverage.event("wildcard yields to a class");
        }
        if taken == from_id && existing.contains(&VmId::CHILDREN) {
            self.coverage.event("class yields to an id");
        }
    }

    /// An explanation must not reveal whether an unreachable partition exists: it must be equal to that
    /// for an unknown id.
    fn check_hidden(&self, request: &ConnectRequest<'_>, explanation: &Explanation) {
        let unknown = vm_id(98);
        let other = self.fabric.explain_connect(
            &ConnectRequest {
                vm: unknown,
                ..*request
            },
            Audience::Requester,
        );
        let text =
            format!("{explanation:?}").replace(&request.vm.to_string(), &unknown.to_string());
        assert_eq!(text, format!("{other:?}"));
    }

    /// Compares the effects.
    fn effects(&mut self) {
        // Here the effects of the last operation are pending.
        self.point();
        let mut got = vec![];
        let connection = |ids: &[ConnectionId], id| {
            ids.iter()
                .position(|other| *other == id)
                .expect("a connection that was made")
        };
        while let Some(effect) = self.fabric.poll_effect() {
            self.record(&effect);
            got.push(match effect {
                Effect::ResetConnection { id, refusal } => {
                    self.coverage.reset_connection(&refusal);
                    ModelEffect::ResetConnection(
                        connection(&self.connections, id),
                        format!("{refusal:?}"),
                    )
                }
                Effect::CloseListener { id, refusal } => {
                    self.coverage.terminate_listener(&refusal);
                    let n = self.listeners.iter().position(|other| *other == id);
                    let n = n.expect("a listener that was made");
                    ModelEffect::CloseListener(n, format!("{refusal:?}"))
                }
                Effect::Suspend { id } => {
                    self.coverage.event("suspended");
                    ModelEffect::Suspend(connection(&self.connections, id))
                }
                Effect::Resume { id } => {
                    self.coverage.event("resumed");
                    ModelEffect::Resume(connection(&self.connections, id))
                }
            });
        }
        let mut want = std::mem::take(&mut self.model.effects);
        got.sort();
        want.sort();
        assert_eq!(got, want, "effects");
    }

    fn same_change(&mut self, got: &Result<(), String>, want: &Result<(), &'static str>) {
        let want = want.map_err(str::to_owned);
        assert_eq!(*got, want, "change");
        if let Err(word) = want {
            self.coverage.event(format!("change refused: {word}"));
        }
        self.effects();
    }

    /// Compares the states.
    fn compare(&self) {
        let mut existing = 0;
        for (n, part) in self.model.partitions.iter().enumerate() {
            let Some(got) = self.fabric.partition(self.keys[n]) else {
                assert!(!part.exists, "partition {n} is missing");
                continue;
            };
            assert!(part.exists, "partition {n} still exists");
            existing += 1;
            let listeners = self.model.listeners.iter();
            let listeners = listeners.filter(|l| l.exists && l.partition == n).count();
            assert_eq!(got.listeners().len(), listeners);
            let connections = self.model.connections.iter();
            let ends_here = connections
                .filter(|c| c.exists && (c.from == n || c.to == n))
                .count();
            assert_eq!(got.connections().len(), ends_here);
            let weight = |id| {
                self.fabric
                    .connection(id)
                    .map_or(0, |c| c.weight() as usize)
            };
            let got: usize = got.connections().map(weight).sum();
            let here = self.model.connections.iter();
            let here = here.filter(|c| c.exists && (c.from == n || c.to == n));
            assert_eq!(got, here.map(|c| c.weight).sum::<usize>());
        }
        assert_eq!(self.fabric.partitions().count(), existing);
        let listeners = self.model.listeners.iter();
        assert_eq!(
            self.fabric.listeners().len(),
            listeners.clone().filter(|l| l.exists).count()
        );
        for (n, listener) in listeners.enumerate() {
            let got = self.fabric.listener(self.listeners[n]);
            assert_eq!(got.is_some(), listener.exists, "listener {n}");
            if let Some(got) = got {
                let connections = self.model.connections.iter();
                let waiting =
                    connections.filter(|c| c.exists && c.waiting && c.listener == Some(n));
                assert_eq!(got.waiting().len(), waiting.count());
                assert_eq!(got.backlog() as usize, listener.backlog);
            }
        }
        let connections = self.model.connections.iter();
        assert_eq!(
            self.fabric.connections().len(),
            connections.clone().filter(|c| c.exists).count()
        );
        for (n, connection) in connections.enumerate() {
            let got = self.fabric.connection(self.connections[n]);
            assert_eq!(got.is_some(), connection.exists, "connection {n}");
            if let Some(got) = got {
                assert_eq!(got.is_waiting(), connection.waiting);
                assert_eq!(got.is_suspended(), connection.suspended);
            }
        }
    }
}

/// Checks that an explanation predicts the result, and that its last check is the deciding one.
fn check_explanation(explanation: &Explanation, happened: &Result<Verdict, Refusal>) {
    assert_eq!(explanation.verdict, *happened);
    let last = explanation.steps.last().expect("at least one check");
    assert_eq!(last.pass, explanation.verdict.is_ok(), "{explanation:#?}");
    assert!(explanation.fix.is_none() || explanation.verdict.is_err());
    let (_, before) = explanation.steps.split_last().expect("at least one check");
    let listen = before
        .iter()
        .all(|step| step.pass || step.question.starts_with("Does the registry"));
    assert!(listen, "{explanation:#?}");
}

fn add_word(error: &AddPartitionError) -> String {
    match error {
        AddPartitionError::NoParent => "NoParent",
        AddPartitionError::Kind { .. } => "Kind",
        AddPartitionError::NameTaken { .. } => "NameTaken",
        AddPartitionError::IdTaken { .. } => "IdTaken",
        AddPartitionError::IdReserved { .. } => "IdReserved",
        AddPartitionError::Nesting { .. } => "Nesting",
        AddPartitionError::Outer => "Outer",
        AddPartitionError::LimitReached { .. } => "LimitReached",
        _ => "another",
    }
    .to_owned()
}

fn partition_word(error: &PartitionError) -> String {
    match error {
        PartitionError::Gone => "Gone",
        PartitionError::Root => "Root",
        PartitionError::Outer => "Outer",
        PartitionError::LimitReached { .. } => "LimitReached",
        _ => "another",
    }
    .to_owned()
}

fn register_word(error: &RegisterError) -> String {
    match error {
        RegisterError::NoRegistry => "NoRegistry",
        RegisterError::LimitReached { .. } => "LimitReached",
        RegisterError::Clash(Clash::Id { .. }) => "Id",
        RegisterError::Clash(Clash::Port { .. }) => "Port",
        RegisterError::Clash(Clash::Name { .. }) => "Name",
        RegisterError::Clash(Clash::Zero { .. }) => "Zero",
        _ => "another",
    }
    .to_owned()
}
