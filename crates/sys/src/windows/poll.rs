//! Waiting for sockets, with a bound.
//!
//! By `select`, not by `WSAPoll`: before Windows 10 2004 `WSAPoll` never told that a connect had
//! failed (its documentation says so), and it goes on telling of the end of the other side's
//! data where it was asked for room to write, so that who waits for room would spin.
//!
//! Only of a **non-blocking** socket does the system say whether there is room to write: a
//! blocking one it calls writable always.

use std::io;
use std::os::windows::io::{AsSocket, BorrowedSocket};
use std::time::{Duration, Instant};

use windows_sys::Win32::Networking::WinSock as winsock;
use windows_sys::Win32::Networking::WinSock::{FD_SET, SOCKET, TIMEVAL};

use super::socket::{check, raw};

/// How many sockets one [`wait`] takes.
pub const MAX_SOCKETS: usize = 64;

/// The longest single wait; longer ones are several.
const SLICE: Duration = Duration::from_secs(3600);

/// What a socket is ready for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PollFlags(u8);

impl PollFlags {
    /// Receiving gives bytes, the end or an error; accepting gives a connection.
    pub const IN: Self = Self(1);
    /// There is room to send, or sending gives an error; connecting has succeeded.
    pub const OUT: Self = Self(2);
    /// Connecting has failed. It need not be asked for.
    pub const ERR: Self = Self(4);
    /// Never told of here: the end of a connection is [`IN`](Self::IN).
    pub const HUP: Self = Self(8);

    /// None of them.
    pub const fn empty() -> Self {
        Self(0)
    }

    /// Whether it is none of them.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether all of `flags` are in it.
    pub const fn contains(self, flags: Self) -> bool {
        self.0 & flags.0 == flags.0
    }

    /// Whether any of `flags` is in it.
    pub const fn intersects(self, flags: Self) -> bool {
        self.0 & flags.0 != 0
    }

    /// Puts `flags` in or takes them out.
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

/// A socket to wait for, what for, and what it is found to be ready for.
#[derive(Debug)]
pub struct PollFd<'a> {
    socket: BorrowedSocket<'a>,
    asked: PollFlags,
    found: PollFlags,
}

impl<'a> PollFd<'a> {
    /// Waits for `socket` to be ready for `flags`.
    pub fn new(socket: &'a impl AsSocket, flags: PollFlags) -> Self {
        Self {
            socket: socket.as_socket(),
            asked: flags,
            found: PollFlags::empty(),
        }
    }

    /// What the socket was ready for at the last [`wait`].
    pub fn revents(&self) -> PollFlags {
        self.found
    }
}

/// Waits until one of `fds` is ready and returns true, or until `deadline` (for ever if `None`)
/// and returns false. A deadline in the past looks once and does not wait. None to wait for, or
/// more than [`MAX_SOCKETS`], is `InvalidInput`.
pub fn wait(fds: &mut [PollFd<'_>], deadline: Option<Instant>) -> io::Result<bool> {
    if fds.is_empty() || fds.len() > MAX_SOCKETS {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if look(fds, left.map_or(SLICE, |left| left.min(SLICE)))? {
            return Ok(true);
        }
        // Once more past the deadline, so that it is looked at after it and not just before.
        if left.is_some_and(|left| left.is_zero()) {
            return Ok(false);
        }
    }
}

/// Waits once, for `time` at the most.
fn look(fds: &mut [PollFd<'_>], time: Duration) -> io::Result<bool> {
    let mut readable = FD_SET::default();
    let mut writable = FD_SET::default();
    let mut failed = FD_SET::default();
    for fd in &*fds {
        let socket = raw(&fd.socket);
        if fd.asked.contains(PollFlags::IN) {
            add(&mut readable, socket);
        }
        if fd.asked.contains(PollFlags::OUT) {
            add(&mut writable, socket);
        }
        add(&mut failed, socket);
    }
    // Up to the next microsecond: a wait of less than one would be a look.
    let micros = time.as_nanos().div_ceil(1000);
    let time = TIMEVAL {
        tv_sec: (micros / 1_000_000) as i32,
        tv_usec: (micros % 1_000_000) as i32,
    };
    // SAFETY: the call reads and writes the three sets, of which each says how many of its sockets
    // it uses, and reads the time. The sockets are borrowed, so they are open.
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
    // There are no more sockets than room for them.
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
    fn who_waits_for_room_is_not_woken_by_the_other_ends_end() {
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
    fn none_and_too_many_are_refused() {
        assert!(wait(&mut [], None).is_err());
        let socket = tcp::new();
        let mut fds: Vec<_> = (0..=MAX_SOCKETS)
            .map(|_| PollFd::new(&socket, PollFlags::IN))
            .collect();
        let error = wait(&mut fds, None).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
