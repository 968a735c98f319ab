//! The test fixture: a broker in this process, its folder and helpers.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use hvsock::{
    Endpoint, HvAddr, HvListener, HvStream, PartitionName, PartitionRef, Refusal, ServiceId,
    ServiceRef, VmId, refusal_of,
};
use hvsock_broker::model::{NewContainer, NewService};
use hvsock_broker::{Broker, BrokerConfig, Handle};
use hvsock_endpoint::Dirs;
use hvsock_testkit::TempFolder;

/// The longest wait for anything that must happen.
pub const TIMEOUT: Duration = Duration::from_secs(20);

/// A broker and its folder.
pub struct World {
    // Dropped before its folder.
    pub broker: Broker,
    pub folder: TempFolder,
}

impl World {
    pub fn new() -> Self {
        Self::with(|_| ())
    }

    /// A broker with a changed configuration.
    pub fn with(change: impl FnOnce(&mut BrokerConfig)) -> Self {
        let folder = TempFolder::new();
        let mut config = config(folder.path());
        change(&mut config);
        let broker = Broker::start(config).expect("a broker");
        Self { broker, folder }
    }

    pub fn handle(&self) -> Handle {
        self.broker.handle()
    }

    /// The endpoint of the broker's own partition.
    pub fn host(&self) -> PartitionEndpoint {
        PartitionEndpoint(self.folder.join("endpoint"))
    }

    /// Registers the service of a port.
    pub fn register(&self, port: u32) {
        let registered = self.handle().register(service(port), "tester".into());
        registered.expect("registered");
    }

    /// Adds a container, in `group` if given. Returns its endpoint.
    pub fn container(&self, name: &str, group: Option<&str>) -> PartitionEndpoint {
        let added = self
            .handle()
            .add_container(container(name, group.as_slice()));
        added.expect("added");
        self.inside(name)
    }

    /// The endpoint of a container.
    pub fn inside(&self, name: &str) -> PartitionEndpoint {
        PartitionEndpoint(self.folder.join(format!("containers/{name}/endpoint")))
    }

    /// Waits until the broker has these counts of listeners and connections.
    pub fn settles_at(&self, listeners: usize, connections: usize) {
        eventually("the expected count of listeners and connections", || {
            let status = self.handle().status().expect("a status");
            (status.listeners, status.connections) == (listeners, connections)
        });
    }

    /// Connects on loopback of the host and exchanges some bytes, then closes. An event that the
    /// broker's core handles after all that came before it.
    #[track_caller]
    pub fn later_exchange(&self) {
        // A port of its own for each call: the broker may still have the previous listener.
        static PORT: AtomicU32 = AtomicU32::new(4_000_000);
        let port = PORT.fetch_add(1, Ordering::Relaxed);
        let host = self.host();
        let listener = host.listen(VmId::LOOPBACK, port).expect("listening");
        let (mut one, mut other) = host.pair(VmId::LOOPBACK, port, &listener);
        for _ in 0..10 {
            one.write_all(b"?").expect("written");
            other.read_exact(&mut [0]).expect("read");
            other.write_all(b"!").expect("written");
            one.read_exact(&mut [0]).expect("read");
        }
    }

    /// Asserts that nothing arrives on `stream`, not even after a later exchange of others.
    #[track_caller]
    pub fn nothing_arrives(&self, stream: &mut HvStream) {
        self.later_exchange();
        stream.set_nonblocking(true).expect("a mode");
        let error = stream.read(&mut [0]).expect_err("nothing to read");
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "{error}");
        stream.set_nonblocking(false).expect("a mode");
    }
}

/// The configuration of a broker with all files in one folder and without the control API.
pub fn config(folder: &Path) -> BrokerConfig {
    let mut config = BrokerConfig::new(Dirs {
        run: folder.to_owned(),
        config: folder.to_owned(),
    });
    config.partition = PartitionName::new("testhost").expect("a name");
    config.control = false;
    config
}

pub fn service(port: u32) -> NewService {
    let (name, id) = (format!("Service {port}"), ServiceId::from_port(port));
    let service = serde_json::json!({"name": name, "id": id.to_string()});
    serde_json::from_value(service).expect("a service")
}

