//! The kernel's vhost-vsock as a link to guests: the VMs of libvirt, Incus, systemd-vmspawn and of plain QEMU
//! with `vhost-vsock-pci`.
//!
//! The kernel carries the bytes. The broker owns the ports of registered services ([`ports`]), takes the
//! peer's CID for the identity of a VM, has the core judge the connection, and hands the accepted socket over
//! to the listener's process ([`GuestLink::hands_over`]).
//!
//! What the kernel does not leave to the broker:
//!
//! - It answers a guest's connect before the broker knows of it. A refusal is a port that does not listen, or
//!   a connection that is closed at once.
//! - A process of the host may connect to a guest's CID by itself, and may take a port before the broker does.
//! - It does not say whether a VM runs. Its state is that of its manager ([`managers`]), if one is named, and
//!   unknown otherwise. A failed connect tells about that connect only, since a VM that is off for the
//!   broker could not be tried again.
//! - A CID is a VM's only as long as the VM lives. The next VM with the same number is the same partition, unless
//!   a manager says that it is another.
//!
//! All VMs of a network namespace share one [`KernelHost`], since a port of the host is for all of them.

mod connects;
mod expected;
mod host;
mod hosts;
mod managers;
mod namespace;
mod ports;
mod refusal;
mod sockets;
mod strangers;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use hvsock_control::ManagerRef;
use hvsock_fabric::{ConnectionId, PartitionState, Refusal};

use crate::StartError;
use crate::data_path::ControlConnection;
use crate::guest_link::{
    Capabilities, EventSender, GuestConnect, GuestLink, LinkEnd, LinkFactory, LinkSettings,
    OfferedService, RequestId, Resuming, SocketKind,
};
use crate::handover::{Exports, HandoverError, Imports, LinkDocument};
use host::KernelHost;
use host::snapshot::VmSnapshot;
pub(crate) use hosts::KernelHosts;
use managers::{Managers, Watch};
pub(crate) use sockets::raise_credit;

/// What the kernel's sockets can do.
const CAPABILITIES: Capabilities = Capabilities {
    seqpacket: false,
    half_close: true,
    refusal_reason: false,
    identity: false,
    byte_counts: false,
    reset_notice: false,
};

/// What the kernel does not leave to the broker.
const LIMITS: [&str; 3] = [
    "suspension: a pause resets the connections",
    "siblings: guests reach the host only",
    "a guard against processes of the host, which reach the guest's CID without the broker",
];

/// Opens the link of a VM that the kernel serves.
pub(crate) struct KernelVsock {
    /// The network namespace of the VMM; the broker's own without one.
    pub(crate) netns: Option<PathBuf>,
    /// Who knows whether the VM runs.
    pub(crate) manager: Option<ManagerRef>,
    /// The host's side.
    pub(crate) hosts: KernelHosts,
}

/// The kind of the link in its [`LinkDocument`].
const KIND: &str = "kernel";

/// The link to one guest.
struct KernelLink {
    cid: u32,
    host: Arc<KernelHost>,
    watch: Option<Watch>,
}

impl LinkFactory for KernelVsock {
    fn open(
        self: Box<Self>,
        settings: LinkSettings,
        events: EventSender,
    ) -> Result<Box<dyn GuestLink>, StartError> {
        let what = || match &self.netns {
            None => "open a link to the kernel's vsock".to_owned(),
            Some(path) => format!("open a link to the kernel's vsock in {}", path.display()),
        };
        let cid = settings.cid.filter(|cid| *cid >= host::FIRST_GUEST);
        let cid = cid.ok_or_else(|| {
            StartError::io(what())(std::io::Error::other("no CID of a guest is given"))
        })?;
        let host = self.hosts.host(self.netns.as_deref());
        let host = host.map_err(StartError::io(what()))?;
        host.add(cid, events.clone(), self.manager.is_some())
            .map_err(|_| {
                let text = format!("another VM has the CID {cid} in the same kernel");
                StartError::io(what())(std::io::Error::other(text))
            })?;
        let mut link = KernelLink {
            cid,
            host,
            watch: None,
        };
        if let Some(manager) = &self.manager {
            let watch = self.hosts.managers.watch(manager, cid, events);
            link.watch = Some(watch.map_err(StartError::io("ask the VM's manager"))?);
        }
        Ok(Box::new(link))
    }

