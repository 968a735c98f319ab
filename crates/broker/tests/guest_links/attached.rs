//! Processes that bring their own socket, connected to guests: behind a link that moves the bytes, behind one
//! that hands out sockets, and behind the broker's own.

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::Receiver;
use std::time::Instant;

use hvsock_address::{ServiceId, SockAddrHv};
use hvsock_broker::guest_link::Capabilities;
use hvsock_endpoint::{
    BrokerMessage, ClientMessage, Connect, Flags, MAX_MESSAGE, Transport, Transports,
};
use hvsock_sys::poll::{self, PollFd, PollFlags};
use hvsock_sys::{message, seqpacket};
use hvsock_testkit::conformance::{LONGEST_WAIT, Stream};
use hvsock_testkit::guest as virtio;
use hvsock_testkit::wait::{TIMEOUT, eventually};
use hvsock_testkit::world::{World, partition_ref};

use crate::links::memory;
use crate::links::pipe_link::CAPABILITIES;
use crate::links::world::LinkWorld as _;

pub(crate) const PORT: u32 = 5000;

/// The guest's end of a connection. Dropping it closes it.
pub(crate) trait Inside {
    fn receive(&self, buffer: &mut [u8]) -> io::Result<usize>;
    fn send(&self, bytes: &[u8]);
    fn half_close(&self);
}

impl Inside for memory::GuestStream {
    fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.set_read_timeout(LONGEST_WAIT)?;
        self.read(buffer)
    }

    fn send(&self, bytes: &[u8]) {
        assert_eq!(self.write(bytes).expect("a write"), bytes.len());
    }

    fn half_close(&self) {
        self.shutdown_write().expect("a half-close");
    }
}

impl Inside for UnixStream {
    fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.set_read_timeout(Some(LONGEST_WAIT))?;
        let mut from = self;
        from.read(buffer)
    }

    fn send(&self, bytes: &[u8]) {
        let mut to = self;
        to.write_all(bytes).expect("a write");
    }

    fn half_close(&self) {
        self.shutdown(Shutdown::Write).expect("a half-close");
    }
}

impl Inside for virtio::GuestStream {
    fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.set_read_timeout(Some(LONGEST_WAIT));
        let mut from = self;
        from.read(buffer)
    }

    fn send(&self, bytes: &[u8]) {
        let mut to = self;
        to.write_all(bytes).expect("a write");
    }

    fn half_close(&self) {
        self.shutdown(Shutdown::Write).expect("a half-close");
    }
}

/// The endpoint connection of such a process.
pub(crate) struct Client(pub(crate) OwnedFd);

impl Client {
    pub(crate) fn new(world: &World) -> Self {
        Self(seqpacket::connect(&world.host().0, TIMEOUT).expect("connected"))
    }

    pub(crate) fn send(&self, message: &ClientMessage) {
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        message::send(&self.0, &bytes, &[]).expect("sent");
    }

    #[track_caller]
    pub(crate) fn recv(&self) -> (BrokerMessage, Vec<OwnedFd>) {
        let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
        assert!(poll::wait(&mut fds, Some(Instant::now() + TIMEOUT)).expect("a socket"));
        let mut bytes = [0; MAX_MESSAGE];
        let received = message::recv_with_descriptors(&self.0, &mut bytes).expect("a message");
        let message = BrokerMessage::decode(&bytes[..received.len]).expect("a message");
        (message, received.descriptors)
    }

    /// What the process's socket connects to.
    #[track_caller]
    fn attach(&self, filler: u32) -> OwnedFd {
        self.send(&ClientMessage::Attach { filler });
        let (message, mut descriptors) = self.recv();
        assert_eq!(message, BrokerMessage::Attachable);
        descriptors.pop().expect("a descriptor")
    }

    fn request(&self, world: &World, vm: &str) {
        let id = world
            .handle()
            .partition(&partition_ref(vm))
            .expect("a VM")
            .id;
        self.send(&ClientMessage::Connect(Connect {
            flags: Flags::default(),
            timeout_ms: 0,
            transports: Transports::ATTACHED,
            address: SockAddrHv::new(id, ServiceId::from_port(PORT)),
        }));
    }

    #[track_caller]
    fn connected(&self) {
        match self.recv() {
            (BrokerMessage::Connected(connected), descriptors) => {
                assert_eq!(connected.transport, Transport::Attached);
                assert!(descriptors.is_empty());
            }
            other => panic!("{other:?}"),
        }
    }
}

fn connect(path: &OwnedFd) -> UnixStream {
    let program = UnixStream::connect(format!("/proc/self/fd/{}", path.as_raw_fd()));
    let program = program.expect("connected");
    program.set_read_timeout(Some(TIMEOUT)).expect("a timeout");
    program
}

#[track_caller]
fn hangs_up(program: &UnixStream) {
    eventually("the socket does not hang up", || {
        let mut fds = [PollFd::new(program, PollFlags::IN)];
        poll::wait(&mut fds, Some(Instant::now())).expect("a socket");
        fds[0].revents().contains(PollFlags::HUP)
    });
}

#[track_caller]
pub(crate) fn all_of<S: Inside>(inside: &S, wanted: &[u8]) {
    let mut found = Vec::new();
    let mut bytes = [0; 4096];
    while found.len() < wanted.len() {
        let count = inside.receive(&mut bytes).expect("a read");
        assert!(count > 0, "an end after {} bytes", found.len());
        found.extend_from_slice(&bytes[..count]);
    }
    assert!(found == wanted);
}

