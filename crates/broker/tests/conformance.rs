//! The conformance suite with a broker: streams of the library within one partition and from a
//! container to its host, each over a ring of its own, in an arena, over descriptors and with one socket
//! pair of both ends.
//!
//! A direct connection outlives a killed broker, so the cases with one are reported as ignored for it.

#[path = "../../hvsock/tests/blocking/mod.rs"]
mod blocking;

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{LazyLock, Mutex};
use std::time::{Duration, Instant};
use std::{env, thread};

use hvsock::{ConnectOptions, Endpoint, HvListener, HvStream, Transport as StreamTransport, VmId};
use hvsock_broker::Broker;
use hvsock_broker::model::TransportSetting;
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
/// The services that are registered with every broker, for all transports but the direct one, and for it.
const FIRST_SERVICE: u32 = 1;
const DIRECT_SERVICE: u32 = 2;

fn main() -> ExitCode {
    if let Some(folder) = env::var_os(BROKER_IN) {
        let _broker = start_broker(Path::new(&folder));
        println!("ready");
        // The test kills this process.
        thread::sleep(conformance::LONGEST_CASE);
        return ExitCode::SUCCESS;
    }
    if let (Some(role), Ok(address)) = (Role::of_this_process(), env::var(PEER_OF)) {
        let carrier = env::var(PEER_BY).expect("the test says how");
        let carrier = ALL_CARRIERS.into_iter().find(|by| by.name() == carrier);
        let carrier = carrier.expect("the name of one");
        return role.run(&Socket(connect_as_peer(carrier, &address)));
    }
    let routes = [Route::WithinAPartition, Route::FromAContainer];
    let kinds = routes
        .into_iter()
        .flat_map(|route| ALL_CARRIERS.map(|carrier| Kind { route, carrier }));
    conformance::main(
        kinds
            .flat_map(|kind| conformance::trials(Brokered::new(kind)))
            .collect(),
    )
}

/// How the bytes are moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Carrier {
    /// A ring with memory of its own.
    Ring,
    /// A ring in an arena.
    Arena,
    Descriptor,
    /// One socket pair of both ends.
    Direct,
}

const ALL_CARRIERS: [Carrier; 4] = [
    Carrier::Ring,
    Carrier::Arena,
    Carrier::Descriptor,
    Carrier::Direct,
];

impl Carrier {
    fn name(self) -> &'static str {
        match self {
            Carrier::Ring => "ring",
            Carrier::Arena => "arena",
            Carrier::Descriptor => "descriptor",
            Carrier::Direct => "direct",
        }
    }

    fn options(self) -> ConnectOptions {
        HvStream::options()
            .timeout(LONGEST_WAIT)
            .shared_memory(self != Carrier::Descriptor)
            .own_memory(self != Carrier::Arena)
    }

    /// Whether a connection is of this kind.
    fn is_of(self, stream: &HvStream) -> bool {
        let transport = match self {
            Carrier::Descriptor => StreamTransport::Descriptor,
            Carrier::Direct => StreamTransport::Direct,
            Carrier::Ring | Carrier::Arena => StreamTransport::Ring,
        };
        stream.transport() == transport && stream.is_in_arena() == (self == Carrier::Arena)
    }
}

/// Connects until the connection is of the wanted kind. The test closes the others.
fn connect_as_peer(carrier: Carrier, address: &str) -> HvStream {
    loop {
        let stream = carrier
            .options()
            .connect(address)
            .expect("the test listens");
        if carrier.is_of(&stream) {
            return stream;
        }
        let end = (&stream).read(&mut [0]);
        assert_eq!(end.expect("an end"), 0);
    }
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
    /// The service that is registered with every broker.
    fn first_service(self) -> u32 {
        match self.carrier {
            Carrier::Direct => DIRECT_SERVICE,
            _ => FIRST_SERVICE,
        }
    }

    fn connect(self, folder: &Path, port: u32) -> io::Result<Socket> {
        self.connect_sized(folder, port, 0)
    }

    /// Connects with a ring of `ring` bytes, if the variant uses rings.
    fn connect_sized(self, folder: &Path, port: u32, ring: u32) -> io::Result<Socket> {
        let options = self.carrier.options();
        options
            .endpoint(Endpoint::at(self.route.endpoint(folder)))
            .ring_size(ring)
            .connect(address(self.route.target(), port))
            .map(Socket)
    }

    /// Makes a connection of this kind. The first one of a pair of processes is in no arena, and a broker
    /// needs a moment to grant more slots.
    fn pair(
        self,
        folder: &Path,
        port: u32,
        ring: u32,
        listener: &HvListener,
    ) -> io::Result<(Socket, Socket)> {
        let deadline = Instant::now() + LONGEST_WAIT;
        loop {
            let connector = self.connect_sized(folder, port, ring)?;
            let acceptor = accept(listener, LONGEST_WAIT)?;
            if self.carrier.is_of(&connector.0) && self.carrier.is_of(&acceptor.0) {
                return Ok((connector, acceptor));
            }
            assert!(Instant::now() < deadline, "no connection of this kind");
        }
    }
}

