//! The conformance suite between a guest and processes of its host. One end uses the library, the
//! other the test kit's virtio-vsock driver, which behaves like Linux's and runs at native speed.
//! The guest connects every other pair, the host the rest. A client of hybrid vsock connects all of its own. The same
//! for a container in the guest, whose broker the test plays.

#[path = "uplink/guest_broker.rs"]
mod guest_broker;

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use guest_broker::{BOX, GuestBroker};
use hvsock::{HvListener, HvStream, Interest, Refusal, Transport as Carrier, VmId};
use hvsock_sys::poll::{self, PollFd, PollFlags};
use hvsock_testkit::conformance::{
    self, LONGEST_WAIT, Listen, Listener, Ready, Reset, Stream, Transport,
};
use hvsock_testkit::guest::{Guest, GuestListener, GuestStream};
use hvsock_testkit::world::{PORT as SERVICE, World, address};

fn main() -> ExitCode {
    let kinds = [
        Kind::Library(Carrier::Ring),
        Kind::Library(Carrier::Descriptor),
        Kind::Hybrid,
        Kind::Nested(Carrier::Ring),
    ];
    let kinds = kinds.map(|kind| conformance::trials(Vm::new(kind)));
    conformance::main(kinds.into_iter().flatten().collect())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The process uses the library, with this transport.
    Library(Carrier),
    /// Likewise, and the other end is in a container in the guest.
    Nested(Carrier),
    /// It knows only hybrid vsock. It has a plain Unix socket, which shows no resets.
    Hybrid,
}

/// Connections between a guest and a process.
struct Vm {
    kind: Kind,
    /// Started by the first case, so that listing the cases starts none.
    host: OnceLock<Arc<Host>>,
}

struct Host {
    // Dropped in this order: the broker in the guest, the guest, its device.
    broker: Option<Mutex<GuestBroker>>,
    guest: Guest,
    world: World,
    next_service: AtomicU32,
    by_guest: AtomicBool,
    /// The lock serializes pairs, so that each accept returns its own connect's peer.
    pairs: Mutex<(HvListener, GuestListener)>,
}

impl Vm {
    fn new(kind: Kind) -> Self {
        Self {
            kind,
            host: OnceLock::new(),
        }
    }

    fn host(&self) -> &Arc<Host> {
        self.host.get_or_init(|| Arc::new(Host::start(self.kind)))
    }

    /// The transport of processes that listen.
    fn carrier(&self) -> Carrier {
        match self.kind {
            Kind::Library(carrier) | Kind::Nested(carrier) => carrier,
            Kind::Hybrid => Carrier::Descriptor,
        }
    }

    fn connect(&self, port: u32) -> io::Result<VmEnd> {
        let (target, carrier) = match self.kind {
            Kind::Library(carrier) => ("web", carrier),
            Kind::Nested(carrier) => ("web/box", carrier),
            Kind::Hybrid => {
                let socket = self.host().world.dirs().vm_hybrid_socket("web");
                return dial(&socket, port).map(VmEnd::Plain);
            }
        };
        let stream = HvStream::options()
            .endpoint(self.host().world.host().endpoint())
            .timeout(LONGEST_WAIT)
            .shared_memory(carrier == Carrier::Ring)
            .connect((target, port))?;
        assert_eq!(stream.transport(), carrier);
        Ok(VmEnd::Process(stream))
    }
}

/// Connects by hybrid vsock.
fn dial(socket: &Path, port: u32) -> io::Result<UnixStream> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(LONGEST_WAIT))?;
    stream.write_all(format!("CONNECT {port}\n").as_bytes())?;
    let (mut answer, mut byte) = (String::new(), [0]);
    while !answer.ends_with('\n') {
        stream.read_exact(&mut byte)?;
        answer.push(byte[0].into());
    }
    match answer.starts_with("OK ") {
        true => Ok(stream),
        false => Err(io::Error::other(answer)),
    }
}

impl Host {
    fn start(kind: Kind) -> Self {
        let world = World::with_web(|_| ());
        let guest = world.guest();
        let broker = match kind {
            Kind::Nested(_) => {
                let mut broker = GuestBroker::open(&guest);
                broker.announce_box();
                Some(Mutex::new(broker))
            }
            Kind::Library(_) | Kind::Hybrid => None,
        };
        let listener = listen(&world, kind, SERVICE, 128).expect("a listener");
        let inside = guest.listen(SERVICE).expect("a guest listens");
        Self {
            broker,
            guest,
            world,
            next_service: AtomicU32::new(SERVICE + 1),
            by_guest: AtomicBool::new(true),
            pairs: Mutex::new((listener, inside)),
        }
    }

    /// Connects the guest, or the container in it, to the host.
    fn connect_inside(&self, port: u32) -> io::Result<GuestStream> {
        let Some(broker) = &self.broker else {
            return self.guest.connect(port);
        };
        let mut broker = broker.lock().expect("no panic");
        let host = broker.welcome.host;
        let port = broker.connect(BOX, host, port);
        let port =
            port.map_err(|why| io::Error::from(Refusal::from_wire(why.code, &why.detail)))?;
        self.guest.connect(port)
    }
}

