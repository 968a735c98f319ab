//! The watch of a paused VM's memory in the document of its device.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::{LONGEST, PauseCheck};
use crate::handover::HandoverError;
use crate::handover::snapshot::{nanoseconds_until, time_at};

/// See [`PauseCheck`].
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(in super::super) struct PauseCheckState {
    fingerprint: u64,
    /// In nanoseconds, as `interval`.
    next: i64,
    interval: u64,
    put_offs: u32,
}

impl PauseCheck {
    pub(in super::super) fn state(&self, now: Instant) -> PauseCheckState {
        let Self {
            fingerprint,
            next,
            interval,
            put_offs,
        } = *self;
        PauseCheckState {
            fingerprint,
            next: nanoseconds_until(next, now),
            interval: u64::try_from(interval.as_nanos()).unwrap_or(u64::MAX),
            put_offs,
        }
    }

    pub(in super::super) fn restore(
        state: PauseCheckState,
        now: Instant,
    ) -> Result<Self, HandoverError> {
        let PauseCheckState {
            fingerprint,
            next,
            interval,
            put_offs,
        } = state;
        Ok(Self {
            fingerprint,
            next: time_at(next, now)?.min(now + LONGEST),
            interval: Duration::from_nanos(interval).min(LONGEST),
            put_offs: put_offs.min(u32::MAX / 2),
        })
    }
}
