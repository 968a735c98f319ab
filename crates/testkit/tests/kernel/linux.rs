//! The Linux half of these tests: Unix sockets, and waiting by `poll(2)`.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use hvsock_testkit::TempFolder;
use hvsock_testkit::conformance::{
    Listen, Listener, MakePair, PairWithProcess, Ready, Reset, Role, Transport, Trial, trials,
};
use hvsock_testkit::process::Running;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::{Domain, SockAddr, Socket, Type};

use super::{Kernel, Tcp};

/// The cases of all transports.
pub fn all() -> Vec<Trial> {
    let mut all = trials(Unix);
    all.extend(trials(Tcp));
    all
}

/// The stream of a peer process: its stdin.
pub fn stream_of_this_process() -> io::Result<Kernel> {
    Ok(Kernel(Socket::from(rustix::io::dup(io::stdin())?)))
}

/// Waits for the readiness of a socket.
pub fn wait(socket: &Socket, interest: Ready, timeout: Duration) -> io::Result<Ready> {
    let mut flags = PollFlags::empty();
    flags.set(PollFlags::IN, interest.read);
    flags.set(PollFlags::OUT, interest.write);
    let found = ready(socket, flags, timeout)?;
    let broken = found.intersects(PollFlags::ERR | PollFlags::HUP);
    Ok(Ready {
        read: interest.read && (broken || found.contains(PollFlags::IN)),
        write: interest.write && (broken || found.contains(PollFlags::OUT)),
    })
}

fn ready(socket: &Socket, flags: PollFlags, timeout: Duration) -> io::Result<PollFlags> {
    let mut sockets = [PollFd::new(socket, flags)];
    let timeout = Timespec::try_from(timeout).map_err(io::Error::other)?;
    poll(&mut sockets, Some(&timeout))?;
    Ok(sockets[0].revents())
}

fn with_process((local, peer): (Kernel, Kernel), role: Role) -> io::Result<(Kernel, Running)> {
    let mut command = role.command()?;
    // Dropping the command closes this process's copy of the descriptor.
    command.stdin(OwnedFd::from(peer.0));
    Ok((local, Running::start(&mut command)?))
}

/// The standard library maps all errors of Linux.
pub fn os_error(error: io::Error) -> io::Error {
    error
}

/// A close with `SO_LINGER` of zero is a reset.
pub const TCP_RESET: Option<Reset<Tcp>> =
    Some(|_, stream| stream.0.set_linger(Some(Duration::ZERO)));

/// The peer process gets its end of the TCP connection as stdin.
pub const TCP_WITH_PROCESS: Option<PairWithProcess<Tcp>> =
    Some(|transport, role| with_process(transport.pair()?, role));

/// Unix sockets. A reader cannot distinguish a killed peer from one that closed its stream.
pub struct Unix;

impl Transport for Unix {
    type Stream = Kernel;

    fn name(&self) -> &'static str {
        "unix"
    }

    fn pair(&self) -> io::Result<(Kernel, Kernel)> {
        let (local, peer) = Socket::pair(Domain::UNIX, Type::STREAM, None)?;
        Ok((Kernel(local), Kernel(peer)))
    }

    fn distinguishes_death_from_eof(&self) -> bool {
        false
    }

    fn small_pair(&self) -> Option<MakePair<Self>> {
        Some(|transport| {
            let (local, peer) = transport.pair()?;
            for end in [&local, &peer] {
                // The kernel raises this to its minimum.
                end.0.set_send_buffer_size(1)?;
            }
            Ok((local, peer))
        })
    }

    fn listen(&self) -> Option<Listen<Self>> {
        Some(|_, backlog| {
            let folder = TempFolder::new();
            let path = folder.join("socket");
            let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
            socket.bind(&SockAddr::unix(&path)?)?;
            socket.listen(i32::try_from(backlog).map_err(io::Error::other)?)?;
            socket.set_nonblocking(true)?;
            Ok(Box::new(UnixListener {
                socket,
                path,
                _folder: folder,
            }))
        })
    }

    fn pair_with_process(&self) -> Option<PairWithProcess<Self>> {
        Some(|transport, role| with_process(transport.pair()?, role))
    }
}

struct UnixListener {
    socket: Socket,
    path: PathBuf,
    _folder: TempFolder,
}

impl Listener<Kernel> for UnixListener {
    fn connect(&self) -> io::Result<Kernel> {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        // With a full backlog a blocking connect would wait; a nonblocking one fails with EAGAIN.
        socket.set_nonblocking(true)?;
        match socket.connect(&SockAddr::unix(&self.path)?) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                Err(io::ErrorKind::ConnectionRefused.into())
            }
            connected => connected.and_then(|()| socket.set_nonblocking(false)),
        }?;
        Ok(Kernel(socket))
    }

    fn accept(&self, timeout: Duration) -> io::Result<Kernel> {
        ready(&self.socket, PollFlags::IN, timeout)?;
        let (socket, _) = self.socket.accept()?;
        socket.set_nonblocking(false)?;
        Ok(Kernel(socket))
    }
}
