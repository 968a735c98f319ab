//! The checks of a connect, in order, and the search for its destination.
//!
//! Nothing here changes state, so a real request and an explanation run the same code with a different
//! [`Trace`]. Every check is a lookup by key: its cost does not depend on the number of listeners,
//! connections or registrations.

use hvsock_address::{PartitionName, PartitionRef, ServiceId, VmId};
use hvsock_registry::Requester;

use crate::boundary::{Boundary, BoundaryPolicy, Denial, rule_text};
use crate::limits::check_room;
use crate::partition::{PartitionKind, PartitionState};
use crate::plan::Plan;
use crate::resolve::PartitionNode;
use crate::tables::{Binding, Listener};
use crate::trace::{Audience, NoTrace, Trace, TraceEntry, service_ref};
use crate::tree::Relation;
use crate::{
    Check, ConnectRequest, ContainerChange, Destination, Fabric, Fix, ListenerId, PartitionKey,
    Refusal,
};

/// The vsock ports below this one need root in a Linux guest (`LAST_RESERVED_PORT` of the kernel's
/// `net/vmw_vsock/af_vsock.c`, 1023).
const PRIVILEGED_PORTS: u32 = 1024;

/// The two partitions of a connect.
#[derive(Clone, Copy)]
pub(crate) struct Pair<'a> {
    source: PartitionNode<'a>,
    target: PartitionNode<'a>,
    relation: Relation,
}

impl Fabric {
    pub(crate) fn evaluate_connect<T: Trace>(
        &self,
        request: &ConnectRequest<'_>,
        weight: u32,
        trace: &mut T,
    ) -> Result<Plan, Refusal> {
        let (pair, plan) = self.evaluate_path(request, trace)?;
        self.check_capacity(pair, weight, plan.destination, trace)?;
        Ok(plan)
    }

    /// The destination of a connect, by the same checks as [`connect`](Self::connect), except for those
    /// of the capacity: whether a table or the listener's backlog is full. Changes nothing.
    ///
    /// # Errors
    /// The [`Refusal`] of the first check that fails.
    pub fn judge(&self, request: &ConnectRequest<'_>) -> Result<Destination, Refusal> {
        let (_, plan) = self.evaluate_path(request, &mut NoTrace)?;
        Ok(plan.destination)
    }

    /// Whether a connect that is allowed would be direct ([`Route::direct`](crate::Route::direct)).
    pub fn is_direct(&self, request: &ConnectRequest<'_>) -> bool {
        let path = self.evaluate_path(request, &mut NoTrace);
        path.is_ok_and(|(_, plan)| plan.direct)
    }

    /// The listener that would accept a connect, even if its backlog or a table is full. `None` if the
    /// connect is refused or its destination is a guest.
    pub fn listener_for(&self, request: &ConnectRequest<'_>) -> Option<ListenerId> {
        self.judge(request).ok()?.listener()
    }

