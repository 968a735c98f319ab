//! The checks of a listen, in order.
//!
//! A listener that could never accept a connection is refused. An existing listener that can no longer
//! accept any is closed later, by the change that causes it.

use hvsock_address::ServiceId;
use hvsock_registry::{Principal, Registration, Requester, Rule};

use crate::boundary::{Boundary, Denial, rule_text};
use crate::evaluate_connect::capacity_entry;
use crate::limits::check_limit;
use crate::resolve::PartitionNode;
use crate::tables::{Binding, Listener};
use crate::trace::{Audience, NoTrace, Trace, TraceEntry};
use crate::tree::Relation;
use crate::{Check, Fabric, Fix, ListenRequest, Refusal};

/// Whether the registry at one boundary allows a listener.
struct ListenDecision<'a> {
    boundary: Boundary<'a>,
    registration: Option<&'a Registration>,
    requester: Requester<'a>,
    /// The rule that decides. `None` if the host of this virtual machine does, which cannot be asked now.
    answer: Result<Option<Rule<'a>>, Denial<'a>>,
    /// Whether the listener's own partition owns the registry.
    is_owner: bool,
    /// Whether in a child only root may listen.
    only_root: bool,
}

impl Fabric {
    pub(crate) fn evaluate_listen<T: Trace>(
        &self,
        request: &ListenRequest<'_>,
        trace: &mut T,
    ) -> Result<Binding, Refusal> {
        let from = self.requesting_partition(request.from, request.service, trace)?;
        let binding = self.tree.resolve_listen(from, request.vm, trace)?;
        self.check_state(from, trace)?;
        self.check_boundaries(from, binding, request.service, request.principal, trace)?;
        if !self.sees_listeners {
            trace.record(|_| {
                let answer = "unknown: the kernel decides";
                TraceEntry::new(Check::AddressFree, true, "Is the address free?", answer)
            });
            return Ok(binding);
        }
        let taken = self.addresses.get(&(from.key, binding, request.service));
        trace.record(|_| {
            let question = "Is the address free?";
            match taken {
                None => TraceEntry::new(Check::AddressFree, true, question, "yes"),
                Some(id) => {
                    let answer = format!("no: listener {id} has it");
                    let listener = id.as_u64();
                    TraceEntry::new(Check::AddressFree, false, question, answer)
                        .about(id)
                        .fix(Fix::StopListener { listener })
                }
            }
        });
        if taken.is_some() {
            return Err(Refusal::AddressInUse);
        }
        let (used, limits) = (from.partition.listeners.len(), &self.limits);
        let capacity =
            check_limit("listeners", self.listeners.len(), limits.listeners).and_then(|()| {
                let limit = limits.listeners_per_partition;
                check_limit("listeners_per_partition", used, limit)
            });
        trace.record(|_| capacity_entry(&capacity));
        capacity.map(|()| binding)
    }

    /// Checks that an existing listener can still accept connections.
    pub(crate) fn reevaluate_listener(&self, listener: &Listener) -> Result<(), Refusal> {
        let from = self.requesting_partition(listener.partition, listener.service, &mut NoTrace)?;
        let binding = self.tree.resolve_listen(from, listener.vm, &mut NoTrace)?;
        let (service, principal) = (listener.service, &listener.principal);
        self.check_boundaries(from, binding, service, principal, &mut NoTrace)
    }

