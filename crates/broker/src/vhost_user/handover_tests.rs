//! Devices that are handed over between any two operations, to another device in the same process. The guest is a
//! driver in the test, which runs on.

use std::collections::{HashMap, VecDeque};
use std::io::ErrorKind;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use hvsock_endpoint::ClientMessage;
use hvsock_fabric::{ConnectionEnd, ConnectionId, Refusal};
use hvsock_ring::{RingEnd, RingError, RingSide, RingSize};
use hvsock_sys::{message, seqpacket, set_nonblocking, stream};
use hvsock_testkit::guest::{Driver, Guest, GuestStream, Options};
use hvsock_testkit::wait;
use hvsock_virtio::SocketKind;

use super::*;
use crate::data_path::ByteCounters;
use crate::guest_link::pipe;
use crate::guest_link::{
    Destination, GuestRequest, LinkCounters, LinkEvent, Peer, Service, Source,
};
use crate::handover::testing::exported;
use crate::handover::{HandoverError, Imports, LinkDocument};

const LIMIT: Duration = Duration::from_secs(30);
const BUFFER: u32 = 64 * 1024;

/// The core of one VM.
struct Host {
    cid: u32,
    socket: PathBuf,
    device: Device,
    events: Receiver<LinkEvent>,
    report: EventSender,
    counters: HashMap<ConnectionId, Arc<ByteCounters>>,
    closed: HashMap<ConnectionId, Option<Refusal>>,
    states: Vec<PartitionState>,
    faults: Vec<String>,
    next: u64,
    _dir: tempfile::TempDir,
}

fn factory(socket: &Path) -> VhostUser {
    VhostUser {
        socket: socket.to_owned(),
        owner: None,
        unsealed_memory: false,
    }
}

impl Host {
    fn new(cid: u32) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("vm.sock");
        let (sender, events) = mpsc::channel();
        let report = EventSender::new(move |event| drop(sender.send(event)));
        let device = factory(&socket).listen(Self::settings(cid), report.clone());
        Self {
            cid,
            device: device.unwrap(),
            socket,
            events,
            report,
            counters: HashMap::new(),
            closed: HashMap::new(),
            states: Vec::new(),
            faults: Vec::new(),
            next: u64::from(cid) << 32,
            _dir: dir,
        }
    }

    fn settings(cid: u32) -> LinkSettings {
        LinkSettings {
            cid: Some(cid),
            max_connections: 100,
        }
    }

    fn guest(&self) -> Guest {
        Guest::start(&self.socket, Options::new(self.cid.into())).unwrap()
    }

    fn new_id(&mut self) -> (ConnectionId, Arc<ByteCounters>) {
        self.next += 1;
        let id = ConnectionId::from_u64(self.next);
        let counters: Arc<ByteCounters> = Arc::default();
        self.counters.insert(id, Arc::clone(&counters));
        (id, counters)
    }

    /// The next event that is not about a state or a close.
    fn event(&mut self) -> LinkEvent {
        loop {
            let event = self.events.recv_timeout(LIMIT).unwrap();
            if let Some(event) = self.record(event) {
                return event;
            }
        }
    }

    fn record(&mut self, event: LinkEvent) -> Option<LinkEvent> {
        match event {
            LinkEvent::State(state) => self.states.push(state),
            LinkEvent::Fault(fault) => self.faults.push(fault),
            LinkEvent::Closed(id, reason) => drop(self.closed.insert(id, reason)),
            other => return Some(other),
        }
        None
    }

    fn drain(&mut self) {
        while let Ok(event) = self.events.try_recv() {
            if let Some(event) = self.record(event) {
                panic!("{event:?}");
            }
        }
    }

    fn request(&mut self) -> (RequestId, GuestRequest) {
        match self.event() {
            LinkEvent::Request(id, request) => (id, request),
            other => panic!("{other:?}"),
        }
    }

    fn wait_for_close(&mut self, id: ConnectionId) -> Option<Refusal> {
        wait::eventually("the close is reported", || {
            self.drain();
            self.closed.contains_key(&id)
        });
        self.closed.remove(&id).flatten()
    }
}

