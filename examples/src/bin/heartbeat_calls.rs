//! The guest half of the service in docs/tutorial.md, written with the calls of WinSock. A program for
//! Windows can be ported call by call.

use std::io::{self, Write};
use std::net::Shutdown;
use std::time::Duration;

use hvsock::{AF_HYPERV, HV_PROTOCOL_RAW, SOCK_STREAM};
use hvsock::{HvSocket, Interest, ServiceId, SockAddrHv, SocketOption, VmId};

/// Timeout of each wait for a reply.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

fn main() -> io::Result<()> {
    let service: ServiceId = std::env::args()
        .nth(1)
        .and_then(|guid| guid.parse().ok())
        .ok_or_else(|| io::Error::other("usage: heartbeat_calls SERVICE-GUID"))?;

    let mut socket = HvSocket::new(AF_HYPERV, SOCK_STREAM, HV_PROTOCOL_RAW)?;
    socket.set_option(SocketOption::ConnectTimeout, 1000)?;
    socket.set_option(SocketOption::ConnectedSuspend, 1)?;
    socket.connect(SockAddrHv::new(VmId::PARENT, service))?;
    socket.send(b"beat by calls\n")?;
    socket.shutdown(Shutdown::Write)?;

    let mut replies = Vec::new();
    let mut buffer = [0; 512];
    while socket
        .poll(Interest::READABLE, Some(READ_TIMEOUT))?
        .is_readable()
    {
        match socket.recv(&mut buffer)? {
            0 => return io::stdout().write_all(&replies),
            count => replies.extend_from_slice(&buffer[..count]),
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}
