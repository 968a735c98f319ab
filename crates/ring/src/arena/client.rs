//! The client's end of an arena: opens connections.

pub(super) mod snapshot;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard};

use hvsock_sys::clock;
use hvsock_sys::sync::lock;
use thiserror::Error;

use super::changes::take_request;
use super::client_slots::{ClientSlots, Freed};
use super::grant::Grant;
use super::layout::ArenaLimits;
use super::process::{ArenaProcess, TellBroker};
use super::slot::{Finished, SlotLink, SlotOwner};
use super::words::{SLOTS, SlotWords};
use super::{SlotId, Violation, ready, reset, table};
use crate::layout::RESET;
use crate::memory::Memory;
use crate::sync::{AtomicU32, Ordering};
use crate::{Doorbells, RingEnd, RingSide};

/// The client's end of an arena. Clones are the same end, and each [`RingEnd`] keeps the memory mapped.
#[derive(Clone, Debug)]
pub struct ArenaClient(Arc<Client>);

#[derive(Debug)]
struct Client {
    process: ArenaProcess,
    slots: Mutex<ClientSlots>,
}

/// A new connection.
#[derive(Debug)]
pub struct Opened {
    /// The client's end.
    pub end: RingEnd,
    /// Its slot and sequence number.
    pub id: SlotId,
    /// The broker asked for a message about this change: the caller sends it.
    pub tell_broker: bool,
}

/// Why no connection was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum OpenError {
    /// The broker has revoked the grant, or its control connection is lost.
    #[error("the permission to open connections was revoked")]
    Revoked,
    /// The partition is suspended.
    #[error("the partition is suspended")]
    Suspended,
    /// Every granted slot is in use.
    #[error("all connections that the arena may have are in use")]
    NoSlot,
    /// As many connections as the server allows wait to be accepted.
    #[error("the server has not accepted earlier connections")]
    BacklogFull,
    /// The server violated the protocol. The arena opens no more connections.
    #[error("the arena is unusable: {0}")]
    Violation(Violation),
}

impl ArenaClient {
    /// Opens the client's end of an arena that the broker has created. Maps the memory after checking
    /// that it is sealed and as long as the grant page says. `tell_broker` is called when an end is dropped
    /// and the broker asked for a message about that.
    ///
    /// # Errors
    ///
    /// `InvalidData` if the memory or the grant page is not sealed or not an arena's; otherwise the error
    /// of `mmap`.
    pub fn open(
        memory: impl AsFd,
        grant: impl AsFd,
        doorbells: Doorbells,
        tell_broker: TellBroker,
    ) -> io::Result<Self> {
        Self::open_at(memory, grant, doorbells, tell_broker, 0)
    }

    /// As [`ArenaClient::open`], with counters that begin at `start` instead of 0. The server's must begin
    /// at the same value. For tests of the sequence numbers' wraparound.
    ///
    /// # Errors
    ///
    /// As [`ArenaClient::open`].
    #[doc(hidden)]
    pub fn open_at(
        memory: impl AsFd,
        grant: impl AsFd,
        doorbells: Doorbells,
        tell_broker: TellBroker,
        start: u64,
    ) -> io::Result<Self> {
        let side = RingSide::First;
        let process = ArenaProcess::open(side, memory, grant, doorbells, tell_broker)?;
        if start != 0 {
            let queue = &process.words().queue;
            queue.published.0.store(start, Ordering::Release);
            queue.taken.0.store(start, Ordering::Release);
        }
        Ok(Self(Arc::new(Client {
            process,
            slots: Mutex::new(ClientSlots::new(start)),
        })))
    }