/// Hands the devices over, all at once.
fn hand_over(hosts: &mut [&mut Host]) {
    let (documents, mut imports) = documents(hosts);
    let resumed: Vec<_> = hosts
        .iter()
        .zip(&documents)
        .map(|(host, document)| resume(host, document, &mut imports).unwrap())
        .collect();
    assert_eq!(imports.untaken(), 0);
    for (host, device) in hosts.iter_mut().zip(resumed) {
        let old = std::mem::replace(&mut host.device, device);
        // As a process ends without an act.
        old.is_dormant.store(true, Ordering::Relaxed);
        drop(old);
        host.device.thaw();
    }
}

fn documents(hosts: &[&mut Host]) -> (Vec<String>, Imports) {
    let deadline = Instant::now() + LIMIT;
    for host in hosts {
        host.device.freeze().unwrap();
    }
    for _ in 0..2 {
        for host in hosts {
            host.device.frozen(deadline).unwrap();
        }
    }
    exported(|exports| {
        let documents = hosts.iter().map(|host| {
            let document = host.device.hand_over(exports).unwrap();
            serde_json::to_string(&document).unwrap()
        });
        documents.collect()
    })
}

fn resume(host: &Host, document: &str, imports: &mut Imports) -> Result<Device, HandoverError> {
    let document: LinkDocument = serde_json::from_str(document).unwrap();
    let resuming = Resuming::new(
        Host::settings(host.cid),
        host.report.clone(),
        &host.counters,
    );
    factory(&host.socket).resume_device(document, imports, &resuming)
}

/// The process at the other end of a guest's connection.
enum Process {
    /// With its control connection, which is to stay open.
    Ring(
        Box<RingEnd>,
        #[allow(dead_code, reason = "it is held")] OwnedFd,
    ),
    Socket(OwnedFd, OwnedFd),
}

impl Process {
    fn write(&self, bytes: &[u8]) -> Option<usize> {
        match self {
            Self::Ring(end, _) => match end.try_write(bytes) {
                Err(RingError::WouldBlock) => None,
                other => Some(other.unwrap()),
            },
            Self::Socket(socket, _) => would_block(stream::send(socket, bytes)),
        }
    }

    /// `Some(0)` is the end.
    fn read(&self, buffer: &mut [u8]) -> Option<usize> {
        match self {
            Self::Ring(end, _) => match end.try_read(buffer) {
                Err(RingError::WouldBlock) => None,
                Err(RingError::EndOfStream) => Some(0),
                other => Some(other.unwrap()),
            },
            Self::Socket(socket, _) => would_block(stream::recv(socket, buffer)),
        }
    }

    fn finish(&self) {
        match self {
            Self::Ring(end, _) => end.shutdown_write(),
            Self::Socket(socket, control) => {
                let mut bytes = Vec::new();
                ClientMessage::Shutdown.encode(&mut bytes);
                message::send(control, &bytes, &[]).unwrap();
                stream::shutdown(socket, Shutdown::Write).unwrap();
            }
        }
    }
}

fn would_block(result: std::io::Result<usize>) -> Option<usize> {
    match result {
        Err(error) if error.kind() == ErrorKind::WouldBlock => None,
        other => Some(other.unwrap()),
    }
}

/// A connection from the guest with what was written and read in each direction: from the guest, and to it.
struct Pair {
    id: ConnectionId,
    guest: GuestStream,
    process: Process,
    written: [u64; 2],
    read: [u64; 2],
    ended: [bool; 2],
}

fn text(from: u64, len: usize) -> Vec<u8> {
    (from..).take(len).map(|at| (at * 7 / 3) as u8).collect()
}

impl Pair {
    fn new(host: &mut Host, guest: &Guest, ring: bool) -> Self {
        std::thread::scope(|scope| {
            let connecting = scope.spawn(|| guest.connect(5000).unwrap());
            let (request, _) = host.request();
            let (id, process) = accept(host, request, ring);
            Self {
                id,
                guest: connecting.join().unwrap(),
                process,
                written: [0; 2],
                read: [0; 2],
                ended: [false; 2],
            }
        })
    }

    fn write(&mut self, side: usize, len: usize) {
        if self.ended[side] {
            return;
        }
        let bytes = text(self.written[side], len);
        let count = match side {
            0 => would_block(self.guest.try_write(&bytes)),
            _ => self.process.write(&bytes),
        };
        self.written[side] += count.unwrap_or(0) as u64;
    }

