//! Unix sockets in place of the vsock between a host and one virtual machine, so that the brokers of both can
//! run in one test.
//!
//! [`Wire::guest`] is for the broker of the machine ([`Uplink::Over`](hvsock_broker::Uplink)). [`Wire::link`] is
//! the host's link to it, and [`Wire::host`] the host itself, for a test that plays its broker.
//!
//! As with `AF_VSOCK`, a stream has the context id and port of both ends. They are in the names of the sockets,
//! which are abstract: a name is free again once its socket is closed, as a port is.

use std::io;
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hvsock_broker::guest_link::{
    Capabilities, ConnectionId, ControlConnection, Destination, EventSender, GuestConnect,
    GuestLink, GuestRequest, LinkEnd, LinkEvent, LinkFactory, LinkSettings, PartitionState,
    Refusal, RequestId, Service, SocketKind,
};
use hvsock_broker::{StartError, UplinkTransport};
use hvsock_sys::sync::lock;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// The context ids of both sides.
const HOST: u32 = 2;
const GUEST: u32 = 3;
/// The ports that a stream without a port of its own comes from.
const FIRST_FREE: u32 = 1 << 20;

/// The wire between a host and one virtual machine.
#[derive(Clone, Debug)]
pub struct Wire(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: String,
    next_port: AtomicU32,
    /// Whether the machine's broker may have ports below 1024.
    privileged: AtomicBool,
}

/// A stream that the machine has connected to the host.
#[derive(Debug)]
pub struct Arrived {
    /// The stream.
    pub stream: UnixStream,
    /// The machine's port.
    pub source: u32,
    /// The host's port.
    pub port: u32,
}

impl Wire {
    /// A wire that nobody uses.
    #[expect(clippy::new_without_default, reason = "each is another one")]
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let (process, number) = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        Self(Arc::new(Inner {
            name: format!("hvsock-wire-{process}-{number}"),
            next_port: AtomicU32::new(FIRST_FREE),
            privileged: AtomicBool::new(true),
        }))
    }

    /// The machine's side.
    pub fn guest(&self) -> Arc<dyn UplinkTransport> {
        Arc::new(self.clone())
    }

    /// Whether the machine's broker may have ports below 1024. It may at first.
    pub fn set_privileged(&self, privileged: bool) {
        self.0.privileged.store(privileged, Ordering::Relaxed);
    }

    /// The host's link to the machine. With `hands_over` processes of the host get the streams themselves.
    pub fn link(&self, hands_over: bool) -> impl LinkFactory + 'static {
        let wire = self.clone();
        move |_: LinkSettings, events: EventSender| {
            let link = WireLink::open(wire, events, hands_over);
            link.map(|link| Box::new(link) as Box<dyn GuestLink>)
                .map_err(|error| {
                    let what = "open a wire".into();
                    StartError::Io { what, error }
                })
        }
    }

    /// The host, as who listens at all of its ports.
    ///
    /// # Errors
    /// `AddrInUse` if there is one already.
    pub fn host(&self) -> io::Result<WireHost> {
        let listener = UnixListener::bind_addr(&self.name(&[HOST])?)?;
        listener.set_nonblocking(true)?;
        Ok(WireHost {
            wire: self.clone(),
            listener,
        })
    }

    /// Connects from the host, or from another context id, to a port of the machine.
    ///
    /// # Errors
    /// `ConnectionRefused` if nobody listens there.
    pub fn connect_from(&self, cid: u32, port: u32) -> io::Result<UnixStream> {
        let socket = self.bound(&[cid, self.free_port()])?;
        let name = self.unix_name(&[GUEST, port])?;
        rustix::net::connect(&socket, &name)?;
        Ok(socket.into())
    }

    fn free_port(&self) -> u32 {
        self.0.next_port.fetch_add(1, Ordering::Relaxed)
    }

    fn text(&self, parts: &[u32]) -> String {
        let parts = parts.iter().map(|part| format!("/{part}"));
        format!("{}{}", self.0.name, parts.collect::<String>())
    }

    fn name(&self, parts: &[u32]) -> io::Result<SocketAddr> {
        SocketAddr::from_abstract_name(self.text(parts))
    }

    fn unix_name(&self, parts: &[u32]) -> io::Result<SocketAddrUnix> {
        Ok(SocketAddrUnix::new_abstract_name(
            self.text(parts).as_bytes(),
        )?)
    }

    /// A socket with a name of its own.
    fn bound(&self, parts: &[u32]) -> io::Result<OwnedFd> {
        let flags = SocketFlags::CLOEXEC;
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        rustix::net::bind(&socket, &self.unix_name(parts)?)?;
        Ok(socket)
    }

    /// The parts of a peer's name; none if it has no name of this wire.
    fn parts(&self, address: &SocketAddr) -> Vec<u32> {
        let name = address.as_abstract_name().unwrap_or_default();
        let name = String::from_utf8_lossy(name);
        let parts = name.strip_prefix(&*self.0.name).unwrap_or_default();
        parts
            .split('/')
            .filter_map(|part| part.parse().ok())
            .collect()
    }
}

