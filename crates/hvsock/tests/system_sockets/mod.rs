//! The conformance suite with sockets of the system, blocking and async: `AF_VSOCK` of a Linux
//! kernel, `AF_HYPERV` of Windows.
//!
//! The suite leaves out what these cannot do:
//!
//! - on Linux, distinguish a killed peer from one that closed: there is one kind of end;
//! - the same for tasks on Windows: Wine sometimes keeps the socket of a killed process, and
//!   watches it for tasks in a way that wakes nothing;
//! - reset a connection: on Linux a reset by the peer looks like the end of the data;
//! - lose their connections by the death of a broker: there is none.

#[path = "../blocking/mod.rs"]
mod blocking;

use std::io;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::Duration;

use hvsock::{
    ConnectOptions, Endpoint, HvListener, HvStream, ListenOptions, ServiceId,
    Transport as StreamTransport, VmId,
};
use hvsock_testkit::conformance::{
    self, LONGEST_WAIT, Listen, Listener, MakePair, PairWithProcess, Role, Stream, Transport, Trial,
};
use hvsock_testkit::process::Running;

use crate::async_stream::{AsyncStream, RUNTIME, bounded};
use blocking::Blocking;

/// The port that a child process in a role connects to.
const PEER_OF: &str = "HVSOCK_TEST_PEER_OF";

/// Buffer sizes in bytes: the default of the kernel, and the smallest.
const USUAL: u32 = 0;
const SMALL: u32 = 1;

/// The sockets of the system.
#[derive(Clone, Copy)]
pub struct System {
    /// The endpoint that selects them.
    pub endpoint: fn() -> Endpoint,
    pub transport: StreamTransport,
    /// The name prefix of the cases.
    pub blocking: &'static str,
    pub asynchronous: &'static str,
    /// The number of simultaneous connections of tasks.
    pub many_tasks: usize,
    /// Whether a thread can distinguish the death of a peer from its end.
    pub reports_peer_death: bool,
    /// Whether a socket's buffer can be arbitrarily small.
    pub has_small_buffers: bool,
}

impl System {
    pub fn trials(self) -> Vec<Trial> {
        let mut trials = conformance::trials(Sockets::<Blocking>::new(self, self.blocking, 10_000));
        let asynchronous = Sockets::<AsyncStream>::new(self, self.asynchronous, 20_000);
        trials.extend(conformance::trials(asynchronous));
        trials
    }

    /// Runs the other end of a connection in a process of its own.
    pub fn play(self, role: Role) -> ExitCode {
        let port = std::env::var(PEER_OF)
            .ok()
            .and_then(|port| port.parse().ok());
        let port = port.expect("the role has a port to connect to");
        role.run(&Blocking::connect(self, port, USUAL).expect("a connection"))
    }

    fn connecting(self, buffer: u32) -> ConnectOptions {
        HvStream::options()
            .endpoint((self.endpoint)())
            .timeout(LONGEST_WAIT)
            .ring_size(buffer)
    }

    fn listening(self, backlog: u32, buffer: u32) -> ListenOptions {
        HvListener::options()
            .endpoint((self.endpoint)())
            .backlog(backlog)
            .ring_size(buffer)
    }
}

fn at(port: u32) -> (VmId, ServiceId) {
    (VmId::LOOPBACK, ServiceId::from_port(port))
}

/// A stream of one kind: blocking or async.
trait SocketStream: Stream {
    type Listener: Send + Sync + 'static;

    /// The number of simultaneous connections.
    fn many(system: System) -> usize;

    fn connect(system: System, port: u32, buffer: u32) -> io::Result<Self>;
    fn listen(system: System, port: u32, backlog: u32, buffer: u32) -> io::Result<Self::Listener>;
    fn accept(listener: &Self::Listener, timeout: Duration) -> io::Result<Self>;
}

struct Sockets<E: SocketStream> {
    system: System,
    name: &'static str,
    next_port: AtomicU32,
    /// Creates one pair at a time, so that each connect is accepted by its own accept.
    pairs: LazyLock<Mutex<Pairs<E>>>,
}

struct Pairs<E: SocketStream>(Option<(u32, E::Listener)>);

impl<E: SocketStream> Sockets<E> {
    fn new(system: System, name: &'static str, first_port: u32) -> Self {
        Self {
            system,
            name,
            next_port: AtomicU32::new(first_port),
            pairs: LazyLock::new(|| Mutex::new(Pairs(None))),
        }
    }

