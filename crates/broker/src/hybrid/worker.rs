//! The thread of one link. It never waits for the VMM or the guest; a file system may make it wait.

mod connects;
pub(super) mod snapshot;

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::ffi::{OsStr, OsString};
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use hvsock_endpoint::HybridService;
use hvsock_fabric::{ConnectionId, Refusal};
use hvsock_sys::poll::{self, PollFd, PollFlags};
use hvsock_sys::socket_folder::{SocketFolder, SocketWatch};
use hvsock_sys::{peer, stream};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};

use super::attempt::Attempt;
use super::command::{Command, Place, SharedState};
use super::presence::Presence;
use super::sockets::{HostSockets, MAX_UNANSWERED};
use super::style::{Connects, Style};
use super::trust::Trust;
use crate::backoff::Backoff;
use crate::gate::Gate;
use crate::guest_link::{
    Destination, EventSender, GuestRequest, LinkEvent, OfferedService, PartitionState, RequestId,
    Service, SocketKind,
};
use crate::loop_waker::LoopWaker;
use crate::watchdog::{self, FILES, Step, ThreadWatch};

const WAKE: Token = Token(0);
const WATCH: Token = Token(1);
const VMM: Token = Token(2);
const PROBE: Token = Token(3);
/// The first token of a socket. Each is used once.
const FIRST: usize = 4;

/// What the VMM is sent to find out that it listens: no request, so that it closes the connection. To close it
/// without a line makes vhost-device-vsock 0.3 spin, and to hold it open blocks OpenVMM. Firecracker requires 10
/// bytes at least, and reads at most 32.
const PROBE_LINE: &str = "PROBE by hvsock\n";

/// The longest time that a guest may take to accept. A VMM holds a connect of which its guest's driver knows
/// nothing for as long as it likes.
pub(super) const MAX_TIMEOUT: Duration = Duration::from_secs(10);

/// The most connects accepted before other events are handled.
const ACCEPTS_PER_TURN: usize = 64;

/// How often to look whether the folder and the VMM's socket are still those that are known. What inotify
/// reports is looked at when it happens.
const CHECK: Duration = Duration::from_secs(5);
/// The same if the kernel does not report changes of the folder.
const CHECK_UNWATCHED: Duration = Duration::from_secs(1);
/// The first and the longest wait until the VMM's socket is looked at again, at which nobody listens. A
/// VMM creates the file before it listens.
const VMM_RETRY: [Duration; 2] = [Duration::from_millis(20), CHECK];
/// The same for the folder if there is none.
const FOLDER_RETRY: [Duration; 2] = [Duration::from_millis(250), CHECK];

/// At most one line of the log about the VMM's faults in this time.
const FAULT_INTERVAL: Duration = Duration::from_secs(1);

/// Why the thread has stopped for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pause {
    /// The link is dropped.
    Stopped,
    /// It leaves its state at its gate.
    Frozen,
}

/// What a token stands for.
#[derive(Debug)]
enum Source {
    HostSocket(OsString),
    Attempt(ConnectionId),
}

/// The thread's state.
pub(super) struct Worker {
    place: Place,
    style: &'static Style,
    trust: Trust,
    poll: Poll,
    waker: Arc<LoopWaker>,
    commands: Receiver<Command>,
    events: EventSender,
    state: SharedState,
    presence: Presence,
    folder: Option<SocketFolder>,
    watch: Option<SocketWatch>,
    /// The connection by which the VMM was found, until the VMM closes it.
    probe: Option<OwnedFd>,
    /// The VMM's process, while one is known.
    vmm: Option<OwnedFd>,
    sockets: HostSockets,
    attempts: HashMap<ConnectionId, Attempt>,
    /// When each attempt ends or is tried again.
    timers: BTreeSet<(Instant, ConnectionId)>,
    sources: HashMap<Token, Source>,
    next_token: usize,
    next_request: u64,
    unanswered: HashSet<RequestId>,
    /// Sockets with connects that were not accepted yet.
    waiting: VecDeque<OsString>,
    /// When accepting may go on after it failed.
    accept_at: Option<Instant>,
    check: Backoff,
    vmm_retry: Backoff,
    problems: Problems,
    faults: Faults,
}

