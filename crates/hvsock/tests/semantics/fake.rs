//! A fake broker that sends the messages of a test, valid or not.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use hvsock::{ConnectOptions, Endpoint, HvListener, HvStream, ListenOptions};
use hvsock::{ServiceId, SockAddrHv, VmId};
use hvsock_endpoint::{
    BrokerMessage, ClientMessage, Connected, Incoming, Listening, Refused, SocketOption, Transport,
};
use hvsock_sys::poll::{self, PollFd, PollFlags};
use hvsock_sys::{message, seqpacket, stream};
use tempfile::TempDir;

/// A timeout that nothing reaches unless it hangs.
pub const LONG: Duration = Duration::from_secs(30);
/// The time after which a call that blocks is known to block.
pub const SHORT: Duration = Duration::from_millis(50);

pub const SERVICE: ServiceId = ServiceId::from_port(2761);
pub const ADDRESS: SockAddrHv = SockAddrHv::new(VmId::PARENT, SERVICE);

pub struct Broker {
    listener: OwnedFd,
    dir: TempDir,
}

/// One client of the broker.
pub struct Client {
    pub socket: OwnedFd,
}

/// The broker's side of a connection.
pub struct BrokerSide {
    pub control: Client,
    pub data: OwnedFd,
}

impl Broker {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = seqpacket::listen(&dir.path().join("endpoint"), 0o600, 16).unwrap();
        Self { listener, dir }
    }

    pub fn endpoint(&self) -> Endpoint {
        Endpoint::in_dir(self.dir.path())
    }

    /// The next process that connects to the endpoint.
    pub fn client(&self) -> Client {
        let socket = loop {
            match seqpacket::accept(&self.listener).unwrap() {
                Some(socket) => break socket,
                None => wait(&self.listener, PollFlags::IN),
            }
        };
        Client { socket }
    }

    /// Returns true if another process has connected to the endpoint.
    pub fn has_client(&self) -> bool {
        seqpacket::accept(&self.listener).unwrap().is_some()
    }

    pub fn connect_options(&self) -> ConnectOptions {
        HvStream::options().endpoint(self.endpoint())
    }

    pub fn listen_options(&self) -> ListenOptions {
        HvListener::options().endpoint(self.endpoint())
    }

    /// Runs `client` on another thread while `broker` acts as the broker.
    pub fn with_client<T: Send, U>(
        &self,
        client: impl FnOnce() -> T + Send,
        broker: impl FnOnce(&Self) -> U,
    ) -> (T, U) {
        thread::scope(|scope| {
            let client = scope.spawn(client);
            let broker_side = broker(self);
            (client.join().unwrap(), broker_side)
        })
    }

    /// A connection, from the connecting side.
    pub fn connected(&self) -> (HvStream, BrokerSide) {
        let options = self.connect_options();
        let (stream, side) = self.with_client(
            || options.connect(ADDRESS),
            |broker| {
                let client = broker.client();
                assert!(matches!(client.recv(), ClientMessage::Connect(_)));
                client.connect()
            },
        );
        (stream.unwrap(), side)
    }

    /// A listener.
    pub fn listening(&self) -> (HvListener, Client) {
        let options = self.listen_options();
        let (listener, client) = self.with_client(
            || options.listen(ADDRESS),
            |broker| {
                let client = broker.client();
                assert!(matches!(client.recv(), ClientMessage::Listen(_)));
                client.send(&listening());
                client
            },
        );
        (listener.unwrap(), client)
    }
}

impl Client {
    /// The next message of the process, except a request for a ring size.
    pub fn recv(&self) -> ClientMessage {
        loop {
            match self.recv_any() {
                ClientMessage::SetOption {
                    option: SocketOption::RingSize,
                    ..
                } => {}
                message => return message,
            }
        }
    }

    /// The next message of the process.
    pub fn recv_any(&self) -> ClientMessage {
        wait(&self.socket, PollFlags::IN);
        let mut buffer = [0; hvsock_endpoint::MAX_MESSAGE];
        let received = message::recv(&self.socket, &mut buffer).unwrap();
        assert!(!received.dropped_descriptors);
        assert_ne!(received.len, 0, "the process has closed its endpoint");
        ClientMessage::decode(&buffer[..received.len]).unwrap()
    }

    /// Returns true if the process has closed its endpoint without another message.
    pub fn is_closed(&self) -> bool {
        wait(&self.socket, PollFlags::IN);
        message::recv(&self.socket, &mut [0; 64]).map_or(true, |received| received.len == 0)
    }

