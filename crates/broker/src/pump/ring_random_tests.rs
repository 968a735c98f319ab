//! Random orders of what two processes and an operator can do to one ring, with the broker in a
//! set. The promises are those of [`random_tests`](super::random_tests): what a process receives
//! is a prefix of what the other one wrote, it finds a clean end only after all of that and only
//! of a process that ended, and whose bytes are lost comes to know of it.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use hvsock_endpoint::{BrokerMessage, ClientMessage, MAX_MESSAGE, SocketOption};
use hvsock_fabric::{ConnectionId, Refusal};
use hvsock_ring::{End, Monitor, Parts, RingSize, Side, Stop};
use hvsock_sys::{message, seqpacket, set_nonblocking};
use mio::{Events, Poll};
use proptest::prelude::*;

use super::{Adopted, Connection, ConnectionSet, Counters, Report};

const ID: ConnectionId = ConnectionId::from_u64(7);

#[derive(Clone, Debug)]
enum Op {
    Write(usize, usize),
    Read(usize, usize),
    /// Says that it writes no more.
    Finish(usize),
    /// Says that it reads no more.
    StopReading(usize),
    /// Closes everything after saying that it writes no more.
    Close(usize),
    /// Ends without a word, control first or last.
    Kill(usize, bool),
    /// Says what changes nothing for the data.
    Chat(usize, usize),
    Suspend(bool),
    Cut,
    /// Lets the broker work.
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
        1 => Just(Op::Cut),
        10 => Just(Op::Turn),
    ]
}

/// One process, and what it knows.
struct Process {
    open: Option<(OwnedFd, End)>,
    /// Bytes that its writes accepted.
    written: u64,
    received: u64,
    finished: bool,
    stopped_reading: bool,
    /// It closed or died.
    gone: bool,
    /// Why it reads and writes no more.
    read_stop: Option<Stop>,
    write_stop: Option<Stop>,
    heard_end: bool,
    heard_reset: bool,
}

/// The byte at a place of either direction's data.
fn byte(at: u64) -> u8 {
    (at % 251) as u8
}

impl Process {
    fn new(control: OwnedFd, end: End) -> Self {
        Self {
            open: Some((control, end)),
            written: 0,
            received: 0,
            finished: false,
            stopped_reading: false,
            gone: false,
            read_stop: None,
            write_stop: None,
            heard_end: false,
            heard_reset: false,
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
            Err(Stop::WouldBlock) => {}
            Err(stop) => self.write_stop = Some(stop),
        }
    }

    /// Reads what is there; whether there was anything.
    fn read(&mut self, count: usize) -> bool {
        let Some((_, end)) = self.open.as_ref().filter(|_| !self.stopped_reading) else {
            return false;
        };
        let mut bytes = vec![0; count];
        match end.try_read(&mut bytes) {
            Ok(count) => {
                assert_eq!(self.read_stop, None, "it went on after its end");
                for (n, got) in (0..).zip(&bytes[..count]) {
                    assert_eq!(*got, byte(self.received + n), "damaged");
                }
                self.received += count as u64;
                return true;
            }
            Err(Stop::WouldBlock) => {}
            // A clean end can come to be known as one that left bytes of this process unread.
            Err(stop) => self.read_stop = Some(stop),
        }
        false
    }

