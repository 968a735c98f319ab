//! A process behind a ring.

use std::os::fd::OwnedFd;

use hvsock_fabric::Refusal;
use hvsock_ring::{Filled, RingEnd, RingError};
use hvsock_sys::shared_memory::SharedBytes;

use crate::data_path::{peer_died, unread_data};
use crate::guest_link::arena_slot::{ArenaSlot, refusal_of_reset};
use crate::guest_link::outcome::{DeliverError, FillOutcome, MessageEnd};

/// Bytes of one packet that are copied before the process sees them, so that it reads them while the
/// rest is copied. Less than that is in the processor's nearest cache, more costs the overlap.
const PIECE: usize = 16 * 1024;

/// Bytes that a [`Run`] copies before it frees their space. Each time costs a full memory barrier, which
/// waits for the copied bytes to reach the cache.
const RELEASE: usize = 32 * 1024;

/// One end of a ring.
#[derive(Debug)]
pub(super) struct Ring {
    pub(super) end: RingEnd,
    /// Its slot in an arena. `None` for a ring of its own.
    pub(super) slot: Option<ArenaSlot>,
    /// The memory of a ring of its own, for another process that goes on with it.
    pub(super) memory: Option<OwnedFd>,
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
        let closed = |_| DeliverError::ReadClosed;
        let mut copied = 0;
        for chunk in chunks {
            let mut rest = *chunk;
            while !rest.is_empty() {
                let part = rest.part(0, PIECE - copied);
                reserved.put_shared(copied, part).map_err(closed)?;
                copied += part.len();
                rest = rest.part(part.len(), rest.len());
                if copied == PIECE {
                    reserved.publish(copied).map_err(closed)?;
                    copied = 0;
                }
            }
        }
        match copied {
            0 => Ok(()),
            _ => reserved.commit(copied).map_err(closed),
        }
    }

    /// Begins to copy the readable bytes out of the ring.
    pub(super) fn run(&mut self) -> Run<'_> {
        Run {
            ring: self,
            filled: None,
            taken: 0,
        }
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

/// The bytes that were readable when the run began. It holds them, so that several packets are filled
/// without a lock and a memory barrier for each. The process can fill their space at the latest when the run
/// is dropped.
#[derive(Debug)]
pub(super) struct Run<'a> {
    ring: &'a Ring,
    filled: Option<Filled<'a>>,
    /// How many of the bytes are copied and not released.
    taken: usize,
}

impl Run<'_> {
    pub(super) fn fill(&mut self, chunks: &[SharedBytes<'_>]) -> FillOutcome {
        let filled = match &mut self.filled {
            Some(filled) => filled,
            none => match self.ring.end.try_fill() {
                Ok(filled) => none.insert(filled),
                Err(RingError::WouldBlock) => return FillOutcome::Empty,
                Err(RingError::EndOfStream) => return FillOutcome::Ended,
                Err(stop) => return FillOutcome::Failed(self.ring.refusal_of(stop)),
            },
        };
        let (mut count, all) = (0, filled.len() - self.taken);
        for chunk in chunks {
            let wanted = chunk.len().min(all - count);
            let at = self.taken + count;
            if wanted == 0 || filled.get_shared(at, chunk.part(0, wanted)).is_err() {
                break;
            }
            count += wanted;
        }
        self.taken += count;
        let is_empty = count == all;
        if is_empty || self.taken >= RELEASE {
            self.release();
        }
        if is_empty {
            self.filled = None;
        }
        FillOutcome::Bytes(count, MessageEnd::default(), !is_empty)
    }

    fn release(&mut self) {
        let taken = std::mem::take(&mut self.taken);
        if let Some(filled) = &mut self.filled
            && taken > 0
        {
            // Cannot fail: at most the borrowed length is taken.
            let _ = filled.release(taken);
        }
    }
}

impl Drop for Run<'_> {
    fn drop(&mut self) {
        self.release();
    }
}

#[cfg(test)]
mod tests {
    use hvsock_ring::{RingSize, pair};
    use hvsock_sys::shared_memory::{Mapping, create};

