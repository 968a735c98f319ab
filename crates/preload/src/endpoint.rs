//! Conversations with the broker, as [docs/endpoint.md](../../../docs/endpoint.md) describes them.
//!
//! The broker is asked within the program's own call, so each wait for it has a deadline. Only the wait for the
//! peer's answer to a connect ends at a signal, as that of the kernel does.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use hvsock_address::VmId;
use hvsock_endpoint::{
    BrokerMessage, ClientMessage, LookupKind, MAX_MESSAGE, Refused, SocketOption,
};
use hvsock_interpose::model;
use hvsock_sys::{message, seqpacket};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

/// How long a broker may take for what it answers by itself, without a peer.
const ANSWER: Duration = Duration::from_secs(5);

/// How long the answer of a peer is waited for after a signal.
const AFTER_SIGNAL: Duration = Duration::from_millis(20);

/// Why a conversation failed.
#[derive(Debug)]
pub enum Failure {
    /// The broker refused the request.
    Refused(Refused),
    /// A system call failed, or there is no broker, or it is gone.
    System(Errno),
}

impl From<Errno> for Failure {
    fn from(error: Errno) -> Self {
        Self::System(error)
    }
}

/// The paths of endpoints, as the environment named them when the program started: a program may change its
/// environment at any time, and a signal handler cannot read it.
static PATHS: OnceLock<Vec<PathBuf>> = OnceLock::new();

/// Reads the environment. Called before the program has threads.
pub fn prepare() {
    PATHS.get_or_init(|| hvsock::Endpoint::from_env().paths().to_vec());
}

/// A message of the broker with its descriptors.
pub struct Answer {
    /// The message.
    pub message: BrokerMessage,
    /// Its descriptors, close-on-exec.
    pub descriptors: Vec<OwnedFd>,
}

/// One connection to the endpoint.
pub struct Conversation {
    socket: OwnedFd,
}

impl Conversation {
    /// Connects to the broker.
    pub fn open() -> Result<Self, Failure> {
        let mut none = Errno::NODEV;
        for path in PATHS.get().map(Vec::as_slice).unwrap_or_default() {
            match seqpacket::connect(path, ANSWER) {
                Ok(socket) => return Ok(Self { socket }),
                Err(error) => match Errno::from_io_error(&error) {
                    // No broker is there: the next path.
                    Some(Errno::NOENT | Errno::NOTDIR | Errno::CONNREFUSED) => {}
                    Some(other) => none = other,
                    None => none = Errno::IO,
                },
            }
            if none != Errno::NODEV {
                break;
            }
        }
        Err(Failure::System(none))
    }

    /// Sends a message.
    pub fn send(&self, message: &ClientMessage) -> Result<(), Failure> {
        send(self.socket.as_fd(), message)
    }

