//! A connection between two descriptors, whose bytes the broker moves a step at a time, never
//! blocking.
//!
//! Each end has a data descriptor, one end of a Unix stream socket pair, and a control descriptor,
//! over which its process announces the end of its data and is told of its peer's. A flow is one
//! direction: bytes are read from its source and written to its sink at once; what the sink does
//! not take waits in the flow, and nothing more is read until it is gone.
//!
//! The end of file of a data descriptor says only that nothing more comes. Whether the process
//! finished or was killed is told apart by its announcement, which it sends before it shuts the
//! descriptor: without one, the other end gets all bytes and then an error, never a clean end.

use std::io::ErrorKind;
use std::net::Shutdown;
use std::os::fd::OwnedFd;

use hvsock_endpoint::BrokerMessage;
use hvsock_fabric::Refusal;
use hvsock_sys::stream;

use super::Counters;
use super::connection::Turn;
use super::control::{Control, unread_data, went_away};

/// The most bytes moved in one direction before another connection gets its turn.
const TURN: usize = 256 * 1024;
/// One process's end of a connection.
pub(crate) struct Side {
    pub(super) control: Control,
    pub(super) data: OwnedFd,
    /// The end of file of the data descriptor is a clean end by itself.
    plain: bool,
    /// Reading may give something; cleared when it would block.
    readable: bool,
    /// Writing may take something; cleared when it would block.
    writable: bool,
    /// The data descriptor's other end is closed for good.
    hung_up: bool,
    /// Whether the set that has the connection watches for room to write.
    pub(super) watched_for_room: bool,
}

/// One direction.
#[derive(Default)]
struct Flow {
    /// Bytes read from the source that the sink did not take, from `start`.
    pending: Vec<u8>,
    start: usize,
    source: Source,
    /// The sink takes no more; bytes may have been thrown away because of it.
    sink_closed: bool,
    lost: bool,
    /// The sink has been told that nothing more comes.
    finished: bool,
}

/// How a flow's source stands.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Source {
    #[default]
    Open,
    /// It said that nothing follows, and nothing does.
    Ended,
    /// It went away without a word.
    Broken,
}

/// A connection that the broker pumps.
pub(crate) struct Pumped {
    /// The connecting process's end, then the accepting one's.
    sides: [Side; 2],
    /// From the first side to the second, then back.
    flows: [Flow; 2],
    suspended: bool,
}

impl Side {
    pub(crate) fn new(control: OwnedFd, data: OwnedFd, plain: bool) -> Self {
        Self {
            control: Control::new(control),
            data,
            plain,
            // What is there when the descriptor is first watched comes as an event.
            readable: false,
            writable: true,
            hung_up: false,
            watched_for_room: false,
        }
    }

    /// Whether the last write found no room.
    pub(super) fn full(&self) -> bool {
        !self.writable
    }
}

impl Pumped {
    pub(super) fn new(from: Side, to: Side) -> Self {
        Self {
            sides: [from, to],
            flows: Default::default(),
            suspended: false,
        }
    }

    pub(super) fn sides(&self) -> &[Side; 2] {
        &self.sides
    }

    pub(super) fn sides_mut(&mut self) -> &mut [Side; 2] {
        &mut self.sides
    }

    /// Notes that a side's data descriptor may be ready.
    pub(super) fn data_ready(&mut self, side: usize, event: &mio::event::Event) {
        let side = &mut self.sides[side & 1];
        side.readable |= event.is_readable() || event.is_read_closed() || event.is_error();
        side.writable |= event.is_writable() || event.is_write_closed() || event.is_error();
        side.hung_up |= event.is_read_closed() && event.is_write_closed();
    }

    /// Lets data move or stand still.
    pub(super) fn suspend(&mut self, suspended: bool) {
        self.suspended = suspended;
    }

    /// Bytes that wait in the broker's memory.
    pub(super) fn waiting(&self) -> usize {
        self.flows.iter().map(|flow| flow.pending.capacity()).sum()
    }

    /// Reads what a side's process says over its control descriptor.
    ///
    /// `Err` is a process that does not keep to the protocol, or closed a connection on which it
    /// left data unread.
    fn read_control(&mut self, side: usize) -> Result<(), Refusal> {
        let index = side & 1;
        self.sides[index].control.read()?;
        let unread = &self.flows[1 - index];
        if self.sides[index].control.closed && unread.lost {
            return Err(unread_data());
        }
        Ok(())
    }

    /// Moves what can be moved, at most [`TURN`] bytes each way, with `scratch` as the buffer.
    pub(super) fn turn(&mut self, scratch: &mut [u8], counters: &Counters) -> Turn {
        for side in 0..2 {
            if self.sides[side].control.readable
                && let Err(refusal) = self.read_control(side)
            {
                return Turn::Over(Some(refusal));
            }
        }
        let mut again = self.sides.iter().any(|side| side.control.readable);
        if self.suspended {
            return if again { Turn::Again } else { Turn::Waiting };
        }
        for direction in 0..2 {
            match self.move_bytes(direction, scratch, counters) {
                Ok(more) => again |= more,
                Err(refusal) => return Turn::Over(Some(refusal)),
            }
        }
        if self.flows.iter().all(|flow| flow.finished) {
            return Turn::Over(None);
        }
        if again { Turn::Again } else { Turn::Waiting }
    }