    /// Opens a connection. Never blocks. Without a waiting acceptor it makes no system call.
    ///
    /// # Errors
    ///
    /// [`OpenError`]; after [`OpenError::Violation`] every later call fails likewise. Connections that
    /// are open stay so.
    pub fn connect(&self) -> Result<Opened, OpenError> {
        let client = &self.0;
        let id = client.publish()?;
        let process = &client.process;
        let refused = client.check(table::grant_after_change(process.grant().words()));
        if refused.is_err() {
            let state = &process.slot(id.slot).header.state.0;
            reset::change(state, id.seq, RESET, 0);
        }
        if take_request(&process.words().queue.accept_request.0) {
            process.notify_peer();
        }
        let tell_broker = process.take_broker_request();
        let end = client.end(id, Arc::clone(client) as Arc<dyn SlotOwner>);
        if let Err(error) = refused {
            drop(end);
            if tell_broker {
                process.tell_broker();
            }
            return Err(error);
        }
        Ok(Opened {
            end,
            id,
            tell_broker,
        })
    }

    /// The number of slots in use: of open connections, and of those that only the server has open. Slots
    /// that the server has closed meanwhile become free by this call and give their pages back.
    pub fn in_use(&self) -> u32 {
        self.0.reclaim().in_use()
    }

    /// Whether more than three quarters of the granted slots are in use, and more could be granted.
    pub fn wants_more_slots(&self) -> bool {
        let granted = self.0.process.grant().granted();
        let is_much = |in_use: u32| u64::from(in_use) * 4 > u64::from(granted) * 3;
        granted < self.limits().slots
            && is_much(lock(&self.0.slots).in_use())
            && is_much(self.in_use())
    }

    /// Whether the broker allows new connections.
    pub fn is_granted(&self) -> bool {
        self.0.check(self.0.process.grant().grant()).is_ok()
    }

    /// The arena's limits.
    pub fn limits(&self) -> ArenaLimits {
        self.0.process.limits()
    }

    /// The doorbell's descriptor, one for all connections. It becomes readable when slots are ready
    /// ([`RingEnd::set_signals`]), and when the server's process is gone.
    pub fn doorbell(&self) -> BorrowedFd<'_> {
        self.0.process.doorbell()
    }

    /// The doorbells of this end and of the server, for another process that goes on with this end.
    pub fn doorbells(&self) -> [BorrowedFd<'_>; 2] {
        self.0.process.doorbells()
    }

    /// Drains the doorbell, and calls `each` with the slots that became ready since the last call. It may
    /// name slots that are not. Returns `false` if the doorbell was empty and the server's end is closed.
    ///
    /// Also to be called after each message of the broker about this arena.
    pub fn drain_ready(&self, each: impl FnMut(u32)) -> bool {
        self.0.process.drain_ready(each)
    }

    /// Whether slots became ready since they were last drained or taken.
    pub fn has_ready(&self) -> bool {
        let process = &self.0.process;
        ready::has_any(process.ready(process.side()))
    }

    /// Calls `each` with the slots that became ready since the last call. For a loop that polls: the server
    /// notifies at most once until [`arm_ready`](Self::arm_ready) or
    /// [`drain_ready`](Self::drain_ready) is called, and not before each look.
    pub fn take_ready(&self, each: impl FnMut(u32)) {
        self.0.process.take_ready(each);
    }

    /// Requests a notification by the doorbell when the next slot becomes ready. Returns `true` if the
    /// caller may wait for it, and `false` if it must look again now.
    pub fn arm_ready(&self) -> bool {
        let process = &self.0.process;
        ready::arm(process.ready(process.side()))
    }

    /// Ends the arena in this process, after the control connection was lost: wakes all waiters, and every
    /// connection reads as reset.
    pub fn mark_ended(&self) {
        self.0.process.mark_ended();
    }
}

impl Client {
    fn check(&self, grant: Grant) -> Result<(), OpenError> {
        match grant {
            _ if self.process.has_ended() => Err(OpenError::Revoked),
            Grant::Granted => Ok(()),
            Grant::Suspended => Err(OpenError::Suspended),
            Grant::Revoked => Err(OpenError::Revoked),
        }
    }