/// What an operator has to see to.
#[derive(Debug, Default, PartialEq, Eq)]
struct Problems {
    folder: Option<String>,
    vmm: Option<String>,
    sockets: Option<String>,
    /// What was reported of it.
    reported: Option<String>,
}

impl Problems {
    /// All of it, as far as it matters: without a folder there can be nothing in it.
    fn text(&self) -> Option<String> {
        let inside = [&self.vmm, &self.sockets].into_iter().flatten();
        let inside: Vec<&str> = inside.map(String::as_str).collect();
        match (&self.folder, inside.is_empty()) {
            (Some(folder), _) => Some(folder.clone()),
            (None, true) => None,
            (None, false) => Some(inside.join("; ")),
        }
    }
}

/// Faults of the VMM, of which the log gets one line now and then.
#[derive(Debug, Default)]
struct Faults {
    last: Option<Instant>,
    left_out: u64,
}

impl Worker {
    pub(super) fn new(
        place: Place,
        style: &'static Style,
        trust: Trust,
        state: SharedState,
        commands: Receiver<Command>,
        events: EventSender,
    ) -> io::Result<Self> {
        let poll = Poll::new()?;
        let waker = Arc::new(LoopWaker::new(poll.registry(), WAKE)?);
        let presence = Presence::new(style.connects);
        state.set(presence.state());
        Ok(Self {
            sockets: HostSockets::new(&place.name),
            place,
            style,
            trust,
            poll,
            waker,
            commands,
            events,
            state,
            presence,
            folder: None,
            watch: None,
            probe: None,
            vmm: None,
            attempts: HashMap::new(),
            timers: BTreeSet::new(),
            sources: HashMap::new(),
            next_token: FIRST,
            next_request: 0,
            unanswered: HashSet::new(),
            waiting: VecDeque::new(),
            accept_at: None,
            check: Backoff::new(FOLDER_RETRY),
            vmm_retry: Backoff::new(VMM_RETRY),
            problems: Problems::default(),
            faults: Faults::default(),
        })
    }

    pub(super) fn state(&self) -> SharedState {
        self.state.clone()
    }

    /// How the thread is watched.
    pub(super) fn watch(&self) -> &ThreadWatch {
        self.events.watch()
    }

    pub(super) fn waker(&self) -> Arc<LoopWaker> {
        Arc::clone(&self.waker)
    }

    /// The thread: serves the link until it is dropped. Then the host's sockets are removed.
    pub(super) fn run(gate: &Gate<Self>) {
        let mut next = gate.enter();
        while let Some(mut worker) = next {
            if worker.serve(gate) == Pause::Stopped {
                return worker.sockets.close(worker.folder.as_ref());
            }
            next = gate.pass(worker, || {});
        }
    }

    fn serve(&mut self, gate: &Gate<Self>) -> Pause {
        let mut events = Events::with_capacity(256);
        // Files may have changed while it was frozen.
        self.check.now();
        loop {
            if gate.is_closed() {
                return Pause::Frozen;
            }
            if !self.handle_commands() {
                return Pause::Stopped;
            }
            let now = Instant::now();
            if self.check.is_due(now) {
                self.check_folder(now);
            }
            self.update_sockets(now);
            self.report_problems();
            self.handle_timers(now);
            self.accept_waiting(now);
            let timeout = self.timeout();
            watchdog::wait();
            let polled = self.poll.poll(&mut events, timeout);
            watchdog::begin_within(Step::Files, FILES);
            if let Err(error) = polled
                && error.kind() != io::ErrorKind::Interrupted
            {
                // A lack of memory, which passes.
                std::thread::sleep(VMM_RETRY[0]);
            }
            for event in &events {
                self.handle_event(event.token());
            }
        }
    }

