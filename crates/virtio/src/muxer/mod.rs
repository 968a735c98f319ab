//! All connections of one guest, from the device's side.

mod commands;
mod event;
mod index_queue;
mod receive;
mod reply;
mod snapshot;
mod table;
mod timers;
mod transmit;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

pub use commands::ConnectError;
pub use event::{Closed, Event, Received, Transmit};
pub use snapshot::{HandleSnapshot, MUXER_SNAPSHOT_VERSION, MuxerSnapshot};

use crate::connection::{Pending, Phase};
use crate::{GuestCid, Handle, Key};
use index_queue::IndexQueue;
use reply::Reply;
use table::Table;
use timers::Timers;

/// Interval of CREDIT_REQUESTs while the packet limit stops a connection.
const CREDIT_REQUEST_INTERVAL: Duration = Duration::from_millis(20);

/// Parameters of a [`Muxer`].
#[derive(Clone, Debug)]
pub struct Config {
    /// The guest's context id. Packets with another source are dropped.
    pub guest: GuestCid,
    /// Maximum number of connections, including those whose RST waits to be sent.
    pub max_connections: usize,
    /// Maximum number of queued RSTs to packets of no connection. When it is reached,
    /// [`may_receive`](Muxer::may_receive) is false.
    pub max_replies: usize,
    /// How long a closed connection waits for the guest's RST.
    pub close_timeout: Duration,
    /// `VIRTIO_VSOCK_F_SEQPACKET` was negotiated. Otherwise the type is treated as unknown.
    pub seqpacket: bool,
}

impl Config {
    /// The defaults: 16,384 connections, 128 replies, 8 seconds (as Linux), both socket types.
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

/// The receive window of a connection, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Window {
    /// Credit that the guest has, as last advertised.
    pub advertised_free: u32,
    /// Credit of an empty buffer. Less than `alloc` if the guest limits itself to its own buffer.
    pub size: u32,
    /// The buffer's size (`buf_alloc`).
    pub alloc: u32,
}

/// Counters of rejected packets and connections, since the muxer was created.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets whose source is not the guest; dropped.
    pub spoofed: u64,
    /// Packets of no connection or of an unknown socket type; answered with RST.
    pub strays: u64,
    /// REQUESTs beyond [`Config::max_connections`]; answered with RST.
    pub over_limit: u64,
    /// Connections reset because the guest violated the protocol or its credit.
    pub faults: u64,
}

/// Protocol state machine of all virtio-vsock connections of one guest, on the device's side.
///
/// It does no I/O, holds no payload and reads no clock. Its owner moves packets between it and the
/// virtqueues, and payload between guest memory and each connection's *link* (its byte stream on the
/// host, such as a ring or a socket), as much as the muxer allows.
///
/// There are five families of methods:
///
/// - A. Getters, which take `&self`: [`connections`](Self::connections), [`key`](Self::key),
///   [`receive_window`](Self::receive_window), [`counters`](Self::counters).
/// - B. Handlers of input, named `handle_*`: a packet of the tx queue, if
///   [`may_receive`](Self::may_receive) allows it, or the passage of time.
/// - C. Commands of the owner: [`connect`](Self::connect), [`accept`](Self::accept),
///   [`refuse`](Self::refuse), [`readable`](Self::readable), [`freed`](Self::freed),
///   [`finish`](Self::finish), [`close_read`](Self::close_read), [`close`](Self::close),
///   [`reset`](Self::reset), and for all connections [`reset_all`](Self::reset_all) and
///   [`forget_all`](Self::forget_all), and [`forget_strays`](Self::forget_strays).
/// - D. Output, named `poll_*`.
/// - E. Answers to [`Transmit::Data`]: [`sent`](Self::sent) or
///   [`nothing_to_send`](Self::nothing_to_send).
///
/// Call B and C at any time. After them, at the latest after a batch of packets, call D in this order:
///
/// 1. [`poll_event`](Self::poll_event) until it is `None`. A connection's events come in order, and
///    [`Event::Closed`] comes last. Pass a packet's payload to the link before handling the next
///    packet; then the link has all data at [`Event::Finished`].
/// 2. [`poll_transmit`](Self::poll_transmit) while the rx queue has a buffer. It makes no events.
///    Answer each [`Transmit::Data`] with one of E before any other call.
/// 3. [`poll_timeout`](Self::poll_timeout), for when to call [`handle_timeout`](Self::handle_timeout).
///
/// # Hostile guests
///
/// A guest can only end its own connections. RSTs to stray packets wait in a queue of at most
/// [`Config::max_replies`], and a connection has at most one control packet of each kind to send. So
/// memory is bounded however long the rx queue stays full. Nothing is dropped: the tx queue waits
/// (backpressure). The time for a packet does not depend on the number of connections or their keys.
#[derive(Debug)]
pub struct Muxer {
    config: Config,
    /// First value of the credit counters. 0, except in tests of their wraparound.
    first_count: u32,
    table: Table,
    /// Connections with control packets to send.
    control: IndexQueue,
    /// Connections with data and credit, in round-robin order.
    data: IndexQueue,
    /// RSTs to packets of no connection.
    replies: VecDeque<Reply>,
    timers: Timers,
    /// The time of the last `handle_timeout`.
    now: Option<Instant>,
    events: VecDeque<Event>,
    counters: Counters,
}