    /// All checks except the capacity.
    pub(crate) fn evaluate_path<'a, T: Trace>(
        &'a self,
        request: &ConnectRequest<'_>,
        trace: &mut T,
    ) -> Result<(Pair<'a>, Plan), Refusal> {
        let source = self.requesting_partition(request.from, request.service, trace)?;
        let (target, relation) = self.tree.resolve_connect(source, request.vm, trace)?;
        let pair = Pair {
            source,
            target,
            relation,
        };
        self.check_state(source, trace)?;
        let boundary = self.tree.boundary(source, target, relation);
        let policy = match &boundary {
            Some(boundary) if Some(boundary.owner.key) == self.tree.outer() => {
                self.mirrored_policy(boundary, request.service)
            }
            None => {
                self.check_local(source, request.service, trace)?;
                None
            }
            Some(boundary) => {
                self.check_state(target, trace)?;
                Some(self.check_registry(source, boundary, request, trace)?)
            }
        };
        let destination = self.find_destination(pair, request.service, policy.as_ref(), trace)?;
        let direct =
            self.check_transport(source, request.service, policy.as_ref(), destination, trace);
        let plan = Plan {
            direct,
            target: target.key,
            relation,
            destination,
            registry: self.registry_of(source, target, relation),
        };
        Ok((pair, plan))
    }

    /// Whether a connection between two partitions is one between the root and the outer partition. The
    /// host judges those.
    pub(crate) fn host_judges(&self, one: PartitionKey, other: PartitionKey) -> bool {
        let root = self.tree.root();
        let is_one = |key| key == one || key == other;
        self.tree.outer().is_some_and(is_one) && is_one(root)
    }

    /// The partition whose registry a connection depends on, if one of this fabric does.
    pub(crate) fn registry_of(
        &self,
        source: PartitionNode<'_>,
        target: PartitionNode<'_>,
        relation: Relation,
    ) -> Option<PartitionKey> {
        match self.tree.boundary(source, target, relation) {
            None => self.own_registry(source),
            Some(_) if self.host_judges(source.key, target.key) => None,
            Some(boundary) => Some(boundary.owner.key),
        }
    }

    /// What the host says about a service, if it says anything.
    fn mirrored_policy<'a>(
        &'a self,
        boundary: &Boundary<'a>,
        service: ServiceId,
    ) -> Option<BoundaryPolicy<'a>> {
        let policy = || boundary.policy(service, &self.operators);
        self.outer_is_mirrored.then(policy).flatten()
    }

    /// Whether the registry wants the processes to have one socket pair. A guest cannot have one.
    fn check_transport<T: Trace>(
        &self,
        source: PartitionNode<'_>,
        service: ServiceId,
        policy: Option<&BoundaryPolicy<'_>>,
        destination: Destination,
        trace: &mut T,
    ) -> bool {
        let local = || Boundary::with_children(source).policy(service, &self.operators);
        let rule = match policy {
            Some(policy) => policy.direct(),
            None => local().and_then(|policy| policy.direct()),
        };
        let Some(rule) = rule else {
            return false;
        };
        let is_direct = !self.tree.is_remote(source.key) && destination.listener().is_some();
        trace.record(|_| {
            let answer = match is_direct {
                true => format!("yes, if both ends can: {rule}; its bytes are not counted"),
                false => format!("no: one end is a guest, in spite of {rule}"),
            };
            let question = "Do both ends get one socket pair?";
            TraceEntry::new(Check::Transport, true, question, answer).by_rule(Some(rule.brief()))
        });
        is_direct
    }

    /// The partition of the requesting process. Also rejects the zero GUID as a service.
    pub(crate) fn requesting_partition<T: Trace>(
        &self,
        key: PartitionKey,
        service: ServiceId,
        trace: &mut T,
    ) -> Result<PartitionNode<'_>, Refusal> {
        if service == ServiceId::ZERO {
            trace.record(|_| {
                let answer = "no: the zero GUID is not a service";
                TraceEntry::new(Check::ServiceId, false, "Is the service id valid?", answer)
            });
            return Err(Refusal::AddressNotAvailable);
        }
        let node = self.tree.node(key);
        if node.is_none() {
            trace.record(|_| {
                let question = "Does the requester's partition exist?";
                TraceEntry::new(Check::Requester, false, question, "no: it was removed")
            });
        }
        node.ok_or(Refusal::PartitionOff)
    }

    pub(crate) fn check_state<T: Trace>(
        &self,
        node: PartitionNode<'_>,
        trace: &mut T,
    ) -> Result<(), Refusal> {
        let state = self.tree.state(node.key);
        trace.record(|_| self.state_entry(node, state));
        match (state, state.down_refusal()) {
            (_, Some(refusal)) => Err(refusal),
            (PartitionState::Paused, None) => Err(Refusal::PartitionPaused),
            (_, None) => Ok(()),
        }
    }

    fn state_entry(&self, node: PartitionNode<'_>, state: PartitionState) -> TraceEntry {
        let question = format!("Is {} running?", node.partition.name);
        if state.is_up() {
            let answer = match state {
                PartitionState::Unknown => "presumably: nobody says whether it does",
                _ => "yes",
            };
            return TraceEntry::new(Check::Running, true, question, answer)
                .about(&node.partition.name);
        }
        // The partition itself or one of its ancestors has this state.
        let mut cause = node.partition;
        while cause.state != state {
            match cause.parent.and_then(|key| self.tree.get(key)) {
                Some(outer) => cause = outer,
                None => break,
            }
        }
        let (partition, kind, id) = (cause.name.clone(), cause.kind, cause.vm_id);
        // The fabric has no record of whether the VMM or an operator paused it.
        let fix = match state {
            PartitionState::Paused => match partition.parts() {
                Some((vm, container)) => Fix::ChangeInVm {
                    vm,
                    container,
                    change: ContainerChange::Resume,
                },
                None => Fix::ResumePartition {
                    partition,
                    kind,
                    id,
                },
            },
            PartitionState::Connected => Fix::LoadDriver { partition },
            _ => Fix::StartPartition {
                partition,
                kind,
                id,
            },
        };
        let name = &cause.name;
        let answer = match state {
            PartitionState::Connected => format!("no: the guest of {name} has no vsock driver"),
            PartitionState::Defined if kind == PartitionKind::Vm => {
                format!("no: the VMM of {name} has not been seen")
            }
            PartitionState::Defined => format!("no: {name} has not been started"),
            PartitionState::Exited => format!("no: {name} has exited"),
            _ => format!("no: {name} is {state}"),
        };
        TraceEntry::new(Check::Running, false, question, answer)
            .about(&node.partition.name)
            .fix(fix)
    }

    /// Checks a request within one partition. The service need not be registered, but the partition's
    /// own registry may have disabled it.
    pub(crate) fn check_local<T: Trace>(
        &self,
        node: PartitionNode<'_>,
        service: ServiceId,
        trace: &mut T,
    ) -> Result<(), Refusal> {
        let policy = Boundary::with_children(node).policy(service, &self.operators);
        let answer = policy.map_or(Ok(()), |policy| policy.enabled().map(drop));
        trace.record(|_| match &answer {
            Ok(()) => {
                let question = "Must a registry allow it?";
                let answer = "no: both ends are in one partition";
                TraceEntry::new(Check::NeedsRegistry, true, question, answer)
            }
            Err(denial) => {
                let registration = policy.map(|policy| policy.registration());
                let requester = self.tree.requester(node.partition, false);
                TraceEntry::new(Check::Enabled, false, "Is it enabled?", denial.answer(true))
                    .by_rule(denial.rule())
                    .fix(denial.fix(service, registration, &requester, true))
            }
        });
        answer.map_err(|denial| denial.refusal(true))
    }

    /// The partition whose registry [`check_local`](Self::check_local) reads.
    pub(crate) fn own_registry(&self, node: PartitionNode<'_>) -> Option<PartitionKey> {
        node.partition.registry().map(|_| node.key)
    }

    /// Checks that the service is registered and enabled, and that the requester may connect.
    fn check_registry<'a, T: Trace>(
        &'a self,
        source: PartitionNode<'_>,
        boundary: &Boundary<'a>,
        request: &ConnectRequest<'_>,
        trace: &mut T,
    ) -> Result<BoundaryPolicy<'a>, Refusal> {
        let owner = boundary.owner;
        // The connecting process is in the partition that owns the registry, or in a child of it.
        let is_owner = source.key == owner.key;
        let requester = match is_owner {
            true => Requester::Process(request.principal),
            false => self.tree.requester(source.partition, false),
        };
        let policy = boundary.policy(request.service, &self.operators);
        trace.record(|_| {
            let question = format!("Is the service registered in {}?", owner.partition.name);
            let entry = match &policy {
                Some(policy) => {
                    let answer = format!("yes, as \"{}\"", policy.registration().name);
                    TraceEntry::new(Check::Registered, true, question, answer)
                }
                None => TraceEntry::new(Check::Registered, false, question, "no")
                    .fix(Denial::Unregistered.fix(request.service, None, &requester, is_owner)),
            };
            entry.about(&owner.partition.name)
        });
        let policy = policy.ok_or(Refusal::Unregistered)?;
        let mut check = |check: Check, question: &str, answer: Result<_, Denial<'_>>| {
            trace.record(|audience| {
                let may_read = is_owner || audience == Audience::Operator;
                match &answer {
                    Ok(rule) => {
                        let answer = format!("yes: {}", rule_text(*rule, may_read));
                        TraceEntry::new(check, true, question, answer).by_rule(Some(rule.brief()))
                    }
                    Err(denial) => {
                        let registration = Some(policy.registration());
                        let fix = denial.fix(request.service, registration, &requester, may_read);
                        TraceEntry::new(check, false, question, denial.answer(may_read))
                            .by_rule(denial.rule())
                            .fix(fix)
                    }
                }
            });
            answer.map_err(|denial| denial.refusal(is_owner))
        };
        check(Check::Enabled, "Is it enabled?", policy.enabled())?;
        let may_connect = policy.connect(&requester);
        check(Check::MayConnect, "Is connecting allowed?", may_connect)?;
        Ok(policy)
    }

    /// Finds the destination: of the listeners that may accept the connection, the one with the most
    /// specific address. In a VM without such a listener it is the guest itself.
    fn find_destination<T: Trace>(
        &self,
        pair: Pair<'_>,
        service: ServiceId,
        policy: Option<&BoundaryPolicy<'_>>,
        trace: &mut T,
    ) -> Result<Destination, Refusal> {
        let Pair {
            source,
            target,
            relation,
        } = pair;
        if !self.sees_listeners {
            trace.record(|_| {
                let question = format!("Which listener in {} accepts it?", target.partition.name);
                let answer = "unknown: its kernel decides";
                TraceEntry::new(Check::Listener, true, question, answer)
                    .about(&target.partition.name)
            });
            return Ok(Destination::Guest);
        }
        if Some(target.key) == self.tree.outer() {
            trace.record(|_| {
                let name = &target.partition.name;
                let question = format!("Does {name} allow it?");
                let answer = "asked there: its registry and listeners decide";
                TraceEntry::new(Check::Host, true, question, answer).about(name)
            });
            return Ok(Destination::Guest);
        }
        let by_id = Some(Binding::Partition(source.key));
        let (first, second) = match relation {
            Relation::Itself => (None, Some(Binding::Loopback)),
            // A listener in the child sees a connection from its parent.
            Relation::Child => (None, Some(Binding::Parent)),
            Relation::Parent => (by_id, Some(Binding::Children)),
            Relation::Sibling | Relation::Grandparent | Relation::Grandchild => (by_id, None),
        };
        // Whether the connecting process's own partition owns the registry.
        let is_owner = relation == Relation::Child
            || relation == Relation::Grandchild && source.key == self.tree.root();
        let mut first_denial = None;
        for binding in [first, second, Some(Binding::Wildcard)]
            .into_iter()
            .flatten()
        {
            let Some((id, listener)) = self.listener_at(target.key, binding, service) else {
                continue;
            };
            let is_root = listener.principal.is_partition_root();
            let requester = match relation {
                // The outer partition has no listeners here, so a grandparent owns the registry.
                Relation::Parent | Relation::Grandparent => Requester::Process(&listener.principal),
                _ => self.tree.requester(target.partition, is_root),
            };
            let wildcard = binding == Binding::Wildcard;
            let answer =
                policy.map_or(Ok(()), |policy| policy.bind(&requester, wildcard).map(drop));
            trace.record(|audience| {
                let question = format!("May listener {id} accept it?");
                let whom = self.tree.accepts_from(target, binding);
                let (answer, rule) = match &answer {
                    Ok(()) => (format!("yes: it accepts from {whom}"), None),
                    Err(denial) => {
                        let may_read = is_owner || audience == Audience::Operator;
                        (denial.answer(may_read), denial.rule())
                    }
                };
                TraceEntry::new(Check::Listener, true, question, answer)
                    .about(id)
                    .by_rule(rule)
            });
            match answer {
                Ok(()) => return Ok(Destination::Listener(id)),
                Err(denial) => first_denial.get_or_insert((denial, requester)),
            };
        }
        if first_denial.is_none()
            && let Some(policy) = policy
            && self.tree.leads_to_guest(target.key, relation)
        {
            return self.check_guest_bind(target, service, policy, is_owner, trace);
        }
        let registration = policy.map(BoundaryPolicy::registration);
        trace.record(|audience| {
            let may_read = is_owner || audience == Audience::Operator;
            let question = format!("Which listener in {} accepts it?", target.partition.name);
            let (answer, fix) = match &first_denial {
                Some((denial, requester)) => {
                    let fix = denial.fix(service, registration, requester, may_read);
                    ("none that is allowed to", fix)
                }
                None => {
                    let from = match relation {
                        Relation::Itself => VmId::LOOPBACK.into(),
                        Relation::Child => VmId::PARENT.into(),
                        Relation::Parent
                        | Relation::Sibling
                        | Relation::Grandparent
                        | Relation::Grandchild => PartitionRef::Name(source.partition.name.clone()),
                    };
                    let service = service_ref(service, registration);
                    ("none", Fix::StartListener { service, from })
                }
            };
            let rule = first_denial.as_ref().and_then(|(denial, _)| denial.rule());
            TraceEntry::new(Check::Listener, false, question, answer)
                .about(&target.partition.name)
                .by_rule(rule)
                .fix(fix)
        });
        Err(first_denial.map_or(Refusal::NoListener, |(denial, _)| denial.refusal(is_owner)))
    }

    /// Checks that a guest may accept the connection. What runs there makes the final decision, because
    /// the fabric has no record of the sockets in the guest: its kernel, or for a container in it its
    /// broker.
    fn check_guest_bind<T: Trace>(
        &self,
        target: PartitionNode<'_>,
        service: ServiceId,
        policy: &BoundaryPolicy<'_>,
        is_owner: bool,
        trace: &mut T,
    ) -> Result<Destination, Refusal> {
        let name = &target.partition.name;
        let is_container = target.partition.kind == PartitionKind::Container;
        let port = service.port_for_guests();
        let is_root = match port {
            // Only the broker in the virtual machine knows who is root in a container there.
            _ if is_container => true,
            // A guest's kernel lets only root listen on these ports, and any user on all others.
            Some(port) => port < PRIVILEGED_PORTS,
            None => {
                trace.record(|_| {
                    let question = format!("Which vsock port has it in {name}?");
                    let answer = "none: this GUID maps to no vsock port";
                    TraceEntry::new(Check::VsockPort, false, question, answer).about(name)
                });
                return Err(Refusal::ServiceNotMappable);
            }
        };
        let requester = self.tree.requester(target.partition, is_root);
        let bind = policy.bind(&requester, false);
        trace.record(|audience| {
            let kind = if is_container { "container" } else { "guest" };
            let question = format!("May the {kind} {name} accept it?");
            let entry = match &bind {
                Ok(rule) => {
                    let answer = match (self.vm_of(target), port) {
                        (Some(vm), _) => format!(
                            "yes: the broker in {vm} decides, by its registry and listeners there"
                        ),
                        (None, Some(port)) => {
                            format!("yes: the guest decides, by its listeners on vsock port {port}")
                        }
                        (None, None) => "yes: the guest decides, by its listeners".to_owned(),
                    };
                    TraceEntry::new(Check::Guest, true, question, answer)
                        .by_rule(Some(rule.brief()))
                }
                Err(denial) => {
                    let may_read = is_owner || audience == Audience::Operator;
                    let registration = Some(policy.registration());
                    TraceEntry::new(Check::Guest, false, question, denial.answer(may_read))
                        .by_rule(denial.rule())
                        .fix(denial.fix(service, registration, &requester, may_read))
                }
            };
            entry.about(name)
        });
        bind.map(|_| Destination::Guest)
            .map_err(|denial| denial.refusal(is_owner))
    }

    /// The name of the virtual machine that a container is in.
    fn vm_of<'a>(&'a self, container: PartitionNode<'a>) -> Option<&'a PartitionName> {
        let is_container = container.partition.kind == PartitionKind::Container;
        let vm = container.partition.parent.filter(|_| is_container)?;
        Some(self.tree.get(vm)?.name())
    }

    fn listener_at(
        &self,
        partition: PartitionKey,
        binding: Binding,
        service: ServiceId,
    ) -> Option<(ListenerId, &Listener)> {
        let id = *self.addresses.get(&(partition, binding, service))?;
        Some((id, self.listeners.get(&id)?))
    }

    fn check_capacity<T: Trace>(
        &self,
        pair: Pair<'_>,
        weight: u32,
        destination: Destination,
        trace: &mut T,
    ) -> Result<(), Refusal> {
        if !self.sees_listeners {
            return Ok(());
        }
        let limits = &self.limits;
        let per_partition = |node: PartitionNode<'_>| {
            let limit = limits.connections_per_partition;
            let used = node.partition.weight;
            check_room("connections_per_partition", used, weight, limit)
        };
        let backlog = || match destination.listener().map(|id| self.listeners.get(&id)) {
            // The guest's kernel has its own backlog.
            None => Ok(()),
            Some(Some(listener)) if listener.waiting.len() < listener.backlog as usize => Ok(()),
            Some(_) => Err(Refusal::BacklogFull),
        };
        let capacity = check_room("connections", self.weight, weight, limits.connections)
            .and_then(|()| per_partition(pair.source))
            .and_then(|()| per_partition(pair.target))
            .and_then(|()| backlog());
        trace.record(|_| capacity_entry(&capacity));
        capacity
    }
}

pub(crate) fn capacity_entry(capacity: &Result<(), Refusal>) -> TraceEntry {
    let question = "Is there a free slot?";
    match capacity {
        Ok(()) => TraceEntry::new(Check::Capacity, true, question, "yes"),
        Err(refusal) => {
            let which = match refusal {
                Refusal::LimitReached { which } => Some(which),
                _ => None,
            };
            TraceEntry::new(Check::Capacity, false, question, format!("no: {refusal}"))
                .by_rule(which)
        }
    }
}
