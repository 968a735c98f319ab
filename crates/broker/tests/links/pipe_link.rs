//! A link over in-memory pipes, for a guest in the test's own process.
//!
//! The link has one thread, which owns its connections. The guest's side ([`Guest`]) and the core
//! send it commands and mark the connections that have changed.

use std::collections::{BTreeSet, HashMap};
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use hvsock_broker::StartError;
use hvsock_broker::guest_link::{
    Capabilities, ConnectionId, ControlConnection, Destination, EventSender, FillOutcome,
    GuestConnect, GuestLink, GuestRequest, LinkEnd, LinkEvent, LinkFactory, LinkSettings,
    MessageEnd, PartitionState, PeerIdentity, PipeEnd, Readiness, Refusal, RequestId, Service,
    SocketKind, WakePeer,
};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};

use super::memory::{GuestStream, Pipes};

const WAKE: Token = Token(usize::MAX);
/// How long the guest waits for the core's answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

enum Command {
    Connect(GuestConnect),
    Accept(RequestId, ConnectionId, LinkEnd),
    Refuse(RequestId, Option<Refusal>),
    Establish(ConnectionId, ControlConnection),
    Close(ConnectionId, Refusal),
    Suspend(ConnectionId, bool),
    Listen(u32, Sender<GuestStream>),
    Request(RequestId, Sender<Answer>),
    Stop,
}

/// The core's answer to a request of the guest.
type Answer = Result<GuestStream, Option<Refusal>>;

/// What the guest, the core and the link's thread share.
#[derive(Debug)]
struct Shared {
    /// The connections that have changed.
    changed: Mutex<BTreeSet<ConnectionId>>,
    waker: Waker,
}

impl WakePeer for Shared {
    fn wake(&self, connection: ConnectionId) {
        self.changed
            .lock()
            .expect("no thread panicked")
            .insert(connection);
        let _ = self.waker.wake();
    }
}

/// The guest behind a link.
#[derive(Clone)]
pub struct Guest {
    commands: Sender<Command>,
    shared: Arc<Shared>,
    events: EventSender,
    next_request: Arc<AtomicU64>,
    /// The process that makes the guest's requests.
    pub identity: Option<PeerIdentity>,
}

/// A request of the guest.
#[derive(Clone, Copy)]
pub struct Wanted {
    pub destination: Destination,
    pub service: Service,
    pub kind: SocketKind,
}

impl Wanted {
    /// A stream to a service of the host.
    pub fn port(port: u32) -> Self {
        Self {
            destination: Destination::Host,
            service: Service::Port(port),
            kind: SocketKind::Stream,
        }
    }
}

impl Guest {
    /// Connects. The error is the reason, if there is one.
    pub fn connect(&self, wanted: Wanted) -> Result<GuestStream, Option<Refusal>> {
        let id = RequestId(self.next_request.fetch_add(1, Ordering::Relaxed));
        let (answer, answers) = mpsc::channel();
        self.command(Command::Request(id, answer));
        let request = GuestRequest {
            destination: wanted.destination,
            service: wanted.service,
            kind: wanted.kind,
            source_port: None,
            identity: self.identity,
            socket: None,
        };
        self.events.send(LinkEvent::Request(id, request));
        match answers.recv_timeout(ANSWER_TIMEOUT) {
            Ok(answer) => answer,
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                panic!("the core did not answer")
            }
        }
    }

    /// Accepts connections to a port from now on.
    pub fn listen(&self, port: u32) -> Receiver<GuestStream> {
        let (accepted, connections) = mpsc::channel();
        self.command(Command::Listen(port, accepted));
        connections
    }

    /// Reports a state of the guest.
    pub fn set_state(&self, state: PartitionState) {
        self.events.send(LinkEvent::State(state));
    }

    fn command(&self, command: Command) {
        let _ = self.commands.send(command);
        let _ = self.shared.waker.wake();
    }
}

/// Opens a [`PipeLink`] and hands the test its guest.
pub struct Factory {
    pub capabilities: Capabilities,
    pub guest: Sender<Guest>,
}

/// What the link can do.
pub const CAPABILITIES: Capabilities = Capabilities {
    seqpacket: false,
    ..Capabilities::ALL
};

