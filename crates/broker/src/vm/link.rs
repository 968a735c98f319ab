//! Where a guest's connection leads: to a process on the host, over a ring or a descriptor, or to
//! a sibling guest.
//!
//! A [`Body`] moves bytes between that and the guest's memory, never blocking and, but for a
//! sibling or a descriptor that is full, with no copy in between. What comes from the guest always
//! fits: the guest has credit for no more than there is room.

use std::io::ErrorKind;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use hvsock_endpoint::BrokerMessage;
use hvsock_fabric::Refusal;
use hvsock_ring::{End, Interest, Stop};
use hvsock_sys::shared_memory::{self, SharedBytes};
use hvsock_sys::stream;
use hvsock_virtio::MessageEnd;

use super::sibling::{self, NotTaken};
use crate::pump::{Control, unread_data, went_away};

/// What moves a connection's bytes.
#[derive(Debug)]
pub(super) enum Body {
    /// The broker has one end of a ring, the process the other.
    Ring(Box<Ring>),
    /// A socket whose other end the process has.
    Socket(Socket),
    /// Another guest of this broker.
    Sibling(sibling::End),
}

/// One end of a ring.
#[derive(Debug)]
pub(super) struct Ring {
    end: End,
}

/// A descriptor, as of a connection that the broker pumps.
#[derive(Debug)]
pub(super) struct Socket {
    data: OwnedFd,
    /// The end of file is a clean end by itself.
    plain: bool,
    /// Bytes from the guest that the socket did not take, from `start`.
    pending: Vec<u8>,
    start: usize,
    /// Bytes that it took.
    taken: u64,
    readable: bool,
    writable: bool,
    /// The guest sends no more; the process is told when it has all.
    finished: Finish,
    /// The socket takes no more.
    sink_closed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Finish {
    No,
    /// When everything is written.
    Wanted,
    Done,
}

/// What there is for the guest.
#[derive(Debug)]
pub(super) enum Filled {
    /// So many bytes were put into the guest's memory, what ends with them, and whether there may
    /// be more.
    Bytes(usize, MessageEnd, bool),
    /// Nothing yet.
    Empty,
    /// Nothing any more.
    Ended,
    /// Nothing any more, and not for a good reason.
    Broken(Refusal),
}

impl Body {
    pub(super) fn ring(end: End) -> Self {
        Self::Ring(Box::new(Ring { end }))
    }

    pub(super) fn socket(data: OwnedFd, plain: bool) -> Self {
        Self::Socket(Socket {
            data,
            plain,
            pending: Vec::new(),
            start: 0,
            taken: 0,
            readable: true,
            writable: true,
            finished: Finish::No,
            sink_closed: false,
        })
    }

