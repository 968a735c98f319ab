//! All connections of one guest, as the device sees them.

mod event;
mod key;
mod queue;
mod receive;
mod table;
mod timers;
mod transmit;
mod wishes;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

pub use event::{Closed, Event, MessageEnd, Received, Transmit};
pub use key::{Handle, Key};
pub use wishes::ConnectError;

use crate::connection::{Pending, Phase};
use crate::{GuestCid, Header};
use queue::Queue;
use table::Table;
use timers::Timers;

/// How long a guest may leave a connection without credit that has only few bytes under way.
const ASK_AGAIN: Duration = Duration::from_millis(20);

/// What a [`Muxer`] is made with.
#[derive(Clone, Debug)]
pub struct Config {
    /// The guest's context id: a packet with another as its source is dropped.
    pub guest: GuestCid,
    /// Connections at once, those included whose RST waits to be sent.
    pub max_connections: usize,
    /// Packets to answer, of no connection, before
    /// [`may_receive`](Muxer::may_receive) turns false.
    pub max_replies: usize,
    /// How long a closed connection waits for the guest to agree.
    pub close_timeout: Duration,
    /// Has the driver taken the feature SEQPACKET? Else its type is an unknown one.
    pub seqpacket: bool,
}

impl Config {
    /// The default: 16,384 connections, 128 replies, 8 seconds as Linux has them, both kinds.
    pub fn new(guest: GuestCid) -> Self {
        Self {
            guest,
            max_connections: 16_384,
            max_replies: 128,
            close_timeout: Duration::from_secs(8),
            seqpacket: true,
        }
    }
}

/// What a guest believes it may send on a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Window {
    /// So many bytes.
    pub believed: u32,
    /// So many when nothing waits: it may hold to less than it is told of.
    pub size: u32,
    /// So many bytes there is room for when nothing waits.
    pub alloc: u32,
}

/// What has been turned down, since the muxer was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets with a source that is not the guest; dropped.
    pub spoofed: u64,
    /// Packets of no connection or of an unknown type; answered with RST.
    pub strays: u64,
    /// REQUESTs beyond [`Config::max_connections`]; answered with RST.
    pub over_limit: u64,
    /// Connections that ended because the guest broke the protocol or its credit.
    pub faults: u64,
}

/// Protocol state and logic of all virtio-vsock connections of one guest, seen from the device.
///
/// It does no I/O, holds no payload and knows no clock. Its owner moves packets between it and the
/// virtqueues, and payload between the guest's memory and each connection's *link*, whatever
/// that leads to, as much as the muxer says.
///
/// There are five families of methods:
///
/// - A. Getters, which take `&self`: [`connections`](Self::connections), [`key`](Self::key),
///   [`freed_window`](Self::freed_window), [`counters`](Self::counters).
/// - B. Handlers of what comes in, named `handle_*`: a packet of the tx queue, if
///   [`may_receive`](Self::may_receive) allows it, or that time has passed.
/// - C. Wishes of the owner: [`connect`](Self::connect), [`accept`](Self::accept),
///   [`refuse`](Self::refuse), [`readable`](Self::readable), [`freed`](Self::freed),
///   [`finish`](Self::finish), [`close_read`](Self::close_read), [`close`](Self::close),
///   [`reset`](Self::reset), and for all connections at once [`reset_all`](Self::reset_all) and
///   [`forget_all`](Self::forget_all).
/// - D. What to do, named `poll_*`.
/// - E. Answers to [`poll_transmit`](Self::poll_transmit)'s offer to send data:
///   [`sent`](Self::sent) or [`nothing_to_send`](Self::nothing_to_send).
///
/// Call B and C whenever there is cause. After them, a batch of packets at most, ask D, in this
/// order:
///
/// 1. [`poll_event`](Self::poll_event) until it is `None`. Events of a connection come in the order
///    of what they tell, and [`Event::Closed`] comes last. A packet's payload goes to the link
///    before the next packet is handled, so at [`Event::Finished`] the link has everything.
/// 2. [`poll_transmit`](Self::poll_transmit) while there is a buffer in the rx queue. It makes no
///    events. With each [`Transmit::Data`], answer with one of E before anything else.
/// 3. [`poll_timeout`](Self::poll_timeout), to call [`handle_timeout`](Self::handle_timeout) then.
///
/// # What the guest can do to it
///
/// Nothing but end its own connections. Packets that belong to no connection are answered from a
/// queue of [`Config::max_replies`] and connections owe each kind of control packet once, so
/// memory is bounded however long the rx queue stays full; nothing is dropped for that, the tx
/// queue waits instead. Each packet takes the same time, however many connections there are, and
/// whatever their keys.
#[derive(Debug)]
pub struct Muxer {
    config: Config,
    /// Where the counters of credit begin. 0, but for tests of their wrapping.
    first_count: u32,
    table: Table,
    /// Connections with control packets to send.
    control: Queue,
    /// Connections with data and credit: the round of turns.
    data: Queue,
    /// RSTs to send for what belongs to no connection.
    replies: VecDeque<Header>,
    timers: Timers,
    /// The time, as far as the owner has told it.
    now: Option<Instant>,
    events: VecDeque<Event>,
    counters: Counters,
}

