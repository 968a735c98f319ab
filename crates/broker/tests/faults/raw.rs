//! A client that says what it likes: the endpoint's messages by hand.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use hvsock::{ServiceId, SockAddrHv, VmId};
use hvsock_endpoint::{
    BrokerMessage, ClientMessage, Connect, Flags, Incoming, Listen, MAX_MESSAGE, Refused,
    SocketOption, Transport, Transports,
};
use hvsock_fabric::Refusal;
use hvsock_sys::poll::{PollFd, PollFlags};
use hvsock_sys::{message, poll, seqpacket};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

use crate::world::{PATIENCE, Place};

/// What a client offers that can do everything.
pub const EITHER: Transports = Transports::DESCRIPTOR.union(Transports::RING);

/// What an end of a ring is made of.
pub struct RingParts {
    pub memory: OwnedFd,
    pub own: OwnedFd,
    pub peer: OwnedFd,
}

/// One endpoint connection, or the control descriptor of a connection.
pub struct Raw(pub OwnedFd);

impl Raw {
    pub fn new(place: &Place) -> Self {
        Self::try_new(place).expect("the broker takes clients")
    }

    pub fn try_new(place: &Place) -> io::Result<Self> {
        Ok(Self::of(seqpacket::connect(&place.0, PATIENCE)?))
    }

    pub fn of(socket: OwnedFd) -> Self {
        Self(socket)
    }

    /// Waits until it can be read or written.
    #[track_caller]
    fn wait(&self, wanted: PollFlags) {
        let mut fds = [PollFd::new(&self.0, wanted)];
        let ready = poll::wait(&mut fds, Some(Instant::now() + PATIENCE));
        assert!(ready.expect("a socket"), "not in time");
    }

    /// Sends a message; false if the broker has gone away.
    pub fn say(&self, said: &ClientMessage) -> bool {
        self.say_bytes(&bytes(said))
    }

    pub fn say_bytes(&self, bytes: &[u8]) -> bool {
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
    pub fn say_with(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
        let mut control = SendAncillaryBuffer::new(&mut room);
        assert!(control.push(SendAncillaryMessage::ScmRights(descriptors)));
        let bytes = [IoSlice::new(bytes)];
        rustix::net::sendmsg(&self.0, &bytes, &mut control, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// The broker's next message with its descriptors; nothing at the end.
    #[track_caller]
    pub fn hear_all(&self) -> Option<(BrokerMessage, Vec<OwnedFd>)> {
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
    pub fn hear(&self) -> BrokerMessage {
        self.hear_all().expect("a message, not the end").0
    }

    /// Why the broker turned this down; nothing may follow it.
    #[track_caller]
    pub fn hear_refused(&self) -> Refusal {
        let refusal = match self.hear() {
            BrokerMessage::Refused(refused) => refusal(&refused),
            other => panic!("{other:?} is no REFUSED"),
        };
        self.hear_end();
        refusal
    }

    /// Why the broker cut this; nothing may follow it.
    #[track_caller]
    pub fn hear_reset(&self) -> Refusal {
        let refusal = match self.hear() {
            BrokerMessage::Reset(refused) => refusal(&refused),
            other => panic!("{other:?} is no RESET"),
        };
        self.hear_end();
        refusal
    }

    #[track_caller]
    pub fn hear_end(&self) {
        assert_eq!(self.hear_all().map(|(message, _)| message), None);
    }

    /// Whether the broker still holds this open and has said nothing.
    pub fn is_quiet(&self) -> bool {
        let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
        !poll::wait(&mut fds, Some(Instant::now())).expect("a socket")
    }

    /// Listens, and keeps its own counsel.
    #[track_caller]
    pub fn listen(&self, vm: VmId, port: u32, backlog: u32) {
        self.say(&listen(vm, port, backlog));
        let answer = self.hear();
        assert!(matches!(answer, BrokerMessage::Listening(_)), "{answer:?}");
    }

    /// Takes a connection whose ends share memory, and does not say so.
    #[track_caller]
    pub fn take_ring(&self) -> (Incoming, RingParts, Raw) {
        let Some((BrokerMessage::Incoming(incoming), descriptors)) = self.hear_all() else {
            panic!("no INCOMING");
        };
        assert_eq!(incoming.transport, Transport::Ring);
        let [memory, own, peer, control] = <[OwnedFd; 4]>::try_from(descriptors).expect("four");
        (incoming, RingParts { memory, own, peer }, Self::of(control))
    }

    /// Connects, and returns what an end of a ring is made of.
    #[track_caller]
    pub fn connect_ring(&self, vm: VmId, port: u32) -> RingParts {
        self.say(&connect_by(vm, port, EITHER, false));
        match self.hear_all() {
            Some((BrokerMessage::Connected(connected), descriptors)) => {
                assert_eq!(connected.transport, Transport::Ring);
                let [memory, own, peer] = <[OwnedFd; 3]>::try_from(descriptors).expect("three");
                RingParts { memory, own, peer }
            }
            other => panic!("{other:?}"),
        }
    }

    /// Listens for connections of either kind, and keeps its own counsel.
    #[track_caller]
    pub fn listen_ring(&self, vm: VmId, port: u32, backlog: u32) {
        self.say(&listen_by(vm, port, backlog, EITHER, false));
        let answer = self.hear();
        assert!(matches!(answer, BrokerMessage::Listening(_)), "{answer:?}");
    }

    pub fn set_option(&self, option: SocketOption, value: u32) {
        self.say(&ClientMessage::SetOption { option, value });
    }

    /// Takes a connection with its two descriptors, and does not say so.
    #[track_caller]
    pub fn take(&self) -> (Incoming, OwnedFd, Raw) {
        let Some((BrokerMessage::Incoming(incoming), descriptors)) = self.hear_all() else {
            panic!("no INCOMING");
        };
        let [data, control] = <[OwnedFd; 2]>::try_from(descriptors).expect("two");
        (incoming, data, Self::of(control))
    }

    /// Connects, and returns the data descriptor.
    #[track_caller]
    pub fn connect(&self, vm: VmId, port: u32) -> OwnedFd {
        self.say(&connect(vm, port));
        match self.hear_all() {
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
        flags: Flags { plain, dry_run },
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
        flags: Flags { plain, dry_run },
        backlog,
        transports,
        address: SockAddrHv::new(vm, ServiceId::from_port(port)),
    })
}

fn refusal(refused: &Refused) -> Refusal {
    Refusal::from_wire(refused.code, &refused.detail)
}
