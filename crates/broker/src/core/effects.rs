//! What changes of the fabric and reports of the data threads require: connections that are reset,
//! suspended, promoted or closed, and listeners that are closed.

use hvsock_fabric::{ConnectionId, Effect, ListenerId, Refusal};

use super::audit::EndedConnection;
use super::connections::{ConnectionOwner, ConnectionRecord};
use super::labels::{partition_label, registered, service_label};
use super::state::Core;
use crate::model::EventKind;
use crate::pump::Report;

impl Core {
    /// Applies the fabric's pending effects.
    pub(super) fn apply_effects(&mut self) {
        while let Some(effect) = self.fabric.poll_effect() {
            match effect {
                Effect::ResetConnection { id, refusal } => self.reset_connection(id, refusal),
                Effect::Suspend { id } => self.suspend_connection(id, true),
                Effect::Resume { id } => self.suspend_connection(id, false),
                Effect::CloseListener { id, refusal } => self.reset_listener(id, &refusal),
            }
        }
        self.judge_arenas();
    }

    /// Records an established connection, counts it, and publishes an event.
    pub(super) fn record_connection(&mut self, id: ConnectionId, mut record: ConnectionRecord) {
        let service = record.service;
        let target = record.to.partition;
        let claim = record.claim.as_deref();
        record.audited = self.audit_connected("connect", id, service, record.from, target, claim);
        self.telemetry
            .count_opened(registered(&self.fabric, service));
        self.telemetry.publish(|| EventKind::ConnectionOpened {
            connection: id.as_u64(),
            service: service_label(&self.fabric, service),
            from: partition_label(&self.fabric, record.from.partition),
            to: partition_label(&self.fabric, record.to.partition),
        });
        self.connections.establish(id, record);
    }

    /// Handles a report of a connection set or data thread.
    pub(super) fn handle_report(&mut self, report: Report) {
        match report {
            Report::ConnectedSuspend {
                connection,
                end,
                value,
            } => {
                self.fabric.set_connected_suspend(connection, end, value);
            }
            Report::Closed { connection, .. } if self.text_listeners.remove_relay(connection) => {}
            Report::Closed { connection, reason } => self.closed(connection, reason.as_ref()),
            Report::Busy { connection } => self.promote(connection),
            Report::Arena { connection, news } => self.handle_arena_news(connection, news),
        }
        self.apply_effects();
    }

    /// Moves a busy connection to a data thread, round robin.
    fn promote(&mut self, id: ConnectionId) {
        if (self.connections.get(id).is_some() || self.text_listeners.has_relay(id))
            && let Some(place) = self.data_threads.promote(id)
        {
            self.connections.moved(id, place);
        }
    }

    /// Forgets a connection that its owner has closed.
    pub(super) fn closed(&mut self, id: ConnectionId, reason: Option<&Refusal>) {
        self.fabric.close_connection(id);
        self.forget_attaching(id, reason);
        self.closed_in_arena(id);
        let Some(record) = self.connections.remove(id) else {
            self.arena_closed(id, reason);
            return;
        };
        let counted = record.counters.counted();
        let [sent, received] = counted.unwrap_or_default();
        if let Some(began) = &record.audited {
            let end = EndedConnection {
                result: record.claimed_result.as_deref(),
                duration: record.started.elapsed(),
                bytes: counted,
            };
            self.audit_closed(began, &end, reason);
        }
        let service = registered(&self.fabric, record.service);
        self.telemetry.count_closed(service, sent, received);
        self.telemetry.publish(|| EventKind::ConnectionClosed {
            connection: id.as_u64(),
            service: service_label(&self.fabric, record.service),
            bytes_sent: counted.map(|counted| counted[0]),
            bytes_received: counted.map(|counted| counted[1]),
            reason: reason.map(ToString::to_string),
        });
    }

    /// Resets a connection through the thread that owns it, which sends both ends the reason.
    pub(crate) fn reset_connection(&mut self, id: ConnectionId, refusal: Refusal) {
        match self.connections.owner(id) {
            Some(ConnectionOwner::DataThreads(place)) => {
                self.data_threads.reset(place, id, refusal);
            }
            Some(ConnectionOwner::Link(vm)) => {
                if let Some(link) = self.link_of(vm) {
                    link.close(id, refusal);
                }
            }
            Some(ConnectionOwner::Attaching) => self.closed(id, Some(&refusal)),
            None if self.guest_arenas.contains(id) => self.close_guest_arena(id, refusal),
            None if self.reset_in_arena(id, &refusal) => {}
            None => self.abort_pending(id, &refusal),
        }
    }

    /// Suspends or resumes a connection.
    pub(super) fn suspend_connection(&mut self, id: ConnectionId, suspended: bool) {
        match self.connections.owner(id) {
            Some(ConnectionOwner::DataThreads(place)) => {
                self.data_threads.suspend(place, id, suspended);
            }
            Some(ConnectionOwner::Link(vm)) => {
                if let Some(link) = self.link_of(vm) {
                    link.suspend(id, suspended);
                }
            }
            Some(ConnectionOwner::Attaching) => self.attaching.suspend(id, suspended),
            None if self.guest_arenas.contains(id) => self.suspend_guest_arena(id, suspended),
            None => self.suspend_arena(id, suspended),
        }
    }

    /// Closes a listener with a reset.
    fn reset_listener(&mut self, id: ListenerId, refusal: &Refusal) {
        let Some(record) = self.listeners.get(id) else {
            return;
        };
        self.reset_session(record.session, refusal);
        self.remove_listener(id, Some(refusal));
    }

    /// Removes a listener. The caller applies the fabric's effects, because it may be doing so already.
    pub(super) fn remove_listener(&mut self, id: ListenerId, reason: Option<&Refusal>) {
        self.fabric.close_listener(id);
        self.close_own_port(id);
        self.offers.remove(id);
        self.orphan_guest_arenas(id);
        self.arenas.peers.remove(id);
        let Some(record) = self.listeners.remove(id) else {
            return;
        };
        self.telemetry.publish(|| EventKind::ListenerClosed {
            listener: id.as_u64(),
            service: service_label(&self.fabric, record.address.service),
            partition: partition_label(&self.fabric, record.partition),
            reason: reason.map(ToString::to_string),
        });
    }
}
