//! A listener and an arena of this process with itself, which a fake broker has granted. From then on the
//! test is the broker.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::{Duration, Instant};

use hvsock::{ConnectOptions, Endpoint, HvListener, HvStream, ServiceId, SockAddrHv, VmId};
use hvsock_endpoint::{
    ARENA_IDS, BrokerMessage, ClientMessage, Connected, Incoming, Listening, Refused, StreamReset,
    Transport, Transports,
};
use hvsock_ring::{
    ArenaLimits, ArenaMonitor, ArenaParts, Doorbells, Grant, Parts, ResetCause, RingSide, RingSize,
    SlotId,
};
use hvsock_sys::poll::{self, PollFd, PollFlags};
use hvsock_sys::{message, seqpacket};
use tempfile::TempDir;

/// A timeout that nothing reaches unless it hangs.
pub const LONG: Duration = Duration::from_secs(30);
/// The id of the first connection in an arena.
pub const FIRST_ID: u64 = 7 * ARENA_IDS;
/// The offset of `accept_request` in an arena.
const ACCEPT_REQUEST: u64 = 256;
/// Every address that the broker names.
pub const ADDRESS: SockAddrHv = SockAddrHv::new(VmId::LOOPBACK, ServiceId::from_port(2761));

/// The fake broker's endpoint.
pub struct Endpoints {
    listener: OwnedFd,
    folder: TempDir,
}

/// The broker's end of a control or endpoint connection.
pub struct Control(pub OwnedFd);

/// A granted arena.
pub struct Pair {
    pub endpoints: Endpoints,
    pub listener: HvListener,
    /// The broker's end of the listener's endpoint connection.
    pub listening: Control,
    pub arena: Arena,
}

/// What the broker has of an arena.
pub struct Arena {
    pub monitor: ArenaMonitor,
    memory: File,
    pub client: Control,
    pub server: Control,
}

