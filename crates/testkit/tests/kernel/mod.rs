//! Streams, listeners and transports of the kernel, for the tests of the suite.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use hvsock_testkit::TempFolder;
use hvsock_testkit::conformance::{
    Listen, Listener, MakePair, PairWithProcess, Ready, Reset, Role, Stream, Transport,
};
use hvsock_testkit::process::Running;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::{Domain, SockAddr, Socket, Type};

/// Any stream socket of the kernel.
pub struct Kernel(pub Socket);

impl Stream for Kernel {
    fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        (&self.0).read(buffer)
    }

    fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        (&self.0).write(bytes)
    }

    fn shutdown_write(&self) -> io::Result<()> {
        self.0.shutdown(Shutdown::Write)
    }

    fn set_read_timeout(&self, timeout: Duration) -> io::Result<()> {
        self.0.set_read_timeout(Some(timeout))
    }

    fn set_write_timeout(&self, timeout: Duration) -> io::Result<()> {
        self.0.set_write_timeout(Some(timeout))
    }

    fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        self.0.set_nonblocking(nonblocking)
    }

    fn wait(&self, interest: Ready, timeout: Duration) -> io::Result<Ready> {
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::IN, interest.read);
        flags.set(PollFlags::OUT, interest.write);
        let found = ready(&self.0, flags, timeout)?;
        let broken = found.intersects(PollFlags::ERR | PollFlags::HUP);
        Ok(Ready {
            read: interest.read && (broken || found.contains(PollFlags::IN)),
            write: interest.write && (broken || found.contains(PollFlags::OUT)),
        })
    }
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

/// TCP over the loopback interface, which can be reset. Its backlog drops instead of refusing.
pub struct Tcp;

impl Transport for Tcp {
    type Stream = Kernel;

    fn name(&self) -> &'static str {
        "tcp"
    }

    fn pair(&self) -> io::Result<(Kernel, Kernel)> {
        let any: SocketAddr = (Ipv4Addr::LOCALHOST, 0).into();
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        listener.bind(&any.into())?;
        listener.listen(1)?;
        let near = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        near.connect(&listener.local_addr()?)?;
        let (far, _) = listener.accept()?;
        Ok((Kernel(near), Kernel(far)))
    }

    fn tells_death_from_end(&self) -> bool {
        false
    }

    fn reset(&self) -> Option<Reset<Self>> {
        Some(|_, stream| stream.0.set_linger(Some(Duration::ZERO)))
    }

    fn pair_with_process(&self) -> Option<PairWithProcess<Self>> {
        Some(|transport, role| with_process(transport.pair()?, role))
    }
}
