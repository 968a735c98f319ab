//! The conformance suite with a broker: streams of the library within one partition and from a
//! container to its host, each over a ring and over descriptors.

#[path = "../../hvsock/tests/blocking/mod.rs"]
mod blocking;

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{LazyLock, Mutex};
use std::time::Duration;
use std::{env, thread};

use hvsock::{Endpoint, HvListener, HvStream, Transport as Carrier, VmId};
use hvsock_broker::Broker;
use hvsock_testkit::TempFolder;
use hvsock_testkit::conformance::{
    self, LONGEST_WAIT, Listen, Listener, MakePair, PairThroughBroker, PairWithProcess, Reset,
    Role, ThroughBroker, Transport,
};
use hvsock_testkit::process::{CapturedOutput, Running};
use hvsock_testkit::world::{address, config, container, service};

use blocking::Blocking as Socket;

/// The environment variable with the address to connect to, if this process is a test's peer.
const PEER_OF: &str = "HVSOCK_CONFORMANCE_PEER_OF";
/// The environment variable with the transport that the peer uses.
const PEER_BY: &str = "HVSOCK_CONFORMANCE_PEER_BY";
/// The environment variable with the broker's folder, if this process is a broker.
const BROKER_IN: &str = "HVSOCK_CONFORMANCE_BROKER_IN";
/// The service that is registered with every broker.
const FIRST_SERVICE: u32 = 1;

fn main() -> ExitCode {
    if let Some(folder) = env::var_os(BROKER_IN) {
        let _broker = start_broker(Path::new(&folder));
        println!("ready");
        // The test kills this process.
        thread::sleep(conformance::LONGEST_CASE);
        return ExitCode::SUCCESS;
    }
    if let (Some(role), Ok(address)) = (Role::of_this_process(), env::var(PEER_OF)) {
        let by_ring = env::var_os(PEER_BY).is_some_and(|by| by == Carrier::Ring.name());
        let options = HvStream::options().shared_memory(by_ring);
        let stream = options.connect(address.as_str()).expect("the test listens");
        return role.run(&Socket(stream));
    }
    let routes = [Route::WithinAPartition, Route::FromAContainer];
    let kinds = routes.into_iter().flat_map(|route| {
        [Carrier::Ring, Carrier::Descriptor].map(|carrier| Kind { route, carrier })
    });
    conformance::main(
        kinds
            .flat_map(|kind| conformance::trials(Brokered::new(kind)))
            .collect(),
    )
}

/// The partitions of the two ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Route {
    WithinAPartition,
    FromAContainer,
}

/// One variant under test.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Kind {
    route: Route,
    carrier: Carrier,
}

impl Route {
    /// The endpoint of the connecting end.
    fn endpoint(self, folder: &Path) -> PathBuf {
        match self {
            Route::WithinAPartition => folder.join("endpoint"),
            Route::FromAContainer => folder.join("containers/web/endpoint"),
        }
    }

    /// The accepting end's partition, as the connecting end addresses it.
    fn target(self) -> VmId {
        match self {
            Route::WithinAPartition => VmId::LOOPBACK,
            Route::FromAContainer => VmId::PARENT,
        }
    }
}

impl Kind {
    fn connect(self, folder: &Path, port: u32) -> io::Result<Socket> {
        self.connect_sized(folder, port, 0)
    }

    /// Connects with a ring of `ring` bytes, if the variant uses rings.
    fn connect_sized(self, folder: &Path, port: u32, ring: u32) -> io::Result<Socket> {
        let stream = HvStream::options()
            .endpoint(Endpoint::at(self.route.endpoint(folder)))
            .timeout(LONGEST_WAIT)
            .shared_memory(self.carrier == Carrier::Ring)
            .ring_size(ring)
            .connect(address(self.route.target(), port))?;
        assert_eq!(stream.transport(), self.carrier);
        Ok(Socket(stream))
    }
}

fn start_broker(folder: &Path) -> Broker {
    let broker = Broker::start(config(folder)).expect("a broker");
    let added = broker.handle().add_container(container("web", &[]));
    added.expect("a container");
    register(&broker, FIRST_SERVICE);
    broker
}

fn register(broker: &Broker, port: u32) {
    let registered = broker.handle().register(service(port), "tester".into());
    registered.expect("registered");
}

fn listen(folder: &Path, port: u32, backlog: u32) -> io::Result<HvListener> {
    HvListener::options()
        .endpoint(Endpoint::in_dir(folder))
        .backlog(backlog)
        .listen(address(VmId::WILDCARD, port))
}

fn accept(listener: &HvListener, timeout: Duration) -> io::Result<Socket> {
    let (stream, _) = listener.accept_timeout(timeout)?;
    Ok(Socket(stream))
}

/// Connections through a broker in this process.
struct Brokered {
    kind: Kind,
    /// Started by the first case, so that listing the cases starts none.
    host: LazyLock<Host>,
}