    use super::*;

    const CAPACITY: usize = 128 * 1024;

    /// A ring of [`CAPACITY`] with the process's end, and as much memory of a guest.
    fn fixture() -> (Ring, RingEnd, Mapping) {
        let (end, process) = pair(RingSize::exactly(CAPACITY as u32).unwrap()).unwrap();
        let memory = Mapping::new(create(CAPACITY as u64).unwrap(), CAPACITY).unwrap();
        let ring = Ring {
            end,
            slot: None,
            memory: None,
        };
        (ring, process, memory)
    }

    fn text(len: usize) -> Vec<u8> {
        (0..len).map(|at| (at / 7 + at / 4096) as u8).collect()
    }

    #[test]
    fn a_packet_of_any_length_and_layout_arrives_whole() {
        let (mut ring, process, memory) = fixture();
        for len in [1, PIECE - 1, PIECE, PIECE + 1, 4 * PIECE, 5 * PIECE - 3] {
            for layout in [
                [0, 0],
                [1, 0],
                [100, PIECE],
                [PIECE, PIECE],
                [4096, 2 * PIECE],
            ] {
                let text = text(len);
                memory.bytes(0..CAPACITY).put(0, &text);
                let mut chunks = Vec::new();
                let mut at = 0;
                for part in layout {
                    let until = (at + part).min(len);
                    chunks.push(memory.bytes(at..until));
                    at = until;
                }
                chunks.push(memory.bytes(at..len));
                ring.deliver(&chunks, len).unwrap();
                let mut got = vec![0; len];
                let mut read = 0;
                while let Ok(count) = process.try_read(&mut got[read..]) {
                    read += count;
                    if read == len {
                        break;
                    }
                }
                assert!(got == text, "{len} {layout:?}");
            }
        }
    }

    #[test]
    fn a_run_frees_space_while_it_lasts_and_the_rest_when_it_ends() {
        let (mut ring, process, memory) = fixture();
        let text = text(CAPACITY);
        assert_eq!(process.try_write(&text), Ok(CAPACITY));
        let mut run = ring.run();
        let mut got = Vec::new();
        let mut fill = |run: &mut Run<'_>, count: usize| {
            let outcome = run.fill(&[memory.bytes(0..1), memory.bytes(1..count)]);
            let FillOutcome::Bytes(filled, _, true) = outcome else {
                panic!("{outcome:?}");
            };
            let mut bytes = vec![0; filled];
            memory.bytes(0..filled).get(0, &mut bytes);
            got.extend(bytes);
        };
        fill(&mut run, RELEASE - 1);
        assert!(process.try_write(b"!").is_err());
        fill(&mut run, 2);
        assert_eq!(process.try_write(&[7; CAPACITY]), Ok(RELEASE + 1));
        fill(&mut run, 1000);
        assert!(process.try_write(b"!").is_err());
        drop(run);
        assert_eq!(process.try_write(&[7; CAPACITY]), Ok(1000));
        assert!(got == text[..got.len()]);
    }

    #[test]
    fn a_run_ends_with_the_bytes_that_were_there_when_it_began() {
        let (mut ring, process, memory) = fixture();
        assert!(matches!(
            ring.run().fill(&[memory.bytes(0..9)]),
            FillOutcome::Empty
        ));
        process.try_write(&[1; 10]).unwrap();
        let mut run = ring.run();
        assert!(matches!(
            run.fill(&[memory.bytes(0..9)]),
            FillOutcome::Bytes(9, _, true)
        ));
        process.try_write(&[1; 10]).unwrap();
        assert!(matches!(
            run.fill(&[memory.bytes(0..9)]),
            FillOutcome::Bytes(1, _, false)
        ));
        assert!(matches!(
            run.fill(&[memory.bytes(0..90)]),
            FillOutcome::Bytes(10, _, false)
        ));
        process.shutdown_write();
        assert!(matches!(
            run.fill(&[memory.bytes(0..9)]),
            FillOutcome::Ended
        ));
    }
}
