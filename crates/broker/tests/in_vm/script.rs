//! A host whose broker is played by the test, frame by frame.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use hvsock::{ServiceId, VmId};
use hvsock_broker::Uplink;
use hvsock_endpoint::Refused;
use hvsock_endpoint::uplink::{
    Announce, BindScope, ConnectUp, FrameReader, GuestFrame, HostFrame, Service, ServiceFlags,
    UPLINK_PORT, Welcome,
};
use hvsock_fabric::Refusal;
use hvsock_testkit::wait::TIMEOUT;
use hvsock_testkit::world::World;
use hvsock_testkit::world::wire::{Wire, WireHost};

/// The port of the service `Demo` of the host.
pub const DEMO: u32 = 7001;

/// What may be done with a service of the host.
pub const ALLOWED: ServiceFlags = ServiceFlags {
    enabled: true,
    may_connect: true,
    bind: BindScope::Everyone,
    wildcard: true,
};

pub fn service(port: u32, name: &str) -> Service {
    Service {
        service: ServiceId::from_port(port),
        flags: ALLOWED,
        name: name.into(),
    }
}

/// A broker in a virtual machine.
pub fn machine(wire: &Wire) -> World {
    World::with(|config| config.uplink = Uplink::Over(wire.guest()))
}

/// One with an uplink to a host that has the service `Demo`.
pub fn joined() -> (World, WireHost, Session, Wire) {
    let wire = Wire::new();
    let host = wire.host().unwrap();
    let world = machine(&wire);
    let session = Session::open(&host, &[service(DEMO, "Demo")]);
    session.is_open(&world);
    (world, host, session, wire)
}

/// The host's end of an uplink.
pub struct Session {
    stream: UnixStream,
    reader: FrameReader,
}

impl Session {
    /// The next stream to the uplink's port, before any frame.
    pub fn accept(host: &WireHost) -> Self {
        let arrived = host.accept(TIMEOUT).expect("an uplink");
        assert_eq!(arrived.port, UPLINK_PORT);
        assert!(arrived.source < 1024, "{arrived:?}");
        Self::of(arrived.stream)
    }

    /// A stream to the uplink's port.
    pub fn of(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        Self {
            stream,
            reader: FrameReader::new(),
        }
    }

    /// The next uplink, with these services.
    pub fn open(host: &WireHost, services: &[Service]) -> Self {
        let mut session = Self::accept(host);
        assert!(matches!(session.next(), GuestFrame::Hello(_)));
        session.send(HostFrame::Welcome(Welcome {
            features: 0,
            host: VmId::of_container("the machine"),
            machine: VmId::of_container("the vm"),
            host_name: "machine".into(),
            machine_name: "web".into(),
        }));
        for service in services {
            session.send(HostFrame::Service(service.clone()));
        }
        session.send(HostFrame::ServicesEnd);
        session
    }

    #[expect(
        clippy::needless_pass_by_value,
        reason = "a test writes the frame in the call"
    )]
    pub fn send(&self, frame: HostFrame) {
        let mut bytes = Vec::new();
        frame.append(&mut bytes);
        (&self.stream).write_all(&bytes).expect("sent");
    }

    pub fn send_bytes(&self, bytes: &[u8]) {
        // The broker may have hung up already.
        let _ = (&self.stream).write_all(bytes);
    }

    /// The next frame; `None` at the end of the stream.
    pub fn try_next(&mut self) -> Option<GuestFrame> {
        loop {
            if let Some(message) = self.reader.next().expect("a frame") {
                return Some(GuestFrame::decode(message).expect("a known frame"));
            }
            let mut bytes = [0; 4096];
            match (&self.stream).read(&mut bytes) {
                Ok(0) => return None,
                Ok(count) => self.reader.add(&bytes[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// The next frame.
    #[track_caller]
    pub fn next(&mut self) -> GuestFrame {
        self.try_next().expect("the uplink is open")
    }

    #[track_caller]
    pub fn next_connect(&mut self) -> ConnectUp {
        match self.next() {
            GuestFrame::Connect(up) => up,
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    pub fn next_announce(&mut self) -> Announce {
        match self.next() {
            GuestFrame::Announce(announce) => announce,
            other => panic!("{other:?}"),
        }
    }

    /// Waits until the broker has the host's services.
    pub fn is_open(&self, world: &World) {
        hvsock_testkit::wait::eventually("the uplink is open", || {
            let partitions = world.handle().partitions().unwrap();
            partitions[1].name.as_str() == "machine"
        });
    }

    /// Nothing more arrives for a while.
    pub fn is_quiet(&mut self) {
        let wait = Duration::from_millis(50);
        self.stream.set_read_timeout(Some(wait)).unwrap();
        let start = Instant::now();
        let mut bytes = [0; 4096];
        let read = (&self.stream).read(&mut bytes);
        assert!(read.is_err() && start.elapsed() >= wait, "{read:?}");
        self.stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    }
}

pub fn refused(refusal: &Refusal) -> Refused {
    Refused {
        code: refusal.code(),
        errno: refusal.errno().unsigned_abs(),
        detail: refusal.detail().into(),
    }
}