    fn resume(
        self: Box<Self>,
        document: LinkDocument,
        imports: &mut Imports,
        resuming: Resuming<'_>,
    ) -> Result<Box<dyn GuestLink>, HandoverError> {
        let snapshot: VmSnapshot = document.read(KIND)?;
        let what = "open a link to the kernel's vsock";
        let namespace = snapshot.namespace(imports)?;
        let host = self.hosts.resume(namespace);
        let host = host.map_err(HandoverError::io(what))?;
        let manager = self
            .manager
            .as_ref()
            .map(|manager| (&self.hosts.managers, manager));
        let link = KernelLink::resume(host, manager, snapshot, imports, resuming)?;
        Ok(Box::new(link))
    }
}

impl KernelLink {
    /// The link to a guest that another process has had, at the host's side that it had.
    fn resume(
        host: Arc<KernelHost>,
        manager: Option<(&Managers, &ManagerRef)>,
        snapshot: VmSnapshot,
        imports: &mut Imports,
        resuming: Resuming<'_>,
    ) -> Result<Self, HandoverError> {
        let Resuming {
            settings, events, ..
        } = resuming;
        let told = snapshot.told();
        let cid = host.resume(snapshot, settings.cid, &events, manager.is_some(), imports)?;
        // From here on, the drop removes the VM from the host's side.
        let mut link = Self {
            cid,
            host,
            watch: None,
        };
        if let Some((managers, manager)) = manager {
            let watch = managers.resume(told, manager, cid, events);
            link.watch = Some(watch.map_err(HandoverError::io("ask the VM's manager"))?);
        }
        Ok(link)
    }
}

impl Drop for KernelLink {
    fn drop(&mut self) {
        self.host.remove(self.cid);
    }
}

impl GuestLink for KernelLink {
    fn capabilities(&self) -> Capabilities {
        CAPABILITIES
    }

    fn state(&self) -> PartitionState {
        match self.watch {
            // Until its manager has answered.
            Some(_) => PartitionState::Defined,
            None => PartitionState::Unknown,
        }
    }

    fn connect(&self, connect: GuestConnect) -> Result<(), Refusal> {
        if connect.kind != SocketKind::Stream {
            return Err(Refusal::NotSupported);
        }
        let port = connect.service.port().ok_or(Refusal::ServiceNotMappable)?;
        self.host
            .connect(self.cid, port, connect.connection, connect.timeout);
        Ok(())
    }

    // The core relays, or hands over, what it accepts.
    fn accept(&self, request: RequestId, _: ConnectionId, _: LinkEnd) {
        self.host.answered(self.cid, request);
    }

    // The core has dropped the socket, which is all that the guest sees of a refusal.
    fn refuse(&self, request: RequestId, _: Option<&Refusal>) {
        self.host.answered(self.cid, request);
    }

    fn taken(&self, request: RequestId) {
        self.host.answered(self.cid, request);
    }

    fn establish(&self, _: ConnectionId, _: ControlConnection) {}

    fn close(&self, connection: ConnectionId, _: Refusal) {
        self.host.abort(connection);
    }

    fn suspend(&self, _: ConnectionId, _: bool) {}

    fn takes_services(&self) -> bool {
        true
    }

    fn set_services(&self, services: Vec<OfferedService>) {
        self.host.set_services(self.cid, services);
    }

    fn expect_port(&self, port: u32) -> Result<(), Refusal> {
        self.host.expect(self.cid, port)
    }

    fn release_port(&self, port: u32) {
        self.host.release(self.cid, port);
    }

    fn hands_over(&self) -> bool {
        true
    }

    fn limits(&self) -> &'static [&'static str] {
        &LIMITS
    }

    fn freeze(&self) -> Result<(), HandoverError> {
        if let Some(watch) = &self.watch {
            watch.hold(true);
        }
        self.host.freeze();
        Ok(())
    }

    fn frozen(&self, deadline: Instant) -> Result<(), HandoverError> {
        self.host.wait_frozen(deadline)
    }

    fn hand_over(&self, exports: &mut Exports) -> Result<LinkDocument, HandoverError> {
        let told = self.watch.as_ref().and_then(Watch::told);
        LinkDocument::new(KIND, &self.host.snapshot(self.cid, told, exports)?)
    }

    fn thaw(&self) {
        self.host.thaw();
        if let Some(watch) = &self.watch {
            watch.hold(false);
        }
    }
}
