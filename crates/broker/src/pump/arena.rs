//! An arena: memory that a connecting process and a listener's process share for many connections. They open
//! and close those by themselves. The broker reads both control connections, scans the table of
//! connections, and can suspend, reset and revoke.
//!
//! A process keeps its control connection open as long as its end of the arena, so the kernel reports when
//! it is gone. Then each of its connections ends as it would have by itself: cleanly where the process had
//! ended its data, and with a reset elsewhere.

pub(super) mod snapshot;

use std::sync::Arc;

use hvsock_endpoint::{BrokerMessage, StreamReset};
use hvsock_fabric::Refusal;
use hvsock_ring::{ArenaMonitor, Grant, ResetCause, RingSide, SlotId};

use super::turn::Turn;
use crate::data_path::{ControlConnection, ProcessSocket};
use crate::reply::refused;

/// What the ends of an arena have reported since the last turn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ArenaNews {
    /// Connections were opened or closed.
    pub(crate) changed: bool,
    /// The connecting process needs more slots.
    pub(crate) grow: bool,
    /// The sides whose process is gone: no connection is opened any more.
    pub(crate) gone: [bool; 2],
}

/// An arena, as the broker monitors it.
pub(crate) struct MonitoredArena {
    /// Of the client, then of the server.
    pub(super) controls: [ControlConnection; 2],
    monitor: Arc<ArenaMonitor>,
    /// The sides whose process is gone, once that has been handled.
    gone: [bool; 2],
    suspended: bool,
    news: ArenaNews,
}

impl MonitoredArena {
    pub(super) fn new(controls: [ProcessSocket; 2], monitor: Arc<ArenaMonitor>) -> Self {
        Self {
            controls: controls.map(ControlConnection::of_arena),
            monitor,
            gone: [false; 2],
            suspended: false,
            news: ArenaNews::default(),
        }
    }

    /// Suspends or resumes every connection.
    pub(super) fn suspend(&mut self, suspended: bool) {
        self.suspended = suspended;
        self.monitor.suspend_all(suspended);
        // The flags in shared memory are authoritative. The message only wakes a process that watches its
        // ends as descriptors.
        for control in &self.controls {
            control.send(&BrokerMessage::Suspended { on: suspended });
        }
    }

    /// Revokes the grant and resets every connection, after the reason was sent.
    pub(super) fn reset(&self) {
        self.monitor.set_grant(Grant::Revoked);
        self.monitor.reset_all(ResetCause::Control);
    }

    /// Resets one connection, after the reason was sent.
    pub(super) fn reset_slot(&self, id: SlotId, refusal: &Refusal) {
        let message = BrokerMessage::StreamReset(StreamReset {
            slot: id.slot,
            seq: id.seq,
            reason: refused(refusal),
        });
        for control in self.controls.iter().filter(|control| !control.closed) {
            control.send(&message);
        }
        self.monitor.reset(id, ResetCause::Control);
        // A process that watches its end as a descriptor looks at it again. SHUTDOWN would tell it that the
        // other process is gone, and it would leave the arena.
        let on = self.suspended;
        for control in self.controls.iter().filter(|control| !control.closed) {
            control.send(&BrokerMessage::Suspended { on });
        }
    }

    /// Takes what the ends have reported.
    pub(super) fn take_news(&mut self) -> ArenaNews {
        std::mem::take(&mut self.news)
    }

    /// Reads both control connections and handles processes that are gone.
    pub(super) fn turn(&mut self) -> Turn {
        for control in &mut self.controls {
            if control.readable
                && let Err(refusal) = control.read()
            {
                return Turn::Closed(Some(refusal));
            }
            self.news.changed |= std::mem::take(&mut control.arena_changed);
        }
        let [client, server] = &mut self.controls;
        self.news.grow |= std::mem::take(&mut client.arena_grow);
        server.arena_grow = false;
        // A suspended connection does not report the end of a peer until it is resumed.
        let handled = if self.suspended { 0 } else { 2 };
        for (index, side) in RingSide::BOTH.into_iter().enumerate().take(handled) {
            if self.controls[index].closed && !self.gone[index] {
                self.gone[index] = true;
                self.handle_gone(side, 1 - index);
            }
        }
        if self.gone == [true; 2] {
            Turn::Closed(None)
        } else if self.controls.iter().any(|control| control.readable) {
            Turn::Again
        } else {
            Turn::Waiting
        }
    }

    /// Closes every end of a process that is gone, and tells the other process to look.
    fn handle_gone(&mut self, side: RingSide, survivor: usize) {
        // What a client has left in the queue can be accepted after that, and nothing else.
        self.monitor.close_end(side);
        self.monitor.set_grant(Grant::Revoked);
        self.news.changed = true;
        self.news.gone[1 - survivor] = true;
        let survivor = &self.controls[survivor];
        if !survivor.closed {
            survivor.send(&BrokerMessage::Shutdown);
        }
    }
}