    /// The descriptor to watch, and for what.
    pub(super) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Ring(ring) => Some(ring.end.bell()),
            Self::Socket(socket) => Some(socket.data.as_fd()),
            Self::Sibling(_) => None,
        }
    }

    /// Notes that the descriptor may be ready.
    pub(super) fn ready(&mut self, event: &mio::event::Event) {
        match self {
            Self::Ring(ring) => ring.end.hear(),
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

    /// Takes bytes of the guest's.
    pub(super) fn deliver(
        &mut self,
        pieces: &[SharedBytes<'_>],
        len: usize,
        end: MessageEnd,
    ) -> Result<(), NotTaken> {
        match self {
            Self::Ring(ring) => ring.deliver(pieces, len),
            Self::Socket(socket) => socket.deliver(pieces),
            Self::Sibling(sibling) => sibling.write(pieces, end),
        }
    }

    /// Puts bytes for the guest into its memory, at least one if there are any.
    pub(super) fn fill(
        &mut self,
        pieces: &[SharedBytes<'_>],
        in_messages: bool,
        control: Option<&mut Control>,
    ) -> Filled {
        match self {
            Self::Ring(ring) => ring.fill(pieces),
            Self::Socket(socket) => socket.fill(pieces, control),
            Self::Sibling(sibling) => match sibling.read(pieces, in_messages) {
                sibling::Read::Bytes(count, end, more) => Filled::Bytes(count, end, more),
                sibling::Read::Empty => Filled::Empty,
                sibling::Read::Ended => Filled::Ended,
                sibling::Read::Broken(refusal) => Filled::Broken(refusal),
            },
        }
    }

    /// Whether [`Body::fill`] may find something; to be asked after it found nothing.
    pub(super) fn has_more(&self) -> bool {
        match self {
            Self::Ring(ring) => ring.end.is_readable(),
            Self::Socket(socket) => socket.readable,
            // It says so by itself.
            Self::Sibling(_) => false,
        }
    }

    /// Asks to be told when there is something for the guest; whether there is nothing yet.
    pub(super) fn arm(&self) -> bool {
        match self {
            Self::Ring(ring) => ring.end.arm(Interest::READ),
            Self::Socket(socket) => !socket.readable,
            Self::Sibling(_) => true,
        }
    }

    /// Bytes from the guest that the other end has taken so far, modulo 2^64.
    pub(super) fn taken(&mut self) -> u64 {
        match self {
            // One that says nonsense has ended its connection, as is seen elsewhere.
            Self::Ring(ring) => ring.end.read_by_peer().unwrap_or(0),
            Self::Socket(socket) => {
                socket.flush();
                socket.taken
            }
            Self::Sibling(sibling) => sibling.read_by_peer(),
        }
    }

    /// Asks to be told when `bytes` in all have been taken, of a ring with room for `room` more;
    /// whether they have not yet.
    pub(super) fn arm_taken(&self, bytes: u64, room: u64) -> bool {
        match self {
            Self::Ring(ring) => ring.end.arm_room(room),
            Self::Socket(socket) => !socket.pending.is_empty(),
            Self::Sibling(sibling) => sibling.ask_for_room(bytes),
        }
    }

    /// Says that the guest sends no more.
    pub(super) fn finish(&mut self, control: Option<&Control>) {
        match self {
            Self::Ring(ring) => ring.end.shutdown_write(),
            Self::Socket(socket) => {
                if socket.finished == Finish::No {
                    socket.finished = Finish::Wanted;
                }
                socket.flush();
                socket.tell_finish(control);
            }
            Self::Sibling(sibling) => sibling.finish(),
        }
    }

    /// Does what is left to do when the descriptor takes bytes again.
    pub(super) fn flush(&mut self, control: Option<&Control>) {
        if let Self::Socket(socket) = self {
            socket.flush();
            socket.tell_finish(control);
        }
    }

    /// Whether everything of the guest's has been handed on.
    pub(super) fn is_flushed(&self) -> bool {
        match self {
            Self::Socket(socket) => socket.finished != Finish::Wanted,
            Self::Ring(_) | Self::Sibling(_) => true,
        }
    }

    /// Says that the guest reads no more.
    pub(super) fn close_read(&mut self) {
        match self {
            Self::Ring(ring) => ring.end.shutdown_read(),
            Self::Socket(socket) => {
                let _ = stream::shutdown(&socket.data, Shutdown::Read);
            }
            Self::Sibling(sibling) => sibling.close_read(),
        }
    }

    /// Whether the process left something of the guest's unread when it closed, as far as that
    /// can be told.
    pub(super) fn leaves_unread(&mut self, sent: u64) -> bool {
        match self {
            Self::Ring(_) => self.taken() != sent,
            Self::Socket(socket) => !socket.pending.is_empty(),
            Self::Sibling(_) => false,
        }
    }

    /// Breaks the connection off for the other end, which has been told why if it is a process. A
    /// sibling reads what is there before it finds out, unless the connection is `cut`.
    pub(super) fn break_off(&mut self, refusal: &Refusal, cut: bool) {
        match self {
            Self::Ring(ring) => ring.end.cut(),
            Self::Socket(_) => {}
            Self::Sibling(sibling) => sibling.break_off(refusal.clone(), cut),
        }
    }
}

impl Ring {
    fn deliver(&mut self, pieces: &[SharedBytes<'_>], len: usize) -> Result<(), NotTaken> {
        if len == 0 {
            return Ok(());
        }
        let mut room = self
            .end
            .try_reserve(len)
            .map_err(|_| NotTaken::ReadsNoMore)?;
        if room.len() < len {
            // Only a process that breaks the ring's rules has less room than it had.
            return Err(NotTaken::ReadsNoMore);
        }
        let mut at = 0;
        for piece in pieces {
            room.put_shared(at, *piece)
                .map_err(|_| NotTaken::ReadsNoMore)?;
            at += piece.len();
        }
        room.commit(len).map_err(|_| NotTaken::ReadsNoMore)
    }

    fn fill(&mut self, pieces: &[SharedBytes<'_>]) -> Filled {
        let lent = match self.end.try_fill() {
            Ok(lent) => lent,
            Err(Stop::WouldBlock) => return Filled::Empty,
            Err(Stop::End) => return Filled::Ended,
            Err(stop) => return Filled::Broken(broken(stop)),
        };
        let (mut count, all) = (0, lent.len());
        for piece in pieces {
            let wanted = piece.len().min(all - count);
            if wanted == 0 || lent.get_shared(count, piece.part(0, wanted)).is_err() {
                break;
            }
            count += wanted;
        }
        // It is within what was lent.
        let _ = lent.consume(count);
        Filled::Bytes(count, MessageEnd::default(), count < all)
    }
}

fn broken(stop: Stop) -> Refusal {
    match stop {
        Stop::Gone => went_away(),
        Stop::Unread => unread_data(),
        other => Refusal::Reset {
            cause: other.to_string(),
        },
    }
}

impl Socket {
    fn deliver(&mut self, pieces: &[SharedBytes<'_>]) -> Result<(), NotTaken> {
        if self.sink_closed {
            return Err(NotTaken::ReadsNoMore);
        }
        let mut done = 0;
        if self.pending.is_empty() && self.writable {
            done = self.send(|data| shared_memory::send(data, pieces));
        }
        for piece in pieces {
            let skip = done.min(piece.len());
            done -= skip;
            let rest = piece.part(skip, piece.len());
            let at = self.pending.len();
            self.pending.resize(at + rest.len(), 0);
            rest.get(0, &mut self.pending[at..]);
        }
        if self.sink_closed {
            return Err(NotTaken::ReadsNoMore);
        }
        Ok(())
    }

    /// Writes what waits, as far as the socket takes it.
    fn flush(&mut self) {
        while self.start < self.pending.len() && self.writable && !self.sink_closed {
            let pending = std::mem::take(&mut self.pending);
            let start = self.start;
            let taken = self.send(|data| stream::send(data, &pending[start..]));
            self.pending = pending;
            self.start += taken;
        }
        if self.start == self.pending.len() || self.sink_closed {
            // Most connections never come to this; those that do once should not keep it.
            (self.pending, self.start) = (Vec::new(), 0);
        }
    }

    fn send(&mut self, call: impl FnOnce(&OwnedFd) -> std::io::Result<usize>) -> usize {
        match call(&self.data) {
            Ok(count) => {
                self.taken += count as u64;
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

    fn tell_finish(&mut self, control: Option<&Control>) {
        if self.finished == Finish::Wanted
            && self.pending.is_empty()
            && let Some(control) = control
        {
            control.tell(&BrokerMessage::Shutdown);
            let _ = stream::shutdown(&self.data, Shutdown::Write);
            self.finished = Finish::Done;
        }
    }

    fn fill(&mut self, pieces: &[SharedBytes<'_>], control: Option<&mut Control>) -> Filled {
        if !self.readable {
            return Filled::Empty;
        }
        match shared_memory::recv(&self.data, pieces) {
            Ok(0) => self.end_of_file(control),
            Ok(count) => Filled::Bytes(count, MessageEnd::default(), true),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                self.readable = false;
                Filled::Empty
            }
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {
                Filled::Broken(unread_data())
            }
            Err(_) => Filled::Broken(went_away()),
        }
    }

    /// Whether the process has announced the end, which it does before it shuts the descriptor.
    fn end_of_file(&mut self, control: Option<&mut Control>) -> Filled {
        if self.plain {
            return Filled::Ended;
        }
        let Some(control) = control else {
            return Filled::Empty;
        };
        match control.read() {
            Err(refusal) => Filled::Broken(refusal),
            Ok(()) if control.announced => Filled::Ended,
            // Much else was said before it.
            Ok(()) if control.readable => Filled::Bytes(0, MessageEnd::default(), true),
            Ok(()) => Filled::Broken(went_away()),
        }
    }
}
