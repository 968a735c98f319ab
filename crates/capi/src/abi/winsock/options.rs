//! The options and modes of sockets.

use std::ffi::{c_int, c_long, c_ulong, c_void};
use std::time::Duration;

use hvsock::{AF_HYPERV, HV_PROTOCOL_RAW};
use libc::timeval;

use super::{call, checked};
use crate::abi::system::set_nonblocking;
use crate::last_error::{Result, fail};
use crate::winsock::socket::SOCKETS;

/// `ioctlsocket`, whose argument is a `u_long` of the C library.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hvsock_ws_ioctlsocket(
    s: c_int,
    command: c_long,
    to: *mut c_ulong,
) -> c_int {
    // SAFETY: as the program promises.
    unsafe { hvsock_ws_ioctl_sized(s, command, to.cast(), size_of::<c_ulong>()) }
}

/// `ioctlsocket` with an argument of 4 or 8 bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hvsock_ws_ioctl_sized(
    s: c_int,
    command: c_long,
    to: *mut c_void,
    size: usize,
) -> c_int {
    call(|| {
        if to.is_null() || !(size == 4 || size == 8) {
            return fail(libc::EFAULT);
        }
        let request = command as libc::Ioctl;
        // SAFETY: the program passes memory of that size.
        let value = unsafe {
            match size {
                4 => u64::from(to.cast::<u32>().read_unaligned()),
                _ => to.cast::<u64>().read_unaligned(),
            }
        };
        if request == libc::FIONBIO {
            if SOCKETS
                .find(s)
                .is_some_and(|socket| socket.set_nonblocking(value != 0))
            {
                return Ok(0);
            }
            set_nonblocking(s, value != 0)?;
            return Ok(0);
        }
        if request != libc::FIONREAD {
            return fail(libc::EINVAL);
        }
        if SOCKETS.find(s).is_some_and(|socket| socket.is_listening()) {
            return fail(libc::EINVAL);
        }
        let mut count: c_int = 0;
        // SAFETY: this request stores an int.
        checked(unsafe { libc::ioctl(s, request, &raw mut count) })?;
        // SAFETY: the program passes memory of that size.
        unsafe {
            match size {
                4 => to.cast::<u32>().write_unaligned(count as u32),
                _ => to.cast::<u64>().write_unaligned(count as u64),
            }
        }
        Ok(0)
    })
}

/// Options of Hyper-V sockets. Their level is `SOL_SOCKET` on Linux, so each number has two meanings.
mod option {
    pub(super) const CONNECT_TIMEOUT: i32 = 0x01;
    pub(super) const CONTAINER_PASSTHRU: i32 = 0x02;
    pub(super) const CONNECTED_SUSPEND: i32 = 0x04;
    pub(super) const HIGH_VTL: i32 = 0x08;
    pub(super) const CONNECT_TIMEOUT_MAX: u32 = 300_000;
}

/// `setsockopt`. A timeout may be 4 bytes of milliseconds, as on Windows, on every socket.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hvsock_ws_setsockopt(
    s: c_int,
    level: c_int,
    name: c_int,
    value: *const c_void,
    length: c_int,
) -> c_int {
    call(|| {
        let is_number = length == 4 && !value.is_null();
        // SAFETY: the program passes that many bytes.
        let number = || unsafe { value.cast::<u32>().read_unaligned() };
        let socket = SOCKETS.find(s);
        let is_timeout = matches!(name, libc::SO_RCVTIMEO | libc::SO_SNDTIMEO);
        if level == libc::SOL_SOCKET && socket.is_some() && !is_number && name <= option::HIGH_VTL {
            return fail(libc::EFAULT);
        }
        match (&socket, level, name) {
            (_, libc::SOL_SOCKET, _) if is_timeout && is_number => {
                let limit = Duration::from_millis(number().into());
                let limit = timeval {
                    tv_sec: limit.as_secs() as libc::time_t,
                    tv_usec: limit.subsec_micros().into(),
                };
                let length = size_of::<timeval>() as libc::socklen_t;
                // SAFETY: a value of that length.
                checked(unsafe {
                    libc::setsockopt(s, level, name, (&raw const limit).cast(), length)
                })
            }
            (Some(socket), libc::SOL_SOCKET, option::CONNECT_TIMEOUT) => {
                let limit = number();
                if limit > option::CONNECT_TIMEOUT_MAX {
                    return fail(libc::EINVAL);
                }
                socket.set_options(|options| options.connect_timeout = limit);
                Ok(0)
            }
            (Some(socket), libc::SOL_SOCKET, option::CONNECTED_SUSPEND) => {
                socket.set_connected_suspend(s, number() != 0);
                Ok(0)
            }
            // Either meaning has no effect here: SO_REUSEADDR and HVSOCKET_CONTAINER_PASSTHRU, SO_RCVBUF and
            // HVSOCKET_HIGH_VTL.
            (Some(_), libc::SOL_SOCKET, option::CONTAINER_PASSTHRU | option::HIGH_VTL) => Ok(0),
            (Some(socket), libc::SOL_SOCKET, _)
                if socket.is_listening() && !(is_timeout && socket.keeps_options()) =>
            {
                Ok(0)
            }
            // SAFETY: the program passes that many bytes.
            _ => checked(unsafe {
                libc::setsockopt(s, level, name, value, length as libc::socklen_t)
            }),
        }
    })
}

