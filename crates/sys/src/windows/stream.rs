//! Sending and receiving on stream sockets.
//!
//! No call blocks; on a socket that is not ready it fails with `WouldBlock`. [`until`] waits with a
//! deadline.
//!
//! Errors are mapped to those of Linux:
//!
//! | Winsock | result |
//! |---|---|
//! | `WSAESHUTDOWN` from receiving | 0, the end |
//! | `WSAESHUTDOWN` from sending | `BrokenPipe` |
//! | `WSAECONNRESET`, `WSAECONNABORTED`, `WSAENETRESET` | `ConnectionReset` |
//! | a passed deadline | `WouldBlock` from [`until`], never `WSAETIMEDOUT` |
//! | `WSAEINTR` | unchanged: a call that does not block is not interrupted |

use std::io::{self, IoSlice, IoSliceMut};
use std::net::Shutdown;
use std::os::windows::io::{AsSocket, BorrowedSocket};
use std::ptr;
use std::time::Instant;

use windows_sys::Win32::Networking::WinSock as winsock;
use windows_sys::Win32::Networking::WinSock::WSABUF;

use super::errno;
use super::poll::{self, PollFd, PollFlags};
use super::socket::set_option;
use super::winsock_call::{check, last_error, raw};

/// Maximum bytes in one send. The system accepts or refuses a non-blocking send as a whole and copies its
/// bytes; a large one may fail with `WSAENOBUFS` (`send` in Microsoft's documentation of Winsock).
const MAX_SEND: usize = 1 << 20;

/// Maximum slices in one call.
const MAX_SLICES: usize = 1024;

/// Repeats `call` while it fails with `WouldBlock`, each time after waiting for the readiness `flags` of
/// `socket`, until `deadline` (for ever if `None`).
///
/// # Errors
///
/// `WouldBlock` after the deadline; any other error of `call` or [`poll::wait`].
pub fn until<T>(
    socket: impl AsSocket,
    flags: PollFlags,
    deadline: Option<Instant>,
    mut call: impl FnMut() -> io::Result<T>,
) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if !poll::wait(&mut [PollFd::new(&socket, flags)], deadline)? {
                    return Err(error);
                }
            }
            result => return result,
        }
    }
}

/// Sends `bytes`, or the first part of them. Returns the number of bytes sent.
///
/// # Errors
///
/// `WouldBlock` if the socket's buffer is full; `BrokenPipe` if this side has shut down sending;
/// `ConnectionReset` after a reset.
pub fn send(socket: impl AsSocket, bytes: &[u8]) -> io::Result<usize> {
    let bytes = &bytes[..bytes.len().min(MAX_SEND)];
    // SAFETY: the call reads as many bytes as the slice has.
    let sent = unsafe {
        let len = bytes.len() as i32;
        winsock::send(raw(&socket.as_socket()), bytes.as_ptr(), len, 0)
    };
    check(sent).map_err(map_send_error)?;
    Ok(sent as usize)
}

