//! Does everything twice, and compares.

use hvsock_address::{ServiceId, SockAddrHv, VmId};
use hvsock_fabric::{
    AddPartitionError, Audience, ConnectRequest, ConnectionId, Destination, Effect, End,
    Explanation, Fabric, ListenRequest, ListenerId, PartitionError, PartitionKey, PartitionKind,
    PartitionSpec, Refusal, RegisterError, RootSpec, Verdict,
};
use hvsock_registry::{Clash, Override, Principal, Registry};

use crate::ops::{BROKER_UID, Case, Op, Pick, Request, Vm, partition_name, vm_id};
use crate::reading::{Did, Listening, Part, Reading};
use crate::tally::{Row, Tally, Verb};

/// The two, with the names that the fabric gave to what the reading knows by number.
struct Both<'t> {
    fabric: Fabric,
    reading: Reading,
    keys: Vec<PartitionKey>,
    listeners: Vec<ListenerId>,
    connections: Vec<ConnectionId>,
    tally: &'t mut Tally,
}

const ROOT_ID: u128 = 1000;

pub fn run(case: Case, tally: &mut Tally) {
    let (name, id) = (partition_name("top"), vm_id(ROOT_ID));
    let root = RootSpec {
        kind: case.root,
        name: name.clone(),
        vm_id: id,
    };
    let fabric = Fabric::new(root, case.limits, BROKER_UID);
    let mut both = Both {
        keys: vec![fabric.root()],
        fabric,
        reading: Reading::new(case.root, name, id, case.limits),
        listeners: vec![],
        connections: vec![],
        tally,
    };
    for op in case.ops {
        both.step(op);
        both.compare();
    }
    both.tally.cases += 1;
}

