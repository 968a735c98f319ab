//! The snapshot of a muxer. [`crate::snapshot`] describes its contents and compatibility.

use std::collections::BTreeSet;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::event::violation;
use super::index_queue::IndexQueue;
use super::reply::Reply;
use super::table::Table;
use super::timers::Timers;
use super::transmit::{MAX_PACKET, TURN};
use super::{Closed, Config, Counters, Event, Muxer};
use crate::connection::{Connection, Pending, Phase};
use crate::credit::{Incoming, Outgoing};
use crate::snapshot::{
    SnapshotError, check_limit, check_version, ensure, nanoseconds_until, read_version, time_at,
};
use crate::{Cid, Handle, Header, Key, Operation, SocketKind, shutdown};

/// The version of [`MuxerSnapshot`] that this release writes.
pub const MUXER_SNAPSHOT_VERSION: u32 = 1;

/// Maximum number of pending events, beyond one for each connection: those of one round that handles a
/// full tx queue. A packet causes at most three.
const MAX_EVENTS: usize = 3 * 32_768;

/// Counters that are larger have been forged. Serial numbers stay unique, and no counter overflows.
const MAX_COUNT: u64 = i64::MAX as u64;

/// A [`Muxer`] with all its connections, without the payload in their links.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MuxerSnapshot {
    #[serde(deserialize_with = "read_version::<_, MUXER_SNAPSHOT_VERSION>")]
    version: u32,
    guest: u32,
    /// `VIRTIO_VSOCK_F_SEQPACKET` was negotiated.
    seqpacket: bool,
    /// First value of the credit counters of new connections.
    first_count: u32,
    /// The serial number of the newest handle.
    last_serial: u64,
    /// By slot.
    connections: Vec<ConnectionState>,
    /// Free slots, the next one to use last.
    free_slots: Vec<u32>,
    /// Slots of the connections with control packets to send, in order.
    control: Vec<u32>,
    /// Slots of the connections with data and credit, in round-robin order.
    data: Vec<u32>,
    /// RSTs to packets of no connection, in order.
    replies: Vec<ReplyState>,
    /// Time of the last `handle_timeout`.
    last_timeout: Option<i64>,
    /// Events that were not polled, in order.
    events: Vec<EventState>,
    counters: CountersState,
}

