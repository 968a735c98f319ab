//! The broker inside a virtual machine: its link to the host, which is its fabric's outer partition.
//!
//! `docs/uplink.md` specifies the protocol. The pieces:
//!
//! - [`client`]: the guest's side of the uplink as a state machine;
//! - [`worker`]: the thread that has the sockets, with [`stream`] for the frames;
//! - [`lookups`]: names, where there is no uplink;
//! - [`transport`]: the system calls, the kernel's `AF_VSOCK` or what a test has in its place;
//! - [`mirror`]: a service of the host as a registration;
//! - [`event`]: what the core is told;
//! - [`refusal`]: the system's error numbers.
//!
//! The core speaks to it as to any [`GuestLink`], and by a few calls that only this one has: it announces
//! containers, answers the host's requests, and owns ports of this machine. The bytes of a connection are
//! a vsock stream that a process gets as its own, so they never pass through the broker.

mod client;
mod event;
#[cfg(feature = "fuzzing")]
mod fuzzing;
mod lookups;
mod mirror;
mod refusal;
mod stream;
mod transport;
mod worker;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use hvsock_address::{ServiceId, SockAddrHv, VmId};
use hvsock_endpoint::Refused;
use hvsock_endpoint::uplink::{ChildState, Request, What};
use hvsock_fabric::{ConnectionId, PartitionState, Refusal};
use mio::Poll;

use crate::data_path::{ControlConnection, ReportSender};
use crate::guest_link::{
    Capabilities, EventSender, GuestConnect, GuestLink, LinkEnd, RequestId, Service, SocketKind,
};
use crate::sandbox;
use client::Client;
pub(crate) use event::{Incoming, UplinkEvent, UplinkState, WhyDown};
#[cfg(feature = "fuzzing")]
pub(crate) use fuzzing::host_frames as fuzz;
pub(crate) use mirror::registration;
pub(crate) use transport::KernelTransport;
pub use transport::UplinkTransport;
use worker::Shared;

/// What the sockets can do.
const CAPABILITIES: Capabilities = Capabilities {
    seqpacket: false,
    half_close: true,
    refusal_reason: false,
    identity: false,
    byte_counts: false,
    reset_notice: false,
};

/// The link to the host. Dropping it ends the uplink and the thread.
pub(crate) struct UplinkClient {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl fmt::Debug for UplinkClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UplinkClient").finish_non_exhaustive()
    }
}

