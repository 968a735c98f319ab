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
mod gate;
pub mod guest_link;
mod guests;
mod handle;
pub mod handover;
mod hangs;
mod hybrid;
mod kernel_vsock;
mod links;
mod loop_waker;
mod mounts;
mod parts;
mod process;
mod pump;
mod reply;
mod restart;
mod retry;
pub mod sandbox;
mod stores;
mod take_over;
mod upgrade;
mod uplink;
mod uplink_client;
mod vhost_user;
mod watch;
mod watchdog;

use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::Arc;

use hvsock_registry::store::{self, FolderStore};

pub use audit::AuditOutput;
pub use cdi::{CdiConfig, CdiHook};
pub use config::{BrokerConfig, HandoverStage, OnHandover, StartError, Successor, Uplink};
pub use events::{EventStream, RecordScope};
pub use handle::{ControlError, Handle, ObjectKind};
/// The values of the control API, which [`Handle`]'s methods take and return as well.
pub use hvsock_control as model;
pub use hvsock_registry::store::RegistrationStore;
pub use hvsock_registry::{AccessRule, PARENT, Registration};
pub use uplink_client::UplinkTransport;
pub use watchdog::{OnFatal, ServiceManager, WatchdogConfig};

pub use handover::StoredState;
pub use restart::{RestartError, Restored, Stored};
pub use take_over::{Predecessor, TakeOverError, TakenOver};

use api::ControlServer;
use core::Loop;
use parts::{Parts, Prepared};
use upgrade::Upgrades;

/// A running broker.
///
/// Dropping it resets every connection with a reason, removes the endpoint sockets, and joins its
/// threads; unless it was [handed over](Self::successor) or [stored](Self::store): then dropping it does nothing.
pub struct Broker {
    /// `None` only while it is dropped.
    parts: Option<Parts>,
    handle: Handle,
    upgrades: Arc<Upgrades>,
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
        let operators = config.operators();
        let control = config.control;
        let loaded = store.load()?;
        let prepared = Prepared::new(&mut config, store, |config| Loop::open(config, loaded))?;
        let (handle, dirs) = (prepared.handle.clone(), prepared.dirs.clone());
        // Ends the core if anything below fails.
        let mut parts = Parts::run(prepared, None);
        parts.lock = Some(lock);
        handle.restore_partitions();
        // Also a container whose file has a problem now may be running.
        folders::remove_unknown_containers(&dirs, |name| {
            dirs.partitions().join(format!("{name}.toml")).exists()
        });
        handle.remove_unknown_bindings();
        // The folders may have been removed while no broker ran.
        handle.check_mounts(true);
        handle.check_run_folder();
        parts.try_follow()?;
        if control {
            let server = ControlServer::start(&dirs.control(), handle, operators);
            parts.control = Some(server.map_err(StartError::io("serve the control API"))?);
        }
        let served = parts.serve_successors();
        served.map_err(StartError::io("serve the socket for upgrades"))?;
        Ok(Self::of(parts))
    }

    fn of(parts: Parts) -> Self {
        Self {
            handle: parts.handle.clone(),
            upgrades: Arc::clone(&parts.upgrades),
            parts: Some(parts),
        }
    }

    /// The process that this broker was handed over to, if it was. Then this process has to end, and soon: until then
    /// it has duplicates of all descriptors, so the ends of connections are not seen. The descriptor of
    /// [`handed_over`](Self::handed_over) says when to ask.
    pub fn successor(&self) -> Option<u32> {
        self.upgrades.left_to()
    }

    /// A descriptor that is readable once this broker was handed over.
    pub fn handed_over(&self) -> BorrowedFd<'_> {
        self.upgrades.left().as_fd()
    }

    /// Waits until who asked for the upgrade by the control API has the answer, for up to a second.
    pub fn wait_for_last_answer(&self) {
        let control = self.parts.as_ref().and_then(|parts| parts.control.as_ref());
        if let Some(control) = control {
            upgrade::answer_last(&control.gate());
        }
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

impl Drop for Broker {
    fn drop(&mut self) {
        let Some(mut parts) = self.parts.take() else {
            return;
        };
        // A handover that is under way ends first.
        drop(parts.handover.take());
        if self.upgrades.has_left() {
            // All that it has is its successor's.
            std::mem::forget(parts);
        }
    }
}
