//! `connect`, and what comes of one that does not wait.
//!
//! The program's socket is connected to a socket of the broker, which only this request can know. A blocking call
//! does so when the broker has the peer. A non-blocking one does so at once, and fills the socket with bytes that
//! are no data, so that it is not writable. The broker takes them away when the connection is
//! established, which `poll` and `epoll` report as they do for any connect. When it is not, the socket hangs up, and
//! `SO_ERROR` has the reason.

use std::os::fd::{BorrowedFd, IntoRawFd, OwnedFd};
use std::time::Duration;

use hvsock::Refusal;
use hvsock_address::{HVSOCKET_CONNECT_TIMEOUT_MAX, SockAddrHv, VmId};
use hvsock_endpoint::{
    BrokerMessage, ClientMessage, Connect, Connected, Flags, MAX_FILLER, Transports,
};
use hvsock_interpose::model::{
    self, Address, ConnectStep, DescriptorFlags, Family, OptionAnswer, OwnCid,
};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::net::{SendFlags, SocketAddrUnix, sockopt};

use crate::abi::descriptor;
use crate::claim::claim;
use crate::endpoint::{self, Conversation, Failure};
use crate::name::Name;
use crate::partition::own;
use crate::record::{Control, Record};
use crate::replace;
use crate::socket::{Socket, cookie, errno, unix_socket};

/// The least kernel memory that one byte takes in a socket, in bytes.
const BYTE: usize = 512;
/// A Unix socket is writable while a quarter of its buffer is free.
const WRITABLE: usize = 4;
/// How long the broker may take to say why it closed a socket, or that it connected it.
const REASON: Duration = Duration::from_secs(2);

/// Answers `connect`.
pub fn connect(socket: &Socket<'_>, name: &Name) -> Result<(), Errno> {
    let nonblocking = rustix::fs::fcntl_getfl(socket.fd)?.contains(OFlags::NONBLOCK);
    let record = settled(socket)?;
    let is_idle = !record.socket.is_connecting() && !record.socket.is_connected();
    let renewed = match record.is_spent && is_idle {
        true => Some(renew(socket, nonblocking)?),
        false => None,
    };
    let socket = renewed.as_ref().unwrap_or(socket);
    let step = socket.update(|record| {
        let step = record.socket.connect(name.bytes(), nonblocking);
        if let Ok(ConnectStep::Start(target)) = step {
            record.target = Some(target);
        }
        step
    })?;
    match step.map_err(errno)? {
        ConnectStep::Wait => wait_for_result(socket),
        ConnectStep::Start(target) => {
            let started = start(socket, target, nonblocking);
            let result = started.map_err(|failure| of_connect(target.family(), &failure));
            match result {
                Ok(()) | Err(Errno::INPROGRESS) => {}
                Err(Errno::INTR) => socket.update(|record| record.socket.connect_cancelled())?,
                Err(error) => {
                    let error = model::Errno::new(error.raw_os_error());
                    socket.update(|record| record.socket.connect_failed(error, true))?;
                }
            }
            result
        }
    }
}

/// Connects a socket, or starts to, which is `EINPROGRESS`.
fn start(socket: &Socket<'_>, target: Address, nonblocking: bool) -> Result<(), Failure> {
    let own = own(target.family())?;
    let broker = Conversation::open()?;
    let address = resolve(&broker, target, own)?;
    broker.set_options(&socket.record.socket)?;
    let request = request(&socket.record, address);
    if !nonblocking {
        // Both at once: the answers come together, and this thread is woken for them once.
        broker.send_attach(0)?;
        broker.send(&request)?;
        let listener = broker.attachable()?;
        let connected = connected(broker.answer_of_peer()?.message)?;
        attach(socket, &listener)?;
        return Ok(establish(socket, target, connected.local)?);
    }
    let filler = filler(socket.fd)?;
    broker.send_attach(filler)?;
    let listener = broker.attachable()?;
    attach(socket, &listener)?;
    fill(socket.fd, filler)?;
    // The answer may come while this call is still under way, and another thread asks for it.
    let control = Control {
        fd: descriptor::number(broker.socket()),
        cookie: cookie(broker.socket()).ok_or(Errno::IO)?,
    };
    socket.update(|record| record.control = Some(control))?;
    let sent = broker.send(&request);
    // Whoever takes it from the record closes it.
    let _ = broker.into_socket().into_raw_fd();
    if let Err(failure) = sent {
        if let Some(control) = socket.update(|record| record.control.take())? {
            descriptor::close(control.fd);
        }
        return Err(failure);
    }
    Err(Errno::INPROGRESS.into())
}

