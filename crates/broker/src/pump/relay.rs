//! A relayed connection: the broker copies bytes between two data descriptors without blocking.
//!
//! Each end has a data descriptor (one end of a Unix stream socket pair) and a control descriptor. On
//! the latter its process announces the end of its data, and receives its peer's announcement. A
//! flow is one direction. Bytes read from its source are written to its sink at once. Bytes that the
//! sink does not accept are buffered in the flow, and nothing more is read until the buffer is
//! drained (backpressure).
//!
//! A flow that moves much is spliced: the kernel passes the bytes on by reference, through a pipe that all
//! connections of a set share and that is empty between two turns. Small amounts are copied, which takes
//! fewer system calls.
//!
//! End of file on a data descriptor does not show whether the process finished or was killed. A
//! process that finishes announces it before it shuts down the descriptor (half-close). Without the
//! announcement, the peer receives all bytes and then an error, never a clean end.
//!
//! One end may be the socket of a guest's link, without a control connection ([`RelayEnd::of_guest`]), and
//! one that of a process that does not speak the endpoint protocol ([`RelayEnd::plain`]).

#[cfg(test)]
mod closing_tests;
pub(super) mod snapshot;
#[cfg(test)]
mod tests;

use std::io::{self, ErrorKind};
use std::net::Shutdown;
use std::os::fd::OwnedFd;

use hvsock_endpoint::BrokerMessage;
use hvsock_fabric::Refusal;
use hvsock_sys::splice::SplicePipe;
use hvsock_sys::stream;

use super::buffers::Buffers;
use super::turn::Turn;
use crate::data_path::{ByteCounters, ControlConnection, ProcessSocket, peer_died, unread_data};

/// Most bytes copied in one direction per turn, for fairness.
const BYTES_PER_TURN: usize = 256 * 1024;
/// A flow that moves this many bytes in one turn is spliced from then on. It is the size of a read, so one
/// full read suffices.
const SPLICE_FROM: usize = 64 * 1024;
/// A spliced flow that moves fewer bytes in one turn is copied again.
const COPY_BELOW: usize = 16 * 1024;
/// Bytes in flight from one process or the broker to the other, as far as the system allows
/// (`net.core.wmem_max`): with the system's default the ends and the broker take turns more often than they
/// move data.
pub(crate) const SEND_BUFFER: usize = 512 * 1024;

/// One end of a relayed connection.
pub(crate) struct RelayEnd {
    /// The process's control connection. `None` for a guest's socket, and for a process that does not speak
    /// the endpoint protocol.
    pub(super) control: Option<ControlConnection>,
    pub(super) data: OwnedFd,
    /// The process uses the data descriptor as a raw fd: its end of file is a clean end without an
    /// announcement.
    raw_fd: bool,
    /// It is the end of a process, and not a socket of a guest's link.
    is_process: bool,
    /// The end of data is passed on to it while it may still send.
    half_close: bool,
    /// A read may return data; cleared when it would block.
    readable: bool,
    /// A write may accept data; cleared when it would block.
    writable: bool,
    /// The data descriptor's peer is fully closed (`EPOLLHUP`).
    hung_up: bool,
    /// The set watches the data descriptor for writability.
    pub(super) watches_writable: bool,
    /// The size of the data descriptor's send buffer, once a flow to it is spliced.
    send_buffer: Option<usize>,
}

/// One direction.
#[derive(Default)]
struct Flow {
    /// Bytes that the sink has not accepted, from `start` on.
    pending: Vec<u8>,
    start: usize,
    source: Source,
    /// The sink accepts no more bytes.
    sink_closed: bool,
    /// It moves enough to be spliced.
    is_bulk: bool,
    /// Bytes were discarded because the sink is closed.
    lost: bool,
    /// Its process closed the sink while they were on their way, and had not only stopped reading before.
    unread: bool,
    /// The end of data has been signalled to the sink.
    finished: bool,
}

/// The state of a flow's source.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Source {
    #[default]
    Open,
    /// It ended cleanly.
    Ended,
    /// It ended without an announcement.
    Broken,
}

/// What one read of a source came to.
enum Received {
    /// This many bytes are on their way: written, or buffered.
    Bytes(usize),
    /// There is no data.
    Nothing,
    /// The sink has too little free space.
    SinkFull,
    /// The system does not splice between such sockets.
    NotSpliced,
    /// End of file.
    End,
    /// The source failed.
    Failed,
}

