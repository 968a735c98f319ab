//! The snapshot of an end: what it keeps in private memory. [`crate::snapshot`] describes its compatibility.
//!
//! An end that is restored goes on where the other one was: in the same shared memory, with the same doorbells. It
//! is dormant: dropping it does nothing, for the end of which it is a copy may go on after all. [`RingEnd::wake`]
//! makes it the only one.

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering as Local;

use hvsock_sys::sync::lock;
use serde::{Deserialize, Serialize};

use super::RingEnd;
use crate::arena::SlotLink;
use crate::consumer::{Consumer, ConsumerState};
use crate::link::Link;
use crate::memory::Memory;
use crate::producer::{Producer, ProducerState};
use crate::snapshot::{SnapshotError, check_version, read_version};
use crate::{Doorbells, RingSide, Violation};

/// The version of [`RingEndSnapshot`] that this release writes.
pub const RING_END_SNAPSHOT_VERSION: u32 = 1;

/// A [`RingEnd`] that no thread uses, without its memory and doorbells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingEndSnapshot {
    #[serde(deserialize_with = "read_version::<_, RING_END_SNAPSHOT_VERSION>")]
    version: u32,
    side: SideState,
    outgoing: ProducerState,
    incoming: ConsumerState,
    /// This end has shut down reading.
    read_shut: bool,
    /// This end has published that it follows the window.
    has_published: bool,
    /// The connection was reset.
    reset: bool,
    /// The other end has closed its end of the doorbell.
    hung_up: bool,
    /// The other end has violated the protocol.
    violation: Option<ViolationState>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum SideState {
    First,
    Second,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ViolationState {
    Head,
    Tail,
    Window,
    Queue,
    Slot,
    Sequence,
}

impl From<Violation> for ViolationState {
    fn from(violation: Violation) -> Self {
        match violation {
            Violation::Head => Self::Head,
            Violation::Tail => Self::Tail,
            Violation::Window => Self::Window,
            Violation::Queue => Self::Queue,
            Violation::Slot => Self::Slot,
            Violation::Sequence => Self::Sequence,
        }
    }
}

impl From<ViolationState> for Violation {
    fn from(violation: ViolationState) -> Self {
        match violation {
            ViolationState::Head => Self::Head,
            ViolationState::Tail => Self::Tail,
            ViolationState::Window => Self::Window,
            ViolationState::Queue => Self::Queue,
            ViolationState::Slot => Self::Slot,
            ViolationState::Sequence => Self::Sequence,
        }
    }
}

impl RingEnd {
    /// The end as a value, while no thread uses it. Counters of what it has done so far are not in it.
    pub fn snapshot(&self) -> RingEndSnapshot {
        let hung_up = match &self.link {
            Link::Pipes(pipes) => pipes.hung_up.load(Local::SeqCst),
            Link::Slot(_) => false,
        };
        RingEndSnapshot {
            version: RING_END_SNAPSHOT_VERSION,
            side: match self.side {
                RingSide::First => SideState::First,
                RingSide::Second => SideState::Second,
            },
            outgoing: lock(&self.outgoing).state(),
            incoming: lock(&self.incoming).state(),
            read_shut: self.read_shut.load(Local::SeqCst),
            has_published: self.has_published.load(Local::SeqCst),
            reset: self.is_reset.load(Local::SeqCst),
            hung_up,
            violation: self.violation.get().copied().map(ViolationState::from),
        }
    }

    /// The end of a snapshot, with the memory and the doorbells of that one. It is dormant until
    /// [`wake`](Self::wake). Writes nothing to the memory.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::UnsupportedVersion`] for another version; [`SnapshotError::Memory`] if the memory is not that
    /// of a connection, or the snapshot is of another one.
    pub fn restore(
        snapshot: RingEndSnapshot,
        memory: impl AsFd,
        doorbells: Doorbells,
    ) -> Result<Self, SnapshotError> {
        let memory = Memory::open(memory)?;
        Self::resume(snapshot, memory, Link::pipes(doorbells), 0)
    }

    /// As [`restore`](Self::restore), for the end of a connection in an arena.
    pub(crate) fn restore_in_slot(
        snapshot: RingEndSnapshot,
        memory: Memory,
        link: SlotLink,
    ) -> Result<Self, SnapshotError> {
        let (side, epoch) = (link.side(), u64::from(link.id().seq) << 32);
        let end = Self::resume(snapshot, memory, Link::Slot(link), epoch)?;
        match end.side == side {
            true => Ok(end),
            false => Err(SnapshotError::Inconsistent {
                what: "an end is one of the other side",
            }),
        }
    }

    fn resume(
        snapshot: RingEndSnapshot,
        memory: Memory,
        link: Link,
        epoch: u64,
    ) -> Result<Self, SnapshotError> {
        let RingEndSnapshot {
            version,
            side,
            outgoing,
            incoming,
            read_shut,
            has_published,
            reset,
            hung_up,
            violation,
        } = snapshot;
        check_version(version, RING_END_SNAPSHOT_VERSION)?;
        let capacity = u64::from(memory.size().bytes());
        let other = || io::Error::new(io::ErrorKind::InvalidData, "the end is one of another size");
        let outgoing = Producer::resume(outgoing, capacity).ok_or_else(other)?;
        let incoming = Consumer::resume(incoming, capacity).ok_or_else(other)?;
        let side = match side {
            SideState::First => RingSide::First,
            SideState::Second => RingSide::Second,
        };
        if let Link::Pipes(pipes) = &link {
            pipes.hung_up.store(hung_up, Local::SeqCst);
        }
        let end = Self::new(side, memory, outgoing, incoming, link, epoch);
        end.is_dormant.store(true, Local::SeqCst);
        end.read_shut.store(read_shut, Local::SeqCst);
        end.has_published.store(has_published, Local::SeqCst);
        end.is_reset.store(reset, Local::SeqCst);
        if let Some(violation) = violation {
            let _ = end.violation.set(violation.into());
        }
        Ok(end)
    }

    /// Makes a restored end the only one: the end of the snapshot is not used any more, and not dropped either. From
    /// now on dropping this one closes it.
    pub fn wake(&self) {
        self.is_dormant.store(false, Local::SeqCst);
    }
}
