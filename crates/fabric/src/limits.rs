//! How large each table may grow.

use crate::Refusal;

/// How large each table may grow; each limit's name is its [`LimitReached`](Refusal::LimitReached).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Partitions, the root among them.
    pub partitions: usize,
    /// Sibling groups of one partition.
    pub groups_per_partition: usize,
    /// Registrations of one partition.
    pub registrations: usize,
    /// Listeners of all partitions.
    pub listeners: usize,
    /// Listeners in one partition.
    pub listeners_per_partition: usize,
    /// Connections of all partitions.
    pub connections: usize,
    /// Connections that end in one partition.
    pub connections_per_partition: usize,
    /// Connections that may wait for one listener; a listen that asks for more gets this many.
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
            connections: 65_536,
            connections_per_partition: 16_384,
            backlog_max: 4096,
        }
    }
}

/// Whether a table with `used` entries may take one more.
pub(crate) fn room(which: &'static str, used: usize, limit: usize) -> Result<(), Refusal> {
    if used < limit {
        Ok(())
    } else {
        Err(Refusal::LimitReached {
            which: which.to_owned(),
        })
    }
}
