//! Random operation sequences of two processes and an operator on one ring connection in a set.
//!
//! The invariants are those of [`random_tests`](super::random_tests): a process receives a prefix of
//! what its peer wrote. It sees a clean end only after all of those bytes, and only of a peer that
//! ended cleanly. A writer whose bytes are lost gets an error.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use hvsock_endpoint::{BrokerMessage, ClientMessage, MAX_MESSAGE, SocketOption};
use hvsock_fabric::{ConnectionId, Refusal};
use hvsock_ring::{Monitor, Parts, RingEnd, RingError, RingSide, RingSize};
use hvsock_sys::{message, seqpacket, set_nonblocking};
use mio::{Events, Poll};
use proptest::prelude::*;

use super::handover_testing::hand_over;
use super::{Adopted, Connection, ConnectionSet, Report};
use crate::data_path::ByteCounters;

const ID: ConnectionId = ConnectionId::from_u64(7);

#[derive(Clone, Debug)]
enum Op {
    Write(usize, usize),
    Read(usize, usize),
    /// Shuts down writing (half-close).
    Finish(usize),
    /// Shuts down reading.
    StopReading(usize),
    /// Shuts down writing, then closes everything.
    Close(usize),
    /// Dies without a shutdown, the control connection closed first or last.
    Kill(usize, bool),
    /// Sends messages that do not affect the data.
    Chat(usize, usize),
    Suspend(bool),
    /// Another broker takes over.
    HandOver,
    Reset,
    /// Runs one round of the broker.
    Turn,
}

fn op() -> impl Strategy<Value = Op> {
    let end = || 0..2usize;
    prop_oneof![
        12 => (end(), 1..6000usize).prop_map(|(end, n)| Op::Write(end, n)),
        12 => (end(), 1..6000usize).prop_map(|(end, n)| Op::Read(end, n)),
        3 => end().prop_map(Op::Finish),
        1 => end().prop_map(Op::StopReading),
        2 => end().prop_map(Op::Close),
        1 => (end(), any::<bool>()).prop_map(|(end, first)| Op::Kill(end, first)),
        2 => (end(), 1..40usize).prop_map(|(end, n)| Op::Chat(end, n)),
        3 => any::<bool>().prop_map(Op::Suspend),
        3 => Just(Op::HandOver),
        1 => Just(Op::Reset),
        10 => Just(Op::Turn),
    ]
}

/// One process and what it has observed.
struct Process {
    open: Option<(OwnedFd, RingEnd)>,
    /// Bytes that its writes accepted.
    written: u64,
    received: u64,
    finished: bool,
    stopped_reading: bool,
    /// It closed or died.
    gone: bool,
    /// Why its reads and writes stopped.
    read_stop: Option<RingError>,
    write_stop: Option<RingError>,
    received_end: bool,
    received_reset: bool,
}

/// The byte at an offset of either direction's data.
fn byte(at: u64) -> u8 {
    (at % 251) as u8
}

impl Process {
    fn new(control: OwnedFd, end: RingEnd) -> Self {
        Self {
            open: Some((control, end)),
            written: 0,
            received: 0,
            finished: false,
            stopped_reading: false,
            gone: false,
            read_stop: None,
            write_stop: None,
            received_end: false,
            received_reset: false,
        }
    }

    fn write(&mut self, count: usize) {
        let Some((_, end)) = self.open.as_ref().filter(|_| !self.finished) else {
            return;
        };
        let start = self.written;
        let bytes: Vec<u8> = (0..count as u64).map(|n| byte(start + n)).collect();
        match end.try_write(&bytes) {
            Ok(taken) => self.written += taken as u64,
            Err(RingError::WouldBlock) => {}
            Err(stop) => self.write_stop = Some(stop),
        }
    }

    /// Reads available data. Returns whether there was any.
    fn read(&mut self, count: usize) -> bool {
        let Some((_, end)) = self.open.as_ref().filter(|_| !self.stopped_reading) else {
            return false;
        };
        let mut bytes = vec![0; count];
        match end.try_read(&mut bytes) {
            Ok(count) => {
                assert_eq!(self.read_stop, None, "data after the end");
                for (n, got) in (0..).zip(&bytes[..count]) {
                    assert_eq!(*got, byte(self.received + n), "corrupted data");
                }
                self.received += count as u64;
                return true;
            }
            Err(RingError::WouldBlock) => {}
            // A clean end can later turn into a reset because of unread bytes of this process.
            Err(stop) => self.read_stop = Some(stop),
        }
        false
    }

