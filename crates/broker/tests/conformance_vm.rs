//! The conformance suite between a guest and processes of its host: on one end the library, on the
//! other a virtio-vsock driver that behaves as Linux's, at native speed. Every other pair is
//! connected by the guest, the rest by the host.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use hvsock::{
    Endpoint, HvAddr, HvListener, HvStream, Interest, PartitionRef, ServiceId,
    Transport as Carrier, VmId,
};
use hvsock_broker::{Broker, BrokerConfig};
use hvsock_endpoint::Dirs;
use hvsock_testkit::TempFolder;
use hvsock_testkit::conformance::{
    self, LONGEST_WAIT, Listen, Listener, Ready, Reset, Stream, Transport,
};
use hvsock_testkit::guest::{Guest, GuestListener, GuestStream, Options};

const CID: u32 = 42;
/// The service that both ends know.
const SERVICE: u32 = 1;

fn main() -> ExitCode {
    let carriers = [Carrier::Ring, Carrier::Descriptor];
    let kinds = carriers.map(|carrier| conformance::trials(Vm::new(carrier)));
    conformance::main(kinds.into_iter().flatten().collect())
}

/// Connections with a guest, whose other end the process has as `carrier` says.
struct Vm {
    carrier: Carrier,
    /// Started by the first case, so that a list of the cases costs nothing.
    host: OnceLock<Host>,
}

struct Host {
    // The guest goes before its device does, and the folder last.
    guest: Arc<Guest>,
    broker: Broker,
    folder: TempFolder,
    next_service: AtomicU32,
    by_guest: AtomicBool,
    /// Makes one pair at a time, so that each connect meets its own accept.
    pairs: Mutex<(HvListener, GuestListener)>,
}

impl Vm {
    fn new(carrier: Carrier) -> Self {
        Self {
            carrier,
            host: OnceLock::new(),
        }
    }

    fn host(&self) -> &Host {
        self.host.get_or_init(|| Host::start(self.carrier))
    }

    fn connect(&self, port: u32) -> io::Result<HvStream> {
        let stream = HvStream::options()
            .endpoint(Endpoint::in_dir(self.host().folder.path()))
            .timeout(LONGEST_WAIT)
            .shared_memory(self.carrier == Carrier::Ring)
            .connect(("web", port))?;
        assert_eq!(stream.transport(), self.carrier);
        Ok(stream)
    }
}

impl Host {
    fn start(carrier: Carrier) -> Self {
        let folder = TempFolder::new();
        let mut config = BrokerConfig::new(Dirs {
            run: folder.path().to_owned(),
            config: folder.path().to_owned(),
        });
        config.control = false;
        let broker = Broker::start(config).expect("a broker");
        let vm = serde_json::json!({"name": "web", "cid": CID});
        let vm = serde_json::from_value(vm).expect("a VM");
        let added = broker.handle().add_vm(vm).expect("added");
        register(&broker, SERVICE);
        let socket = added.socket.expect("a VM has a socket");
        let guest = Guest::start(&socket, Options::new(CID.into())).map(Arc::new);
        let guest = guest.expect("a guest");
        let listener = listen(&folder, carrier, SERVICE, 128).expect("a listener");
        let inside = guest.listen(SERVICE).expect("a guest listens");
        Self {
            guest,
            broker,
            folder,
            next_service: AtomicU32::new(SERVICE + 1),
            by_guest: AtomicBool::new(true),
            pairs: Mutex::new((listener, inside)),
        }
    }
}

fn register(broker: &Broker, port: u32) {
    let (name, id) = (format!("Conformance {port}"), ServiceId::from_port(port));
    let service = serde_json::json!({"name": name, "id": id.to_string()});
    let service = serde_json::from_value(service).expect("a service");
    let registered = broker.handle().register(service, "tester".to_owned());
    registered.expect("registered");
}

fn listen(
    folder: &TempFolder,
    carrier: Carrier,
    port: u32,
    backlog: u32,
) -> io::Result<HvListener> {
    HvListener::options()
        .endpoint(Endpoint::in_dir(folder.path()))
        .shared_memory(carrier == Carrier::Ring)
        .backlog(backlog)
        .listen(HvAddr::new(
            PartitionRef::Id(VmId::CHILDREN),
            ServiceId::from_port(port),
        ))
}

impl Transport for Vm {
    type Stream = End;

