//! The bytes of a connection.
//!
//! Every call returns at once; on a socket that is not ready it is `WouldBlock`. [`until`] makes
//! one wait, with a bound.
//!
//! Errors come out as they do on Linux:
//!
//! | Winsock | what comes out |
//! |---|---|
//! | `WSAESHUTDOWN` from receiving | 0, the end |
//! | `WSAESHUTDOWN` from sending | `BrokenPipe` |
//! | `WSAECONNRESET`, `WSAECONNABORTED`, `WSAENETRESET` | `ConnectionReset` |
//! | a time limit that has passed | `WouldBlock` from [`until`], never `WSAETIMEDOUT` |
//! | `WSAEINTR` | as it is: nothing interrupts a call that does not wait |

use std::io::{self, IoSlice, IoSliceMut};
use std::net::Shutdown;
use std::os::windows::io::{AsSocket, BorrowedSocket};
use std::ptr;
use std::time::Instant;

use windows_sys::Win32::Networking::WinSock as winsock;
use windows_sys::Win32::Networking::WinSock::WSABUF;

use super::errno;
use super::poll::{self, PollFd, PollFlags};
use super::socket::{check, last_error, raw, set_option};

/// More bytes than this are sent in several calls. The system takes or refuses a non-blocking
/// send as a whole and keeps its bytes in memory of its own; a large one may come to `WSAENOBUFS`
/// (`send` in Microsoft's documentation of Winsock).
const MAX_SEND: usize = 1 << 20;

/// More slices than this are sent or received in several calls.
const MAX_SLICES: usize = 1024;

/// Makes `call` again, whenever `socket` is ready for `what`, for as long as it is `WouldBlock`
/// and until `deadline` (for ever if `None`). Past that the result is `WouldBlock`.
pub fn until<T>(
    socket: impl AsSocket,
    what: PollFlags,
    deadline: Option<Instant>,
    mut call: impl FnMut() -> io::Result<T>,
) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if !poll::wait(&mut [PollFd::new(&socket, what)], deadline)? {
                    return Err(error);
                }
            }
            result => return result,
        }
    }
}

/// Sends some of `bytes`.
pub fn send(socket: impl AsSocket, bytes: &[u8]) -> io::Result<usize> {
    let bytes = &bytes[..bytes.len().min(MAX_SEND)];
    // SAFETY: the call reads as many bytes as the slice has.
    let sent = unsafe {
        let len = bytes.len() as i32;
        winsock::send(raw(&socket.as_socket()), bytes.as_ptr(), len, 0)
    };
    check(sent).map_err(not_sent)?;
    Ok(sent as usize)
}

/// Sends some of the bytes of `slices`, in their order.
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
    // SAFETY: an `IoSlice` is a `WSABUF`, std guarantees it. The call reads `count` of them, which
    // are there, and the bytes at which they point. It is not overlapped, so it is over when it
    // returns.
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
    .map_err(not_sent)?;
    Ok(sent as usize)
}

/// Receives what is there; 0 at the end.
pub fn recv(socket: impl AsSocket, buffer: &mut [u8]) -> io::Result<usize> {
    receive(socket.as_socket(), buffer, 0)
}

/// Receives what is there into several buffers, in their order.
pub fn recv_vectored(socket: impl AsSocket, slices: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
    let count = slices.len().min(MAX_SLICES) as u32;
    let buffers: *const WSABUF = slices.as_mut_ptr().cast();
    let (socket, mut received, mut flags) = (socket.as_socket(), 0, 0);
    // SAFETY: an `IoSliceMut` is a `WSABUF`, std guarantees it. The call reads `count` of them,
    // which are there, and writes where they point, which is this function's alone. It is not
    // overlapped, so it is over when it returns.
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
        Err(error) => not_received(error),
    }
}

/// Copies what is there and leaves it to be received.
pub fn peek(socket: impl AsSocket, buffer: &mut [u8]) -> io::Result<usize> {
    receive(socket.as_socket(), buffer, winsock::MSG_PEEK)
}

/// Ends one or both directions, for every duplicate of the socket.
pub fn shutdown(socket: impl AsSocket, how: Shutdown) -> io::Result<()> {
    let how = match how {
        Shutdown::Read => winsock::SD_RECEIVE,
        Shutdown::Write => winsock::SD_SEND,
        Shutdown::Both => winsock::SD_BOTH,
    };
    // SAFETY: nothing but numbers.
    check(unsafe { winsock::shutdown(raw(&socket.as_socket()), how) })
}

/// Makes the closing of the socket a reset for the other end, and drops what is on its way to it
/// (`SO_LINGER` with no time).
pub fn reset_on_close(socket: impl AsSocket) -> io::Result<()> {
    // A `LINGER`: on, and for how many seconds.
    let linger = [1u16, 0];
    let (level, name) = (winsock::SOL_SOCKET, winsock::SO_LINGER);
    set_option(socket.as_socket(), level, name, linger)
}

fn receive(socket: BorrowedSocket<'_>, buffer: &mut [u8], flags: i32) -> io::Result<usize> {
    let len = i32::try_from(buffer.len()).unwrap_or(i32::MAX);
    // SAFETY: the call writes at most `len` bytes, and the buffer has no fewer.
    match unsafe { winsock::recv(raw(&socket), buffer.as_mut_ptr(), len, flags) } {
        winsock::SOCKET_ERROR => not_received(last_error()),
        received => Ok(received as usize),
    }
}

fn not_received(error: io::Error) -> io::Result<usize> {
    match error.raw_os_error() {
        Some(errno::EPIPE) => Ok(0),
        _ => Err(lost(error)),
    }
}

fn not_sent(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(errno::EPIPE) => io::ErrorKind::BrokenPipe.into(),
        _ => lost(error),
    }
}

/// One number for a connection that is gone.
fn lost(error: io::Error) -> io::Error {
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
    fn bytes_go_both_ways_and_end_one_way() {
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
    fn who_has_ended_receiving_receives_the_end() {
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
    fn waiting_is_bounded_each_way() {
        let (a, _b) = tcp::pair();
        let start = Instant::now();
        let deadline = Some(start + Duration::from_millis(20));
        let error = until(&a, PollFlags::IN, deadline, || recv(&a, &mut [0; 1])).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        assert!(start.elapsed() >= Duration::from_millis(20));
        // On a busy machine the bytes are still on their way when there is no room, and make some.
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
        assert!(start.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn what_does_not_fit_waits_until_it_is_received() {
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
    fn more_than_one_call_takes_is_sent_in_part() {
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
    fn a_reset_is_one_kind_of_error_each_way() {
        let (a, b) = tcp::pair();
        reset_on_close(&b).unwrap();
        drop(b);
        match receive_soon(&a, &mut [0; 1]) {
            // Wine tells only who sends of it.
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
    fn a_receiver_that_is_gone_is_told_to_the_sender() {
        let (a, b) = tcp::pair();
        drop(b);
        let end = tcp::soon();
        let error = loop {
            match until(&a, PollFlags::OUT, Some(end), || send(&a, &[0; 1000])) {
                Ok(_) => assert!(Instant::now() < end, "it is taken for ever"),
                Err(error) => break error,
            }
        };
        assert!(matches!(
            error.kind(),
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
        ));
    }
}
