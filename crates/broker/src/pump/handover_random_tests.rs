//! Random operations of both processes and an operator on connections of every kind, with a handover of the broker
//! between any two. Everything that the processes and the core see is the same as without handovers.

use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use hvsock_endpoint::{BrokerMessage, ClientMessage, MAX_MESSAGE, SocketOption};
use hvsock_fabric::{ConnectionEnd, ConnectionId, Refusal};
use hvsock_ring::{
    ArenaClient, ArenaLimits, ArenaMonitor, ArenaParts, ArenaServer, Monitor, Parts, RingEnd,
    RingError, RingSide, RingSize,
};
use hvsock_sys::{message, seqpacket, set_nonblocking, stream};
use mio::{Events, Poll};
use proptest::prelude::*;

use super::handover_testing::{duplicate, export, hand_over};
use super::{Adopted, Connection, ConnectionSet, DirectEnd, RelayEnd, Report};
use crate::data_path::ByteCounters;

const ID: ConnectionId = ConnectionId::from_u64(7);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Relay([bool; 2]),
    RelayOfGuest { half_close: bool },
    Direct([bool; 2]),
    HandOver { side: usize, raw_fd: bool },
    Ring,
    Arena,
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Write(usize, usize),
    Read(usize, usize),
    /// Half-closes, with an announcement where there are any.
    Finish(usize),
    StopReading(usize),
    /// Finishes, and closes everything.
    Close(usize),
    Kill(usize, bool),
    AskForEnd(usize),
    SetOption(usize, bool),
    Suspend(bool),
    Reset,
    ResetSlot,
}

fn kind() -> impl Strategy<Value = Kind> {
    let flags = || [any::<bool>(), any::<bool>()];
    prop_oneof![
        flags().prop_map(Kind::Relay),
        any::<bool>().prop_map(|half_close| Kind::RelayOfGuest { half_close }),
        flags().prop_map(Kind::Direct),
        (0..2usize, any::<bool>()).prop_map(|(side, raw_fd)| Kind::HandOver { side, raw_fd }),
        Just(Kind::Ring),
        Just(Kind::Arena),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let end = || 0..2usize;
    prop_oneof![
        12 => (end(), 1..300_000usize).prop_map(|(end, n)| Op::Write(end, n)),
        12 => (end(), 1..300_000usize).prop_map(|(end, n)| Op::Read(end, n)),
        3 => end().prop_map(Op::Finish),
        1 => end().prop_map(Op::StopReading),
        2 => end().prop_map(Op::Close),
        1 => (end(), any::<bool>()).prop_map(|(end, first)| Op::Kill(end, first)),
        3 => end().prop_map(Op::AskForEnd),
        3 => (end(), any::<bool>()).prop_map(|(end, on)| Op::SetOption(end, on)),
        4 => any::<bool>().prop_map(Op::Suspend),
        1 => Just(Op::Reset),
        1 => Just(Op::ResetSlot),
    ]
}

/// What happens to the broker around an operation.
#[derive(Clone, Copy, Debug)]
enum Event {
    Nothing,
    /// It is handed over before, after, or before and after the broker handles the operation.
    HandedOver([bool; 2]),
    /// A handover fails.
    Fails,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => Just(Event::Nothing),
        3 => [any::<bool>(), any::<bool>()].prop_map(Event::HandedOver),
        1 => Just(Event::Fails),
    ]
}

enum Data {
    Socket(OwnedFd),
    Ring(Box<RingEnd>),
}

/// One process. A guest has no control connection.
struct Process {
    open: Option<(Option<OwnedFd>, Data)>,
    written: u64,
    received: u64,
    finished: bool,
}

/// What one operation came to.
#[derive(Debug, PartialEq)]
enum Seen {
    Wrote(Result<usize, String>),
    Read(Result<usize, String>),
    Message(usize, String),
    Closed(Option<String>),
    Option(ConnectionEnd, bool),
    Counted(Option<[u64; 2]>),
    Slots(Vec<hvsock_ring::SlotView>),
}

fn byte(at: u64) -> u8 {
    (at % 251) as u8
}