impl UplinkTransport for Wire {
    fn connect(&self, port: u32, privileged: bool, _timeout: Duration) -> io::Result<OwnedFd> {
        let source = match privileged {
            true if !self.0.privileged.load(Ordering::Relaxed) => {
                return Err(rustix::io::Errno::ACCESS.into());
            }
            true => 1023,
            false => self.free_port(),
        };
        // The last part makes the name unique.
        let socket = self.bound(&[GUEST, source, port, self.free_port()])?;
        rustix::net::connect(&socket, &self.unix_name(&[HOST])?)?;
        hvsock_sys::set_nonblocking(&socket, true)?;
        Ok(socket)
    }

    fn connected(&self, _socket: &OwnedFd) -> io::Result<bool> {
        Ok(true)
    }

    fn listen(&self, port: Option<u32>) -> io::Result<(OwnedFd, u32)> {
        let port = port.unwrap_or_else(|| self.free_port());
        let listener = UnixListener::bind_addr(&self.name(&[GUEST, port])?)?;
        listener.set_nonblocking(true)?;
        Ok((listener.into(), port))
    }

    fn accept(&self, listener: &OwnedFd) -> io::Result<Option<(OwnedFd, u32)>> {
        let listener = UnixListener::from(listener.try_clone()?);
        match listener.accept() {
            Ok((stream, address)) => {
                let cid = self.parts(&address).first().copied().unwrap_or(GUEST);
                Ok(Some((stream.into(), cid)))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// The host's side of a wire.
#[derive(Debug)]
pub struct WireHost {
    wire: Wire,
    listener: UnixListener,
}

impl WireHost {
    /// Accepts a stream of the machine.
    ///
    /// # Errors
    /// `TimedOut` if there is none in time.
    pub fn accept(&self, timeout: Duration) -> io::Result<Arrived> {
        let deadline = Instant::now() + timeout;
        loop {
            match self.listener.accept() {
                Ok((stream, address)) => {
                    stream.set_nonblocking(false)?;
                    if let [_, source, port, ..] = self.wire.parts(&address)[..] {
                        return Ok(Arrived {
                            stream,
                            source,
                            port,
                        });
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if Instant::now() >= deadline {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                    std::thread::sleep(Duration::from_millis(2));
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// The host's link to the machine.
struct WireLink {
    wire: Wire,
    events: EventSender,
    hands_over: bool,
    requests: Arc<Requests>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Requests {
    next: Mutex<u64>,
    stopped: AtomicBool,
}

impl WireLink {
    fn open(wire: Wire, events: EventSender, hands_over: bool) -> io::Result<Self> {
        let host = wire.host()?;
        let requests = Arc::<Requests>::default();
        let (reports, shared) = (events.clone(), Arc::clone(&requests));
        let thread = std::thread::spawn(move || {
            while !shared.stopped.load(Ordering::Relaxed) {
                let Ok(arrived) = host.accept(Duration::from_millis(50)) else {
                    continue;
                };
                let id = {
                    let mut next = lock(&shared.next);
                    *next += 1;
                    RequestId(*next)
                };
                let request = GuestRequest {
                    destination: Destination::Host,
                    service: Service::Port(arrived.port),
                    kind: SocketKind::Stream,
                    source_port: Some(arrived.source),
                    identity: None,
                    socket: Some(arrived.stream.into()),
                };
                reports.send(LinkEvent::Request(id, request));
            }
        });
        Ok(Self {
            wire,
            events,
            hands_over,
            requests,
            thread: Some(thread),
        })
    }
}

impl Drop for WireLink {
    fn drop(&mut self) {
        self.requests.stopped.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl GuestLink for WireLink {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            half_close: true,
            ..Capabilities::default()
        }
    }

    fn state(&self) -> PartitionState {
        PartitionState::Running
    }

    fn connect(&self, connect: GuestConnect) -> Result<(), Refusal> {
        let port = connect.service.port().ok_or(Refusal::ServiceNotMappable)?;
        let id = connect.connection;
        self.events.send(match self.wire.connect_from(HOST, port) {
            Ok(stream) => LinkEvent::Connected(id, Some(stream.into())),
            Err(_) => LinkEvent::Failed(id, Refusal::NoListener),
        });
        Ok(())
    }

    fn accept(&self, _: RequestId, _: ConnectionId, _: LinkEnd) {}

    fn refuse(&self, _: RequestId, _: Option<&Refusal>) {}

    fn establish(&self, _: ConnectionId, _: ControlConnection) {}

    fn close(&self, _: ConnectionId, _: Refusal) {}

    fn suspend(&self, _: ConnectionId, _: bool) {}

    fn hands_over(&self) -> bool {
        self.hands_over
    }
}