fn start_broker(folder: &Path) -> Broker {
    let broker = Broker::start(config(folder)).expect("a broker");
    let added = broker.handle().add_container(container("web", &[]));
    added.expect("a container");
    register(&broker, FIRST_SERVICE, Carrier::Ring);
    register(&broker, DIRECT_SERVICE, Carrier::Direct);
    broker
}

fn register(broker: &Broker, port: u32, carrier: Carrier) {
    let mut service = service(port);
    service.transport = (carrier == Carrier::Direct).then_some(TransportSetting::Direct);
    let registered = broker.handle().register(service, "tester".into());
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
            host: match kind.carrier {
                Carrier::Direct => LazyLock::new(|| Host::start(DIRECT_SERVICE)),
                _ => LazyLock::new(|| Host::start(FIRST_SERVICE)),
            },
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
    fn start(first: u32) -> Self {
        let folder = TempFolder::new();
        let broker = start_broker(folder.path());
        let pairs = listen(folder.path(), first, 128).expect("a listener");
        Self {
            folder,
            broker,
            next_service: AtomicU32::new(DIRECT_SERVICE + 1),
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
            (Route::WithinAPartition, Carrier::Arena) => "arena_within_a_partition",
            (Route::FromAContainer, Carrier::Arena) => "arena_from_a_container",
            (Route::WithinAPartition, Carrier::Direct) => "direct_within_a_partition",
            (Route::FromAContainer, Carrier::Direct) => "direct_from_a_container",
            (Route::WithinAPartition, _) => "descriptor_within_a_partition",
            (Route::FromAContainer, _) => "descriptor_from_a_container",
        }
    }

    fn pair(&self) -> io::Result<(Socket, Socket)> {
        let listener = self.host.pairs.lock().expect("no pair failed");
        let folder = self.host.folder.path();
        self.kind
            .pair(folder, self.kind.first_service(), 0, &listener)
    }

    fn small_pair(&self) -> Option<MakePair<Self>> {
        if matches!(self.kind.carrier, Carrier::Descriptor | Carrier::Direct) {
            return None;
        }
        Some(|transport| {
            let host = &transport.host;
            let port = host.next_service.fetch_add(1, Ordering::Relaxed);
            register(&host.broker, port, transport.kind.carrier);
            let folder = host.folder.path();
            let listener = HvListener::options()
                .endpoint(Endpoint::in_dir(folder))
                .ring_size(1)
                .listen(address(VmId::WILDCARD, port))?;
            transport.kind.pair(folder, port, 1, &listener)
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
            register(&transport.host.broker, port, transport.kind.carrier);
            let (kind, folder) = (transport.kind, transport.host.folder.path().to_owned());
            let listener = listen(&folder, port, backlog)?;
            if kind.carrier == Carrier::Arena {
                // The case's connections are made in the arena that this one takes.
                kind.pair(&folder, port, 0, &listener)?;
            }
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
            let service = transport.kind.first_service();
            let mut peer = role.command()?;
            peer.env(
                "HVSOCK_ENDPOINT",
                transport.kind.route.endpoint(transport.host.folder.path()),
            );
            peer.env(PEER_BY, transport.kind.carrier.name());
            peer.env(PEER_OF, format!("hvsock://{target}/{service}"));
            let peer = Running::start(&mut peer)?;
            loop {
                let acceptor = accept(&listener, LONGEST_WAIT)?;
                if transport.kind.carrier.is_of(&acceptor.0) {
                    return Ok((acceptor, peer));
                }
            }
        })
    }

    fn pair_through_broker(&self) -> Option<PairThroughBroker<Self>> {
        // The ends of a direct connection do not need the broker.
        if self.kind.carrier == Carrier::Direct {
            return None;
        }
        Some(|transport| {
            let folder = TempFolder::new();
            let mut command = Command::new(env::current_exe()?);
            command.env(BROKER_IN, folder.path()).stdout(Stdio::piped());
            let mut broker = Running::start(&mut command)?;
            let stdout = broker.take_stdout().ok_or(io::ErrorKind::BrokenPipe)?;
            CapturedOutput::from(stdout).wait_for("ready", LONGEST_WAIT)?;
            let listener = listen(folder.path(), FIRST_SERVICE, 1)?;
            let kind = transport.kind;
            let (connector, acceptor) = kind.pair(folder.path(), FIRST_SERVICE, 0, &listener)?;
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
