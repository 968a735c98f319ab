//! What the owner wants of connections.

use std::time::{Duration, Instant};

use super::{Closed, Farewell, Handle, Key, Muxer};
use crate::connection::{Connection, Pending, Phase};
use crate::shutdown;

/// Why no connection to the guest can be begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// There is a connection between these ports.
    #[error("a connection between these ports exists")]
    InUse,
    /// [`Config::max_connections`](super::Config::max_connections) is reached.
    #[error("the guest has as many connections as it may have")]
    TooMany,
}

impl Muxer {
    /// Asks the guest for a connection: ends in [`Event::Connected`](super::Event::Connected) or
    /// [`Event::Closed`](super::Event::Closed), after `timeout` at most. The link has room for
    /// `alloc` bytes.
    pub fn connect(
        &mut self,
        now: Instant,
        key: Key,
        alloc: u32,
        timeout: Duration,
    ) -> Result<Handle, ConnectError> {
        if self.table.find(&key).is_some() {
            return Err(ConnectError::InUse);
        }
        if self.table.len() >= self.config.max_connections {
            return Err(ConnectError::TooMany);
        }
        let phase = Phase::Connecting;
        let handle = self.table.insert(key, phase, self.first_count, alloc);
        if let Some(connection) = self.table.at(handle.index) {
            let at = now.checked_add(timeout);
            self.timers.set(connection, handle.index, at);
        }
        self.owe(handle.index, Pending::REQUEST);
        Ok(handle)
    }

    /// Grants an [`Event::Request`](super::Event::Request). The link has room for `alloc` bytes.
    pub fn accept(&mut self, handle: Handle, alloc: u32) {
        if let Some(connection) = self.in_phase(handle, Phase::Requested) {
            connection.phase = Phase::Open;
            connection.incoming.set_alloc(alloc);
            connection.close_if_shut();
            let shut = connection.owner_shut;
            self.owe(handle.index, Pending::RESPONSE);
            if shut != 0 {
                self.owe(handle.index, Pending::SHUTDOWN);
            }
            self.reschedule(handle.index);
        }
    }

    /// Turns an [`Event::Request`](super::Event::Request) down; there is no event of its end.
    pub fn refuse(&mut self, handle: Handle) {
        if self.in_phase(handle, Phase::Requested).is_some() {
            self.end(handle.index, None, Farewell::Reset);
        }
    }

    /// The link has bytes for the guest.
    pub fn readable(&mut self, handle: Handle) {
        if let Some(connection) = self.table.get_mut(handle) {
            connection.has_data = true;
            self.reschedule(handle.index);
        }
    }

    /// The link's reader took so many bytes: there is room for as many again.
    pub fn freed(&mut self, handle: Handle, bytes: u32) {
        if let Some(connection) = self.table.get_mut(handle) {
            connection.incoming.freed(bytes);
            if connection.owes_credit() {
                self.owe(handle.index, Pending::CREDIT_UPDATE);
            }
        }
    }

    /// Nothing follows what was sent by now.
    pub fn finish(&mut self, handle: Handle) {
        self.shut_down(handle, shutdown::SEND);
    }

    /// Nobody reads what the guest sends from now on. What still comes is dropped.
    pub fn close_read(&mut self, handle: Handle) {
        self.shut_down(handle, shutdown::RECEIVE);
    }

    /// Both: waits for the guest to agree, which it does when its program has read everything, but
    /// at most [`Config::close_timeout`](super::Config::close_timeout). Ends in
    /// [`Event::Closed`](super::Event::Closed) and no other event, at once if nobody has accepted
    /// it yet. After [`finish`](Self::finish) and [`close_read`](Self::close_read), which come to
    /// the same, it sets the limit to the waiting.
    pub fn close(&mut self, now: Instant, handle: Handle) {
        let Some(connection) = self.table.get_mut(handle) else {
            return;
        };
        match connection.phase {
            Phase::Requested | Phase::Connecting => {
                self.end(handle.index, Some(Closed::Clean), Farewell::Reset);
            }
            Phase::Open | Phase::Closing => {
                if connection.deadline.is_none() {
                    let at = now.checked_add(self.config.close_timeout);
                    self.timers.set(connection, handle.index, at);
                }
                self.shut_down(handle, shutdown::BOTH);
            }
            Phase::Ended => {}
        }
    }

    /// Ends it at once, whatever is under way. Its handle means nothing any more; there is no
    /// event.
    pub fn reset(&mut self, handle: Handle) {
        if self.table.get(handle).is_some() {
            self.end(handle.index, None, Farewell::Reset);
        }
    }

    /// The same for all connections: for a device that begins anew with a guest that knows of
    /// them.
    pub fn reset_all(&mut self) {
        for index in self.table.indices() {
            self.end(index, None, Farewell::Reset);
        }
    }

    /// The guest's driver has begun anew, and knows of nothing: all connections are over, with
    /// [`Closed::GuestRestarted`], and nothing that waits is sent.
    pub fn forget_all(&mut self) {
        self.replies.clear();
        for index in self.table.indices() {
            self.end(index, Some(Closed::GuestRestarted), Farewell::None);
        }
    }

    fn shut_down(&mut self, handle: Handle, directions: u32) {
        let Some(connection) = self.table.get_mut(handle) else {
            return;
        };
        let before = connection.owner_shut;
        connection.owner_shut |= directions as u8;
        if connection.owner_shut != before && connection.phase == Phase::Open {
            connection.close_if_shut();
            self.owe(handle.index, Pending::SHUTDOWN);
            self.reschedule(handle.index);
        }
    }

    fn in_phase(&mut self, handle: Handle, phase: Phase) -> Option<&mut Connection> {
        self.table
            .get_mut(handle)
            .filter(|connection| connection.phase == phase)
    }
}
