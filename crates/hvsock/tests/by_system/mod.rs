//! The conformance suite over sockets of the system's own, blocking and asynchronous: `AF_VSOCK`
//! of a Linux kernel, `AF_HYPERV` of Windows.
//!
//! What these cannot do, and the suite therefore leaves out:
//!
//! - on Linux, to tell a peer that was killed from one that closed: there is one kind of end;
//! - the same to tasks on Windows: there Wine keeps a killed process's socket now and then, and watches
//!   it for tasks such that nothing wakes them;
//! - to reset a connection: the library has no call for it, and on Linux a reset that comes from the
//!   other side looks like the end of the data, too;
//! - to have their connections broken by a broker's death: there is none.

#[path = "../blocking/mod.rs"]
mod blocking;

use std::io;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::Duration;

use hvsock::{
    ConnectOptions, Endpoint, HvListener, HvStream, ListenOptions, ServiceId, Transport as Carrier,
    VmId,
};
use hvsock_testkit::conformance::{
    self, LONGEST_WAIT, Listen, Listener, MakePair, PairWithProcess, Role, Stream, Transport, Trial,
};
use hvsock_testkit::process::Running;

use crate::asynchronously::{Asynchronously, RUNTIME, bounded};
use blocking::Blocking;

/// Tells a process that plays a role to which port to connect.
const PEER_OF: &str = "HVSOCK_TEST_PEER_OF";

/// Bytes of buffer: the kernel's own choice, and the smallest.
const USUAL: u32 = 0;
const SMALL: u32 = 1;

/// The system's sockets.
#[derive(Clone, Copy)]
pub struct System {
    /// How the library is told to use them.
    pub endpoint: fn() -> Endpoint,
    pub carrier: Carrier,
    /// What the cases are called after.
    pub blocking: &'static str,
    pub asynchronous: &'static str,
    /// How many connections of tasks to have at once.
    pub many_tasks: usize,
    /// Whether the death of a peer is told from its end, in threads.
    pub tells_death: bool,
    /// Whether a socket's buffer can be had as small as one likes.
    pub has_small_buffers: bool,
}

impl System {
    pub fn trials(self) -> Vec<Trial> {
        let mut trials = conformance::trials(Sockets::<Blocking>::new(self, self.blocking, 10_000));
        let asynchronous = Sockets::<Asynchronously>::new(self, self.asynchronous, 20_000);
        trials.extend(conformance::trials(asynchronous));
        trials
    }

