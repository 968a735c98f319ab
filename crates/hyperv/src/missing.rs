//! Information that could not be obtained, and what to do about it.

use std::time::Duration;

/// Information that could not be obtained. More virtual machines or policies may exist than are
/// known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Missing {
    /// Not queried, because a query takes time.
    #[error("the virtual machines were not queried")]
    NotQueried,
    /// Hyper-V is not enabled on this machine.
    #[error("Hyper-V is not enabled on this machine")]
    HyperV,
    /// This user lacks the rights to list Hyper-V's virtual machines.
    #[error(
        "Windows does not show Hyper-V's virtual machines to this user; run as administrator, or \
         become a member of the group `Hyper-V Administrators` and sign in again"
    )]
    Rights,
    /// A query timed out.
    #[error("{what} did not answer within {after:?}; check that the service {service} runs")]
    TimedOut {
        /// What did not answer.
        what: &'static str,
        /// Its Windows service.
        service: &'static str,
        /// The time limit.
        after: Duration,
    },
    /// The host compute service does not list its virtual machines.
    #[error("the host compute service does not list its virtual machines ({why})")]
    ComputeService {
        /// The reason.
        why: String,
    },
    /// The registrations cannot be read.
    #[error("cannot read the services in the Windows registry: {why}")]
    Registry {
        /// The reason, and the next step.
        why: String,
    },
    /// A query failed.
    #[error("{what} failed: {why}; try again, and check the Windows event log if it persists")]
    Failed {
        /// The query.
        what: &'static str,
        /// The reason.
        why: String,
    },
}

impl Missing {
    /// Whether virtual machines may be hidden for this reason. Without Hyper-V's management service
    /// there are no machines of Hyper-V, and all others are visible.
    pub(crate) fn hides_vms(&self) -> bool {
        !matches!(self, Missing::HyperV | Missing::Registry { .. })
    }
}
