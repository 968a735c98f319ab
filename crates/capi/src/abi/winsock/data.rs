//! Sending and receiving: one system call, and a look at the broker's messages at an end or an error.

use std::ffi::{c_char, c_int, c_uint, c_void};

use libc::{sockaddr, ssize_t};

use super::{blocked, call, checked};
use crate::last_error::{LastError, Result, fail};
use crate::winsock::socket::SOCKETS;

/// `send`, which never raises `SIGPIPE`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hvsock_ws_send(
    s: c_int,
    data: *const c_void,
    length: usize,
    flags: c_int,
) -> ssize_t {
    call(|| {
        // SAFETY: the program passes that many bytes.
        let sent = data_call(s, || unsafe {
            libc::send(s, data, length, flags | libc::MSG_NOSIGNAL)
        });
        sent?.map_err(|error| send_error(s, flags, error))
    })
}

/// `sendto`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hvsock_ws_sendto(
    s: c_int,
    data: *const c_void,
    length: usize,
    flags: c_int,
    to: *const sockaddr,
    to_length: c_int,
) -> ssize_t {
    call(|| {
        // A Hyper-V socket is connected: the address has no meaning, as with every stream socket on Windows.
        let (to, to_length) = match SOCKETS.find(s) {
            Some(_) => (std::ptr::null(), 0),
            None => (to, to_length),
        };
        let to_length = to_length as libc::socklen_t;
        // SAFETY: the program passes that many bytes, and an address of that length.
        let sent = data_call(s, || unsafe {
            libc::sendto(s, data, length, flags | libc::MSG_NOSIGNAL, to, to_length)
        });
        sent?.map_err(|error| send_error(s, flags, error))
    })
}

/// `recv`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hvsock_ws_recv(
    s: c_int,
    data: *mut c_void,
    length: usize,
    flags: c_int,
) -> ssize_t {
    call(|| {
        // SAFETY: the program passes memory for that many bytes.
        let received = data_call(s, || unsafe { libc::recv(s, data, length, flags) })?;
        received_by(s, length, flags, received)
    })
}

/// `recvfrom`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hvsock_ws_recvfrom(
    s: c_int,
    data: *mut c_void,
    length: usize,
    flags: c_int,
    from: *mut sockaddr,
    from_length: *mut c_int,
) -> ssize_t {
    call(|| {
        // SAFETY: the program passes memory for that many bytes, and for an address and its length.
        let received = data_call(s, || unsafe {
            libc::recvfrom(s, data, length, flags, from, from_length.cast())
        })?;
        received_by(s, length, flags, received)
    })
}

/// Looks at a socket before the kernel sends or receives: a listening one has no data, and a connecting one may just
/// have been connected.
fn before_data(s: c_int) -> Result<()> {
    match SOCKETS.find_special(s) {
        Some(socket) => socket.check_data(s),
        None => Ok(()),
    }
}

/// Runs a system call that sends or receives, which `closesocket` in another thread ends. The outer result is that of
/// this library, the inner one the kernel's.
fn data_call(s: c_int, body: impl FnOnce() -> ssize_t) -> Result<Result<ssize_t>> {
    before_data(s)?;
    let call = SOCKETS.begin_call(s);
    let result = checked(body());
    let was_closed = call.is_some_and(|call| call.was_closed());
    match result {
        Ok(count) if count > 0 => Ok(result),
        _ if was_closed => fail(libc::EINTR),
        _ => Ok(result),
    }
}

/// The error of a send.
fn send_error(s: c_int, flags: c_int, error: LastError) -> LastError {
    match error.errno {
        libc::EAGAIN => blocked(s, flags, error),
        libc::EPIPE | libc::ECONNRESET | libc::ENOTCONN => match SOCKETS.find(s) {
            Some(socket) => match socket.connection(s) {
                Ok(connection) => connection.send_error(error.errno),
                Err(error) => error,
            },
            None => error,
        },
        _ => error,
    }
}