/// A [`Handle`], for the snapshot of a muxer's owner. It stays valid through the muxer's snapshot.
///
/// A handle that never existed does no harm: a muxer does nothing for it. But [`Handle::index`] may
/// then be any number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandleSnapshot {
    index: u32,
    serial: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct ConnectionState {
    slot: u32,
    key: KeyState,
    /// The handle's serial number; 0 if the connection has no handle any more.
    serial: u64,
    phase: PhaseState,
    /// Control packets to send.
    pending: Vec<PacketState>,
    /// Directions that each side has shut down: bits of the protocol's SHUTDOWN.
    guest_shut: u8,
    owner_shut: u8,
    sent_shut: u8,
    has_data: bool,
    credit_requested: bool,
    /// Bytes left in its turn.
    deficit: i32,
    outgoing: OutgoingState,
    incoming: IncomingState,
    /// When its timer expires.
    deadline: Option<i64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct KeyState {
    guest_port: u32,
    peer: u64,
    peer_port: u32,
    kind: KindState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum KindState {
    Stream,
    Seqpacket,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum PhaseState {
    Requested,
    Connecting,
    Open,
    Closing,
    Ended,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum PacketState {
    Reset,
    Request,
    Response,
    CreditUpdate,
    CreditRequest,
    Shutdown,
}

/// All in bytes modulo 2^32, but for `packets`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct OutgoingState {
    alloc: u32,
    fwd_cnt: u32,
    sent: u32,
    mark: u32,
    /// Packets in flight before and after the mark.
    packets: (u32, u32),
    within_message: bool,
}

/// All in bytes modulo 2^32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct IncomingState {
    alloc: u32,
    peer_alloc: u32,
    received: u32,
    fwd_cnt: u32,
    advertised: u32,
}

/// The header of an RST to the guest, without what all of them have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct ReplyState {
    peer: u64,
    peer_port: u32,
    guest_port: u32,
    /// The packet's `type`, whatever it was.
    kind: u16,
    /// The packet was a REQUEST.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    refuses: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum EventState {
    Request {
        handle: HandleSnapshot,
        key: KeyState,
    },
    Connected {
        handle: HandleSnapshot,
    },
    Finished {
        handle: HandleSnapshot,
    },
    ClosedRead {
        handle: HandleSnapshot,
    },
    Closed {
        handle: HandleSnapshot,
        reason: ReasonState,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum ReasonState {
    Clean,
    Refused,
    Reset,
    TimedOut,
    CreditOverrun,
    CreditViolation,
    Protocol(String),
    GuestRestarted,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct CountersState {
    spoofed: u64,
    strays: u64,
    over_limit: u64,
    faults: u64,
}

impl Muxer {
    /// The muxer as a value. `now` is the time that its times are relative to.
    pub fn snapshot(&self, now: Instant) -> MuxerSnapshot {
        let Self {
            config,
            first_count,
            table,
            control,
            data,
            replies,
            // The connections have their deadlines.
            timers: _,
            now: last_timeout,
            events,
            counters,
        } = self;
        let Config {
            guest,
            seqpacket,
            max_connections: _,
            max_replies: _,
            close_timeout: _,
        } = config;
        let connections = table.iter();
        MuxerSnapshot {
            version: MUXER_SNAPSHOT_VERSION,
            guest: guest.get(),
            seqpacket: *seqpacket,
            first_count: *first_count,
            last_serial: table.last_serial(),
            connections: connections
                .map(|(slot, connection)| ConnectionState::new(slot, connection, now))
                .collect(),
            free_slots: table.free().to_vec(),
            control: control.iter().collect(),
            data: data.iter().collect(),
            replies: replies.iter().map(ReplyState::new).collect(),
            last_timeout: last_timeout.map(|at| nanoseconds_until(at, now)),
            events: events.iter().map(EventState::new).collect(),
            counters: CountersState::new(*counters),
        }
    }

    /// The muxer of a snapshot. `now` is the time that its times are relative to, and `config` has the
    /// limits, for the same guest and features. All handles stay valid.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::UnsupportedVersion`] for another version; [`SnapshotError::LimitExceeded`] if a
    /// table exceeds `config`; [`SnapshotError::Inconsistent`] if no muxer has such a state, or one
    /// with another guest or other features.
    pub fn restore(
        snapshot: MuxerSnapshot,
        config: Config,
        now: Instant,
    ) -> Result<Self, SnapshotError> {
        let MuxerSnapshot {
            version,
            guest,
            seqpacket,
            first_count,
            last_serial,
            connections,
            free_slots,
            control,
            data,
            replies,
            last_timeout,
            events,
            counters,
        } = snapshot;
        check_version(version, MUXER_SNAPSHOT_VERSION)?;
        ensure(guest == config.guest.get(), "it is of another guest")?;
        ensure(seqpacket == config.seqpacket, "it has other features")?;
        let slots = connections.len().saturating_add(free_slots.len());
        check_limit("connections", slots, config.max_connections)?;
        check_limit("replies", replies.len(), config.max_replies)?;
        let max_events = MAX_EVENTS.saturating_add(config.max_connections);
        check_limit("events", events.len(), max_events)?;
        ensure(last_serial <= MAX_COUNT, "its handles are used up")?;

        let connections = connections.into_iter().map(|it| it.restore(now));
        let connections: Vec<_> = connections.collect::<Result<_, _>>()?;
        let mut table = Table::restore(connections, free_slots, last_serial)
            .map_err(|what| SnapshotError::Inconsistent { what })?;
        let what = "the connections with control packets are others";
        let control = queue_of(&control, &table, |it| !it.pending.is_empty())
            .ok_or(SnapshotError::Inconsistent { what })?;
        let what = "the connections with data and credit are others";
        let data = queue_of(&data, &table, Connection::may_send_now)
            .ok_or(SnapshotError::Inconsistent { what })?;
        let mut timers = Timers::default();
        for index in table.indices() {
            if let Some(connection) = table.at(index) {
                timers.set(connection, index, connection.deadline);
            }
        }
        let events = events.into_iter().map(|event| {
            let handle = event.handle();
            let was_given = (1..=last_serial).contains(&handle.serial);
            let has_slot = (handle.index as usize) < slots;
            ensure(was_given && has_slot, "an event has no connection")?;
            Ok(event.restore())
        });
        let events = events.collect::<Result<_, SnapshotError>>()?;
        let last_timeout = last_timeout.map(|nanoseconds| time_at(nanoseconds, now).unwrap_or(now));
        Ok(Self {
            first_count,
            table,
            control,
            data,
            replies: replies.into_iter().map(|it| it.restore(guest)).collect(),
            timers,
            now: last_timeout,
            events,
            counters: counters.restore()?,
            config,
        })
    }
}

/// The queue with these indices in order. `None` if one is queued twice, or if they are not those of
/// the connections that `belongs` is true for.
fn queue_of(
    indices: &[u32],
    table: &Table,
    belongs: impl Fn(&Connection) -> bool,
) -> Option<IndexQueue> {
    let queued: BTreeSet<u32> = indices.iter().copied().collect();
    let connections = table.iter().filter(|(_, connection)| belongs(connection));
    let is_same =
        queued.len() == indices.len() && queued.into_iter().eq(connections.map(|it| it.0));
    is_same.then(|| {
        let mut queue = IndexQueue::default();
        indices.iter().for_each(|index| queue.push(*index));
        queue
    })
}

impl ConnectionState {
    fn new(slot: u32, connection: &Connection, now: Instant) -> Self {
        let Connection {
            key,
            serial,
            phase,
            pending,
            guest_shut,
            owner_shut,
            sent_shut,
            has_data,
            credit_requested,
            deficit,
            outgoing,
            incoming,
            deadline,
        } = *connection;
        let packets = PacketState::ALL.into_iter();
        Self {
            slot,
            key: key.into(),
            serial,
            phase: match phase {
                Phase::Requested => PhaseState::Requested,
                Phase::Connecting => PhaseState::Connecting,
                Phase::Open => PhaseState::Open,
                Phase::Closing => PhaseState::Closing,
                Phase::Ended => PhaseState::Ended,
            },
            pending: packets.filter(|it| pending.has(it.bit())).collect(),
            guest_shut,
            owner_shut,
            sent_shut,
            has_data,
            credit_requested,
            deficit,
            outgoing: OutgoingState::new(outgoing),
            incoming: IncomingState::new(incoming),
            deadline: deadline.map(|at| nanoseconds_until(at, now)),
        }
    }

    /// The connection and its slot. Checks all that does not concern other connections.
    fn restore(self, now: Instant) -> Result<(u32, Connection), SnapshotError> {
        let mut pending = Pending::default();
        for packet in self.pending {
            ensure(!pending.has(packet.bit()), "a packet is pending twice")?;
            pending.add(packet.bit());
        }
        let phase = match self.phase {
            PhaseState::Requested => Phase::Requested,
            PhaseState::Connecting => Phase::Connecting,
            PhaseState::Open => Phase::Open,
            PhaseState::Closing => Phase::Closing,
            PhaseState::Ended => Phase::Ended,
        };
        let time = |nanoseconds| time_at(nanoseconds, now).unwrap_or(now);
        let connection = Connection {
            key: self.key.into(),
            serial: self.serial,
            phase,
            pending,
            guest_shut: self.guest_shut,
            owner_shut: self.owner_shut,
            sent_shut: self.sent_shut,
            has_data: self.has_data,
            credit_requested: self.credit_requested,
            deficit: self.deficit,
            outgoing: self.outgoing.restore(),
            incoming: self.incoming.restore(),
            deadline: self.deadline.map(time),
        };
        check(&connection)?;
        Ok((self.slot, connection))
    }
}

/// Checks a connection by itself.
fn check(connection: &Connection) -> Result<(), SnapshotError> {
    let both = shutdown::BOTH as u8;
    let shut = [
        connection.guest_shut,
        connection.owner_shut,
        connection.sent_shut,
    ];
    ensure(
        shut.iter().all(|bits| bits & !both == 0),
        "a bit of SHUTDOWN is unknown",
    )?;
    ensure(
        connection.sent_shut & !connection.owner_shut == 0,
        "a SHUTDOWN was sent that the owner did not order",
    )?;
    // A turn is shortened by at most the excess of one packet.
    let deficits = 1 - MAX_PACKET as i32..=TURN;
    ensure(
        deficits.contains(&connection.deficit),
        "a deficit is out of range",
    )?;
    ensure(
        connection.outgoing.is_consistent() && connection.incoming.is_consistent(),
        "a credit counter is out of range",
    )?;
    let pending = connection.pending;
    let may_be_pending: &[Pending] = match connection.phase {
        Phase::Requested => &[],
        Phase::Connecting => &[Pending::REQUEST],
        Phase::Open | Phase::Closing => &[
            Pending::RESPONSE,
            Pending::CREDIT_UPDATE,
            Pending::CREDIT_REQUEST,
            Pending::SHUTDOWN,
        ],
        Phase::Ended => &[Pending::RESET],
    };
    let mut others = pending;
    others.remove(may_be_pending);
    ensure(
        others.is_empty(),
        "a packet is pending that its state does not allow",
    )?;
    let has_ended = connection.phase == Phase::Ended;
    ensure(
        has_ended == (connection.serial == 0) && has_ended == pending.has(Pending::RESET),
        "an ended connection has a handle or no RST, or another has none",
    )?;
    ensure(
        has_ended || connection.guest_shut != both,
        "the guest has closed a connection that has not ended",
    )?;
    let is_closed = connection.owner_shut == both;
    let fits = match connection.phase {
        Phase::Open => !is_closed,
        Phase::Closing => is_closed,
        _ => true,
    };
    ensure(fits, "the owner has closed an open connection")?;
    let may_wait = !matches!(connection.phase, Phase::Requested | Phase::Ended);
    ensure(
        may_wait || connection.deadline.is_none(),
        "a timer is armed for nothing",
    )
}

impl PacketState {
    const ALL: [Self; 6] = [
        Self::Reset,
        Self::Request,
        Self::Response,
        Self::CreditUpdate,
        Self::CreditRequest,
        Self::Shutdown,
    ];

    fn bit(self) -> Pending {
        match self {
            Self::Reset => Pending::RESET,
            Self::Request => Pending::REQUEST,
            Self::Response => Pending::RESPONSE,
            Self::CreditUpdate => Pending::CREDIT_UPDATE,
            Self::CreditRequest => Pending::CREDIT_REQUEST,
            Self::Shutdown => Pending::SHUTDOWN,
        }
    }
}

impl OutgoingState {
    fn new(outgoing: Outgoing) -> Self {
        let Outgoing {
            alloc,
            fwd_cnt,
            sent,
            mark,
            packets,
            within_message,
        } = outgoing;
        Self {
            alloc,
            fwd_cnt,
            sent,
            mark,
            packets,
            within_message,
        }
    }

    fn restore(self) -> Outgoing {
        Outgoing {
            alloc: self.alloc,
            fwd_cnt: self.fwd_cnt,
            sent: self.sent,
            mark: self.mark,
            packets: self.packets,
            within_message: self.within_message,
        }
    }
}

impl IncomingState {
    fn new(incoming: Incoming) -> Self {
        let Incoming {
            alloc,
            peer_alloc,
            received,
            fwd_cnt,
            advertised,
        } = incoming;
        Self {
            alloc,
            peer_alloc,
            received,
            fwd_cnt,
            advertised,
        }
    }

    fn restore(self) -> Incoming {
        Incoming {
            alloc: self.alloc,
            peer_alloc: self.peer_alloc,
            received: self.received,
            fwd_cnt: self.fwd_cnt,
            advertised: self.advertised,
        }
    }
}

impl ReplyState {
    fn new(reply: &Reply) -> Self {
        let Reply { header, refuses } = reply;
        Self {
            peer: header.src_cid,
            peer_port: header.src_port,
            guest_port: header.dst_port,
            kind: header.kind,
            refuses: *refuses,
        }
    }

    fn restore(self, guest: u32) -> Reply {
        let header = Header {
            src_cid: self.peer,
            dst_cid: u64::from(guest),
            src_port: self.peer_port,
            dst_port: self.guest_port,
            kind: self.kind,
            op: Operation::Reset as u16,
            ..Header::default()
        };
        Reply {
            header,
            refuses: self.refuses,
        }
    }
}

impl CountersState {
    fn new(counters: Counters) -> Self {
        let Counters {
            spoofed,
            strays,
            over_limit,
            faults,
        } = counters;
        Self {
            spoofed,
            strays,
            over_limit,
            faults,
        }
    }

    fn restore(self) -> Result<Counters, SnapshotError> {
        let Self {
            spoofed,
            strays,
            over_limit,
            faults,
        } = self;
        let all = [spoofed, strays, over_limit, faults];
        ensure(
            all.iter().all(|it| *it <= MAX_COUNT),
            "a counter is out of range",
        )?;
        Ok(Counters {
            spoofed,
            strays,
            over_limit,
            faults,
        })
    }
}

impl EventState {
    fn new(event: &Event) -> Self {
        match *event {
            Event::Request { handle, key } => Self::Request {
                handle: handle.into(),
                key: key.into(),
            },
            Event::Connected { handle } => Self::Connected {
                handle: handle.into(),
            },
            Event::Finished { handle } => Self::Finished {
                handle: handle.into(),
            },
            Event::ClosedRead { handle } => Self::ClosedRead {
                handle: handle.into(),
            },
            Event::Closed { handle, reason } => Self::Closed {
                handle: handle.into(),
                reason: ReasonState::new(reason),
            },
        }
    }

    fn handle(&self) -> Handle {
        match *self {
            Self::Request { handle, .. }
            | Self::Connected { handle }
            | Self::Finished { handle }
            | Self::ClosedRead { handle }
            | Self::Closed { handle, .. } => handle.into(),
        }
    }

    fn restore(self) -> Event {
        let handle = self.handle();
        match self {
            Self::Request { key, .. } => Event::Request {
                handle,
                key: key.into(),
            },
            Self::Connected { .. } => Event::Connected { handle },
            Self::Finished { .. } => Event::Finished { handle },
            Self::ClosedRead { .. } => Event::ClosedRead { handle },
            Self::Closed { reason, .. } => Event::Closed {
                handle,
                reason: reason.restore(),
            },
        }
    }
}

impl ReasonState {
    fn new(reason: Closed) -> Self {
        match reason {
            Closed::Clean => Self::Clean,
            Closed::Refused => Self::Refused,
            Closed::Reset => Self::Reset,
            Closed::TimedOut => Self::TimedOut,
            Closed::CreditOverrun => Self::CreditOverrun,
            Closed::CreditViolation => Self::CreditViolation,
            Closed::Protocol(what) => Self::Protocol(what.to_owned()),
            Closed::GuestRestarted => Self::GuestRestarted,
        }
    }

    fn restore(self) -> Closed {
        match self {
            Self::Clean => Closed::Clean,
            Self::Refused => Closed::Refused,
            Self::Reset => Closed::Reset,
            Self::TimedOut => Closed::TimedOut,
            Self::CreditOverrun => Closed::CreditOverrun,
            Self::CreditViolation => Closed::CreditViolation,
            Self::Protocol(what) => {
                let known = violation::ALL.into_iter().find(|known| *known == what);
                Closed::Protocol(known.unwrap_or(violation::OTHER))
            }
            Self::GuestRestarted => Closed::GuestRestarted,
        }
    }
}

impl From<Handle> for HandleSnapshot {
    fn from(Handle { index, serial }: Handle) -> Self {
        Self { index, serial }
    }
}

impl From<HandleSnapshot> for Handle {
    fn from(HandleSnapshot { index, serial }: HandleSnapshot) -> Self {
        Self { index, serial }
    }
}

impl From<Key> for KeyState {
    fn from(key: Key) -> Self {
        let Key {
            guest_port,
            peer,
            peer_port,
            kind,
        } = key;
        Self {
            guest_port,
            peer: peer.0,
            peer_port,
            kind: match kind {
                SocketKind::Stream => KindState::Stream,
                SocketKind::Seqpacket => KindState::Seqpacket,
            },
        }
    }
}

impl From<KeyState> for Key {
    fn from(key: KeyState) -> Self {
        Self {
            guest_port: key.guest_port,
            peer: Cid(key.peer),
            peer_port: key.peer_port,
            kind: match key.kind {
                KindState::Stream => SocketKind::Stream,
                KindState::Seqpacket => SocketKind::Seqpacket,
            },
        }
    }
}