impl Muxer {
    /// Creates a muxer without connections.
    pub fn new(config: Config) -> Self {
        Self::with_first_count(config, 0)
    }

    /// As `new`, for a guest whose credit counters begin at `first`, too. For tests.
    #[doc(hidden)]
    pub fn with_first_count(config: Config, first: u32) -> Self {
        Self {
            config,
            first_count: first,
            table: Table::default(),
            control: IndexQueue::default(),
            data: IndexQueue::default(),
            replies: VecDeque::new(),
            timers: Timers::default(),
            now: None,
            events: VecDeque::new(),
            counters: Counters::default(),
        }
    }

    /// Its parameters.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Number of connections that have a handle.
    pub fn connections(&self) -> usize {
        self.table.live()
    }

    /// A connection's ports, peer and socket type; `None` if it is gone.
    pub fn key(&self, handle: Handle) -> Option<Key> {
        self.table.get(handle).map(|connection| connection.key)
    }

    /// A connection's receive window, 0 if it is gone. When the guest is low on credit, the owner
    /// watches the link for free space.
    pub fn receive_window(&self, handle: Handle) -> Window {
        self.table
            .get(handle)
            .map_or_else(Window::default, |connection| {
                let incoming = &connection.incoming;
                Window {
                    advertised_free: incoming.advertised_free(),
                    size: incoming.window(),
                    alloc: incoming.alloc(),
                }
            })
    }

    /// Counters of rejected packets and connections.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// The next event, in order of occurrence.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When to call [`handle_timeout`](Self::handle_timeout) next; `None` if no timer is armed.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.timers.next()
    }

    /// Ends connections whose timeout has expired, and repeats CREDIT_REQUESTs. Their interval
    /// counts from the last `now`, so call it in each round of the event loop.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.now = Some(now);
        while let Some(index) = self.timers.due(now) {
            match self.table.at(index) {
                Some(connection) if connection.phase == Phase::Open => {
                    self.timers.clear(connection, index);
                    connection.credit_requested = false;
                    self.reschedule(index);
                }
                _ => self.end(index, Some(Closed::TimedOut), EndNotice::Reset),
            }
        }
    }

    /// Schedules a control packet of a connection.
    fn schedule_control(&mut self, index: u32, what: Pending) {
        if let Some(connection) = self.table.at(index) {
            connection.pending.add(what);
            self.control.push(index);
        }
    }

    /// Ends a connection. With a `reason`, the owner gets an event.
    fn end(&mut self, index: u32, reason: Option<Closed>, notice: EndNotice) {
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
        if notice == EndNotice::Reset && connection.is_known_to_guest() {
            connection.phase = Phase::Ended;
            connection.pending = Pending::RESET;
            self.control.push(index);
            self.table.release_handle(index);
        } else {
            self.control.remove(index);
            self.table.remove(index);
        }
    }

    /// Adds a connection to the round robin, or removes it, by its data and credit.
    fn reschedule(&mut self, index: u32) {
        let Some(connection) = self.table.at(index) else {
            return;
        };
        if connection.outgoing.is_above_low_watermark() {
            connection.credit_requested = false;
        }
        let wants = connection.wants_to_send();
        if connection.may_send_now() {
            self.data.push(index);
            return self.arm_credit_timer(index);
        }
        self.data.remove(index);
        // An excess over the last turn is kept, an unused rest is not.
        connection.deficit = connection.deficit.min(0);
        if wants && !connection.credit_requested {
            connection.credit_requested = true;
            self.schedule_control(index, Pending::CREDIT_REQUEST);
        }
        self.arm_credit_timer(index);
    }

    /// Arms the timer of a connection that the packet limit stops. A guest sends credit updates by
    /// itself, but old kernels send none for a few bytes.
    fn arm_credit_timer(&mut self, index: u32) {
        let Some(connection) = self.table.at(index) else {
            return;
        };
        if connection.phase != Phase::Open {
            return;
        }
        let is_limited = connection.wants_to_send() && connection.outgoing.is_limited_by_packets();
        match (is_limited, connection.deadline, self.now) {
            (true, None, Some(now)) => {
                self.timers
                    .set(connection, index, now.checked_add(CREDIT_REQUEST_INTERVAL));
            }
            (false, Some(_), _) => self.timers.clear(connection, index),
            _ => {}
        }
    }
}

/// The packet to the guest when a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum EndNotice {
    /// RST, if the guest has state of the connection.
    Reset,
    /// Nothing: the guest ended it.
    None,
}