    fn name(&self) -> &'static str {
        match self.carrier {
            Carrier::Ring => "ring_with_a_guest",
            _ => "descriptor_with_a_guest",
        }
    }

    fn pair(&self) -> io::Result<(End, End)> {
        let host = self.host();
        let pairs = host.pairs.lock().expect("no pair failed");
        if host.by_guest.fetch_not(Ordering::Relaxed) {
            let inside = host.guest.connect(SERVICE)?;
            let (outside, _) = pairs.0.accept_timeout(LONGEST_WAIT)?;
            assert_eq!(outside.transport(), self.carrier);
            Ok((End::inside(inside), End::Process(outside)))
        } else {
            let outside = self.connect(SERVICE)?;
            let inside = pairs.1.accept(LONGEST_WAIT)?;
            Ok((End::Process(outside), End::inside(inside)))
        }
    }

    /// The operator's cut on one side, the guest's RST on the other.
    fn reset(&self) -> Option<Reset<Self>> {
        Some(|transport, stream| match stream {
            End::Process(stream) => {
                let cut = transport.host().broker.handle().cut(stream.connection_id());
                cut.map(drop).map_err(io::Error::other)
            }
            End::Guest { stream, .. } => {
                stream.reset();
                Ok(())
            }
        })
    }

    fn listen(&self) -> Option<Listen<Self>> {
        Some(|transport, backlog| {
            let host = transport.host();
            let port = host.next_service.fetch_add(1, Ordering::Relaxed);
            register(&host.broker, port);
            let listener = listen(&host.folder, transport.carrier, port, backlog)?;
            Ok(Box::new(Outside {
                listener,
                guest: Arc::clone(&host.guest),
                port,
            }))
        })
    }
}

/// A listener of the host's, to which the guest connects.
struct Outside {
    listener: HvListener,
    guest: Arc<Guest>,
    port: u32,
}

impl Listener<End> for Outside {
    fn connect(&self) -> io::Result<End> {
        self.guest.connect(self.port).map(End::inside)
    }

    fn accept(&self, timeout: Duration) -> io::Result<End> {
        let (stream, _) = self.listener.accept_timeout(timeout)?;
        Ok(End::Process(stream))
    }
}

/// Either end.
enum End {
    Process(HvStream),
    Guest {
        stream: GuestStream,
        nonblocking: AtomicBool,
        /// Of reading and of writing.
        timeouts: Mutex<[Option<Duration>; 2]>,
    },
}

/// How often a guest's stream is looked at that cannot go on.
const AGAIN: Duration = Duration::from_micros(200);

impl End {
    fn inside(stream: GuestStream) -> Self {
        Self::Guest {
            stream,
            nonblocking: AtomicBool::new(false),
            timeouts: Mutex::default(),
        }
    }

    /// Tries until it would not block, or as long as the stream's mode and limit allow.
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
            thread::sleep(AGAIN);
        }
    }
}

impl Stream for End {
    fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            End::Process(stream) => (&mut &*stream).read(buffer),
            End::Guest {
                stream,
                nonblocking,
                timeouts,
            } => {
                let timeout = timeouts.lock().expect("no panic")[0];
                End::until(nonblocking, timeout, || stream.try_read(buffer))
            }
        }
    }

    fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            End::Process(stream) => (&mut &*stream).write(bytes),
            End::Guest {
                stream,
                nonblocking,
                timeouts,
            } => {
                let timeout = timeouts.lock().expect("no panic")[1];
                End::until(nonblocking, timeout, || match stream.try_write(bytes) {
                    Ok(0) if !bytes.is_empty() => Err(io::ErrorKind::WouldBlock.into()),
                    result => result,
                })
            }
        }
    }

    fn shutdown_write(&self) -> io::Result<()> {
        match self {
            End::Process(stream) => stream.shutdown(Shutdown::Write),
            End::Guest { stream, .. } => stream.shutdown(Shutdown::Write),
        }
    }

    fn set_read_timeout(&self, timeout: Duration) -> io::Result<()> {
        match self {
            End::Process(stream) => stream.set_read_timeout(Some(timeout)),
            End::Guest { timeouts, .. } => {
                timeouts.lock().expect("no panic")[0] = Some(timeout);
                Ok(())
            }
        }
    }

    fn set_write_timeout(&self, timeout: Duration) -> io::Result<()> {
        match self {
            End::Process(stream) => stream.set_write_timeout(Some(timeout)),
            End::Guest { timeouts, .. } => {
                timeouts.lock().expect("no panic")[1] = Some(timeout);
                Ok(())
            }
        }
    }

    fn set_nonblocking(&self, on: bool) -> io::Result<()> {
        match self {
            End::Process(stream) => stream.set_nonblocking(on),
            End::Guest { nonblocking, .. } => {
                nonblocking.store(on, Ordering::Relaxed);
                Ok(())
            }
        }
    }

    fn wait(&self, interest: Ready, timeout: Duration) -> io::Result<Ready> {
        match self {
            End::Process(stream) => {
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
            End::Guest { stream, .. } => {
                let start = Instant::now();
                loop {
                    let ready = Ready {
                        read: interest.read && stream.is_readable(),
                        write: interest.write && stream.is_writable(),
                    };
                    if ready != Ready::NONE || start.elapsed() >= timeout {
                        return Ok(ready);
                    }
                    thread::sleep(AGAIN);
                }
            }
        }
    }
}
