//! When which connection has waited long enough.

use std::collections::BTreeSet;
use std::time::Instant;

use crate::connection::Connection;

/// At most one deadline for each connection; the connection knows it, too, so that it can be found
/// again. Only connections that the owner opens or closes, and those that wait for packets to be
/// read, have one, and only for moments.
#[derive(Debug, Default)]
pub(super) struct Timers(BTreeSet<(Instant, u32)>);

impl Timers {
    /// `None` is a time so far off that it never comes.
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

    /// A connection whose time has come by `now`.
    pub(super) fn due(&self, now: Instant) -> Option<u32> {
        let (at, index) = self.0.first()?;
        (*at <= now).then_some(*index)
    }
}
