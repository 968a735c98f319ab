//! A broker in this process, with VMs whose guests are at native speed.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hvsock::{Endpoint, HvAddr, HvListener, HvStream, PartitionName, ServiceId, ServiceRef, VmId};
use hvsock_broker::model::{NewService, NewVm, Partition, PartitionState};
use hvsock_broker::{Broker, BrokerConfig, Handle};
use hvsock_endpoint::Dirs;
use hvsock_testkit::TempFolder;
use hvsock_testkit::guest::{Guest, Options};

/// The longest wait for what must happen.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A broker and its folder.
pub struct World {
    // Ends before its folder does.
    pub broker: Broker,
    pub folder: TempFolder,
}

impl World {
    pub fn new() -> Self {
        let folder = TempFolder::new();
        let mut config = BrokerConfig::new(Dirs {
            run: folder.path().to_owned(),
            config: folder.path().to_owned(),
        });
        config.partition = PartitionName::new("testhost").expect("a name");
        config.control = false;
        let broker = Broker::start(config).expect("a broker");
        Self { broker, folder }
    }

    pub fn handle(&self) -> Handle {
        self.broker.handle()
    }

    /// Registers the service of a port.
    pub fn register(&self, port: u32) {
        let (name, id) = (format!("Service {port}"), ServiceId::from_port(port));
        let service = serde_json::json!({"name": name, "id": id.to_string()});
        let service: NewService = serde_json::from_value(service).expect("a service");
        let registered = self.handle().register(service, "tester".into());
        registered.expect("registered");
    }

    /// Adds a VM, in a group if one is named.
    pub fn add(&self, name: &str, cid: u32, group: Option<&str>) -> PathBuf {
        let vm = serde_json::json!({"name": name, "cid": cid, "groups": group.as_slice()});
        let vm: NewVm = serde_json::from_value(vm).expect("a VM");
        let added: Partition = self.handle().add_vm(vm).expect("added");
        added.socket.expect("a VM has a socket")
    }

    /// Adds a VM and starts a guest in it.
    pub fn guest(&self, name: &str, cid: u32, group: Option<&str>) -> Guest {
        let socket = self.add(name, cid, group);
        self.start(name, cid, &socket)
    }

    pub fn start(&self, name: &str, cid: u32, socket: &Path) -> Guest {
        let guest = Guest::start(socket, Options::new(u64::from(cid))).expect("a guest");
        self.waits_for_state(name, PartitionState::Running);
        guest
    }

    pub fn state(&self, name: &str) -> PartitionState {
        let partitions = self.handle().partitions().expect("partitions");
        let named = |partition: &&Partition| partition.name.as_str() == name;
        partitions.iter().find(named).expect("it is there").state
    }

    pub fn waits_for_state(&self, name: &str, state: PartitionState) {
        eventually("a VM's state is as it should be", || {
            self.state(name) == state
        });
    }

    pub fn connections(&self) -> usize {
        self.handle().status().expect("a status").connections
    }

    pub fn endpoint(&self) -> Endpoint {
        Endpoint::at(self.folder.join("endpoint"))
    }

    pub fn listen(&self, vm: VmId, port: u32) -> HvListener {
        let options = hvsock::ListenOptions::new().endpoint(self.endpoint());
        options.listen(address(vm, port)).expect("a listener")
    }

    pub fn connect(&self, name: &str, port: u32) -> std::io::Result<HvStream> {
        let options = hvsock::ConnectOptions::new().endpoint(self.endpoint());
        options.connect((name, port))
    }
}

/// An address by id and port.
pub fn address(vm: VmId, port: u32) -> HvAddr {
    HvAddr::new(vm, ServiceRef::Id(ServiceId::from_port(port)))
}

/// Waits until something is so.
pub fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
