//! One end of a connection, as every transport has it, and the bounds that the suite sets.

use std::io;
use std::time::Duration;

/// Timeout of one read, write, wait or accept; the case fails after it.
pub const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// Timeout of one case, for transports that ignore their own timeouts.
pub const LONGEST_CASE: Duration = Duration::from_secs(180);
/// The most bytes that a transport may accept while the peer does not read.
pub const MOST_BUFFERED: usize = 64 << 20;

/// One end of a connection. Dropping it closes it: the peer reads all written data, then end of file.
pub trait Stream: Send + Sync + Sized + 'static {
    /// Reads like `std::io::Read`. `Ok(0)` is end of file.
    ///
    /// # Errors
    /// `TimedOut` or `WouldBlock`, `ConnectionReset` if the peer died or reset the stream, or another error.
    fn read(&self, buffer: &mut [u8]) -> io::Result<usize>;
    /// Writes like `std::io::Write`. `Ok(n)` means that exactly `n` bytes were accepted.
    ///
    /// # Errors
    /// `BrokenPipe` after a shutdown, `TimedOut` or `WouldBlock`, or an error that reports a dead peer.
    fn write(&self, bytes: &[u8]) -> io::Result<usize>;
    /// Shuts down writing (half-close). Reading still works.
    ///
    /// # Errors
    /// If the stream is closed.
    #[doc(alias = "half-close")]
    fn shutdown_write(&self) -> io::Result<()>;
    /// Sets the timeout of each read. A read that times out fails with `TimedOut` or `WouldBlock`, as
    /// with std's sockets.
    ///
    /// # Errors
    /// If the transport cannot set it.
    fn set_read_timeout(&self, timeout: Duration) -> io::Result<()>;
    /// Sets the timeout of each write, with the same errors.
    ///
    /// # Errors
    /// If the transport cannot set it.
    fn set_write_timeout(&self, timeout: Duration) -> io::Result<()>;
    /// Makes reads and writes fail with `WouldBlock` instead of waiting.
    ///
    /// # Errors
    /// If the transport cannot set it.
    fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()>;
    /// Waits, like `poll(2)`, until the stream is ready for something in `interest`. Returns
    /// [`Ready::NONE`] on timeout. End of file and errors count as readable.
    ///
    /// # Errors
    /// If the wait itself fails. A failed stream is readable instead.
    fn wait(&self, interest: Ready, timeout: Duration) -> io::Result<Ready>;
}

/// Readiness of a stream, or interest in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ready {
    /// A read would not block.
    pub read: bool,
    /// A write would not block.
    pub write: bool,
}

impl Ready {
    /// Neither.
    pub const NONE: Ready = Ready {
        read: false,
        write: false,
    };
    /// Reading only.
    pub const READ: Ready = Ready {
        read: true,
        write: false,
    };
    /// Writing only.
    pub const WRITE: Ready = Ready {
        read: false,
        write: true,
    };
    /// Both.
    pub const BOTH: Ready = Ready {
        read: true,
        write: true,
    };
}
