//! The conformance suite over links to guests that a program brings along: one over in-memory pipes
//! (`links::pipe_link`), and one that hands out sockets, which the broker relays
//! (`links::socket_link`); and over the broker's own link to the hybrid sockets of a VMM that half-closes
//! (`links::hybrid_vmm`). One end of each pair is a process with the library, the other the guest.
//! The guest connects every other pair, the host the rest.

#[path = "../links/mod.rs"]
mod links;

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::Receiver;
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use hvsock::{HvListener, HvStream, Interest, Transport as Carrier};
use hvsock_broker::guest_link::Capabilities;
use hvsock_sys::poll::{self, PollFd, PollFlags};
use hvsock_testkit::conformance::{
    self, LONGEST_WAIT, Listen, Listener, Ready, Reset, Stream, Transport,
};

use hvsock_broker::model::PartitionState;
use hvsock_testkit::wait;
use hvsock_testkit::world::World;
use links::hybrid_vmm::{self, HybridVmm};
use links::memory::GuestStream;
use links::pipe_link::{self, Wanted, refused};
use links::socket_link;
use serde_json::json;

use links::world::LinkWorld as _;

/// The registered service.
const SERVICE: u32 = 1;

/// A link without anything but half-close, which its sockets have.
const SOCKETS: Capabilities = Capabilities {
    seqpacket: false,
    half_close: true,
    refusal_reason: false,
    identity: false,
    byte_counts: false,
    reset_notice: false,
};

fn main() -> ExitCode {
    let kinds = [
        Kind::Pipes(Carrier::Ring),
        Kind::Pipes(Carrier::Descriptor),
        Kind::Sockets,
        Kind::HandOver,
        Kind::Hybrid,
    ];
    conformance::main(
        kinds
            .into_iter()
            .flat_map(|kind| conformance::trials(Linked::new(kind)))
            .collect(),
    )
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The link moves the bytes between its pipes and the process's transport.
    Pipes(Carrier),
    /// The broker relays the bytes between the link's sockets and the process's.
    Sockets,
    /// The process has the link's socket. A Unix socket stands in for the kernel's.
    HandOver,
    /// The broker relays the bytes between a VMM's hybrid sockets and the process's.
    Hybrid,
}

impl Kind {
    fn carrier(self) -> Carrier {
        match self {
            Self::Pipes(carrier) => carrier,
            Self::Sockets | Self::Hybrid => Carrier::Descriptor,
            Self::HandOver => Carrier::Direct,
        }
    }

    fn capabilities(self) -> Capabilities {
        match self {
            Self::Pipes(_) => pipe_link::CAPABILITIES,
            Self::Sockets | Self::HandOver | Self::Hybrid => SOCKETS,
        }
    }
}

/// Connections between a guest behind a link and a process of the host.
struct Linked {
    kind: Kind,
    /// Started by the first case, so that listing the cases starts none.
    host: OnceLock<Host>,
}

struct Host {
    guest: Guest,
    by_guest: AtomicBool,
    next_service: AtomicU32,
    /// The lock serializes pairs, so that each accept returns its own connect's peer.
    pairs: Mutex<(HvListener, Accepting)>,
    world: World,
    _vmm: Option<HybridVmm>,
}

#[derive(Clone)]
enum Guest {
    Pipes(pipe_link::Guest),
    Sockets(socket_link::Guest),
    Hybrid(hybrid_vmm::Guest),
}

enum Accepting {
    Pipes(Receiver<GuestStream>),
    Sockets(Receiver<UnixStream>),
}

impl Guest {
    fn connect(&self, port: u32) -> io::Result<End> {
        match self {
            Self::Pipes(guest) => {
                let connected = guest.connect(Wanted::port(port));
                Ok(End::Pipes(connected.map_err(refused)?))
            }
            Self::Sockets(guest) => Ok(End::Socket(guest.connect(Wanted::port(port)))),
            Self::Hybrid(guest) => {
                // The host's socket is made soon after the listener has its answer.
                let connect = || guest.connect(port);
                wait::within(LONGEST_WAIT, connect).map(End::Socket)
            }
        }
    }