    /// Reads the broker's messages, and drains the doorbell's notifications.
    fn receive(&mut self) {
        let Some((control, end)) = &self.open else {
            return;
        };
        end.drain_notifications();
        let mut bytes = [0; MAX_MESSAGE];
        while let Ok(received) = message::recv(control, &mut bytes) {
            if received.len == 0 {
                break;
            }
            match BrokerMessage::decode(&bytes[..received.len]).unwrap() {
                BrokerMessage::Shutdown => self.received_end = true,
                BrokerMessage::Reset(_) => self.received_reset = true,
                BrokerMessage::Suspended { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }

    fn finish(&mut self) {
        if let Some((_, end)) = &self.open {
            end.shutdown_write();
            self.finished = true;
        }
    }

    fn exit(&mut self, control_first: bool) {
        self.receive();
        self.gone |= self.open.is_some();
        match self.open.take() {
            Some((control, end)) if control_first => {
                drop(control);
                drop(end);
            }
            Some((control, end)) => {
                drop(end);
                drop(control);
            }
            None => {}
        }
    }
}

struct World {
    poll: Poll,
    events: Events,
    set: ConnectionSet,
    counters: Arc<ByteCounters>,
    reports: Vec<Option<Refusal>>,
    ends: [Process; 2],
}

impl World {
    fn new() -> Self {
        let poll = Poll::new().unwrap();
        // A threshold of 0 bytes: a ring must never be reported as busy.
        let mut set = ConnectionSet::new(poll.registry().try_clone().unwrap(), 0, 0);
        let Parts {
            memory,
            first,
            second,
        } = Parts::new(RingSize::MIN).unwrap();
        let monitor = Arc::new(Monitor::new(&memory).unwrap());
        let [(client, client_process), (server, server_process)] = [(); 2].map(|()| {
            let (own, theirs) = seqpacket::pair().unwrap();
            set_nonblocking(&own, true).unwrap();
            (own, theirs)
        });
        let counters = Arc::new(ByteCounters::of_ring(Arc::clone(&monitor)));
        set.adopt(Adopted {
            id: ID,
            connection: Connection::ring(
                [client.into(), server.into()],
                memory.try_clone().unwrap(),
                monitor,
            ),
            counters: Arc::clone(&counters),
        });
        let end = |side, doorbells| RingEnd::open(side, &memory, doorbells).unwrap();
        Self {
            poll,
            events: Events::with_capacity(16),
            set,
            counters,
            reports: Vec::new(),
            ends: [
                Process::new(client_process, end(RingSide::First, first)),
                Process::new(server_process, end(RingSide::Second, second)),
            ],
        }
    }

    /// Runs one round of the broker. Returns whether there was work.
    fn turn(&mut self) -> bool {
        let ready = self.set.has_ready();
        self.poll
            .poll(&mut self.events, Some(Duration::ZERO))
            .unwrap();
        for event in &self.events {
            self.set.handle_event(event);
        }
        self.set.run_turns();
        self.take_reports();
        ready || !self.events.is_empty()
    }

    fn take_reports(&mut self) {
        while let Some(report) = self.set.next_report() {
            match report {
                Report::Closed { reason, .. } => self.reports.push(reason),
                Report::Busy { .. } => panic!("a ring was reported as busy"),
                Report::Arena { .. } => panic!("a ring was reported as an arena"),
                Report::ConnectedSuspend { .. } => {}
            }
        }
    }

    fn run(&mut self, op: &Op) {
        match *op {
            Op::Write(end, count) => self.ends[end].write(count),
            Op::Read(end, count) => drop(self.ends[end].read(count)),
            Op::Finish(end) => self.ends[end].finish(),
            Op::StopReading(end) => {
                let process = &mut self.ends[end];
                process.stopped_reading = true;
                if let Some((_, end)) = &process.open {
                    end.shutdown_read();
                }
            }
            Op::Close(end) => {
                self.ends[end].finish();
                self.ends[end].exit(false);
            }
            Op::Kill(end, control_first) => self.ends[end].exit(control_first),
            Op::Chat(end, count) => {
                let option = SocketOption::ConnectedSuspend;
                for value in 0..count as u32 {
                    let mut bytes = Vec::new();
                    ClientMessage::SetOption { option, value }.encode(&mut bytes);
                    if let Some((control, _)) = &self.ends[end].open {
                        // The receive queue may be full, or the broker may have closed it.
                        let _ = message::send(control, &bytes, &[]);
                    }
                }
            }
            Op::Suspend(suspended) => self.set.suspend(ID, suspended),
            Op::HandOver => {
                self.take_reports();
                let before = self.counters.counted();
                let poll = Poll::new().unwrap();
                let registry = poll.registry().try_clone().unwrap();
                let mut restored = hand_over(&mut self.set, registry, 0);
                self.poll = poll;
                if let Some(counters) = restored.counters.remove(&ID) {
                    self.counters = counters;
                }
                assert_eq!(self.counters.counted(), before);
            }
            Op::Reset => {
                let cause = "reset".into();
                self.set.reset(ID, Refusal::Reset { cause });
            }
            Op::Turn => drop(self.turn()),
        }
    }

    /// Runs the broker until idle, with both processes reading all they can.
    fn settle(&mut self) {
        self.set.suspend(ID, false);
        let mut quiet = 0;
        while quiet < 3 {
            let mut busy = self.turn();
            for end in &mut self.ends {
                busy |= end.read(1 << 14);
                end.receive();
            }
            quiet = if busy { 0 } else { quiet + 1 };
        }
    }
}

fn check(ops: &[Op]) {
    let mut world = World::new();
    for op in ops {
        world.run(op);
    }
    let bad = |op: &Op| {
        use Op::{Close, Kill, Reset, StopReading};
        matches!(op, Close(_) | Kill(..) | Reset | StopReading(_))
    };
    let harmless = !ops.iter().any(bad);
    world.settle();
    if harmless {
        for end in &mut world.ends {
            end.finish();
        }
        world.settle();
    }
    for reader in 0..2 {
        let [to, from] = [&world.ends[reader], &world.ends[1 - reader]];
        assert!(to.received <= from.written);
        if to.received_end {
            assert!(
                from.finished && from.gone,
                "an announced end of a live process"
            );
        }
        if to.open.is_some() && !to.stopped_reading {
            match to.read_stop {
                Some(RingError::EndOfStream) => {
                    assert!(from.finished, "a clean end of a process that did not end");
                    assert_eq!(to.received, from.written, "a clean end with bytes missing");
                }
                Some(_) => assert!(to.received_reset, "an error without a reason"),
                None => assert!(!from.gone, "a dead peer was not reported"),
            }
        }
        let lost = to.gone && to.received < from.written;
        if lost && from.open.is_some() {
            let reported = from.received_reset || from.write_stop.is_some();
            assert!(reported, "bytes lost silently");
        }
    }
    let counted = [world.counters.sent(), world.counters.received()];
    for (process, counted) in world.ends.iter().zip(counted) {
        assert!(counted >= process.written, "uncounted bytes");
    }
    if harmless {
        assert_eq!(world.reports, []);
        for reader in 0..2 {
            let [to, from] = [&world.ends[reader], &world.ends[1 - reader]];
            assert_eq!(
                (to.read_stop, to.received_reset),
                (Some(RingError::EndOfStream), false)
            );
            assert_eq!(to.received, from.written);
        }
    }
    // The connection closes once both processes have exited.
    for end in &mut world.ends {
        end.exit(false);
    }
    world.settle();
    assert_eq!(world.reports.len(), 1, "the connection stays open");
    assert!(!harmless || world.reports == [None]);
    assert!(world.set.release(ID).is_none());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_sequence_of_operations_on_a_ring_loses_bytes_silently(
        ops in prop::collection::vec(op(), 0..60),
    ) {
        check(&ops);
    }
}
