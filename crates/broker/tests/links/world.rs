//! A broker with VMs whose links live in the test.

use std::io;
use std::sync::mpsc;
use std::time::Duration;

use hvsock::{Endpoint, HvAddr, HvListener, HvStream, PartitionRef, ServiceId, VmId};
use hvsock_broker::guest_link::{Capabilities, LinkFactory};
use hvsock_broker::model::{Connection, Partition};
use hvsock_broker::{Broker, BrokerConfig};
use hvsock_endpoint::Dirs;
use hvsock_testkit::TempFolder;
use hvsock_testkit::conformance::LONGEST_WAIT;

use super::{pipe_link, socket_link};

pub struct World {
    // Dropped before its folder.
    pub broker: Broker,
    pub folder: TempFolder,
}

impl World {
    pub fn start() -> Self {
        let folder = TempFolder::new();
        let mut config = BrokerConfig::new(Dirs {
            run: folder.path().to_owned(),
            config: folder.path().to_owned(),
        });
        config.control = false;
        let broker = Broker::start(config).expect("a broker");
        Self { broker, folder }
    }

    /// Adds a VM whose guest is behind a pipe link.
    pub fn pipe_vm(&self, name: &str, capabilities: Capabilities) -> pipe_link::Guest {
        let (guest, guests) = mpsc::channel();
        let factory = pipe_link::Factory {
            capabilities,
            guest,
        };
        self.add(name, factory);
        guests.recv().expect("the link was opened")
    }

    /// Adds a VM whose guest is behind a socket link.
    pub fn socket_vm(&self, name: &str, capabilities: Capabilities) -> socket_link::Guest {
        let (guest, guests) = mpsc::channel();
        let factory = socket_link::Factory {
            capabilities,
            guest,
        };
        self.add(name, factory);
        guests.recv().expect("the link was opened")
    }

    pub fn add(&self, name: &str, factory: impl LinkFactory + 'static) {
        let vm = serde_json::json!({"name": name, "groups": ["all"]});
        let vm = serde_json::from_value(vm).expect("a VM");
        let added = self.broker.handle().add_vm_with_link(vm, factory);
        added.expect("added");
    }

    /// A VM as operators see it.
    pub fn partition(&self, name: &str) -> Partition {
        let name = name.parse().expect("a name");
        let found = self.broker.handle().partition(&PartitionRef::Name(name));
        found.expect("the partition")
    }

    pub fn cid(&self, name: &str) -> u64 {
        self.partition(name).cid.expect("a VM has a CID").into()
    }

    /// The only connection.
    pub fn connection(&self) -> Connection {
        let mut all = self.broker.handle().connections().expect("a list");
        assert_eq!(all.len(), 1, "{all:?}");
        all.remove(0)
    }

    /// Waits until there are no connections.
    pub fn settles(&self) {
        eventually("connections are left", || {
            let all = self.broker.handle().connections().expect("a list");
            all.is_empty()
        });
    }

    pub fn register(&self, port: u32) {
        let (name, id) = (format!("Service {port}"), ServiceId::from_port(port));
        let service = serde_json::json!({"name": name, "id": id.to_string()});
        let service = serde_json::from_value(service).expect("a service");
        let registered = self.broker.handle().register(service, "tester".to_owned());
        registered.expect("registered");
    }

    /// Listens for connections of guests.
    pub fn listen(&self, port: u32, shared_memory: bool, backlog: u32) -> io::Result<HvListener> {
        HvListener::options()
            .endpoint(Endpoint::in_dir(self.folder.path()))
            .shared_memory(shared_memory)
            .backlog(backlog)
            .listen(HvAddr::new(
                PartitionRef::Id(VmId::CHILDREN),
                ServiceId::from_port(port),
            ))
    }

    /// Connects to a guest.
    pub fn connect(&self, vm: &str, port: u32, shared_memory: bool) -> io::Result<HvStream> {
        HvStream::options()
            .endpoint(Endpoint::in_dir(self.folder.path()))
            .timeout(LONGEST_WAIT)
            .shared_memory(shared_memory)
            .connect((vm, port))
    }
}

/// Waits until `condition` holds.
pub fn eventually(what: &str, condition: impl Fn() -> bool) {
    let start = std::time::Instant::now();
    while !condition() {
        assert!(start.elapsed() < LONGEST_WAIT, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