/// Sends the bytes of `slices`, in order, or the first part of them. Returns the number of bytes sent.
///
/// # Errors
///
/// `WouldBlock` if the socket's buffer is full; `BrokenPipe` if this side has shut down sending;
/// `ConnectionReset` after a reset.
pub fn send_vectored(socket: impl AsSocket, slices: &[IoSlice<'_>]) -> io::Result<usize> {
    let mut total = 0;
    let fitting = slices.iter().take(MAX_SLICES).take_while(|slice| {
        total += slice.len();
        total <= MAX_SEND
    });
    let count = match fitting.count() {
        0 => return send(socket, slices.first().map_or(&[], |first| first)),
        count => count,
    };
    let buffers: *const WSABUF = slices.as_ptr().cast();
    let (socket, mut sent) = (socket.as_socket(), 0);
    // SAFETY: std guarantees that an `IoSlice` is a `WSABUF`. The call reads `count` of them and the
    // bytes they point to. It is not overlapped, so it is finished when it returns.
    check(unsafe {
        let count = count as u32;
        winsock::WSASend(
            raw(&socket),
            buffers,
            count,
            &mut sent,
            0,
            ptr::null_mut(),
            None,
        )
    })
    .map_err(map_send_error)?;
    Ok(sent as usize)
}

/// Receives the available bytes. Returns their number; 0 at the end of the stream.
///
/// # Errors
///
/// `WouldBlock` if there is no data; `ConnectionReset` after a reset.
pub fn recv(socket: impl AsSocket, buffer: &mut [u8]) -> io::Result<usize> {
    receive(socket.as_socket(), buffer, 0)
}

/// Receives the available bytes into several buffers, in order, as [`recv`].
///
/// # Errors
///
/// `WouldBlock` if there is no data; `ConnectionReset` after a reset.
pub fn recv_vectored(socket: impl AsSocket, slices: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
    let count = slices.len().min(MAX_SLICES) as u32;
    let buffers: *const WSABUF = slices.as_mut_ptr().cast();
    let (socket, mut received, mut flags) = (socket.as_socket(), 0, 0);
    // SAFETY: std guarantees that an `IoSliceMut` is a `WSABUF`. The call reads `count` of them and
    // writes where they point, which is exclusively borrowed. It is not overlapped, so it is finished
    // when it returns.
    let result = check(unsafe {
        let (socket, none) = (raw(&socket), ptr::null_mut());
        winsock::WSARecv(
            socket,
            buffers,
            count,
            &mut received,
            &mut flags,
            none,
            None,
        )
    });
    match result {
        Ok(()) => Ok(received as usize),
        Err(error) => map_recv_error(error),
    }
}

/// Copies the available bytes without consuming them (`MSG_PEEK`).
///
/// # Errors
///
/// `WouldBlock` if there is no data; `ConnectionReset` after a reset.
pub fn peek(socket: impl AsSocket, buffer: &mut [u8]) -> io::Result<usize> {
    receive(socket.as_socket(), buffer, winsock::MSG_PEEK)
}

/// Shuts down one or both directions, for all duplicates of the socket.
///
/// # Errors
///
/// `NotConnected` if the socket is not connected.
#[doc(alias = "half-close")]
pub fn shutdown(socket: impl AsSocket, how: Shutdown) -> io::Result<()> {
    let how = match how {
        Shutdown::Read => winsock::SD_RECEIVE,
        Shutdown::Write => winsock::SD_SEND,
        Shutdown::Both => winsock::SD_BOTH,
    };
    // SAFETY: all arguments are numbers.
    check(unsafe { winsock::shutdown(raw(&socket.as_socket()), how) })
}

/// Makes closing the socket a reset for the peer, which discards data in flight (`SO_LINGER` with a time of
/// 0).
///
/// # Errors
///
/// Those of `setsockopt`.
#[doc(alias = "SO_LINGER")]
pub fn reset_on_close(socket: impl AsSocket) -> io::Result<()> {
    // A `LINGER`: on, 0 seconds.
    let linger = [1u16, 0];
    let (level, name) = (winsock::SOL_SOCKET, winsock::SO_LINGER);
    set_option(socket.as_socket(), level, name, linger)
}

fn receive(socket: BorrowedSocket<'_>, buffer: &mut [u8], flags: i32) -> io::Result<usize> {
    let len = i32::try_from(buffer.len()).unwrap_or(i32::MAX);
    // SAFETY: the call writes at most `len` bytes, and the buffer has at least as many.
    match unsafe { winsock::recv(raw(&socket), buffer.as_mut_ptr(), len, flags) } {
        winsock::SOCKET_ERROR => map_recv_error(last_error()),
        received => Ok(received as usize),
    }
}

fn map_recv_error(error: io::Error) -> io::Result<usize> {
    match error.raw_os_error() {
        Some(errno::EPIPE) => Ok(0),
        _ => Err(map_reset(error)),
    }
}

fn map_send_error(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(errno::EPIPE) => io::ErrorKind::BrokenPipe.into(),
        _ => map_reset(error),
    }
}