impl Brokered {
    fn new(kind: Kind) -> Self {
        Self {
            kind,
            host: LazyLock::new(Host::start),
        }
    }
}

struct Host {
    folder: TempFolder,
    broker: Broker,
    next_service: AtomicU32,
    /// The lock serializes pairs, so that each accept returns its own connect's peer.
    pairs: Mutex<HvListener>,
}

impl Host {
    fn start() -> Self {
        let folder = TempFolder::new();
        let broker = start_broker(folder.path());
        let pairs = listen(folder.path(), FIRST_SERVICE, 128).expect("a listener");
        Self {
            folder,
            broker,
            next_service: AtomicU32::new(FIRST_SERVICE + 1),
            pairs: Mutex::new(pairs),
        }
    }
}

impl Transport for Brokered {
    type Stream = Socket;

    fn name(&self) -> &'static str {
        match (self.kind.route, self.kind.carrier) {
            (Route::WithinAPartition, Carrier::Ring) => "ring_within_a_partition",
            (Route::FromAContainer, Carrier::Ring) => "ring_from_a_container",
            (Route::WithinAPartition, _) => "descriptor_within_a_partition",
            (Route::FromAContainer, _) => "descriptor_from_a_container",
        }
    }

    fn pair(&self) -> io::Result<(Socket, Socket)> {
        let listener = self.host.pairs.lock().expect("no pair failed");
        let connector = self.kind.connect(self.host.folder.path(), FIRST_SERVICE)?;
        Ok((connector, accept(&listener, LONGEST_WAIT)?))
    }

    fn small_pair(&self) -> Option<MakePair<Self>> {
        if self.kind.carrier != Carrier::Ring {
            return None;
        }
        Some(|transport| {
            let host = &transport.host;
            let port = host.next_service.fetch_add(1, Ordering::Relaxed);
            register(&host.broker, port);
            let folder = host.folder.path();
            let listener = HvListener::options()
                .endpoint(Endpoint::in_dir(folder))
                .ring_size(1)
                .listen(address(VmId::WILDCARD, port))?;
            let connector = transport.kind.connect_sized(folder, port, 1)?;
            Ok((connector, accept(&listener, LONGEST_WAIT)?))
        })
    }

    /// Closes the connection through the broker. Both ends see a reset.
    fn reset(&self) -> Option<Reset<Self>> {
        Some(|transport, stream| {
            let connection = stream.0.connection_id();
            let closed = transport.host.broker.handle().close_connection(connection);
            closed.map(drop).map_err(io::Error::other)
        })
    }

    fn listen(&self) -> Option<Listen<Self>> {
        Some(|transport, backlog| {
            let port = transport.host.next_service.fetch_add(1, Ordering::Relaxed);
            register(&transport.host.broker, port);
            let (kind, folder) = (transport.kind, transport.host.folder.path().to_owned());
            let listener = listen(&folder, port, backlog)?;
            Ok(Box::new(Listening {
                listener,
                kind,
                folder,
                port,
            }))
        })
    }

    fn pair_with_process(&self) -> Option<PairWithProcess<Self>> {
        Some(|transport, role| {
            let listener = transport.host.pairs.lock().expect("no pair failed");
            let target = match transport.kind.route {
                Route::WithinAPartition => "loopback",
                Route::FromAContainer => "parent",
            };
            let mut peer = role.command()?;
            peer.env(
                "HVSOCK_ENDPOINT",
                transport.kind.route.endpoint(transport.host.folder.path()),
            );
            peer.env(PEER_BY, transport.kind.carrier.name());
            peer.env(PEER_OF, format!("hvsock://{target}/{FIRST_SERVICE}"));
            let peer = Running::start(&mut peer)?;
            Ok((accept(&listener, LONGEST_WAIT)?, peer))
        })
    }

    fn pair_through_broker(&self) -> Option<PairThroughBroker<Self>> {
        Some(|transport| {
            let folder = TempFolder::new();
            let mut command = Command::new(env::current_exe()?);
            command.env(BROKER_IN, folder.path()).stdout(Stdio::piped());
            let mut broker = Running::start(&mut command)?;
            let stdout = broker.take_stdout().ok_or(io::ErrorKind::BrokenPipe)?;
            CapturedOutput::from(stdout).wait_for("ready", LONGEST_WAIT)?;
            let listener = listen(folder.path(), FIRST_SERVICE, 1)?;
            let connector = transport.kind.connect(folder.path(), FIRST_SERVICE)?;
            let acceptor = accept(&listener, LONGEST_WAIT)?;
            Ok(ThroughBroker {
                connector,
                acceptor,
                broker,
            })
        })
    }
}

struct Listening {
    listener: HvListener,
    kind: Kind,
    folder: PathBuf,
    port: u32,
}

impl Listener<Socket> for Listening {
    fn connect(&self) -> io::Result<Socket> {
        self.kind.connect(&self.folder, self.port)
    }

    fn accept(&self, timeout: Duration) -> io::Result<Socket> {
        accept(&self.listener, timeout)
    }
}