impl Both<'_> {
    fn step(&mut self, op: Op) {
        match op {
            Op::AddPartition(new) => {
                let parent = self.pick(new.parent, |p| match p.kind {
                    PartitionKind::Host => new.kind != PartitionKind::Host,
                    PartitionKind::Vm => new.kind == PartitionKind::Container,
                    PartitionKind::Container => false,
                });
                let spec = PartitionSpec {
                    kind: new.kind,
                    name: new.name.clone(),
                    vm_id: new.id,
                    groups: new.groups.clone(),
                    state: new.state,
                };
                let got = self.fabric.add_partition(self.keys[parent], spec);
                let want = self.reading.add_partition(new, parent);
                self.same_change(&got.clone().map(drop).map_err(|e| add_word(&e)), &want);
                self.keys.extend(got);
            }
            Op::RemovePartition(p) => {
                let p = self.pick(p, |p| p.parent.is_some());
                let got = self
                    .fabric
                    .remove_partition(self.keys[p])
                    .map_err(|e| partition_word(&e));
                let want = self.reading.remove_partition(p);
                self.same_change(&got, &want);
            }
            Op::SetState(p, state) => {
                let p = self.pick(p, |p| p.parent.is_some() && p.state != state);
                let got = self
                    .fabric
                    .set_state(self.keys[p], state)
                    .map_err(|e| partition_word(&e));
                let want = self.reading.set_state(p, state);
                self.same_change(&got, &want);
            }
            Op::SetGroups(p, groups) => {
                let p = self.pick(p, |p| p.parent.is_some());
                let got = self.fabric.set_groups(self.keys[p], groups.clone());
                let want = self.reading.set_groups(p, groups);
                self.same_change(&got.map_err(|e| partition_word(&e)), &want);
            }
            Op::Register(p, new) => {
                let p = self.owner(p);
                let got = self.fabric.register(self.keys[p], new.clone());
                let want = self.reading.register(p, new, false);
                self.same_change(&got.map_err(|e| register_word(&e)), &want);
            }
            Op::Update(p, new) => {
                let p = self.owner(p);
                let got = self.fabric.update(self.keys[p], new.clone()).map(drop);
                let want = self.reading.register(p, new, true);
                self.same_change(&got.map_err(|e| register_word(&e)), &want);
            }
            Op::Enable(p, service, child, on) => {
                let p = self.owner(p);
                let services = &self.reading.partitions[p].services;
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
                let p = self.owner(p);
                let got = self.fabric.unregister(self.keys[p], service).is_some();
                let want = self.reading.unregister(p, service);
                assert_eq!(got, want, "whether there was an entry");
                self.effects();
            }
            Op::SetDefaults(p, defaults) => {
                let p = self.owner(p);
                let got = self.fabric.set_defaults(self.keys[p], defaults.clone());
                let want = self.reading.set_defaults(p, defaults);
                self.same_change(&got.map_err(|e| register_word(&e)), &want);
            }
            Op::SetRegistry(p, all) => {
                let p = self.owner(p);
                let mut registry = Registry::new();
                let all = all
                    .into_iter()
                    .filter(|new| registry.insert(new.clone()).is_ok());
                let all: Vec<_> = all.collect();
                let got = self.fabric.set_registry(self.keys[p], registry);
                let want = self.reading.set_registry(p, all);
                self.same_change(&got.map_err(|e| register_word(&e)), &want);
            }
            Op::Listen(request, backlog) => self.listen(&request, backlog),
            Op::ListenBeside(n, who, vm, backlog) => {
                let there = self.reading.listeners.iter().map(|l| l.there);
                if let Some(n) = live(n, there) {
                    let listener = &self.reading.listeners[n];
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
                self.connect(&request);
            }
            Op::ConnectTo(listener, from, who, keep) => {
                if let Some(request) = self.request_to(listener, from, who) {
                    self.connect_keeping(&request, keep);
                }
            }
            Op::ConnectInto(vm, from, who, service, keep) => {
                let is_vm = |p: &Part| p.there && p.kind == PartitionKind::Vm && p.parent.is_some();
                let parts = &self.reading.partitions;
                let vms: Vec<_> = (0..parts.len()).filter(|p| is_vm(&parts[*p])).collect();
                let request =
                    nth(vm, vms.len()).and_then(|n| self.request_into(vms[n], service, from, who));
                if let Some(request) = request {
                    self.connect_keeping(&request, keep);
                }
            }
            Op::SetStateAt(n, end, state) => {
                let there = self.reading.connections.iter().map(|one| one.there);
                if let Some(n) = live(n, there) {
                    let connection = &self.reading.connections[n];
                    let p = match end {
                        End::Client => connection.from,
                        End::Server => connection.to,
                    };
                    self.step(Op::SetState(Pick::Any(p), state));
                }
            }
            Op::Accept(n) => {
                if let Some(n) = live(n, self.reading.connections.iter().map(|one| one.there)) {
                    self.fabric.accepted(self.connections[n]);
                    self.reading.accept(n);
                    self.effects();
                }
            }
            Op::CloseListener(n) => {
                if let Some(n) = live(n, self.reading.listeners.iter().map(|one| one.there)) {
                    self.fabric.close_listener(self.listeners[n]);
                    self.reading.close_listener(n);
                    self.effects();
                }
            }
            Op::CloseConnection(n) => {
                if let Some(n) = live(n, self.reading.connections.iter().map(|one| one.there)) {
                    self.fabric.close_connection(self.connections[n]);
                    self.reading.close_connection(n);
                    self.effects();
                }
            }
            Op::SetConnectedSuspend(n, end, keep) => {
                if let Some(n) = live(n, self.reading.connections.iter().map(|one| one.there)) {
                    self.fabric
                        .set_connected_suspend(self.connections[n], end, keep);
                    self.reading.set_connected_suspend(n, end, keep);
                    self.effects();
                }
            }
        }
    }

    fn listen(&mut self, asked: &Request, backlog: u32) {
        let from = self.pick(asked.from, |_| true);
        let vm = self.vm(from, asked.vm);
        let row = self.row(from, vm, asked.service);
        let request = ListenRequest {
            from: self.keys[from],
            principal: &asked.who,
            vm,
            service: asked.service,
            backlog,
        };
        let told = [Audience::Operator, Audience::Asker]
            .map(|audience| self.fabric.explain_listen(&request, audience));
        let got = self.fabric.listen(&request);
        let want = self
            .reading
            .listen(from, &asked.who, vm, asked.service, backlog);
        assert_eq!(
            got.clone().map(drop),
            want,
            "listen {asked:?} as {vm} in {from}"
        );
        for told in told {
            check_explanation(&told, &got.clone().map(|_| Verdict::Listen));
        }
        self.tally
            .request(row, Verb::Listen, want.as_ref().copied());
        self.listeners.extend(got);
        self.effects();
    }

    /// Connects, and says whether that end wants the connection kept.
    fn connect_keeping(&mut self, request: &Request, keep: bool) {
        if self.connect(request) {
            let n = self.connections.len() - 1;
            let id = self.connections[n];
            self.fabric.set_connected_suspend(id, End::Client, keep);
            self.reading.set_connected_suspend(n, End::Client, keep);
        }
    }

    /// Whether it was granted.
    fn connect(&mut self, asked: &Request) -> bool {
        let from = self.pick(asked.from, |_| true);
        let vm = self.vm(from, asked.vm);
        let row = self.row(from, vm, asked.service);
        let request = ConnectRequest {
            from: self.keys[from],
            principal: &asked.who,
            vm,
            service: asked.service,
        };
        let [operator, asker] = [Audience::Operator, Audience::Asker]
            .map(|audience| self.fabric.explain_connect(&request, audience));
        if from > 0 && row == Some(Row::StrangersId) {
            self.check_silence(&request, &asker);
        }
        let got = self.fabric.connect(&request);
        let want = self.reading.connect(from, &asked.who, vm, asked.service);
        let named = want
            .clone()
            .map(|(listener, to)| (self.destination(listener), self.keys[to]));
        let reached = got.as_ref().map(|route| (route.destination, route.target));
        let reached = reached.map_err(Clone::clone);
        assert_eq!(reached, named, "connect {asked:?} as {vm} in {from}");
        for told in [operator, asker] {
            let connect = |(destination, target)| Verdict::Connect {
                target,
                destination,
            };
            let verdict = reached.clone().map(connect);
            check_explanation(&told, &verdict);
        }
        self.tally
            .request(row, Verb::Connect, want.as_ref().map(drop));
        let granted = want.is_ok();
        if let (Ok(route), Ok((listener, to))) = (got, want) {
            let (server, client) = self.seen(from, to);
            assert_eq!(route.server, SockAddrHv::new(server, asked.service));
            assert_eq!(route.client, SockAddrHv::new(client, ServiceId::ZERO));
            self.connections.push(route.connection);
            match listener {
                Some(listener) => self.tally_precedence(from, to, listener, asked.service),
                None if self.reading.in_one_group(from, to) => {
                    self.tally.event("to a sibling that is a guest");
                }
                None => self.tally.event("to a child that is a guest"),
            }
        }
        self.effects();
        granted
    }

    fn destination(&self, listener: Option<usize>) -> Destination {
        listener.map_or(Destination::Guest, |n| {
            Destination::Listener(self.listeners[n])
        })
    }

    /// What each end sees of the other: the end that connected first.
    fn seen(&self, from: usize, to: usize) -> (VmId, VmId) {
        let of = |own: usize, other: usize| {
            if own == other {
                VmId::LOOPBACK
            } else if self.reading.partitions[own].parent == Some(other) {
                VmId::PARENT
            } else {
                self.reading.partitions[other].id
            }
        };
        (of(from, to), of(to, from))
    }

    /// Counts connects that more than one listener could have been thought to take.
    fn tally_precedence(&mut self, from: usize, to: usize, taken: usize, service: ServiceId) {
        let from_id = self.reading.partitions[from].id;
        let is_child = self.reading.partitions[from].parent == Some(to);
        let here = |l: &&Listening| l.there && l.partition == to && l.service == service;
        let there: Vec<_> = self
            .reading
            .listeners
            .iter()
            .filter(here)
            .map(|l| l.vm)
            .collect();
        let taken = self.reading.listeners[taken].vm;
        let wildcard = there.contains(&VmId::WILDCARD);
        if taken == VmId::WILDCARD && is_child && there.contains(&VmId::CHILDREN) {
            self.tally.event("a listener that may not is passed over");
        }
        if taken != VmId::WILDCARD && taken != from_id && wildcard {
            self.tally.event("wildcard yields to a class");
        }
        if taken == from_id && there.contains(&VmId::CHILDREN) {
            self.tally.event("class yields to an id");
        }
    }

    /// A partition outside of the root must not learn from an explanation whether there is a
    /// partition that it may not reach: an id that nobody has must be told the same way.
    fn check_silence(&self, request: &ConnectRequest<'_>, told: &Explanation) {
        let nobody = vm_id(98);
        let other = self.fabric.explain_connect(
            &ConnectRequest {
                vm: nobody,
                ..*request
            },
            Audience::Asker,
        );
        let text = format!("{told:?}").replace(&request.vm.to_string(), &nobody.to_string());
        assert_eq!(text, format!("{other:?}"));
    }

    /// Both did the same to others.
    fn effects(&mut self) {
        let mut got = vec![];
        let connection = |ids: &[ConnectionId], id| {
            ids.iter()
                .position(|other| *other == id)
                .expect("a connection that was made")
        };
        while let Some(effect) = self.fabric.poll_effect() {
            got.push(match effect {
                Effect::CutConnection { id, refusal } => {
                    self.tally.cut_connection(&refusal);
                    Did::CutConnection(connection(&self.connections, id), format!("{refusal:?}"))
                }
                Effect::CutListener { id, refusal } => {
                    self.tally.cut_listener(&refusal);
                    let n = self.listeners.iter().position(|other| *other == id);
                    let n = n.expect("a listener that was made");
                    Did::CutListener(n, format!("{refusal:?}"))
                }
                Effect::Suspend { id } => {
                    self.tally.event("suspended");
                    Did::Suspend(connection(&self.connections, id))
                }
                Effect::Resume { id } => {
                    self.tally.event("resumed");
                    Did::Resume(connection(&self.connections, id))
                }
            });
        }
        let mut want = std::mem::take(&mut self.reading.effects);
        got.sort();
        want.sort();
        assert_eq!(got, want, "effects");
    }

    fn same_change(&mut self, got: &Result<(), String>, want: &Result<(), &'static str>) {
        let want = want.map_err(str::to_owned);
        assert_eq!(*got, want, "change");
        if let Err(word) = want {
            self.tally.event(format!("change refused: {word}"));
        }
        self.effects();
    }

    /// Both hold the same.
    fn compare(&self) {
        let mut there = 0;
        for (n, part) in self.reading.partitions.iter().enumerate() {
            let Some(got) = self.fabric.partition(self.keys[n]) else {
                assert!(!part.there, "partition {n} is lost");
                continue;
            };
            assert!(part.there, "partition {n} is still there");
            there += 1;
            let listeners = self.reading.listeners.iter();
            let listeners = listeners.filter(|l| l.there && l.partition == n).count();
            assert_eq!(got.listeners().len(), listeners);
            let connections = self.reading.connections.iter();
            let ends_here = connections
                .filter(|c| c.there && (c.from == n || c.to == n))
                .count();
            assert_eq!(got.connections().len(), ends_here);
        }
        assert_eq!(self.fabric.partitions().count(), there);
        let listeners = self.reading.listeners.iter();
        assert_eq!(
            self.fabric.listeners().len(),
            listeners.clone().filter(|l| l.there).count()
        );
        for (n, listener) in listeners.enumerate() {
            let got = self.fabric.listener(self.listeners[n]);
            assert_eq!(got.is_some(), listener.there, "listener {n}");
            if let Some(got) = got {
                let connections = self.reading.connections.iter();
                let waiting = connections.filter(|c| c.there && c.waiting && c.listener == Some(n));
                assert_eq!(got.waiting().len(), waiting.count());
                assert_eq!(got.backlog() as usize, listener.backlog);
            }
        }
        let connections = self.reading.connections.iter();
        assert_eq!(
            self.fabric.connections().len(),
            connections.clone().filter(|c| c.there).count()
        );
        for (n, connection) in connections.enumerate() {
            let got = self.fabric.connection(self.connections[n]);
            assert_eq!(got.is_some(), connection.there, "connection {n}");
            if let Some(got) = got {
                assert_eq!(got.is_waiting(), connection.waiting);
                assert_eq!(got.is_suspended(), connection.suspended);
            }
        }
    }

    fn vm(&self, from: usize, vm: Vm) -> VmId {
        let parts = &self.reading.partitions;
        let me = &parts[from];
        let children = parts.iter().filter(|p| p.there && p.parent == Some(from));
        let siblings = parts
            .iter()
            .filter(|p| p.there && p.parent == me.parent && p.id != me.id);
        let nth = |n, of: Vec<&Part>| nth(n, of.len()).map_or(VmId::PARENT, |n| of[n].id);
        match vm {
            Vm::Is(id) => id,
            Vm::OwnId => me.id,
            Vm::ParentsId => parts[me.parent.unwrap_or(from)].id,
            Vm::AChilds(n) => nth(n, children.collect()),
            Vm::ASiblings(n) => nth(n, siblings.collect()),
            Vm::OfPartition(n) => nth(n, parts.iter().collect()),
        }
    }

    fn pick(&self, pick: Pick, fits: impl Fn(&Part) -> bool) -> usize {
        let parts = &self.reading.partitions;
        match pick {
            Pick::Any(n) => n % parts.len(),
            Pick::Fitting(n) => {
                let fitting = (0..parts.len()).filter(|p| parts[*p].there && fits(&parts[*p]));
                let fitting: Vec<_> = fitting.collect();
                nth(n, fitting.len()).map_or(0, |n| fitting[n])
            }
        }
    }

    /// A partition that has a registry.
    fn owner(&self, pick: Pick) -> usize {
        self.pick(pick, |p| p.kind != PartitionKind::Container)
    }

    /// A request that this listener might hear, from one of the partitions around its own.
    fn request_to(&self, listener: usize, from: usize, who: Principal) -> Option<Request> {
        let there = self.reading.listeners.iter().filter(|l| l.there);
        let there: Vec<_> = there.collect();
        let listener = there[nth(listener, there.len())?];
        self.request_into(listener.partition, listener.service, from, who)
    }

    /// A request for a service in a partition, from one of those around it.
    fn request_into(
        &self,
        target: usize,
        service: ServiceId,
        from: usize,
        who: Principal,
    ) -> Option<Request> {
        let parts = &self.reading.partitions;
        let id = parts[target].id;
        let mut ways = vec![];
        for (p, part) in parts.iter().enumerate() {
            if !part.there {
                continue;
            }
            if p == target {
                ways.push((p, VmId::LOOPBACK));
            } else if part.parent == Some(target) {
                ways.extend([VmId::PARENT, VmId::WILDCARD].map(|vm| (p, vm)));
                if part.kind == PartitionKind::Container {
                    ways.push((p, VmId::SILOHOST));
                }
            } else if parts[target].parent == Some(p) || self.reading.in_one_group(p, target) {
                ways.push((p, id));
            }
        }
        let (from, vm) = ways[nth(from, ways.len())?];
        Some(Request {
            from: Pick::Any(from),
            who,
            vm: Vm::Is(vm),
            service,
        })
    }

    /// The row of DESIGN's table that a request is about, unless it is refused before that.
    fn row(&self, from: usize, vm: VmId, service: ServiceId) -> Option<Row> {
        let me = &self.reading.partitions[from];
        if !me.there || service == ServiceId::ZERO {
            return None;
        }
        let container = me.kind == PartitionKind::Container;
        let parent = me.parent.map(|p| self.reading.partitions[p].kind);
        Some(match vm {
            VmId::WILDCARD if parent.is_none() => Row::WildcardInRoot,
            VmId::WILDCARD => Row::Wildcard,
            VmId::PARENT => match parent {
                None => Row::ParentOfRoot,
                Some(PartitionKind::Vm) => Row::ParentVm,
                Some(_) => Row::Parent,
            },
            VmId::CHILDREN if container => Row::ChildrenOfContainer,
            VmId::CHILDREN => Row::Children,
            VmId::LOOPBACK => Row::Loopback,
            VmId::BROADCAST => Row::Broadcast,
            VmId::SILOHOST if !container => Row::SilohostOutsideContainer,
            VmId::SILOHOST => match parent {
                // A broker in a container knows nothing around it.
                None => Row::ParentOfRoot,
                Some(PartitionKind::Vm) => Row::SilohostVm,
                Some(_) => Row::SilohostHost,
            },
            id => {
                let all = &self.reading.partitions;
                match all.iter().position(|p| p.there && p.id == id) {
                    None if from == 0 => Row::UnknownIdInRoot,
                    None => Row::UnknownId,
                    Some(p) if p == from => Row::OwnId,
                    Some(p) if me.parent == Some(p) => Row::ParentsId,
                    Some(p) if all[p].parent == Some(from) => Row::ChildsId,
                    Some(p) if self.reading.in_one_group(from, p) => Row::SiblingsIdInOneGroup,
                    Some(p) if all[p].parent == me.parent => Row::SiblingsIdInNoGroup,
                    Some(_) => Row::StrangersId,
                }
            }
        })
    }
}