/// `getsockopt`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hvsock_ws_getsockopt(
    s: c_int,
    level: c_int,
    name: c_int,
    to: *mut c_void,
    length: *mut c_int,
) -> c_int {
    call(|| {
        let room = if length.is_null() {
            0
        } else {
            // SAFETY: the program passes memory for a value and its length.
            unsafe { length.read_unaligned() }
        };
        let is_number = !to.is_null() && room >= 4;
        let store = |number: u32| {
            if !is_number {
                return fail(libc::EFAULT);
            }
            // SAFETY: as above.
            unsafe {
                to.cast::<u32>().write_unaligned(number);
                length.write_unaligned(4);
            }
            Ok(0)
        };
        let is_timeout = matches!(name, libc::SO_RCVTIMEO | libc::SO_SNDTIMEO);
        let Some(socket) = SOCKETS.find(s) else {
            if level == libc::SOL_SOCKET && is_timeout && room == 4 {
                return store(timeout_of(s, name)?);
            }
            // SAFETY: as above.
            return checked(unsafe { libc::getsockopt(s, level, name, to, length.cast()) });
        };
        match (level, name) {
            (libc::SOL_SOCKET, libc::SO_ERROR) => {
                // The number of Winsock, which a program of both systems compares it with.
                store(socket.take_error(s).map_or(0, |error| error.wsa as u32))
            }
            (libc::SOL_SOCKET, option::CONNECT_TIMEOUT) => store(socket.options().connect_timeout),
            (libc::SOL_SOCKET, option::CONTAINER_PASSTHRU) => {
                store(socket.options().container_passthru.into())
            }
            (libc::SOL_SOCKET, libc::SO_TYPE) => store(libc::SOCK_STREAM as u32),
            (libc::SOL_SOCKET, libc::SO_DOMAIN) => store(AF_HYPERV.into()),
            (libc::SOL_SOCKET, libc::SO_PROTOCOL) => store(HV_PROTOCOL_RAW as u32),
            (libc::SOL_SOCKET, libc::SO_ACCEPTCONN) => store(socket.is_listening().into()),
            (libc::SOL_SOCKET, _) if is_timeout && room == 4 => store(timeout_of(s, name)?),
            // SAFETY: as above.
            _ => checked(unsafe { libc::getsockopt(s, level, name, to, length.cast()) }),
        }
    })
}

/// A timeout of the kernel in milliseconds.
fn timeout_of(s: c_int, name: c_int) -> Result<u32> {
    let mut limit = timeval {
        tv_sec: 0,
        tv_usec: 0,
    };
    let mut length = size_of::<timeval>() as libc::socklen_t;
    // SAFETY: a value of that length.
    checked(unsafe {
        libc::getsockopt(
            s,
            libc::SOL_SOCKET,
            name,
            (&raw mut limit).cast(),
            &mut length,
        )
    })?;
    let ms = limit.tv_sec * 1000 + limit.tv_usec / 1000;
    Ok(u32::try_from(ms).unwrap_or(u32::MAX))
}
