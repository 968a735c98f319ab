//! The access policy for a service at the boundary between two partitions.
//!
//! The registry of the *parent* decides, whichever end connects. It may have an override for each end
//! that is a child. Between two siblings, both overrides apply and both must allow.
//!
//! Between a host and a container in a virtual machine there are two boundaries, and each is judged by
//! the broker that owns it: the host's registry there, that of the virtual machine here.

use hvsock_address::ServiceId;
use hvsock_registry::{Action, Decision, Policy, Registration, Requester, Rule, TransportSetting};

use crate::operators::Operators;
use crate::partition::Partition;
use crate::resolve::PartitionNode;
use crate::trace::service_ref;
use crate::tree::{Relation, Tree};
use crate::{Fix, Refusal, RuleRef, RuleScope};

/// The boundary between two partitions, or between a partition and all its children.
#[derive(Clone, Copy)]
pub(crate) struct Boundary<'a> {
    /// The partition whose registry decides.
    pub(crate) owner: PartitionNode<'a>,
    child: Option<&'a Partition>,
    /// The partition on the other side of the owner, if neither end is the owner: a sibling, or the
    /// owner's parent.
    other: Option<&'a Partition>,
}

/// The policy for one service at a boundary.
#[derive(Clone, Copy)]
pub(crate) struct BoundaryPolicy<'a> {
    policy: Policy<'a>,
    /// The policy for the partition on the other side, if the owner is between the two.
    second: Option<Policy<'a>>,
    /// The users that no access rule restricts.
    operators: &'a Operators,
}

/// Why a registry denies a request.
#[derive(Clone, Copy)]
pub(crate) enum Denial<'a> {
    Unregistered,
    Disabled(Rule<'a>),
    Denied(Action, Rule<'a>),
    Wildcard(Rule<'a>),
}

impl Tree {
    /// The boundary between two related partitions. `None` within one partition.
    pub(crate) fn boundary<'a>(
        &'a self,
        from: PartitionNode<'a>,
        to: PartitionNode<'a>,
        relation: Relation,
    ) -> Option<Boundary<'a>> {
        let (owner, child, other) = match relation {
            Relation::Itself => return None,
            Relation::Parent => (to, from.partition, None),
            Relation::Child => (from, to.partition, None),
            Relation::Sibling => {
                let parent = self.node(from.partition.parent?)?;
                (parent, from.partition, Some(to.partition))
            }
            // The root is one of the two, or it is between them and the outer partition is one.
            Relation::Grandparent => match to.key == self.root() {
                true => (to, from.partition, None),
                false => (self.node(self.root())?, from.partition, Some(to.partition)),
            },
            Relation::Grandchild => match from.key == self.root() {
                true => (from, to.partition, None),
                false => (self.node(self.root())?, from.partition, Some(to.partition)),
            },
        };
        Some(Boundary {
            owner,
            child: Some(child),
            other,
        })
    }
}

impl<'a> Boundary<'a> {
    /// The boundary between a partition and all its present and future children.
    pub(crate) fn with_children(owner: PartitionNode<'a>) -> Self {
        Boundary {
            owner,
            child: None,
            other: None,
        }
    }

    /// The policy for a service, if it is registered.
    pub(crate) fn policy(
        &self,
        service: ServiceId,
        operators: &'a Operators,
    ) -> Option<BoundaryPolicy<'a>> {
        let general = self.owner.partition.registry()?.policy(service)?;
        let of = |child: &Partition| general.for_child(&child.name);
        Some(BoundaryPolicy {
            policy: self.child.map_or(general, of),
            second: self.other.map(of),
            operators,
        })
    }

    /// Checks that a listener of `requester` could accept some connection over this boundary, now or
    /// later. At a boundary to all children, an override for a single child that allows it is enough, and
    /// for a listener at the wildcard one for a container in a child.
    pub(crate) fn may_listen(
        &self,
        policy: &BoundaryPolicy<'a>,
        requester: &Requester<'_>,
        wildcard: bool,
    ) -> Result<Rule<'a>, Denial<'a>> {
        let answer = policy.may_listen(requester, wildcard);
        if answer.is_ok() || self.child.is_some() {
            return answer;
        }
        let overrides = policy.policy.for_each_override();
        let overrides =
            overrides.filter(|of| wildcard || of.child().is_none_or(|child| !child.is_nested()));
        let mut others = overrides.map(|override_policy| BoundaryPolicy {
            policy: override_policy,
            second: None,
            operators: policy.operators,
        });
        let other = others.find_map(|policy| policy.may_listen(requester, wildcard).ok());
        other.map_or(answer, Ok)
    }
}

