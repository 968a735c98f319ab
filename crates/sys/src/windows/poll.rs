//! Waiting for sockets, with a deadline.
//!
//! This uses `select`, not `WSAPoll`. Before Windows 10 2004 `WSAPoll` did not report a failed connect (as
//! documented). It also reports the end of the peer's data when only writability was requested, so that a
//! writer that waits for free space would spin.
//!
//! Writability is meaningful only for a **non-blocking** socket: the system always reports a blocking one
//! as writable.

use std::io;
use std::os::windows::io::{AsSocket, BorrowedSocket};
use std::time::{Duration, Instant};

use windows_sys::Win32::Networking::WinSock as winsock;
use windows_sys::Win32::Networking::WinSock::{FD_SET, SOCKET, TIMEVAL};

use super::winsock_call::{check, raw};

/// Maximum number of sockets in one [`wait`].
pub const MAX_SOCKETS: usize = 64;

/// Maximum time of one `select`; longer waits repeat it.
const SLICE: Duration = Duration::from_secs(3600);

/// Readiness of a socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PollFlags(u8);

impl PollFlags {
    /// Readable: receiving returns bytes, the end or an error; accepting returns a connection.
    pub const IN: Self = Self(1);
    /// Writable: there is free space to send, or sending returns an error; or a connect has succeeded.
    pub const OUT: Self = Self(2);
    /// A connect has failed. Always reported.
    pub const ERR: Self = Self(4);
    /// Never reported on Windows: the end of a connection is [`IN`](Self::IN).
    pub const HUP: Self = Self(8);

    /// No flags.
    pub const fn empty() -> Self {
        Self(0)
    }

    /// Whether no flag is set.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether all of `flags` are set.
    pub const fn contains(self, flags: Self) -> bool {
        self.0 & flags.0 == flags.0
    }

    /// Whether any of `flags` is set.
    pub const fn intersects(self, flags: Self) -> bool {
        self.0 & flags.0 != 0
    }

    /// Sets or clears `flags`.
    pub fn set(&mut self, flags: Self, on: bool) {
        self.0 = match on {
            true => self.0 | flags.0,
            false => self.0 & !flags.0,
        };
    }
}

impl std::ops::BitOr for PollFlags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// A socket to wait for, the requested readiness, and the readiness found.
#[derive(Debug)]
pub struct PollFd<'a> {
    socket: BorrowedSocket<'a>,
    requested: PollFlags,
    found: PollFlags,
}

impl<'a> PollFd<'a> {
    /// Waits for `socket` to be ready for `flags`.
    pub fn new(socket: &'a impl AsSocket, flags: PollFlags) -> Self {
        Self {
            socket: socket.as_socket(),
            requested: flags,
            found: PollFlags::empty(),
        }
    }

    /// What the socket was ready for at the last [`wait`].
    pub fn revents(&self) -> PollFlags {
        self.found
    }
}