pub fn service_ref(port: u32) -> ServiceRef {
    ServiceRef::Id(ServiceId::from_port(port))
}

pub fn container(name: &str, groups: &[&str]) -> NewContainer {
    serde_json::from_value(serde_json::json!({"name": name, "groups": groups})).expect("one")
}

pub fn partition_ref(name: &str) -> PartitionRef {
    PartitionRef::Name(PartitionName::new(name).expect("a name"))
}

/// An address by id and port, which needs no lookup.
pub fn address(vm: VmId, port: u32) -> HvAddr {
    HvAddr::new(PartitionRef::Id(vm), ServiceId::from_port(port))
}

/// The path of a partition's endpoint. A process that connects to it belongs to the partition.
#[derive(Clone)]
pub struct PartitionEndpoint(pub PathBuf);

impl PartitionEndpoint {
    pub fn endpoint(&self) -> Endpoint {
        Endpoint::at(&self.0)
    }

    pub fn connect(&self, vm: VmId, port: u32) -> io::Result<HvStream> {
        self.connect_to(address(vm, port))
    }

    pub fn connect_to(&self, address: HvAddr) -> io::Result<HvStream> {
        let stream = HvStream::options()
            .endpoint(self.endpoint())
            .timeout(TIMEOUT)
            .connect(address)?;
        Ok(limited(stream))
    }

    /// A connection with `HVSOCKET_CONNECTED_SUSPEND`, which survives a pause.
    pub fn connect_suspendable(&self, vm: VmId, port: u32) -> HvStream {
        let stream = HvStream::options()
            .endpoint(self.endpoint())
            .timeout(TIMEOUT)
            .connected_suspend(true)
            .connect(address(vm, port));
        limited(stream.expect("connected"))
    }

    pub fn listen(&self, vm: VmId, port: u32) -> io::Result<HvListener> {
        self.listen_with(vm, port, 128)
    }

    pub fn listen_with(&self, vm: VmId, port: u32, backlog: u32) -> io::Result<HvListener> {
        HvListener::options()
            .endpoint(self.endpoint())
            .backlog(backlog)
            .listen(address(vm, port))
    }

    /// Connects to a listener. Returns both ends.
    pub fn pair(&self, vm: VmId, port: u32, listener: &HvListener) -> (HvStream, HvStream) {
        let connected = self.connect(vm, port).expect("connected");
        (connected, accept(listener))
    }
}

/// Accepts a connection within [`TIMEOUT`].
pub fn accept(listener: &HvListener) -> HvStream {
    limited(listener.accept_timeout(TIMEOUT).expect("accepted").0)
}

fn limited(stream: HvStream) -> HvStream {
    stream.set_read_timeout(Some(TIMEOUT)).expect("a bound");
    stream.set_write_timeout(Some(TIMEOUT)).expect("a bound");
    stream
}

/// The refusal in an error.
#[track_caller]
pub fn refusal(error: &io::Error) -> Refusal {
    match refusal_of(error) {
        Some(refusal) => refusal.clone(),
        None => panic!("not a refusal: {error:?}"),
    }
}

/// The refusal of a call that must fail.
#[track_caller]
pub fn refused<T>(result: io::Result<T>) -> Refusal {
    match result {
        Ok(_) => panic!("the call was not refused"),
        Err(error) => refusal(&error),
    }
}

/// The limit that a refusal names.
#[track_caller]
pub fn limit<T>(result: io::Result<T>) -> String {
    match refused(result) {
        Refusal::LimitReached { which } => which,
        other => panic!("{other:?} instead of a limit"),
    }
}

/// Waits until a condition holds.
#[track_caller]
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < TIMEOUT, "timed out waiting for: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Sets a flag when dropped, also by a panic, so that the threads that it stops always end.
pub struct StopOnDrop<'a>(pub &'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The count of open descriptors of a process.
pub fn descriptors_of(pid: u32) -> usize {
    let folder = std::fs::read_dir(format!("/proc/{pid}/fd"));
    folder.expect("a child process").count()
}