impl<'a> BoundaryPolicy<'a> {
    pub(crate) fn registration(&self) -> &'a Registration {
        self.policy.registration()
    }

    /// The first denial of the two policies, or else the first decision.
    fn both(&self, decide: impl Fn(&Policy<'a>) -> Decision<'a>) -> Decision<'a> {
        let first = decide(&self.policy);
        match &self.second {
            Some(second) if first.allowed => {
                let second = decide(second);
                if second.allowed { first } else { second }
            }
            _ => first,
        }
    }

    /// Whether in a child only root may listen.
    pub(crate) fn only_root_binds(&self) -> bool {
        !self.both(Policy::any_user_binds).allowed
    }

    /// Whether listeners may be bound to the wildcard.
    pub(crate) fn allows_wildcard(&self) -> bool {
        self.both(Policy::wildcard).allowed
    }

    /// The rule by which connections are direct, if they are. Between siblings both policies must say so.
    pub(crate) fn direct(&self) -> Option<Rule<'a>> {
        let direct = |policy: &Policy<'a>| {
            let (transport, rule) = policy.transport();
            (transport == TransportSetting::Direct).then_some(rule)
        };
        let rule = direct(&self.policy)?;
        match &self.second {
            Some(second) => direct(second).map(|_| rule),
            None => Some(rule),
        }
    }

    /// Checks that the service is enabled.
    pub(crate) fn enabled(&self) -> Result<Rule<'a>, Denial<'a>> {
        let Decision { allowed, rule } = self.both(Policy::enabled);
        if allowed {
            Ok(rule)
        } else {
            Err(Denial::Disabled(rule))
        }
    }

    /// Checks that `requester` may perform `action`, by the access rules unless it is an operator.
    fn access(&self, action: Action, requester: &Requester<'_>) -> Result<Rule<'a>, Denial<'a>> {
        if let Requester::Process(principal) = requester
            && let Ok(role) = self.operators.check(principal)
        {
            return Ok(Decision::always(role.name()).rule);
        }
        let Decision { allowed, rule } = self.both(|policy| policy.access(action, requester));
        if allowed {
            Ok(rule)
        } else {
            Err(Denial::Denied(action, rule))
        }
    }

    /// Checks that `requester` may connect.
    pub(crate) fn connect(&self, requester: &Requester<'_>) -> Result<Rule<'a>, Denial<'a>> {
        self.access(Action::Connect, requester)
    }

    /// Checks that a listener of `requester` may accept connections over this boundary. `wildcard` is
    /// whether it is bound to the wildcard.
    pub(crate) fn bind(
        &self,
        requester: &Requester<'_>,
        wildcard: bool,
    ) -> Result<Rule<'a>, Denial<'a>> {
        let rule = self.access(Action::Bind, requester)?;
        if wildcard {
            let Decision { allowed, rule } = self.both(Policy::wildcard);
            if !allowed {
                return Err(Denial::Wildcard(rule));
            }
        }
        Ok(rule)
    }

    fn may_listen(
        &self,
        requester: &Requester<'_>,
        wildcard: bool,
    ) -> Result<Rule<'a>, Denial<'a>> {
        self.enabled()?;
        self.bind(requester, wildcard)
    }
}

impl Denial<'_> {
    /// The refusal. It contains the entries of lists only if the requester may read the registry.
    pub(crate) fn refusal(&self, may_read_registry: bool) -> Refusal {
        match self {
            Denial::Unregistered => Refusal::Unregistered,
            Denial::Disabled(rule) => Refusal::Disabled {
                by: rule.to_string(),
            },
            Denial::Denied(_, rule) => Refusal::Denied {
                rule: rule_text(*rule, may_read_registry),
            },
            Denial::Wildcard(_) => Refusal::WildcardNotAllowed,
        }
    }

    /// The answer in an explanation, with the entries of lists if the reader may read the registry.
    pub(crate) fn answer(&self, may_read_registry: bool) -> String {
        match self {
            Denial::Unregistered => "no: the service is not registered".to_owned(),
            Denial::Disabled(rule) | Denial::Denied(_, rule) | Denial::Wildcard(rule) => {
                format!("no: {}", rule_text(*rule, may_read_registry))
            }
        }
    }

    /// The rule that decided, without the entries of its lists.
    pub(crate) fn rule(&self) -> Option<Rule<'_>> {
        match self {
            Denial::Unregistered => None,
            Denial::Disabled(rule) | Denial::Denied(_, rule) | Denial::Wildcard(rule) => {
                Some(rule.brief())
            }
        }
    }

    /// What would allow the request of `requester`. It names a user only if the reader may read the
    /// registry.
    pub(crate) fn fix(
        &self,
        service: ServiceId,
        registration: Option<&Registration>,
        requester: &Requester<'_>,
        may_read_registry: bool,
    ) -> Fix {
        match self {
            Denial::Unregistered => Fix::RegisterService {
                service: service_ref(service, None),
            },
            Denial::Disabled(rule) => Fix::EnableService {
                service: service_ref(service, registration),
                partition: rule.child().cloned(),
            },
            Denial::Denied(_, rule) if rule.is_only_root() => {
                let name = match requester {
                    Requester::Partition { own, .. } => Some(own.name.clone()),
                    Requester::Process(_) => None,
                };
                Fix::BecomePartitionRoot {
                    service,
                    partition: name,
                }
            }
            Denial::Denied(action, rule) => {
                let lists = rule.lists().map(str::to_owned).collect();
                let rule = RuleRef {
                    service,
                    action: *action,
                    scope: scope(*rule),
                };
                match requester {
                    Requester::Partition { own, .. } => Fix::AllowPartition {
                        rule,
                        partition: own.name.clone(),
                    },
                    Requester::Process(principal) => {
                        let user = || match &principal.user {
                            Some(name) => name.clone(),
                            None => principal.uid.to_string(),
                        };
                        Fix::AllowUser {
                            rule,
                            lists,
                            user: may_read_registry.then(user),
                        }
                    }
                }
            }
            Denial::Wildcard(rule) => Fix::AllowWildcardBinds {
                service,
                scope: scope(*rule),
            },
        }
    }
}

/// Where a rule is defined. A built-in rule is overridden in the registration.
fn scope(rule: Rule<'_>) -> RuleScope {
    match rule.child() {
        Some(child) => RuleScope::Partition(child.clone()),
        None if rule.is_default() => RuleScope::Defaults,
        None => RuleScope::Registration,
    }
}

/// The text of a rule, with the entries of lists only if the reader may read the registry.
pub(crate) fn rule_text(rule: Rule<'_>, may_read_registry: bool) -> String {
    if may_read_registry {
        rule.to_string()
    } else {
        rule.brief().to_string()
    }
}
