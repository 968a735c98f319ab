//! A connection between siblings in a document.
//!
//! Two links have an end of it each. The one that is handed over first takes all of it along, the other one only says
//! which end it has. They may be restored in any order.

use hvsock_fabric::{ConnectionId, Refusal};
use serde::{Deserialize, Serialize};

use super::{Direction, MAX_MESSAGE_ENDS, Pipe, PipeEnd, lock, pair};
use crate::handover::{Blob, Exports, HandoverError, Imports};

/// One guest's end of a connection between siblings.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct PipeEndState {
    /// 0: that of the guest that connects.
    side: u8,
    capacity: u32,
    /// The connection, at one of its ends.
    pipe: Option<PipeState>,
}

#[derive(Debug, Serialize, Deserialize)]
struct PipeState {
    directions: [DirectionState; 2],
    connected: bool,
    /// Why it was aborted, in words.
    failure: Option<String>,
    reset: bool,
    gone: [bool; 2],
}

#[derive(Debug, Serialize, Deserialize)]
struct DirectionState {
    bytes: Option<Blob>,
    ends: Vec<(u64, bool)>,
    written: u64,
    read: u64,
    ended: bool,
    closed: bool,
}

impl PipeEnd {
    pub(crate) fn hand_over(
        &self,
        connection: ConnectionId,
        exports: &mut Exports,
    ) -> Result<PipeEndState, HandoverError> {
        let is_first = exports.is_first("pipe", connection.as_u64());
        let pipe = is_first
            .then(|| self.pipe().hand_over(exports))
            .transpose()?;
        Ok(PipeEndState {
            side: u8::from(self.side == 1),
            capacity: u32::try_from(self.shared.capacity).unwrap_or(u32::MAX),
            pipe,
        })
    }

    /// The end with this state. The other one is kept for the link that has it.
    pub(crate) fn resume(
        state: PipeEndState,
        connection: ConnectionId,
        imports: &mut Imports,
    ) -> Result<Self, HandoverError> {
        let PipeEndState {
            side,
            capacity,
            pipe,
        } = state;
        let number = connection.as_u64();
        let end = match imports.kept::<Self>(number) {
            Some(end) => end,
            None => {
                let (first, second) = pair(capacity);
                let (own, other) = match side {
                    0 => (first, second),
                    _ => (second, first),
                };
                imports.keep(number, other);
                own
            }
        };
        if end.side != usize::from(side) || end.shared.capacity != capacity as usize {
            return Err(HandoverError::inconsistent(
                "the two ends of a connection between guests do not fit",
            ));
        }
        if let Some(pipe) = pipe {
            let pipe = Pipe::resume(pipe, imports, end.shared.capacity)?;
            *lock(&end.shared.pipe) = pipe;
        }
        Ok(end)
    }
}

impl Pipe {
    fn hand_over(&self, exports: &mut Exports) -> Result<PipeState, HandoverError> {
        let Self {
            directions: [out, back],
            connected,
            failure,
            is_reset,
            gone,
        } = self;
        Ok(PipeState {
            directions: [out.hand_over(exports)?, back.hand_over(exports)?],
            connected: *connected,
            failure: failure.as_ref().map(cause),
            reset: *is_reset,
            gone: *gone,
        })
    }

    fn resume(
        state: PipeState,
        imports: &mut Imports,
        capacity: usize,
    ) -> Result<Self, HandoverError> {
        let PipeState {
            directions: [out, back],
            connected,
            failure,
            reset,
            gone,
        } = state;
        Ok(Self {
            directions: [
                Direction::resume(out, imports, capacity)?,
                Direction::resume(back, imports, capacity)?,
            ],
            connected,
            failure: failure.map(|cause| Refusal::Reset { cause }),
            is_reset: reset,
            gone,
        })
    }
}

fn cause(refusal: &Refusal) -> String {
    match refusal {
        Refusal::Reset { cause } => cause.clone(),
        other => other.to_string(),
    }
}

impl Direction {
    fn hand_over(&self, exports: &mut Exports) -> Result<DirectionState, HandoverError> {
        let Self {
            bytes,
            ends,
            written,
            read,
            ended,
            closed,
            // Both look again.
            reader_armed: _,
            writer_armed: _,
        } = self;
        let bytes: Vec<u8> = bytes.iter().copied().collect();
        Ok(DirectionState {
            bytes: match bytes.is_empty() {
                true => None,
                false => Some(exports.blob(&bytes)?),
            },
            ends: ends.iter().copied().collect(),
            written: *written,
            read: *read,
            ended: *ended,
            closed: *closed,
        })
    }

    fn resume(
        state: DirectionState,
        imports: &mut Imports,
        capacity: usize,
    ) -> Result<Self, HandoverError> {
        let DirectionState {
            bytes,
            ends,
            written,
            read,
            ended,
            closed,
        } = state;
        let bytes = bytes.map_or_else(|| Ok(Vec::new()), |blob| imports.blob(blob))?;
        let buffered = written.checked_sub(read);
        // A reader that has closed has dropped what was left.
        let is_whole = buffered == Some(bytes.len() as u64) || closed && bytes.is_empty();
        let mut last = read;
        let in_order = ends.iter().all(|(at, _)| {
            let is_behind = last <= *at && *at <= written;
            last = *at;
            is_behind
        });
        if !is_whole || !in_order || bytes.len() > capacity || ends.len() > MAX_MESSAGE_ENDS {
            return Err(HandoverError::inconsistent(
                "the bytes between two guests are not those that were written",
            ));
        }
        Ok(Self {
            bytes: bytes.into(),
            ends: ends.into(),
            written,
            read,
            ended,
            closed,
            reader_armed: true,
            writer_armed: None,
        })
    }
}