impl UplinkClient {
    /// Starts the thread, which connects at once.
    ///
    /// # Errors
    ///
    /// If a descriptor or the thread cannot be made.
    pub(crate) fn start(
        transport: Arc<dyn UplinkTransport>,
        link: EventSender,
        uplink: ReportSender<UplinkEvent>,
    ) -> io::Result<Self> {
        let poll = Poll::new()?;
        // Random ids are the randomness at hand.
        let instance = VmId::random().to_guid_bytes();
        let [seed @ .., _, _, _, _, _, _, _, _] = VmId::random().to_guid_bytes();
        let client = Client::new(instance, u64::from_le_bytes(seed), Instant::now());
        let watch = uplink.watch().clone();
        let shared = Arc::new(Shared::new(transport, &poll, client, link, uplink)?);
        let thread = std::thread::Builder::new().name("uplink".into());
        let worker = Arc::clone(&shared);
        let run = move || {
            sandbox::enter(sandbox::Kind::Uplink);
            let _watched = watch.enter();
            worker.run(poll);
        };
        let thread = sandbox::outside(|| thread.spawn(run))?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// Announces a container.
    pub(crate) fn add_child(&self, id: VmId, name: &str, state: ChildState) {
        self.shared
            .with_client(|client, _| client.add_child(id, name.to_owned(), state));
    }

    /// Tells the host a container's state.
    pub(crate) fn set_child_state(&self, id: VmId, state: ChildState) {
        self.shared
            .with_client(|client, _| client.set_child_state(id, state));
    }

    /// Withdraws a container.
    pub(crate) fn remove_child(&self, id: VmId) {
        self.shared.with_client(|client, _| client.remove_child(id));
    }

    /// Accepts a connection that the host has requested. Its stream comes as a request of the link.
    pub(crate) fn expect(&self, request: Request) {
        self.shared.with_client(|client, _| client.expect(request));
    }

    /// Refuses a connection that the host has requested.
    pub(crate) fn refuse_incoming(&self, request: Request, refusal: &Refusal) {
        self.shared
            .with_client(|client, _| client.refuse_incoming(request, refusal));
    }

    /// Answers the host's question.
    pub(crate) fn explained(&self, request: Request, explanation: Refused) {
        self.shared
            .with_client(|client, _| client.explained(request, explanation));
    }

    /// Asks the host to tell all that it has changed. Returns `false` if there is no uplink to ask by.
    pub(crate) fn sync(&self, number: u64) -> bool {
        self.shared.with_client(|client, _| client.sync(number))
    }

    /// Looks up the name of a service at a host that gives this broker no uplink. Returns `false` if it cannot be
    /// asked.
    pub(crate) fn look_up(&self, number: u64, name: String) -> bool {
        self.shared.look_up(number, name)
    }

    /// Whether what is not known yet may be known soon.
    pub(crate) fn may_learn(&self) -> bool {
        self.shared.lock().client.may_learn()
    }

    /// Asks what the host would say to a request of a container, or of this machine itself. Returns `false`
    /// if it cannot be asked.
    pub(crate) fn explain(
        &self,
        number: u64,
        child: Option<VmId>,
        what: What,
        address: SockAddrHv,
    ) -> bool {
        self.shared
            .with_client(|client, _| client.explain(number, child, what, address))
    }

    /// Nobody waits for an explanation any more.
    pub(crate) fn explain_gone(&self, number: u64) {
        self.shared
            .with_client(|client, _| client.explain_gone(number));
    }

    /// Listens at a port of this machine for connections of the host to a service.
    ///
    /// # Errors
    ///
    /// [`Refusal::AddressInUse`] if another process, or another service, has the port; others by the system's
    /// error.
    pub(crate) fn open_port(&self, port: u32, service: ServiceId) -> Result<(), Refusal> {
        let opened = self.shared.open_port(port, service);
        self.shared.wake();
        opened
    }

    /// Stops listening at a port.
    pub(crate) fn close_port(&self, port: u32) {
        self.shared.close_port(port);
    }
}

impl Drop for UplinkClient {
    fn drop(&mut self) {
        self.shared.lock().stopped = true;
        self.shared.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl GuestLink for UplinkClient {
    fn capabilities(&self) -> Capabilities {
        CAPABILITIES
    }

    fn state(&self) -> PartitionState {
        PartitionState::Unknown
    }

    fn connect(&self, connect: GuestConnect) -> Result<(), Refusal> {
        if connect.kind != SocketKind::Stream {
            return Err(Refusal::NotSupported);
        }
        let service = match connect.service {
            Service::Id(service) => service,
            Service::Port(port) => ServiceId::from_port(port),
        };
        self.shared.with_client(|client, now| {
            let (id, deadline) = (connect.connection, now + connect.timeout);
            client.connect(now, id, connect.container, service, deadline);
        });
        Ok(())
    }

    // The core relays, or hands over, what it accepts.
    fn accept(&self, request: RequestId, _: ConnectionId, _: LinkEnd) {
        self.shared.answered(request);
    }

    // The core has dropped the socket, which is all that the host sees of a refusal.
    fn refuse(&self, request: RequestId, _: Option<&Refusal>) {
        self.shared.answered(request);
    }

    fn taken(&self, request: RequestId) {
        self.shared.answered(request);
    }

    fn establish(&self, _: ConnectionId, _: ControlConnection) {}

    fn close(&self, connection: ConnectionId, _: Refusal) {
        self.shared
            .with_client(|client, now| client.cancel(now, connection));
    }

    fn suspend(&self, _: ConnectionId, _: bool) {}

    fn hands_over(&self) -> bool {
        true
    }
}