/// Gives the program's descriptors a new open file, for a socket whose last connect failed: a Unix socket can be
/// connected once. The record goes with it.
fn renew<'a>(socket: &Socket<'a>, nonblocking: bool) -> Result<Socket<'a>, Errno> {
    let new = unix_socket(DescriptorFlags {
        nonblocking,
        close_on_exec: true,
    })?;
    let cookie = cookie(&new).ok_or(Errno::IO)?;
    let mut record = socket.update(|record| record.clone())?;
    (record.is_spent, record.control) = (false, None);
    socket.table().insert(cookie, &record);
    replace::socket(socket.fd, &new)?;
    if let Some(address) = record.socket.local() {
        // The old socket had it until now.
        let own = own(address.family())?;
        let _ = claim(socket.table(), socket.fd, address, own);
    }
    Socket::find(socket.table(), socket.fd).ok_or(Errno::BADF)
}

/// The address that the broker is asked for.
fn resolve(broker: &Conversation, target: Address, own: OwnCid) -> Result<SockAddrHv, Failure> {
    match target {
        Address::HyperV(address) => Ok(address),
        Address::Vsock(address) => {
            let partition = match own.well_known(address.cid) {
                Some(partition) => partition,
                None => broker.partition_of(address.cid)?,
            };
            Ok(SockAddrHv::new(partition, target.service()))
        }
    }
}

fn request(record: &Record, address: SockAddrHv) -> ClientMessage {
    let timeout = record.socket.connect_timeout().unwrap_or_default();
    // 0 is the broker's default.
    let most = Duration::from_millis(HVSOCKET_CONNECT_TIMEOUT_MAX.into());
    let timeout_ms = u32::try_from(timeout.min(most).as_millis()).unwrap_or(0);
    let timeout_ms = if timeout.is_zero() {
        0
    } else {
        timeout_ms.max(1)
    };
    ClientMessage::Connect(Connect {
        flags: Flags {
            raw_fd: true,
            ..Flags::default()
        },
        timeout_ms,
        transports: Transports::ATTACHED,
        address,
    })
}

fn connected(message: BrokerMessage) -> Result<Connected, Failure> {
    match message {
        BrokerMessage::Connected(connected) => Ok(connected),
        _ => Err(Errno::PROTO.into()),
    }
}

/// Connects the program's socket to the broker's.
fn attach(socket: &Socket<'_>, listener: &OwnedFd) -> Result<(), Errno> {
    let path = format!("/proc/thread-self/fd/{}", descriptor::number(listener));
    let address = SocketAddrUnix::new(path.as_str())?;
    match rustix::io::retry_on_intr(|| rustix::net::connect(socket.fd, &address)) {
        // The peer has ended the connection meanwhile.
        Err(Errno::CONNREFUSED) => return Err(Errno::CONNRESET),
        result => result?,
    }
    socket.update(|record| record.is_spent = true)
}

/// The number of bytes after which a socket is not writable.
fn filler(fd: BorrowedFd<'_>) -> Result<u32, Errno> {
    let buffer = sockopt::socket_send_buffer_size(fd)?;
    let bytes = buffer / WRITABLE / BYTE + 2;
    Ok(u32::try_from(bytes).unwrap_or(MAX_FILLER).min(MAX_FILLER))
}

/// Writes the bytes that make the socket not writable, each by a call of its own: a short message takes as much of
/// the buffer as 500 bytes do.
fn fill(fd: BorrowedFd<'_>, bytes: u32) -> Result<(), Errno> {
    for _ in 0..bytes {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        rustix::io::retry_on_intr(|| rustix::net::send(fd, &[0], flags))?;
    }
    Ok(())
}

/// Notes that the connection is established.
fn establish(socket: &Socket<'_>, target: Address, local: SockAddrHv) -> Result<(), Errno> {
    let family = target.family();
    let port = match socket.record.socket.local() {
        Some(Address::Vsock(local)) => local.port,
        _ => socket.table().ephemeral_port(),
    };
    let local = model::local_of(family, local, own(family)?, port);
    socket.update(|record| record.socket.connected(local, target))
}

