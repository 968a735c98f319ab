//! The limits of the control API.

use std::time::Duration;

use super::admission::ConnectionLimits;
use crate::budget::DescriptorPlan;

/// Sizes, times and counts that bound what callers may use. Tests make them smaller.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub connections: ConnectionLimits,
    /// From the first byte of a request, or from the previous response, to the end of its head.
    pub head: Duration,
    /// From the end of the head to the start of the response.
    pub request: Duration,
    /// The same for an import, which writes a file for each service.
    pub import: Duration,
    /// How long a response may stay unread.
    pub stall: Duration,
    /// Bytes of a request's head.
    pub head_bytes: usize,
    /// Bytes of a request's body.
    pub body_bytes: usize,
    /// Bytes of an import: 100,000 registrations as `.reg` are about 25 MiB.
    pub import_bytes: usize,
    /// Long listings in flight.
    pub listings: Shared,
    /// Readers of events.
    pub followers: Shared,
}

/// How many of something costly there may be at once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shared {
    /// Of each privileged user, and as many of all others together.
    pub each: usize,
    /// Of each other user.
    pub per_user: usize,
}

impl Limits {
    /// The limits within this process's limit of descriptors.
    pub fn of_process() -> Self {
        let plan = DescriptorPlan::new(hvsock_sys::limits::descriptors(), 0);
        let most = plan.control_connections();
        let limits = Self::default();
        let ConnectionLimits {
            privileged,
            others,
            per_user,
        } = limits.connections;
        Self {
            connections: ConnectionLimits {
                privileged: privileged.min(most),
                others: others.min(most),
                per_user: per_user.min(most.div_ceil(4)),
            },
            ..limits
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: ConnectionLimits::default(),
            head: Duration::from_secs(10),
            request: Duration::from_secs(15),
            import: Duration::from_secs(1800),
            stall: Duration::from_secs(20),
            head_bytes: 16 * 1024,
            body_bytes: 64 * 1024,
            import_bytes: 64 * 1024 * 1024,
            listings: Shared {
                each: 4,
                per_user: 2,
            },
            followers: Shared {
                each: 16,
                per_user: 4,
            },
        }
    }
}
