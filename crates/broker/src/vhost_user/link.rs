//! The peer of a guest's connection: a process on the host, over a ring or a socket, or a sibling
//! guest.
//!
//! A [`Peer`] copies bytes directly between the guest's memory and a ring or socket. Only a sibling
//! and a full socket need an intermediate buffer. No call blocks. Bytes from the guest always fit:
//! its credit never exceeds the free space.

use std::io::ErrorKind;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use hvsock_endpoint::BrokerMessage;
use hvsock_fabric::Refusal;
use hvsock_ring::{Interest, RingEnd, RingError};
use hvsock_sys::shared_memory::{self, SharedBytes};
use hvsock_sys::stream;
use hvsock_virtio::MessageEnd;

use super::sibling::{self, WriteError};
use crate::data_path::{ControlConnection, peer_died, unread_data};

/// The peer of one connection.
#[derive(Debug)]
pub(super) enum Peer {
    /// A ring; the process owns the other end.
    Ring(Box<Ring>),
    /// A socket; the process owns the other end.
    Socket(Socket),
    /// Another guest of this broker.
    Sibling(sibling::SiblingEnd),
}

/// One end of a ring.
#[derive(Debug)]
pub(super) struct Ring {
    end: RingEnd,
}

/// The broker's end of a socket pair.
#[derive(Debug)]
pub(super) struct Socket {
    data: OwnedFd,
    /// The process has a raw fd and sends no SHUTDOWN message: end of file is a clean end.
    raw_fd: bool,
    /// Bytes from the guest that the full socket did not accept, from `start` on.
    pending: Vec<u8>,
    start: usize,
    /// Bytes that the socket has accepted.
    consumed: u64,
    readable: bool,
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

/// The outcome of [`Peer::fill`].
#[derive(Debug)]
pub(super) enum FillOutcome {
    /// The count of bytes written to the guest's memory, which message end follows them, and
    /// whether there may be more.
    Bytes(usize, MessageEnd, bool),
    /// Nothing yet.
    Empty,
    /// End of file.
    Ended,
    /// The connection has failed.
    Failed(Refusal),
}

impl Peer {
    pub(super) fn ring(end: RingEnd) -> Self {
        Self::Ring(Box::new(Ring { end }))
    }

    pub(super) fn socket(data: OwnedFd, raw_fd: bool) -> Self {
        Self::Socket(Socket {
            data,
            raw_fd,
            pending: Vec::new(),
            start: 0,
            consumed: 0,
            readable: true,
            writable: true,
            finished: Finish::No,
            sink_closed: false,
        })
    }

