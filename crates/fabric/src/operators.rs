//! Who may change what a broker holds: the one decision that the control API, leases and access rules
//! share.

use std::sync::Arc;

use hvsock_registry::Principal;

use crate::Refusal;

/// The users who may change registrations, partitions and connections: root, the user that the broker
/// runs as, and the members of a group, if the broker has one for that. Access rules do not restrict
/// them: root and the broker's user could edit the registry anyway, and the members of the group may.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operators {
    broker: Option<u32>,
    group: Option<OperatorGroup>,
}

/// A group whose members are operators.
#[derive(Clone, Debug, PartialEq, Eq)]
struct OperatorGroup {
    gid: u32,
    /// For messages.
    name: Arc<str>,
}

/// Why a user is an operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OperatorRole {
    /// The user is root.
    Root,
    /// The broker runs as this user.
    BrokerUser,
    /// The user is in the group of operators.
    GroupMember,
}

/// The user is no operator. The message names the users who are.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("only {operators} may change this; you are uid {uid}")]
pub struct NotOperator {
    operators: Operators,
    uid: u32,
}

impl Operators {
    /// The operators of a broker that runs as the user `uid`.
    pub const fn of_broker(uid: u32) -> Self {
        Self {
            broker: Some(uid),
            group: None,
        }
    }

    /// Only root, where no broker runs.
    pub const fn root_only() -> Self {
        Self {
            broker: None,
            group: None,
        }
    }

    /// The same operators and the members of a group. Its name is for messages only.
    #[must_use]
    pub fn with_group(self, gid: u32, name: &str) -> Self {
        let name = name.into();
        Self {
            group: Some(OperatorGroup { gid, name }),
            ..self
        }
    }

    /// Checks that a process may change what the broker holds. Its numbers must be those of the
    /// broker's own partition.
    ///
    /// # Errors
    ///
    /// [`NotOperator`] if its user is neither root nor the broker's, and it is not in the group.
    pub fn check(&self, principal: &Principal) -> Result<OperatorRole, NotOperator> {
        let uid = principal.uid;
        let is_member = |group: &OperatorGroup| {
            let mut groups = principal.groups.iter();
            groups.any(|(gid, _)| *gid == group.gid)
        };
        match (uid, self.broker) {
            (0, _) => Ok(OperatorRole::Root),
            (uid, Some(broker)) if uid == broker => Ok(OperatorRole::BrokerUser),
            _ if self.group.as_ref().is_some_and(is_member) => Ok(OperatorRole::GroupMember),
            _ => Err(NotOperator {
                operators: self.clone(),
                uid,
            }),
        }
    }

    /// Checks that a process may register a service for as long as it lives. Only processes in the
    /// broker's own partition may: user ids of another one have no meaning here.
    pub(crate) fn check_lease(
        &self,
        principal: &Principal,
        own_partition: bool,
    ) -> Result<(), Refusal> {
        if own_partition && self.check(principal).is_ok() {
            return Ok(());
        }
        let rule = format!("only {self} may register, and not from a container");
        Err(Refusal::Denied { rule })
    }
}

impl OperatorRole {
    /// The subject of the rule that allows this user everything.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::BrokerUser => "the broker's own user",
            Self::GroupMember => "a member of the operators' group",
        }
    }
}

impl std::fmt::Display for Operators {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("root")?;
        if let Some(uid) = self.broker.filter(|uid| *uid != 0) {
            let or = if self.group.is_some() { ", " } else { " or " };
            write!(f, "{or}the user who runs the broker (uid {uid})")?;
        }
        match &self.group {
            Some(group) => write!(f, " or a member of the group {}", group.name),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(uid: u32, groups: &[u32]) -> Principal {
        Principal {
            uid,
            groups: groups.iter().map(|gid| (*gid, None)).collect(),
            ..Principal::default()
        }
    }

    #[test]
    fn members_of_the_operators_group_may_change_and_others_are_told_its_name() {
        let operators = Operators::of_broker(0).with_group(77, "hvsock");
        let member = operators.check(&user(1000, &[5, 77]));
        assert_eq!(member, Ok(OperatorRole::GroupMember));
        let text = operators.check(&user(1000, &[5])).unwrap_err().to_string();
        let want = "only root or a member of the group hvsock may change this; you are uid 1000";
        assert_eq!(text, want);
        let text = Operators::of_broker(900).with_group(77, "ops").to_string();
        let want = "root, the user who runs the broker (uid 900) or a member of the group ops";
        assert_eq!(text, want);
        // The number of a group of a container means nothing here.
        let from_container = operators.check_lease(&user(1000, &[77]), false);
        assert!(from_container.is_err());
    }

    #[test]
    fn root_and_the_brokers_user_may_change_and_nobody_else() {
        let operators = Operators::of_broker(900);
        assert_eq!(operators.check(&user(0, &[])), Ok(OperatorRole::Root));
        assert_eq!(
            operators.check(&user(900, &[])),
            Ok(OperatorRole::BrokerUser)
        );
        let text = operators.check(&user(1000, &[77])).unwrap_err().to_string();
        let want = "only root or the user who runs the broker (uid 900) may change this; you are \
                    uid 1000";
        assert_eq!(text, want);
        for operators in [Operators::of_broker(0), Operators::root_only()] {
            let text = operators
                .check(&user(u32::MAX, &[]))
                .unwrap_err()
                .to_string();
            assert!(text.starts_with("only root may change this;"), "{text}");
        }
    }

    #[test]
    fn a_lease_needs_an_operator_in_the_brokers_own_partition() {
        let operators = Operators::of_broker(900);
        assert_eq!(operators.check_lease(&user(900, &[]), true), Ok(()));
        for (uid, own_partition) in [(900, false), (0, false), (1000, true)] {
            let refusal = operators
                .check_lease(&user(uid, &[]), own_partition)
                .unwrap_err();
            assert!(matches!(refusal, Refusal::Denied { .. }), "{refusal}");
        }
    }
}
