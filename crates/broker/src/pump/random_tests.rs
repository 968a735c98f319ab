//! Random operation sequences of two processes and an operator on one relayed connection.
//!
//! The invariants: a process receives a prefix of what its peer wrote. It receives a clean end only
//! after all of those bytes, and only from a peer that announced it. A connection without a reset or
//! death ends cleanly at both ends.

use std::collections::HashSet;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use hvsock_endpoint::{BrokerMessage, ClientMessage, MAX_MESSAGE, SocketOption};
use hvsock_fabric::{ConnectionId, Refusal};
use hvsock_sys::{message, seqpacket, set_nonblocking, stream};
use mio::{Events, Poll};
use proptest::prelude::*;

use super::handover_testing::hand_over;
use super::{Adopted, Connection, ConnectionSet, RelayEnd, Report};

const ID: ConnectionId = ConnectionId::from_u64(7);
/// The first token of the second set.
const SECOND: usize = 1 << 50;

#[derive(Clone, Debug)]
enum Op {
    Write(usize, usize),
    Read(usize, usize),
    /// Announces the end, then half-closes.
    Finish(usize),
    /// Shuts down reading only.
    StopReading(usize),
    /// Announces the end, then closes everything.
    Close(usize),
    /// Dies without an announcement, the data descriptor closed first or last.
    Kill(usize, bool),
    /// Sends messages that do not affect the data.
    Chat(usize, usize),
    Suspend(bool),
    /// Moves the connection to the other set.
    Migrate,
    /// Another broker takes over.
    HandOver,
    Reset,
    /// Runs one round of the broker.
    Turn,
}

fn op() -> impl Strategy<Value = Op> {
    let end = || 0..2usize;
    prop_oneof![
        12 => (end(), 1..300_000usize).prop_map(|(end, n)| Op::Write(end, n)),
        12 => (end(), 1..300_000usize).prop_map(|(end, n)| Op::Read(end, n)),
        3 => end().prop_map(Op::Finish),
        1 => end().prop_map(Op::StopReading),
        1 => end().prop_map(Op::Close),
        1 => (end(), any::<bool>()).prop_map(|(end, first)| Op::Kill(end, first)),
        2 => (end(), 1..40usize).prop_map(|(end, n)| Op::Chat(end, n)),
        3 => any::<bool>().prop_map(Op::Suspend),
        3 => Just(Op::Migrate),
        3 => Just(Op::HandOver),
        1 => Just(Op::Reset),
        20 => Just(Op::Turn),
    ]
}

/// One process and what it has observed.
struct Process {
    open: Option<(OwnedFd, UnixStream)>,
    /// Bytes that its writes accepted.
    written: u64,
    received: u64,
    finished: bool,
    stopped_reading: bool,
    /// It closed or died.
    gone: bool,
    data_ended: bool,
    received_end: bool,
    received_reset: bool,
    write_failed: bool,
}

/// The byte at an offset of either direction's data.
fn byte(at: u64) -> u8 {
    (at % 251) as u8
}

impl Process {
    fn new(control: OwnedFd, data: OwnedFd) -> Self {
        set_nonblocking(&data, true).unwrap();
        Self {
            open: Some((control, UnixStream::from(data))),
            written: 0,
            received: 0,
            finished: false,
            stopped_reading: false,
            gone: false,
            data_ended: false,
            received_end: false,
            received_reset: false,
            write_failed: false,
        }
    }

    fn send(&self, message: &ClientMessage) {
        if let Some((control, _)) = &self.open {
            let mut bytes = Vec::new();
            message.encode(&mut bytes);
            // The receive queue may be full, or the broker may have closed it.
            let _ = message::send(control, &bytes, &[]);
        }
    }