    /// Reads of a direction. Returns whether it has ended.
    fn read(&mut self, side: usize, len: usize) -> bool {
        let mut buffer = vec![0; len.max(1)];
        let count = match side {
            0 => self.process.read(&mut buffer),
            _ => would_block(self.guest.try_read(&mut buffer)),
        };
        let Some(count) = count else { return false };
        assert!(buffer[..count] == text(self.read[side], count), "{side}");
        self.read[side] += count as u64;
        count == 0
    }

    fn finish(&mut self, side: usize) {
        if std::mem::replace(&mut self.ended[side], true) {
            return;
        }
        match side {
            0 => self.guest.shutdown(Shutdown::Write).unwrap(),
            _ => self.process.finish(),
        }
    }

    /// Reads all that was written, and the end of both directions.
    fn complete(mut self, host: &mut Host) {
        for side in [0, 1] {
            self.finish(side);
            wait::eventually("the data ends", || self.read(side, 30_000));
            assert_eq!(self.read[side], self.written[side]);
        }
        let counted = host.counters[&self.id].counted().unwrap();
        assert_eq!(counted, self.written);
        drop(self.process);
        drop(self.guest);
        assert_eq!(host.wait_for_close(self.id), None);
    }
}

/// Accepts a request of the guest, for a process with a ring or a socket.
fn accept(host: &mut Host, request: RequestId, ring: bool) -> (ConnectionId, Process) {
    let (id, counters) = host.new_id();
    let (control, own_control) = seqpacket::pair().unwrap();
    set_nonblocking(&own_control, true).unwrap();
    let (peer, process) = if ring {
        let parts = hvsock_ring::Parts::new(RingSize::exactly(BUFFER).unwrap()).unwrap();
        let end = RingEnd::open(RingSide::Second, &parts.memory, parts.second).unwrap();
        let own = RingEnd::open(RingSide::First, &parts.memory, parts.first).unwrap();
        (
            Peer::ring(own, parts.memory),
            Process::Ring(Box::new(end), control),
        )
    } else {
        let (own, data) = stream::pair().unwrap();
        for fd in [&own, &data] {
            set_nonblocking(fd, true).unwrap();
        }
        (Peer::socket(own, false), Process::Socket(data, control))
    };
    let end = LinkEnd {
        peer,
        counters: LinkCounters::new(counters, ConnectionEnd::Client),
        buffer: BUFFER,
        reports: true,
    };
    host.device.accept(request, id, end);
    host.device
        .establish(id, ControlConnection::new(own_control));
    (id, process)
}

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

#[test]
fn no_byte_is_lost_or_doubled_when_a_device_is_handed_over_between_any_two_operations() {
    for seed in 1..=6 {
        let mut random = Random(seed * 0x9e37_79b9);
        let mut host = Host::new(3);
        let guest = host.guest();
        let mut pairs: Vec<_> = (0..4)
            .map(|at| Pair::new(&mut host, &guest, at % 2 == 0))
            .collect();
        for step in 0..250 {
            let pair = random.below(pairs.len() as u64) as usize;
            let (side, len) = (random.below(2) as usize, random.below(40_000) as usize);
            match random.below(10) {
                0..4 => pairs[pair].write(side, len),
                4..8 => drop(pairs[pair].read(side, len)),
                8 if step > 150 && random.below(8) == 0 => pairs[pair].finish(side),
                8 => {}
                _ => hand_over(&mut [&mut host]),
            }
        }
        assert_eq!(guest.connections(), 4);
        host.drain();
        assert!(host.closed.is_empty(), "{:?}", host.closed);
        pairs.push(Pair::new(&mut host, &guest, true));
        for pair in pairs {
            hand_over(&mut [&mut host]);
            pair.complete(&mut host);
        }
        assert_eq!(guest.protocol_violations(), Vec::<String>::new());
        assert_eq!(guest.transport_resets(), 0);
        assert_eq!(host.faults, Vec::<String>::new());
        assert_eq!(
            host.states,
            [PartitionState::Connected, PartitionState::Running]
        );
    }
}