/// A relayed connection.
pub(crate) struct Relay {
    /// The client's end, then the server's.
    ends: [RelayEnd; 2],
    /// From client to server, then back.
    flows: [Flow; 2],
    suspended: bool,
}

impl RelayEnd {
    /// The end of a process.
    pub(crate) fn new(control: impl Into<ProcessSocket>, data: OwnedFd, raw_fd: bool) -> Self {
        Self {
            control: Some(ControlConnection::new(control)),
            raw_fd,
            is_process: true,
            ..Self::of_guest(data, true)
        }
    }

    /// The end of a process that has connected its own socket. Its end of file is a clean end.
    pub(crate) fn attached(control: impl Into<ProcessSocket>, data: OwnedFd) -> Self {
        Self::new(control, data, true)
    }

    /// The end of a process that does not speak the endpoint protocol. Its end of file is a clean end.
    pub(crate) fn plain(data: OwnedFd) -> Self {
        Self {
            is_process: true,
            ..Self::of_guest(data, true)
        }
    }

    /// The end of a guest, whose link handed out the stream socket `data`. Its end of file is a clean
    /// end. Without `half_close` it learns of the end of the process's data when the process closes.
    pub(crate) fn of_guest(data: OwnedFd, half_close: bool) -> Self {
        Self {
            control: None,
            data,
            raw_fd: true,
            is_process: false,
            half_close,
            // Registering the descriptor in epoll reports data that is already there.
            readable: false,
            writable: true,
            hung_up: false,
            watches_writable: false,
            send_buffer: None,
        }
    }

    /// Whether the process has closed its end, as its control connection shows. That of a raw fd shows nothing,
    /// since it may be closed early.
    fn is_closed(&self) -> bool {
        !self.raw_fd && self.control.as_ref().is_some_and(|control| control.closed)
    }

    /// Whether the process has closed its end, by what shows it: control, or the socket of a raw fd.
    fn is_gone(&self) -> bool {
        self.is_closed() || self.raw_fd && stream::is_hung_up(&self.data)
    }

    /// Whether there may be messages of the process to read.
    fn has_messages(&self) -> bool {
        self.control
            .as_ref()
            .is_some_and(|control| control.readable)
    }

    /// The free space of the send buffer in bytes, if it is worth a write. The first call enlarges the
    /// buffer of a process; a guest's link has its own bounds.
    fn free_space(&mut self) -> io::Result<Option<usize>> {
        let size = match self.send_buffer {
            Some(size) => size,
            None => {
                if self.is_process {
                    // Refused beyond the system's limit, which then applies.
                    let _ = stream::set_send_buffer(&self.data, SEND_BUFFER);
                }
                *self.send_buffer.insert(stream::send_buffer(&self.data)?)
            }
        };
        let free = size.saturating_sub(stream::send_buffer_used(&self.data)?);
        // The kernel reports a buffer as writable when three quarters are free. Until then, a buffer with
        // less free space than this is left to drain.
        Ok((free >= size / 4).then_some(free))
    }

    /// Whether the last write found the send buffer full.
    pub(super) fn is_full(&self) -> bool {
        !self.writable
    }
}

impl Relay {
    pub(super) fn new(client: RelayEnd, server: RelayEnd) -> Self {
        Self {
            ends: [client, server],
            flows: Default::default(),
            suspended: false,
        }
    }

    pub(super) fn ends(&self) -> &[RelayEnd; 2] {
        &self.ends
    }

    pub(super) fn ends_mut(&mut self) -> &mut [RelayEnd; 2] {
        &mut self.ends
    }

    /// Records the readiness of a side's data descriptor.
    pub(super) fn data_ready(&mut self, side: usize, event: &mio::event::Event) {
        let end = &mut self.ends[side & 1];
        end.readable |= event.is_readable() || event.is_read_closed() || event.is_error();
        end.writable |= event.is_writable() || event.is_write_closed() || event.is_error();
        end.hung_up |= event.is_read_closed() && event.is_write_closed();
    }

    /// Suspends or resumes the data transfer.
    pub(super) fn suspend(&mut self, suspended: bool) {
        self.suspended = suspended;
    }

    /// Whether it may make progress without another event.
    pub(super) fn has_work(&self) -> bool {
        let has_event = |end: &RelayEnd| end.readable || end.hung_up || end.is_closed();
        self.buffered() > 0 || self.ends.iter().any(has_event)
    }

