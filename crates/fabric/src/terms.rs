//! What the registry at the border between two partitions says about a service.
//!
//! The registry of the *parent* side decides, whichever end connects. Each end that is a child may
//! have an override in it; between two siblings both apply, and both must allow.

use hvsock_address::ServiceId;
use hvsock_registry::{Action, Requester, Decision, Policy, Registration, Rule};

use crate::Refusal;
use crate::explain::service_word;
use crate::partition::Partition;
use crate::resolve::Place;
use crate::tree::{Relation, Tree};

/// The border between two partitions, or between a partition and its children in general.
#[derive(Clone, Copy)]
pub(crate) struct Border<'a> {
    /// The partition whose registry decides.
    pub(crate) owner: Place<'a>,
    child: Option<&'a Partition>,
    sibling: Option<&'a Partition>,
}

/// What the registry says about one service at a border.
#[derive(Clone, Copy)]
pub(crate) struct Terms<'a> {
    policy: Policy<'a>,
    /// The other child's, between siblings.
    second: Option<Policy<'a>>,
}

/// What stands against a request.
#[derive(Clone, Copy)]
pub(crate) enum Barrier<'a> {
    Unregistered,
    Disabled(Rule<'a>),
    Denied(Rule<'a>),
    Wildcard(Rule<'a>),
}

impl Tree {
    /// The border between a partition and one that is something to it; a partition has none with
    /// itself.
    pub(crate) fn border<'a>(
        &'a self,
        from: Place<'a>,
        to: Place<'a>,
        relation: Relation,
    ) -> Option<Border<'a>> {
        let (owner, child, sibling) = match relation {
            Relation::Itself => return None,
            Relation::Parent => (to, from.partition, None),
            Relation::Child => (from, to.partition, None),
            Relation::Sibling => {
                let parent = self.place(from.partition.parent?)?;
                (parent, from.partition, Some(to.partition))
            }
        };
        Some(Border {
            owner,
            child: Some(child),
            sibling,
        })
    }
}

impl<'a> Border<'a> {
    /// The border between a partition and whatever children it has or will have.
    pub(crate) fn with_children(owner: Place<'a>) -> Self {
        Border {
            owner,
            child: None,
            sibling: None,
        }
    }

    /// What the registry says about a service, if it says anything.
    pub(crate) fn terms(&self, service: ServiceId, broker_uid: u32) -> Option<Terms<'a>> {
        let general = self
            .owner
            .partition
            .registry()?
            .policy(service, broker_uid)?;
        let of = |child: &Partition| general.for_child(&child.name);
        Some(Terms {
            policy: self.child.map_or(general, of),
            second: self.sibling.map(of),
        })
    }

    /// Whether a listener of `asker` could take any connection over this border, now or later: by
    /// these terms of it or, where children in general are meant, by those of some child that has
    /// an override.
    pub(crate) fn offer(
        &self,
        terms: &Terms<'a>,
        asker: &Requester<'_>,
        wildcard: bool,
    ) -> Result<Rule<'a>, Barrier<'a>> {
        let answer = terms.offer(asker, wildcard);
        if answer.is_ok() || self.child.is_some() {
            return answer;
        }
        let mut others = terms.policy.for_each_override().map(|policy| Terms {
            policy,
            second: None,
        });
        let other = others.find_map(|terms| terms.offer(asker, wildcard).ok());
        other.map_or(answer, Ok)
    }
}

impl<'a> Terms<'a> {
    pub(crate) fn registration(&self) -> &'a Registration {
        self.policy.registration()
    }

    /// The first no of the two policies, or else the first yes.
    fn both(&self, ask: impl Fn(&Policy<'a>) -> Decision<'a>) -> Decision<'a> {
        let first = ask(&self.policy);
        match &self.second {
            Some(second) if first.allowed => {
                let second = ask(second);
                if second.allowed { first } else { second }
            }
            _ => first,
        }
    }

    /// Whether the service is enabled.
    pub(crate) fn enabled(&self) -> Result<Rule<'a>, Barrier<'a>> {
        let Decision { allowed, rule } = self.both(Policy::enabled);
        if allowed {
            Ok(rule)
        } else {
            Err(Barrier::Disabled(rule))
        }
    }

    /// Whether `asker` may connect.
    pub(crate) fn connect(&self, asker: &Requester<'_>) -> Result<Rule<'a>, Barrier<'a>> {
        let ask = |policy: &Policy<'a>| policy.access(Action::Connect, asker);
        let Decision { allowed, rule } = self.both(ask);
        if allowed {
            Ok(rule)
        } else {
            Err(Barrier::Denied(rule))
        }
    }

    /// Whether a listener of `asker` may take connections over this border; `wildcard` says
    /// whether it is bound to the wildcard.
    pub(crate) fn bind(&self, asker: &Requester<'_>, wildcard: bool) -> Result<Rule<'a>, Barrier<'a>> {
        let ask = |policy: &Policy<'a>| policy.access(Action::Bind, asker);
        let Decision { allowed, rule } = self.both(ask);
        if !allowed {
            return Err(Barrier::Denied(rule));
        }
        if wildcard {
            let Decision { allowed, rule } = self.both(Policy::wildcard);
            if !allowed {
                return Err(Barrier::Wildcard(rule));
            }
        }
        Ok(rule)
    }

    fn offer(&self, asker: &Requester<'_>, wildcard: bool) -> Result<Rule<'a>, Barrier<'a>> {
        self.enabled()?;
        self.bind(asker, wildcard)
    }
}

impl Barrier<'_> {
    /// The refusal for an asker who may or may not read the registry.
    pub(crate) fn refusal(&self, reads_registry: bool) -> Refusal {
        match self {
            Barrier::Unregistered => Refusal::Unregistered,
            Barrier::Disabled(rule) => Refusal::Disabled {
                by: rule.to_string(),
            },
            Barrier::Denied(rule) => Refusal::Denied {
                rule: shown(*rule, reads_registry),
            },
            Barrier::Wildcard(_) => Refusal::WildcardNotAllowed,
        }
    }

    /// The same as a sentence part, for a reader who may or may not read the registry.
    pub(crate) fn words(&self, reads_registry: bool) -> String {
        match self {
            Barrier::Unregistered => "no: the service is not registered".to_owned(),
            Barrier::Disabled(rule) | Barrier::Denied(rule) | Barrier::Wildcard(rule) => {
                format!("no: {}", shown(*rule, reads_registry))
            }
        }
    }

    /// What to do about it.
    pub(crate) fn fix(&self, service: ServiceId, registration: Option<&Registration>) -> String {
        match self {
            Barrier::Unregistered => match service.port() {
                Some(port) => format!("hvsock service register NAME --port {port}"),
                None => format!("hvsock service register NAME --id {service}"),
            },
            Barrier::Disabled(rule) => {
                let word = service_word(service, registration);
                match rule.child() {
                    Some(child) => format!("hvsock service enable {word} --vm {child}"),
                    None => format!("hvsock service enable {word}"),
                }
            }
            Barrier::Denied(rule) | Barrier::Wildcard(rule) => rule.remedy(service),
        }
    }
}

/// A rule in words, without what its lists hold for those who may not read the registry.
pub(crate) fn shown(rule: Rule<'_>, reads_registry: bool) -> String {
    if reads_registry {
        rule.to_string()
    } else {
        rule.brief().to_string()
    }
}