    /// One direction's turn; whether there is more to move.
    fn move_bytes(
        &mut self,
        direction: usize,
        scratch: &mut [u8],
        counters: &Counters,
    ) -> Result<bool, Refusal> {
        let mut moved = 0;
        loop {
            if !self.drain_pending(direction, counters)? {
                return Ok(false);
            }
            let [from, to] = &mut self.sides;
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
                // Nobody reads any more; the source's end is all that is left to see.
                if source.hung_up || source.control.closed {
                    flow.finished = true;
                }
                return Ok(false);
            }
            match flow.source {
                Source::Open => {}
                Source::Ended => {
                    sink.control.tell(&BrokerMessage::Shutdown);
                    let _ = stream::shutdown(&sink.data, Shutdown::Write);
                    flow.finished = true;
                    return Ok(false);
                }
                Source::Broken => return Err(went_away()),
            }
            if !source.readable && sink.hung_up {
                flow.sink_closed = true;
                return close_to_source(source, scratch).map(|()| true);
            }
            if !source.readable || !sink.writable {
                return Ok(false);
            }
            if moved >= TURN {
                return Ok(true);
            }
            match stream::recv(&source.data, scratch) {
                Ok(0) => {
                    if !self.source_ended(direction)? {
                        return Ok(true);
                    }
                }
                Ok(length) => {
                    moved += length;
                    self.deliver(direction, &scratch[..length], counters)?;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => source.readable = false,
                // The process closed its end while bytes for it were still unread there.
                Err(error) if error.kind() == ErrorKind::ConnectionReset => {
                    return Err(unread_data());
                }
                Err(_) => flow.source = Source::Broken,
            }
        }
    }

    /// Decides what the end of file of a source means; false if that is not known yet.
    fn source_ended(&mut self, direction: usize) -> Result<bool, Refusal> {
        // The announcement was sent before the descriptor was shut, so it is here by now, though
        // perhaps behind much else.
        self.read_control(direction)?;
        let source = &self.sides[direction];
        let clean = source.control.announced || source.plain;
        if !clean && source.control.readable {
            return Ok(false);
        }
        self.flows[direction].source = if clean { Source::Ended } else { Source::Broken };
        Ok(true)
    }

    /// Writes bytes fresh from the source; what the sink does not take waits.
    fn deliver(
        &mut self,
        direction: usize,
        bytes: &[u8],
        counters: &Counters,
    ) -> Result<(), Refusal> {
        let taken = self.write(direction, bytes, counters)?;
        let flow = &mut self.flows[direction];
        if flow.sink_closed {
            flow.lost |= taken < bytes.len();
        } else if taken < bytes.len() {
            flow.pending.extend_from_slice(&bytes[taken..]);
        }
        Ok(())
    }

    /// Writes what waits; whether nothing is left.
    fn drain_pending(&mut self, direction: usize, counters: &Counters) -> Result<bool, Refusal> {
        if self.flows[direction].pending.is_empty() {
            return Ok(true);
        }
        if !self.sides[1 - direction].writable {
            return Ok(false);
        }
        let pending = std::mem::take(&mut self.flows[direction].pending);
        let start = self.flows[direction].start;
        let taken = self.write(direction, &pending[start..], counters)?;
        let flow = &mut self.flows[direction];
        if flow.sink_closed {
            flow.lost = true;
            flow.start = 0;
        } else if start + taken < pending.len() {
            flow.pending = pending;
            flow.start = start + taken;
            return Ok(false);
        } else {
            flow.start = 0;
        }
        Ok(true)
    }

    /// Writes to a flow's sink until it would block; the count of bytes taken.
    fn write(
        &mut self,
        direction: usize,
        bytes: &[u8],
        counters: &Counters,
    ) -> Result<usize, Refusal> {
        let sink = &mut self.sides[1 - direction];
        let mut taken = 0;
        while taken < bytes.len() {
            match stream::send(&sink.data, &bytes[taken..]) {
                Ok(count) => taken += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    sink.writable = false;
                    break;
                }
                Err(_) => {
                    counters.add(direction, taken);
                    return self.sink_closed(direction).map(|()| taken);
                }
            }
        }
        counters.add(direction, taken);
        Ok(taken)
    }

    /// A sink that takes no more: its process has closed it, or only its reading half. The
    /// difference shows on the control descriptor, at once or soon.
    fn sink_closed(&mut self, direction: usize) -> Result<(), Refusal> {
        let sink = 1 - direction;
        self.read_control(sink)?;
        if self.sides[sink].plain || self.sides[sink].control.closed {
            return Err(unread_data());
        }
        self.flows[direction].sink_closed = true;
        // The source's further writes fail with EPIPE instead of vanishing.
        let _ = stream::shutdown(&self.sides[direction].data, Shutdown::Read);
        Ok(())
    }
}

/// Tells a source whose sink is gone for good that nobody reads any more, so that it need not
/// write to find out. What it wrote at the last moment is lost, which it must know.
fn close_to_source(source: &Side, scratch: &mut [u8]) -> Result<(), Refusal> {
    let _ = stream::shutdown(&source.data, Shutdown::Read);
    match stream::recv(&source.data, scratch) {
        Ok(length) if length > 0 => Err(unread_data()),
        _ => Ok(()),
    }
}
