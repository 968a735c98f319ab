//! The core's tables as a document, and the core of a successor from it.

use std::time::Instant;

use hvsock_fabric::{Fabric, FabricSnapshot, Operators, PartitionKind};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::endpoints::snapshot::EndpointsSnapshot;
use super::leases::Leases;
use super::leases::snapshot::LeasesSnapshot;
use super::listeners::Listeners;
use super::listeners::snapshot::ListenersSnapshot;
use super::sessions::snapshot::SessionsSnapshot;
use super::sessions::{Role, Sessions};
use super::state::Core;
use crate::data_path::ProcessSocket;
use crate::handover::{Exports, FdRange, HandoverError, Imports};

/// The core's tables. A table that is missing is empty.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct CoreDocument {
    fabric: FabricSnapshot,
    sessions: SessionsSnapshot,
    /// Those of the sessions.
    session_descriptors: FdRange,
    listeners: ListenersSnapshot,
    leases: LeasesSnapshot,
    endpoints: EndpointsSnapshot,
    #[serde(default)]
    connections: Option<Value>,
    #[serde(default)]
    arenas: Option<Value>,
    #[serde(default)]
    guest_arenas: Option<Value>,
    #[serde(default)]
    vms: Option<Value>,
    #[serde(default)]
    containers: Option<Value>,
    #[serde(default)]
    cids: Option<Value>,
    #[serde(default)]
    liveness: Option<Value>,
    #[serde(default)]
    left_folders: Option<Value>,
    #[serde(default)]
    text_listeners: Option<Value>,
    #[serde(default)]
    counters: Option<Value>,
    #[serde(default)]
    uplinks: Option<Value>,
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
        let sessions = self.sessions.snapshot(now, &mut sockets);
        Ok(CoreDocument {
            fabric: self.fabric.snapshot(),
            sessions: sessions.map_err(|error| of("the sessions", error))?,
            session_descriptors: exports.fds(sockets)?,
            listeners: self.listeners.snapshot(now),
            leases: self.leases.snapshot(),
            endpoints: self.endpoints.snapshot(exports)?,
            connections: None,
            arenas: None,
            guest_arenas: None,
            vms: None,
            containers: None,
            cids: None,
            liveness: None,
            left_folders: None,
            text_listeners: None,
            counters: None,
            uplinks: None,
        })
    }

    /// Fails for what has no place in the document.
    fn check_tables(&self) -> Result<(), HandoverError> {
        let not = |what: &str| Err(HandoverError::NotSupported { what: what.into() });
        if self.connections.len() > 0 {
            return not("an established connection");
        }
        if self.vms.keys().next().is_some() {
            return not("a virtual machine");
        }
        if !self.names_of_own_children().is_empty() {
            return not("a container");
        }
        if self.outer.is_some() {
            return not("an uplink");
        }
        Ok(())
    }

    /// Puts the tables of a document in the place of this core's, which has served nobody yet. Watches
    /// descriptors, but reads none.
    ///
    /// # Errors
    ///
    /// If the document is damaged, or exceeds a limit. The core is useless then.
    pub(crate) fn resume(
        &mut self,
        document: CoreDocument,
        imports: &mut Imports,
        operators: Operators,
        now: Instant,
    ) -> Result<(), HandoverError> {
        let CoreDocument {
            fabric,
            sessions,
            session_descriptors,
            listeners,
            leases,
            endpoints,
            connections: _,
            arenas: _,
            guest_arenas: _,
            vms: _,
            containers: _,
            cids: _,
            liveness: _,
            left_folders: _,
            text_listeners: _,
            counters: _,
            uplinks: _,
        } = document;
        let (name, kind) = self.own();
        let limits = *self.fabric.limits();
        self.fabric = Fabric::restore(fabric, limits, operators)?;
        let (found, found_kind) = self.own();
        if (&name, kind) != (&found, found_kind) {
            let what =
                format!("it is of the {found_kind} {found}, and this is to be the {kind} {name}");
            return Err(HandoverError::Damaged { what });
        }
        let fabric = &self.fabric;
        let endpoints = self
            .endpoints
            .restore(endpoints, imports, |key| fabric.partition(key).is_some());
        endpoints.map_err(|error| error.of("the endpoint sockets"))?;
        let most = session_descriptors.count() as usize;
        let listeners = Listeners::restore(listeners, most, now);
        self.listeners = listeners.map_err(|error| of("the listeners", error))?;
        let leases = Leases::restore(leases, most);
        self.leases = leases.map_err(|error| of("the leases", error))?;
        let mut sockets = imports.fds(session_descriptors)?.map(ProcessSocket::from);
        let sessions = Sessions::restore(sessions, self.sessions.limits(), &mut sockets, now);
        self.sessions = sessions.map_err(|error| of("the sessions", error))?;
        self.join_sessions()
    }

    /// The broker's own partition.
    fn own(&self) -> (String, PartitionKind) {
        let own = self.fabric.partition(self.fabric.root());
        let none = || (String::new(), PartitionKind::Host);
        own.map_or_else(none, |own| (own.name().to_string(), own.kind()))
    }

    /// Tells listeners and leases which sessions they are of, and watches these.
    fn join_sessions(&mut self) -> Result<(), HandoverError> {
        for (index, session) in self.sessions.iter() {
            match session.role() {
                Role::Idle => {}
                Role::Listener(id) => self.listeners.set_session(id, index),
                Role::Lease(service) if self.leases.is_held_by(service, session.serial()) => {
                    self.leases.set_session(service, index);
                }
                Role::Lease(_) => {
                    let what = "a session has a lease that is another one's";
                    return Err(HandoverError::inconsistent(what));
                }
            }
            let watched = self.session_io.watch(&session.socket, index);
            watched.map_err(HandoverError::io("watch a session"))?;
        }
        Ok(())
    }
}

fn of(object: &str, error: impl Into<HandoverError>) -> HandoverError {
    error.into().of(object)
}
