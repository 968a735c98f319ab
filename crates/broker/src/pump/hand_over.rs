//! A connection with a guest whose link handed its socket over: a process has the socket itself, and the
//! bytes pass without the broker.
//!
//! The broker has a duplicate of the socket. It uses that only to shut the connection down and to look for
//! an end or an error. It follows the control connection of the process:
//!
//! - A process that closes ends the connection: the broker shuts its duplicate down, so that the guest sees
//!   an end of the data even if the process was killed.
//! - The end of the guest's data is a clean end, unless the kernel has an error for it, as after the end
//!   of a VM. The process asks which it is
//!   ([`SocketOption::ConfirmEnd`](hvsock_endpoint::SocketOption::ConfirmEnd)).
//! - A program with the raw fd may close its control early and go on. Then the broker closes its duplicate,
//!   and the program ends the connection by itself.

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

/// A connection between a process and a guest, in which the process has the guest's socket.
pub(crate) struct HandOver {
    control: ControlConnection,
    /// A duplicate of the process's socket.
    socket: OwnedFd,
    /// The process uses the socket as a raw fd.
    raw_fd: bool,
    /// Which side the process is: 0 if it connected, 1 if it accepted.
    side: usize,
}

/// What `poll` reports of a socket whose peer has ended its data.
const ENDED: PollFlags = PollFlags::RDHUP.union(PollFlags::HUP);

impl HandOver {
    /// The connection of a process that has the socket, of which `socket` is a duplicate. `side` is 0 if the
    /// process connected to the guest, and 1 if the guest connected to it.
    pub(super) fn new(
        control: impl Into<ProcessSocket>,
        socket: OwnedFd,
        raw_fd: bool,
        side: usize,
    ) -> Self {
        Self {
            control: ControlConnection::new(control),
            socket,
            raw_fd,
            side: side & 1,
        }
    }

    /// The side of the guest.
    pub(super) fn guest_side(&self) -> usize {
        1 - self.side
    }

    /// The duplicate of the socket, to be watched for errors.
    pub(super) fn socket(&self) -> &OwnedFd {
        &self.socket
    }

    pub(super) fn control(&self, side: usize) -> Option<&ControlConnection> {
        (side == self.side).then_some(&self.control)
    }

    pub(super) fn control_mut(&mut self, side: usize) -> Option<&mut ControlConnection> {
        (side == self.side).then_some(&mut self.control)
    }

    /// Shuts both directions down, for the process and for the guest.
    pub(super) fn close(&self) {
        // It fails only if the connection has ended already.
        let _ = stream::shutdown(&self.socket, Shutdown::Both);
    }

    /// Reads the control connection and looks for an error of the socket.
    pub(super) fn turn(&mut self) -> Turn {
        match self.read() {
            Err(refusal) => Turn::Closed(Some(refusal)),
            Ok(()) if self.control.closed => Turn::Closed(None),
            Ok(()) if self.control.readable => Turn::Again,
            Ok(()) => Turn::Waiting,
        }
    }

    fn read(&mut self) -> Result<(), Refusal> {
        if self.control.readable {
            self.control.read()?;
        }
        if self.control.closed {
            return self.process_gone();
        }
        self.check()?;
        // An answer that overtakes an announcement of the process changes nothing: it is about the guest.
        if std::mem::take(&mut self.control.asked_for_end) && self.is_at_end() {
            self.control.send(&BrokerMessage::Shutdown);
        }
        Ok(())
    }

    /// Fails if the kernel has reset the connection. It tells each error once, to whoever asks first.
    fn check(&self) -> Result<(), Refusal> {
        match hvsock_sys::take_error(&self.socket) {
            Ok(None) => Ok(()),
            Ok(Some(error)) | Err(error) => Err(Refusal::Reset {
                cause: format!(
                    "the virtual machine has ended, or has reset the connection ({error})"
                ),
            }),
        }
    }

    /// Ends the connection of a process that has closed its control connection.
    fn process_gone(&self) -> Result<(), Refusal> {
        if self.raw_fd {
            return Ok(());
        }
        let unread = stream::unread(&self.socket).is_ok_and(|unread| unread > 0);
        self.close();
        match (self.control.announced, unread) {
            (false, _) => Err(peer_died()),
            (true, true) => Err(unread_data()),
            (true, false) => Ok(()),
        }
    }

    /// Whether the guest has ended its data.
    fn is_at_end(&self) -> bool {
        let mut fds = [PollFd::new(&self.socket, PollFlags::RDHUP)];
        let ready = poll::wait(&mut fds, Some(Instant::now()));
        ready.is_ok_and(|ready| ready && fds[0].revents().intersects(ENDED))
    }
}