    fn listen(&self, port: u32) -> Accepting {
        match self {
            Self::Pipes(guest) => Accepting::Pipes(guest.listen(port)),
            Self::Sockets(guest) => Accepting::Sockets(guest.listen(port)),
            Self::Hybrid(guest) => Accepting::Sockets(guest.listen(port)),
        }
    }
}

impl Accepting {
    fn accept(&self) -> io::Result<End> {
        let accepted = match self {
            Self::Pipes(streams) => streams.recv_timeout(LONGEST_WAIT).map(End::Pipes),
            Self::Sockets(streams) => streams.recv_timeout(LONGEST_WAIT).map(End::Socket),
        };
        accepted.map_err(io::Error::other)
    }
}

impl Linked {
    fn new(kind: Kind) -> Self {
        Self {
            kind,
            host: OnceLock::new(),
        }
    }

    fn host(&self) -> &Host {
        self.host.get_or_init(|| {
            let world = World::new();
            let capabilities = self.kind.capabilities();
            let mut vmm = None;
            let guest = match self.kind {
                Kind::Pipes(_) => Guest::Pipes(world.pipe_vm("web", capabilities)),
                Kind::Sockets => Guest::Sockets(world.socket_vm("web", capabilities)),
                Kind::HandOver => Guest::Sockets(world.hand_over_vm("web", capabilities)),
                Kind::Hybrid => {
                    let path = world.folder.join("v.sock");
                    let started = HybridVmm::start(&path, hybrid_vmm::Kind::CloudHypervisor);
                    let link = json!({"kind": "hybrid", "path": path, "style": "cloud-hypervisor"});
                    let vm = serde_json::from_value(json!({"name": "web", "link": link}));
                    let added = world.handle().add_vm(vm.expect("a VM"));
                    added.expect("added");
                    world.is("web", PartitionState::Unknown);
                    Guest::Hybrid(vmm.insert(started).guest())
                }
            };
            world.register(SERVICE);
            let shared_memory = self.kind.carrier() == Carrier::Ring;
            let listener = world.listen_over(SERVICE, shared_memory, 128);
            let pairs = (listener.expect("a listener"), guest.listen(SERVICE));
            Host {
                guest,
                by_guest: AtomicBool::new(true),
                next_service: AtomicU32::new(SERVICE + 1),
                pairs: Mutex::new(pairs),
                world,
                _vmm: vmm,
            }
        })
    }
}

impl Transport for Linked {
    type Stream = End;