    /// Handles the core's commands while the thread is frozen: nothing is connected, made or removed.
    pub(super) fn settle(&mut self) {
        self.waker.take();
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Connect {
                    connection,
                    names,
                    timeout,
                } => {
                    self.add_attempt(connection, names, timeout);
                    self.timers.insert((Instant::now(), connection));
                }
                Command::GiveUp(connection) => drop(self.remove_attempt(connection)),
                Command::Services(services) => self.want(services),
                Command::Answered(request) => drop(self.unanswered.remove(&request)),
                // The link opens its gate before it sends this.
                Command::Stop => {}
            }
        }
    }

    /// How long the thread may park.
    fn timeout(&mut self) -> Option<Duration> {
        let now = Instant::now();
        let may_accept = self.unanswered.len() < MAX_UNANSWERED;
        let accept = match (self.waiting.is_empty(), may_accept) {
            (false, true) => Some(self.accept_at.unwrap_or(now)),
            _ => None,
        };
        let timer = self.timers.first().map(|(at, _)| *at);
        let sockets = self.sockets.retry_at().filter(|_| self.folder.is_some());
        let next = [accept, timer, sockets, self.check.at()];
        let next = next.into_iter().flatten().min();
        match self.waker.prepare_park() {
            true => next.map(|next| next.saturating_duration_since(now)),
            false => Some(Duration::ZERO),
        }
    }

    /// Handles the core's commands. Returns `false` once the link is dropped.
    fn handle_commands(&mut self) -> bool {
        self.waker.take();
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Connect {
                    connection,
                    names,
                    timeout,
                } => self.connect(connection, names, timeout),
                Command::GiveUp(connection) => drop(self.remove_attempt(connection)),
                Command::Services(services) => self.set_services(services),
                Command::Answered(request) => {
                    self.unanswered.remove(&request);
                }
                Command::Stop => return false,
            }
        }
        true
    }

    fn handle_event(&mut self, token: Token) {
        match token {
            WAKE => {}
            WATCH => self.folder_changed(),
            VMM => self.vmm_ended(),
            PROBE => self.probe = None,
            token => match self.sources.get(&token) {
                Some(Source::HostSocket(name)) if self.waiting.contains(name) => {}
                Some(Source::HostSocket(name)) => self.waiting.push_back(name.clone()),
                Some(Source::Attempt(connection)) => self.proceed(*connection),
                None => {}
            },
        }
    }

    // The folder and the VMM's socket.

    /// Looks whether the folder is still the one that is at its path, and the VMM still there.
    fn check_folder(&mut self, now: Instant) {
        match SocketFolder::open(&self.place.folder) {
            Ok(there) => {
                self.problems.folder = None;
                if self.folder.as_ref().map(SocketFolder::id) != Some(there.id()) {
                    self.enter_folder(there);
                }
                self.check.reset();
                let next = match self.watch {
                    Some(_) => CHECK,
                    None => CHECK_UNWATCHED,
                };
                self.check.no_earlier_than(now + next);
                self.check_vmm(now);
            }
            Err(error) => {
                self.leave_folder();
                self.check.failed(now);
                self.ended();
                let folder = self.place.folder.display();
                let what = match error.raw_os_error() {
                    Some(code) if code == rustix::io::Errno::LOOP.raw_os_error() => {
                        "its path leads through a symbolic link; give the real path".to_owned()
                    }
                    _ => error.to_string(),
                };
                self.problems.folder = Some(format!("cannot open the folder {folder}: {what}"));
            }
        }
    }

    /// Moves the host's sockets to a folder.
    fn enter_folder(&mut self, folder: SocketFolder) {
        self.leave_folder();
        self.watch = folder.watch().ok();
        if let Some(watch) = &self.watch {
            let mut source = SourceFd(&watch.as_fd().as_raw_fd());
            let registered = self
                .poll
                .registry()
                .register(&mut source, WATCH, Interest::READABLE);
            if registered.is_err() {
                self.watch = None;
            }
        }
        self.folder = Some(folder);
        self.sockets.close(None);
    }

    fn leave_folder(&mut self) {
        // The folder may only have moved.
        self.sockets.close(self.folder.as_ref());
        self.forget_closed_sockets();
        self.folder = None;
        self.watch = None;
    }

    fn folder_changed(&mut self) {
        let changes = match &self.watch {
            Some(watch) => watch.read(),
            None => return,
        };
        let base: &OsStr = &self.place.name;
        let concerns = match &changes {
            Ok(changes) => {
                let names = &changes.names;
                changes.everything
                    || names
                        .iter()
                        .any(|name| name == base || self.sockets.is_wanted(name))
            }
            Err(_) => true,
        };
        if concerns {
            self.vmm_retry.reset();
            self.check.now();
        }
    }

    /// Looks whether somebody listens at the VMM's socket.
    fn check_vmm(&mut self, now: Instant) {
        if self.style.connects == Connects::ByPath {
            return;
        }
        let Some(folder) = &self.folder else { return };
        // A connect costs the VMM something, so it is not made while the known process lives and its
        // socket is there.
        let there = folder.find(&self.place.name);
        if self.vmm.is_some() && there.is_ok_and(|file| self.presence.is_socket(file)) {
            return;
        }
        match folder.connect(&self.place.name, |uid| self.trust.allows(uid)) {
            Ok((socket, file)) => match self.trust.check(&socket) {
                Ok(()) => {
                    if !self.presence.is_socket(file) {
                        self.vmm = None;
                    }
                    self.found_vmm(&socket);
                    self.end_probe(socket);
                    self.report_states(|presence| presence.listens(file));
                    self.vmm_retry.reset();
                    self.problems.vmm = None;
                }
                Err(error) => self.no_vmm(&error, now),
            },
            // It listens, and has no time.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => self.no_vmm(&error, now),
        }
    }

    fn no_vmm(&mut self, error: &io::Error, now: Instant) {
        self.ended();
        self.vmm_retry.failed(now);
        self.problems.vmm = match error.kind() {
            io::ErrorKind::NotFound => None,
            // It may be about to listen.
            io::ErrorKind::ConnectionRefused => {
                self.check_at(self.vmm_retry.at());
                None
            }
            _ => {
                self.check_at(self.vmm_retry.at());
                let path = self.place.folder.join(&self.place.name);
                Some(format!("cannot connect to {}: {error}", path.display()))
            }
        };
    }

    /// Looks at the folder again at this time, if that is earlier than planned.
    fn check_at(&mut self, at: Option<Instant>) {
        if at < self.check.at()
            && let Some(at) = at
        {
            self.check.now();
            self.check.no_earlier_than(at);
        }
    }

    /// Sends the VMM a line upon which it closes the connection.
    fn end_probe(&mut self, socket: OwnedFd) {
        // A VMM that has closed already is no less there.
        let _ = stream::try_send(&socket, &[IoSlice::new(PROBE_LINE.as_bytes())]);
        let mut source = SourceFd(&socket.as_raw_fd());
        let registry = self.poll.registry();
        if registry
            .register(&mut source, PROBE, Interest::READABLE)
            .is_ok()
        {
            self.probe = Some(socket);
        }
    }

    /// Follows the process at the other end of a socket to the VMM.
    fn found_vmm(&mut self, socket: &OwnedFd) {
        if self.vmm.is_some() {
            return;
        }
        let Ok(process) = peer::process(socket) else {
            return;
        };
        // Of an earlier process that has left its listener to this one, which cannot be followed.
        let mut fds = [PollFd::new(&process, PollFlags::IN)];
        if poll::wait(&mut fds, Some(Instant::now())).unwrap_or(true) {
            return;
        }
        let mut source = SourceFd(&process.as_raw_fd());
        let registry = self.poll.registry();
        if registry
            .register(&mut source, VMM, Interest::READABLE)
            .is_ok()
        {
            self.vmm = Some(process);
        }
    }

    /// The process that was taken for the VMM has ended. Another one may have its socket.
    fn vmm_ended(&mut self) {
        self.vmm = None;
        match self.style.connects {
            Connects::ByLine => self.check_folder(Instant::now()),
            Connects::ByPath => self.ended(),
        }
    }

    fn ended(&mut self) {
        self.vmm = None;
        self.report_states(Presence::ended);
        if self.presence.state().is_down() {
            // No answer comes any more; the connection may still be in the backlog of the VMM's socket.
            let waiting: Vec<_> = self.attempts.keys().copied().collect();
            for connection in waiting {
                self.fail(connection, Refusal::PartitionOff);
            }
        }
    }

    fn report_states(&mut self, change: impl FnOnce(&mut Presence) -> Vec<PartitionState>) {
        for state in change(&mut self.presence) {
            self.state.set(state);
            self.events.send(LinkEvent::State(state));
        }
    }

    /// Reports what an operator has to see to, or that it is solved.
    fn report_problems(&mut self) {
        let text = self.problems.text();
        if text != self.problems.reported {
            self.problems.reported.clone_from(&text);
            self.events.send(LinkEvent::Problem(text));
        }
    }

    /// Logs a fault of the VMM.
    fn fault(&mut self, what: &str) {
        let now = Instant::now();
        let recent = |last: Instant| now.saturating_duration_since(last) < FAULT_INTERVAL;
        if self.faults.last.is_some_and(recent) {
            self.faults.left_out += 1;
            return;
        }
        self.faults.last = Some(now);
        let more = match std::mem::take(&mut self.faults.left_out) {
            0 => String::new(),
            more => format!(" ({more} more since the last line)"),
        };
        self.events.send(LinkEvent::Fault(format!("{what}{more}")));
    }

    // Connects of the guest.

    fn set_services(&mut self, services: Vec<OfferedService>) {
        self.want(services);
        self.update_sockets(Instant::now());
    }

    fn want(&mut self, services: Vec<OfferedService>) {
        let style = self.style;
        let listening = services.into_iter().filter(|service| service.listening);
        self.sockets
            .want(listening.flat_map(|service| style.sockets_of(service)));
    }

    /// Makes and removes host sockets as wanted.
    fn update_sockets(&mut self, now: Instant) {
        let Some(folder) = &self.folder else { return };
        let next_token = &mut self.next_token;
        let token = || {
            *next_token += 1;
            Token(*next_token - 1)
        };
        let registry = self.poll.registry();
        let opened = self
            .sockets
            .update(folder, self.trust, registry, token, now);
        for (token, name) in opened {
            self.sources.insert(token, Source::HostSocket(name));
        }
        self.forget_closed_sockets();
        let fault = self.sockets.fault();
        self.problems.sockets =
            fault.map(|fault| format!("in {}: {fault}", self.place.folder.display()));
    }

    fn forget_closed_sockets(&mut self) {
        let sockets = &self.sockets;
        self.sources.retain(|token, source| match source {
            Source::HostSocket(name) => sockets
                .get(name)
                .is_some_and(|socket| socket.token == *token),
            Source::Attempt(_) => true,
        });
        self.waiting.retain(|name| sockets.is_open(name));
    }

    /// Accepts the connects of the guest that wait.
    fn accept_waiting(&mut self, now: Instant) {
        if self.accept_at.is_some_and(|at| at > now) {
            return;
        }
        self.accept_at = None;
        for _ in 0..ACCEPTS_PER_TURN {
            if self.unanswered.len() >= MAX_UNANSWERED {
                return;
            }
            let Some(name) = self.waiting.front() else {
                return;
            };
            let Some(socket) = self.sockets.get(name) else {
                self.waiting.pop_front();
                continue;
            };
            let service = socket.service;
            match stream::accept(&socket.listener) {
                Ok(Some(connection)) => self.request(service, connection),
                Ok(None) => drop(self.waiting.pop_front()),
                Err(error) => {
                    self.accept_at = Some(now + VMM_RETRY[0] * 5);
                    self.fault(&format!("cannot accept a connect of the guest: {error}"));
                    return;
                }
            }
            // One socket does not delay the others.
            if self.waiting.len() > 1 {
                self.waiting.rotate_left(1);
            }
        }
    }

    fn request(&mut self, service: HybridService, socket: OwnedFd) {
        if let Err(error) = self.trust.check(&socket) {
            return self.fault(&format!(
                "a connect for service {service} is refused: {error}"
            ));
        }
        if self.style.connects == Connects::ByPath {
            self.found_vmm(&socket);
        }
        self.report_states(Presence::guest_spoke);
        let id = RequestId(self.next_request);
        self.next_request += 1;
        self.unanswered.insert(id);
        let request = GuestRequest {
            destination: Destination::Host,
            service: match service {
                HybridService::Port(port) => Service::Port(port),
                HybridService::Guid(id) => Service::Id(id),
            },
            kind: SocketKind::Stream,
            source_port: None,
            identity: None,
            socket: Some(socket),
        };
        self.events.send(LinkEvent::Request(id, request));
    }
}
