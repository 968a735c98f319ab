//! The server's end of an arena: accepts connections.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex};

use hvsock_sys::sync::lock;

use super::client::memory;
use super::grant::Grant;
use super::layout::ArenaLimits;
use super::process::{ArenaProcess, TellBroker};
use super::queue::Taker;
use super::slot::{Finished, SlotLink, SlotOwner};
use super::words::SLOTS;
use super::{SlotId, Violation, reset, table};
use crate::layout::RESET;
use crate::sync::{AtomicU32, Ordering};
use crate::{Doorbells, RingEnd, RingSide};

/// The server's end of an arena. Clones are the same end, and each [`RingEnd`] keeps the memory mapped.
#[derive(Clone, Debug)]
pub struct ArenaServer(Arc<Server>);

#[derive(Debug)]
struct Server {
    process: ArenaProcess,
    slots: Mutex<ServerSlots>,
}

#[derive(Debug)]
struct ServerSlots {
    taker: Taker,
    /// The sequence number of the connection that is open in each slot; 0 is none.
    open: Vec<u32>,
    /// The number in the queue from which on nothing is accepted that a client has left there. What the
    /// broker says of it is the client's claim, and the queue has no more entries than this.
    left_until: Option<u64>,
    violation: Option<Violation>,
}

/// An accepted connection.
#[derive(Debug)]
pub struct Accepted {
    /// The server's end.
    pub end: RingEnd,
    /// Its slot and sequence number.
    pub id: SlotId,
    /// The broker asked for a message about this change: the caller sends it.
    pub tell_broker: bool,
}

impl ArenaServer {
    /// Opens the server's end of an arena that the broker has created, as
    /// [`ArenaClient::open`](super::ArenaClient::open) does the client's.
    ///
    /// # Errors
    ///
    /// As [`ArenaClient::open`](super::ArenaClient::open).
    pub fn open(
        memory: impl AsFd,
        grant: impl AsFd,
        doorbells: Doorbells,
        tell_broker: TellBroker,
    ) -> io::Result<Self> {
        Self::open_at(memory, grant, doorbells, tell_broker, 0)
    }

    /// As [`ArenaServer::open`], with counters that begin at `start` instead of 0. For tests.
    ///
    /// # Errors
    ///
    /// As [`ArenaServer::open`].
    #[doc(hidden)]
    pub fn open_at(
        memory: impl AsFd,
        grant: impl AsFd,
        doorbells: Doorbells,
        tell_broker: TellBroker,
        start: u64,
    ) -> io::Result<Self> {
        let side = RingSide::Second;
        let process = ArenaProcess::open(side, memory, grant, doorbells, tell_broker)?;
        Ok(Self(Arc::new(Server {
            process,
            slots: Mutex::new(ServerSlots {
                taker: Taker::new(start),
                open: Vec::new(),
                left_until: None,
                violation: None,
            }),
        })))
    }

    /// Accepts the next connection; `None` without one, or while the partition is suspended. Never blocks
    /// and makes no system call, unless it discards connections that the broker has reset or no longer
    /// allows.
    ///
    /// # Errors
    ///
    /// A violation of the client. Every later call fails likewise. Connections that are open stay so.
    pub fn accept(&self) -> Result<Option<Accepted>, Violation> {
        let server = &self.0;
        let Some(id) = server.take()? else {
            return Ok(None);
        };
        let owner = Arc::clone(server) as Arc<dyn SlotOwner>;
        let end = RingEnd::in_slot(memory(&server.process, id.slot), SlotLink::new(owner, id));
        Ok(Some(Accepted {
            end,
            id,
            tell_broker: server.process.take_broker_request(),
        }))
    }

    /// Whether [`ArenaServer::accept`] may return something other than `None`. While the partition is
    /// suspended it does not; the broker's message reports the resume.
    pub fn has_pending(&self) -> bool {
        let slots = lock(&self.0.slots);
        self.0.has_pending(&slots)
    }

    /// Requests a notification by the doorbell when the next connection is opened. Returns `true` if the
    /// caller may wait for it, and `false` if it must call [`ArenaServer::accept`] again now.
    pub fn arm_accept(&self) -> bool {
        let slots = lock(&self.0.slots);
        let is_armed = slots.taker.arm(&self.0.process.words().queue);
        slots.violation.is_none() && (is_armed || !self.0.has_pending(&slots))
    }

    /// Drains the doorbell after it was readable, for a process that has no connections with signals.
    /// Others call [`ArenaServer::drain_ready`] instead.
    pub fn drain_accept(&self) {
        let _ = hvsock_sys::doorbell::drain(self.doorbell());
    }