impl Endpoints {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = seqpacket::listen(&folder.path().join("endpoint"), 0o600, 64).unwrap();
        Self { listener, folder }
    }

    pub fn endpoint(&self) -> Endpoint {
        Endpoint::in_dir(self.folder.path())
    }

    pub fn options(&self) -> ConnectOptions {
        HvStream::options().endpoint(self.endpoint()).timeout(LONG)
    }

    /// The next process that connects to the endpoint.
    pub fn client(&self) -> Control {
        loop {
            match seqpacket::accept(&self.listener).unwrap() {
                Some(socket) => return Control(socket),
                None => wait(&self.listener),
            }
        }
    }

    /// Whether a process has connected to the endpoint.
    pub fn has_client(&self) -> bool {
        seqpacket::accept(&self.listener).unwrap().is_some()
    }

    /// Runs `client` on another thread while `broker` acts as the broker.
    pub fn with_client<T: Send, U>(
        &self,
        client: impl FnOnce() -> T + Send,
        broker: impl FnOnce() -> U,
    ) -> (T, U) {
        thread::scope(|scope| {
            let client = scope.spawn(client);
            let done = broker();
            (client.join().unwrap(), done)
        })
    }

    /// Creates a listener.
    pub fn listen(&self, backlog: u32) -> (HvListener, Control) {
        let options = HvListener::options().endpoint(self.endpoint());
        let listen = || options.backlog(backlog).listen(ADDRESS).unwrap();
        self.with_client(listen, || {
            let client = self.client();
            let ClientMessage::Listen(request) = client.recv() else {
                panic!("no LISTEN");
            };
            assert!(request.transports.contains(Transport::Arena));
            client.send(
                &BrokerMessage::Listening(Listening {
                    backlog,
                    listener: 3,
                }),
                &[],
            );
            client
        })
    }

    /// Receives a connect. Returns the client, and the transports that it offers.
    pub fn connecting(&self) -> (Control, Transports) {
        let client = self.client();
        loop {
            match client.recv() {
                ClientMessage::Connect(request) => return (client, request.transports),
                ClientMessage::SetOption { .. } => {}
                message => panic!("{message:?}"),
            }
        }
    }

    /// A connect and its acceptance with memory of their own. Returns both ends.
    pub fn connect_with_own_memory(
        &self,
        options: &ConnectOptions,
        listener: &HvListener,
        listening: &Control,
    ) -> [(HvStream, Control); 2] {
        let connect = || options.connect(ADDRESS).unwrap();
        let (stream, (client, server)) = self.with_client(connect, || {
            let (client, _) = self.connecting();
            let server = self.give_own_memory(&client, listening, 1);
            (client, server)
        });
        let (accepted, _) = listener.accept_timeout(LONG).unwrap();
        assert_eq!(listening.recv(), ClientMessage::Accepted { connection: 1 });
        assert!(!stream.is_in_arena() && !accepted.is_in_arena());
        [(stream, client), (accepted, server)]
    }

    /// Sends memory of its own for a connection to both processes. Returns the broker's end of the
    /// accepted connection's control connection.
    pub fn give_own_memory(&self, client: &Control, listening: &Control, id: u64) -> Control {
        let parts = Parts::new(RingSize::DEFAULT).unwrap();
        let (server, control) = seqpacket::pair().unwrap();
        let memory = parts.memory.try_clone().unwrap();
        let Doorbells { own, peer } = parts.second;
        listening.send(
            &incoming(Transport::Ring, id),
            &[memory, own, peer, control],
        );
        let connected = Connected {
            transport: Transport::Ring,
            connection: id,
            local: ADDRESS,
            peer: ADDRESS,
        };
        let Doorbells { own, peer } = parts.first;
        client.send(
            &BrokerMessage::Connected(connected),
            &[parts.memory, own, peer],
        );
        Control(server)
    }

    /// Connects again, and grants an arena. Returns both ends of the first connection in it.
    pub fn grant(
        &self,
        options: &ConnectOptions,
        listener: &HvListener,
        listening: &Control,
        (slots, granted, ring): (u32, u32, RingSize),
    ) -> ([HvStream; 2], Arena) {
        let connect = || options.connect(ADDRESS).unwrap();
        let (stream, arena) = self.with_client(connect, || {
            let (client, transports) = self.connecting();
            assert!(transports.contains(Transport::Arena));
            self.grant_to(
                client,
                listening,
                listener.backlog(),
                (slots, granted, ring),
            )
        });
        let (accepted, _) = listener.accept_timeout(LONG).unwrap();
        let connection = FIRST_ID;
        assert_eq!(listening.recv(), ClientMessage::Accepted { connection });
        assert!(stream.is_in_arena() && accepted.is_in_arena());
        ([stream, accepted], arena)
    }

    /// Sends an arena to both processes.
    pub fn grant_to(
        &self,
        client: Control,
        listening: &Control,
        backlog: u32,
        (slots, granted, ring): (u32, u32, RingSize),
    ) -> Arena {
        let parts = ArenaParts::new(ArenaLimits { slots, ring }, granted, backlog).unwrap();
        let shared = || [&parts.memory, &parts.grant].map(|fd| fd.try_clone().unwrap());
        let (for_server, for_client) = (shared(), shared());
        let connected = Connected {
            transport: Transport::Arena,
            connection: FIRST_ID,
            local: ADDRESS,
            peer: ADDRESS,
        };
        let (server, control) = seqpacket::pair().unwrap();
        let Doorbells { own, peer } = parts.server;
        let descriptors: Vec<_> = for_server.into_iter().chain([own, peer, control]).collect();
        listening.send(&incoming(Transport::Arena, FIRST_ID), &descriptors);
        let Doorbells { own, peer } = parts.client;
        let descriptors: Vec<_> = for_client.into_iter().chain([own, peer]).collect();
        client.send(&BrokerMessage::Connected(connected), &descriptors);
        Arena {
            monitor: parts.monitor,
            memory: parts.memory.into(),
            client,
            server: Control(server),
        }
    }
}

impl Pair {
    /// A pair with an arena of `slots`, all granted.
    pub fn new(slots: u32, backlog: u32) -> Self {
        Self::with_ring(slots, backlog, RingSize::DEFAULT)
    }

    pub fn with_ring(slots: u32, backlog: u32, ring: RingSize) -> Self {
        let endpoints = Endpoints::new();
        let (listener, listening) = endpoints.listen(backlog);
        let options = endpoints.options();
        drop(endpoints.connect_with_own_memory(&options, &listener, &listening));
        let limits = (slots, slots, ring);
        let (first, arena) = endpoints.grant(&options, &listener, &listening, limits);
        drop(first);
        Self {
            endpoints,
            listener,
            listening,
            arena,
        }
    }

    pub fn connect(&self) -> std::io::Result<HvStream> {
        self.endpoints.options().connect(ADDRESS)
    }

    pub fn accept(&self) -> HvStream {
        let (stream, _) = self.listener.accept_timeout(LONG).unwrap();
        stream
    }

    /// A connection in the arena.
    pub fn pair(&self) -> (HvStream, HvStream) {
        let stream = self.connect().unwrap();
        let accepted = self.accept();
        assert!(stream.is_in_arena() && accepted.is_in_arena());
        for end in [&stream, &accepted] {
            end.set_read_timeout(Some(LONG)).unwrap();
            end.set_write_timeout(Some(LONG)).unwrap();
        }
        (stream, accepted)
    }
}

