//! The broker in a guest, played by the test: a client of the uplink in a guest of the test kit.

#![allow(dead_code)] // Each test target uses a part.

use std::sync::atomic::{AtomicU32, Ordering};

use hvsock::{ServiceId, SockAddrHv, VmId};
use hvsock_endpoint::Refused;
use hvsock_endpoint::uplink::{
    Announce, Announced, ChildId, ChildState, ConnectUp, GuestFrame, Hello, HostFrame, Incoming,
    Request, Service, UPLINK_PORT, Welcome,
};
use hvsock_testkit::guest::{Guest, GuestStream, HOST};
use hvsock_testkit::uplink::Client;
use hvsock_testkit::wait::TIMEOUT;
use hvsock_testkit::world::bounded;
use hvsock_virtio::SocketKind;

/// An open uplink.
pub struct GuestBroker {
    pub client: Client<GuestStream>,
    pub welcome: Welcome,
    /// The services of which the host has told, in order.
    pub services: Vec<Service>,
    next_request: u64,
}

/// The number of the container in most tests.
pub const BOX: ChildId = ChildId(7);

pub fn hello() -> GuestFrame {
    GuestFrame::Hello(Hello {
        features: 0,
        instance: [1; 16],
    })
}

pub fn announcement(child: ChildId, name: &str) -> Announce {
    Announce {
        child,
        state: ChildState::Running,
        id: VmId::of_container(name),
        name: name.to_owned(),
    }
}

/// A connection of the guest's root to the host's broker.
#[track_caller]
pub fn connect_from(guest: &Guest, port: u32) -> Client<GuestStream> {
    let connected = guest.connect_from(port, SocketKind::Stream, HOST, UPLINK_PORT, TIMEOUT);
    Client::new(bounded(connected.expect("connected")))
}

impl GuestBroker {
    /// Opens an uplink, from a port that only root of a guest has.
    #[track_caller]
    pub fn open(guest: &Guest) -> Self {
        // The guest may still have the last one.
        static PORT: AtomicU32 = AtomicU32::new(1023);
        let port = PORT.fetch_sub(1, Ordering::Relaxed);
        let mut client = connect_from(guest, port);
        let HostFrame::Welcome(welcome) = client.ask(&hello()) else {
            panic!("no welcome");
        };
        let mut services = Vec::new();
        loop {
            match client.receive().expect("an open uplink") {
                HostFrame::Service(service) => services.push(service),
                HostFrame::ServicesEnd => break,
                other => panic!("{other:?}"),
            }
        }
        Self {
            client,
            welcome,
            services,
            next_request: 0,
        }
    }

    /// The next frame that is no change of a service and no `PING`; `None` at the end.
    #[track_caller]
    pub fn next(&mut self) -> Option<HostFrame> {
        loop {
            match self.client.receive()? {
                HostFrame::Ping => self.client.send(&GuestFrame::Pong),
                HostFrame::Service(service) => {
                    self.services
                        .retain(|known| known.service != service.service);
                    self.services.push(service);
                }
                HostFrame::ServiceGone { service } => {
                    self.services.retain(|known| known.service != service);
                }
                frame => return Some(frame),
            }
        }
    }

    /// Announces a container, and expects an answer.
    #[track_caller]
    pub fn announce(&mut self, announce: Announce) -> Announced {
        self.client.send(&GuestFrame::Announce(announce));
        match self.next() {
            Some(HostFrame::Announced(announced)) => announced,
            other => panic!("{other:?}"),
        }
    }

    /// Announces the container `box`. Returns its id at the host.
    #[track_caller]
    pub fn announce_box(&mut self) -> VmId {
        let announced = self.announce(announcement(BOX, "box"));
        assert_eq!(announced.answer.code, 0, "{announced:?}");
        announced.id
    }

    /// Tells the state of a container.
    pub fn state(&mut self, child: ChildId, state: ChildState) {
        self.client.send(&GuestFrame::ChildState { child, state });
    }

    /// Requests a connection to the host. Returns the port, or the refusal.
    #[track_caller]
    pub fn connect(&mut self, child: ChildId, target: VmId, port: u32) -> Result<u32, Refused> {
        self.next_request += 1;
        let request = Request(self.next_request);
        self.client.send(&GuestFrame::Connect(ConnectUp {
            request,
            child,
            timeout_ms: 0,
            address: SockAddrHv::new(target, ServiceId::from_port(port)),
        }));
        loop {
            match self.next() {
                Some(HostFrame::ConnectPort {
                    request: same,
                    port,
                }) if same == request => return Ok(port),
                Some(HostFrame::ConnectRefused {
                    request: other,
                    reason,
                }) => {
                    // Of an earlier one whose stream was refused.
                    if other == request {
                        return Err(reason);
                    }
                }
                other => panic!("{other:?}"),
            }
        }
    }

    /// The host's request for a connection to a container.
    #[track_caller]
    pub fn incoming(&mut self) -> Incoming {
        match self.next() {
            Some(HostFrame::Incoming(incoming)) => incoming,
            other => panic!("{other:?}"),
        }
    }

    /// Expects a connection at a port of the guest, and accepts it.
    #[track_caller]
    pub fn accept(&mut self, guest: &Guest, request: Request) -> GuestStream {
        let port = 60_000 + u32::try_from(request.0).expect("few requests");
        let listener = guest.listen(port).expect("listening");
        self.client
            .send(&GuestFrame::IncomingPort { request, port });
        bounded(listener.accept(TIMEOUT).expect("accepted"))
    }

    /// Waits until the host has done all that it was asked before.
    #[track_caller]
    pub fn sync(&mut self) {
        self.client.send(&GuestFrame::Sync { number: 99 });
        assert_eq!(self.next(), Some(HostFrame::Synced { number: 99 }));
    }

    /// Waits for the end of the uplink. Returns the reason that the host gives.
    #[track_caller]
    pub fn ended(&mut self) -> String {
        let mut reason = None;
        while let Some(frame) = self.next() {
            match frame {
                HostFrame::Refused(refused) => reason = Some(refused.detail),
                _ => assert_eq!(reason, None, "nothing follows the reason"),
            }
        }
        reason.expect("a reason")
    }
}
