//! May this one connect, and to whom? All questions in their order.
//!
//! Nothing here changes anything, so that an explanation and the real thing take the same way: they
//! differ in the [`Trace`] that they bring. Nothing here searches either: each question is a
//! look-up by key, whatever the number of listeners, connections and registrations.

use hvsock_address::ServiceId;
use hvsock_registry::Requester;

use crate::explain::{Audience, Note, Silent, Trace, service_word};
use crate::limits::room;
use crate::partition::{PartitionKind, PartitionState};
use crate::resolve::Place;
use crate::tables::{Bound, Listener};
use crate::terms::{Barrier, Border, Terms, shown};
use crate::tree::Relation;
use crate::{ConnectRequest, Destination, Fabric, ListenerId, PartitionKey, Refusal};

/// Where a connect that may be made goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) target: PartitionKey,
    pub(crate) relation: Relation,
    pub(crate) destination: Destination,
    /// The partition whose registry it depends on; none inside a container.
    pub(crate) registry: Option<PartitionKey>,
}

/// The two partitions of a connect.
#[derive(Clone, Copy)]
struct Pair<'a> {
    source: Place<'a>,
    target: Place<'a>,
    relation: Relation,
}

impl Fabric {
    pub(crate) fn judge_connect<T: Trace>(
        &self,
        request: &ConnectRequest<'_>,
        trace: &mut T,
    ) -> Result<Plan, Refusal> {
        let (pair, plan) = self.judge_way(request, trace)?;
        self.check_room(pair, plan.destination, trace)?;
        Ok(plan)
    }

    /// The listener to which a connect leads, if it leads to one, whether or not there is room for
    /// it.
    pub fn listener_for(&self, request: &ConnectRequest<'_>) -> Option<ListenerId> {
        let (_, plan) = self.judge_way(request, &mut Silent).ok()?;
        plan.destination.listener()
    }

