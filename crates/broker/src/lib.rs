//! The host side of hvsock as a library: the broker of one partition and its children.
//!
//! [`Broker::start`] locks the folders named in a [`BrokerConfig`], opens the endpoint sockets, and
//! runs until the [`Broker`] is dropped. It has four kinds of thread: the core thread decides
//! (`core`), the data threads copy bytes (`pump`), each VM's link has threads of its own
//! ([`guest_link`]), and the control thread serves the HTTP API (`api`). A program that embeds the broker uses a [`Handle`] instead of the control API.
//!
//! When the first VMM shares a guest's memory, the broker installs a handler for `SIGBUS`, which passes on every
//! signal that is not of such memory to the handler from before. A program that installs its own does so before
//! that; otherwise memory that a VMM has not sealed is refused, unless its VM has
//! `unsealed_memory`.

#![forbid(unsafe_code)]

pub mod api;
mod audit;
mod backoff;
mod budget;
mod callers;
mod cdi;
mod config;
mod containers;
mod core;
mod data_path;
mod events;
mod folders;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
pub mod guest_link;
mod guests;
mod handle;
#[allow(dead_code, reason = "for a live upgrade")]
pub mod handover;
mod hybrid;
mod kernel_vsock;
mod links;
mod loop_waker;
mod mounts;
mod process;
mod pump;
mod reply;
mod retry;
mod stores;
mod uplink;
mod uplink_client;
mod vhost_user;
mod watch;

use std::sync::Arc;

use hvsock_registry::entry_folder::FolderWatch;
use hvsock_registry::store::{self, FolderStore};

pub use audit::AuditOutput;
pub use cdi::{CdiConfig, CdiHook};
pub use config::{BrokerConfig, StartError, Uplink};
pub use events::{EventStream, RecordScope};
pub use handle::{ControlError, Handle, ObjectKind};
/// The values of the control API, which [`Handle`]'s methods take and return as well.
pub use hvsock_control as model;
pub use hvsock_registry::store::RegistrationStore;
pub use hvsock_registry::{AccessRule, PARENT, Registration};
pub use uplink_client::UplinkTransport;

use api::ControlServer;
use containers::ContainerObserver;
use retry::Retries;
use stores::{PartitionStore, ServiceStore};

/// A running broker.
///
/// Dropping it resets every connection with a reason, removes the endpoint sockets, and joins its
/// threads.
pub struct Broker {
    handle: Handle,
    /// Stopped first, so that no request reaches a core that is stopping.
    control: Option<ControlServer>,
    _core: CoreThread,
    /// Stop watching the stores when dropped.
    _watch: store::Watch,
    _partition_watch: FolderWatch,
    /// Waits for the ends of containers.
    _observer: ContainerObserver,
    /// Ends after the core.
    _retries: Retries,
    /// Released last: the lock covers everything else.
    _lock: folders::FolderLock,
}

impl Broker {
    /// Starts a broker and returns once processes can connect to its endpoints.
    ///
    /// # Errors
    ///
    /// Fails with [`StartError::Held`] if another process, as a rule another broker, has locked these folders, and with another
    /// [`StartError`] if a folder, socket, thread or the registrations cannot be opened. A faulty
    /// registration or partition file is not an error: [`Handle::status`] lists it as a problem.
    pub fn start(config: BrokerConfig) -> Result<Self, StartError> {
        let lock = folders::lock(&config.dirs)?;
        let options = store::Options {
            built_in: config.built_in.clone(),
            ..store::Options::default()
        };
        let (store, _) = FolderStore::open_with(&config.dirs.config, options)?;
        Self::start_locked(config, lock, Box::new(store))
    }

    /// Starts a broker that keeps its registrations in `store` instead of the folder of its
    /// configuration. [`BrokerConfig::built_in`] has no effect then: such registrations are the
    /// store's.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start).
    pub fn start_with_store(
        config: BrokerConfig,
        store: Box<dyn RegistrationStore>,
    ) -> Result<Self, StartError> {
        let lock = folders::lock(&config.dirs)?;
        Self::start_locked(config, lock, store)
    }

