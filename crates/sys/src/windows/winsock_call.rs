//! Arguments and results of Winsock's functions.

use std::io;
use std::os::windows::io::{AsRawSocket, BorrowedSocket};

use windows_sys::Win32::Networking::WinSock::{self as winsock, SOCKET};

pub(super) fn raw(socket: &BorrowedSocket<'_>) -> SOCKET {
    // Both are the width of a pointer.
    socket.as_raw_socket() as SOCKET
}

/// Converts `SOCKET_ERROR` to the last error.
pub(super) fn check(result: i32) -> io::Result<()> {
    match result {
        winsock::SOCKET_ERROR => Err(last_error()),
        _ => Ok(()),
    }
}

pub(super) fn last_error() -> io::Error {
    // SAFETY: reads the thread's last error.
    io::Error::from_raw_os_error(unsafe { winsock::WSAGetLastError() })
}