impl LinkFactory for Factory {
    fn open(
        self: Box<Self>,
        _settings: LinkSettings,
        events: EventSender,
    ) -> Result<Box<dyn GuestLink>, StartError> {
        let failed = |error| StartError::Io {
            what: "open the link".into(),
            error,
        };
        let poll = Poll::new().map_err(failed)?;
        let shared = Arc::new(Shared {
            changed: Mutex::default(),
            waker: Waker::new(poll.registry(), WAKE).map_err(failed)?,
        });
        let (commands, queue) = mpsc::channel();
        let worker = Worker {
            poll,
            shared: Arc::clone(&shared),
            commands: queue,
            events: events.clone(),
            connections: HashMap::new(),
            listeners: HashMap::new(),
            requests: HashMap::new(),
        };
        let guest = Guest {
            commands,
            shared,
            events,
            next_request: Arc::default(),
            identity: None,
        };
        let _ = self.guest.send(guest.clone());
        Ok(Box::new(PipeLink {
            capabilities: self.capabilities,
            guest,
            thread: Some(std::thread::spawn(|| worker.run())),
        }))
    }
}

struct PipeLink {
    capabilities: Capabilities,
    guest: Guest,
    thread: Option<JoinHandle<()>>,
}

impl GuestLink for PipeLink {
    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    fn state(&self) -> PartitionState {
        PartitionState::Running
    }

    fn connect(&self, connect: GuestConnect) -> Result<(), Refusal> {
        connect.service.port().ok_or(Refusal::ServiceNotMappable)?;
        self.guest.command(Command::Connect(connect));
        Ok(())
    }

    fn accept(&self, request: RequestId, connection: ConnectionId, end: LinkEnd) {
        self.guest
            .command(Command::Accept(request, connection, end));
    }

    fn refuse(&self, request: RequestId, reason: Option<&Refusal>) {
        self.guest
            .command(Command::Refuse(request, reason.cloned()));
    }

    fn establish(&self, connection: ConnectionId, control: ControlConnection) {
        self.guest.command(Command::Establish(connection, control));
    }

    fn close(&self, connection: ConnectionId, refusal: Refusal) {
        self.guest.command(Command::Close(connection, refusal));
    }

    fn suspend(&self, connection: ConnectionId, suspended: bool) {
        self.guest.command(Command::Suspend(connection, suspended));
    }
}

impl Drop for PipeLink {
    fn drop(&mut self) {
        self.guest.command(Command::Stop);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the link's thread panicked");
        }
    }
}

/// One connection.
struct Connection {
    end: LinkEnd,
    pipes: Arc<Pipes>,
    /// Both ends are there.
    is_open: bool,
    is_suspended: bool,
    /// Bytes of the guest that the peer's buffer has accepted.
    delivered: u64,
    /// The end of the guest's data was passed on.
    is_finished: bool,
    /// The end of the peer's data was passed on.
    has_ended: bool,
    /// The peer was told that the guest receives no more.
    has_closed_read: bool,
    /// Where a connection with a sibling goes once the sibling has accepted.
    answer: Option<Sender<Answer>>,
}

/// What a turn of a connection has led to.
enum Turn {
    /// Moved bytes: there may be more.
    Again,
    /// Nothing to do until a wakeup.
    Waiting,
    /// The connection is closed, with the reason unless both ends closed cleanly.
    Closed(Option<Refusal>),
}

struct Worker {
    poll: Poll,
    shared: Arc<Shared>,
    commands: Receiver<Command>,
    events: EventSender,
    connections: HashMap<ConnectionId, Connection>,
    listeners: HashMap<u32, Sender<GuestStream>>,
    requests: HashMap<RequestId, Sender<Answer>>,
}