/// The record of a socket, after the answer to its connect, if it has come. Does not wait for a peer.
pub fn settled(socket: &Socket<'_>) -> Result<Record, Errno> {
    if !socket.record.socket.is_connecting() {
        return Ok(socket.record.clone());
    }
    // One thread reads the answer. Others find a connect in progress meanwhile.
    let control = socket.update(|record| record.control.take())?;
    let (Some(control), Some(target)) = (control, socket.record.target) else {
        return socket.update(|record| record.clone());
    };
    let answer = descriptor::with(control.fd, |fd| {
        let is_ours = cookie(fd) == Some(control.cookie);
        is_ours.then(|| answer(socket.fd, fd))
    });
    let is_ours = answer.is_some();
    // The process that began the connect has the answer. For another one, the socket itself says that there is one.
    let result = answer.unwrap_or_else(|| answer_of_socket(socket.fd));
    let result = result.and_then(|connected| {
        let fallback = SockAddrHv::new(VmId::ZERO, target.service());
        Ok(establish(
            socket,
            target,
            connected.map_or(fallback, |connected| connected.local),
        )?)
    });
    let is_over = !matches!(result, Err(Failure::System(Errno::AGAIN)));
    match is_ours && is_over {
        true => descriptor::close(control.fd),
        false => socket.update(|record| record.control = Some(control))?,
    }
    match result {
        Err(failure) if is_over => {
            // What the kernel says about the bytes that the broker did not read is not the reason.
            let _ = sockopt::socket_error(socket.fd);
            let error = of_connect(target.family(), &failure).raw_os_error();
            socket.update(|record| {
                record
                    .socket
                    .connect_failed(model::Errno::new(error), false);
            })?;
        }
        _ => {}
    }
    socket.update(|record| record.clone())
}

/// The broker's answer to a connect, or `EAGAIN`.
fn answer(socket: BorrowedFd<'_>, control: BorrowedFd<'_>) -> Result<Option<Connected>, Failure> {
    loop {
        match endpoint::receive(control) {
            // What the socket shows is said first there, and then by a message.
            Err(Failure::System(Errno::AGAIN)) if state(socket)? != State::Waiting => {
                match endpoint::wait(control, PollFlags::IN, Some(REASON)) {
                    Ok(true) | Err(Errno::INTR) => {}
                    Ok(false) => return Err(Errno::CONNRESET.into()),
                    Err(error) => return Err(error.into()),
                }
            }
            answer => return connected(answer?.message).map(Some),
        }
    }
}

/// As much of the answer as the program's socket says.
fn answer_of_socket(socket: BorrowedFd<'_>) -> Result<Option<Connected>, Failure> {
    match state(socket)? {
        State::Waiting => Err(Errno::AGAIN.into()),
        State::Writable => Ok(None),
        State::Closed => Err(Errno::CONNRESET.into()),
    }
}

/// What a socket that is connecting shows.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// It is full of bytes that are no data.
    Waiting,
    /// The broker has taken them away.
    Writable,
    /// The broker has closed its end.
    Closed,
}

fn state(fd: BorrowedFd<'_>) -> Result<State, Errno> {
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::OUT)];
    let ready =
        rustix::io::retry_on_intr(|| rustix::event::poll(&mut fds, Some(&Timespec::default())))?;
    let events = fds
        .iter()
        .fold(PollFlags::empty(), |all, fd| all | fd.revents());
    Ok(match ready {
        0 => State::Waiting,
        _ if events.intersects(PollFlags::HUP | PollFlags::ERR) => State::Closed,
        _ => State::Writable,
    })
}

/// A blocking connect on a socket that is connecting: waits for the end of that.
fn wait_for_result(socket: &Socket<'_>) -> Result<(), Errno> {
    loop {
        let record = settled(socket)?;
        if !record.socket.is_connecting() {
            return match socket
                .update(|record| record.socket.option(libc::SOL_SOCKET, libc::SO_ERROR, 4))?
            {
                OptionAnswer::Value(bytes) => match bytes.first_chunk() {
                    Some(bytes) => Err(Errno::from_raw_os_error(i32::from_ne_bytes(*bytes))),
                    None => Err(Errno::IO),
                },
                _ => Ok(()),
            };
        }
        endpoint::wait(socket.fd, PollFlags::OUT, None)?;
    }
}

/// Gives up the answer to a connect, since the program closes its socket.
pub fn abandon(socket: &Socket<'_>) {
    let Some(control) = socket.record.control else {
        return;
    };
    if socket.record.socket.is_connecting() && replace::is_duplicated(socket.fd) {
        return;
    }
    let is_ours = descriptor::with(control.fd, |fd| Some(cookie(fd) == Some(control.cookie)));
    if is_ours == Some(true) {
        descriptor::close(control.fd);
    }
}

/// What a connect fails with.
fn of_connect(family: Family, failure: &Failure) -> Errno {
    match failure {
        Failure::System(error) => *error,
        Failure::Refused(refused) => {
            let refusal = Refusal::from_wire(refused.code, &refused.detail);
            errno(model::Errno::of_connect(family, &refusal))
        }
    }
}
