//! A connect of a descriptor that the program has already, by the message ATTACH of the endpoint protocol.
//!
//! The broker's answer is a socket for this one connection, to which the program's own socket is connected. So its open
//! file stays the same, with its place in epoll sets. In blocking mode that is done when the connection is established;
//! a refusal leaves the socket as it was. In non-blocking mode it is done at once, with the least send buffer and bytes
//! in it that are no data: the socket is not writable until the broker has the connection and drops them, or closes its
//! end.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use hvsock::{Endpoint, Refusal, SockAddrHv};
use hvsock_endpoint::{
    BrokerMessage, ClientMessage, Connect, Flags, MAX_MESSAGE, SocketOption, Transports,
};
use hvsock_sys::poll::{PollFd, PollFlags};
use hvsock_sys::sync::lock;
use hvsock_sys::{message, poll, seqpacket, stream};

use super::connection::{Connection, HvOptions};
use super::control::Control;
use crate::abi::system;

/// The result of a connect, or its beginning.
#[derive(Debug)]
pub(crate) enum Attempt {
    Connected(Connection),
    /// In non-blocking mode.
    Pending(Box<Attach>),
}

/// A connect in non-blocking mode.
#[derive(Debug)]
pub(crate) struct Attach {
    /// The program's socket.
    own: OwnedFd,
    /// The size of its send buffer before.
    send_buffer: usize,
    /// The endpoint connection; taken with the result.
    endpoint: Mutex<Option<OwnedFd>>,
}

/// Bytes that keep the socket from being writable, for every size of buffer that the kernel grants as the least.
const FILLER: [u8; 1024] = [0; 1024];

/// How long the broker may take to answer what it does not wait for itself.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a connect may wait if the broker's queue of clients is full.
const QUEUE_TIMEOUT: Duration = Duration::from_millis(100);

impl Attach {
    /// Connects the socket, or begins to. `None` if no broker that can do it is there.
    pub(crate) fn connect(
        endpoint: &Endpoint,
        own: OwnedFd,
        address: SockAddrHv,
        options: &HvOptions,
        nonblocking: bool,
    ) -> io::Result<Option<Attempt>> {
        let Some(connection) = open(endpoint)? else {
            return Ok(None);
        };
        let filler: &[u8] = if nonblocking { &FILLER } else { &[] };
        send(
            &connection,
            &ClientMessage::Attach {
                filler: filler.len() as u32,
            },
        )?;
        let at = match receive(&connection, Instant::now() + ANSWER_TIMEOUT)? {
            (BrokerMessage::Attachable, mut descriptors) if descriptors.len() == 1 => {
                descriptors.remove(0)
            }
            (BrokerMessage::Refused(refused), _) => {
                let refusal = Refusal::from_wire(refused.code, &refused.detail);
                if is_older_broker(&refusal) {
                    return Ok(None);
                }
                return Err(refusal.into());
            }
            _ => return Err(unexpected()),
        };
        for (option, value) in [
            (SocketOption::ContainerPassthru, options.container_passthru),
            (SocketOption::ConnectedSuspend, options.connected_suspend),
            (SocketOption::HighVtl, options.high_vtl),
        ] {
            if value {
                send(&connection, &ClientMessage::SetOption { option, value: 1 })?;
            }
        }
        let timeout = options.timeout();
        let request = ClientMessage::Connect(Connect {
            flags: Flags {
                raw_fd: true,
                ..Flags::default()
            },
            timeout_ms: u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX),
            transports: Transports::ATTACHED,
            address,
        });
        if nonblocking {
            let send_buffer = stream::send_buffer(&own)?;
            stream::set_send_buffer(&own, 0)?;
            system::connect_to(own.as_fd(), at.as_fd())?;
            if stream::send(&own, filler)? != filler.len() {
                return Err(io::Error::from_raw_os_error(libc::ENOBUFS));
            }
            send(&connection, &request)?;
            return Ok(Some(Attempt::Pending(Box::new(Self {
                own,
                send_buffer,
                endpoint: Mutex::new(Some(connection)),
            }))));
        }
        send(&connection, &request)?;
        // The broker keeps the time and says so.
        let answer = receive(&connection, Instant::now() + timeout + ANSWER_TIMEOUT)?;
        let connected = established(answer, connection)?;
        system::connect_to(own.as_fd(), at.as_fd())?;
        Ok(Some(Attempt::Connected(connected)))
    }

    /// The result, once there is one. Does not block.
    pub(crate) fn progress(&self) -> Option<io::Result<Connection>> {
        let mut endpoint = lock(&self.endpoint);
        let answer = match try_receive(endpoint.as_ref()?) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
            answer => answer,
        };
        let connection = endpoint.take()?;
        let result = answer.and_then(|answer| established(answer, connection));
        if result.is_ok() {
            // The kernel doubles what is set, and returns the double.
            let _ = stream::set_send_buffer(&self.own, self.send_buffer / 2);
        }
        Some(result)
    }
}