impl Arena {
    /// Withdraws the acceptors' request of a notification, as a client does before it notifies them. Returns
    /// whether there was one.
    pub fn take_accept_request(&self) -> bool {
        let mut word = [0; 4];
        self.memory
            .read_exact_at(&mut word, ACCEPT_REQUEST)
            .unwrap();
        self.memory.write_all_at(&[0; 4], ACCEPT_REQUEST).unwrap();
        u32::from_ne_bytes(word) == 1
    }

    /// The slot of the connection with this id.
    pub fn find(&self, connection: u64) -> SlotId {
        let all = self.monitor.scan();
        let found = all
            .iter()
            .find(|view| FIRST_ID + u64::from(view.id.seq) == connection);
        found.expect("an open connection").id
    }

    /// Closes one connection, as an operator's request does.
    pub fn close(&self, connection: u64, reason: Refused) {
        let id = self.find(connection);
        let message = BrokerMessage::StreamReset(StreamReset {
            slot: id.slot,
            seq: id.seq,
            reason,
        });
        self.send_both(&message);
        self.monitor.reset(id, ResetCause::Control);
        // Whoever is watched as a descriptor learns by a message that something has changed.
        self.send_both(&BrokerMessage::Suspended { on: false });
    }

    /// Acts after a listener is gone.
    pub fn listener_is_gone(&self) {
        self.monitor.set_grant(Grant::Revoked);
        self.monitor.reset_unaccepted(ResetCause::Control);
    }

    /// Acts after the process of one side is gone.
    pub fn process_is_gone(&self, side: RingSide) {
        // What a client has opened before can still be accepted.
        if side == RingSide::Second {
            self.monitor.set_grant(Grant::Revoked);
        }
        self.monitor.close_end(side);
        let survivor = match side {
            RingSide::First => &self.server,
            RingSide::Second => &self.client,
        };
        survivor.send(&BrokerMessage::Shutdown, &[]);
    }

    pub fn send_both(&self, message: &BrokerMessage) {
        self.client.send(message, &[]);
        self.server.send(message, &[]);
    }
}

impl Control {
    /// The next message of the process.
    pub fn recv(&self) -> ClientMessage {
        wait(&self.0);
        let mut buffer = [0; hvsock_endpoint::MAX_MESSAGE];
        let received = message::recv(&self.0, &mut buffer).unwrap();
        assert_ne!(received.len, 0, "the process has closed its endpoint");
        ClientMessage::decode(&buffer[..received.len]).unwrap()
    }

    /// The pending messages.
    pub fn recv_all(&self) -> Vec<ClientMessage> {
        let mut all = Vec::new();
        while is_readable(&self.0, Duration::ZERO) {
            let mut buffer = [0; hvsock_endpoint::MAX_MESSAGE];
            match message::recv(&self.0, &mut buffer) {
                Ok(received) if received.len > 0 => {
                    all.push(ClientMessage::decode(&buffer[..received.len]).unwrap());
                }
                _ => break,
            }
        }
        all
    }

    /// Whether the process closes its end within [`LONG`].
    pub fn is_closed(&self) -> bool {
        let deadline = Instant::now() + LONG;
        while Instant::now() < deadline {
            wait(&self.0);
            let mut buffer = [0; hvsock_endpoint::MAX_MESSAGE];
            match message::recv(&self.0, &mut buffer) {
                Ok(received) if received.len > 0 => {}
                _ => return true,
            }
        }
        false
    }

    pub fn send(&self, what: &BrokerMessage, descriptors: &[OwnedFd]) {
        let mut bytes = Vec::new();
        what.encode(&mut bytes);
        let descriptors: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
        // A process that is gone receives nothing.
        let _ = message::send(&self.0, &bytes, &descriptors);
    }
}

pub fn incoming(transport: Transport, connection: u64) -> BrokerMessage {
    BrokerMessage::Incoming(Incoming {
        transport,
        connection,
        local: ADDRESS,
        peer: ADDRESS,
        pid: 42,
        uid: 1000,
        gid: u32::MAX,
        partition: "web".into(),
    })
}

fn is_readable(fd: impl AsFd, time: Duration) -> bool {
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    poll::wait(&mut fds, Some(Instant::now() + time)).unwrap()
}

fn wait(fd: impl AsFd) {
    assert!(
        is_readable(fd, LONG),
        "the library does not send or receive"
    );
}
