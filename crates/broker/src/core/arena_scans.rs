//! Scans arenas, and counts, records and publishes what a pair of processes did in one.

use std::time::Instant;

use hvsock_fabric::{ConnectionId, Refusal};
use hvsock_ring::{Grant, SlotId};

use super::arenas::{Observation, SCAN_INTERVAL, SeenConnection, connection_id};
use super::audit::EndedConnection;
use super::labels::{partition_label, registered, service_label};
use super::state::Core;
use crate::data_path::{peer_died, protocol_violation};
use crate::model::EventKind;
use crate::pump::ArenaNews;

impl Core {
    /// Handles what the ends of an arena have reported.
    pub(super) fn handle_arena_news(&mut self, id: ConnectionId, news: ArenaNews) {
        let Some(arena) = self.arenas.get_mut(id) else {
            return;
        };
        for (gone, is_new) in arena.gone.iter_mut().zip(news.gone) {
            *gone |= is_new;
        }
        if arena.gone != [false; 2] {
            arena.grant = Grant::Revoked;
            arena.monitor.set_grant(Grant::Revoked);
        }
        if news.grow {
            self.grow_arena(id);
        }
        if news.changed {
            self.scan_arena(id, Instant::now());
        }
    }

    /// Scans the arenas whose scan is due.
    pub(super) fn scan_due_arenas(&mut self, now: Instant) {
        while let Some(id) = self.arenas.take_due(now) {
            self.scan_arena(id, now);
        }
    }

    /// Scans all arenas, so that an operator sees what is open now.
    pub(super) fn scan_arenas(&mut self) {
        let now = Instant::now();
        for id in self.arenas.ids() {
            self.scan_arena(id, now);
        }
    }

    /// Compares the pair's table with what was seen before, and plans the next scan.
    pub(super) fn scan_arena(&mut self, id: ConnectionId, now: Instant) {
        let Some(arena) = self.arenas.get_mut(id) else {
            return;
        };
        let found = arena.observe(now);
        // Where nothing has changed, the pair is asked for a message at the next change.
        let is_quiet = !found.is_changed && arena.monitor.request_changes();
        if !is_quiet {
            self.arenas.scan_at(id, now + SCAN_INTERVAL);
        }
        self.report_observation(id, &found);
        self.shrink_arena(id);
        if found.is_impossible {
            let violation = protocol_violation("an impossible table of connections in an arena");
            self.reset_whole_arena(id, violation);
        }
    }

    fn report_observation(&mut self, id: ConnectionId, found: &Observation) {
        let Some(arena) = self.arenas.get(id) else {
            return;
        };
        let (service, from, to) = (arena.request.service, arena.from, arena.to.partition);
        let gone = arena.gone;
        let opened = found.unseen.saturating_add(found.opened.len() as u64);
        if opened > 0 || found.bytes != [0; 2] {
            let service = registered(&self.fabric, service);
            self.telemetry.count_in_arena(service, opened, found.bytes);
        }
        for slot in &found.opened {
            self.report_opened(id, *slot);
        }
        if found.unseen > 0 {
            self.audit_unseen(service, from, to, found.unseen);
            self.telemetry.publish(|| EventKind::ConnectionsCounted {
                service: service_label(&self.fabric, service),
                from: partition_label(&self.fabric, from.partition),
                to: partition_label(&self.fabric, to),
                connections: found.unseen,
            });
        }
        for seen in &found.closed {
            let died = [0, 1]
                .into_iter()
                .any(|side| gone[side] && !seen.ended[side]);
            let reason = died.then(peer_died);
            self.report_closed(id, seen, reason.as_ref());
        }
    }

    fn report_opened(&mut self, arena: ConnectionId, slot: SlotId) {
        let Some(found) = self.arenas.get(arena) else {
            return;
        };
        let (service, from, to) = (found.request.service, found.from, found.to.partition);
        let id = connection_id(arena, slot);
        if let Some(record) = self.audit_connected("connect", id, service, from, to, None)
            && let Some(arena) = self.arenas.get_mut(arena)
        {
            arena.set_audited(slot, record);
        }
        self.telemetry.publish(|| EventKind::ConnectionOpened {
            connection: id.as_u64(),
            service: service_label(&self.fabric, service),
            from: partition_label(&self.fabric, from.partition),
            to: partition_label(&self.fabric, to),
        });
    }

    /// Reports that a connection of an arena has ended.
    pub(super) fn report_closed(
        &mut self,
        arena: ConnectionId,
        seen: &SeenConnection,
        reason: Option<&Refusal>,
    ) {
        let Some(found) = self.arenas.get(arena) else {
            return;
        };
        let service = found.request.service;
        let id = connection_id(arena, seen.id);
        if let Some(began) = &seen.audited {
            let end = EndedConnection {
                result: None,
                duration: seen.since.elapsed(),
                bytes: Some(seen.written),
            };
            self.audit_closed(began, &end, reason);
        }
        self.telemetry.publish(|| EventKind::ConnectionClosed {
            connection: id.as_u64(),
            service: service_label(&self.fabric, service),
            bytes_sent: Some(seen.written[0]),
            bytes_received: Some(seen.written[1]),
            reason: reason.map(ToString::to_string),
        });
    }

    /// Forgets an arena that both processes or the broker have closed.
    pub(super) fn arena_closed(&mut self, id: ConnectionId, reason: Option<&Refusal>) {
        let now = Instant::now();
        let Some(arena) = self.arenas.get_mut(id) else {
            return;
        };
        let found = arena.observe(now);
        self.report_observation(id, &found);
        let open = match self.arenas.get_mut(id) {
            Some(arena) => arena.take_open(),
            None => Vec::new(),
        };
        for seen in &open {
            self.report_closed(id, seen, reason);
        }
        let Some(arena) = self.arenas.remove(id) else {
            return;
        };
        if let Some(began) = &arena.audited {
            let (_, bytes) = arena.counted();
            let end = EndedConnection {
                result: None,
                duration: arena.started.elapsed(),
                bytes: Some(bytes),
            };
            self.audit_closed(began, &end, reason);
        }
    }
}