    /// The boundaries that connections to a listener cross: the one to its parent and siblings, and the
    /// one to its children.
    pub(crate) fn boundaries<'a>(
        &'a self,
        from: PartitionNode<'a>,
        binding: Binding,
    ) -> [Option<Boundary<'a>>; 2] {
        let outward = || {
            let parent = self.tree.node(from.partition.parent?)?;
            self.tree.boundary(from, parent, Relation::Parent)
        };
        let inward = || {
            let has_children = from.partition.registry.is_some();
            has_children.then(|| Boundary::with_children(from))
        };
        // From the host to a container in a virtual machine its own registry decides as well.
        let from_host = || {
            let root = self.tree.node(self.tree.root())?;
            let relation = self.tree.relation(from.key, root.key)?;
            let is_nested = relation == Relation::Grandparent;
            is_nested.then(|| self.tree.boundary(from, root, relation))?
        };
        match binding {
            Binding::Loopback => [None, None],
            // A connection from a sibling crosses the parent's boundary too, with the same rules and
            // more.
            Binding::Wildcard => [outward(), inward().or_else(from_host)],
            Binding::Parent => [outward(), None],
            Binding::Children => [None, inward()],
            Binding::Partition(key) => {
                let boundary = || {
                    let relation = self.tree.relation(from.key, key)?;
                    self.tree.boundary(from, self.tree.node(key)?, relation)
                };
                [boundary(), None]
            }
        }
    }

    /// Checks that a listener could accept connections over at least one of its boundaries.
    fn check_boundaries<T: Trace>(
        &self,
        from: PartitionNode<'_>,
        binding: Binding,
        service: ServiceId,
        principal: &Principal,
        trace: &mut T,
    ) -> Result<(), Refusal> {
        if binding == Binding::Loopback {
            return self.check_local(from, service, trace);
        }
        let wildcard = binding == Binding::Wildcard;
        let decisions = self.boundaries(from, binding).map(|boundary| {
            let boundary = boundary?;
            let is_owner = boundary.owner.key == from.key;
            let requester = match is_owner {
                true => Requester::Process(principal),
                false => {
                    let is_root = principal.is_partition_root();
                    self.tree.requester(from.partition, is_root)
                }
            };
            let is_outer = Some(boundary.owner.key) == self.tree.outer();
            if is_outer && !self.outer_is_mirrored {
                return Some(ListenDecision {
                    only_root: false,
                    registration: None,
                    answer: Ok(None),
                    requester,
                    boundary,
                    is_owner,
                });
            }
            let policy = boundary.policy(service, &self.operators);
            Some(ListenDecision {
                only_root: policy.is_some_and(|policy| policy.only_root_binds()),
                registration: policy.map(|policy| policy.registration()),
                answer: match &policy {
                    Some(policy) => boundary.may_listen(policy, &requester, wildcard).map(Some),
                    None => Err(Denial::Unregistered),
                },
                requester,
                boundary,
                is_owner,
            })
        });
        let decisions = decisions.iter().flatten();
        let any = decisions.clone().any(|decision| decision.answer.is_ok());
        decisions
            .clone()
            .for_each(|decision| trace.record(|audience| decision.note(audience, any)));
        if any {
            return Ok(());
        }
        // Of several denials, report the one of a registry that has the service.
        let decides = decisions
            .clone()
            .find(|decision| decision.registration.is_some());
        match decides.or(decisions.clone().next()) {
            Some(ListenDecision {
                answer: Err(denial),
                is_owner,
                registration,
                requester,
                ..
            }) => {
                trace.fix(|audience| {
                    let may_read = *is_owner || audience == Audience::Operator;
                    denial.fix(service, *registration, requester, may_read)
                });
                Err(denial.refusal(*is_owner))
            }
            // A container without a parent, at the wildcard.
            _ => {
                trace.record(|_| {
                    let question = "Does a registry allow it?";
                    let answer = "no: the partition has neither a parent nor children";
                    TraceEntry::new(Check::MayListen, false, question, answer)
                });
                Err(Refusal::Unregistered)
            }
        }
    }
}

impl ListenDecision<'_> {
    /// The trace entry for this boundary. `any` is whether some boundary allows the listener.
    fn note(&self, audience: Audience, any: bool) -> TraceEntry {
        let owner = &self.boundary.owner.partition.name;
        let question = format!("Does the registry of {owner} allow it?");
        let may_read = self.is_owner || audience == Audience::Operator;
        let (pass, answer, rule) = match &self.answer {
            Ok(None) => (true, "asked there, once it can be reached".to_owned(), None),
            Ok(Some(rule)) => {
                let rule_text = rule_text(*rule, may_read);
                let answer = match self.requester {
                    Requester::Partition { own, .. } if self.only_root => {
                        format!("yes, to root in {} only: {rule_text}", own.name)
                    }
                    _ => format!("yes: {rule_text}"),
                };
                (true, answer, Some(rule.brief()))
            }
            Err(denial) => (any, denial.answer(may_read), denial.rule()),
        };
        TraceEntry::new(Check::MayListen, pass, question, answer)
            .about(owner)
            .by_rule(rule)
    }
}