    /// Memory of both flow buffers in bytes.
    pub(super) fn buffered(&self) -> usize {
        self.flows.iter().map(|flow| flow.pending.capacity()).sum()
    }

    /// Reads a side's control connection. Fails on a protocol violation.
    fn read_control(&mut self, side: usize) -> Result<(), Refusal> {
        let index = side & 1;
        if let Some(control) = &mut self.ends[index].control {
            control.read()?;
        }
        Ok(())
    }

    /// Moves at most [`BYTES_PER_TURN`] bytes each way.
    pub(super) fn turn(&mut self, buffers: &mut Buffers, counters: &ByteCounters) -> Turn {
        for side in 0..2 {
            if self.ends[side].has_messages()
                && let Err(refusal) = self.read_control(side)
            {
                return Turn::Closed(Some(refusal));
            }
        }
        let mut again = self.ends.iter().any(RelayEnd::has_messages);
        if self.suspended {
            return if again { Turn::Again } else { Turn::Waiting };
        }
        for direction in 0..2 {
            match self.move_bytes(direction, buffers, counters) {
                Ok(more) => again |= more,
                Err(refusal) => return Turn::Closed(Some(refusal)),
            }
        }
        // What a process has written before it closed arrives first, as far as its peer takes it.
        if !again && (0..2).any(|side| self.has_left_unread(side)) {
            return Turn::Closed(Some(unread_data()));
        }
        if self.flows.iter().all(|flow| flow.finished) || self.is_abandoned() {
            return Turn::Closed(None);
        }
        if again { Turn::Again } else { Turn::Waiting }
    }

    /// Whether a process has closed its end, and its peer cannot be told in any other way than by the
    /// close of the connection, after all data.
    fn is_abandoned(&self) -> bool {
        (0..2).any(|direction| {
            let (source, sink) = (&self.ends[direction], &self.ends[1 - direction]);
            let flow = &self.flows[direction];
            let is_written = flow.source == Source::Ended && flow.pending.is_empty();
            !sink.half_close && is_written && (source.is_closed() || source.hung_up)
        })
    }

    /// Whether a process has closed its end with bytes unread, as is known by now.
    fn has_left_unread(&self, side: usize) -> bool {
        let to_it = &self.flows[1 - side];
        // Of one that stopped reading before, the end of its data is clean all the same.
        to_it.unread || to_it.lost && self.flows[side].finished && self.ends[side].is_gone()
    }

    /// Whether a process has closed its end while bytes for it are on their way. The kernel tells only of those that
    /// had arrived.
    fn leaves_unread(&self, side: usize) -> bool {
        let (to_it, peer) = (&self.flows[1 - side], &self.ends[1 - side]);
        let is_on_its_way = || {
            let may_come = !to_it.finished && !to_it.sink_closed;
            may_come && (!to_it.pending.is_empty() || stream::has_unread(&peer.data))
        };
        to_it.unread || is_on_its_way() && stream::is_hung_up(&self.ends[side].data)
    }

    /// Runs one direction's turn. Returns whether there is more to move.
    fn move_bytes(
        &mut self,
        direction: usize,
        buffers: &mut Buffers,
        counters: &ByteCounters,
    ) -> Result<bool, Refusal> {
        let mut moved = 0;
        loop {
            if !self.drain_pending(direction, counters)? {
                return Ok(false);
            }
            let [from, to] = &mut self.ends;
            let (source, sink) = if direction == 0 {
                (from, to)
            } else {
                (to, from)
            };
            let flow = &mut self.flows[direction];
            if flow.finished {
                return Ok(false);
            }
            if flow.sink_closed {
                // Nothing reads the flow any more. It finishes when the source closes.
                if source.hung_up || source.is_closed() {
                    flow.finished = true;
                }
                return Ok(false);
            }
            match flow.source {
                Source::Open => {}
                // The end of data is passed on with the close of the connection.
                Source::Ended if !sink.half_close => return Ok(false),
                Source::Ended => {
                    // A process that closes with bytes unread has no clean end.
                    if self.leaves_unread(direction) {
                        return Err(unread_data());
                    }
                    let (sink, flow) = (&self.ends[1 - direction], &mut self.flows[direction]);
                    if let Some(control) = &sink.control {
                        control.send(&BrokerMessage::Shutdown);
                    }
                    let _ = stream::shutdown(&sink.data, Shutdown::Write);
                    flow.finished = true;
                    return Ok(false);
                }
                Source::Broken => return Err(peer_died()),
            }
            // What the source has written is left there: where a socket is closed with bytes unread, the kernel tells its
            // peer, who may have no control connection.
            if sink.hung_up && (!source.readable || stream::has_unread(&source.data)) {
                self.sink_hung_up(direction);
                return Ok(true);
            }
            if !source.readable || !sink.writable {
                return Ok(false);
            }
            if moved >= BYTES_PER_TURN {
                return Ok(true);
            }
            let most = BYTES_PER_TURN - moved;
            let received = match (flow.is_bulk, buffers.pipe()) {
                (true, Some(_)) => self.splice(direction, most, buffers, counters)?,
                _ => self.copy(direction, buffers.scratch(), counters)?,
            };
            let flow = &mut self.flows[direction];
            match received {
                Received::Bytes(count) => {
                    moved += count;
                    flow.is_bulk |= moved >= SPLICE_FROM;
                }
                Received::Nothing => {
                    flow.is_bulk &= moved >= COPY_BELOW;
                    self.ends[direction].readable = false;
                }
                Received::SinkFull => self.ends[1 - direction].writable = false,
                Received::NotSpliced => buffers.stop_splicing(),
                Received::End => {
                    if !self.source_ended(direction)? {
                        return Ok(true);
                    }
                }
                Received::Failed => flow.source = Source::Broken,
            }
        }
    }

