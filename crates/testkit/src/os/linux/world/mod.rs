//! A broker in the test's own process, with its folder, partitions and services, and both ends of
//! connections through it.
//!
//! [`World`] owns the broker; [`PartitionEndpoint`] acts as a process of one partition. Every wait is bounded
//! by [`TIMEOUT`].

mod endpoint;
mod model;
pub mod wire;

use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use hvsock::{HvAddr, HvListener, HvStream, PartitionName, ServiceId, VmId};
use hvsock_broker::model::{Connection, Partition, PartitionState};
use hvsock_broker::{Broker, BrokerConfig, Handle};
use hvsock_endpoint::Dirs;

use crate::TempFolder;
use crate::guest::{Driver, Guest, GuestStream, Options};
use crate::wait::{TIMEOUT, eventually};

pub use endpoint::{PartitionEndpoint, accept, address, limited};
pub use model::{container, limit, partition_ref, refusal, refused, service, service_ref, vm};

/// The port of the service that [`World::with_web`] registers.
pub const PORT: u32 = 7001;
/// The context id of the VM `web` of [`World::with_web`].
pub const WEB: u64 = 42;

/// A broker and its folder.
pub struct World {
    // Dropped before its folder.
    /// The broker.
    pub broker: Broker,
    /// The folder of all its files.
    pub folder: TempFolder,
}

/// The configuration of a broker named `testhost`, with all files in one folder and without the control API. With
/// `HVSOCK_SANDBOX=strict` the broker's threads in this process are confined from now on, and a system call that their lists
/// lack ends the process.
pub fn config(folder: &Path) -> BrokerConfig {
    if std::env::var_os("HVSOCK_SANDBOX").is_some_and(|how| how == "strict") {
        hvsock_broker::sandbox::enable_strictly().expect("a thread");
    }
    let mut config = BrokerConfig::new(dirs(folder));
    config.partition = PartitionName::new("testhost").expect("a name");
    config.control = false;
    config
}

fn dirs(folder: &Path) -> Dirs {
    Dirs {
        run: folder.to_owned(),
        config: folder.to_owned(),
    }
}

impl World {
    /// A broker without services and partitions.
    #[expect(clippy::new_without_default, reason = "it starts a broker")]
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

    /// A broker with the VM `web`, whose context id is [`WEB`], and the service of [`PORT`] registered.
    pub fn with_web(change: impl FnOnce(&mut BrokerConfig)) -> Self {
        let world = Self::with(change);
        world.register(PORT);
        world.vm("web", WEB, &[]);
        world
    }

    /// Stops the broker and starts another one on the same folder, with the usual configuration.
    #[must_use]
    pub fn restarted(self) -> Self {
        self.restarted_after(|_| ())
    }

    /// As [`restarted`](Self::restarted), with a change of the folder while no broker runs.
    #[must_use]
    pub fn restarted_after(self, change: impl FnOnce(&Path)) -> Self {
        let Self { broker, folder } = self;
        drop(broker);
        change(folder.path());
        Self::again(folder)
    }

    /// A broker on the folder of one that has ended, with the usual configuration.
    pub fn again(folder: TempFolder) -> Self {
        let broker = Broker::start(config(folder.path())).expect("a broker");
        Self { broker, folder }
    }

    /// Calls to the broker.
    pub fn handle(&self) -> Handle {
        self.broker.handle()
    }

    /// The paths of the broker's files.
    pub fn dirs(&self) -> Dirs {
        dirs(self.folder.path())
    }

    /// Registers the service of a port.
    #[track_caller]
    pub fn register(&self, port: u32) {
        let registered = self.handle().register(service(port), "tester".into());
        registered.expect("registered");
    }

    /// Adds a container, in `group` if given. Returns its endpoint.
    #[track_caller]
    pub fn container(&self, name: &str, group: Option<&str>) -> PartitionEndpoint {
        let container = container(name, group.as_slice());
        self.handle().add_container(container).expect("added");
        self.inside(name)
    }

    /// Adds a VM.
    #[track_caller]
    pub fn vm(&self, name: &str, cid: u64, groups: &[&str]) -> Partition {
        self.handle().add_vm(vm(name, cid, groups)).expect("added")
    }