#[test]
fn the_processes_see_nothing_of_a_device_that_is_resumed_and_dropped_before_it_began() {
    let mut host = Host::new(3);
    let guest = host.guest();
    let mut pairs = [true, false].map(|ring| Pair::new(&mut host, &guest, ring));
    for _ in 0..5 {
        for pair in &mut pairs {
            pair.write(0, 50_000);
            pair.write(1, 50_000);
        }
        let (documents, mut imports) = documents(&[&mut host]);
        let resumed = resume(&host, &documents[0], &mut imports).unwrap();
        drop(resumed);
        drop(imports);
        host.device.thaw();
        for pair in &mut pairs {
            pair.read(0, 30_000);
            pair.read(1, 30_000);
        }
    }
    for pair in pairs {
        pair.complete(&mut host);
    }
    assert_eq!(guest.protocol_violations(), Vec::<String>::new());
}

#[test]
fn messages_between_siblings_stay_whole_and_in_order_when_both_devices_are_handed_over() {
    let (mut one, mut other) = (Host::new(3), Host::new(4));
    let (from, to) = (one.guest(), other.guest());
    let listener = to.listen_for(SocketKind::Seqpacket, 700, 8).unwrap();
    let (client, server) = std::thread::scope(|scope| {
        let connecting = scope.spawn(|| {
            let kind = SocketKind::Seqpacket;
            from.connect_to(kind, 4, 700, LIMIT).unwrap()
        });
        let (request, asked) = one.request();
        assert_eq!(asked.destination, Destination::Cid(4));
        assert_eq!(asked.service, Service::Port(700));
        let (id, counters) = one.new_id();
        other.counters.insert(id, Arc::clone(&counters));
        let (first, second) = pipe::pair(BUFFER);
        let end = |end, counters, side, reports| LinkEnd {
            peer: Peer::sibling(end),
            counters: LinkCounters::new(counters, side),
            buffer: BUFFER,
            reports,
        };
        let connect = GuestConnect {
            connection: id,
            source: Source::Sibling {
                cid: 3,
                port: asked.source_port,
            },
            container: None,
            service: asked.service,
            kind: asked.kind,
            timeout: LIMIT,
            end: Some(end(second, Arc::default(), ConnectionEnd::Server, false)),
        };
        other.device.connect(connect).unwrap();
        let first = end(first, counters, ConnectionEnd::Client, true);
        one.device.accept(request, id, first);
        let server = listener.accept(LIMIT).unwrap();
        (connecting.join().unwrap(), server)
    });
    let mut random = Random(77);
    let mut sent = [VecDeque::new(), VecDeque::new()];
    for number in 0..120_u64 {
        let len = random.below(9000) as usize;
        let (side, record) = ((number % 2) as usize, random.below(2) == 0);
        let (out, into) = match side {
            0 => (&client, &server),
            _ => (&server, &client),
        };
        out.send_message(&text(number, len), record).unwrap();
        sent[side].push_back((number, len, record));
        if random.below(3) == 0 {
            let mut hosts = [&mut one, &mut other];
            if random.below(2) == 0 {
                hosts.reverse();
            }
            hand_over(&mut hosts);
        }
        while sent[side].len() > random.below(5) as usize {
            let (number, len, record) = sent[side].pop_front().unwrap();
            let got = into.receive_message().unwrap().unwrap();
            assert!(got == (text(number, len), record), "{number}");
        }
    }
    for host in [&mut one, &mut other] {
        host.drain();
        assert!(host.closed.is_empty(), "{:?}", host.closed);
    }
    let violations = [from.protocol_violations(), to.protocol_violations()];
    assert_eq!(violations.concat(), Vec::<String>::new());
}

#[test]
fn a_request_that_waits_for_the_core_is_made_again_to_the_next_one() {
    let mut host = Host::new(3);
    let guest = host.guest();
    std::thread::scope(|scope| {
        let connecting = scope.spawn(|| guest.connect(5000).unwrap());
        let (first, asked) = host.request();
        assert_eq!(asked.service, Service::Port(5000));
        hand_over(&mut [&mut host]);
        let (again, asked) = host.request();
        assert_eq!((again, asked.service), (first, Service::Port(5000)));
        let (_, process) = accept(&mut host, again, true);
        let stream = connecting.join().unwrap();
        stream.try_write(b"after").unwrap();
        let mut buffer = [0; 8];
        wait::eventually("the bytes arrive", || process.read(&mut buffer) == Some(5));
    });
}