    /// Copies what one read of the source returns.
    fn copy(
        &mut self,
        direction: usize,
        scratch: &mut [u8],
        counters: &ByteCounters,
    ) -> Result<Received, Refusal> {
        match stream::recv(&self.ends[direction].data, scratch) {
            Ok(0) => Ok(Received::End),
            Ok(length) => {
                self.deliver(direction, &scratch[..length], counters)?;
                Ok(Received::Bytes(length))
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(Received::Nothing),
            // The process closed its end with unread bytes in its receive buffer.
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Err(unread_data()),
            Err(_) => Ok(Received::Failed),
        }
    }

    /// Splices at most `most` bytes, and no more than the sink has free space for: what it does not accept
    /// has to be copied out of the pipe. The pipe is empty before and after.
    fn splice(
        &mut self,
        direction: usize,
        most: usize,
        buffers: &mut Buffers,
        counters: &ByteCounters,
    ) -> Result<Received, Refusal> {
        let free = match self.ends[1 - direction].free_space() {
            Ok(Some(free)) => free,
            Ok(None) => return Ok(Received::SinkFull),
            Err(_) => return Ok(Received::NotSpliced),
        };
        let Some(pipe) = buffers.pipe() else {
            return Ok(Received::NotSpliced);
        };
        let most = most.min(free).min(pipe.capacity());
        match pipe.fill(&self.ends[direction].data, most) {
            Ok(0) => return Ok(Received::End),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Received::Nothing),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return Err(unread_data()),
            Err(_) => return Ok(Received::NotSpliced),
        }
        let filled = pipe.held();
        let result = self.drain_pipe(direction, pipe, counters);
        if pipe.held() > 0 {
            // Of a flow that is over. Nothing may reach the next one.
            buffers.discard_pipe();
        }
        if !result? {
            buffers.stop_splicing();
        }
        Ok(Received::Bytes(filled))
    }

    /// Moves the bytes in the pipe to a flow's sink, and those that it does not accept to the flow's buffer.
    /// Returns whether the system splices to it.
    fn drain_pipe(
        &mut self,
        direction: usize,
        pipe: &mut SplicePipe,
        counters: &ByteCounters,
    ) -> Result<bool, Refusal> {
        let sink = &mut self.ends[1 - direction];
        let mut splices = true;
        while pipe.held() > 0 {
            let error = match pipe.drain_to(&sink.data) {
                Ok(count) if count > 0 => {
                    counters.add(direction, count);
                    continue;
                }
                Ok(_) => ErrorKind::WouldBlock,
                Err(error) => error.kind(),
            };
            if error == ErrorKind::BrokenPipe {
                self.flows[direction].lost = true;
                return self.sink_closed(direction).map(|()| true);
            }
            match error {
                ErrorKind::WouldBlock => sink.writable = false,
                _ => splices = false,
            }
            let pending = &mut self.flows[direction].pending;
            if pipe.take(pending).is_err() {
                let cause = "the broker lost data in a pipe of its own".into();
                return Err(Refusal::Reset { cause });
            }
        }
        Ok(splices)
    }