impl Muxer {
    /// A guest without connections.
    pub fn new(config: Config) -> Self {
        Self::with_first_count(config, 0)
    }

    /// The same, for a guest whose counters of credit begin at `first`, too.
    #[doc(hidden)]
    pub fn with_first_count(config: Config, first: u32) -> Self {
        Self {
            config,
            first_count: first,
            table: Table::default(),
            control: Queue::default(),
            data: Queue::default(),
            replies: VecDeque::new(),
            timers: Timers::default(),
            now: None,
            events: VecDeque::new(),
            counters: Counters::default(),
        }
    }

    /// Connections that have a handle.
    pub fn connections(&self) -> usize {
        self.table.live()
    }

    /// What a connection is called on the wire.
    pub fn key(&self, handle: Handle) -> Option<Key> {
        self.table.get(handle).map(|connection| connection.key)
    }

    /// What the guest believes it may send. The owner watches the link for room when that is
    /// little.
    pub fn freed_window(&self, handle: Handle) -> Window {
        self.table
            .get(handle)
            .map_or_else(Window::default, |connection| {
                let incoming = &connection.incoming;
                Window {
                    believed: incoming.believed_free(),
                    size: incoming.window(),
                    alloc: incoming.alloc(),
                }
            })
    }

    /// What has been turned down.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// What happened, in order.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When to call [`handle_timeout`](Self::handle_timeout).
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.timers.next()
    }

    /// Ends what has waited for the guest too long, and asks again for credit that the guest does
    /// not give by itself. Between two calls time stands still here: call it once a round.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.now = Some(now);
        while let Some(index) = self.timers.due(now) {
            match self.table.at(index) {
                Some(connection) if connection.phase == Phase::Open => {
                    self.timers.clear(connection, index);
                    connection.asked = false;
                    self.reschedule(index);
                }
                _ => self.end(index, Some(Closed::TimedOut), Farewell::Reset),
            }
        }
    }

    /// Adds to the control packets that a connection has to send.
    fn owe(&mut self, index: u32, what: Pending) {
        if let Some(connection) = self.table.at(index) {
            connection.pending.add(what);
            self.control.push(index);
        }
    }

    /// Ends a connection. `reason` is the event that the owner gets, if it is to get one.
    fn end(&mut self, index: u32, reason: Option<Closed>, farewell: Farewell) {
        let Some(connection) = self.table.at(index) else {
            return;
        };
        if let Some(reason) = reason
            && connection.phase != Phase::Ended
        {
            let handle = connection.handle(index);
            self.events.push_back(Event::Closed { handle, reason });
        }
        self.timers.clear(connection, index);
        self.data.remove(index);
        if farewell == Farewell::Reset && connection.is_known_to_guest() {
            connection.phase = Phase::Ended;
            connection.pending = Pending::RESET;
            self.control.push(index);
            self.table.disown(index);
        } else {
            self.control.remove(index);
            self.table.remove(index);
        }
    }

    /// Puts a connection into the round of turns, or out of it, by what it has to send and may.
    fn reschedule(&mut self, index: u32) {
        let Some(connection) = self.table.at(index) else {
            return;
        };
        if connection.outgoing.is_plenty() {
            connection.asked = false;
        }
        let wants = connection.wants_to_send();
        if wants && connection.outgoing.available() > 0 {
            self.data.push(index);
            return self.ask_later(index);
        }
        self.data.remove(index);
        // What it sent beyond its turn stays with it, what it left of it does not.
        connection.deficit = connection.deficit.min(0);
        if wants && !connection.asked {
            connection.asked = true;
            self.owe(index, Pending::CREDIT_REQUEST);
        }
        self.ask_later(index);
    }

    /// Sees to it that a connection which waits for packets to be read asks again. A guest tells by
    /// itself when bytes were read, but old ones not for a few.
    fn ask_later(&mut self, index: u32) {
        let Some(connection) = self.table.at(index) else {
            return;
        };
        if connection.phase != Phase::Open {
            return;
        }
        let is_held = connection.wants_to_send() && connection.outgoing.is_held_by_packets();
        match (is_held, connection.deadline, self.now) {
            (true, None, Some(now)) => {
                self.timers
                    .set(connection, index, now.checked_add(ASK_AGAIN));
            }
            (false, Some(_), _) => self.timers.clear(connection, index),
            _ => {}
        }
    }
}

/// What the guest hears of a connection's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Farewell {
    /// RST, if it knows of the connection at all.
    Reset,
    /// Nothing: the guest ended it.
    None,
}