impl Worker {
    fn run(mut self) {
        let mut events = Events::with_capacity(256);
        let mut timeout = None;
        loop {
            match self.poll.poll(&mut events, timeout) {
                Err(error) if error.kind() != ErrorKind::Interrupted => panic!("{error}"),
                Ok(()) | Err(_) => {}
            }
            let mut due = std::mem::take(&mut *self.shared.changed.lock().expect("no panic"));
            while let Ok(command) = self.commands.try_recv() {
                if matches!(command, Command::Stop) {
                    return self.stop();
                }
                due.extend(self.handle(command));
            }
            for event in events.iter().filter(|event| event.token() != WAKE) {
                let number = event.token().0;
                let id = ConnectionId::from_u64(number as u64 / 2);
                if let Some(connection) = self.connections.get_mut(&id) {
                    let peer = &mut connection.end.peer;
                    match number % 2 {
                        0 => peer.data_ready(Readiness {
                            readable: event.is_readable() || event.is_read_closed(),
                            writable: event.is_writable() || event.is_write_closed(),
                        }),
                        _ => peer.control_ready(),
                    }
                    due.insert(id);
                }
            }
            timeout = None;
            for id in due {
                if self.turn(id) {
                    self.shared.changed.lock().expect("no panic").insert(id);
                    timeout = Some(Duration::ZERO);
                }
            }
        }
    }

    fn stop(mut self) {
        let cause = "the broker has stopped".to_owned();
        for connection in self.connections.values_mut() {
            connection.reset(&Refusal::Reset {
                cause: cause.clone(),
            });
        }
    }

    /// Handles a command. Returns the connection that it changes.
    fn handle(&mut self, command: Command) -> Option<ConnectionId> {
        match command {
            Command::Request(id, answer) => {
                self.requests.insert(id, answer);
            }
            Command::Listen(port, accepted) => {
                self.listeners.insert(port, accepted);
            }
            Command::Refuse(request, reason) => {
                let answer = self.requests.remove(&request)?;
                let _ = answer.send(Err(reason));
            }
            Command::Accept(request, id, mut end) => {
                let Some(answer) = self.requests.remove(&request) else {
                    let cause = "the guest has given up".into();
                    let refusal = Refusal::Reset { cause };
                    end.peer.reset(&refusal, true);
                    self.events.send(LinkEvent::Closed(id, Some(refusal)));
                    return None;
                };
                let is_process = end.peer.sibling_end().is_none();
                let pipes = self.insert(id, end, is_process);
                if is_process {
                    let _ = answer.send(Ok(GuestStream::new(pipes)));
                } else if let Some(connection) = self.connections.get_mut(&id) {
                    connection.answer = Some(answer);
                }
                return Some(id);
            }
            Command::Connect(connect) => return self.connect(connect),
            Command::Establish(id, control) => {
                let connection = self.connections.get_mut(&id)?;
                connection.end.peer.set_control(control);
                self.watch(id);
                return Some(id);
            }
            Command::Close(id, refusal) => self.close(id, Some(refusal)),
            Command::Suspend(id, suspended) => {
                self.connections.get_mut(&id)?.is_suspended = suspended;
                return Some(id);
            }
            Command::Stop => {}
        }
        None
    }

    fn connect(&mut self, connect: GuestConnect) -> Option<ConnectionId> {
        let (id, mut end) = (connect.connection, connect.end?);
        let port = connect.service.port()?;
        let Some(listener) = self.listeners.get(&port).cloned() else {
            end.peer.reset(&Refusal::NoListener, true);
            if end.reports {
                self.events.send(LinkEvent::Failed(id, Refusal::NoListener));
            }
            return None;
        };
        let is_sibling = end.peer.sibling_end().map(PipeEnd::connected).is_some();
        let pipes = self.insert(id, end, true);
        let _ = listener.send(GuestStream::new(pipes));
        if !is_sibling {
            self.events.send(LinkEvent::Connected(id, None));
        }
        Some(id)
    }

    fn insert(&mut self, id: ConnectionId, end: LinkEnd, is_open: bool) -> Arc<Pipes> {
        let shared = Arc::clone(&self.shared);
        let pipes = Pipes::new(Box::new(move || shared.wake(id)));
        let connection = Connection {
            end,
            pipes: Arc::clone(&pipes),
            is_open,
            is_suspended: false,
            delivered: 0,
            is_finished: false,
            has_ended: false,
            has_closed_read: false,
            answer: None,
        };
        self.connections.insert(id, connection);
        self.watch(id);
        pipes
    }