    fn listener(&self, backlog: u32, buffer: u32) -> io::Result<(u32, E::Listener)> {
        let port = self.next_port.fetch_add(1, Ordering::Relaxed);
        Ok((port, E::listen(self.system, port, backlog, buffer)?))
    }

    /// Calls `connect` with a port, and accepts there.
    fn connect_pair<T>(&self, connect: impl FnOnce(u32) -> io::Result<T>) -> io::Result<(T, E)> {
        let mut pairs = self.pairs.lock().unwrap_or_else(PoisonError::into_inner);
        let (port, listener) = match &mut pairs.0 {
            Some(there) => there,
            none => none.insert(self.listener(128, USUAL)?),
        };
        let connector = connect(*port)?;
        Ok((connector, E::accept(listener, LONGEST_WAIT)?))
    }
}

impl<E: SocketStream> Transport for Sockets<E> {
    type Stream = E;

    fn name(&self) -> &'static str {
        self.name
    }

    fn pair(&self) -> io::Result<(E, E)> {
        self.connect_pair(|port| E::connect(self.system, port, USUAL))
    }

    fn distinguishes_death_from_eof(&self) -> bool {
        self.system.reports_peer_death && self.name == self.system.blocking
    }

    fn concurrent_connections(&self) -> usize {
        E::many(self.system)
    }

    fn small_pair(&self) -> Option<MakePair<Self>> {
        let small: MakePair<Self> = |transport| {
            let (port, listener) = transport.listener(1, SMALL)?;
            let connector = E::connect(transport.system, port, SMALL)?;
            Ok((connector, E::accept(&listener, LONGEST_WAIT)?))
        };
        self.system.has_small_buffers.then_some(small)
    }

    fn listen(&self) -> Option<Listen<Self>> {
        Some(|transport, backlog| {
            let (port, listener) = transport.listener(backlog, USUAL)?;
            let system = transport.system;
            Ok(Box::new(Listening::<E> {
                system,
                port,
                listener,
            }))
        })
    }

    fn pair_with_process(&self) -> Option<PairWithProcess<Self>> {
        Some(|transport, role| {
            let (peer, stream) = transport.connect_pair(|port| {
                let mut command = role.command()?;
                Running::start(command.env(PEER_OF, port.to_string()))
            })?;
            Ok((stream, peer))
        })
    }
}

struct Listening<E: SocketStream> {
    system: System,
    port: u32,
    listener: E::Listener,
}

impl<E: SocketStream> Listener<E> for Listening<E> {
    fn connect(&self) -> io::Result<E> {
        E::connect(self.system, self.port, USUAL)
    }

    fn accept(&self, timeout: Duration) -> io::Result<E> {
        E::accept(&self.listener, timeout)
    }
}

impl SocketStream for AsyncStream {
    type Listener = hvsock::tokio::HvListener;

    fn many(system: System) -> usize {
        system.many_tasks
    }

    fn connect(system: System, port: u32, buffer: u32) -> io::Result<Self> {
        let options = system.connecting(buffer);
        let connect = hvsock::tokio::HvStream::connect_with(&options, at(port));
        let stream = Self::new(RUNTIME.block_on(connect)?);
        assert_ne!(
            stream.connection_id(),
            0,
            "it has a number without a broker"
        );
        Ok(stream)
    }

    fn listen(system: System, port: u32, backlog: u32, buffer: u32) -> io::Result<Self::Listener> {
        let options = system.listening(backlog, buffer);
        RUNTIME.block_on(hvsock::tokio::HvListener::bind_with(&options, at(port)))
    }

    fn accept(listener: &Self::Listener, timeout: Duration) -> io::Result<Self> {
        let (stream, _) = bounded(timeout, listener.accept())?;
        Ok(Self::new(stream))
    }
}

impl SocketStream for Blocking {
    type Listener = HvListener;

    fn many(_system: System) -> usize {
        500
    }

    fn connect(system: System, port: u32, buffer: u32) -> io::Result<Self> {
        let stream = system.connecting(buffer).connect(at(port))?;
        assert_eq!(stream.transport(), system.transport);
        Ok(Self(stream))
    }

    fn listen(system: System, port: u32, backlog: u32, buffer: u32) -> io::Result<HvListener> {
        system.listening(backlog, buffer).listen(at(port))
    }

    fn accept(listener: &HvListener, timeout: Duration) -> io::Result<Self> {
        let (stream, _) = listener.accept_timeout(timeout)?;
        Ok(Self(stream))
    }
}
