//! What these tests do on Linux only, and how they wait there.

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

/// Every kind of transport.
pub fn all() -> Vec<Trial> {
    let mut all = trials(Unix);
    all.extend(trials(Tcp));
    all
}

/// The stream that a process was given which plays a role.
pub fn stream_of_this_process() -> io::Result<Kernel> {
    Ok(Kernel(Socket::from(rustix::io::dup(io::stdin())?)))
}

/// Waits for a socket.
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

fn with_process((near, far): (Kernel, Kernel), role: Role) -> io::Result<(Kernel, Running)> {
    let mut command = role.command()?;
    // The command, and with it this process's copy of the descriptor, goes away here.
    command.stdin(OwnedFd::from(far.0));
    Ok((near, Running::start(&mut command)?))
}

/// The standard library knows what the kernel says.
pub fn os_error(error: io::Error) -> io::Error {
    error
}

/// A close without lingering is a reset.
pub const TCP_RESET: Option<Reset<Tcp>> =
    Some(|_, stream| stream.0.set_linger(Some(Duration::ZERO)));

/// A TCP connection with another process is handed to it as its stdin.
pub const TCP_WITH_PROCESS: Option<PairWithProcess<Tcp>> =
    Some(|transport, role| with_process(transport.pair()?, role));

/// Unix sockets. An end of file looks the same whether the peer made it or was killed.
pub struct Unix;

impl Transport for Unix {
    type Stream = Kernel;

    fn name(&self) -> &'static str {
        "unix"
    }

    fn pair(&self) -> io::Result<(Kernel, Kernel)> {
        let (near, far) = Socket::pair(Domain::UNIX, Type::STREAM, None)?;
        Ok((Kernel(near), Kernel(far)))
    }

    fn tells_death_from_end(&self) -> bool {
        false
    }

    fn small_pair(&self) -> Option<MakePair<Self>> {
        Some(|transport| {
            let (near, far) = transport.pair()?;
            for end in [&near, &far] {
                // The kernel takes the least that it can do with.
                end.0.set_send_buffer_size(1)?;
            }
            Ok((near, far))
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
        // Blocking, a connect to a full backlog would wait; here it fails with EAGAIN.
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