    /// Watches the descriptors of a connection that are not watched yet.
    fn watch(&self, id: ConnectionId) {
        let peer = &self.connections[&id].end.peer;
        let token = |which| Token(usize::try_from(id.as_u64()).expect("64 bits") * 2 + which);
        let watch = |fd: BorrowedFd<'_>, which, interest| {
            let added = self.poll.registry().register(
                &mut SourceFd(&fd.as_raw_fd()),
                token(which),
                interest,
            );
            match added {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => panic!("{error}"),
                Ok(()) | Err(_) => {}
            }
        };
        if let Some(fd) = peer.descriptor() {
            let interest = match peer.watches_writable() {
                true => Interest::READABLE | Interest::WRITABLE,
                false => Interest::READABLE,
            };
            watch(fd, 0, interest);
        }
        if let Some(fd) = peer.control_descriptor() {
            watch(fd, 1, Interest::READABLE);
        }
        if let Some(end) = peer.sibling_end() {
            let shared = Arc::clone(&self.shared);
            end.attach(shared, id);
        }
    }

    /// Gives a connection a turn. Returns whether it wants another one at once.
    fn turn(&mut self, id: ConnectionId) -> bool {
        let Some(connection) = self.connections.get_mut(&id) else {
            return false;
        };
        match connection.turn(id, &self.events) {
            Turn::Again => true,
            Turn::Waiting => false,
            Turn::Closed(reason) => {
                self.close(id, reason);
                false
            }
        }
    }

    /// Removes a connection, and resets it if there is a reason.
    fn close(&mut self, id: ConnectionId, reason: Option<Refusal>) {
        let Some(mut connection) = self.connections.remove(&id) else {
            return;
        };
        let peer = &connection.end.peer;
        for fd in [peer.descriptor(), peer.control_descriptor()]
            .into_iter()
            .flatten()
        {
            let mut source = SourceFd(&fd.as_raw_fd());
            let _ = self.poll.registry().deregister(&mut source);
        }
        if let Some(refusal) = &reason {
            connection.reset(refusal);
        }
        if connection.end.reports {
            self.events.send(LinkEvent::Closed(id, reason));
        }
    }
}

fn unread() -> Refusal {
    Refusal::Reset {
        cause: "the other end closed without reading all data".into(),
    }
}

impl Connection {
    fn reset(&mut self, refusal: &Refusal) {
        self.end.peer.reset(refusal, true);
        self.pipes.with(|state| state.is_reset = true);
        if let Some(answer) = self.answer.take() {
            let _ = answer.send(Err(Some(refusal.clone())));
        }
    }

    fn turn(&mut self, id: ConnectionId, events: &EventSender) -> Turn {
        let (update, read) = self.end.peer.read_control();
        if let Some(value) = update.connected_suspend {
            events.send(LinkEvent::ConnectedSuspend(id, value));
        }
        if let Err(refusal) = read {
            return Turn::Closed(Some(refusal));
        }
        if let Some(sibling) = self.end.peer.sibling_end() {
            let state = sibling.poll_peer();
            if let Some(refusal) = state.failure.filter(|_| state.is_reset || !self.is_open) {
                return Turn::Closed(Some(refusal));
            }
            if state.connected && !self.is_open {
                self.is_open = true;
                if let Some(answer) = self.answer.take() {
                    let _ = answer.send(Ok(GuestStream::new(Arc::clone(&self.pipes))));
                }
            }
        }
        if self.pipes.with(|state| state.wants_reset) {
            let cause = "the guest reset the connection".into();
            return Turn::Closed(Some(Refusal::Reset { cause }));
        }
        self.end.peer.flush();
        let moved = match (self.move_from_guest(), self.move_to_guest()) {
            (Ok(from), Ok(to)) => from || to,
            (Err(refusal), _) | (_, Err(refusal)) => return Turn::Closed(Some(refusal)),
        };
        let is_closed = self.pipes.with(|state| state.is_closed);
        let peer = &mut self.end.peer;
        let is_gone = match peer.sibling_end() {
            Some(end) => end.poll_peer().gone,
            None => peer.is_closed(),
        };
        if is_gone && self.has_ended {
            if peer.leaves_unread(self.delivered) {
                return Turn::Closed(Some(unread()));
            }
            // Nobody receives what the guest still sends.
            let is_over = self.pipes.with(|state| {
                state.from_guest.closed = true;
                state.from_guest.bytes.is_empty() || self.is_finished
            });
            if !is_over {
                return Turn::Closed(Some(unread()));
            }
            if peer.is_flushed() {
                return Turn::Closed(None);
            }
        }
        // Of two siblings' links, the one that does not report leaves first.
        let may_leave = is_gone || !self.end.reports;
        if is_closed && may_leave && self.is_finished && !moved {
            return Turn::Closed(None);
        }
        match moved || update.more || !self.arm() {
            true => Turn::Again,
            false => Turn::Waiting,
        }
    }

