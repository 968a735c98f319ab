//! The host side of hvsock, embeddable: it owns one partition's children.
//!
//! [`Broker::start`] takes the folders that a [`BrokerConfig`] names, opens the endpoints by which
//! processes reach it, and runs until it is dropped. Three kinds of thread do its work: the core
//! decides (`core`), the data threads move bytes (`pump`), and the control thread answers
//! operators (`api`). A [`Handle`] is the same for a program that embeds the broker as the
//! control API is for one that does not.

#![forbid(unsafe_code)]

pub mod api;
mod callers;
mod config;
mod core;
mod events;
mod folders;
mod guests;
mod handle;
mod process;
mod pump;
mod reply;
mod stores;
mod vm;
mod watch;

use std::sync::Arc;

use hvsock_registry::store::{self, FolderStore};

pub use config::{BrokerConfig, StartError};
pub use events::EventStream;
pub use handle::{ControlError, Handle};
/// What an operator sees: the values that the control API sends and takes, as the broker's own
/// functions return them.
pub use hvsock_control as model;
pub use hvsock_registry::{AccessRule, Registration};

use api::ControlServer;
use stores::{PartitionStore, ServiceStore};

/// A running broker. Dropping it ends every connection with the reason, and stops it.
pub struct Broker {
    handle: Handle,
    /// Ended first, so that no operator asks a core that ends.
    control: Option<ControlServer>,
    thread: Option<std::thread::JoinHandle<()>>,
    /// Ends the watching of files when dropped.
    _watch: Option<watch::Watch>,
    /// The folders stay held until all else has ended.
    _held: folders::Held,
}

impl Broker {
    /// Starts a broker and returns once processes can connect to its endpoints.
    pub fn start(config: BrokerConfig) -> Result<Self, StartError> {
        // Two descriptors and more for each connection: take what the system allows.
        if let Err(error) = hvsock_sys::limits::raise_descriptors() {
            tracing::warn!(%error, "cannot raise the limit of open descriptors");
        }
        let held = folders::hold(&config.dirs)?;
        let options = store::Options {
            built_in: config.built_in.clone(),
            ..store::Options::default()
        };
        let (store, report) = FolderStore::open_with(&config.dirs.config, options)?;
        for problem in &report.problems {
            tracing::warn!("{problem}");
        }
        let (partitions, entries) = PartitionStore::open(&config.dirs)?;
        let (dirs, own) = (config.dirs.clone(), config.partition.clone());
        let control = config.control;
        let (core_loop, link) = core::Core::open(config, store.registry().clone())?;
        let thread = std::thread::Builder::new()
            .name("hvsock-core".into())
            .spawn(move || core_loop.run())
            .map_err(StartError::io("start the core thread"))?;
        let services = Arc::new(ServiceStore::new(store));
        let partitions = Arc::new(partitions);
        let handle = Handle::new(link, Arc::clone(&services), partitions, dirs.clone(), own);
        let mut broker = Self {
            handle,
            control: None,
            thread: Some(thread),
            _watch: None,
            _held: held,
        };
        broker.handle.restore(entries);
        match watch::Watch::start(&dirs, services, broker.handle.clone()) {
            Ok(watch) => broker._watch = Some(watch),
            Err(error) => {
                tracing::warn!("registrations are not watched, edits need a restart: {error}");
            }
        }
        if control {
            let uid = rustix::process::geteuid().as_raw();
            let server = ControlServer::start(&dirs.control(), broker.handle(), uid);
            broker.control = Some(server.map_err(StartError::io("serve the control API"))?);
        }
        Ok(broker)
    }

    /// The way to ask this broker for things.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        drop(self.control.take());
        let _ = self.handle.call(core::Core::stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