    fn write(&mut self, count: usize) {
        let Some((_, data)) = self.open.as_mut().filter(|_| !self.finished) else {
            return;
        };
        let start = self.written;
        let bytes: Vec<u8> = (0..count as u64).map(|n| byte(start + n)).collect();
        match data.write(&bytes) {
            Ok(taken) => self.written += taken as u64,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => self.write_failed = true,
        }
    }

    /// Reads available data. Returns whether there was any.
    fn read(&mut self, count: usize) -> bool {
        let Some((_, data)) = self.open.as_mut().filter(|_| !self.stopped_reading) else {
            return false;
        };
        let mut bytes = vec![0; count];
        match data.read(&mut bytes) {
            Ok(0) => self.data_ended = true,
            Ok(count) => {
                for (n, got) in (0..).zip(&bytes[..count]) {
                    assert_eq!(*got, byte(self.received + n), "corrupted data");
                }
                self.received += count as u64;
                return true;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => self.data_ended = true,
        }
        false
    }

    /// Reads the broker's messages.
    fn receive(&mut self) {
        let Some((control, _)) = &self.open else {
            return;
        };
        let mut bytes = [0; MAX_MESSAGE];
        while let Ok(received) = message::recv(control, &mut bytes) {
            if received.len == 0 {
                break;
            }
            match BrokerMessage::decode(&bytes[..received.len]).unwrap() {
                BrokerMessage::Shutdown => self.received_end = true,
                BrokerMessage::Reset(_) => self.received_reset = true,
                other => panic!("{other:?}"),
            }
        }
    }

    fn finish(&mut self) {
        if !self.finished && self.open.is_some() {
            self.send(&ClientMessage::Shutdown);
            self.finished = true;
            if let Some((_, data)) = &self.open {
                let _ = data.shutdown(Shutdown::Write);
            }
        }
    }

    fn exit(&mut self, data_first: bool) {
        self.receive();
        self.gone |= self.open.is_some();
        match self.open.take() {
            Some((control, data)) if data_first => {
                drop(data);
                drop(control);
            }
            open => drop(open),
        }
    }
}

/// The broker's side: two sets that share an epoll descriptor.
struct World {
    poll: Poll,
    events: Events,
    sets: [ConnectionSet; 2],
    at: usize,
    reports: Vec<Option<Refusal>>,
    ends: [Process; 2],
}

impl World {
    fn new() -> Self {
        let poll = Poll::new().unwrap();
        let set = |base| ConnectionSet::new(poll.registry().try_clone().unwrap(), base, u64::MAX);
        let mut sets = [set(0), set(SECOND)];
        let mut sides = Vec::new();
        let ends = [0; 2].map(|_| {
            let (control, their_control) = seqpacket::pair().unwrap();
            let (data, their_data) = stream::pair().unwrap();
            // Small, so that writes often find the buffer full.
            stream::set_send_buffer(&data, 16 * 1024).unwrap();
            set_nonblocking(&data, true).unwrap();
            sides.push(RelayEnd::new(control, data, false));
            Process::new(their_control, their_data)
        });
        let [to, from] = [sides.pop().unwrap(), sides.pop().unwrap()];
        sets[0].adopt(Adopted {
            id: ID,
            connection: Connection::relay(from, to),
            counters: Arc::default(),
        });
        Self {
            poll,
            events: Events::with_capacity(16),
            sets,
            at: 0,
            reports: Vec::new(),
            ends,
        }
    }

    /// Runs one round of the broker. Returns whether there was work.
    fn turn(&mut self) -> bool {
        let ready = self.sets.iter().any(ConnectionSet::has_ready);
        self.poll
            .poll(&mut self.events, Some(Duration::ZERO))
            .unwrap();
        for event in &self.events {
            self.sets[usize::from(event.token().0 >= SECOND)].handle_event(event);
        }
        self.sets.iter_mut().for_each(ConnectionSet::run_turns);
        self.take_reports();
        ready || !self.events.is_empty()
    }

