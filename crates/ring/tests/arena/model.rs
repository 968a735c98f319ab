//! Random operations of a pair and its broker, in any order, each compared with a plain reference.

use std::collections::VecDeque;

use hvsock_ring::{Grant, OpenError, ResetCause, RingEnd, RingError, RingSide, SlotId};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::pair::{Pair, pair_at};

/// Each index picks one of the connections that there are.
#[derive(Clone, Copy, Debug)]
enum Op {
    Connect,
    Accept,
    Write(usize, usize, usize),
    Read(usize, usize, usize),
    Shutdown(usize, usize),
    /// Shuts down writing first, or not.
    Drop(usize, usize, bool),
    Abort(usize, usize),
    Reset(usize),
    /// To a connection that may be closed, and its slot used again.
    LateOrder(usize),
    ResetUnaccepted,
    Suspend(usize, bool),
    SetGrant(Grant),
    GrantSlots(u32),
    SetBacklog(u32),
    Scan,
    PrepareHandover,
    Keep,
    /// Another broker takes over.
    TakeOver,
}

fn op() -> impl Strategy<Value = Op> {
    let at = || 0..12usize;
    let side = || 0..2usize;
    let grant = prop_oneof![
        6 => Just(Grant::Granted),
        1 => Just(Grant::Suspended),
        1 => Just(Grant::Revoked),
    ];
    prop_oneof![
        20 => Just(Op::Connect),
        20 => Just(Op::Accept),
        20 => (at(), side(), 1..6000usize).prop_map(|(a, b, c)| Op::Write(a, b, c)),
        20 => (at(), side(), 1..6000usize).prop_map(|(a, b, c)| Op::Read(a, b, c)),
        6 => (at(), side()).prop_map(|(a, b)| Op::Shutdown(a, b)),
        20 => (at(), side(), any::<bool>()).prop_map(|(a, b, c)| Op::Drop(a, b, c)),
        1 => (at(), side()).prop_map(|(a, b)| Op::Abort(a, b)),
        1 => at().prop_map(Op::Reset),
        4 => (0..100usize).prop_map(Op::LateOrder),
        1 => Just(Op::ResetUnaccepted),
        2 => (at(), any::<bool>()).prop_map(|(a, b)| Op::Suspend(a, b)),
        6 => grant.prop_map(Op::SetGrant),
        1 => (1..9u32).prop_map(Op::GrantSlots),
        1 => (1..9u32).prop_map(Op::SetBacklog),
        6 => Just(Op::Scan),
        2 => Just(Op::PrepareHandover),
        4 => Just(Op::Keep),
        1 => Just(Op::TakeOver),
    ]
}

/// One connection, as the reference knows it.
struct Connection {
    id: SlotId,
    ends: [Option<RingEnd>; 2],
    /// The server has taken it from the queue.
    taken: bool,
    /// It may do so even though the grant is revoked, since a broker has handed over.
    left: bool,
    /// Bytes that each side has written, and those of them that the other one has not read.
    written: [u64; 2],
    sent: [VecDeque<u8>; 2],
    ended: [bool; 2],
    dropped: [bool; 2],
    suspended: bool,
    reset: Option<ResetCause>,
}

impl Connection {
    fn reset(&mut self, cause: ResetCause) {
        self.reset.get_or_insert(cause);
    }

    /// Whether nobody holds an end.
    fn is_over(&self) -> bool {
        self.dropped == [true; 2]
    }

    fn write(&mut self, side: usize, bytes: &[u8]) {
        let Some(end) = &self.ends[side] else { return };
        let expected = match () {
            () if self.ended[side] => Err(RingError::WriteShutdown),
            () if self.reset.is_some() => Err(RingError::Reset),
            () if self.dropped[1 - side] => Err(RingError::PeerClosed),
            () => match bytes.len().min(4096 - self.sent[side].len()) {
                0 => Err(RingError::WouldBlock),
                count => Ok(count),
            },
        };
        assert_eq!(end.try_write(bytes), expected);
        if let Ok(count) = expected {
            self.sent[side].extend(&bytes[..count]);
            self.written[side] += count as u64;
        }
    }

    fn read(&mut self, side: usize, count: usize) {
        let Some(end) = &self.ends[side] else { return };
        let peer = 1 - side;
        let expected = match self.sent[peer].len().min(count) {
            _ if self.suspended && self.reset.is_none() => Err(RingError::WouldBlock),
            0 if self.ended[peer] => match self.dropped[peer] && !self.sent[side].is_empty() {
                true => Err(RingError::UnreadData),
                false => Err(RingError::EndOfStream),
            },
            0 if self.reset.is_some() => Err(RingError::Reset),
            0 => Err(RingError::WouldBlock),
            count => Ok(count),
        };
        let mut buffer = vec![0; count];
        assert_eq!(end.try_read(&mut buffer), expected);
        if let Ok(count) = expected {
            let bytes: Vec<u8> = self.sent[peer].drain(..count).collect();
            assert_eq!(buffer[..count], bytes);
        }
        if expected == Err(RingError::Reset) {
            assert_eq!(Some(end.reset_cause()), self.reset);
        }
    }

