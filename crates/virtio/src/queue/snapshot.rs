//! The snapshot of a queue. [`crate::snapshot`] describes its contents and compatibility.

use std::num::Wrapping;

use serde::{Deserialize, Serialize};

use super::layout::{GuestMemory, Layout};
use super::{Queue, QueueFault};
use crate::snapshot::{SnapshotError, check_version, ensure, read_version};

/// The version of [`QueueSnapshot`] that this release writes.
pub const QUEUE_SNAPSHOT_VERSION: u32 = 1;

/// A [`Queue`] between two rounds of its device, without what is in guest memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueSnapshot {
    #[serde(deserialize_with = "read_version::<_, QUEUE_SNAPSHOT_VERSION>")]
    version: u32,
    /// Entries.
    size: u16,
    /// Guest physical address of the descriptor table.
    descriptors: u64,
    /// Guest physical address of the available ring.
    available: u64,
    /// Guest physical address of the used ring.
    used: u64,
    /// `VIRTIO_F_EVENT_IDX` was negotiated.
    event_idx: bool,
    /// `VIRTIO_F_INDIRECT_DESC` was negotiated.
    indirect: bool,
    /// Index of the next chain to take, modulo 2^16.
    next_avail: u16,
    /// The driver's available index, as last loaded.
    avail_idx: u16,
    /// Index of the next entry to write in the used ring.
    next_used: u16,
    /// The used index that the driver can see; behind `next_used` while chains are unpublished.
    used_idx: u16,
    /// Whether available buffer notifications are enabled; absent until the device has set it.
    notifications: Option<bool>,
}

impl Queue {
    /// The queue as a value.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::Outstanding`] while the device has chains that it has [taken](Queue::take) and
    /// not [returned](Queue::add_used): between two rounds it has none.
    pub fn snapshot(&self) -> Result<QueueSnapshot, SnapshotError> {
        let Self {
            layout,
            next_avail,
            avail_idx,
            next_used,
            used_idx,
            notifications,
        } = *self;
        let Layout {
            size,
            descriptors,
            available,
            used,
            event_idx,
            indirect,
        } = layout;
        if next_avail != next_used {
            let chains = (next_avail - next_used).0;
            return Err(SnapshotError::Outstanding { chains });
        }
        Ok(QueueSnapshot {
            version: QUEUE_SNAPSHOT_VERSION,
            size,
            descriptors,
            available,
            used,
            event_idx,
            indirect,
            next_avail: next_avail.0,
            avail_idx: avail_idx.0,
            next_used: next_used.0,
            used_idx: used_idx.0,
            notifications,
        })
    }

    /// The queue of a snapshot, in the same guest memory.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::UnsupportedVersion`] for another version; [`SnapshotError::Inconsistent`] if
    /// [`Queue::new`] would refuse the layout, or if an index is not within the queue size of the index
    /// that it follows.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "as for all snapshots, and a later version may have more to move"
    )]
    pub fn restore(
        snapshot: QueueSnapshot,
        memory: &impl GuestMemory,
    ) -> Result<Self, SnapshotError> {
        let QueueSnapshot {
            version,
            size,
            descriptors,
            available,
            used,
            event_idx,
            indirect,
            next_avail,
            avail_idx,
            next_used,
            used_idx,
            notifications,
        } = snapshot;
        check_version(version, QUEUE_SNAPSHOT_VERSION)?;
        let layout = Layout {
            size,
            descriptors,
            available,
            used,
            event_idx,
            indirect,
        };
        let mut queue = Self::new(layout, next_avail, memory).map_err(|fault| {
            let what = match fault {
                QueueFault::Outside => "the queue is outside guest memory",
                _ => "the queue's size or alignment is invalid",
            };
            SnapshotError::Inconsistent { what }
        })?;
        ensure(next_used == next_avail, "taken chains are not returned")?;
        let fits = |ahead: u16, behind: u16| ahead.wrapping_sub(behind) <= size;
        ensure(fits(avail_idx, next_avail), "too many chains are available")?;
        ensure(fits(next_used, used_idx), "too many chains are unpublished")?;
        queue.avail_idx = Wrapping(avail_idx);
        queue.used_idx = Wrapping(used_idx);
        queue.notifications = notifications;
        Ok(queue)
    }
}