    /// The descriptor to register with epoll.
    pub(super) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Ring(ring) => Some(ring.end.doorbell()),
            Self::Socket(socket) => Some(socket.data.as_fd()),
            Self::Sibling(_) => None,
        }
    }

    /// Records a readiness event of the descriptor.
    pub(super) fn ready(&mut self, event: &mio::event::Event) {
        match self {
            Self::Ring(ring) => ring.end.drain_notifications(),
            Self::Socket(socket) => {
                socket.readable |= event.is_readable() || event.is_read_closed();
                socket.writable |= event.is_writable() || event.is_write_closed();
                if event.is_error() {
                    (socket.readable, socket.writable) = (true, true);
                }
            }
            Self::Sibling(_) => {}
        }
    }

    /// Delivers `len` bytes from the guest, and the message end that follows them.
    pub(super) fn deliver(
        &mut self,
        chunks: &[SharedBytes<'_>],
        len: usize,
        end: MessageEnd,
    ) -> Result<(), WriteError> {
        match self {
            Self::Ring(ring) => ring.deliver(chunks, len),
            Self::Socket(socket) => socket.deliver(chunks),
            Self::Sibling(sibling) => sibling.write(chunks, end),
        }
    }

    /// Copies bytes for the guest into its memory, at least one if there are any.
    pub(super) fn fill(
        &mut self,
        chunks: &[SharedBytes<'_>],
        in_messages: bool,
        control: Option<&mut ControlConnection>,
    ) -> FillOutcome {
        match self {
            Self::Ring(ring) => ring.fill(chunks),
            Self::Socket(socket) => socket.fill(chunks, control),
            Self::Sibling(sibling) => match sibling.read(chunks, in_messages) {
                sibling::ReadOutcome::Bytes(count, end, more) => {
                    FillOutcome::Bytes(count, end, more)
                }
                sibling::ReadOutcome::Empty => FillOutcome::Empty,
                sibling::ReadOutcome::Ended => FillOutcome::Ended,
                sibling::ReadOutcome::Failed(refusal) => FillOutcome::Failed(refusal),
            },
        }
    }

    /// Whether [`Peer::fill`] may find data after it has returned [`FillOutcome::Empty`].
    pub(super) fn may_have_data(&self) -> bool {
        match self {
            Self::Ring(ring) => ring.end.is_readable(),
            Self::Socket(socket) => socket.readable,
            // A sibling notifies the thread's wake queue.
            Self::Sibling(_) => false,
        }
    }

    /// Requests a wakeup for when there is data for the guest. Returns `false` if there is already.
    pub(super) fn arm(&self) -> bool {
        match self {
            Self::Ring(ring) => ring.end.arm(Interest::READ),
            Self::Socket(socket) => !socket.readable,
            Self::Sibling(_) => true,
        }
    }

    /// The count of bytes from the guest that the peer has consumed, modulo 2^64.
    pub(super) fn consumed(&mut self) -> u64 {
        match self {
            // An invalid count is a protocol violation; it ends the connection elsewhere.
            Self::Ring(ring) => ring.end.read_by_peer().unwrap_or(0),
            Self::Socket(socket) => {
                socket.flush();
                socket.consumed
            }
            Self::Sibling(sibling) => sibling.read_by_peer(),
        }
    }

    /// Requests a wakeup for when `bytes` in all have been consumed; a ring's free space is then
    /// `free`. Returns `false` if they have been already.
    pub(super) fn arm_consumed(&self, bytes: u64, free: u64) -> bool {
        match self {
            Self::Ring(ring) => ring.end.arm_free_space(free),
            Self::Socket(socket) => !socket.pending.is_empty(),
            Self::Sibling(sibling) => sibling.arm_read_by_peer(bytes),
        }
    }

    /// Passes on the guest's half-close: it sends no more.
    pub(super) fn finish(&mut self, control: Option<&ControlConnection>) {
        match self {
            Self::Ring(ring) => ring.end.shutdown_write(),
            Self::Socket(socket) => {
                if socket.finished == Finish::No {
                    socket.finished = Finish::Wanted;
                }
                socket.flush();
                socket.send_shutdown(control);
            }
            Self::Sibling(sibling) => sibling.finish(),
        }
    }

    /// Writes pending bytes, and the pending half-close after them, once the socket is writable.
    pub(super) fn flush(&mut self, control: Option<&ControlConnection>) {
        if let Self::Socket(socket) = self {
            socket.flush();
            socket.send_shutdown(control);
        }
    }

    /// Whether no half-close is pending behind unwritten bytes.
    pub(super) fn is_flushed(&self) -> bool {
        match self {
            Self::Socket(socket) => socket.finished != Finish::Wanted,
            Self::Ring(_) | Self::Sibling(_) => true,
        }
    }

    /// Passes on that the guest reads no more.
    pub(super) fn close_read(&mut self) {
        match self {
            Self::Ring(ring) => ring.end.shutdown_read(),
            Self::Socket(socket) => {
                let _ = stream::shutdown(&socket.data, Shutdown::Read);
            }
            Self::Sibling(sibling) => sibling.close_read(),
        }
    }

    /// Returns true if the process closed without reading all of the guest's bytes. A socket shows
    /// only the bytes that it never accepted.
    pub(super) fn leaves_unread(&mut self, sent: u64) -> bool {
        match self {
            Self::Ring(_) => self.consumed() != sent,
            Self::Socket(socket) => !socket.pending.is_empty(),
            Self::Sibling(_) => false,
        }
    }

    /// Aborts the connection for the peer. A process has been sent the refusal before. A sibling
    /// reads what is buffered and then finds the refusal, or at once with `discard`.
    pub(super) fn abort(&mut self, refusal: &Refusal, discard: bool) {
        match self {
            Self::Ring(ring) => ring.end.reset(),
            Self::Socket(_) => {}
            Self::Sibling(sibling) => sibling.abort(refusal.clone(), discard),
        }
    }
}

impl Ring {
    fn deliver(&mut self, chunks: &[SharedBytes<'_>], len: usize) -> Result<(), WriteError> {
        if len == 0 {
            return Ok(());
        }
        let mut reserved = self
            .end
            .try_reserve(len)
            .map_err(|_| WriteError::ReadClosed)?;
        if reserved.len() < len {
            // Credit guarantees the space, so the process has violated the ring's protocol.
            return Err(WriteError::ReadClosed);
        }
        let mut at = 0;
        for chunk in chunks {
            reserved
                .put_shared(at, *chunk)
                .map_err(|_| WriteError::ReadClosed)?;
            at += chunk.len();
        }
        reserved.commit(len).map_err(|_| WriteError::ReadClosed)
    }

    fn fill(&mut self, chunks: &[SharedBytes<'_>]) -> FillOutcome {
        let filled = match self.end.try_fill() {
            Ok(filled) => filled,
            Err(RingError::WouldBlock) => return FillOutcome::Empty,
            Err(RingError::EndOfStream) => return FillOutcome::Ended,
            Err(stop) => return FillOutcome::Failed(refusal_of(stop)),
        };
        let (mut count, all) = (0, filled.len());
        for chunk in chunks {
            let wanted = chunk.len().min(all - count);
            if wanted == 0 || filled.get_shared(count, chunk.part(0, wanted)).is_err() {
                break;
            }
            count += wanted;
        }
        // Cannot fail: `count` is at most the borrowed length.
        let _ = filled.consume(count);
        FillOutcome::Bytes(count, MessageEnd::default(), count < all)
    }
}

fn refusal_of(stop: RingError) -> Refusal {
    match stop {
        RingError::PeerGone => peer_died(),
        RingError::UnreadData => unread_data(),
        other => Refusal::Reset {
            cause: other.to_string(),
        },
    }
}

impl Socket {
    fn deliver(&mut self, chunks: &[SharedBytes<'_>]) -> Result<(), WriteError> {
        if self.sink_closed {
            return Err(WriteError::ReadClosed);
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
            return Err(WriteError::ReadClosed);
        }
        Ok(())
    }

    /// Writes pending bytes until the socket is full.
    fn flush(&mut self) {
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

    fn send_shutdown(&mut self, control: Option<&ControlConnection>) {
        if self.finished == Finish::Wanted
            && self.pending.is_empty()
            && let Some(control) = control
        {
            control.send(&BrokerMessage::Shutdown);
            let _ = stream::shutdown(&self.data, Shutdown::Write);
            self.finished = Finish::Done;
        }
    }

    fn fill(
        &mut self,
        chunks: &[SharedBytes<'_>],
        control: Option<&mut ControlConnection>,
    ) -> FillOutcome {
        if !self.readable {
            return FillOutcome::Empty;
        }
        match shared_memory::recv(&self.data, chunks) {
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