/// The result of a receive, when the end of the data has its meaning.
fn received_by(
    s: c_int,
    length: usize,
    flags: c_int,
    received: Result<ssize_t>,
) -> Result<ssize_t> {
    match received {
        Ok(0) if length > 0 => {
            let Some(socket) = SOCKETS.find(s) else {
                return Ok(0);
            };
            let connection = socket.connection(s)?;
            // A reset has no bytes in front of it that are lost: the kernel has delivered them.
            connection.control.meaning_of_end()?;
            Ok(0)
        }
        Err(error) if error.errno == libc::EAGAIN => Err(blocked(s, flags, error)),
        Err(error)
            if matches!(
                error.errno,
                libc::ECONNRESET | libc::EINVAL | libc::ENOTCONN
            ) =>
        {
            match SOCKETS.find(s) {
                Some(socket) => {
                    let connection = socket.connection(s)?;
                    let reason = connection.control.reset_reason();
                    Err(reason.map_or(error, |reason| LastError::of(&reason)))
                }
                None => Err(error),
            }
        }
        received => received,
    }
}

/// `WSABUF`.
#[allow(non_camel_case_types, reason = "the name in C")]
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct hvsock_ws_buffer {
    length: c_uint,
    data: *mut c_char,
}

/// `WSASend` without overlapped operations.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hvsock_ws_WSASend(
    s: c_int,
    buffers: *const hvsock_ws_buffer,
    count: c_uint,
    sent: *mut c_uint,
    flags: c_uint,
    overlapped: *const c_void,
    routine: *const c_void,
) -> c_int {
    call(|| {
        // SAFETY: the program passes that many buffers.
        let vectors = unsafe { vectors(buffers, count, overlapped, routine) }?;
        let flags = flags as c_int;
        // SAFETY: a header of zeros is valid, and has the vectors for the length of the call.
        let result = data_call(s, || unsafe {
            let mut header: libc::msghdr = std::mem::zeroed();
            header.msg_iov = vectors.as_ptr().cast_mut();
            header.msg_iovlen = vectors.len() as _;
            libc::sendmsg(s, &header, flags | libc::MSG_NOSIGNAL)
        });
        let count = result?.map_err(|error| send_error(s, flags, error))?;
        // SAFETY: the program passes NULL or memory for the number.
        unsafe { store_number(sent, count) };
        Ok(0)
    })
}

/// `WSARecv` without overlapped operations.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hvsock_ws_WSARecv(
    s: c_int,
    buffers: *const hvsock_ws_buffer,
    count: c_uint,
    received: *mut c_uint,
    flags: *mut c_uint,
    overlapped: *const c_void,
    routine: *const c_void,
) -> c_int {
    call(|| {
        // SAFETY: the program passes that many buffers.
        let vectors = unsafe { vectors(buffers, count, overlapped, routine) }?;
        let total = vectors.iter().map(|vector| vector.iov_len).sum();
        let flags = match flags.is_null() {
            true => 0,
            // SAFETY: the program passes NULL or the flags.
            false => unsafe { flags.read_unaligned() as c_int },
        };
        // SAFETY: a header of zeros is valid, and has the vectors for the length of the call.
        let result = data_call(s, || unsafe {
            let mut header: libc::msghdr = std::mem::zeroed();
            header.msg_iov = vectors.as_ptr().cast_mut();
            header.msg_iovlen = vectors.len() as _;
            libc::recvmsg(s, &mut header, flags)
        })?;
        let count = received_by(s, total, flags, result)?;
        // SAFETY: the program passes NULL or memory for the number.
        unsafe { store_number(received, count) };
        Ok(0)
    })
}

/// The buffers of the program as those of a system call.
///
/// # Safety
///
/// `buffers` is NULL or points to that many.
unsafe fn vectors(
    buffers: *const hvsock_ws_buffer,
    count: c_uint,
    overlapped: *const c_void,
    routine: *const c_void,
) -> Result<Vec<libc::iovec>> {
    if !overlapped.is_null() || !routine.is_null() {
        return fail(libc::EOPNOTSUPP);
    }
    // UIO_MAXIOV.
    if buffers.is_null() || count == 0 || count > 1024 {
        return fail(libc::EINVAL);
    }
    // SAFETY: as the caller promises.
    let buffers = unsafe { std::slice::from_raw_parts(buffers, count as usize) };
    let vector = |buffer: &hvsock_ws_buffer| libc::iovec {
        iov_base: buffer.data.cast(),
        iov_len: buffer.length as usize,
    };
    Ok(buffers.iter().map(vector).collect())
}

/// Stores a count.
///
/// # Safety
///
/// `to` is NULL or points to memory for it.
unsafe fn store_number(to: *mut c_uint, count: ssize_t) {
    if !to.is_null() {
        // SAFETY: as the caller promises.
        unsafe { to.write_unaligned(c_uint::try_from(count).unwrap_or(c_uint::MAX)) };
    }
}
