//! The event TRANSPORT_RESET in the document of its device.

use std::time::Instant;

use hvsock_virtio::queue::Chain;
use serde::{Deserialize, Serialize};

use super::{DRIVER_TIMEOUT, State, TransportReset};
use crate::handover::HandoverError;
use crate::handover::snapshot::{nanoseconds_until, time_at};

/// How far the event is. Times are in nanoseconds.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(in super::super) enum TransportResetState {
    None,
    Due {
        hold: Option<i64>,
    },
    Sent {
        driver_index: u16,
        /// In the past if no packet is held back any more.
        hold: i64,
        #[serde(default)]
        is_late: bool,
    },
}

impl TransportReset {
    pub(in super::super) fn state(&self, now: Instant) -> TransportResetState {
        match self.state {
            State::None => TransportResetState::None,
            State::Due { hold } => TransportResetState::Due {
                hold: hold.map(|at| nanoseconds_until(at, now)),
            },
            State::Sent {
                driver_index,
                hold,
                is_late,
            } => TransportResetState::Sent {
                driver_index,
                hold: hold.map_or(-1, |at| nanoseconds_until(at, now)),
                is_late,
            },
        }
    }

    pub(in super::super) fn restore(
        state: TransportResetState,
        now: Instant,
    ) -> Result<Self, HandoverError> {
        let time = |at| Ok::<_, HandoverError>(time_at(at, now)?.min(now + DRIVER_TIMEOUT));
        let state = match state {
            TransportResetState::None => State::None,
            TransportResetState::Due { hold } => State::Due {
                hold: hold.map(time).transpose()?,
            },
            TransportResetState::Sent {
                driver_index,
                hold,
                is_late,
            } => State::Sent {
                driver_index,
                hold: Some(time(hold)?),
                is_late,
            },
        };
        Ok(Self {
            state,
            chain: Chain::default(),
        })
    }
}