    /// The arena's limits.
    pub fn limits(&self) -> ArenaLimits {
        self.0.process.limits()
    }

    /// As [`ArenaClient::doorbell`](super::ArenaClient::doorbell). Also readable when a connection was
    /// opened after [`ArenaServer::arm_accept`].
    pub fn doorbell(&self) -> BorrowedFd<'_> {
        self.0.process.doorbell()
    }

    /// As [`ArenaClient::drain_ready`](super::ArenaClient::drain_ready). The notification may have been
    /// one of a new connection: see [`ArenaServer::has_pending`].
    pub fn drain_ready(&self, each: impl FnMut(u32)) -> bool {
        self.0.process.drain_ready(each)
    }

    /// As [`ArenaClient::mark_ended`](super::ArenaClient::mark_ended). Nothing is accepted any more.
    pub fn mark_ended(&self) {
        self.0.process.mark_ended();
    }
}

impl Server {
    fn has_pending(&self, slots: &ServerSlots) -> bool {
        let is_open = !self.process.has_ended() && self.process.grant().grant() != Grant::Suspended;
        let queue = &self.process.words().queue;
        slots.violation.is_some() || is_open && slots.taker.has_pending(queue)
    }

    /// Takes the next connection from the queue, and discards those that must not be accepted.
    fn take(&self) -> Result<Option<SlotId>, Violation> {
        let mut slots = lock(&self.slots);
        if let Some(violation) = slots.violation {
            return Err(violation);
        }
        self.take_locked(&mut slots)
            .inspect_err(|violation| slots.violation = Some(*violation))
    }

    fn take_locked(&self, slots: &mut ServerSlots) -> Result<Option<SlotId>, Violation> {
        let (words, grant) = (self.process.words(), self.process.grant());
        // The queue has no more entries than this, unless the client adds some meanwhile.
        for _ in 0..SLOTS {
            if self.process.has_ended() || grant.grant() == Grant::Suspended {
                return Ok(None);
            }
            let granted = grant.granted();
            let taken = slots.taker.take(&words.queue, &words.entries.0, granted)?;
            let Some(id) = taken else {
                return Ok(None);
            };
            slots.open.resize(slots.open.len().max(granted as usize), 0);
            let slot = id.slot as usize;
            let state = &self.process.slot(id.slot).header.state.0;
            if slots.open[slot] != 0 {
                return Err(Violation::Slot);
            }
            if state.load(Ordering::Acquire) >> 32 != u64::from(id.seq) {
                return Err(Violation::Sequence);
            }
            let entry = &words.accepted.0[slot];
            let is_allowed = table::accept(entry, id.seq, state, grant.words());
            if is_allowed {
                // The broker may have revoked the grant, and then have granted again.
                slots.left_until = None;
            }
            // After the end of its client an arena is revoked, and this was connected before.
            if is_allowed
                || slots.is_left(grant.left())
                    && !reset::is_by_broker(state.load(Ordering::Acquire))
            {
                slots.open[slot] = id.seq;
                return Ok(Some(id));
            }
            self.discard(id);
        }
        Ok(None)
    }

    /// Resets a connection that is not accepted, and returns its slot.
    fn discard(&self, id: SlotId) {
        let state = &self.process.slot(id.slot).header.state.0;
        if reset::change(state, id.seq, RESET, 0).is_some() {
            self.process.wake_peer(id.slot);
        }
        table::finish(&self.process.words().accepted.0[id.slot as usize], id.seq);
        self.process.count_closed(0);
    }
}

impl ServerSlots {
    /// Whether the connection that was taken last is one of those that the client has left in the queue.
    fn is_left(&mut self, left: Option<u64>) -> bool {
        let number = self.taker.last_number();
        left.is_some_and(|left| {
            let most = self.left_until.get_or_insert(number + SLOTS as u64);
            number < left.min(*most)
        })
    }
}

impl SlotOwner for Server {
    fn process(&self) -> &ArenaProcess {
        &self.process
    }

    fn finish(&self, id: SlotId, finished: Finished) {
        if let Some(open) = lock(&self.slots).open.get_mut(id.slot as usize) {
            *open = 0;
        }
        table::finish(&self.process.words().accepted.0[id.slot as usize], id.seq);
        self.process.count_closed(finished.written);
        if self.process.take_broker_request() {
            self.process.tell_broker();
        }
    }

    fn keep(&self, slot: u32) -> &AtomicU32 {
        &self.process.words().accepted.0[slot as usize].keep
    }
}