    /// All questions but the last.
    fn judge_way<'a, T: Trace>(
        &'a self,
        request: &ConnectRequest<'_>,
        trace: &mut T,
    ) -> Result<(Pair<'a>, Plan), Refusal> {
        let source = self.asking(request.from, request.service, trace)?;
        let (target, relation) = self.tree.resolve_connect(source, request.vm, trace)?;
        let pair = Pair {
            source,
            target,
            relation,
        };
        self.check_state(source, trace)?;
        let border = self.tree.border(source, target, relation);
        let terms = match &border {
            None => {
                self.check_inside(source, request.service, trace)?;
                None
            }
            Some(border) => {
                self.check_state(target, trace)?;
                Some(self.check_terms(source, border, request, trace)?)
            }
        };
        let destination = self.check_taker(pair, request.service, terms.as_ref(), trace)?;
        let plan = Plan {
            target: target.key,
            relation,
            destination,
            registry: match border {
                Some(border) => Some(border.owner.key),
                None => self.inside_registry(source),
            },
        };
        Ok((pair, plan))
    }

    /// The partition that asks about a service.
    pub(crate) fn asking<T: Trace>(
        &self,
        key: PartitionKey,
        service: ServiceId,
        trace: &mut T,
    ) -> Result<Place<'_>, Refusal> {
        if service == ServiceId::ZERO {
            trace.note(|_| {
                let answer = "nothing: the zero GUID stands where an end has no service";
                Note::new(false, "What is the service?", answer)
            });
            return Err(Refusal::AddressNotAvailable);
        }
        let place = self.tree.place(key);
        if place.is_none() {
            trace.note(|_| Note::new(false, "Is the asker's partition there?", "no: it is gone"));
        }
        place.ok_or(Refusal::PartitionOff)
    }

    pub(crate) fn check_state<T: Trace>(
        &self,
        place: Place<'_>,
        trace: &mut T,
    ) -> Result<(), Refusal> {
        let state = self.tree.state(place.key);
        trace.note(|_| self.state_note(place, state));
        match state {
            PartitionState::Running => Ok(()),
            PartitionState::Paused => Err(Refusal::PartitionPaused),
            PartitionState::Off => Err(Refusal::PartitionOff),
        }
    }

    fn state_note(&self, place: Place<'_>, state: PartitionState) -> Note {
        let question = format!("Is {} running?", place.partition.name);
        if state == PartitionState::Running {
            return Note::new(true, question, "yes");
        }
        // It stands still on its own account, or because something around it does.
        let mut cause = place.partition;
        while cause.state != state {
            match cause.parent.and_then(|key| self.tree.get(key)) {
                Some(outer) => cause = outer,
                None => break,
            }
        }
        let name = &cause.name;
        let fix = match (state, cause.kind) {
            // Who paused it, its VMM or an operator, is not known here.
            (PartitionState::Paused, PartitionKind::Vm) => {
                format!("hvsock vm resume {name}; or resume it in its VMM, if that paused it")
            }
            (PartitionState::Paused, _) => format!("hvsock container resume {name}"),
            (_, PartitionKind::Vm) => {
                format!("start its VMM with what `hvsock vm show {name}` prints")
            }
            (_, kind) => format!("start the {kind} {name}"),
        };
        Note::new(false, question, format!("no: {name} is {state}")).fix(fix)
    }

    /// Between two ends in one partition nothing has to be registered, but what the partition's
    /// own registry switches off is off here, too.
    pub(crate) fn check_inside<T: Trace>(
        &self,
        place: Place<'_>,
        service: ServiceId,
        trace: &mut T,
    ) -> Result<(), Refusal> {
        let terms = Border::with_children(place).terms(service, self.broker_uid);
        let answer = terms.map_or(Ok(()), |terms| terms.enabled().map(drop));
        trace.note(|_| match &answer {
            Ok(()) => {
                let question = "Does a registry have to allow it?";
                Note::new(true, question, "no: both ends are in one partition")
            }
            Err(barrier) => {
                let registration = terms.map(|terms| terms.registration());
                Note::new(false, "Is it enabled?", barrier.words(true))
                    .fix(barrier.fix(service, registration))
            }
        });
        answer.map_err(|barrier| barrier.refusal(true))
    }

    /// The partition whose registry [`check_inside`](Self::check_inside) asks.
    pub(crate) fn inside_registry(&self, place: Place<'_>) -> Option<PartitionKey> {
        place.partition.registry().map(|_| place.key)
    }

    /// The registry's part of it.
    fn check_terms<'a, T: Trace>(
        &self,
        source: Place<'_>,
        border: &Border<'a>,
        request: &ConnectRequest<'_>,
        trace: &mut T,
    ) -> Result<Terms<'a>, Refusal> {
        let owner = border.owner;
        // The connecting process is in the partition whose registry it is, or in a child of it.
        let is_owner = source.key == owner.key;
        let asker = match is_owner {
            true => Requester::Process(request.principal),
            false => source.partition.as_child(),
        };
        let terms = border.terms(request.service, self.broker_uid);
        trace.note(|_| {
            let question = format!("Is the service registered in {}?", owner.partition.name);
            match &terms {
                Some(terms) => {
                    let name = &terms.registration().name;
                    Note::new(true, question, format!("yes, as \"{name}\""))
                }
                None => Note::new(false, question, "no")
                    .fix(Barrier::Unregistered.fix(request.service, None)),
            }
        });
        let terms = terms.ok_or(Refusal::Unregistered)?;
        let mut check = |question: &str, answer: Result<_, Barrier<'_>>| {
            trace.note(|audience| {
                let reads = is_owner || audience == Audience::Operator;
                match &answer {
                    Ok(rule) => Note::new(true, question, format!("yes: {}", shown(*rule, reads))),
                    Err(barrier) => Note::new(false, question, barrier.words(reads))
                        .fix(barrier.fix(request.service, Some(terms.registration()))),
                }
            });
            answer.map_err(|barrier| barrier.refusal(is_owner))
        };
        check("Is it enabled?", terms.enabled())?;
        check("May the asker connect?", terms.connect(&asker))?;
        Ok(terms)
    }

    /// Who takes it: the listener whose address is the most specific, of those that may; or, in a
    /// VM where there is none of ours, the guest.
    fn check_taker<T: Trace>(
        &self,
        pair: Pair<'_>,
        service: ServiceId,
        terms: Option<&Terms<'_>>,
        trace: &mut T,
    ) -> Result<Destination, Refusal> {
        let Pair {
            source,
            target,
            relation,
        } = pair;
        if !self.sees_listeners {
            trace.note(|_| {
                let question = format!("Who in {} listens for it?", target.partition.name);
                Note::new(true, question, "its kernel alone knows, and answers")
            });
            return Ok(Destination::Guest);
        }
        let by_id = Some(Bound::Partition(source.key));
        let (first, second) = match relation {
            Relation::Itself => (None, Some(Bound::Loopback)),
            // Who connects to a child is its parent.
            Relation::Child => (None, Some(Bound::Parent)),
            Relation::Parent => (by_id, Some(Bound::Children)),
            Relation::Sibling => (by_id, None),
        };
        // Whether the registry is that of the connecting process's own partition.
        let is_owner = relation == Relation::Child;
        let mut passed_over = None;
        for bound in [first, second, Some(Bound::Wildcard)].into_iter().flatten() {
            let Some((id, listener)) = self.listener_at(target.key, bound, service) else {
                continue;
            };
            let asker = match relation {
                Relation::Parent => Requester::Process(&listener.principal),
                _ => target.partition.as_child(),
            };
            let wildcard = bound == Bound::Wildcard;
            let answer = terms.map_or(Ok(()), |terms| terms.bind(&asker, wildcard).map(drop));
            trace.note(|audience| {
                let question = format!("May listener {id} take it?");
                let whom = self.tree.whom(target, bound);
                match &answer {
                    Ok(()) => Note::new(true, question, format!("yes: it accepts from {whom}")),
                    Err(barrier) => {
                        let reads = is_owner || audience == Audience::Operator;
                        Note::new(true, question, barrier.words(reads))
                    }
                }
            });
            match answer {
                Ok(()) => return Ok(Destination::Listener(id)),
                Err(barrier) => passed_over.get_or_insert(barrier),
            };
        }
        if passed_over.is_none()
            && let Some(terms) = terms
            && matches!(relation, Relation::Child | Relation::Sibling)
            && target.partition.kind == PartitionKind::Vm
        {
            return self.check_guest(target, service, terms, is_owner, trace);
        }
        let registration = terms.map(Terms::registration);
        trace.note(|_| {
            let question = format!("Who in {} listens for it?", target.partition.name);
            match &passed_over {
                Some(barrier) => Note::new(false, question, "nobody who may take it")
                    .fix(barrier.fix(service, registration)),
                None => {
                    let word = service_word(service, registration);
                    let whom = match relation {
                        Relation::Itself => "loopback",
                        Relation::Child => "parent",
                        Relation::Parent | Relation::Sibling => source.partition.name.as_str(),
                    };
                    Note::new(false, question, "nobody")
                        .fix(format!("hvsock listen {word} --from {whom}"))
                }
            }
        });
        Err(passed_over.map_or(Refusal::NoListener, |barrier| barrier.refusal(is_owner)))
    }

    /// Whether the guest may take it. What listens inside of it only its kernel knows, so that
    /// the kernel answers in the end.
    fn check_guest<T: Trace>(
        &self,
        target: Place<'_>,
        service: ServiceId,
        terms: &Terms<'_>,
        is_owner: bool,
        trace: &mut T,
    ) -> Result<Destination, Refusal> {
        let name = &target.partition.name;
        let Some(port) = service.port_for_guests() else {
            trace.note(|_| {
                let question = format!("At which vsock port does {name} know it?");
                Note::new(false, question, "none: this GUID stands for no port")
            });
            return Err(Refusal::ServiceNotMappable);
        };
        let bind = terms.bind(&target.partition.as_child(), false);
        trace.note(|audience| {
            let question = format!("May the guest {name} take it?");
            match &bind {
                Ok(_) => {
                    let answer =
                        format!("yes: the guest decides, by who listens at its port {port}");
                    Note::new(true, question, answer)
                }
                Err(barrier) => {
                    let reads = is_owner || audience == Audience::Operator;
                    let fix = barrier.fix(service, Some(terms.registration()));
                    Note::new(false, question, barrier.words(reads)).fix(fix)
                }
            }
        });
        bind.map(|_| Destination::Guest)
            .map_err(|barrier| barrier.refusal(is_owner))
    }

    fn listener_at(
        &self,
        partition: PartitionKey,
        bound: Bound,
        service: ServiceId,
    ) -> Option<(ListenerId, &Listener)> {
        let id = *self.addresses.get(&(partition, bound, service))?;
        Some((id, self.listeners.get(&id)?))
    }

    fn check_room<T: Trace>(
        &self,
        pair: Pair<'_>,
        destination: Destination,
        trace: &mut T,
    ) -> Result<(), Refusal> {
        if !self.sees_listeners {
            return Ok(());
        }
        let limits = &self.limits;
        let per_partition = |place: Place<'_>| {
            let used = place.partition.connections.len();
            room(
                "connections_per_partition",
                used,
                limits.connections_per_partition,
            )
        };
        let backlog = || match destination.listener().map(|id| self.listeners.get(&id)) {
            // How many may wait for a guest, its kernel decides.
            None => Ok(()),
            Some(Some(listener)) if listener.waiting.len() < listener.backlog as usize => Ok(()),
            Some(_) => Err(Refusal::BacklogFull),
        };
        let room = room("connections", self.connections.len(), limits.connections)
            .and_then(|()| per_partition(pair.source))
            .and_then(|()| per_partition(pair.target))
            .and_then(|()| backlog());
        trace.note(|_| room_note(&room));
        room
    }
}

pub(crate) fn room_note(room: &Result<(), Refusal>) -> Note {
    let question = "Is there room for it?";
    match room {
        Ok(()) => Note::new(true, question, "yes"),
        Err(refusal) => Note::new(false, question, format!("no: {refusal}")),
    }
}
