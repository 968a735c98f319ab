//! The snapshot of the counters. [`crate::handover::snapshot`] describes its format.

use std::collections::{BTreeMap, HashMap};

use hvsock_address::ServiceId;
use hvsock_fabric::Refusal;
use serde::{Deserialize, Serialize};

use super::{MetricsCounters, ServiceCounters};
use crate::handover::snapshot::{SnapshotError, check_version, ensure, read_version};

/// The version of [`CountersSnapshot`] that this release writes.
const COUNTERS_SNAPSHOT_VERSION: u32 = 1;

/// More than any release has codes of refusals.
const MAX_CODE: u32 = 1024;

/// All counters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::core) struct CountersSnapshot {
    #[serde(deserialize_with = "read_version::<_, COUNTERS_SNAPSHOT_VERSION>")]
    version: u32,
    /// In the order of the services.
    services: Vec<ServiceSnapshot>,
    /// Refusals by label.
    refusals: BTreeMap<String, u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct ServiceSnapshot {
    /// Absent for all that are not registered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    service: Option<ServiceId>,
    connections: u64,
    /// Bytes.
    sent: u64,
    received: u64,
}

impl MetricsCounters {
    /// The counters as a value.
    pub(in crate::core) fn snapshot(&self) -> CountersSnapshot {
        let Self { services, refusals } = self;
        let mut all: Vec<_> = services.iter().collect();
        all.sort_by_key(|(service, _)| **service);
        let services = all.into_iter().map(|(service, counters)| {
            let ServiceCounters {
                connections,
                sent,
                received,
            } = *counters;
            ServiceSnapshot {
                service: *service,
                connections,
                sent,
                received,
            }
        });
        let refusals = refusals.iter();
        CountersSnapshot {
            version: COUNTERS_SNAPSHOT_VERSION,
            services: services.collect(),
            refusals: refusals
                .map(|(label, count)| ((*label).to_owned(), *count))
                .collect(),
        }
    }

    /// The counters of a snapshot. Services for which `is_registered` returns false count with the others that
    /// are not registered. Refusals that this release does not know are left out.
    ///
    /// # Errors
    ///
    /// [`SnapshotError`] for another version, and for a service that occurs twice.
    pub(in crate::core) fn restore(
        snapshot: CountersSnapshot,
        is_registered: impl Fn(ServiceId) -> bool,
    ) -> Result<Self, SnapshotError> {
        let CountersSnapshot {
            version,
            services,
            refusals,
        } = snapshot;
        check_version(version, COUNTERS_SNAPSHOT_VERSION)?;
        let mut restored = Self {
            services: HashMap::new(),
            refusals: BTreeMap::new(),
        };
        for ServiceSnapshot {
            service,
            connections,
            sent,
            received,
        } in services
        {
            let counters = ServiceCounters {
                connections,
                sent,
                received,
            };
            let before = restored.services.insert(service, counters);
            ensure(before.is_none(), "the counters of a service occur twice")?;
        }
        let all = restored.services.keys().copied().flatten();
        let gone: Vec<_> = all.filter(|service| !is_registered(*service)).collect();
        gone.into_iter()
            .for_each(|service| restored.retire(service));
        let labels = (1..MAX_CODE).map(|code| Refusal::from_wire(code, "").label());
        for label in labels {
            if let Some(count) = refusals.get(label) {
                restored.refusals.insert(label, *count);
            }
        }
        Ok(restored)
    }
}
