//! The other end of a guest's connection: a process on the host, over a ring or a socket, or a
//! sibling guest.
//!
//! A [`Peer`] moves bytes between the guest's side of the link and a ring, socket or sibling,
//! without blocking. There are two pairs of functions. [`deliver`](Peer::deliver) and
//! [`fill`](Peer::fill) copy from and to memory that the guest shares, without a buffer between;
//! [`write`](Peer::write) and [`read`](Peer::read) use the link's own memory.

mod ring;
pub(crate) mod snapshot;
mod socket;

use std::os::fd::{BorrowedFd, OwnedFd};

use hvsock_endpoint::BrokerMessage;
use hvsock_fabric::Refusal;
use hvsock_ring::{Interest, RingEnd};
use hvsock_sys::shared_memory::SharedBytes;

use super::arena_slot::{ArenaSlot, SlotState};
use super::outcome::{ControlUpdate, DeliverError, FillOutcome, MessageEnd, Readiness};
use super::pipe::PipeEnd;
use crate::data_path::ControlConnection;
use crate::reply::refused;
use ring::{Ring, Run as RingRun};
use socket::Socket;

/// The other end of one connection.
///
/// The order of use: watch [`descriptor`](Self::descriptor), once
/// [established](crate::guest_link::GuestLink::establish) also
/// [`control_descriptor`](Self::control_descriptor), edge-triggered or not. On an event call
/// [`data_ready`](Self::data_ready) or [`control_ready`](Self::control_ready), then
/// [`read_control`](Self::read_control), and move bytes until neither direction continues. Before
/// waiting, request wakeups: [`arm`](Self::arm) for bytes of the peer,
/// [`arm_writable`](Self::arm_writable) for room. A sibling has no descriptor and wakes through
/// [`PipeEnd::attach`].
#[derive(Debug)]
pub struct Peer {
    end: End,
    /// The process's control connection. `None` for a sibling, and for a process until it has its
    /// end.
    control: Option<ControlConnection>,
}

#[derive(Debug)]
enum End {
    /// A ring; the process owns the other end.
    Ring(Box<Ring>),
    /// A socket; the process owns the other end.
    Socket(Socket),
    /// Another guest of this broker.
    Sibling(PipeEnd),
}

/// Several fills in a row, begun by [`Peer::fill_run`].
#[derive(Debug)]
pub struct FillRun<'a>(Run<'a>);

