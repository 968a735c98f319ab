//! May this one listen? All questions in their order, as for a connect.
//!
//! A listener that could never receive is refused here, and cut when it comes to that later.

use hvsock_address::ServiceId;
use hvsock_registry::{Requester, Principal, Registration, Rule};

use crate::explain::{Audience, Note, Silent, Trace};
use crate::judge_connect::room_note;
use crate::limits::room;
use crate::resolve::Place;
use crate::tables::{Bound, Listener};
use crate::terms::{Barrier, Border, shown};
use crate::tree::Relation;
use crate::{Fabric, ListenRequest, Refusal};

/// What the registry at one border says to a listener.
struct Offer<'a> {
    border: Border<'a>,
    registration: Option<&'a Registration>,
    answer: Result<Rule<'a>, Barrier<'a>>,
    /// Whether the registry is that of the listener's own partition.
    is_owner: bool,
}

impl Fabric {
    pub(crate) fn judge_listen<T: Trace>(
        &self,
        request: &ListenRequest<'_>,
        trace: &mut T,
    ) -> Result<Bound, Refusal> {
        let from = self.asking(request.from, request.service, trace)?;
        let bound = self.tree.resolve_listen(from, request.vm, trace)?;
        self.check_state(from, trace)?;
        self.check_offers(from, bound, request.service, request.principal, trace)?;
        if !self.sees_listeners {
            trace.note(|_| {
                let answer = "the kernel alone knows, and answers";
                Note::new(true, "Is the address free?", answer)
            });
            return Ok(bound);
        }
        let taken = self.addresses.get(&(from.key, bound, request.service));
        trace.note(|_| {
            let question = "Is the address free?";
            match taken {
                None => Note::new(true, question, "yes"),
                Some(id) => Note::new(false, question, format!("no: listener {id} has it"))
                    .fix("hvsock status"),
            }
        });
        if taken.is_some() {
            return Err(Refusal::AddressInUse);
        }
        let (used, limits) = (from.partition.listeners.len(), &self.limits);
        let room = room("listeners", self.listeners.len(), limits.listeners).and_then(|()| {
            let limit = limits.listeners_per_partition;
            room("listeners_per_partition", used, limit)
        });
        trace.note(|_| room_note(&room));
        room.map(|()| bound)
    }

    /// Whether a listener that is there could still receive.
    pub(crate) fn judge_again(&self, listener: &Listener) -> Result<(), Refusal> {
        let from = self.asking(listener.partition, listener.service, &mut Silent)?;
        let bound = self.tree.resolve_listen(from, listener.vm, &mut Silent)?;
        let (service, principal) = (listener.service, &listener.principal);
        self.check_offers(from, bound, service, principal, &mut Silent)
    }

    /// The borders that connections to a listener come over: the one with its parent or siblings,
    /// and the one with its children.
    pub(crate) fn borders<'a>(&'a self, from: Place<'a>, bound: Bound) -> [Option<Border<'a>>; 2] {
        let outward = || {
            let parent = self.tree.place(from.partition.parent?)?;
            self.tree.border(from, parent, Relation::Parent)
        };
        let inward = || {
            let has_children = from.partition.registry.is_some();
            has_children.then(|| Border::with_children(from))
        };
        match bound {
            Bound::Loopback => [None, None],
            // A sibling comes over the parent's border too, where the same rules and more hold.
            Bound::Wildcard => [outward(), inward()],
            Bound::Parent => [outward(), None],
            Bound::Children => [None, inward()],
            Bound::Partition(key) => {
                let border = || {
                    let relation = self.tree.relation(from.key, key)?;
                    self.tree.border(from, self.tree.place(key)?, relation)
                };
                [border(), None]
            }
        }
    }

    /// Whether a listener could ever receive, over any of its borders.
    fn check_offers<T: Trace>(
        &self,
        from: Place<'_>,
        bound: Bound,
        service: ServiceId,
        principal: &Principal,
        trace: &mut T,
    ) -> Result<(), Refusal> {
        if bound == Bound::Loopback {
            return self.check_inside(from, service, trace);
        }
        let wildcard = bound == Bound::Wildcard;
        let offers = self.borders(from, bound).map(|border| {
            let border = border?;
            let is_owner = border.owner.key == from.key;
            let asker = match is_owner {
                true => Requester::Process(principal),
                false => from.partition.as_child(),
            };
            let terms = border.terms(service, self.broker_uid);
            Some(Offer {
                registration: terms.map(|terms| terms.registration()),
                answer: match &terms {
                    Some(terms) => border.offer(terms, &asker, wildcard),
                    None => Err(Barrier::Unregistered),
                },
                border,
                is_owner,
            })
        });
        let offers = offers.iter().flatten();
        let any = offers.clone().any(|offer| offer.answer.is_ok());
        offers
            .clone()
            .for_each(|offer| trace.note(|audience| offer.note(audience, any)));
        if any {
            return Ok(());
        }
        // Where the service is registered is where its owner meant it to be used.
        let decides = offers.clone().find(|offer| offer.registration.is_some());
        match decides.or(offers.clone().next()) {
            Some(Offer {
                answer: Err(barrier),
                is_owner,
                registration,
                ..
            }) => {
                trace.fix(|| barrier.fix(service, *registration));
                Err(barrier.refusal(*is_owner))
            }
            // A container without a parent, at the wildcard.
            _ => {
                trace.note(|_| {
                    let question = "Does a registry allow it?";
                    Note::new(
                        false,
                        question,
                        "no: there is neither a parent nor children",
                    )
                });
                Err(Refusal::Unregistered)
            }
        }
    }
}

impl Offer<'_> {
    /// The note for this border, where the listen can go on by `any` of them.
    fn note(&self, audience: Audience, any: bool) -> Note {
        let owner = &self.border.owner.partition.name;
        let question = format!("Does the registry of {owner} allow it?");
        let reads = self.is_owner || audience == Audience::Operator;
        match &self.answer {
            Ok(rule) => Note::new(true, question, format!("yes: {}", shown(*rule, reads))),
            Err(barrier) => Note::new(any, question, barrier.words(reads)),
        }
    }
}