/// The nth of those that are there, or now and then of all.
fn live(n: usize, there: impl ExactSizeIterator<Item = bool> + Clone) -> Option<usize> {
    if n % 8 == 7 {
        return nth(n, there.len());
    }
    let mut live = there.clone().enumerate().filter(|(_, there)| *there);
    let len = there.filter(|there| *there).count();
    live.nth(nth(n, len)?).map(|(at, _)| at)
}

fn nth(n: usize, len: usize) -> Option<usize> {
    n.checked_rem(len)
}

/// An explanation says what then happens, and its last question is the one that decided.
fn check_explanation(told: &Explanation, happened: &Result<Verdict, Refusal>) {
    assert_eq!(told.verdict, *happened);
    let last = told.steps.last().expect("there is a question");
    assert_eq!(last.pass, told.verdict.is_ok(), "{told:#?}");
    assert!(told.fix.is_none() || told.verdict.is_err());
    let (_, before) = told.steps.split_last().expect("there is a question");
    let listen = before
        .iter()
        .all(|step| step.pass || step.question.starts_with("Does the registry"));
    assert!(listen, "{told:#?}");
}

fn add_word(error: &AddPartitionError) -> String {
    match error {
        AddPartitionError::NoParent => "NoParent",
        AddPartitionError::Kind { .. } => "Kind",
        AddPartitionError::NameTaken { .. } => "NameTaken",
        AddPartitionError::IdTaken { .. } => "IdTaken",
        AddPartitionError::IdReserved { .. } => "IdReserved",
        AddPartitionError::LimitReached { .. } => "LimitReached",
        _ => "another",
    }
    .to_owned()
}

fn partition_word(error: &PartitionError) -> String {
    match error {
        PartitionError::Gone => "Gone",
        PartitionError::Root => "Root",
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
