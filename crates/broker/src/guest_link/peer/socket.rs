//! A process behind a socket.

use std::io::ErrorKind;
use std::net::Shutdown;
use std::os::fd::OwnedFd;

use hvsock_endpoint::BrokerMessage;
use hvsock_sys::shared_memory::{self, SharedBytes};
use hvsock_sys::stream;

use crate::data_path::{ControlConnection, peer_died, unread_data};
use crate::guest_link::outcome::{DeliverError, FillOutcome, MessageEnd, Readiness};

/// The broker's end of a socket pair.
#[derive(Debug)]
pub(super) struct Socket {
    pub(super) data: OwnedFd,
    /// The process has a raw fd and sends no SHUTDOWN message: end of file is a clean end.
    raw_fd: bool,
    /// Bytes from the guest that the full socket did not accept, from `start` on.
    pub(super) pending: Vec<u8>,
    start: usize,
    /// Bytes that the socket has accepted.
    pub(super) consumed: u64,
    pub(super) readable: bool,
    writable: bool,
    /// The guest's half-close, passed on once `pending` is empty.
    finished: Finish,
    /// The process has closed its end.
    sink_closed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Finish {
    No,
    /// Once everything is written.
    Wanted,
    Done,
}

impl Socket {
    pub(super) fn new(data: OwnedFd, raw_fd: bool) -> Self {
        Self {
            data,
            raw_fd,
            pending: Vec::new(),
            start: 0,
            consumed: 0,
            readable: true,
            writable: true,
            finished: Finish::No,
            sink_closed: false,
        }
    }

    /// Records a readiness event of the descriptor.
    pub(super) fn ready(&mut self, readiness: Readiness) {
        self.readable |= readiness.readable;
        self.writable |= readiness.writable;
    }

    /// Whether a write would be accepted in part at least, or fail.
    pub(super) fn is_writable(&self) -> bool {
        self.sink_closed || self.writable && self.pending.is_empty()
    }

    /// Writes what the socket accepts.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<usize, DeliverError> {
        self.flush();
        let mut count = 0;
        if self.is_writable() && !self.sink_closed {
            count = self.send(|data| stream::send(data, bytes));
        }
        match self.sink_closed {
            true => Err(DeliverError::ReadClosed),
            false => Ok(count),
        }
    }

    pub(super) fn read(
        &mut self,
        buffer: &mut [u8],
        control: Option<&mut ControlConnection>,
    ) -> FillOutcome {
        self.receive(|data| stream::recv(data, buffer), control)
    }

    /// Passes on the guest's half-close.
    pub(super) fn finish(&mut self, control: Option<&ControlConnection>) {
        if self.finished == Finish::No {
            self.finished = Finish::Wanted;
        }
        self.flush();
        self.send_shutdown(control);
    }

    /// Whether no half-close is pending behind unwritten bytes.
    pub(super) fn is_flushed(&self) -> bool {
        self.finished != Finish::Wanted
    }

    /// Passes on that the guest reads no more.
    pub(super) fn close_read(&mut self) {
        let _ = stream::shutdown(&self.data, Shutdown::Read);
    }
    pub(super) fn deliver(&mut self, chunks: &[SharedBytes<'_>]) -> Result<(), DeliverError> {
        if self.sink_closed {
            return Err(DeliverError::ReadClosed);
        }
        let mut done = 0;
        if self.pending.is_empty() && self.writable {
            done = self.send(|data| shared_memory::send(data, chunks));
        }
        for chunk in chunks {
            let skip = done.min(chunk.len());
            done -= skip;
            let rest = chunk.part(skip, chunk.len());
            let at = self.pending.len();
            self.pending.resize(at + rest.len(), 0);
            rest.get(0, &mut self.pending[at..]);
        }
        if self.sink_closed {
            return Err(DeliverError::ReadClosed);
        }
        Ok(())
    }

    /// Writes pending bytes until the socket is full.
    pub(super) fn flush(&mut self) {
        while self.start < self.pending.len() && self.writable && !self.sink_closed {
            let pending = std::mem::take(&mut self.pending);
            let start = self.start;
            let consumed = self.send(|data| stream::send(data, &pending[start..]));
            self.pending = pending;
            self.start += consumed;
        }
        if self.start == self.pending.len() || self.sink_closed {
            // Free the buffer: most connections never need one.
            (self.pending, self.start) = (Vec::new(), 0);
        }
    }

    fn send(&mut self, call: impl FnOnce(&OwnedFd) -> std::io::Result<usize>) -> usize {
        match call(&self.data) {
            Ok(count) => {
                self.consumed += count as u64;
                count
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                self.writable = false;
                0
            }
            Err(_) => {
                self.sink_closed = true;
                0
            }
        }
    }

    pub(super) fn send_shutdown(&mut self, control: Option<&ControlConnection>) {
        if self.finished == Finish::Wanted
            && self.pending.is_empty()
            && let Some(control) = control
        {
            control.send(&BrokerMessage::Shutdown);
            let _ = stream::shutdown(&self.data, Shutdown::Write);
            self.finished = Finish::Done;
        }
    }

    pub(super) fn fill(
        &mut self,
        chunks: &[SharedBytes<'_>],
        control: Option<&mut ControlConnection>,
    ) -> FillOutcome {
        self.receive(|data| shared_memory::recv(data, chunks), control)
    }

    fn receive(
        &mut self,
        call: impl FnOnce(&OwnedFd) -> std::io::Result<usize>,
        control: Option<&mut ControlConnection>,
    ) -> FillOutcome {
        if !self.readable {
            return FillOutcome::Empty;
        }
        match call(&self.data) {
            Ok(0) => self.end_of_file(control),
            Ok(count) => FillOutcome::Bytes(count, MessageEnd::default(), true),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                self.readable = false;
                FillOutcome::Empty
            }
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {
                FillOutcome::Failed(unread_data())
            }
            Err(_) => FillOutcome::Failed(peer_died()),
        }
    }

    /// Handles end of file. The process sends SHUTDOWN before it shuts the socket down, so an end
    /// of file without one means that it died.
    fn end_of_file(&mut self, control: Option<&mut ControlConnection>) -> FillOutcome {
        if self.raw_fd {
            return FillOutcome::Ended;
        }
        let Some(control) = control else {
            return FillOutcome::Empty;
        };
        match control.read() {
            Err(refusal) => FillOutcome::Failed(refusal),
            Ok(()) if control.announced => FillOutcome::Ended,
            // The SHUTDOWN is behind more messages than one read handles: try again.
            Ok(()) if control.readable => FillOutcome::Bytes(0, MessageEnd::default(), true),
            Ok(()) => FillOutcome::Failed(peer_died()),
        }
    }
}