/// Maps all errors of a lost connection to `ECONNRESET`.
fn map_reset(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(errno::ECONNABORTED | winsock::WSAENETRESET) => {
            io::Error::from_raw_os_error(errno::ECONNRESET)
        }
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use std::os::windows::io::OwnedSocket;
    use std::time::Duration;

    use super::super::tcp;
    use super::*;

    fn receive_soon(socket: &OwnedSocket, buffer: &mut [u8]) -> io::Result<usize> {
        until(socket, PollFlags::IN, Some(tcp::soon()), || {
            recv(socket, buffer)
        })
    }

    #[test]
    fn bytes_flow_both_ways_and_one_way_is_half_closed() {
        let (a, b) = tcp::pair();
        let out = [IoSlice::new(b"ab"), IoSlice::new(b"cd")];
        assert_eq!(send_vectored(&a, &out).unwrap(), 4);
        shutdown(&a, Shutdown::Write).unwrap();
        let mut two = [0; 2];
        let peeked = until(&b, PollFlags::IN, Some(tcp::soon()), || peek(&b, &mut two));
        assert_eq!(peeked.unwrap(), 2);
        let (mut x, mut y) = ([0; 1], [0; 8]);
        let mut into = [IoSliceMut::new(&mut x), IoSliceMut::new(&mut y)];
        assert_eq!(recv_vectored(&b, &mut into).unwrap(), 4);
        assert_eq!((&x, &y[..3]), (b"a", &b"bcd"[..]));
        assert_eq!(receive_soon(&b, &mut y).unwrap(), 0);
        assert_eq!(send(&b, b"back").unwrap(), 4);
        assert_eq!(receive_soon(&a, &mut y).unwrap(), 4);
        let error = send(&a, b"x").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
        let error = send_vectored(&a, &[IoSlice::new(b"x")]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn a_receive_after_its_shutdown_is_the_end() {
        let (a, _b) = tcp::pair();
        shutdown(&a, Shutdown::Read).unwrap();
        assert_eq!(recv(&a, &mut [0; 1]).unwrap(), 0);
        let mut byte = [0; 1];
        assert_eq!(
            recv_vectored(&a, &mut [IoSliceMut::new(&mut byte)]).unwrap(),
            0
        );
    }

    #[test]
    fn waits_end_at_their_deadline_in_both_directions() {
        let (a, _b) = tcp::pair();
        let start = Instant::now();
        let deadline = Some(start + Duration::from_millis(20));
        let error = until(&a, PollFlags::IN, deadline, || recv(&a, &mut [0; 1])).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        assert!(start.elapsed() >= Duration::from_millis(20));
        // On a busy machine bytes are still in flight when the buffer is full, and free space later.
        let (start, error) = loop {
            while send(&a, &[0; 65_536]).is_ok() {}
            let start = Instant::now();
            let deadline = Some(start + Duration::from_millis(20));
            if let Err(error) = until(&a, PollFlags::OUT, deadline, || send(&a, b"x")) {
                break (start, error);
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        assert!(start.elapsed() >= Duration::from_millis(20));
    }

    #[test]
    fn backpressure_holds_a_sender_until_bytes_are_received() {
        let (a, b) = tcp::pair();
        let bytes: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
        let got = std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut rest = &bytes[..];
                while !rest.is_empty() {
                    let (x, y) = rest.split_at(rest.len() / 2);
                    let slices = [IoSlice::new(x), IoSlice::new(y)];
                    let sent = until(&a, PollFlags::OUT, Some(tcp::soon()), || {
                        send_vectored(&a, &slices)
                    });
                    rest = &rest[sent.unwrap()..];
                }
                shutdown(&a, Shutdown::Write).unwrap();
            });
            let mut got = Vec::new();
            let mut buffer = vec![0; 100_000];
            loop {
                match receive_soon(&b, &mut buffer).unwrap() {
                    0 => break got,
                    count => got.extend_from_slice(&buffer[..count]),
                }
            }
        });
        assert!(
            got == bytes,
            "{} of {} bytes, or others",
            got.len(),
            bytes.len()
        );
    }

    #[test]
    fn bytes_and_slices_beyond_the_limits_are_not_sent() {
        let (a, b) = tcp::pair();
        assert!(send(&a, &vec![1; MAX_SEND + 1]).unwrap() <= MAX_SEND);
        let (c, _d) = tcp::pair();
        let out = vec![IoSlice::new(b"x"); 2000];
        assert_eq!(send_vectored(&c, &out).unwrap(), MAX_SLICES);
        let big = vec![1; MAX_SEND + 1];
        assert!(send_vectored(&b, &[IoSlice::new(&big)]).unwrap() <= MAX_SEND);
        assert_eq!(send_vectored(&b, &[]).unwrap(), 0);
    }

    #[test]
    fn a_reset_is_an_error_in_both_directions() {
        let (a, b) = tcp::pair();
        reset_on_close(&b).unwrap();
        drop(b);
        match receive_soon(&a, &mut [0; 1]) {
            // Wine reports it to senders only.
            Ok(count) => assert_eq!(count, 0),
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(errno::ECONNRESET));
                assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
            }
        }
        let error = send(&a, b"x").unwrap_err();
        assert!(matches!(
            error.kind(),
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
        ));
    }

    #[test]
    fn sending_to_a_closed_peer_fails() {
        let (a, b) = tcp::pair();
        drop(b);
        let end = tcp::soon();
        let error = loop {
            match until(&a, PollFlags::OUT, Some(end), || send(&a, &[0; 1000])) {
                Ok(_) => assert!(Instant::now() < end, "the system keeps accepting bytes"),
                Err(error) => break error,
            }
        };
        assert!(matches!(
            error.kind(),
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
        ));
    }
}