    fn name(&self) -> &'static str {
        match self.kind {
            Kind::Pipes(Carrier::Ring) => "ring_with_a_pipe_link",
            Kind::Pipes(_) => "descriptor_with_a_pipe_link",
            Kind::Sockets => "relay_with_a_socket_link",
            Kind::HandOver => "socket_handed_over_by_a_link",
            Kind::Hybrid => "relay_with_hybrid_sockets",
        }
    }

    fn pair(&self) -> io::Result<(End, End)> {
        let host = self.host();
        let pairs = host.pairs.lock().expect("no pair failed");
        let carrier = self.kind.carrier();
        if host.by_guest.fetch_not(Ordering::Relaxed) {
            let inside = host.guest.connect(SERVICE)?;
            let (outside, _) = pairs.0.accept_timeout(LONGEST_WAIT)?;
            assert_eq!(outside.transport(), carrier);
            Ok((inside, End::Process(outside)))
        } else {
            let shared_memory = carrier == Carrier::Ring;
            let outside = host.world.connect_over("web", SERVICE, shared_memory)?;
            assert_eq!(outside.transport(), carrier);
            Ok((End::Process(outside), pairs.1.accept()?))
        }
    }

    fn distinguishes_death_from_eof(&self) -> bool {
        self.kind.capabilities().reset_notice
    }

    /// Closes a process's stream through the broker; a guest resets its own.
    fn reset(&self) -> Option<Reset<Self>> {
        if !self.kind.capabilities().reset_notice {
            return None;
        }
        Some(|transport, stream| match stream {
            End::Process(stream) => {
                let handle = transport.host().world.broker.handle();
                let closed = handle.close_connection(stream.connection_id());
                closed.map(drop).map_err(io::Error::other)
            }
            End::Pipes(stream) => {
                stream.reset();
                Ok(())
            }
            End::Socket(_) => Err(io::ErrorKind::Unsupported.into()),
        })
    }

    fn listen(&self) -> Option<Listen<Self>> {
        // Without a reason or a reset, a refused guest only sees an end of data.
        if !self.kind.capabilities().refusal_reason {
            return None;
        }
        Some(|transport, backlog| {
            let host = transport.host();
            let port = host.next_service.fetch_add(1, Ordering::Relaxed);
            host.world.register(port);
            let shared_memory = transport.kind.carrier() == Carrier::Ring;
            let listener = host.world.listen_over(port, shared_memory, backlog)?;
            Ok(Box::new(Outside {
                listener,
                guest: host.guest.clone(),
                port,
            }))
        })
    }
}

/// A listener on the host to which the guest connects.
struct Outside {
    listener: HvListener,
    guest: Guest,
    port: u32,
}

impl Listener<End> for Outside {
    fn connect(&self) -> io::Result<End> {
        self.guest.connect(self.port)
    }

    fn accept(&self, timeout: Duration) -> io::Result<End> {
        let (stream, _) = self.listener.accept_timeout(timeout)?;
        Ok(End::Process(stream))
    }
}

/// One end of a connection.
enum End {
    Process(HvStream),
    Pipes(GuestStream),
    Socket(UnixStream),
}

impl Stream for End {
    fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Process(stream) => (&mut &*stream).read(buffer),
            Self::Pipes(stream) => stream.read(buffer),
            Self::Socket(stream) => (&mut &*stream).read(buffer),
        }
    }

    fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Process(stream) => (&mut &*stream).write(bytes),
            Self::Pipes(stream) => stream.write(bytes),
            Self::Socket(stream) => (&mut &*stream).write(bytes),
        }
    }

    fn shutdown_write(&self) -> io::Result<()> {
        match self {
            Self::Process(stream) => stream.shutdown(Shutdown::Write),
            Self::Pipes(stream) => stream.shutdown_write(),
            Self::Socket(stream) => stream.shutdown(Shutdown::Write),
        }
    }

    fn set_read_timeout(&self, timeout: Duration) -> io::Result<()> {
        match self {
            Self::Process(stream) => stream.set_read_timeout(Some(timeout)),
            Self::Pipes(stream) => stream.set_read_timeout(timeout),
            Self::Socket(stream) => stream.set_read_timeout(Some(timeout)),
        }
    }

    fn set_write_timeout(&self, timeout: Duration) -> io::Result<()> {
        match self {
            Self::Process(stream) => stream.set_write_timeout(Some(timeout)),
            Self::Pipes(stream) => stream.set_write_timeout(timeout),
            Self::Socket(stream) => stream.set_write_timeout(Some(timeout)),
        }
    }

    fn set_nonblocking(&self, on: bool) -> io::Result<()> {
        match self {
            Self::Process(stream) => stream.set_nonblocking(on),
            Self::Pipes(stream) => stream.set_nonblocking(on),
            Self::Socket(stream) => stream.set_nonblocking(on),
        }
    }

    fn wait(&self, interest: Ready, timeout: Duration) -> io::Result<Ready> {
        match self {
            Self::Process(stream) => {
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
            Self::Pipes(stream) => stream.wait(interest, timeout),
            Self::Socket(stream) => wait_for_socket(stream, interest, timeout),
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
