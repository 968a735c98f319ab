//! The connections of the broker's run of the suite. A runtime that all cases share drives each
//! operation.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::Duration;

use hvsock::tokio::{HvListener, HvStream};
use hvsock::{
    ConnectOptions, Endpoint, Lease, ListenOptions, ServiceId, Transport as StreamTransport, VmId,
};
use hvsock_broker::model::TransportSetting;
use hvsock_testkit::conformance::{self, LONGEST_WAIT, Listen, Listener, Reset, Transport};
use hvsock_testkit::world::{World, service};

use crate::async_stream::{AsyncStream, RUNTIME, bounded};

static HOST: LazyLock<Host> = LazyLock::new(Host::start);

pub fn main() -> ExitCode {
    let transports = [
        StreamTransport::Ring,
        StreamTransport::Descriptor,
        StreamTransport::Direct,
    ];
    let kinds = transports.map(|transport| conformance::trials(Asynchronous { transport }));
    conformance::main(kinds.into_iter().flatten().collect())
}

/// A broker, and listeners by port.
struct Host {
    world: World,
    next_port: AtomicU32,
    /// Creates one pair at a time, so that each connect is accepted by its own accept.
    pairs: Mutex<HashMap<StreamTransport, Listening>>,
}

impl Host {
    fn start() -> Self {
        Self {
            world: World::new(),
            next_port: AtomicU32::new(1),
            pairs: Mutex::default(),
        }
    }

    fn listen(&self, transport: StreamTransport, backlog: u32) -> io::Result<Listening> {
        let port = self.next_port.fetch_add(1, Ordering::Relaxed);
        if transport == StreamTransport::Direct {
            // A lease has no settings.
            let mut direct = service(port);
            direct.transport = Some(TransportSetting::Direct);
            let registered = self.world.handle().register(direct, "tester".into());
            registered.map_err(io::Error::other)?;
            return Listening::new(self.world.host().endpoint(), port, backlog, None);
        }
        let endpoint = self.world.host().endpoint();
        let id = ServiceId::from_port(port);
        let lease = Lease::register_at(&endpoint, &format!("Pair {port}"), id, "")?;
        Listening::new(endpoint, port, backlog, Some(lease))
    }
}

struct Listening {
    listener: HvListener,
    endpoint: Endpoint,
    service: ServiceId,
    _lease: Option<Lease>,
}

impl Listening {
    fn new(endpoint: Endpoint, port: u32, backlog: u32, lease: Option<Lease>) -> io::Result<Self> {
        let service = ServiceId::from_port(port);
        let options = ListenOptions::new().endpoint(&endpoint).backlog(backlog);
        let listener = HvListener::bind_with(&options, (VmId::WILDCARD, service));
        let listener = RUNTIME.block_on(listener)?;
        Ok(Self {
            listener,
            endpoint,
            service,
            _lease: lease,
        })
    }

    fn connect_over(&self, transport: StreamTransport) -> io::Result<AsyncStream> {
        let options = ConnectOptions::new()
            .endpoint(&self.endpoint)
            .timeout(LONGEST_WAIT)
            .shared_memory(transport == StreamTransport::Ring);
        let connect = HvStream::connect_with(&options, (VmId::LOOPBACK, self.service));
        let stream = RUNTIME.block_on(connect)?;
        assert_eq!(stream.transport(), transport);
        Ok(AsyncStream::new(stream))
    }

    fn accept(&self, timeout: Duration) -> io::Result<AsyncStream> {
        let (stream, _) = bounded(timeout, self.listener.accept())?;
        Ok(AsyncStream::new(stream))
    }
}

/// A listener, and the transport of its connections.
struct OverTransport(Listening, StreamTransport);

impl Listener<AsyncStream> for OverTransport {
    fn connect(&self) -> io::Result<AsyncStream> {
        self.0.connect_over(self.1)
    }

    fn accept(&self, timeout: Duration) -> io::Result<AsyncStream> {
        self.0.accept(timeout)
    }
}

struct Asynchronous {
    transport: StreamTransport,
}

impl Transport for Asynchronous {
    type Stream = AsyncStream;

    fn name(&self) -> &'static str {
        match self.transport {
            StreamTransport::Ring => "asynchronous_ring",
            StreamTransport::Direct => "asynchronous_direct",
            _ => "asynchronous_descriptor",
        }
    }

    fn pair(&self) -> io::Result<(AsyncStream, AsyncStream)> {
        let mut pairs = HOST.pairs.lock().unwrap_or_else(PoisonError::into_inner);
        let listening = match pairs.entry(self.transport) {
            Entry::Occupied(listening) => listening.into_mut(),
            Entry::Vacant(none) => none.insert(HOST.listen(self.transport, 128)?),
        };
        let connector = listening.connect_over(self.transport)?;
        Ok((connector, listening.accept(LONGEST_WAIT)?))
    }

    fn reset(&self) -> Option<Reset<Self>> {
        Some(|_, stream| {
            let closed = HOST
                .world
                .broker
                .handle()
                .close_connection(stream.connection_id());
            closed.map(drop).map_err(io::Error::other)
        })
    }

    fn listen(&self) -> Option<Listen<Self>> {
        Some(|transport, backlog| {
            Ok(Box::new(OverTransport(
                HOST.listen(transport.transport, backlog)?,
                transport.transport,
            )))
        })
    }
}