    /// The endpoint of the broker's own partition.
    pub fn host(&self) -> PartitionEndpoint {
        PartitionEndpoint(self.dirs().endpoint())
    }

    /// The endpoint of a container.
    pub fn inside(&self, name: &str) -> PartitionEndpoint {
        PartitionEndpoint(self.folder.join(format!("containers/{name}/endpoint")))
    }

    /// The path of a VM's vhost-user socket.
    pub fn socket(&self, name: &str) -> PathBuf {
        self.dirs().vm_socket(name)
    }

    /// Starts the guest of `web`.
    #[track_caller]
    pub fn guest(&self) -> Guest {
        self.guest_of("web", Options::new(WEB))
    }

    /// Starts the guest of a VM, and waits until the broker reports it as running.
    #[track_caller]
    pub fn guest_of(&self, name: &str, options: Options) -> Guest {
        let guest = Guest::start(&self.socket(name), options).expect("a guest");
        self.is(name, PartitionState::Running);
        guest
    }

    /// Starts the VM `web` with a driver that the test controls.
    pub fn driver(&self, options: Options) -> Driver {
        Driver::start(&self.socket("web"), options).expect("a driver")
    }

    /// A partition as operators see it.
    #[track_caller]
    pub fn partition(&self, name: &str) -> Partition {
        let found = self.handle().partition(&partition_ref(name));
        found.expect("the partition")
    }

    /// The context id of a VM.
    #[track_caller]
    pub fn cid(&self, name: &str) -> u64 {
        self.partition(name).cid.expect("a VM has a CID").into()
    }

    /// The only connection.
    #[track_caller]
    pub fn connection(&self) -> Connection {
        let mut all = self.handle().connections().expect("a list");
        assert_eq!(all.len(), 1, "{all:?}");
        all.remove(0)
    }

    /// Waits until the broker reports a partition's state.
    #[track_caller]
    pub fn is(&self, name: &str, state: PartitionState) {
        eventually(&format!("{name} is {state:?}"), || {
            let partition = self.handle().partition(&partition_ref(name));
            partition.is_ok_and(|partition| partition.state == state)
        });
    }

    /// Waits until the broker has these counts of listeners and connections.
    #[track_caller]
    pub fn settles_at(&self, listeners: usize, connections: usize) {
        crate::wait::until_ok("these counts of listeners and connections", || {
            let status = self.handle().status().expect("a status");
            let found = (status.listeners, status.connections);
            if found == (listeners, connections) {
                Ok(())
            } else {
                Err(format!("{found:?}"))
            }
        });
    }

    /// Waits until the broker has this count of connections.
    #[track_caller]
    pub fn has_connections(&self, connections: usize) {
        crate::wait::until_ok("this count of connections", || {
            match self.handle().status().expect("a status").connections {
                found if found == connections => Ok(()),
                found => Err(found),
            }
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

    /// A listener on the host for connections from guests to the service of [`PORT`].
    #[track_caller]
    pub fn listen(&self) -> HvListener {
        self.listen_on(PORT)
    }

    /// A listener on the host for connections from guests.
    #[track_caller]
    pub fn listen_on(&self, port: u32) -> HvListener {
        let listener = self.host().listen(VmId::CHILDREN, port);
        listener.expect("listening")
    }

    /// Connects from the host into a partition.
    ///
    /// # Errors
    /// Those of the connect.
    pub fn connect_to(&self, name: &str, port: u32) -> io::Result<HvStream> {
        let address = HvAddr::new(partition_ref(name), ServiceId::from_port(port));
        self.host().connect_to(address)
    }

    /// Connects a guest to the host's listener for [`PORT`]. Returns both ends.
    #[track_caller]
    pub fn pair(&self, guest: &Guest, listener: &HvListener) -> (GuestStream, HvStream) {
        let inside = bounded(guest.connect(PORT).expect("connected"));
        (inside, accept(listener))
    }
}

/// Bounds every wait of a guest's stream.
pub fn bounded(stream: GuestStream) -> GuestStream {
    stream.set_read_timeout(Some(TIMEOUT));
    stream.set_write_timeout(Some(TIMEOUT));
    stream
}