    fn shutdown(&mut self, side: usize) {
        if let Some(end) = &self.ends[side] {
            end.shutdown_write();
            self.ended[side] |= self.reset.is_none();
        }
    }

    fn drop_end(&mut self, side: usize) {
        if self.ends[side].take().is_none() {
            return;
        }
        self.dropped[side] = true;
        if !self.ended[side] {
            self.reset(ResetCause::PeerGone);
        }
        if !self.sent[1 - side].is_empty() {
            self.reset(ResetCause::UnreadData);
        }
    }
}

struct Reference {
    pair: Pair,
    connections: Vec<Connection>,
    grant: Grant,
    is_prepared: bool,
    is_inherited: bool,
    granted: u32,
    backlog: u32,
    opened: u64,
    closed_bytes: [u64; 2],
    /// Every connection that was ever opened.
    ids: Vec<SlotId>,
}

impl Reference {
    fn step(&mut self, op: Op) {
        match op {
            Op::Connect => self.connect(),
            Op::Accept => self.accept(),
            Op::Write(at, side, count) => {
                let bytes: Vec<u8> = (0..count).map(|i| (i + at) as u8).collect();
                self.with(at, |it| it.write(side, &bytes));
            }
            Op::Read(at, side, count) => self.with(at, |it| it.read(side, count)),
            Op::Shutdown(at, side) => self.with(at, |it| it.shutdown(side)),
            Op::Drop(at, side, ends) => {
                self.with(at, |it| {
                    if ends {
                        it.shutdown(side);
                    }
                    it.drop_end(side);
                });
            }
            Op::Abort(at, side) => self.with(at, |it| {
                if let Some(end) = &it.ends[side] {
                    end.reset();
                    it.reset(ResetCause::Aborted);
                }
            }),
            Op::Reset(at) => {
                if let Some(id) = self.id(at) {
                    self.pair.monitor.reset(id, ResetCause::Control);
                    self.with(at, |it| it.reset(ResetCause::Control));
                }
            }
            Op::LateOrder(at) => {
                let open = |id: &SlotId| self.connections.iter().any(|it| it.id == *id);
                let late: Vec<SlotId> = self.ids.iter().filter(|id| !open(id)).copied().collect();
                if let Some(id) = late.get(at % late.len().max(1)) {
                    self.pair.monitor.suspend(*id, true);
                    self.pair.monitor.reset(*id, ResetCause::Control);
                }
            }
            Op::ResetUnaccepted => {
                self.pair.monitor.reset_unaccepted(ResetCause::Control);
                for it in self.connections.iter_mut().filter(|it| !it.taken) {
                    it.reset(ResetCause::Control);
                }
            }
            Op::Suspend(at, on) => {
                if let Some(id) = self.id(at) {
                    self.pair.monitor.suspend(id, on);
                    self.with(at, |it| it.suspended = on);
                }
            }
            Op::SetGrant(grant) => {
                self.pair.monitor.set_grant(grant);
                if !self.is_inherited {
                    self.grant = grant;
                }
                assert_eq!(self.pair.monitor.grant(), self.grant);
            }
            Op::GrantSlots(slots) => {
                self.pair.monitor.set_granted_slots(slots);
                if !self.is_inherited {
                    self.granted = self.granted.max(slots.min(6));
                }
            }
            Op::SetBacklog(backlog) => {
                self.pair.monitor.set_backlog(backlog);
                if !self.is_inherited {
                    self.backlog = backlog;
                }
            }
            Op::Scan => self.scan(),
            Op::PrepareHandover => self.prepare_handover(),
            Op::Keep => {
                self.pair.monitor.keep();
                if std::mem::take(&mut self.is_prepared) {
                    self.connections.iter_mut().for_each(|it| it.left = false);
                }
            }
            Op::TakeOver => {
                self.prepare_handover();
                self.pair.take_over();
                (self.is_prepared, self.is_inherited) = (false, true);
                self.grant = Grant::Revoked;
            }
        }
        for it in self.connections.extract_if(.., |it| it.is_over()) {
            for side in [0, 1] {
                self.closed_bytes[side] += it.written[side];
            }
        }
    }

    fn prepare_handover(&mut self) {
        self.pair.monitor.prepare_handover();
        if !self.is_inherited && !self.is_prepared {
            self.is_prepared = true;
            let is_left = self.grant != Grant::Revoked;
            for it in self.connections.iter_mut().filter(|it| !it.taken) {
                it.left = is_left;
            }
        }
    }

    /// What the pair reads.
    fn page(&self) -> Grant {
        match self.is_prepared {
            true => Grant::Revoked,
            false => self.grant,
        }
    }

    fn id(&self, at: usize) -> Option<SlotId> {
        let count = self.connections.len().max(1);
        self.connections.get(at % count).map(|it| it.id)
    }