    /// Moves the guest's bytes to the peer. Returns whether there were any.
    fn move_from_guest(&mut self) -> Result<bool, Refusal> {
        let end = &mut self.end;
        if !self.is_open {
            return Ok(false);
        }
        let written = self.pipes.with(|state| {
            let pipe = &mut state.from_guest;
            let mut count = 0;
            while let (bytes, _) = pipe.bytes.as_slices()
                && !bytes.is_empty()
            {
                match end.peer.write(bytes, MessageEnd::default()) {
                    Ok(0) => break,
                    Ok(written) => {
                        pipe.bytes.drain(..written);
                        count += written;
                    }
                    Err(_) => {
                        pipe.closed = true;
                        return (count, false);
                    }
                }
            }
            (count, pipe.ended && pipe.bytes.is_empty())
        });
        let (count, has_ended) = written;
        self.delivered += count as u64;
        end.counters.add_from_guest(count);
        if has_ended && !self.is_finished {
            self.is_finished = true;
            end.peer.finish();
        }
        Ok(count > 0)
    }

    /// Moves the peer's bytes to the guest. Returns whether there were any.
    fn move_to_guest(&mut self) -> Result<bool, Refusal> {
        let peer = &mut self.end.peer;
        if !self.is_open || self.is_suspended || !peer.is_established() || self.has_ended {
            return Ok(false);
        }
        let (room, is_closed) = self
            .pipes
            .with(|state| (state.to_guest.room(), state.to_guest.closed));
        if is_closed {
            if self.pipes.with(|state| !state.to_guest.bytes.is_empty()) {
                return Err(unread());
            }
            if !std::mem::replace(&mut self.has_closed_read, true) {
                peer.close_read();
            }
        }
        let mut buffer = [0; 16 * 1024];
        let limit = room.min(buffer.len());
        if limit == 0 {
            return Ok(false);
        }
        match peer.read(&mut buffer[..limit], false) {
            FillOutcome::Bytes(0, ..) => Ok(true),
            FillOutcome::Bytes(..) if is_closed => Err(unread()),
            FillOutcome::Bytes(count, ..) => {
                self.pipes
                    .with(|state| state.to_guest.bytes.extend(&buffer[..count]));
                self.end.counters.add_to_guest(count);
                Ok(true)
            }
            FillOutcome::Empty => Ok(false),
            FillOutcome::Ended => {
                self.has_ended = true;
                self.pipes.with(|state| state.to_guest.ended = true);
                Ok(true)
            }
            FillOutcome::Failed(refusal) => Err(refusal),
        }
    }

    /// Requests wakeups for what the connection waits for. Returns whether it may wait.
    fn arm(&self) -> bool {
        let peer = &self.end.peer;
        let (wants_room, has_room) = self.pipes.with(|state| {
            let from = &state.from_guest;
            let wants_room = !from.bytes.is_empty() && !from.closed;
            (wants_room, state.to_guest.room() > 0)
        });
        let reads = self.is_open && !self.is_suspended && peer.is_established() && !self.has_ended;
        (!reads || !has_room || peer.arm()) && (!wants_room || peer.arm_writable())
    }
}

/// An error with the refusal as its kind, for the suite.
pub fn refused(reason: Option<Refusal>) -> io::Error {
    match reason {
        Some(refusal) => io::Error::from(refusal),
        None => ErrorKind::ConnectionRefused.into(),
    }
}
