//! Commands of the owner.

use std::time::{Duration, Instant};

use super::{Closed, EndNotice, Muxer};
use crate::connection::{Connection, Pending, Phase};
use crate::{Handle, Key, shutdown};

/// Why [`Muxer::connect`] failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// A connection with this key exists.
    #[error("a connection between these ports exists")]
    InUse,
    /// [`Config::max_connections`](super::Config::max_connections) is reached.
    #[error("the guest has reached its limit of connections")]
    TooMany,
}

impl Muxer {
    /// Connects to a port of the guest. The result is [`Event::Connected`](super::Event::Connected) or
    /// [`Event::Closed`](super::Event::Closed), within `timeout`. `alloc` is the size of the link's
    /// receive buffer in bytes.
    ///
    /// # Errors
    ///
    /// [`ConnectError::InUse`] if a connection with this `key` exists; [`ConnectError::TooMany`] if the
    /// guest has [`Config::max_connections`](super::Config::max_connections).
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
        self.schedule_control(handle.index, Pending::REQUEST);
        Ok(handle)
    }

    /// Accepts an [`Event::Request`](super::Event::Request). `alloc` is the size of the link's receive
    /// buffer in bytes.
    pub fn accept(&mut self, handle: Handle, alloc: u32) {
        if let Some(connection) = self.in_phase(handle, Phase::Requested) {
            connection.phase = Phase::Open;
            connection.incoming.set_alloc(alloc);
            connection.close_if_shut();
            let shut = connection.owner_shut;
            self.schedule_control(handle.index, Pending::RESPONSE);
            if shut != 0 {
                self.schedule_control(handle.index, Pending::SHUTDOWN);
            }
            self.reschedule(handle.index);
        }
    }

    /// Refuses an [`Event::Request`](super::Event::Request) with RST. No
    /// [`Event::Closed`](super::Event::Closed) follows.
    pub fn refuse(&mut self, handle: Handle) {
        if self.in_phase(handle, Phase::Requested).is_some() {
            self.end(handle.index, None, EndNotice::Reset);
        }
    }

    /// Reports that the link has data for the guest.
    pub fn readable(&mut self, handle: Handle) {
        if let Some(connection) = self.table.get_mut(handle) {
            connection.has_data = true;
            self.reschedule(handle.index);
        }
    }

    /// Reports that the link's reader has consumed `bytes`. Sends a credit update if one is due.
    #[doc(alias = "credit update")]
    pub fn freed(&mut self, handle: Handle, bytes: u32) {
        if let Some(connection) = self.table.get_mut(handle) {
            connection.incoming.freed(bytes);
            if connection.needs_credit_update() {
                self.schedule_control(handle.index, Pending::CREDIT_UPDATE);
            }
        }
    }

    /// Sends SHUTDOWN(send): the link sends no more data to the guest.
    #[doc(alias = "half-close")]
    #[doc(alias = "shutdown")]
    pub fn finish(&mut self, handle: Handle) {
        self.shut_down(handle, shutdown::SEND);
    }

    /// Sends SHUTDOWN(receive): data that the guest still sends is dropped.
    pub fn close_read(&mut self, handle: Handle) {
        self.shut_down(handle, shutdown::RECEIVE);
    }

    /// Closes both directions. Waits until the guest's program has read all data and the guest answers
    /// with RST, at most [`Config::close_timeout`](super::Config::close_timeout). The only event that
    /// follows is [`Event::Closed`](super::Event::Closed), at once if the connection is not accepted
    /// yet. After [`finish`](Self::finish) and [`close_read`](Self::close_read), which close it as well,
    /// this call only sets the timeout.
    pub fn close(&mut self, now: Instant, handle: Handle) {
        let Some(connection) = self.table.get_mut(handle) else {
            return;
        };
        match connection.phase {
            Phase::Requested | Phase::Connecting => {
                self.end(handle.index, Some(Closed::Clean), EndNotice::Reset);
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

    /// Resets a connection. Data in flight is lost and the handle becomes invalid. No event follows.
    pub fn reset(&mut self, handle: Handle) {
        if self.table.get(handle).is_some() {
            self.end(handle.index, None, EndNotice::Reset);
        }
    }

    /// Resets all connections: for a device that restarts while the guest keeps running.
    pub fn reset_all(&mut self) {
        for index in self.table.indices() {
            self.end(index, None, EndNotice::Reset);
        }
    }

    /// Ends all connections with [`Closed::GuestRestarted`], and sends nothing: for a guest whose driver
    /// was reset and has lost them.
    pub fn forget_all(&mut self) {
        self.replies.clear();
        for index in self.table.indices() {
            self.end(index, Some(Closed::GuestRestarted), EndNotice::None);
        }
    }

    /// Drops the RSTs to packets of connections that are gone: for a guest that has reset all of its
    /// established connections by itself, since the device has told it to (TRANSPORT_RESET). It may use
    /// their ports again by now. The answers to its REQUESTs stay.
    pub fn forget_strays(&mut self) {
        self.replies.retain(|reply| reply.refuses);
    }

    fn shut_down(&mut self, handle: Handle, directions: u32) {
        let Some(connection) = self.table.get_mut(handle) else {
            return;
        };
        let before = connection.owner_shut;
        connection.owner_shut |= directions as u8;
        if connection.owner_shut != before && connection.phase == Phase::Open {
            connection.close_if_shut();
            self.schedule_control(handle.index, Pending::SHUTDOWN);
            self.reschedule(handle.index);
        }
    }

    fn in_phase(&mut self, handle: Handle, phase: Phase) -> Option<&mut Connection> {
        self.table
            .get_mut(handle)
            .filter(|connection| connection.phase == phase)
    }
}