    fn start_locked(
        mut config: BrokerConfig,
        lock: folders::FolderLock,
        mut store: Box<dyn RegistrationStore>,
    ) -> Result<Self, StartError> {
        let unnested = config.partition.check_unnested();
        unnested.map_err(StartError::PartitionName)?;
        let soft = hvsock_sys::limits::descriptors();
        config.soft_descriptors.get_or_insert(soft);
        // Each connection needs at least two descriptors.
        let descriptors = hvsock_sys::limits::raise_descriptors();
        let partitions = PartitionStore::open(&config.dirs, config.cdi.take())?;
        let (dirs, own) = (config.dirs.clone(), config.partition.clone());
        let control = config.control;
        let operators = config.operators();
        let (core_loop, link) = core::Loop::open(config, store.load()?)?;
        let thread = std::thread::Builder::new()
            .name("hvsock-core".into())
            .spawn(move || core_loop.run())
            .map_err(StartError::io("start the core thread"))?;
        let services = Arc::new(ServiceStore::new(store));
        let partitions = Arc::new(partitions);
        let (observer, orders) =
            ContainerObserver::prepare().map_err(StartError::io("create an epoll descriptor"))?;
        let handle = Handle::new(link, services, partitions, orders, dirs.clone(), own);
        // Ends the core if anything below fails.
        let core = CoreThread {
            handle: handle.clone(),
            thread: Some(thread),
        };
        let observer = ContainerObserver::start(observer, handle.clone())
            .map_err(StartError::io("start a thread"))?;
        handle.restore_partitions();
        // Also a container whose file has a problem now may be running.
        folders::remove_unknown_containers(&dirs, |name| {
            dirs.partitions().join(format!("{name}.toml")).exists()
        });
        handle.remove_unknown_bindings();
        // The folders may have been removed while no broker ran.
        handle.check_mounts(true);
        handle.check_descriptors(descriptors);
        handle.check_run_folder();
        let watch = watch::services(&handle).map_err(StartError::io("watch registrations"))?;
        let partition_watch =
            watch::partitions(&dirs, &handle).map_err(StartError::io("watch partition files"))?;
        let (retries, wakeup) =
            Retries::start(handle.clone()).map_err(StartError::io("start a thread"))?;
        handle.post(move |core| core.wake_on_problems(wakeup));
        let mut broker = Self {
            handle,
            control: None,
            _core: core,
            _watch: watch,
            _partition_watch: partition_watch,
            _observer: observer,
            _retries: retries,
            _lock: lock,
        };
        if control {
            let server = ControlServer::start(&dirs.control(), broker.handle(), operators);
            broker.control = Some(server.map_err(StartError::io("serve the control API"))?);
        }
        Ok(broker)
    }

    /// A handle to query and control this broker. Handles are cheap to clone.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }
}

/// Compile-time check that the public types can be used from several threads.
const _: () = {
    const fn assert_send_sync<T: Send + Sync>() {}
    const fn assert_send<T: Send>() {}

    assert_send_sync::<Broker>();
    assert_send_sync::<Handle>();
    assert_send_sync::<AuditOutput>();
    assert_send_sync::<BrokerConfig>();
    assert_send_sync::<CdiConfig>();
    assert_send_sync::<ControlError>();
    assert_send_sync::<StartError>();
    assert_send::<EventStream>();
    assert_send_sync::<guest_link::EventSender>();
    assert_send::<guest_link::LinkEvent>();
    assert_send::<guest_link::GuestConnect>();
};

/// The core thread. Dropping it ends the core.
struct CoreThread {
    handle: Handle,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Drop for CoreThread {
    fn drop(&mut self) {
        self.handle.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