    /// The other end of a connection, in a process of its own.
    pub fn play(self, role: Role) -> ExitCode {
        let port = std::env::var(PEER_OF)
            .ok()
            .and_then(|port| port.parse().ok());
        let port = port.expect("the role has a port to connect to");
        role.play(&Blocking::connect(self, port, USUAL).expect("a connection"))
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

/// Ends of one kind.
trait End: Stream {
    type Listener: Send + Sync + 'static;

    /// How many connections to have at once.
    fn many(by: System) -> usize;

    fn connect(by: System, port: u32, buffer: u32) -> io::Result<Self>;
    fn listen(by: System, port: u32, backlog: u32, buffer: u32) -> io::Result<Self::Listener>;
    fn accept(listener: &Self::Listener, timeout: Duration) -> io::Result<Self>;
}

struct Sockets<E: End> {
    by: System,
    name: &'static str,
    next_port: AtomicU32,
    /// Makes one pair at a time, so that each connect meets its own accept.
    pairs: LazyLock<Mutex<Pairs<E>>>,
}

struct Pairs<E: End>(Option<(u32, E::Listener)>);

impl<E: End> Sockets<E> {
    fn new(by: System, name: &'static str, first_port: u32) -> Self {
        Self {
            by,
            name,
            next_port: AtomicU32::new(first_port),
            pairs: LazyLock::new(|| Mutex::new(Pairs(None))),
        }
    }

    fn listener(&self, backlog: u32, buffer: u32) -> io::Result<(u32, E::Listener)> {
        let port = self.next_port.fetch_add(1, Ordering::Relaxed);
        Ok((port, E::listen(self.by, port, backlog, buffer)?))
    }

    /// Has `connect` connect to a port, and accepts there.
    fn meet<T>(&self, connect: impl FnOnce(u32) -> io::Result<T>) -> io::Result<(T, E)> {
        let mut pairs = self.pairs.lock().unwrap_or_else(PoisonError::into_inner);
        let (port, listener) = match &mut pairs.0 {
            Some(there) => there,
            none => none.insert(self.listener(128, USUAL)?),
        };
        let connector = connect(*port)?;
        Ok((connector, E::accept(listener, LONGEST_WAIT)?))
    }
}

impl<E: End> Transport for Sockets<E> {
    type Stream = E;

    fn name(&self) -> &'static str {
        self.name
    }

    fn pair(&self) -> io::Result<(E, E)> {
        self.meet(|port| E::connect(self.by, port, USUAL))
    }

    fn tells_death_from_end(&self) -> bool {
        self.by.tells_death && self.name == self.by.blocking
    }

    fn many(&self) -> usize {
        E::many(self.by)
    }

    fn small_pair(&self) -> Option<MakePair<Self>> {
        let small: MakePair<Self> = |transport| {
            let (port, listener) = transport.listener(1, SMALL)?;
            let connector = E::connect(transport.by, port, SMALL)?;
            Ok((connector, E::accept(&listener, LONGEST_WAIT)?))
        };
        self.by.has_small_buffers.then_some(small)
    }

    fn listen(&self) -> Option<Listen<Self>> {
        Some(|transport, backlog| {
            let (port, listener) = transport.listener(backlog, USUAL)?;
            let by = transport.by;
            Ok(Box::new(Listening::<E> { by, port, listener }))
        })
    }

    fn pair_with_process(&self) -> Option<PairWithProcess<Self>> {
        Some(|transport, role| {
            let (peer, stream) = transport.meet(|port| {
                let mut command = role.command()?;
                Running::start(command.env(PEER_OF, port.to_string()))
            })?;
            Ok((stream, peer))
        })
    }
}

struct Listening<E: End> {
    by: System,
    port: u32,
    listener: E::Listener,
}

impl<E: End> Listener<E> for Listening<E> {
    fn connect(&self) -> io::Result<E> {
        E::connect(self.by, self.port, USUAL)
    }

    fn accept(&self, timeout: Duration) -> io::Result<E> {
        E::accept(&self.listener, timeout)
    }
}

impl End for Asynchronously {
    type Listener = hvsock::tokio::HvListener;

    fn many(by: System) -> usize {
        by.many_tasks
    }

    fn connect(by: System, port: u32, buffer: u32) -> io::Result<Self> {
        let options = by.connecting(buffer);
        let connect = hvsock::tokio::HvStream::connect_with(&options, at(port));
        let stream = Self::new(RUNTIME.block_on(connect)?);
        assert_ne!(
            stream.connection_id(),
            0,
            "it has a number without a broker"
        );
        Ok(stream)
    }

    fn listen(by: System, port: u32, backlog: u32, buffer: u32) -> io::Result<Self::Listener> {
        let options = by.listening(backlog, buffer);
        RUNTIME.block_on(hvsock::tokio::HvListener::bind_with(&options, at(port)))
    }

    fn accept(listener: &Self::Listener, timeout: Duration) -> io::Result<Self> {
        let (stream, _) = bounded(timeout, listener.accept())?;
        Ok(Self::new(stream))
    }
}

impl End for Blocking {
    type Listener = HvListener;

    fn many(_by: System) -> usize {
        500
    }

    fn connect(by: System, port: u32, buffer: u32) -> io::Result<Self> {
        let stream = by.connecting(buffer).connect(at(port))?;
        assert_eq!(stream.transport(), by.carrier);
        Ok(Self(stream))
    }

    fn listen(by: System, port: u32, backlog: u32, buffer: u32) -> io::Result<HvListener> {
        by.listening(backlog, buffer).listen(at(port))
    }

    fn accept(listener: &HvListener, timeout: Duration) -> io::Result<Self> {
        let (stream, _) = listener.accept_timeout(timeout)?;
        Ok(Self(stream))
    }
}
