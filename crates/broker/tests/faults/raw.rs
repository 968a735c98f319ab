//! A client that sends any bytes: the endpoint's messages without the library.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use hvsock::{ServiceId, SockAddrHv, VmId};
use hvsock_endpoint::{
    BrokerMessage, ClientMessage, Connect, Flags, Incoming, Listen, LookupKind, MAX_MESSAGE,
    Refused, SocketOption, Transport, Transports,
};
use hvsock_fabric::Refusal;
use hvsock_sys::poll::{PollFd, PollFlags};
use hvsock_sys::{message, poll, seqpacket};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

use hvsock_testkit::wait::TIMEOUT;
use hvsock_testkit::world::PartitionEndpoint;

/// Both transports.
pub const EITHER: Transports = Transports::DESCRIPTOR.union(Transports::RING);

/// What a process connects its own socket to.
pub struct AttachedSocket(OwnedFd);

impl AttachedSocket {
    /// Connects a socket to it.
    pub fn connect(&self) -> io::Result<UnixStream> {
        UnixStream::connect(format!("/proc/self/fd/{}", self.0.as_raw_fd()))
    }
}

/// The descriptors of one end of a ring: the memory, its own doorbell and the peer's.
pub struct RingParts {
    pub memory: OwnedFd,
    pub own: OwnedFd,
    pub peer: OwnedFd,
}

/// One endpoint connection, or the control descriptor of a connection.
pub struct Raw(pub OwnedFd);

impl Raw {
    pub fn new(endpoint: &PartitionEndpoint) -> Self {
        Self::try_new(endpoint).expect("the broker takes clients")
    }

    pub fn try_new(endpoint: &PartitionEndpoint) -> io::Result<Self> {
        Ok(Self::of(seqpacket::connect(&endpoint.0, TIMEOUT)?))
    }

    pub fn of(socket: OwnedFd) -> Self {
        Self(socket)
    }

    /// Waits until the socket is ready.
    #[track_caller]
    fn wait(&self, wanted: PollFlags) {
        let mut fds = [PollFd::new(&self.0, wanted)];
        let ready = poll::wait(&mut fds, Some(Instant::now() + TIMEOUT));
        assert!(ready.expect("a socket"), "timed out");
    }

    /// Sends a message. Returns `false` if the broker has closed the connection.
    pub fn send(&self, message: &ClientMessage) -> bool {
        self.send_bytes(&bytes(message))
    }

    pub fn send_bytes(&self, bytes: &[u8]) -> bool {
        self.wait(PollFlags::OUT);
        match message::send(&self.0, bytes, &[]) {
            Ok(()) => true,
            Err(error) => {
                use io::ErrorKind::{BrokenPipe, ConnectionReset};
                assert!(
                    matches!(error.kind(), BrokenPipe | ConnectionReset),
                    "{error}"
                );
                false
            }
        }
    }

