//! The core's tables as a document. [`resume`](super::resume) makes a core of it again.

use std::time::Instant;

use hvsock_fabric::FabricSnapshot;
use serde::{Deserialize, Serialize};

use super::arenas::snapshot::ArenasSnapshot;
use super::cids::snapshot::CidsSnapshot;
use super::connection_handover::DataPathDocument;
use super::connections::snapshot::ConnectionsSnapshot;
use super::containers::snapshot::ContainersSnapshot;
use super::counters::snapshot::CountersSnapshot;
use super::endpoints::snapshot::EndpointsSnapshot;
use super::guest_arenas::snapshot::GuestArenasSnapshot;
use super::leases::snapshot::LeasesSnapshot;
use super::left_folders::snapshot::LeftFoldersSnapshot;
use super::listeners::snapshot::ListenersSnapshot;
use super::liveness::snapshot::LivenessSnapshot;
use super::offers::snapshot::OffersSnapshot;
use super::sessions::snapshot::SessionsSnapshot;
use super::state::Core;
use super::text_listeners::snapshot::TextListenersSnapshot;
use super::uplinks::snapshot::UplinksSnapshot;
use super::vms::snapshot::VmsSnapshot;
use super::waiting_requests::WaitingSnapshot;
use crate::handover::{Exports, FdRange, HandoverError};

/// The core's tables. A table that is missing is empty.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct CoreDocument {
    pub(super) fabric: FabricSnapshot,
    pub(super) sessions: SessionsSnapshot,
    /// Those of the sessions.
    pub(super) session_descriptors: FdRange,
    pub(super) listeners: ListenersSnapshot,
    pub(super) leases: LeasesSnapshot,
    #[serde(default)]
    pub(super) offers: Option<OffersSnapshot>,
    pub(super) endpoints: EndpointsSnapshot,
    /// The established connections of processes.
    #[serde(default)]
    pub(super) data_path: Option<DataPathDocument>,
    #[serde(default)]
    pub(super) connections: Option<ConnectionsSnapshot>,
    #[serde(default)]
    pub(super) arenas: Option<ArenasSnapshot>,
    #[serde(default)]
    pub(super) guest_arenas: Option<GuestArenasSnapshot>,
    #[serde(default)]
    pub(super) vms: Option<VmsSnapshot>,
    #[serde(default)]
    pub(super) containers: Option<ContainersSnapshot>,
    #[serde(default)]
    pub(super) cids: Option<CidsSnapshot>,
    #[serde(default)]
    pub(super) liveness: Option<LivenessSnapshot>,
    #[serde(default)]
    pub(super) left_folders: Option<LeftFoldersSnapshot>,
    #[serde(default)]
    pub(super) text_listeners: Option<TextListenersSnapshot>,
    #[serde(default)]
    pub(super) counters: Option<CountersSnapshot>,
    #[serde(default)]
    pub(super) uplinks: Option<UplinksSnapshot>,
    #[serde(default)]
    pub(super) waiting: Option<WaitingSnapshot>,
}

impl Core {
    /// The core's tables, while nothing changes them.
    ///
    /// # Errors
    ///
    /// If a session is being served, or something of the core cannot be handed over.
    pub(crate) fn hand_over_state(
        &self,
        exports: &mut Exports,
        now: Instant,
    ) -> Result<CoreDocument, HandoverError> {
        self.check_tables()?;
        let mut sockets = Vec::new();
        let waiting = self.waiting_sessions();
        let waiting: Vec<_> = waiting.iter().map(|(session, _)| *session).collect();
        let sessions = self.sessions.snapshot(now, &mut sockets, &waiting);
        let connections = self.connections.snapshot(now);
        let containers = self.containers.snapshot(&self.container_processes, exports);
        let uplinks = self.uplinks_snapshot(exports, now);
        Ok(CoreDocument {
            fabric: self.fabric.snapshot(),
            sessions: sessions.map_err(|error| of("the sessions", error))?,
            session_descriptors: exports.fds(sockets)?,
            listeners: self.listeners.snapshot(now),
            leases: self.leases.snapshot(),
            offers: Some(self.offers.snapshot(exports)?),
            endpoints: self.endpoints.snapshot(exports)?,
            data_path: Some(self.hand_over_connections(exports)?),
            connections: Some(connections.map_err(|error| of("the connections", error))?),
            arenas: Some(self.arenas.snapshot(now)),
            guest_arenas: Some(self.guest_arenas.snapshot(exports)?),
            vms: Some(self.vms.snapshot()),
            containers: Some(containers.map_err(|error| of("the containers", error))?),
            cids: Some(self.cids.snapshot()),
            liveness: Some(self.liveness.snapshot(now)),
            left_folders: Some(self.left_folders.snapshot()),
            text_listeners: Some(self.text_listeners.snapshot(exports)?),
            counters: Some(self.telemetry.counters().snapshot()),
            uplinks: Some(uplinks.map_err(|error| of("the uplinks of guests", error))?),
            waiting: Some(self.hand_over_waiting(exports)?),
        })
    }

    /// Fails for what has no place in the document.
    fn check_tables(&self) -> Result<(), HandoverError> {
        match self.outer {
            Some(_) => Err(HandoverError::OwnUplink),
            None => Ok(()),
        }
    }
}

pub(super) fn of(object: &str, error: impl Into<HandoverError>) -> HandoverError {
    error.into().of(object)
}
