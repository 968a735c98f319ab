//! The host's sides of a broker, one for each set of CIDs and ports. One is dropped with the last link that
//! uses it.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, Weak};

use hvsock_sys::sync::lock;

use super::host::KernelHost;
use super::managers::Managers;
use super::namespace::{Namespace, Space};
use super::sockets::{KernelSockets, Sockets};

/// The host's sides of a broker, and the managers of its VMs.
#[derive(Clone, Default)]
pub(crate) struct KernelHosts {
    hosts: Arc<Mutex<HashMap<Space, Weak<KernelHost>>>>,
    pub(super) managers: Managers,
}

impl KernelHosts {
    /// That of a network namespace; of the broker's own without one.
    ///
    /// # Errors
    ///
    /// If the namespace cannot be used, or a descriptor or a thread cannot be made.
    pub(super) fn host(&self, netns: Option<&Path>) -> io::Result<Arc<KernelHost>> {
        self.host_in(Namespace::open(netns)?, KernelHost::start)
    }

    /// That of a network namespace which another process has opened; of the broker's own without one. It does
    /// nothing until it is thawed.
    ///
    /// # Errors
    ///
    /// As [`host`](Self::host).
    pub(super) fn resume(&self, namespace: Option<OwnedFd>) -> io::Result<Arc<KernelHost>> {
        self.host_in(Namespace::resume(namespace)?, KernelHost::start_dormant)
    }

    fn host_in(
        &self,
        (namespace, space): (Namespace, Space),
        start: impl FnOnce(Box<dyn Sockets>) -> io::Result<KernelHost>,
    ) -> io::Result<Arc<KernelHost>> {
        let mut hosts = lock(&self.hosts);
        hosts.retain(|_, host| host.strong_count() > 0);
        if let Some(host) = hosts.get(&space).and_then(Weak::upgrade) {
            return Ok(host);
        }
        let sockets = KernelSockets::new(namespace)?;
        let host = Arc::new(start(Box::new(sockets))?);
        hosts.insert(space, Arc::downgrade(&host));
        Ok(host)
    }
}