#[derive(Debug)]
enum Run<'a> {
    Ring(RingRun<'a>),
    Socket(&'a mut Socket, Option<&'a mut ControlConnection>),
    Sibling(&'a PipeEnd),
}

impl FillRun<'_> {
    /// As [`Peer::fill`].
    pub fn fill(&mut self, chunks: &[SharedBytes<'_>], in_messages: bool) -> FillOutcome {
        match &mut self.0 {
            Run::Ring(ring) => ring.fill(chunks),
            Run::Socket(socket, control) => socket.fill(chunks, control.as_deref_mut()),
            Run::Sibling(sibling) => sibling.fill(chunks, in_messages),
        }
    }
}

impl Peer {
    /// A process that owns the other end of a ring with this memory.
    pub(crate) fn ring(end: RingEnd, memory: OwnedFd) -> Self {
        Self::new(End::Ring(Box::new(Ring {
            end,
            slot: None,
            memory: Some(memory),
        })))
    }

    /// A process that owns the other end of a slot of an arena.
    pub(super) fn slot(end: RingEnd, slot: ArenaSlot) -> Self {
        Self::new(End::Ring(Box::new(Ring {
            end,
            slot: Some(slot),
            memory: None,
        })))
    }

    /// The slot of an arena, if the connection is in one. Its end has neither a descriptor nor a control
    /// connection of its own: the [arena](super::GuestArena) says when it is ready.
    fn arena_end(&self) -> Option<&RingEnd> {
        match &self.end {
            End::Ring(ring) => ring.slot.as_ref().map(|_| &ring.end),
            End::Socket(_) | End::Sibling(_) => None,
        }
    }

    /// Where the connection is in an arena, if it is in one.
    pub(crate) fn slot_state(&self) -> Option<SlotState> {
        match &self.end {
            End::Ring(ring) => ring.slot.as_ref().map(|slot| SlotState {
                slot: slot.id.slot,
                seq: slot.id.seq,
            }),
            End::Socket(_) | End::Sibling(_) => None,
        }
    }

    /// A process that owns the other end of a socket. With `raw_fd` it sends no SHUTDOWN message:
    /// end of file is a clean end.
    pub(crate) fn socket(data: OwnedFd, raw_fd: bool) -> Self {
        Self::new(End::Socket(Socket::new(data, raw_fd)))
    }

    /// A process that owns the other end of a socket and does not speak the endpoint protocol. It has no
    /// control connection ([`ControlConnection::none`]). Nothing is written to the socket before it is
    /// [established](Self::set_control): what the process reads first is an answer of the core.
    pub(crate) fn plain_socket(data: OwnedFd) -> Self {
        Self::new(End::Socket(Socket::plain(data)))
    }

    /// A process that brings its own socket, with its control connection
    /// ([`ControlConnection::of_attached`]). There is no descriptor before.
    pub(crate) fn attached_socket() -> Self {
        Self::new(End::Socket(Socket::attached()))
    }

    /// A sibling guest.
    pub(crate) fn sibling(end: PipeEnd) -> Self {
        Self::new(End::Sibling(end))
    }

    fn new(end: End) -> Self {
        Self { end, control: None }
    }

    /// The sibling's end, if the peer is a sibling.
    pub fn sibling_end(&self) -> Option<&PipeEnd> {
        match &self.end {
            End::Sibling(end) => Some(end),
            End::Ring(_) | End::Socket(_) => None,
        }
    }

    /// The descriptor of the data, which becomes readable and, with
    /// [`watches_writable`](Self::watches_writable), writable.
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        match &self.end {
            End::Ring(ring) if ring.slot.is_some() => None,
            End::Ring(ring) => Some(ring.end.doorbell()),
            End::Socket(socket) => socket.descriptor(),
            End::Sibling(_) => None,
        }
    }

    /// Whether the descriptor is to be watched for writability as well.
    pub fn watches_writable(&self) -> bool {
        matches!(self.end, End::Socket(_))
    }

    /// The descriptor of the control connection, which becomes readable.
    pub fn control_descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.control.as_ref()?.descriptor()
    }

    /// Sets the control connection of the process, which has its end now.
    pub fn set_control(&mut self, mut control: ControlConnection) {
        let attached = control.attached.take();
        self.control = Some(control);
        if let End::Socket(socket) = &mut self.end {
            socket.establish(attached);
        }
        self.flush();
    }

    /// Whether the other end is there: bytes may be moved to the guest.
    pub fn is_established(&self) -> bool {
        self.control.is_some() || matches!(self.end, End::Sibling(_)) || self.arena_end().is_some()
    }

    /// Records a readiness event of the descriptor.
    pub fn data_ready(&mut self, readiness: Readiness) {
        match &mut self.end {
            End::Ring(ring) => ring.end.drain_notifications(),
            End::Socket(socket) => socket.ready(readiness),
            End::Sibling(_) => {}
        }
    }

    /// Records that the control descriptor is readable.
    pub fn control_ready(&mut self) {
        if let Some(control) = &mut self.control {
            control.readable = true;
        }
    }

    /// Whether the control connection may have messages to read.
    pub fn has_control_messages(&self) -> bool {
        self.control
            .as_ref()
            .is_some_and(|control| control.readable)
    }

    /// Reads messages of the process, a bounded number per call. The second value is the refusal with
    /// which to reset the connection if the process violates the endpoint protocol.
    pub fn read_control(&mut self) -> (ControlUpdate, Result<(), Refusal>) {
        let Some(control) = self.control.as_mut().filter(|control| control.readable) else {
            return (ControlUpdate::default(), Ok(()));
        };
        let read = control.read();
        let update = ControlUpdate {
            more: control.readable,
            connected_suspend: control.option.take(),
        };
        (update, read)
    }

    /// Whether the process has closed its end, or the sibling receives no more.
    pub fn is_closed(&self) -> bool {
        match &self.end {
            End::Sibling(end) => end.poll_peer().closed,
            End::Ring(ring) if ring.slot.is_some() => ring.end.is_peer_closed(),
            End::Socket(socket) if socket.shows_close() => socket.is_over(),
            End::Ring(_) | End::Socket(_) => {
                self.control.as_ref().is_some_and(|control| control.closed)
            }
        }
    }

    /// Delivers `len` bytes of the guest's memory, and the message end that follows them. All are
    /// accepted, so the caller must have checked that the guest kept to its credit:
    /// [`LinkEnd::buffer`](crate::guest_link::LinkEnd::buffer) bytes that are not
    /// [`consumed`](Self::consumed).
    ///
    /// # Errors
    ///
    /// See [`DeliverError`].
    pub fn deliver(
        &mut self,
        chunks: &[SharedBytes<'_>],
        len: usize,
        end: MessageEnd,
    ) -> Result<(), DeliverError> {
        match &mut self.end {
            End::Ring(ring) => ring.deliver(chunks, len),
            End::Socket(socket) => socket.deliver(chunks),
            End::Sibling(sibling) => sibling.deliver(chunks, end),
        }
    }

    /// Copies bytes for the guest into its memory, at least one if there are any. With `in_messages`
    /// it stops at the next message end.
    pub fn fill(&mut self, chunks: &[SharedBytes<'_>], in_messages: bool) -> FillOutcome {
        self.fill_run().fill(chunks, in_messages)
    }

    /// Begins a run of [`fill`](Self::fill)s, which costs less than as many single ones. The process gets
    /// the space of the copied bytes at the latest when the run is dropped.
    pub fn fill_run(&mut self) -> FillRun<'_> {
        FillRun(match &mut self.end {
            End::Ring(ring) => Run::Ring(ring.run()),
            End::Socket(socket) => Run::Socket(socket, self.control.as_mut()),
            End::Sibling(sibling) => Run::Sibling(sibling),
        })
    }

    /// Writes bytes from the guest. Returns how many fit; 0 if the peer's buffer is full. The message
    /// end counts once all bytes fit.
    ///
    /// # Errors
    ///
    /// See [`DeliverError`].
    pub fn write(&mut self, bytes: &[u8], end: MessageEnd) -> Result<usize, DeliverError> {
        match &mut self.end {
            End::Ring(ring) => ring.write(bytes),
            End::Socket(socket) => socket.write(bytes),
            End::Sibling(sibling) => sibling.write(bytes, end),
        }
    }

    /// Reads bytes for the guest, at least one if there are any, as [`fill`](Self::fill).
    pub fn read(&mut self, buffer: &mut [u8], in_messages: bool) -> FillOutcome {
        match &mut self.end {
            End::Ring(ring) => ring.read(buffer),
            End::Socket(socket) => socket.read(buffer, self.control.as_mut()),
            End::Sibling(sibling) => sibling.read(buffer, in_messages),
        }
    }

    /// Whether [`fill`](Self::fill) or [`read`](Self::read) may find data after
    /// [`FillOutcome::Empty`].
    pub fn may_have_data(&self) -> bool {
        match &self.end {
            End::Ring(ring) => ring.end.is_readable(),
            End::Socket(socket) => socket.readable,
            // A sibling wakes the link.
            End::Sibling(_) => false,
        }
    }

    /// Requests a wakeup for when there is data for the guest. Returns `false` if there is already.
    pub fn arm(&self) -> bool {
        match &self.end {
            End::Ring(ring) => ring.end.arm(Interest::READ),
            End::Socket(socket) => !socket.readable,
            // A read that finds nothing has requested it.
            End::Sibling(_) => true,
        }
    }

    /// The count of bytes from the guest that the peer has consumed, modulo 2^64.
    pub fn consumed(&mut self) -> u64 {
        match &mut self.end {
            // An invalid count is a protocol violation; it ends the connection elsewhere.
            End::Ring(ring) => ring.end.read_by_peer().unwrap_or(0),
            End::Socket(socket) => {
                socket.flush();
                socket.consumed
            }
            End::Sibling(sibling) => sibling.read_by_peer(),
        }
    }

    /// Requests a wakeup for when `bytes` in all have been consumed; a ring's free space is then
    /// `free`. Returns `false` if they have been already.
    pub fn arm_consumed(&self, bytes: u64, free: u64) -> bool {
        match &self.end {
            End::Ring(ring) => ring.end.arm_free_space(free),
            End::Socket(socket) => !socket.pending.is_empty(),
            End::Sibling(sibling) => sibling.arm_read_by_peer(bytes),
        }
    }

    /// Requests a wakeup for when [`write`](Self::write) accepts bytes again. Returns `false` if it
    /// does already.
    pub fn arm_writable(&self) -> bool {
        match &self.end {
            End::Ring(ring) => ring.end.arm(Interest::WRITE),
            End::Socket(socket) => !socket.is_writable(),
            End::Sibling(sibling) => sibling.arm_writable(),
        }
    }

    /// Passes on the guest's half-close: it sends no more.
    pub fn finish(&mut self) {
        match &mut self.end {
            End::Ring(ring) => ring.end.shutdown_write(),
            End::Socket(socket) => socket.finish(self.control.as_ref()),
            End::Sibling(sibling) => sibling.finish(),
        }
    }

    /// Writes pending bytes, and the pending half-close after them, once the socket is writable.
    pub fn flush(&mut self) {
        if let End::Socket(socket) = &mut self.end {
            socket.flush();
            socket.send_shutdown(self.control.as_ref());
        }
    }

    /// Whether no half-close is pending behind unwritten bytes.
    pub fn is_flushed(&self) -> bool {
        match &self.end {
            End::Socket(socket) => socket.is_flushed(),
            End::Ring(_) | End::Sibling(_) => true,
        }
    }

    /// Requests or withdraws the notifications of a process in an [arena](super::GuestArena), which it sends
    /// as well when it closes its end. They are requested at first.
    pub fn set_signals(&self, on: bool) {
        if let Some(end) = self.arena_end() {
            end.set_signals(on);
        }
    }

    /// Passes on that the guest reads no more.
    pub fn close_read(&mut self) {
        match &mut self.end {
            End::Ring(ring) => ring.end.shutdown_read(),
            End::Socket(socket) => socket.close_read(),
            End::Sibling(sibling) => sibling.close_read(),
        }
    }

    /// Returns true if the process closed without reading all of the guest's `sent` bytes. A socket
    /// shows only the bytes that it never accepted.
    pub fn leaves_unread(&mut self, sent: u64) -> bool {
        match &self.end {
            End::Ring(_) => self.consumed() != sent,
            End::Socket(socket) => socket.leaves_unread(),
            End::Sibling(_) => false,
        }
    }

    /// Resets the connection for the peer, and sends it the refusal. A sibling reads what is buffered
    /// and then finds the refusal, or at once with `discard`.
    pub fn reset(&mut self, refusal: &Refusal, discard: bool) {
        if let Some(control) = &self.control {
            control.send(&BrokerMessage::Reset(refused(refusal)));
        }
        // After the message, so that a process that sees the abort finds the reason queued.
        match &mut self.end {
            End::Ring(ring) => ring.reset(refusal),
            End::Socket(_) => {}
            End::Sibling(sibling) => sibling.abort(refusal.clone(), discard),
        }
    }
}