    /// Classifies a source's end of file as clean or broken; `false` if that is not known yet.
    fn source_ended(&mut self, direction: usize) -> Result<bool, Refusal> {
        // The process sent its announcement before it shut the descriptor down, so it is in the
        // control socket by now, possibly behind other messages.
        self.read_control(direction)?;
        let source = &self.ends[direction];
        let announced = source.control.as_ref();
        let clean = source.raw_fd || announced.is_some_and(|control| control.announced);
        if !clean && source.has_messages() {
            return Ok(false);
        }
        self.flows[direction].source = if clean { Source::Ended } else { Source::Broken };
        Ok(true)
    }

    /// Writes bytes from the source. Buffers those that the sink does not accept.
    fn deliver(
        &mut self,
        direction: usize,
        bytes: &[u8],
        counters: &ByteCounters,
    ) -> Result<(), Refusal> {
        let accepted = self.write(direction, bytes, counters)?;
        let flow = &mut self.flows[direction];
        if flow.sink_closed {
            flow.lost |= accepted < bytes.len();
        } else if accepted < bytes.len() {
            flow.pending.extend_from_slice(&bytes[accepted..]);
        }
        Ok(())
    }

    /// Writes the buffered bytes. Returns whether the buffer is empty.
    fn drain_pending(
        &mut self,
        direction: usize,
        counters: &ByteCounters,
    ) -> Result<bool, Refusal> {
        if self.flows[direction].pending.is_empty() {
            return Ok(true);
        }
        if !self.ends[1 - direction].writable {
            return Ok(false);
        }
        let pending = std::mem::take(&mut self.flows[direction].pending);
        let start = self.flows[direction].start;
        let accepted = self.write(direction, &pending[start..], counters)?;
        let flow = &mut self.flows[direction];
        if flow.sink_closed {
            flow.lost = true;
            flow.start = 0;
        } else if start + accepted < pending.len() {
            flow.pending = pending;
            flow.start = start + accepted;
            return Ok(false);
        } else {
            flow.start = 0;
        }
        Ok(true)
    }

    /// Writes to a flow's sink until it would block. Returns the number of bytes accepted.
    fn write(
        &mut self,
        direction: usize,
        bytes: &[u8],
        counters: &ByteCounters,
    ) -> Result<usize, Refusal> {
        let sink = &mut self.ends[1 - direction];
        let mut accepted = 0;
        while accepted < bytes.len() {
            match stream::send(&sink.data, &bytes[accepted..]) {
                Ok(count) => accepted += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    sink.writable = false;
                    break;
                }
                Err(_) => {
                    counters.add(direction, accepted);
                    return self.sink_closed(direction).map(|()| accepted);
                }
            }
        }
        counters.add(direction, accepted);
        Ok(accepted)
    }

    /// Handles a sink that accepts no more bytes. Its process has closed it, or only shut down its
    /// reading half.
    fn sink_closed(&mut self, direction: usize) -> Result<(), Refusal> {
        let sink = 1 - direction;
        self.read_control(sink)?;
        self.flows[direction].sink_closed = true;
        // Further writes of the source fail with EPIPE.
        let source = &self.ends[direction].data;
        let _ = stream::shutdown(source, Shutdown::Read);
        let end = &self.ends[sink];
        if end.is_closed() || stream::is_hung_up(&end.data) {
            // The connection is reset, with what is there unread.
            self.flows[direction].unread = true;
            return Ok(());
        }
        // A process that waits for free space before it writes is woken by free space only.
        let mut discarded = [0; 4096];
        while stream::recv(source, &mut discarded).is_ok_and(|count| count > 0) {
            self.flows[direction].lost = true;
        }
        Ok(())
    }

    /// Handles a sink that was closed while there was nothing to write to it, so that the source notices without
    /// a write.
    fn sink_hung_up(&mut self, direction: usize) {
        let (source, sink) = (&self.ends[direction], &self.ends[1 - direction]);
        let _ = stream::shutdown(&source.data, Shutdown::Read);
        // Written since. What it closed with unread is an error of its socket, which the flow from it reports unless
        // it has ended.
        let lost = stream::has_unread(&source.data)
            || self.flows[1 - direction].finished && has_failed(&sink.data);
        let flow = &mut self.flows[direction];
        flow.sink_closed = true;
        flow.unread |= lost;
    }
}

/// Whether the process at the other end closed it with bytes unread. The kernel tells that once.
fn has_failed(data: &OwnedFd) -> bool {
    !matches!(hvsock_sys::take_error(data), Ok(None))
}