#[track_caller]
pub(crate) fn ends<S: Inside>(inside: &S) {
    assert_eq!(inside.receive(&mut [0; 8]).expect("an end"), 0);
}

/// Every order of connecting the socket and of closing, with a guest that accepts by `accept`.
fn serves<S: Inside>(world: &World, accept: impl Fn() -> S) {
    let whole: Vec<u8> = (0..1_000_000_u32).map(|at| (at % 251) as u8).collect();
    for before in [true, false] {
        let open = |filler: &[u8]| {
            let client = Client::new(world);
            let path = client.attach(if before { filler.len() as u32 } else { 0 });
            let early = before.then(|| connect(&path));
            if let Some(mut early) = early.as_ref() {
                early.write_all(filler).expect("filler");
            }
            client.request(world, "web");
            client.connected();
            let inside = accept();
            (client, path, early, inside)
        };
        // What the guest sends before the program has its socket arrives, and the program half-closes first.
        let (client, path, early, inside) = open(b"filler");
        inside.send(b"early");
        let mut program = early.unwrap_or_else(|| connect(&path));
        let mut bytes = [0; 5];
        program.read_exact(&mut bytes).expect("the bytes");
        assert_eq!(&bytes, b"early");
        std::thread::scope(|scope| {
            let mut program = program.try_clone().expect("a duplicate");
            let whole = &whole;
            scope.spawn(move || program.write_all(whole).expect("a write"));
            all_of(&inside, whole);
        });
        program.shutdown(Shutdown::Write).expect("a half-close");
        ends(&inside);
        inside.send(b"after");
        program.read_exact(&mut bytes).expect("the bytes");
        assert_eq!(&bytes, b"after");
        drop((inside, client));
        hangs_up(&program);
        world.has_connections(0);

        // The guest half-closes first, and the program closes with control closed before.
        let (client, path, early, inside) = open(b"");
        inside.half_close();
        let mut program = early.unwrap_or_else(|| connect(&path));
        drop(client);
        assert_eq!(program.read(&mut bytes).expect("an end"), 0);
        program.write_all(b"last").expect("a write");
        drop(program);
        all_of(&inside, b"last");
        ends(&inside);
        // Both directions have ended, so the connection is over while the guest keeps its end.
        world.has_connections(0);
        drop(inside);

        // The guest closes at once.
        let (_client, path, early, inside) = open(b"");
        let program = early.unwrap_or_else(|| connect(&path));
        drop(inside);
        hangs_up(&program);
        world.has_connections(0);
    }
    // Nobody connects the socket.
    let client = Client::new(world);
    let _path = client.attach(0);
    client.request(world, "web");
    client.connected();
    let inside = accept();
    match inside.receive(&mut [0; 8]) {
        // A link that hands out sockets can only close them.
        Ok(count) => assert_eq!(count, 0),
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
    }
    let (message, _) = client.recv();
    assert!(matches!(message, BrokerMessage::Reset(_)), "{message:?}");
    world.has_connections(0);
}

fn next<S>(streams: &Receiver<S>) -> S {
    streams.recv_timeout(LONGEST_WAIT).expect("accepted")
}

#[test]
fn a_link_that_moves_the_bytes_serves_a_program_with_its_own_socket() {
    let world = World::new();
    let guest = world.pipe_vm("web", CAPABILITIES);
    world.register(PORT);
    let client = Client::new(&world);
    let program = connect(&client.attach(0));
    client.request(&world, "web");
    assert!(matches!(client.recv().0, BrokerMessage::Refused(_)));
    hangs_up(&program);
    let streams = guest.listen(PORT);
    serves(&world, || next(&streams));
}

#[test]
fn a_link_that_hands_out_sockets_serves_a_program_with_its_own_socket() {
    let world = World::new();
    let capabilities = Capabilities {
        half_close: true,
        ..Capabilities::default()
    };
    let guest = world.socket_vm("web", capabilities);
    world.register(PORT);
    let client = Client::new(&world);
    let program = connect(&client.attach(0));
    client.request(&world, "web");
    assert!(matches!(client.recv().0, BrokerMessage::Refused(_)));
    hangs_up(&program);
    let streams = guest.listen(PORT);
    serves(&world, || next(&streams));
}

#[test]
fn a_link_whose_sockets_go_to_processes_relays_for_a_program_with_its_own() {
    let world = World::new();
    let capabilities = Capabilities {
        half_close: true,
        ..Capabilities::default()
    };
    let guest = world.hand_over_vm("web", capabilities);
    world.register(PORT);
    let streams = guest.listen(PORT);
    serves(&world, || next(&streams));
}

#[test]
fn a_guest_of_the_brokers_own_link_serves_a_program_with_its_own_socket() {
    let world = World::with_web(|_| ());
    let guest = world.guest();
    world.register(PORT);
    let client = Client::new(&world);
    let program = connect(&client.attach(0));
    client.request(&world, "web");
    assert!(matches!(client.recv().0, BrokerMessage::Refused(_)));
    hangs_up(&program);
    let listener = guest.listen(PORT).expect("a listener");
    serves(&world, || listener.accept(TIMEOUT).expect("accepted"));
    assert_eq!(guest.protocol_violations(), [""; 0]);
}