impl Process {
    fn new(control: Option<OwnedFd>, data: Data) -> Self {
        Self {
            open: Some((control, data)),
            written: 0,
            received: 0,
            finished: false,
        }
    }

    fn send(&self, message: &ClientMessage) {
        if let Some((Some(control), _)) = &self.open {
            let mut bytes = Vec::new();
            message.encode(&mut bytes);
            let _ = message::send(control, &bytes, &[]);
        }
    }

    fn write(&mut self, count: usize) -> Option<Seen> {
        let (_, data) = self.open.as_ref().filter(|_| !self.finished)?;
        let start = self.written;
        let bytes: Vec<u8> = (0..count as u64).map(|n| byte(start + n)).collect();
        let wrote = match data {
            Data::Socket(data) => stream::send(data, &bytes).map_err(|error| error.to_string()),
            Data::Ring(end) => end.try_write(&bytes).map_err(|error| error.to_string()),
        };
        if let Ok(count) = wrote {
            self.written += count as u64;
        }
        Some(Seen::Wrote(wrote))
    }

    fn read(&mut self, count: usize) -> Option<Seen> {
        let (_, data) = self.open.as_ref()?;
        let mut bytes = vec![0; count];
        let read = match data {
            Data::Socket(data) => stream::recv(data, &mut bytes).map_err(|error| error.to_string()),
            Data::Ring(end) => match end.try_read(&mut bytes) {
                Err(RingError::EndOfStream) => Ok(0),
                other => other.map_err(|error| error.to_string()),
            },
        };
        if let Ok(count) = read {
            for (n, got) in (0..).zip(&bytes[..count]) {
                assert_eq!(*got, byte(self.received + n), "corrupted data");
            }
            self.received += count as u64;
        }
        Some(Seen::Read(read))
    }

    fn messages(&self, side: usize, seen: &mut Vec<Seen>) {
        let Some((Some(control), _)) = &self.open else {
            return;
        };
        let mut bytes = [0; MAX_MESSAGE];
        while let Ok(received) = message::recv(control, &mut bytes) {
            if received.len == 0 {
                break;
            }
            let message = BrokerMessage::decode(&bytes[..received.len]).unwrap();
            seen.push(Seen::Message(side, format!("{message:?}")));
        }
    }

    fn finish(&mut self) {
        match &self.open {
            Some((_, Data::Ring(end))) => end.shutdown_write(),
            Some((_, Data::Socket(data))) => {
                self.send(&ClientMessage::Shutdown);
                let _ = stream::shutdown(data, Shutdown::Write);
            }
            None => return,
        }
        self.finished = true;
    }

    fn exit(&mut self, control_first: bool) {
        match self.open.take() {
            Some((control, data)) if control_first => {
                drop(control);
                drop(data);
            }
            Some((control, data)) => {
                drop(data);
                drop(control);
            }
            None => {}
        }
    }
}

fn nonblocking(pair: (OwnedFd, OwnedFd)) -> (OwnedFd, OwnedFd) {
    for fd in [&pair.0, &pair.1] {
        set_nonblocking(fd, true).unwrap();
    }
    pair
}

struct World {
    poll: Poll,
    events: Events,
    set: ConnectionSet,
    counters: Arc<ByteCounters>,
    monitor: Option<Arc<ArenaMonitor>>,
    processes: [Process; 2],
    seen: Vec<Seen>,
}