fn listen(world: &World, kind: Kind, port: u32, backlog: u32) -> io::Result<HvListener> {
    let (from, carrier) = match kind {
        Kind::Library(carrier) => (VmId::CHILDREN, carrier),
        Kind::Nested(carrier) => (world.partition("web/box").id, carrier),
        Kind::Hybrid => (VmId::CHILDREN, Carrier::Descriptor),
    };
    HvListener::options()
        .endpoint(world.host().endpoint())
        .shared_memory(carrier == Carrier::Ring)
        .backlog(backlog)
        .listen(address(from, port))
}

impl Transport for Vm {
    type Stream = VmEnd;

    fn name(&self) -> &'static str {
        match self.kind {
            Kind::Library(Carrier::Ring) => "ring_with_a_guest",
            Kind::Library(_) => "descriptor_with_a_guest",
            Kind::Nested(_) => "ring_with_a_container_in_a_guest",
            Kind::Hybrid => "hybrid_vsock_with_a_guest",
        }
    }

    fn pair(&self) -> io::Result<(VmEnd, VmEnd)> {
        let host = self.host();
        let pairs = host.pairs.lock().expect("no pair failed");
        if self.kind != Kind::Hybrid && host.by_guest.fetch_not(Ordering::Relaxed) {
            let inside = host.connect_inside(SERVICE)?;
            let (outside, _) = pairs.0.accept_timeout(LONGEST_WAIT)?;
            assert_eq!(outside.transport(), self.carrier());
            Ok((VmEnd::inside(inside), VmEnd::Process(outside)))
        } else if let Some(broker) = &host.broker {
            thread::scope(|scope| {
                let connecting = scope.spawn(|| self.connect(SERVICE));
                let mut broker = broker.lock().expect("no panic");
                let request = broker.incoming().request;
                let inside = broker.accept(&host.guest, request);
                let outside = connecting.join().expect("no panic")?;
                Ok((outside, VmEnd::inside(inside)))
            })
        } else {
            let outside = self.connect(SERVICE)?;
            let inside = pairs.1.accept(LONGEST_WAIT)?;
            Ok((outside, VmEnd::inside(inside)))
        }
    }

    fn distinguishes_death_from_eof(&self) -> bool {
        self.kind != Kind::Hybrid
    }

    /// Closes a process's stream through the broker; a guest's stream sends an RST.
    fn reset(&self) -> Option<Reset<Self>> {
        if self.kind == Kind::Hybrid {
            return None;
        }
        Some(|transport, stream| match stream {
            VmEnd::Plain(_) => Err(io::ErrorKind::Unsupported.into()),
            VmEnd::Process(stream) => {
                let broker = transport.host().world.handle();
                let closed = broker.close_connection(stream.connection_id());
                closed.map(drop).map_err(io::Error::other)
            }
            VmEnd::Guest { stream, .. } => {
                stream.reset();
                Ok(())
            }
        })
    }

    fn listen(&self) -> Option<Listen<Self>> {
        if self.kind == Kind::Hybrid {
            return None;
        }
        Some(|transport, backlog| {
            let host = transport.host();
            let port = host.next_service.fetch_add(1, Ordering::Relaxed);
            host.world.register(port);
            let listener = listen(&host.world, transport.kind, port, backlog)?;
            let host = Arc::clone(host);
            Ok(Box::new(Outside {
                listener,
                host,
                port,
            }))
        })
    }
}

/// A listener on the host to which the guest connects.
struct Outside {
    listener: HvListener,
    host: Arc<Host>,
    port: u32,
}

impl Listener<VmEnd> for Outside {
    fn connect(&self) -> io::Result<VmEnd> {
        self.host.connect_inside(self.port).map(VmEnd::inside)
    }

    fn accept(&self, timeout: Duration) -> io::Result<VmEnd> {
        let (stream, _) = self.listener.accept_timeout(timeout)?;
        Ok(VmEnd::Process(stream))
    }
}

/// One end of a connection.
enum VmEnd {
    Process(HvStream),
    Plain(UnixStream),
    Guest {
        stream: GuestStream,
        nonblocking: AtomicBool,
        /// Read and write timeouts.
        timeouts: Mutex<[Option<Duration>; 2]>,
    },
}

/// How often a guest's stream that would block is polled.
const POLL_INTERVAL: Duration = Duration::from_micros(200);

impl VmEnd {
    fn inside(stream: GuestStream) -> Self {
        Self::Guest {
            stream,
            nonblocking: AtomicBool::new(false),
            timeouts: Mutex::default(),
        }
    }