/// The connection of the broker's answer.
fn established(
    (answer, _): (BrokerMessage, Vec<OwnedFd>),
    connection: OwnedFd,
) -> io::Result<Connection> {
    match answer {
        BrokerMessage::Connected(connected) => Ok(Connection::new(
            Control::new(connection),
            connected.local,
            connected.peer,
        )),
        BrokerMessage::Refused(refused) => {
            Err(Refusal::from_wire(refused.code, &refused.detail).into())
        }
        _ => Err(unexpected()),
    }
}

/// Connects to the first of the endpoint's sockets where a broker listens. `None` if there is none, or the kernel's
/// `AF_VSOCK` is used.
fn open(endpoint: &Endpoint) -> io::Result<Option<OwnedFd>> {
    use io::ErrorKind::{ConnectionRefused, NotADirectory, NotFound};
    for path in endpoint.paths() {
        match seqpacket::connect(path, QUEUE_TIMEOUT) {
            Ok(connection) => return Ok(Some(connection)),
            Err(error) if matches!(error.kind(), NotFound | NotADirectory | ConnectionRefused) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

fn send(connection: &OwnedFd, request: &ClientMessage) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(64);
    request.encode(&mut bytes);
    match message::send(connection, &bytes, &[]) {
        // The reason is in the queue.
        Err(error) if is_gone(&error) => Ok(()),
        result => result,
    }
}

fn receive(connection: &OwnedFd, deadline: Instant) -> io::Result<(BrokerMessage, Vec<OwnedFd>)> {
    loop {
        match try_receive(connection) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            result => return result,
        }
        let mut fds = [PollFd::new(connection, PollFlags::IN)];
        if !poll::wait(&mut fds, Some(deadline))? {
            let text = "timed out: the broker does not reply";
            return Err(io::Error::new(io::ErrorKind::TimedOut, text));
        }
    }
}

fn try_receive(connection: &OwnedFd) -> io::Result<(BrokerMessage, Vec<OwnedFd>)> {
    let mut buffer = [0; MAX_MESSAGE];
    let mut receive = || message::recv_with_descriptors(connection, &mut buffer);
    // A broker that closes with a message unread makes this fail once, before what it sent is received.
    let received = match receive() {
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => receive(),
        received => received,
    };
    let received = match received {
        Ok(received) if received.len > 0 => received,
        Err(error) if !is_gone(&error) => return Err(error),
        _ => {
            let cause = "the broker went away".into();
            return Err(Refusal::Reset { cause }.into());
        }
    };
    if received.dropped_descriptors {
        return Err(io::Error::from_raw_os_error(libc::EMFILE));
    }
    let length = received.len;
    let decoded = BrokerMessage::decode(&buffer[..length]).map_err(|_| unexpected())?;
    Ok((decoded, received.descriptors))
}

fn is_gone(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset};
    matches!(error.kind(), BrokenPipe | ConnectionReset)
}

fn unexpected() -> io::Error {
    let text = "the broker violated the endpoint protocol: the reply does not match the request";
    io::Error::new(io::ErrorKind::InvalidData, text)
}

/// Whether an error says that the broker is older than the request.
fn is_older_broker(refusal: &Refusal) -> bool {
    matches!(refusal, Refusal::Reset { cause } if cause.contains(hvsock_endpoint::VIOLATION))
}
