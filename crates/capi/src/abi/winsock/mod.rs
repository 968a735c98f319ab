//! The functions that `winsock2.h` makes the compiler call.
//!
//! For a descriptor that is no socket of this library each is the function of the C library, with the error in
//! `WSAGetLastError` too. Their names are `hvsock_ws_` and the name in C. Arguments are those of the C library, except
//! that lengths are `int`, which has the same representation.

pub mod data;
pub mod options;
pub mod select;
pub mod sockets;
pub mod startup;

use std::ffi::c_int;
use std::os::fd::RawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};

use hvsock::SockAddrHv;
use libc::sockaddr;

use crate::abi::system::{self, is_nonblocking};
use crate::last_error::{self, LastError, Result, fail};
use crate::numbers;

fn set_errno(errno: i32) {
    // SAFETY: the C library's `errno` of this thread.
    unsafe { *libc::__errno_location() = errno };
}

/// Runs the body of a call. After an error it sets `errno` and what `WSAGetLastError` returns.
pub(super) fn call<T: From<i8>>(body: impl FnOnce() -> Result<T>) -> T {
    let result = catch_unwind(AssertUnwindSafe(body));
    let error = match result {
        Ok(Ok(value)) => return value,
        Ok(Err(error)) => error,
        Err(_) => LastError::of_errno(libc::ENOTRECOVERABLE),
    };
    set_errno(error.errno);
    last_error::set(error);
    T::from(-1)
}

/// The result of a system call as a number of the C library.
fn checked<T: Copy + PartialEq + From<i8>>(result: T) -> Result<T> {
    if result == T::from(-1) {
        return Err(system::of_system());
    }
    Ok(result)
}

/// The error of a system call that would block: after the time of an option Windows says that it timed out.
fn blocked(number: RawFd, flags: c_int, error: LastError) -> LastError {
    let is_now = flags & libc::MSG_DONTWAIT != 0 || is_nonblocking(number).unwrap_or(true);
    match error.errno {
        libc::EAGAIN if !is_now => error.with_wsa(numbers::WSAETIMEDOUT),
        _ => error,
    }
}

/// The `SOCKADDR_HV` of the program.
///
/// # Safety
///
/// `name` is NULL or points to `length` bytes.
unsafe fn address(name: *const sockaddr, length: c_int) -> Result<SockAddrHv> {
    let invalid = |wsa: i32, errno: i32| LastError::of_errno(errno).with_wsa(wsa);
    let length = usize::try_from(length).unwrap_or(0);
    if name.is_null() || length < SockAddrHv::LEN {
        return Err(invalid(numbers::WSAEFAULT, libc::EFAULT));
    }
    // SAFETY: as the caller promises.
    let bytes = unsafe { std::slice::from_raw_parts(name.cast::<u8>(), SockAddrHv::LEN) };
    SockAddrHv::from_bytes(bytes).map_err(|_| LastError::of_errno(libc::EAFNOSUPPORT))
}

/// Stores an address as the calls of sockets do. A program that passes no memory gets none.
///
/// # Safety
///
/// `length` is NULL or points to the number of bytes that `to` points to.
unsafe fn store_address(
    address: SockAddrHv,
    to: *mut sockaddr,
    length: *mut c_int,
    must_fit: bool,
) -> Result<()> {
    if to.is_null() || length.is_null() {
        return match must_fit {
            true => fail(libc::EFAULT),
            false => Ok(()),
        };
    }
    // SAFETY: as the caller promises.
    let room = usize::try_from(unsafe { length.read_unaligned() }).unwrap_or(0);
    if room < SockAddrHv::LEN {
        return fail(libc::EFAULT);
    }
    let bytes = address.to_bytes();
    // SAFETY: as the caller promises: there is room.
    unsafe {
        to.cast::<u8>()
            .copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
        length.write_unaligned(bytes.len() as c_int);
    }
    Ok(())
}
