//! Who may change what a broker holds: the one decision that the control API, leases and access rules
//! share.

use crate::Refusal;

/// The users who may change registrations, partitions and connections: root, and the user that the
/// broker runs as. Access rules do not restrict them, because both could edit the registry anyway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operators {
    broker: Option<u32>,
}

/// Why a user is an operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OperatorRole {
    /// The user is root.
    Root,
    /// The broker runs as this user.
    BrokerUser,
}

/// The user is no operator. The message names the users who are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("only {operators} may change this; you are uid {uid}")]
pub struct NotOperator {
    operators: Operators,
    uid: u32,
}

impl Operators {
    /// The operators of a broker that runs as the user `uid`.
    pub const fn of_broker(uid: u32) -> Self {
        Self { broker: Some(uid) }
    }

    /// Only root, where no broker runs.
    pub const fn root_only() -> Self {
        Self { broker: None }
    }

    /// Checks that the user `uid` may change what the broker holds.
    ///
    /// # Errors
    ///
    /// [`NotOperator`] if it is neither root nor the broker's user.
    pub const fn check(self, uid: u32) -> Result<OperatorRole, NotOperator> {
        match (uid, self.broker) {
            (0, _) => Ok(OperatorRole::Root),
            (uid, Some(broker)) if uid == broker => Ok(OperatorRole::BrokerUser),
            _ => Err(NotOperator {
                operators: self,
                uid,
            }),
        }
    }

    /// Checks that the user `uid` may register a service for as long as its process lives. Only
    /// processes in the broker's own partition may: user ids of another one have no meaning here.
    pub(crate) fn check_lease(self, uid: u32, own_partition: bool) -> Result<(), Refusal> {
        if own_partition && self.check(uid).is_ok() {
            return Ok(());
        }
        let rule = "only the broker's user and root may register, and not from a container";
        Err(Refusal::Denied { rule: rule.into() })
    }
}

impl OperatorRole {
    /// The subject of the rule that allows this user everything.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::BrokerUser => "the broker's own user",
        }
    }
}

impl std::fmt::Display for Operators {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.broker {
            None | Some(0) => f.write_str("root"),
            Some(uid) => write!(f, "root or the user who runs the broker (uid {uid})"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_and_the_brokers_user_may_change_and_nobody_else() {
        let operators = Operators::of_broker(900);
        assert_eq!(operators.check(0), Ok(OperatorRole::Root));
        assert_eq!(operators.check(900), Ok(OperatorRole::BrokerUser));
        let text = operators.check(1000).unwrap_err().to_string();
        let want = "only root or the user who runs the broker (uid 900) may change this; you are \
                    uid 1000";
        assert_eq!(text, want);
        for operators in [Operators::of_broker(0), Operators::root_only()] {
            let text = operators.check(u32::MAX).unwrap_err().to_string();
            assert!(text.starts_with("only root may change this;"), "{text}");
        }
    }

    #[test]
    fn a_lease_needs_an_operator_in_the_brokers_own_partition() {
        let operators = Operators::of_broker(900);
        assert_eq!(operators.check_lease(900, true), Ok(()));
        for (uid, own_partition) in [(900, false), (0, false), (1000, true)] {
            let refusal = operators.check_lease(uid, own_partition).unwrap_err();
            assert!(matches!(refusal, Refusal::Denied { .. }), "{refusal}");
        }
    }
}