    /// Retries until `attempt` does not block, as the stream's mode and timeout allow.
    fn until<T>(
        nonblocking: &AtomicBool,
        timeout: Option<Duration>,
        mut attempt: impl FnMut() -> io::Result<T>,
    ) -> io::Result<T> {
        let start = Instant::now();
        loop {
            match attempt() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return result,
            }
            if nonblocking.load(Ordering::Relaxed) {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            if timeout.is_some_and(|timeout| start.elapsed() >= timeout) {
                return Err(io::ErrorKind::TimedOut.into());
            }
            thread::sleep(POLL_INTERVAL);
        }
    }
}

impl Stream for VmEnd {
    fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            VmEnd::Process(stream) => (&mut &*stream).read(buffer),
            VmEnd::Plain(stream) => (&mut &*stream).read(buffer),
            VmEnd::Guest {
                stream,
                nonblocking,
                timeouts,
            } => {
                let timeout = timeouts.lock().expect("no panic")[0];
                VmEnd::until(nonblocking, timeout, || stream.try_read(buffer))
            }
        }
    }

    fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            VmEnd::Process(stream) => (&mut &*stream).write(bytes),
            VmEnd::Plain(stream) => (&mut &*stream).write(bytes),
            VmEnd::Guest {
                stream,
                nonblocking,
                timeouts,
            } => {
                let timeout = timeouts.lock().expect("no panic")[1];
                VmEnd::until(nonblocking, timeout, || match stream.try_write(bytes) {
                    Ok(0) if !bytes.is_empty() => Err(io::ErrorKind::WouldBlock.into()),
                    result => result,
                })
            }
        }
    }

    fn shutdown_write(&self) -> io::Result<()> {
        match self {
            VmEnd::Process(stream) => stream.shutdown(Shutdown::Write),
            VmEnd::Plain(stream) => stream.shutdown(Shutdown::Write),
            VmEnd::Guest { stream, .. } => stream.shutdown(Shutdown::Write),
        }
    }

    fn set_read_timeout(&self, timeout: Duration) -> io::Result<()> {
        match self {
            VmEnd::Process(stream) => stream.set_read_timeout(Some(timeout)),
            VmEnd::Plain(stream) => stream.set_read_timeout(Some(timeout)),
            VmEnd::Guest { timeouts, .. } => {
                timeouts.lock().expect("no panic")[0] = Some(timeout);
                Ok(())
            }
        }
    }

    fn set_write_timeout(&self, timeout: Duration) -> io::Result<()> {
        match self {
            VmEnd::Process(stream) => stream.set_write_timeout(Some(timeout)),
            VmEnd::Plain(stream) => stream.set_write_timeout(Some(timeout)),
            VmEnd::Guest { timeouts, .. } => {
                timeouts.lock().expect("no panic")[1] = Some(timeout);
                Ok(())
            }
        }
    }

    fn set_nonblocking(&self, on: bool) -> io::Result<()> {
        match self {
            VmEnd::Process(stream) => stream.set_nonblocking(on),
            VmEnd::Plain(stream) => stream.set_nonblocking(on),
            VmEnd::Guest { nonblocking, .. } => {
                nonblocking.store(on, Ordering::Relaxed);
                Ok(())
            }
        }
    }

    fn wait(&self, interest: Ready, timeout: Duration) -> io::Result<Ready> {
        match self {
            VmEnd::Process(stream) => {
                let wanted = match (interest.read, interest.write) {
                    (true, true) => Interest::READABLE | Interest::WRITABLE,
                    (false, true) => Interest::WRITABLE,
                    _ => Interest::READABLE,
                };
                let ready = stream.poll(wanted, Some(timeout))?;
                Ok(Ready {
                    read: ready.is_readable(),
                    write: ready.is_writable(),
                })
            }
            VmEnd::Plain(stream) => wait_for_socket(stream, interest, timeout),
            VmEnd::Guest { stream, .. } => {
                let start = Instant::now();
                loop {
                    let ready = Ready {
                        read: interest.read && stream.is_readable(),
                        write: interest.write && stream.is_writable(),
                    };
                    if ready != Ready::NONE || start.elapsed() >= timeout {
                        return Ok(ready);
                    }
                    thread::sleep(POLL_INTERVAL);
                }
            }
        }
    }
}

fn wait_for_socket(stream: &UnixStream, interest: Ready, timeout: Duration) -> io::Result<Ready> {
    let mut flags = PollFlags::empty();
    flags.set(PollFlags::IN, interest.read);
    flags.set(PollFlags::OUT, interest.write);
    let mut polled = [PollFd::from_borrowed_fd(stream.as_fd(), flags)];
    poll::wait(&mut polled, Some(Instant::now() + timeout))?;
    let seen = polled[0].revents();
    let failed = seen.intersects(PollFlags::ERR | PollFlags::HUP);
    Ok(Ready {
        read: interest.read && (failed || seen.contains(PollFlags::IN)),
        write: interest.write && (failed || seen.contains(PollFlags::OUT)),
    })
}