impl World {
    fn new(kind: Kind) -> Self {
        let control = || nonblocking(seqpacket::pair().unwrap());
        let data = || nonblocking(stream::pair().unwrap());
        let ((one, client), (two, server)) = (control(), control());
        let mut counters = Arc::default();
        let mut monitor = None;
        let sockets = |client, server| [Data::Socket(client), Data::Socket(server)];
        let (mut client, mut server) = (Some(client), Some(server));
        let (connection, data) = match kind {
            Kind::Relay(raw) => {
                let (a, b) = (data(), data());
                let from = RelayEnd::new(one, a.0, raw[0]);
                let to = RelayEnd::new(two, b.0, raw[1]);
                (Connection::relay(from, to), sockets(a.1, b.1))
            }
            Kind::RelayOfGuest { half_close } => {
                let (a, b) = (data(), data());
                server = None;
                let from = RelayEnd::new(one, a.0, false);
                let to = RelayEnd::of_guest(b.0, half_close);
                (Connection::relay(from, to), sockets(a.1, b.1))
            }
            Kind::Direct(raw) => {
                let (a, b) = data();
                counters = Arc::new(ByteCounters::uncounted());
                let from = DirectEnd::new(one, duplicate(&a), raw[0]);
                let to = DirectEnd::new(two, duplicate(&b), raw[1]);
                (Connection::direct(from, to), sockets(a, b))
            }
            Kind::HandOver { side, raw_fd } => {
                let (guest, own) = data();
                let socket = duplicate(&own);
                counters = Arc::new(ByteCounters::uncounted());
                match side {
                    0 => server = None,
                    _ => client = None,
                }
                let control = if side == 0 { one } else { two };
                let connection = Connection::hand_over(control, socket, raw_fd, side);
                match side {
                    0 => (connection, sockets(own, guest)),
                    _ => (connection, sockets(guest, own)),
                }
            }
            Kind::Ring => {
                let Parts {
                    memory,
                    first,
                    second,
                } = Parts::new(RingSize::MIN).unwrap();
                let ring = Arc::new(Monitor::new(&memory).unwrap());
                counters = Arc::new(ByteCounters::of_ring(Arc::clone(&ring)));
                let end = |side, doorbells| {
                    Data::Ring(Box::new(RingEnd::open(side, &memory, doorbells).unwrap()))
                };
                let ends = [end(RingSide::First, first), end(RingSide::Second, second)];
                let controls = [one.into(), two.into()];
                (Connection::ring(controls, memory, ring), ends)
            }
            Kind::Arena => {
                let limits = ArenaLimits {
                    slots: 4,
                    ring: RingSize::MIN,
                };
                let parts = ArenaParts::new(limits, 4, 4).unwrap();
                let (memory, grant) = (&parts.memory, &parts.grant);
                let tell = || Arc::new(|| {});
                let client = ArenaClient::open(memory, grant, parts.client, tell()).unwrap();
                let server = ArenaServer::open(memory, grant, parts.server, tell()).unwrap();
                let ends = [
                    Data::Ring(Box::new(client.connect().unwrap().end)),
                    Data::Ring(Box::new(server.accept().unwrap().unwrap().end)),
                ];
                let arena = Arc::new(parts.monitor);
                monitor = Some(Arc::clone(&arena));
                (Connection::arena([one.into(), two.into()], arena), ends)
            }
        };
        let poll = Poll::new().unwrap();
        let mut set = ConnectionSet::new(poll.registry().try_clone().unwrap(), 0, u64::MAX);
        set.adopt(Adopted {
            id: ID,
            connection,
            counters: Arc::clone(&counters),
        });
        let [first, second] = data;
        Self {
            poll,
            events: Events::with_capacity(16),
            set,
            counters,
            monitor,
            processes: [Process::new(client, first), Process::new(server, second)],
            seen: Vec::new(),
        }
    }

    fn reports(&mut self) {
        while let Some(report) = self.set.next_report() {
            self.seen.push(match report {
                Report::Closed { reason, .. } => Seen::Closed(reason.map(|it| it.to_string())),
                Report::ConnectedSuspend { end, value, .. } => Seen::Option(end, value),
                // They may come again.
                Report::Busy { .. } | Report::Arena { .. } => continue,
            });
        }
    }

    /// Runs the broker until it has nothing to do.
    fn settle(&mut self) {
        self.reports();
        loop {
            let is_ready = self.set.has_ready();
            let timeout = Some(Duration::ZERO);
            self.poll.poll(&mut self.events, timeout).unwrap();
            if !is_ready && self.events.is_empty() {
                return;
            }
            for ready in &self.events {
                self.set.handle_event(ready);
            }
            self.set.run_turns();
            self.reports();
        }
    }

