//! A broker in this process with all that a test needs around it.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hvsock::{
    Endpoint, HvAddr, HvListener, HvStream, PartitionName, PartitionRef, Refusal, ServiceId,
    ServiceRef, VmId, refusal_of,
};
use hvsock_broker::model::{NewContainer, NewService};
use hvsock_broker::{Broker, BrokerConfig, Handle};
use hvsock_endpoint::Dirs;
use hvsock_testkit::TempFolder;

/// The longest wait for what must happen.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// How long to look before believing that something does not happen.
pub const A_WHILE: Duration = Duration::from_millis(150);

/// A broker and its folder.
pub struct World {
    // Ends before its folder does.
    pub broker: Broker,
    pub folder: TempFolder,
}

impl World {
    pub fn new() -> Self {
        Self::with(|_| ())
    }

    /// One whose configuration differs.
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
    pub fn host(&self) -> Place {
        Place(self.folder.join("endpoint"))
    }

    /// Registers the service of a port.
    pub fn register(&self, port: u32) {
        let registered = self.handle().register(service(port), "tester".into());
        registered.expect("registered");
    }

    /// Adds a container, in a group if one is named.
    pub fn container(&self, name: &str, group: Option<&str>) -> Place {
        let added = self
            .handle()
            .add_container(container(name, group.as_slice()));
        added.expect("added");
        self.inside(name)
    }

    /// The endpoint of a container.
    pub fn inside(&self, name: &str) -> Place {
        Place(self.folder.join(format!("containers/{name}/endpoint")))
    }

    /// Waits until the broker has so many listeners and connections.
    pub fn settles_at(&self, listeners: usize, connections: usize) {
        eventually("listeners and connections are as they should be", || {
            let status = self.handle().status().expect("a status");
            (status.listeners, status.connections) == (listeners, connections)
        });
    }
}

/// The configuration of a broker with everything in one folder, without the control API.
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

/// An address by id and port, which needs no look-up.
pub fn address(vm: VmId, port: u32) -> HvAddr {
    HvAddr::new(PartitionRef::Id(vm), ServiceId::from_port(port))
}

/// Where a process is: whoever comes through this endpoint is in its partition.
#[derive(Clone)]
pub struct Place(pub PathBuf);

impl Place {
    pub fn endpoint(&self) -> Endpoint {
        Endpoint::at(&self.0)
    }

    pub fn connect(&self, vm: VmId, port: u32) -> io::Result<HvStream> {
        self.connect_to(address(vm, port))
    }

    pub fn connect_to(&self, address: HvAddr) -> io::Result<HvStream> {
        let stream = HvStream::options()
            .endpoint(self.endpoint())
            .timeout(PATIENCE)
            .connect(address)?;
        Ok(limited(stream))
    }

    /// A connection that is to outlast a pause.
    pub fn connect_suspendable(&self, vm: VmId, port: u32) -> HvStream {
        let stream = HvStream::options()
            .endpoint(self.endpoint())
            .timeout(PATIENCE)
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

    /// Both ends of a connection from here to a listener.
    pub fn pair(&self, vm: VmId, port: u32, listener: &HvListener) -> (HvStream, HvStream) {
        let connected = self.connect(vm, port).expect("connected");
        (connected, accept(listener))
    }
}

/// Accepts one, within bounds.
pub fn accept(listener: &HvListener) -> HvStream {
    limited(listener.accept_timeout(PATIENCE).expect("accepted").0)
}

fn limited(stream: HvStream) -> HvStream {
    stream.set_read_timeout(Some(PATIENCE)).expect("a bound");
    stream.set_write_timeout(Some(PATIENCE)).expect("a bound");
    stream
}

/// The refusal behind an error.
#[track_caller]
pub fn refusal(error: &io::Error) -> Refusal {
    match refusal_of(error) {
        Some(refusal) => refusal.clone(),
        None => panic!("no refusal: {error:?}"),
    }
}

/// The refusal behind the error of what must not succeed.
#[track_caller]
pub fn refused<T>(result: io::Result<T>) -> Refusal {
    match result {
        Ok(_) => panic!("it was not refused"),
        Err(error) => refusal(&error),
    }
}

/// Which limit a refusal names.
#[track_caller]
pub fn limit<T>(result: io::Result<T>) -> String {
    match refused(result) {
        Refusal::LimitReached { which } => which,
        other => panic!("{other:?} instead of a limit"),
    }
}

/// Waits until something holds that must come to.
#[track_caller]
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < PATIENCE, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// How many descriptors a process has open.
pub fn descriptors_of(pid: u32) -> usize {
    let folder = std::fs::read_dir(format!("/proc/{pid}/fd"));
    folder.expect("a process of ours").count()
}
