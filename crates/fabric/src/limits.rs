//! The size limits of the fabric's tables.

use crate::Refusal;

/// The size limit of each table. [`Refusal::LimitReached`] reports the field's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Partitions, including the root.
    pub partitions: usize,
    /// Sibling groups of one partition.
    pub groups_per_partition: usize,
    /// Registrations of one partition.
    pub registrations: usize,
    /// Listeners of all partitions together.
    pub listeners: usize,
    /// Listeners in one partition.
    pub listeners_per_partition: usize,
    /// Connections of all partitions together, each with its [weight](crate::Block::weight).
    pub connections: usize,
    /// Connections with an end in one partition, each with its weight.
    pub connections_per_partition: usize,
    /// The backlog of one listener: pending connections. A larger requested backlog is capped to it.
    pub backlog_max: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            partitions: 4096,
            groups_per_partition: 64,
            registrations: 1_000_000,
            listeners: 65_536,
            listeners_per_partition: 4096,
            connections: 262_144,
            connections_per_partition: 131_072,
            backlog_max: 4096,
        }
    }
}

/// Checks that a table with `used` entries has capacity for one more.
pub(crate) fn check_limit(which: &'static str, used: usize, limit: usize) -> Result<(), Refusal> {
    check_room(which, used, 1, limit)
}

/// Checks that a table with `used` entries has capacity for `more`.
pub(crate) fn check_room(
    which: &'static str,
    used: usize,
    more: u32,
    limit: usize,
) -> Result<(), Refusal> {
    if used.saturating_add(more as usize) <= limit {
        Ok(())
    } else {
        Err(Refusal::LimitReached {
            which: which.to_owned(),
        })
    }
}