    /// Sends a message with any number of descriptors.
    pub fn send_with_fds(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(descriptors)));
        let bytes = [IoSlice::new(bytes)];
        rustix::net::sendmsg(&self.0, &bytes, &mut control, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// Receives the broker's next message with its descriptors; `None` at the end.
    #[track_caller]
    pub fn recv_with_fds(&self) -> Option<(BrokerMessage, Vec<OwnedFd>)> {
        let mut buffer = [0; MAX_MESSAGE];
        self.wait(PollFlags::IN);
        let received = message::recv_with_descriptors(&self.0, &mut buffer).expect("a message");
        if received.len == 0 {
            return None;
        }
        let message = BrokerMessage::decode(&buffer[..received.len]).expect("a message");
        Some((message, received.descriptors))
    }

    #[track_caller]
    pub fn recv(&self) -> BrokerMessage {
        self.recv_with_fds().expect("a message, not the end").0
    }

    /// Receives a REFUSED and then the end.
    #[track_caller]
    pub fn recv_refused(&self) -> Refusal {
        let refusal = match self.recv() {
            BrokerMessage::Refused(refused) => refusal(&refused),
            other => panic!("{other:?} instead of REFUSED"),
        };
        self.recv_end();
        refusal
    }

    /// Looks a partition up by its CID.
    #[track_caller]
    pub fn look_up_cid(&self, number: &str) -> Result<VmId, Refusal> {
        let (kind, name) = (LookupKind::Cid, number.to_owned());
        self.send(&ClientMessage::Lookup { kind, name });
        match self.recv() {
            BrokerMessage::Found { guid } => Ok(VmId::from_guid_bytes(guid)),
            BrokerMessage::Refused(refused) => Err(refusal(&refused)),
            other => panic!("{other:?}"),
        }
    }

    /// Asks for the CID of a partition.
    #[track_caller]
    pub fn cid_of(&self, partition: VmId) -> Result<u32, Refusal> {
        self.send(&ClientMessage::CidOf { partition });
        match self.recv() {
            BrokerMessage::Cid { cid } => Ok(cid),
            BrokerMessage::Refused(refused) => Err(refusal(&refused)),
            other => panic!("{other:?}"),
        }
    }

    /// Asks for what a socket of this process connects to, and returns it.
    #[track_caller]
    pub fn attach(&self, filler: u32) -> AttachedSocket {
        self.send(&ClientMessage::Attach { filler });
        match self.recv_with_fds() {
            Some((BrokerMessage::Attachable, descriptors)) => {
                let [path] = <[OwnedFd; 1]>::try_from(descriptors).expect("one");
                AttachedSocket(path)
            }
            other => panic!("{other:?}"),
        }
    }

    /// Requests a connection with an attached socket.
    pub fn send_attached(&self, vm: VmId, port: u32) {
        self.send(&connect_by(vm, port, Transports::ATTACHED, false));
    }

    /// Receives a CONNECTED for an attached socket, without descriptors.
    #[track_caller]
    pub fn recv_attached(&self) {
        match self.recv_with_fds() {
            Some((BrokerMessage::Connected(connected), descriptors)) => {
                assert_eq!(connected.transport, Transport::Attached);
                assert!(descriptors.is_empty());
            }
            other => panic!("{other:?}"),
        }
    }

    /// Receives a RESET and then the end.
    #[track_caller]
    pub fn recv_reset(&self) -> Refusal {
        let refusal = match self.recv() {
            BrokerMessage::Reset(refused) => refusal(&refused),
            other => panic!("{other:?} instead of RESET"),
        };
        self.recv_end();
        refusal
    }

    #[track_caller]
    pub fn recv_end(&self) {
        assert_eq!(self.recv_with_fds().map(|(message, _)| message), None);
    }

    /// Ends the connection, also where it was duplicated.
    pub fn hang_up(&self) {
        rustix::net::shutdown(&self.0, rustix::net::Shutdown::Both).expect("a socket");
    }

    /// Whether the connection is open and no message is queued on it.
    pub fn is_silent(&self) -> bool {
        let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
        !poll::wait(&mut fds, Some(Instant::now())).expect("a socket")
    }

    /// Listens for connections over descriptors.
    #[track_caller]
    pub fn listen(&self, vm: VmId, port: u32, backlog: u32) {
        self.send(&listen(vm, port, backlog));
        let answer = self.recv();
        assert!(matches!(answer, BrokerMessage::Listening(_)), "{answer:?}");
    }

    /// Receives a connection over a ring, without sending ACCEPTED.
    #[track_caller]
    pub fn recv_incoming_ring(&self) -> (Incoming, RingParts, Raw) {
        let Some((BrokerMessage::Incoming(incoming), descriptors)) = self.recv_with_fds() else {
            panic!("no INCOMING");
        };
        assert_eq!(incoming.transport, Transport::Ring);
        let [memory, own, peer, control] = <[OwnedFd; 4]>::try_from(descriptors).expect("four");
        (incoming, RingParts { memory, own, peer }, Self::of(control))
    }

    /// Connects over a ring and returns the ring's descriptors.
    #[track_caller]
    pub fn connect_ring(&self, vm: VmId, port: u32) -> RingParts {
        self.send(&connect_by(vm, port, EITHER, false));
        match self.recv_with_fds() {
            Some((BrokerMessage::Connected(connected), descriptors)) => {
                assert_eq!(connected.transport, Transport::Ring);
                let [memory, own, peer] = <[OwnedFd; 3]>::try_from(descriptors).expect("three");
                RingParts { memory, own, peer }
            }
            other => panic!("{other:?}"),
        }
    }

    /// Listens for connections over either transport.
    #[track_caller]
    pub fn listen_ring(&self, vm: VmId, port: u32, backlog: u32) {
        self.send(&listen_by(vm, port, backlog, EITHER, false));
        let answer = self.recv();
        assert!(matches!(answer, BrokerMessage::Listening(_)), "{answer:?}");
    }

    pub fn set_option(&self, option: SocketOption, value: u32) {
        self.send(&ClientMessage::SetOption { option, value });
    }

    /// Receives a connection with its data and control descriptors, without sending ACCEPTED.
    #[track_caller]
    pub fn recv_incoming(&self) -> (Incoming, OwnedFd, Raw) {
        let Some((BrokerMessage::Incoming(incoming), descriptors)) = self.recv_with_fds() else {
            panic!("no INCOMING");
        };
        let [data, control] = <[OwnedFd; 2]>::try_from(descriptors).expect("two");
        (incoming, data, Self::of(control))
    }

    /// Connects, and returns the data descriptor.
    #[track_caller]
    pub fn connect(&self, vm: VmId, port: u32) -> OwnedFd {
        self.send(&connect(vm, port));
        match self.recv_with_fds() {
            Some((BrokerMessage::Connected(_), descriptors)) => {
                let [data] = <[OwnedFd; 1]>::try_from(descriptors).expect("one");
                data
            }
            other => panic!("{other:?}"),
        }
    }
}

impl AsFd for Raw {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

pub fn bytes(message: &ClientMessage) -> Vec<u8> {
    let mut bytes = Vec::new();
    message.encode(&mut bytes);
    bytes
}

pub fn connect(vm: VmId, port: u32) -> ClientMessage {
    connect_by(vm, port, Transports::DESCRIPTOR, false)
}

pub fn connect_by(vm: VmId, port: u32, transports: Transports, plain: bool) -> ClientMessage {
    let dry_run = false;
    ClientMessage::Connect(Connect {
        flags: Flags {
            raw_fd: plain,
            dry_run,
            explain: false,
        },
        timeout_ms: 0,
        transports,
        address: SockAddrHv::new(vm, ServiceId::from_port(port)),
    })
}

pub fn listen(vm: VmId, port: u32, backlog: u32) -> ClientMessage {
    listen_by(vm, port, backlog, Transports::DESCRIPTOR, false)
}

pub fn listen_by(
    vm: VmId,
    port: u32,
    backlog: u32,
    transports: Transports,
    plain: bool,
) -> ClientMessage {
    let dry_run = false;
    ClientMessage::Listen(Listen {
        flags: Flags {
            raw_fd: plain,
            dry_run,
            explain: false,
        },
        backlog,
        transports,
        address: SockAddrHv::new(vm, ServiceId::from_port(port)),
    })
}

fn refusal(refused: &Refused) -> Refusal {
    Refusal::from_wire(refused.code, &refused.detail)
}