    /// Returns true if no message is pending and the endpoint is open. The library sends in the
    /// calling thread, so this needs no wait.
    pub fn is_idle(&self) -> bool {
        !self.is_readable_within(Duration::ZERO)
    }

    fn is_readable_within(&self, time: Duration) -> bool {
        let mut fds = [PollFd::new(&self.socket, PollFlags::IN)];
        poll::wait(&mut fds, Some(Instant::now() + time)).unwrap()
    }

    pub fn send(&self, what: &BrokerMessage) {
        self.send_with(what, &[]);
    }

    pub fn send_with(&self, what: &BrokerMessage, descriptors: &[BorrowedFd<'_>]) {
        let mut bytes = Vec::new();
        what.encode(&mut bytes);
        self.send_bytes(&bytes, descriptors).unwrap();
    }

    pub fn send_bytes(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        loop {
            match message::send(&self.socket, bytes, descriptors) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    wait(&self.socket, PollFlags::OUT);
                }
                result => return result,
            }
        }
    }

    /// Makes this client the connecting side of a connection.
    pub fn connect(self) -> BrokerSide {
        let (data, theirs) = stream::pair().unwrap();
        self.send_with(&connected(), &[theirs.as_fd()]);
        BrokerSide {
            control: self,
            data,
        }
    }

    /// Sends `count` connections whose peers are gone to this listener, and receives its
    /// acknowledgements late. There are far more of them than the socket buffer holds, and none is
    /// lost.
    pub fn flood(&self, count: u64) {
        let mut acked = 0;
        let mut bytes = Vec::new();
        for connection in 0..count {
            let (_, data) = stream::pair().unwrap();
            let (_, control) = seqpacket::pair().unwrap();
            incoming(connection).encode(&mut bytes);
            let descriptors = [data.as_fd(), control.as_fd()];
            while let Err(error) = message::send(&self.socket, &bytes, &descriptors) {
                assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                while self.is_readable_within(SHORT) {
                    assert_eq!(self.recv(), ClientMessage::Accepted { connection: acked });
                    acked += 1;
                }
            }
        }
        while acked < count {
            assert_eq!(self.recv(), ClientMessage::Accepted { connection: acked });
            acked += 1;
        }
    }

    /// Sends a connection to this listener.
    pub fn incoming(&self, connection: u64) -> BrokerSide {
        let (data, theirs) = stream::pair().unwrap();
        let (control, their_control) = seqpacket::pair().unwrap();
        self.send_with(
            &incoming(connection),
            &[theirs.as_fd(), their_control.as_fd()],
        );
        BrokerSide {
            control: Client { socket: control },
            data,
        }
    }
}

impl BrokerSide {
    pub fn send(&self, bytes: &[u8]) {
        assert_eq!(stream::send(&self.data, bytes).unwrap(), bytes.len());
    }

    /// Everything that the process sends until the end of its data.
    pub fn recv_all(&self) -> Vec<u8> {
        let mut all = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            wait(&self.data, PollFlags::IN);
            match stream::recv(&self.data, &mut buffer).unwrap() {
                0 => return all,
                count => all.extend_from_slice(&buffer[..count]),
            }
        }
    }

    /// Ends the data, announced or not.
    pub fn end_data(&self) {
        stream::shutdown(&self.data, std::net::Shutdown::Write).unwrap();
    }
}

pub fn connected() -> BrokerMessage {
    BrokerMessage::Connected(Connected {
        transport: Transport::Descriptor,
        connection: 7,
        local: SockAddrHv::new(VmId::LOOPBACK, ServiceId::ZERO),
        peer: ADDRESS,
    })
}

pub fn listening() -> BrokerMessage {
    BrokerMessage::Listening(Listening {
        backlog: 5,
        listener: 3,
    })
}

pub fn incoming(connection: u64) -> BrokerMessage {
    BrokerMessage::Incoming(Incoming {
        transport: Transport::Descriptor,
        connection,
        local: ADDRESS,
        peer: SockAddrHv::new(VmId::CHILDREN, ServiceId::ZERO),
        pid: 42,
        uid: 1000,
        gid: u32::MAX,
        partition: "web".into(),
    })
}

/// The refusal of a disabled service.
pub fn disabled() -> Refused {
    Refused {
        code: 2,
        errno: 1,
        detail: "enabled = false".into(),
    }
}

fn wait(fd: impl AsFd, what: PollFlags) {
    let mut fds = [PollFd::new(&fd, what)];
    let ready = poll::wait(&mut fds, Some(Instant::now() + LONG)).unwrap();
    assert!(ready, "the library does not send or receive");
}
