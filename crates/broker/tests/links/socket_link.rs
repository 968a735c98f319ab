//! A link that can do nothing but hand out one Unix stream socket per connection, for a guest in the
//! test's own process. It needs no thread.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};

use hvsock_broker::StartError;
use hvsock_broker::guest_link::{
    Capabilities, ConnectionId, ControlConnection, EventSender, GuestConnect, GuestLink,
    GuestRequest, LinkEnd, LinkEvent, LinkFactory, LinkSettings, PartitionState, PeerIdentity,
    Refusal, RequestId,
};

use super::pipe_link::Wanted;

/// The guest behind a link.
#[derive(Clone)]
pub struct Guest {
    events: EventSender,
    calls: Arc<Calls>,
}

/// What the core has called, and who listens.
#[derive(Default)]
struct Calls {
    next_request: AtomicU64,
    listeners: Mutex<HashMap<u32, Sender<UnixStream>>>,
    /// The reason of each refusal.
    refused: Mutex<Vec<Option<Refusal>>>,
    /// Calls for connections with which the link has nothing to do.
    surplus: Mutex<Vec<&'static str>>,
}

impl Guest {
    /// Connects. As with the kernel's vsock sockets, the guest only sees an end of data if the
    /// connection is refused.
    pub fn connect(&self, wanted: Wanted) -> UnixStream {
        self.connect_from(None, wanted)
    }

    /// Connects from a port of the guest, if the link has ports.
    pub fn connect_from(&self, source_port: Option<u32>, wanted: Wanted) -> UnixStream {
        let id = RequestId(self.calls.next_request.fetch_add(1, Ordering::Relaxed));
        let (own, socket) = UnixStream::pair().expect("a socket pair");
        let request = GuestRequest {
            destination: wanted.destination,
            service: wanted.service,
            kind: wanted.kind,
            source_port,
            // The link has no identities, and the core must not believe this one.
            identity: Some(PeerIdentity {
                pid: 1,
                uid: 0,
                gid: 0,
            }),
            socket: Some(OwnedFd::from(socket)),
        };
        self.events.send(LinkEvent::Request(id, request));
        own
    }

    /// Accepts connections to a port from now on.
    pub fn listen(&self, port: u32) -> Receiver<UnixStream> {
        let (accepted, connections) = mpsc::channel();
        let mut listeners = self.calls.listeners.lock().expect("no panic");
        listeners.insert(port, accepted);
        connections
    }

    /// Reports a state of the guest.
    pub fn set_state(&self, state: PartitionState) {
        self.events.send(LinkEvent::State(state));
    }

    /// The reasons of all refusals so far.
    pub fn refused(&self) -> Vec<Option<Refusal>> {
        self.calls.refused.lock().expect("no panic").clone()
    }

    /// The calls so far that the link must never get.
    pub fn surplus(&self) -> Vec<&'static str> {
        self.calls.surplus.lock().expect("no panic").clone()
    }
}

/// Opens a [`SocketLink`] and hands the test its guest.
pub struct Factory {
    pub capabilities: Capabilities,
    pub hands_over: bool,
    pub guest: Sender<Guest>,
}

impl LinkFactory for Factory {
    fn open(
        self: Box<Self>,
        _settings: LinkSettings,
        events: EventSender,
    ) -> Result<Box<dyn GuestLink>, StartError> {
        let guest = Guest {
            events,
            calls: Arc::default(),
        };
        let _ = self.guest.send(guest.clone());
        Ok(Box::new(SocketLink {
            capabilities: self.capabilities,
            hands_over: self.hands_over,
            guest,
        }))
    }
}

struct SocketLink {
    capabilities: Capabilities,
    hands_over: bool,
    guest: Guest,
}

impl SocketLink {
    fn surplus(&self, call: &'static str) {
        self.guest
            .calls
            .surplus
            .lock()
            .expect("no panic")
            .push(call);
    }
}

impl GuestLink for SocketLink {
    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    fn state(&self) -> PartitionState {
        PartitionState::Running
    }

    fn hands_over(&self) -> bool {
        self.hands_over
    }

    fn connect(&self, connect: GuestConnect) -> Result<(), Refusal> {
        if connect.end.is_some() {
            self.surplus("connect with an end");
        }
        let port = connect.service.port().ok_or(Refusal::ServiceNotMappable)?;
        let listeners = self.guest.calls.listeners.lock().expect("no panic");
        let listener = listeners.get(&port).ok_or(Refusal::NoListener)?;
        let (own, socket) = UnixStream::pair().expect("a socket pair");
        listener.send(own).map_err(|_| Refusal::NoListener)?;
        let socket = Some(OwnedFd::from(socket));
        let connected = LinkEvent::Connected(connect.connection, socket);
        self.guest.events.send(connected);
        Ok(())
    }

    fn accept(&self, _request: RequestId, _connection: ConnectionId, _end: LinkEnd) {
        self.surplus("accept");
    }

    fn refuse(&self, _request: RequestId, reason: Option<&Refusal>) {
        let mut refused = self.guest.calls.refused.lock().expect("no panic");
        refused.push(reason.cloned());
    }

    fn establish(&self, _connection: ConnectionId, _control: ControlConnection) {
        self.surplus("establish");
    }

    fn close(&self, _connection: ConnectionId, _refusal: Refusal) {
        self.surplus("close");
    }

    fn suspend(&self, _connection: ConnectionId, _suspended: bool) {
        self.surplus("suspend");
    }
}
