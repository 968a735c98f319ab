//! A direct connection: both processes have one end of the same socket pair. The broker copies and counts
//! nothing. It has duplicates of both ends and uses them only to shut the connection down, and to look
//! whether bytes or an end are there.
//!
//! A duplicate keeps its end open, so the broker follows the control connections:
//!
//! - A process that finishes announces it before it shuts its end down. The broker passes the announcement
//!   on once it sees the end, or when the peer that has found the end asks.
//! - When control closes without an announcement, the process was killed: the peer gets the reason, and then
//!   the broker shuts the end down. With one, the broker only checks that no bytes are left unread.
//! - A program with the raw fd announces nothing, and its end of file is a clean end. Its peer asks the
//!   broker ([`SocketOption::ConfirmEnd`](hvsock_endpoint::SocketOption::ConfirmEnd)). When its control
//!   closes, the broker closes its duplicate of that end, which the program then ends by itself.

use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::time::Instant;

use hvsock_endpoint::BrokerMessage;
use hvsock_fabric::Refusal;
use hvsock_sys::poll::{self, PollFd, PollFlags};
use hvsock_sys::stream;

use super::turn::Turn;
use crate::data_path::{ControlConnection, ProcessSocket, peer_died, unread_data};

pub(super) mod snapshot;
#[cfg(test)]
mod tests;

/// One end of a direct connection.
pub(crate) struct DirectEnd {
    control: ControlConnection,
    /// A duplicate of its data descriptor, until its control has closed.
    data: Option<OwnedFd>,
    /// The process uses the data descriptor as a raw fd.
    raw_fd: bool,
    /// The peer has been told that the data of this end ends cleanly.
    is_passed_on: bool,
}

/// A direct connection.
pub(crate) struct Direct {
    /// The client's end, then the server's.
    ends: [DirectEnd; 2],
}

impl DirectEnd {
    /// The end of a process, with a duplicate of its data descriptor.
    pub(crate) fn new(control: impl Into<ProcessSocket>, data: OwnedFd, raw_fd: bool) -> Self {
        Self {
            control: ControlConnection::new(control),
            data: Some(data),
            raw_fd,
            is_passed_on: false,
        }
    }

    fn is_gone(&self) -> bool {
        self.control.closed && self.data.is_none()
    }

    /// Whether there are more messages, or its process is gone and nothing has been done about that.
    fn has_work(&self) -> bool {
        self.control.readable || (self.control.closed && self.data.is_some())
    }

    /// Whether the peer has ended its data.
    fn is_at_end(&self) -> bool {
        let Some(data) = &self.data else {
            return false;
        };
        let mut fds = [PollFd::new(data, PollFlags::RDHUP)];
        let ready = poll::wait(&mut fds, Some(Instant::now()));
        ready.is_ok_and(|ready| ready && fds[0].revents().intersects(ENDED))
    }
}

/// What `poll` reports of a socket whose peer has ended its data.
const ENDED: PollFlags = PollFlags::RDHUP.union(PollFlags::HUP);

impl Direct {
    pub(super) fn new(client: DirectEnd, server: DirectEnd) -> Self {
        Self {
            ends: [client, server],
        }
    }

    pub(super) fn control(&self, side: usize) -> &ControlConnection {
        &self.ends[side & 1].control
    }

    pub(super) fn control_mut(&mut self, side: usize) -> &mut ControlConnection {
        &mut self.ends[side & 1].control
    }

    /// Shuts both directions down. Either end suffices for that.
    pub(super) fn close(&self) {
        for data in self.ends.iter().filter_map(|end| end.data.as_ref()) {
            let _ = stream::shutdown(data, Shutdown::Both);
        }
    }

    /// Reads both control connections and acts on what they say.
    pub(super) fn turn(&mut self) -> Turn {
        match self.read() {
            Err(refusal) => Turn::Closed(Some(refusal)),
            Ok(()) if self.ends.iter().all(DirectEnd::is_gone) => Turn::Closed(None),
            Ok(()) if self.ends.iter().any(DirectEnd::has_work) => Turn::Again,
            Ok(()) => Turn::Waiting,
        }
    }

    fn read(&mut self) -> Result<(), Refusal> {
        for end in &mut self.ends {
            if end.control.readable {
                end.control.read()?;
            }
        }
        for side in 0..2 {
            if self.ends[side].control.closed && self.ends[side].data.is_some() {
                self.process_gone(side)?;
            } else if self.ends[side].control.announced && self.ends[1 - side].is_at_end() {
                // Not before the end itself: a process that closes may leave bytes unread. The peer that finds the
                // end without this asks.
                self.pass_end_on(side);
            }
        }
        for side in 0..2 {
            if self.ends[side].control.asked_for_end {
                self.answer(side)?;
            }
        }
        Ok(())
    }

    /// Tells the peer of `side` that the data of this side ends cleanly.
    fn pass_end_on(&mut self, side: usize) {
        if !self.ends[side].is_passed_on {
            self.ends[side].is_passed_on = true;
            self.ends[1 - side].control.send(&BrokerMessage::Shutdown);
        }
    }

    /// Closes the duplicate of an end whose control has closed. Fails if the peer must see a reset.
    fn process_gone(&mut self, side: usize) -> Result<(), Refusal> {
        let peer_is_there = !self.ends[1 - side].control.closed;
        let end = &mut self.ends[side];
        if !end.raw_fd {
            if !end.control.announced {
                return Err(peer_died());
            }
            if let Some(data) = &end.data {
                // Makes later writes of the peer fail, so none is missed below. The end that it finds comes after what
                // it means.
                let _ = stream::shutdown(data, Shutdown::Read);
                if peer_is_there && stream::unread(data).is_ok_and(|unread| unread > 0) {
                    return Err(unread_data());
                }
            }
            self.pass_end_on(side);
            if let Some(data) = &self.ends[side].data {
                let _ = stream::shutdown(data, Shutdown::Both);
            }
        }
        self.ends[side].data = None;
        Ok(())
    }

    /// Answers what the end of the data that a process has read means. Fails if it means a reset.
    fn answer(&mut self, side: usize) -> Result<(), Refusal> {
        let peer = 1 - side;
        let is_at_end = self.ends[side].is_at_end();
        // The announcement is in the queue before the end is seen, possibly behind other messages. Whether this turn has
        // been told that the queue is readable says nothing: the peer may have sent it since.
        self.ends[peer].control.read()?;
        if self.ends[peer].control.readable {
            return Ok(());
        }
        self.ends[side].control.asked_for_end = false;
        if is_at_end && self.ends[peer].control.announced {
            self.pass_end_on(peer);
            return Ok(());
        }
        if self.ends[peer].is_passed_on {
            // The first message may not have fitted.
            self.ends[side].control.send(&BrokerMessage::Shutdown);
            return Ok(());
        }
        if !is_at_end {
            return Ok(());
        }
        if !self.ends[peer].raw_fd {
            return Err(peer_died());
        }
        self.pass_end_on(peer);
        Ok(())
    }
}