    /// Another broker takes over, and this one forgets the connection.
    fn hand_over(&mut self) {
        self.reports();
        let before = self.counters.counted();
        let poll = Poll::new().unwrap();
        let registry = poll.registry().try_clone().unwrap();
        let mut restored = hand_over(&mut self.set, registry, u64::MAX);
        self.poll = poll;
        if let Some(counters) = restored.counters.remove(&ID) {
            self.counters = counters;
        }
        if let Some(monitor) = restored.arenas.remove(&ID) {
            self.monitor = Some(monitor);
        }
        assert_eq!(self.counters.counted(), before);
    }

    fn fail_to_hand_over(&mut self) {
        self.reports();
        drop(export(&self.set));
        self.set.stay();
    }

    fn run(&mut self, op: Op, event: Event) {
        let seen = match op {
            Op::Write(end, count) => self.processes[end].write(count),
            Op::Read(end, count) => self.processes[end].read(count),
            _ => None,
        };
        self.seen.extend(seen);
        match op {
            Op::Write(..) | Op::Read(..) => {}
            Op::Finish(end) => self.processes[end].finish(),
            Op::StopReading(end) => match &self.processes[end].open {
                Some((_, Data::Socket(data))) => drop(stream::shutdown(data, Shutdown::Read)),
                Some((_, Data::Ring(end))) => end.shutdown_read(),
                None => {}
            },
            Op::Close(end) => {
                self.processes[end].finish();
                self.processes[end].exit(false);
            }
            Op::Kill(end, control_first) => self.processes[end].exit(control_first),
            Op::AskForEnd(end) => {
                let option = SocketOption::ConfirmEnd;
                self.processes[end].send(&ClientMessage::SetOption { option, value: 1 });
            }
            Op::SetOption(end, on) => {
                let (option, value) = (SocketOption::ConnectedSuspend, on.into());
                self.processes[end].send(&ClientMessage::SetOption { option, value });
            }
            Op::Suspend(on) => self.set.suspend(ID, on),
            Op::Reset => {
                let cause = "reset".into();
                self.set.reset(ID, Refusal::Reset { cause });
            }
            Op::ResetSlot => {
                let open = self.monitor.as_ref().map(|monitor| monitor.scan());
                for view in open.into_iter().flatten() {
                    self.set.reset_slot(ID, view.id, &Refusal::PartitionPaused);
                }
            }
        }
        match event {
            Event::Nothing | Event::HandedOver([false, _]) => {}
            Event::HandedOver([true, _]) => self.hand_over(),
            Event::Fails => self.fail_to_hand_over(),
        }
        self.settle();
        if let Event::HandedOver([_, true]) = event {
            self.hand_over();
            self.settle();
        }
        // A handover costs each connection a turn, which may find what another event would have shown later.
        self.set.enqueue_connection(ID);
        self.settle();
        for (side, process) in self.processes.iter().enumerate() {
            process.messages(side, &mut self.seen);
        }
        self.seen.push(Seen::Counted(self.counters.counted()));
        let slots = self.monitor.as_ref().map(|monitor| monitor.scan());
        let slots = slots.into_iter().flatten().map(|mut slot| {
            slot.opened_at = 0;
            slot
        });
        self.seen.push(Seen::Slots(slots.collect()));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: hvsock_testkit::cases(64), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nobody_can_tell_whether_the_broker_was_handed_over(
        kind in kind(),
        ops in prop::collection::vec((op(), event()), 0..40),
    ) {
        // How many bytes a spliced flow moves before its sink is full depends on which pages of memory the kernel gets: two
        // connections differ by some bytes once in some hundred runs, also without a handover. What a handover does
        // wrong is seen each time.
        let mut compared = compare(kind, &ops);
        for _ in 0..3 {
            if compared.is_ok() {
                break;
            }
            compared = compare(kind, &ops);
        }
        compared?;
    }
}

/// Compares what the processes and the core see without handovers and with them.
fn compare(kind: Kind, ops: &[(Op, Event)]) -> Result<(), TestCaseError> {
    let [mut plain, mut handed_over] = [World::new(kind), World::new(kind)];
    for (op, event) in ops {
        plain.run(*op, Event::Nothing);
        handed_over.run(*op, *event);
        prop_assert_eq!(
            &plain.seen,
            &handed_over.seen,
            "after {:?}, {:?}",
            op,
            event
        );
        plain.seen.clear();
        handed_over.seen.clear();
    }
    Ok(())
}