    /// Takes a slot, initialises its words and publishes it in the connect queue.
    fn publish(&self) -> Result<SlotId, OpenError> {
        self.check(self.process.grant().grant())?;
        let (words, grant) = (self.process.words(), self.process.grant());
        let mut slots = lock(&self.slots);
        slots.check().map_err(OpenError::Violation)?;
        let backlog = grant.backlog().min(SLOTS as u64);
        let pending = slots.publisher.pending(&words.queue, backlog);
        if self.valid(&mut slots, pending)? >= backlog {
            return Err(OpenError::BacklogFull);
        }
        let taken = slots.take(&words.accepted.0, grant.granted(), |freed| self.free(freed));
        let id = self.valid(&mut slots, taken)?.ok_or(OpenError::NoSlot)?;
        initialise(self.process.slot(id.slot), id.seq);
        let now = clock::monotonic().as_micros() as u64;
        table::open(&words.opened.0[id.slot as usize], id.seq, now);
        slots.publisher.publish(&words.queue, &words.entries.0, id);
        Ok(id)
    }

    /// Finds the slots that the server has closed.
    fn reclaim(&self) -> MutexGuard<'_, ClientSlots> {
        let mut slots = lock(&self.slots);
        let server = &self.process.words().accepted.0;
        slots.reclaim_all(server, |freed| self.free(freed));
        slots
    }

    fn valid<T>(
        &self,
        slots: &mut ClientSlots,
        result: Result<T, Violation>,
    ) -> Result<T, OpenError> {
        result.map_err(|violation| OpenError::Violation(slots.violated(violation)))
    }

    fn end(&self, id: SlotId, owner: Arc<dyn SlotOwner>) -> RingEnd {
        RingEnd::in_slot(memory(&self.process, id.slot), SlotLink::new(owner, id))
    }

    /// A slot is free: both ends are closed.
    fn free(&self, freed: Freed) {
        let Freed { id, moved_bytes } = freed;
        table::free(&self.process.words().opened.0[id.slot as usize], id.seq);
        if moved_bytes && id.slot >= ArenaLimits::KEPT_SLOTS {
            let limits = self.process.limits();
            let start = limits.rings_at(id.slot);
            // If it fails, the pages stay for the slot's next connection.
            let _ = self
                .process
                .mapping()
                .give_back(start..start + limits.rings_len());
        }
    }
}

impl SlotOwner for Client {
    fn process(&self) -> &ArenaProcess {
        &self.process
    }

    fn finish(&self, id: SlotId, finished: Finished) {
        let words = self.process.words();
        table::close(&words.opened.0[id.slot as usize], id.seq);
        self.process.count_closed(finished.written);
        lock(&self.slots).close(&words.accepted.0, id.slot, finished.moved_bytes, |freed| {
            self.free(freed);
        });
        if self.process.take_broker_request() {
            self.process.tell_broker();
        }
    }

    fn keep(&self, slot: u32) -> &AtomicU32 {
        &self.process.words().opened.0[slot as usize].keep
    }
}

/// The part of an arena's mapping that is the connection in a slot.
pub(crate) fn memory(process: &ArenaProcess, slot: u32) -> Memory {
    let limits = process.limits();
    Memory::within(
        Arc::clone(process.mapping()),
        ArenaLimits::header_at(slot),
        limits.rings_at(slot),
        limits.ring,
    )
}

/// Initialises the words of a slot for a new connection. Neither end has made a wakeup request.
pub(crate) fn initialise(slot: &SlotWords, seq: u32) {
    let header = &slot.header;
    for words in &header.directions {
        words.head.0.store(0, Ordering::Relaxed);
        words.tail.0.store(0, Ordering::Relaxed);
        words.awake.0.store(1, Ordering::Relaxed);
        words.space.0.store(0, Ordering::Relaxed);
        words.close.0.ended.store(0, Ordering::Relaxed);
        words.close.0.closed.store(0, Ordering::Relaxed);
        words.close.0.window.store(0, Ordering::Relaxed);
    }
    for wakeups in &slot.wakeups {
        wakeups.0.modes.store(0, Ordering::Relaxed);
    }
    reset::begin(&header.state.0, seq);
}
