//! How the broker divides its limit of open descriptors (`RLIMIT_NOFILE`).

use super::shares::Shares;

/// Descriptors that the broker needs for itself, beside those that it has open when it starts: the
/// resources of two further connections (16, and 12 for processes with their own sockets), copies that wait to be
/// closed (6), a reserve to accept with, what a thread opens for a moment.
const OWN: u64 = 42;
/// Descriptors that the shares have at least, however low the limit is. Beyond the real limit the
/// system's refusal applies.
const MIN_SHARED: u64 = 16;
/// Most descriptors of the control API and of reading files.
const MAX_CONTROL: u64 = 256;
/// Descriptors of one message. Only the offer of an arena has more
/// ([`MAX_DESCRIPTORS`](hvsock_sys::message::MAX_DESCRIPTORS)), and it is charged as two messages.
const PER_MESSAGE: u64 = 4;
/// Most descriptors in flight to all processes. `unix(7)` counts them for the sender's user, against
/// the soft limit of whichever of the user's processes sends next. That limit is usually 1024.
const MAX_IN_FLIGHT: u64 = 512;

/// The parts of the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DescriptorPlan {
    /// The limit.
    limit: u64,
    /// For control connections and for files (registrations, accounts, partitions).
    control: u64,
    /// For the processes of all partitions: sessions, listeners, connections and links of VMs.
    shared: u64,
}

impl DescriptorPlan {
    /// Divides `limit`, of which `open` descriptors are in use by the broker itself.
    pub(crate) fn new(limit: u64, open: u64) -> Self {
        // The kernel's own bound on the limit, `fs.nr_open`, is 1,048,576 by default.
        let limit = limit.min(1 << 30);
        let control = (limit / 8).clamp(24, MAX_CONTROL);
        let shared = limit.saturating_sub(open + OWN + control);
        Self {
            limit,
            control,
            shared: shared.max(MIN_SHARED),
        }
    }

    /// Most connections to the control socket of each operator, and as many of all other users.
    pub(crate) fn control_connections(self) -> usize {
        // Root, the broker's user, and all others; and a quarter for the files that requests open.
        usize::try_from(self.control / 4).unwrap_or(usize::MAX)
    }

    /// The descriptors of sessions, listeners, connections and links.
    pub(crate) fn shared(self) -> Shares {
        Shares::new(self.shared, self.shared / 8)
    }

    /// The idle sessions that one partition may have: few enough that its oldest one makes room before
    /// the partition's share is used up.
    pub(crate) fn idle_sessions(self) -> usize {
        usize::try_from(self.shared / 16)
            .unwrap_or(usize::MAX)
            .max(1)
    }

    /// The messages with descriptors that may be in flight to processes, each with at most
    /// [`PER_MESSAGE`]. `soft` is the soft limit that other
    /// processes of the broker's user probably have: that with which the broker was started.
    pub(crate) fn in_flight(soft: u64) -> Shares {
        let descriptors = (soft / 2).min(MAX_IN_FLIGHT);
        let messages = descriptors / PER_MESSAGE;
        let messages = messages.max(8);
        Shares::new(messages, messages / 4)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::owner::Owner;

    #[test]
    fn the_parts_never_exceed_a_limit_that_a_broker_can_run_with() {
        for limit in [112, 128, 256, 1024, 4096, 20_000, 524_288, u64::MAX] {
            let plan = DescriptorPlan::new(limit, 30);
            let parts = 30 + OWN + plan.control + plan.shared;
            assert!(parts <= plan.limit, "{plan:?}");
            let connections = 3 * plan.control_connections() as u64;
            assert!(connections + 6 <= plan.control, "{plan:?}");
        }
        // With less there is still a plan, and the system's limit applies.
        let tiny = DescriptorPlan::new(20, 30);
        assert_eq!((tiny.shared, tiny.control), (16, 24));
    }

    #[test]
    fn descriptors_in_flight_stay_far_below_the_limit_of_the_users_other_processes() {
        for soft in [0, 64, 256, 1024, 1 << 20] {
            let shares = DescriptorPlan::in_flight(soft);
            let descriptors = PER_MESSAGE * shares.capacity();
            assert!(descriptors <= 32.max(soft / 2).min(512), "{shares:?}");
            assert!(shares.limit(Owner::User(1)) > 0);
        }
        let usual = DescriptorPlan::in_flight(1024);
        assert_eq!((usual.capacity(), usual.limit(Owner::User(1))), (128, 24));
    }
}
