//! Timers of connections.

use std::collections::BTreeSet;
use std::time::Instant;

use crate::connection::Connection;

/// Deadlines, at most one for each connection. The connection stores its deadline, too, so that it can
/// be removed. Only connections that are being opened or closed, or that the packet limit stops, have
/// one, and only for a short time.
#[derive(Debug, Default)]
pub(super) struct Timers(BTreeSet<(Instant, u32)>);

impl Timers {
    /// Arms the timer; `None` disarms it (a deadline beyond the range of `Instant`).
    pub(super) fn set(&mut self, connection: &mut Connection, index: u32, at: Option<Instant>) {
        self.clear(connection, index);
        if let Some(at) = at {
            connection.deadline = Some(at);
            self.0.insert((at, index));
        }
    }

    pub(super) fn clear(&mut self, connection: &mut Connection, index: u32) {
        if let Some(at) = connection.deadline.take() {
            self.0.remove(&(at, index));
        }
    }

    pub(super) fn next(&self) -> Option<Instant> {
        self.0.first().map(|(at, _)| *at)
    }

    /// A connection whose deadline is not after `now`.
    pub(super) fn due(&self, now: Instant) -> Option<u32> {
        let (at, index) = self.0.first()?;
        (*at <= now).then_some(*index)
    }
}
