//! Making, naming, connecting and closing sockets.

use std::ffi::{c_int, c_uint, c_void};

use hvsock::{AF_HYPERV, HV_PROTOCOL_RAW, SockAddrHv};
use libc::sockaddr;

use super::{address, call, checked, store_address};
use crate::abi::system::{lend, shutdown};
use crate::last_error::fail;
use crate::winsock::socket::{SOCKETS, Socket};

/// `socket`.
#[unsafe(no_mangle)]
pub extern "C" fn hvsock_ws_socket(af: c_int, kind: c_int, protocol: c_int) -> c_int {
    call(|| {
        let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        let is_stream = kind & !flags == libc::SOCK_STREAM;
        if af != c_int::from(AF_HYPERV) || !is_stream {
            // SAFETY: no pointer is passed.
            return checked(unsafe { libc::socket(af, kind, protocol) });
        }
        if protocol != HV_PROTOCOL_RAW {
            return fail(libc::EPROTONOSUPPORT);
        }
        Socket::create(kind & libc::SOCK_NONBLOCK != 0)
    })
}

/// `WSASocketA` without overlapped operations, which Linux does not have: the flags have no effect.
#[unsafe(no_mangle)]
pub extern "C" fn hvsock_ws_WSASocketA(
    af: c_int,
    kind: c_int,
    protocol: c_int,
    _info: *const c_void,
    _group: c_uint,
    _flags: c_uint,
) -> c_int {
    hvsock_ws_socket(af, kind, protocol)
}

/// `WSASocketW`: as `WSASocketA`.
#[unsafe(no_mangle)]
pub extern "C" fn hvsock_ws_WSASocketW(
    af: c_int,
    kind: c_int,
    protocol: c_int,
    _info: *const c_void,
    _group: c_uint,
    _flags: c_uint,
) -> c_int {
    hvsock_ws_socket(af, kind, protocol)
}

/// `bind`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hvsock_ws_bind(s: c_int, name: *const sockaddr, length: c_int) -> c_int {
    call(|| match SOCKETS.find(s) {
        // SAFETY: the program passes an address of that length.
        Some(socket) => socket.bind(unsafe { address(name, length) }?).map(|()| 0),
        // SAFETY: as above.
        None => checked(unsafe { libc::bind(s, name, length as libc::socklen_t) }),
    })
}

/// `listen`.
#[unsafe(no_mangle)]
pub extern "C" fn hvsock_ws_listen(s: c_int, backlog: c_int) -> c_int {
    call(|| match SOCKETS.find(s) {
        Some(socket) => socket.listen(s, backlog).map(|()| 0),
        // SAFETY: no pointer is passed.
        None => checked(unsafe { libc::listen(s, backlog) }),
    })
}

/// `accept`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hvsock_ws_accept(
    s: c_int,
    to: *mut sockaddr,
    length: *mut c_int,
) -> c_int {
    call(|| {
        let Some(socket) = SOCKETS.find(s) else {
            // SAFETY: the program passes memory for an address and its length, or NULL.
            return checked(unsafe { libc::accept(s, to, length.cast()) });
        };
        if !to.is_null() && !length.is_null() {
            // SAFETY: as above.
            let room = unsafe { length.read_unaligned() };
            if usize::try_from(room).unwrap_or(0) < SockAddrHv::LEN {
                return fail(libc::EFAULT);
            }
        }
        let (number, peer) = socket.accept(s)?;
        // SAFETY: as above.
        unsafe { store_address(peer, to, length, false) }?;
        Ok(number)
    })
}

/// `connect`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hvsock_ws_connect(
    s: c_int,
    name: *const sockaddr,
    length: c_int,
) -> c_int {
    call(|| match SOCKETS.find(s) {
        // SAFETY: the program passes an address of that length.
        Some(socket) => socket
            .connect(s, unsafe { address(name, length) }?)
            .map(|()| 0),
        // SAFETY: as above.
        None => checked(unsafe { libc::connect(s, name, length as libc::socklen_t) }),
    })
}

/// `getsockname`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hvsock_ws_getsockname(
    s: c_int,
    to: *mut sockaddr,
    length: *mut c_int,
) -> c_int {
    call(|| match SOCKETS.find(s) {
        // SAFETY: the program passes memory for an address and its length.
        Some(socket) => unsafe { store_address(socket.local(s)?, to, length, true) }.map(|()| 0),
        // SAFETY: as above.
        None => checked(unsafe { libc::getsockname(s, to, length.cast()) }),
    })
}

/// `getpeername`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hvsock_ws_getpeername(
    s: c_int,
    to: *mut sockaddr,
    length: *mut c_int,
) -> c_int {
    call(|| match SOCKETS.find(s) {
        // SAFETY: the program passes memory for an address and its length.
        Some(socket) => unsafe { store_address(socket.peer(s)?, to, length, true) }.map(|()| 0),
        // SAFETY: as above.
        None => checked(unsafe { libc::getpeername(s, to, length.cast()) }),
    })
}

/// `shutdown`.
#[unsafe(no_mangle)]
pub extern "C" fn hvsock_ws_shutdown(s: c_int, how: c_int) -> c_int {
    call(|| {
        let socket = SOCKETS.find(s);
        let is_ours = socket.is_some();
        if let Some(socket) = socket {
            let connection = socket.connection(s)?;
            if how == libc::SHUT_WR || how == libc::SHUT_RDWR {
                connection.end();
            }
        }
        // SAFETY: no pointer is passed.
        let result = checked(unsafe { libc::shutdown(s, how) })?;
        if is_ours && how != libc::SHUT_WR {
            // A peer that waits for free space is woken by free space only.
            let _ = lend(s, |fd| hvsock_sys::stream::discard_all(fd));
        }
        Ok(result)
    })
}

/// `closesocket`. It ends calls that other threads of this process wait in, with `WSAEINTR`.
#[unsafe(no_mangle)]
pub extern "C" fn hvsock_ws_closesocket(s: c_int) -> c_int {
    call(|| {
        let wake = || {
            let _ = lend(s, shutdown);
        };
        // SAFETY: no pointer is passed. The number is the program's, which closes it.
        let close = || checked(unsafe { libc::close(s) });
        let (socket, closed) = SOCKETS.close(s, wake, close);
        // After the data: the broker keeps the control connection until then.
        if let Some(socket) = &socket {
            socket.close();
        }
        drop(socket);
        closed
    })
}
