//! A process behind a ring.

use hvsock_fabric::Refusal;
use hvsock_ring::{RingEnd, RingError};
use hvsock_sys::shared_memory::SharedBytes;

use crate::data_path::{peer_died, unread_data};
use crate::guest_link::arena_slot::{ArenaSlot, refusal_of_reset};
use crate::guest_link::outcome::{DeliverError, FillOutcome, MessageEnd};

/// One end of a ring.
#[derive(Debug)]
pub(super) struct Ring {
    pub(super) end: RingEnd,
    /// Its slot in an arena. `None` for a ring of its own.
    pub(super) slot: Option<ArenaSlot>,
}

impl Ring {
    /// Resets the connection for the process. In an arena the process gets the reason first; for a ring of
    /// its own the caller has sent it.
    pub(super) fn reset(&self, refusal: &Refusal) {
        if let Some(slot) = &self.slot {
            slot.server.reset(slot.id, refusal);
        }
        self.end.reset();
    }

    pub(super) fn deliver(
        &mut self,
        chunks: &[SharedBytes<'_>],
        len: usize,
    ) -> Result<(), DeliverError> {
        if len == 0 {
            return Ok(());
        }
        let mut reserved = self
            .end
            .try_reserve(len)
            .map_err(|_| DeliverError::ReadClosed)?;
        if reserved.len() < len {
            // Credit guarantees the space, so the process has violated the ring's protocol.
            return Err(DeliverError::ReadClosed);
        }
        let mut at = 0;
        for chunk in chunks {
            reserved
                .put_shared(at, *chunk)
                .map_err(|_| DeliverError::ReadClosed)?;
            at += chunk.len();
        }
        reserved.commit(len).map_err(|_| DeliverError::ReadClosed)
    }

    pub(super) fn fill(&mut self, chunks: &[SharedBytes<'_>]) -> FillOutcome {
        let filled = match self.end.try_fill() {
            Ok(filled) => filled,
            Err(RingError::WouldBlock) => return FillOutcome::Empty,
            Err(RingError::EndOfStream) => return FillOutcome::Ended,
            Err(stop) => return FillOutcome::Failed(self.refusal_of(stop)),
        };
        let (mut count, all) = (0, filled.len());
        for chunk in chunks {
            let wanted = chunk.len().min(all - count);
            if wanted == 0 || filled.get_shared(count, chunk.part(0, wanted)).is_err() {
                break;
            }
            count += wanted;
        }
        // Cannot fail: `count` is at most the borrowed length.
        let _ = filled.consume(count);
        FillOutcome::Bytes(count, MessageEnd::default(), count < all)
    }

    /// Writes at most the free space.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<usize, DeliverError> {
        match self.end.try_write(bytes) {
            Ok(count) => Ok(count),
            Err(RingError::WouldBlock) => Ok(0),
            Err(_) => Err(DeliverError::ReadClosed),
        }
    }

    pub(super) fn read(&mut self, buffer: &mut [u8]) -> FillOutcome {
        match self.end.try_read(buffer) {
            Ok(count) => FillOutcome::Bytes(count, MessageEnd::default(), self.end.is_readable()),
            Err(RingError::WouldBlock) => FillOutcome::Empty,
            Err(RingError::EndOfStream) => FillOutcome::Ended,
            Err(stop) => FillOutcome::Failed(self.refusal_of(stop)),
        }
    }

    fn refusal_of(&self, stop: RingError) -> Refusal {
        match stop {
            RingError::PeerGone => peer_died(),
            RingError::UnreadData => unread_data(),
            RingError::Reset if self.slot.is_some() => refusal_of_reset(self.end.reset_cause()),
            other => Refusal::Reset {
                cause: other.to_string(),
            },
        }
    }
}
