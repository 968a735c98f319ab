//! Verdicts that last: their owner judges a request once, and again when something has changed.
//!
//! A connect is judged for itself. A grant is the verdict for all further connects of the same process
//! to the same address, so it must be withdrawn as soon as a request would be refused, or would reach
//! another listener. [`Fabric::judge`](crate::Fabric::judge) runs the checks of a connect; [`Fabric::take_changes`](crate::Fabric::take_changes) says for which
//! services to run them again.

use std::collections::BTreeSet;

use hvsock_address::ServiceId;

/// Services that [`Changes`] lists. With more of them, everything has changed.
const MAX_SERVICES: usize = 64;

/// What may have changed the verdict of a request. Listeners, registrations, partitions, their states and
/// groups do; connections do not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Changes {
    /// Nothing.
    #[default]
    None,
    /// Only verdicts about these services.
    Services(BTreeSet<ServiceId>),
    /// Any verdict.
    All,
}

impl Changes {
    /// Whether the verdict of a request for this service may have changed.
    pub fn concern(&self, service: ServiceId) -> bool {
        match self {
            Self::None => false,
            Self::Services(services) => services.contains(&service),
            Self::All => true,
        }
    }

    pub(crate) fn add(&mut self, service: ServiceId) {
        match self {
            Self::None => *self = Self::Services(BTreeSet::from([service])),
            Self::Services(services) if services.len() < MAX_SERVICES => {
                services.insert(service);
            }
            Self::Services(services) if services.contains(&service) => {}
            Self::Services(_) | Self::All => *self = Self::All,
        }
    }
}