    /// The next message, which the broker sends by itself.
    pub fn answer(&self) -> Result<Answer, Failure> {
        let deadline = Instant::now() + ANSWER;
        loop {
            match receive(self.socket.as_fd()) {
                Err(Failure::System(Errno::AGAIN)) => {}
                result => return result,
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match wait(self.socket.as_fd(), PollFlags::IN, Some(left)) {
                Ok(false) => return Err(Errno::TIMEDOUT.into()),
                Ok(true) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The answer of the peer, for which a signal ends the wait with `EINTR`, a moment later: a program that gets
    /// one signal after another connects as well.
    pub fn answer_of_peer(&self) -> Result<Answer, Failure> {
        let mut end: Option<Instant> = None;
        loop {
            match receive(self.socket.as_fd()) {
                Err(Failure::System(Errno::AGAIN)) => {}
                result => return result,
            }
            let left = end.map(|end| end.saturating_duration_since(Instant::now()));
            match wait(self.socket.as_fd(), PollFlags::IN, left) {
                Ok(true) => {}
                Ok(false) => return Err(Errno::INTR.into()),
                Err(Errno::INTR) => {
                    end.get_or_insert_with(|| Instant::now() + AFTER_SIGNAL);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Sends the options that the broker has, before the request.
    pub fn set_options(&self, socket: &model::Socket) -> Result<(), Failure> {
        if socket.options().connected_suspend {
            let option = SocketOption::ConnectedSuspend;
            self.send(&ClientMessage::SetOption { option, value: 1 })?;
        }
        Ok(())
    }

    /// The partition with a context id, as this partition sees it.
    pub fn partition_of(&self, cid: u32) -> Result<VmId, Failure> {
        let name = cid.to_string();
        self.send(&ClientMessage::Lookup {
            kind: LookupKind::Cid,
            name,
        })?;
        match self.answer()?.message {
            BrokerMessage::Found { guid } => Ok(VmId::from_guid_bytes(guid)),
            _ => Err(Errno::PROTO.into()),
        }
    }

    /// The context id of a partition, as this partition sees it.
    pub fn cid_of(&self, partition: VmId) -> Result<u32, Failure> {
        self.send(&ClientMessage::CidOf { partition })?;
        match self.answer()?.message {
            BrokerMessage::Cid { cid } => Ok(cid),
            _ => Err(Errno::PROTO.into()),
        }
    }

    /// Announces a socket of the program's own, to which `filler` bytes are written before the request.
    pub fn send_attach(&self, filler: u32) -> Result<(), Failure> {
        self.send(&ClientMessage::Attach { filler })
    }

    /// The answer to that: the socket to connect it to.
    pub fn attachable(&self) -> Result<OwnedFd, Failure> {
        let answer = self.answer()?;
        match (answer.message, answer.descriptors.into_iter().next()) {
            (BrokerMessage::Attachable, Some(listener)) => Ok(listener),
            _ => Err(Errno::PROTO.into()),
        }
    }

    /// The socket of this conversation, which it keeps.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// The socket of this conversation.
    pub fn into_socket(self) -> OwnedFd {
        self.socket
    }
}

/// Sends a message to the broker. The broker reads its sockets at all times, so a full one is waited for, but
/// not for long.
pub fn send(socket: BorrowedFd<'_>, message: &ClientMessage) -> Result<(), Failure> {
    let mut buffer = Vec::new();
    message.encode(&mut buffer);
    let deadline = Instant::now() + ANSWER;
    loop {
        match message::send(socket, &buffer, &[]).map_err(|error| errno(&error)) {
            Err(Errno::AGAIN) => {}
            // Its reason is to be read.
            Err(Errno::PIPE | Errno::CONNRESET) | Ok(()) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        let left = deadline.saturating_duration_since(Instant::now());
        match wait(socket, PollFlags::OUT, Some(left)) {
            Ok(false) => return Err(Errno::TIMEDOUT.into()),
            Ok(true) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Receives a message of the broker, without a wait: `EAGAIN` if there is none. A refusal is a [`Failure`].
pub fn receive(socket: BorrowedFd<'_>) -> Result<Answer, Failure> {
    let mut buffer = [0; MAX_MESSAGE];
    let received =
        message::recv_with_descriptors(socket, &mut buffer).map_err(|error| errno(&error))?;
    decode(
        buffer.get(..received.len).unwrap_or_default(),
        received.descriptors,
    )
}

/// Receives a message of a listener as the program's descriptor does: it waits unless it is non-blocking, until its
/// timeout, and for a signal as the kernel does, which repeats the call or not (`SA_RESTART`).
pub fn receive_as_set(socket: BorrowedFd<'_>) -> Result<Answer, Failure> {
    const DESCRIPTORS: usize = 2;
    let mut buffer = [0; MAX_MESSAGE];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut receive = || {
        let mut slices = [IoSliceMut::new(&mut buffer)];
        rustix::net::recvmsg(socket, &mut slices, &mut control, RecvFlags::CMSG_CLOEXEC)
    };
    // Reported once, before the messages that the broker sent last.
    let received = match receive() {
        Err(Errno::CONNRESET) => receive(),
        result => result,
    };
    let len = received?.bytes;
    let mut descriptors = Vec::new();
    for ancillary in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = ancillary {
            descriptors.extend(received);
        }
    }
    decode(buffer.get(..len).unwrap_or_default(), descriptors)
}

/// A message from its bytes. The broker is gone if there are none.
pub fn decode(bytes: &[u8], descriptors: Vec<OwnedFd>) -> Result<Answer, Failure> {
    if bytes.is_empty() {
        return Err(Errno::CONNRESET.into());
    }
    match BrokerMessage::decode(bytes) {
        Ok(BrokerMessage::Refused(refused) | BrokerMessage::Reset(refused)) => {
            Err(Failure::Refused(refused))
        }
        Ok(message) => Ok(Answer {
            message,
            descriptors,
        }),
        Err(_) => Err(Errno::PROTO.into()),
    }
}

/// Waits for an event of a descriptor, or its end. `false` at the timeout.
///
/// A signal ends the wait with `EINTR`.
pub fn wait(
    fd: BorrowedFd<'_>,
    events: PollFlags,
    timeout: Option<Duration>,
) -> Result<bool, Errno> {
    let mut fds = [PollFd::from_borrowed_fd(fd, events)];
    let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
    Ok(rustix::event::poll(&mut fds, timeout.as_ref())? != 0)
}

fn errno(error: &std::io::Error) -> Errno {
    match error.kind() {
        std::io::ErrorKind::InvalidData => Errno::PROTO,
        _ => Errno::from_io_error(error).unwrap_or(Errno::IO),
    }
}