    /// Reads what the broker has said, and clears the bell.
    fn listen(&mut self) {
        let Some((control, end)) = &self.open else {
            return;
        };
        end.hear();
        let mut bytes = [0; MAX_MESSAGE];
        while let Ok(received) = message::recv(control, &mut bytes) {
            if received.len == 0 {
                break;
            }
            match BrokerMessage::decode(&bytes[..received.len]).unwrap() {
                BrokerMessage::Shutdown => self.heard_end = true,
                BrokerMessage::Reset(_) => self.heard_reset = true,
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

    fn leave(&mut self, control_first: bool) {
        self.listen();
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
    counters: Arc<Counters>,
    reports: Vec<Option<Refusal>>,
    ends: [Process; 2],
}

impl World {
    fn new() -> Self {
        let poll = Poll::new().unwrap();
        // No number of bytes moves a ring to another thread.
        let mut set = ConnectionSet::new(poll.registry().try_clone().unwrap(), 0, 0);
        let Parts {
            memory,
            first,
            second,
        } = Parts::new(RingSize::MIN).unwrap();
        let monitor = Arc::new(Monitor::new(&memory).unwrap());
        let [(one, its), (other, others)] = [(); 2].map(|()| {
            let (own, theirs) = seqpacket::pair().unwrap();
            set_nonblocking(&own, true).unwrap();
            (own, theirs)
        });
        let counters = Arc::new(Counters::of_ring(Arc::clone(&monitor)));
        set.adopt(Adopted {
            id: ID,
            connection: Connection::ring([one, other], monitor),
            counters: Arc::clone(&counters),
        });
        let end = |side, bells| End::open(side, &memory, bells).unwrap();
        Self {
            poll,
            events: Events::with_capacity(16),
            set,
            counters,
            reports: Vec::new(),
            ends: [
                Process::new(its, end(Side::First, first)),
                Process::new(others, end(Side::Second, second)),
            ],
        }
    }

    /// One round of the broker; whether there was anything to do.
    fn turn(&mut self) -> bool {
        let ready = self.set.has_ready();
        self.poll
            .poll(&mut self.events, Some(Duration::ZERO))
            .unwrap();
        for event in &self.events {
            self.set.note(event);
        }
        self.set.turns();
        while let Some(report) = self.set.next_report() {
            match report {
                Report::Closed { reason, .. } => self.reports.push(reason),
                Report::Busy { .. } => panic!("a ring is never busy"),
                Report::Vm { .. } => panic!("a set has no VMs"),
                Report::ConnectedSuspend { .. } => {}
            }
        }
        ready || !self.events.is_empty()
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
                self.ends[end].leave(false);
            }
            Op::Kill(end, control_first) => self.ends[end].leave(control_first),
            Op::Chat(end, count) => {
                let option = SocketOption::ConnectedSuspend;
                for value in 0..count as u32 {
                    let mut bytes = Vec::new();
                    ClientMessage::SetOption { option, value }.encode(&mut bytes);
                    if let Some((control, _)) = &self.ends[end].open {
                        // The broker may be behind, or have closed it.
                        let _ = message::send(control, &bytes, &[]);
                    }
                }
            }
            Op::Suspend(suspended) => self.set.suspend(ID, suspended),
            Op::Cut => {
                let cause = "cut".into();
                self.set.cut(ID, Refusal::Reset { cause });
            }
            Op::Turn => drop(self.turn()),
        }
    }

    /// Lets everything come to rest, with both processes reading what they can.
    fn settle(&mut self) {
        self.set.suspend(ID, false);
        let mut quiet = 0;
        while quiet < 3 {
            let mut busy = self.turn();
            for end in &mut self.ends {
                busy |= end.read(1 << 14);
                end.listen();
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
        use Op::{Close, Cut, Kill, StopReading};
        matches!(op, Close(_) | Kill(..) | Cut | StopReading(_))
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
        if to.heard_end {
            assert!(from.finished && from.gone, "no end that was announced");
        }
        if to.open.is_some() && !to.stopped_reading {
            match to.read_stop {
                Some(Stop::End) => {
                    assert!(from.finished, "an end of a process that did not end");
                    assert_eq!(to.received, from.written, "a clean end with bytes missing");
                }
                Some(_) => assert!(to.heard_reset, "an error without its reason"),
                None => assert!(!from.gone, "an end that nobody sees"),
            }
        }
        let lost = to.gone && to.received < from.written;
        if lost && from.open.is_some() {
            let knows = from.heard_reset || from.write_stop.is_some();
            assert!(knows, "bytes lost in silence");
        }
    }
    let counted = [world.counters.sent(), world.counters.received()];
    for (process, counted) in world.ends.iter().zip(counted) {
        assert!(counted >= process.written, "bytes that nobody counted");
    }
    if harmless {
        assert_eq!(world.reports, []);
        for reader in 0..2 {
            let [to, from] = [&world.ends[reader], &world.ends[1 - reader]];
            assert_eq!((to.read_stop, to.heard_reset), (Some(Stop::End), false));
            assert_eq!(to.received, from.written);
        }
    }
    // When both processes have left, so has the connection.
    for end in &mut world.ends {
        end.leave(false);
    }
    world.settle();
    assert_eq!(world.reports.len(), 1, "nothing ends it");
    assert!(!harmless || world.reports == [None]);
    assert!(world.set.release(ID).is_none());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_to_a_ring_nothing_is_lost_in_silence(
        ops in prop::collection::vec(op(), 0..60),
    ) {
        check(&ops);
    }
}