    fn take_reports(&mut self) {
        for set in &mut self.sets {
            while let Some(report) = set.next_report() {
                if let Report::Closed { connection, reason } = report {
                    assert_eq!(connection, ID);
                    self.reports.push(reason);
                }
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
                if let Some((_, data)) = &process.open {
                    let _ = data.shutdown(Shutdown::Read);
                }
            }
            Op::Close(end) => {
                self.ends[end].finish();
                self.ends[end].exit(true);
            }
            Op::Kill(end, data_first) => self.ends[end].exit(data_first),
            Op::Chat(end, count) => {
                let option = SocketOption::ConnectedSuspend;
                for value in 0..count as u32 {
                    self.ends[end].send(&ClientMessage::SetOption { option, value });
                }
            }
            Op::Suspend(suspended) => self.sets[self.at].suspend(ID, suspended),
            Op::Migrate => {
                if let Some(adopted) = self.sets[self.at].release(ID) {
                    self.at = 1 - self.at;
                    self.sets[self.at].adopt(adopted);
                }
            }
            Op::HandOver => {
                self.take_reports();
                let adopted = self.sets[1].release_all();
                let [first, _] = &mut self.sets;
                adopted.into_iter().for_each(|one| first.adopt(one));
                let poll = Poll::new().unwrap();
                let registry = || poll.registry().try_clone().unwrap();
                let _ = hand_over(first, registry(), u64::MAX);
                self.sets[1] = ConnectionSet::new(registry(), SECOND, u64::MAX);
                (self.poll, self.at) = (poll, 0);
            }
            Op::Reset => {
                let cause = "reset".into();
                self.sets[self.at].reset(ID, Refusal::Reset { cause });
            }
            Op::Turn => drop(self.turn()),
        }
    }

    /// Runs the broker until idle, with both processes reading all they can.
    fn settle(&mut self) {
        self.sets[self.at].suspend(ID, false);
        let mut quiet = 0;
        while quiet < 3 {
            let mut busy = self.turn();
            for end in &mut self.ends {
                busy |= end.read(1 << 20);
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
    let over: HashSet<_> = world.reports.iter().map(Option::is_some).collect();
    assert!(world.reports.len() <= 1, "closed twice: {over:?}");
    for reader in 0..2 {
        let [to, from] = [&world.ends[reader], &world.ends[1 - reader]];
        assert!(to.received <= from.written);
        if to.received_end {
            assert!(from.finished, "a clean end without an announcement");
        }
        // A live reader must get the kind of its data's end.
        if to.open.is_some() && !to.stopped_reading && to.data_ended {
            assert!(
                to.received_end || to.received_reset,
                "an end of data without a message"
            );
            if to.received_end && !to.received_reset {
                assert_eq!(to.received, from.written, "a clean end with bytes missing");
            }
        }
        // A writer must get an error if its bytes were lost, unless both ends had closed cleanly before
        // the bytes were discarded.
        let lost = to.gone && to.received < from.written;
        let well = from.finished && world.reports == [None];
        if lost && from.open.is_some() && !well {
            world.ends[1 - reader].write(1);
            let from = &world.ends[1 - reader];
            let reported = from.received_reset || from.write_failed;
            assert!(reported, "bytes lost silently");
        }
    }
    if harmless {
        assert_eq!(world.reports, [None]);
        for reader in 0..2 {
            let [to, from] = [&world.ends[reader], &world.ends[1 - reader]];
            assert!(to.data_ended && to.received_end && !to.received_reset);
            assert_eq!(to.received, from.written);
        }
    }
    // The connection closes once both processes have exited.
    for end in &mut world.ends {
        end.exit(false);
    }
    world.settle();
    assert_eq!(world.reports.len(), 1, "the connection stays open");
    assert!(world.sets.iter_mut().all(|set| set.release(ID).is_none()));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_sequence_of_operations_loses_bytes_silently(ops in prop::collection::vec(op(), 0..60)) {
        check(&ops);
    }
}