/// Waits until one of `fds` is ready, and returns `true`, or until `deadline` (for ever if `None`), and
/// returns `false`. With a deadline in the past it polls once and does not wait.
///
/// # Errors
///
/// `InvalidInput` if `fds` is empty or longer than [`MAX_SOCKETS`]; those of `select`.
pub fn wait(fds: &mut [PollFd<'_>], deadline: Option<Instant>) -> io::Result<bool> {
    if fds.is_empty() || fds.len() > MAX_SOCKETS {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if select_once(fds, left.map_or(SLICE, |left| left.min(SLICE)))? {
            return Ok(true);
        }
        // Polls once more after the deadline, so that readiness at the deadline is reported.
        if left.is_some_and(|left| left.is_zero()) {
            return Ok(false);
        }
    }
}

/// Calls `select` once, for at most `time`.
fn select_once(fds: &mut [PollFd<'_>], time: Duration) -> io::Result<bool> {
    let mut readable = FD_SET::default();
    let mut writable = FD_SET::default();
    let mut failed = FD_SET::default();
    for fd in &*fds {
        let socket = raw(&fd.socket);
        if fd.requested.contains(PollFlags::IN) {
            add(&mut readable, socket);
        }
        if fd.requested.contains(PollFlags::OUT) {
            add(&mut writable, socket);
        }
        add(&mut failed, socket);
    }
    // Rounded up to a microsecond: 0 would not wait.
    let micros = time.as_nanos().div_ceil(1000);
    let time = TIMEVAL {
        tv_sec: (micros / 1_000_000) as i32,
        tv_usec: (micros % 1_000_000) as i32,
    };
    // SAFETY: the call reads and writes the three sets, which contain their lengths, and reads the
    // time. The sockets are borrowed, so they are open.
    let found = unsafe {
        winsock::select(
            0,
            &mut readable,
            &mut writable,
            &mut failed,
            &raw const time,
        )
    };
    check(found)?;
    for fd in &mut *fds {
        let socket = raw(&fd.socket);
        fd.found = PollFlags::empty();
        fd.found.set(PollFlags::IN, has(&readable, socket));
        fd.found.set(PollFlags::OUT, has(&writable, socket));
        fd.found.set(PollFlags::ERR, has(&failed, socket));
    }
    Ok(fds.iter().any(|fd| !fd.found.is_empty()))
}

fn add(set: &mut FD_SET, socket: SOCKET) {
    // `wait` has checked that the set has a free slot.
    set.fd_array[set.fd_count as usize] = socket;
    set.fd_count += 1;
}

fn has(set: &FD_SET, socket: SOCKET) -> bool {
    set.fd_array
        .iter()
        .take(set.fd_count as usize)
        .any(|&found| found == socket)
}

#[cfg(test)]
mod tests {
    use super::super::{stream, tcp};
    use super::*;

    #[test]
    fn a_wait_ends_at_its_deadline_or_when_a_socket_is_ready() {
        let (a, b) = tcp::pair();
        let start = Instant::now();
        let deadline = start + Duration::from_millis(20);
        let mut fds = [PollFd::new(&a, PollFlags::IN)];
        assert!(!wait(&mut fds, Some(deadline)).unwrap());
        assert!(start.elapsed() >= Duration::from_millis(20));
        stream::send(&b, b"x").unwrap();
        assert!(wait(&mut fds, Some(tcp::soon())).unwrap());
        assert!(wait(&mut fds, Some(start)).unwrap());
        assert!(wait(&mut fds, None).unwrap());
        assert_eq!(fds[0].revents(), PollFlags::IN);
    }

    #[test]
    fn a_writer_waiting_for_free_space_is_not_woken_by_the_peers_half_close() {
        let (a, b) = tcp::pair();
        while stream::send(&a, &[0; 65_536]).is_ok() {}
        stream::shutdown(&b, std::net::Shutdown::Write).unwrap();
        let mut fds = [PollFd::new(&a, PollFlags::IN)];
        assert!(wait(&mut fds, Some(tcp::soon())).unwrap());
        let mut fds = [PollFd::new(&a, PollFlags::OUT)];
        let deadline = Instant::now() + Duration::from_millis(50);
        assert!(!wait(&mut fds, Some(deadline)).unwrap());
        assert!(fds[0].revents().is_empty());
    }

    #[test]
    fn each_socket_has_its_own_readiness() {
        let (a, b) = tcp::pair();
        let (c, _d) = tcp::pair();
        stream::send(&b, b"x").unwrap();
        let both = PollFlags::IN | PollFlags::OUT;
        let mut fds = [PollFd::new(&a, both), PollFd::new(&c, PollFlags::IN)];
        assert!(wait(&mut fds, Some(tcp::soon())).unwrap());
        assert_eq!(fds[0].revents(), both);
        assert!(fds[1].revents().is_empty());
    }

    #[test]
    fn no_sockets_and_too_many_are_refused() {
        assert!(wait(&mut [], None).is_err());
        let socket = tcp::new();
        let mut fds: Vec<_> = (0..=MAX_SOCKETS)
            .map(|_| PollFd::new(&socket, PollFlags::IN))
            .collect();
        let error = wait(&mut fds, None).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
