//! The kernel's sockets as streams, listeners and transports, to test the suite.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(windows)]
mod windows;

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr};
use std::time::Duration;

use hvsock_testkit::conformance::{PairWithProcess, Ready, Reset, Stream, Transport};
use socket2::{Domain, Socket, Type};

#[cfg(target_os = "linux")]
pub use linux::*;
#[cfg(windows)]
pub use windows::*;

/// A stream socket of the kernel.
pub struct Kernel(pub Socket);

impl Stream for Kernel {
    fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        (&self.0).read(buffer)
    }

    fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        (&self.0).write(bytes).map_err(os_error)
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
        wait(&self.0, interest, timeout)
    }
}

/// TCP over the loopback interface. It supports resets. A full backlog drops connections instead of
/// refusing them.
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
        let local = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        local.connect(&listener.local_addr()?)?;
        let (peer, _) = listener.accept()?;
        Ok((Kernel(local), Kernel(peer)))
    }

    fn distinguishes_death_from_eof(&self) -> bool {
        false
    }

    fn reset(&self) -> Option<Reset<Self>> {
        TCP_RESET
    }

    fn pair_with_process(&self) -> Option<PairWithProcess<Self>> {
        TCP_WITH_PROCESS
    }
}
