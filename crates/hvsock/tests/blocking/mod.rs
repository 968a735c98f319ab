//! Blocking streams for the conformance suite. The broker's run of the suite includes this file,
//! too.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::time::Duration;

use hvsock::{HvStream, Interest};
use hvsock_testkit::conformance::{Ready, Stream};

pub struct Blocking(pub HvStream);

impl Stream for Blocking {
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
        let wanted = match (interest.read, interest.write) {
            (true, true) => Interest::READABLE | Interest::WRITABLE,
            (false, true) => Interest::WRITABLE,
            _ => Interest::READABLE,
        };
        let ready = self.0.poll(wanted, Some(timeout))?;
        Ok(Ready {
            read: ready.is_readable(),
            write: ready.is_writable(),
        })
    }
}