#[test]
fn a_request_of_the_vmm_that_has_arrived_in_part_is_handled_by_the_next_process() {
    let mut host = Host::new(3);
    let guest = host.guest();
    // GET_QUEUE_NUM, a byte at a time.
    let words = [17_u32, 1, 0].map(u32::to_ne_bytes).concat();
    for byte in &words {
        guest.with_driver(|driver| driver.vmm().unwrap().send_bytes(&[*byte], &[]).unwrap());
        hand_over(&mut [&mut host]);
    }
    let reply = guest.with_driver(|driver| driver.vmm().unwrap().receive_reply(17).unwrap());
    assert_eq!(reply, 3_u64.to_ne_bytes());
    // What was negotiated before counts: this request needs the feature CONFIG.
    let config = guest.with_driver(|driver| driver.read_config(0, 8).unwrap());
    assert_eq!(config, 3_u64.to_le_bytes());
}

#[test]
fn a_vm_is_off_when_its_vmm_goes_after_a_handover_and_the_next_vmm_can_connect() {
    let mut host = Host::new(3);
    hand_over(&mut [&mut host]);
    let guest = host.guest();
    hand_over(&mut [&mut host]);
    let pair = Pair::new(&mut host, &guest, true);
    hand_over(&mut [&mut host]);
    guest.with_driver(Driver::end_vmm).unwrap();
    assert_eq!(host.wait_for_close(pair.id), Some(Refusal::PartitionOff));
    wait::eventually("the VM is off", || {
        host.drain();
        host.states.last() == Some(&PartitionState::Off)
    });
    guest.restart_vmm().unwrap();
    hand_over(&mut [&mut host]);
    Pair::new(&mut host, &guest, false).complete(&mut host);
    let [connected, running, off] = [
        PartitionState::Connected,
        PartitionState::Running,
        PartitionState::Off,
    ];
    assert_eq!(host.states, [connected, running, off, connected, running]);
}

#[test]
fn a_connection_that_the_core_does_not_know_is_reset() {
    let mut host = Host::new(3);
    let guest = host.guest();
    let pair = Pair::new(&mut host, &guest, false);
    host.counters.clear();
    hand_over(&mut [&mut host]);
    wait::eventually("the guest sees the reset", || {
        pair.guest.close_reason().is_some()
    });
    host.drain();
    assert!(host.closed.is_empty());
}

#[test]
fn a_damaged_document_is_an_error_and_the_device_goes_on() {
    let mut host = Host::new(3);
    let guest = host.guest();
    let mut pairs = [true, false].map(|ring| Pair::new(&mut host, &guest, ring));
    for pair in &mut pairs {
        pair.write(0, 60_000);
        pair.write(1, 60_000);
    }
    let mut random = Random(4711);
    let mut refused = 0;
    for _ in 0..300 {
        let (documents, mut imports) = documents(&[&mut host]);
        // One number is another one.
        let digits: Vec<_> = documents[0]
            .char_indices()
            .filter(|(_, one)| one.is_ascii_digit())
            .map(|(at, _)| at)
            .collect();
        let at = digits[random.below(digits.len() as u64) as usize];
        let mut damaged = documents[0].clone();
        let digit = ["", "0", "9", "77", "4294967296"][random.below(5) as usize];
        damaged.replace_range(at..=at, digit);
        if let Ok(document) = serde_json::from_str::<LinkDocument>(&damaged) {
            let (settings, report) = (Host::settings(3), host.report.clone());
            let resuming = Resuming::new(settings, report, &host.counters);
            let resumed = factory(&host.socket).resume_device(document, &mut imports, &resuming);
            refused += u32::from(resumed.is_err());
        }
        host.device.thaw();
    }
    assert!(refused > 50, "{refused}");
    for pair in pairs {
        pair.complete(&mut host);
    }
}

#[test]
fn an_idle_and_a_busy_device_are_handed_over_again_and_again() {
    let mut host = Host::new(3);
    let guest = host.guest();
    for _ in 0..15 {
        hand_over(&mut [&mut host]);
    }
    let mut pairs: Vec<_> = (0..20)
        .map(|at| Pair::new(&mut host, &guest, at % 2 == 0))
        .collect();
    for _ in 0..15 {
        for pair in &mut pairs {
            pair.write(0, 60_000);
            pair.write(1, 60_000);
            pair.read(0, 30_000);
            pair.read(1, 30_000);
        }
        hand_over(&mut [&mut host]);
    }
    for pair in pairs {
        pair.complete(&mut host);
    }
}
