//! The snapshot of the liveness of guests. [`crate::handover::snapshot`] describes its format.

use std::time::Instant;

use hvsock_fabric::PartitionKey;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{GuestLiveness, Heartbeat, Liveness, RESUME_TIMEOUT};
use crate::handover::snapshot::{
    SnapshotError, check_version, ensure, nanoseconds_until, read_version, time_at,
};
use crate::model::{AgentState, GuestNotice};

/// The version of [`LivenessSnapshot`] that this release writes.
const LIVENESS_SNAPSHOT_VERSION: u32 = 1;

/// All guests that have reported since they started. Their handlers of commands are not in it: agents connect
/// again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(in crate::core) struct LivenessSnapshot {
    #[serde(deserialize_with = "read_version::<_, LIVENESS_SNAPSHOT_VERSION>")]
    version: u32,
    /// In the order of their partitions.
    guests: Vec<GuestSnapshot>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct GuestSnapshot {
    partition: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    heartbeat: Option<HeartbeatSnapshot>,
    /// As the control API has it. One that this release cannot read is left out: the next heartbeat has another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    report: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    notice: Option<GuestNotice>,
    ready_reported: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct HeartbeatSnapshot {
    agent: AgentState,
    /// Nanoseconds since the last one.
    age: i64,
    /// Whether the agent counts as lost some time after that.
    expires: bool,
}

impl Liveness {
    /// The liveness as a value.
    pub(in crate::core) fn snapshot(&self, now: Instant) -> LivenessSnapshot {
        let Self {
            guests,
            next_check: _,
        } = self;
        let mut all: Vec<_> = guests.iter().collect();
        all.sort_by_key(|(key, _)| **key);
        let guests = all.into_iter().map(|(key, guest)| {
            let GuestLiveness {
                heartbeat,
                report,
                notice,
                ready_reported,
                handler: _,
            } = guest;
            let heartbeat = heartbeat.as_ref();
            GuestSnapshot {
                partition: key.as_u64(),
                heartbeat: heartbeat.map(|beat| HeartbeatSnapshot {
                    agent: beat.agent,
                    age: nanoseconds_until(beat.last_seen, now)
                        .saturating_neg()
                        .max(0),
                    expires: beat.deadline.is_some(),
                }),
                report: report.as_ref().and_then(|it| serde_json::to_value(it).ok()),
                notice: notice.clone(),
                ready_reported: *ready_reported,
            }
        });
        LivenessSnapshot {
            version: LIVENESS_SNAPSHOT_VERSION,
            guests: guests.collect(),
        }
    }

    /// The liveness of a snapshot. `is_known` says which partitions there are. Agents have as long for the next
    /// heartbeat as after a pause: their connections end with the process that took the snapshot.
    ///
    /// # Errors
    ///
    /// [`SnapshotError`] for another version, unknown or repeated partitions, and impossible times.
    pub(in crate::core) fn restore(
        snapshot: LivenessSnapshot,
        now: Instant,
        is_known: impl Fn(PartitionKey) -> bool,
    ) -> Result<Self, SnapshotError> {
        let LivenessSnapshot { version, guests } = snapshot;
        check_version(version, LIVENESS_SNAPSHOT_VERSION)?;
        let mut restored = Self::default();
        for guest in guests {
            let GuestSnapshot {
                partition,
                heartbeat,
                report,
                notice,
                ready_reported,
            } = guest;
            let key = PartitionKey::from_u64(partition);
            ensure(is_known(key), "a guest is of no partition")?;
            let heartbeat = heartbeat.map(|beat| {
                ensure(beat.age >= 0, "a heartbeat is in the future")?;
                let deadline = beat.expires.then(|| now + RESUME_TIMEOUT);
                Ok(Heartbeat {
                    agent: beat.agent,
                    last_seen: time_at(beat.age.saturating_neg(), now)?,
                    deadline,
                })
            });
            let heartbeat = heartbeat.transpose()?;
            restored.check_by(heartbeat.and_then(|beat| beat.deadline));
            let guest = GuestLiveness {
                heartbeat,
                report: report.and_then(|report| serde_json::from_value(report).ok()),
                notice,
                ready_reported,
                handler: None,
            };
            let before = restored.guests.insert(key, guest);
            ensure(before.is_none(), "a guest occurs twice")?;
        }
        Ok(restored)
    }
}