    fn with(&mut self, at: usize, change: impl FnOnce(&mut Connection)) {
        let count = self.connections.len().max(1);
        if let Some(connection) = self.connections.get_mut(at % count) {
            change(connection);
        }
    }

    fn pending(&self) -> usize {
        self.connections.iter().filter(|it| !it.taken).count()
    }

    fn connect(&mut self) {
        let expected = match self.page() {
            Grant::Suspended => Some(OpenError::Suspended),
            Grant::Revoked => Some(OpenError::Revoked),
            Grant::Granted if self.pending() >= self.backlog as usize => {
                Some(OpenError::BacklogFull)
            }
            Grant::Granted if self.connections.len() >= self.granted as usize => {
                Some(OpenError::NoSlot)
            }
            Grant::Granted => None,
        };
        match self.pair.client.connect() {
            Err(error) => assert_eq!(Some(error), expected),
            Ok(opened) => {
                assert_eq!(expected, None);
                let id = opened.id;
                assert!(id.slot < self.granted && !self.connections.iter().any(|it| it.id == id));
                self.ids.push(id);
                self.opened += 1;
                self.connections.push(Connection {
                    id,
                    ends: [Some(opened.end), None],
                    taken: false,
                    left: false,
                    written: [0; 2],
                    sent: Default::default(),
                    ended: [false; 2],
                    dropped: [false; 2],
                    suspended: false,
                    reset: None,
                });
            }
        }
    }

    fn accept(&mut self) {
        let accepted = self.pair.server.accept().unwrap();
        let grant = self.page();
        if grant == Grant::Suspended {
            assert!(accepted.is_none());
            return;
        }
        let mut expected = None;
        for it in self.connections.iter_mut().filter(|it| !it.taken) {
            it.taken = true;
            let by_broker = it.reset == Some(ResetCause::Control);
            if by_broker || grant == Grant::Revoked && !it.left {
                // The server has discarded it.
                it.reset(ResetCause::Control);
                it.dropped[1] = true;
                continue;
            }
            expected = Some(it);
            break;
        }
        match (accepted, expected) {
            (None, None) => {}
            (Some(accepted), Some(it)) => {
                assert_eq!(accepted.id, it.id);
                it.ends[1] = Some(accepted.end);
            }
            (accepted, expected) => panic!("{accepted:?}, not {:?}", expected.map(|it| it.id)),
        }
    }

    fn scan(&self) {
        let views = self.pair.monitor.scan();
        assert_eq!(views.len(), self.connections.len());
        for it in &self.connections {
            let view = views.iter().find(|view| view.id == it.id).unwrap();
            assert_eq!(view.accepted, it.ends[1].is_some() || it.dropped[1]);
            assert_eq!((view.written, view.ended), (it.written, it.ended));
            assert_eq!(view.suspended, it.suspended);
            assert!(view.opened_at > 0);
        }
        assert_eq!(self.pair.monitor.pending() as usize, self.pending());
        assert_eq!(self.pair.client.in_use() as usize, self.connections.len());
        let totals = self.pair.monitor.totals();
        assert_eq!(totals.opened, self.opened);
        assert!(
            (0..2).all(|side| totals.closed_bytes[side] >= self.closed_bytes[side]),
            "{totals:?}"
        );
        assert!(self.pair.monitor.request_changes());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: hvsock_testkit::cases(120), ..ProptestConfig::default() })]

    #[test]
    fn a_pair_and_its_broker_do_what_the_reference_does(
        ops in vec(op(), 0..150),
        // Also shortly before the sequence numbers begin again.
        wraps in any::<bool>(),
    ) {
        let start = if wraps { (1 << 20) - 11 } else { 0 };
        let mut reference = Reference {
            pair: pair_at(6, 4, 4, start),
            connections: Vec::new(),
            grant: Grant::Granted,
            is_prepared: false,
            is_inherited: false,
            granted: 4,
            backlog: 4,
            opened: start,
            closed_bytes: [0; 2],
            ids: Vec::new(),
        };
        ops.into_iter().for_each(|op| reference.step(op));
        reference.scan();
        // A process that is gone leaves nothing behind, whatever it had open.
        let Reference { pair, connections, .. } = reference;
        pair.monitor.close_end(RingSide::Second);
        for it in connections {
            let [client, server] = it.ends;
            std::mem::forget(server);
            if let Some(client) = client {
                let mut rest = vec![0; 9000];
                while let Ok(1..) = client.try_read(&mut rest) {}
                let end = client.try_read(&mut rest);
                let is_over = matches!(
                    end,
                    Err(RingError::Reset | RingError::EndOfStream | RingError::UnreadData
                        | RingError::WouldBlock)
                );
                assert!(is_over, "{end:?}");
                assert!(end != Err(RingError::WouldBlock) || it.suspended);
            }
        }
        assert_eq!(pair.monitor.scan(), []);
    }
}
