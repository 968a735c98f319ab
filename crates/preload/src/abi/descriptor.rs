//! Descriptor numbers of the program, which may be closed at any time by another thread.

use std::ffi::c_int;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::Errno;

use super::errno::last_error;

/// Calls `call` with a descriptor number of the program. `None` if it cannot be one.
pub fn with<T>(number: c_int, call: impl FnOnce(BorrowedFd<'_>) -> Option<T>) -> Option<T> {
    if number < 0 {
        return None;
    }
    // SAFETY: the number is not -1. The descriptor may be closed by another thread, as in every call of the C
    // library that takes a number; nothing here relies on what it is.
    call(unsafe { BorrowedFd::borrow_raw(number) })
}

/// The number of a descriptor.
pub fn number(fd: impl AsFd) -> RawFd {
    fd.as_fd().as_raw_fd()
}

/// Makes the descriptor `number` one of what `new` is of. It stays close-on-exec, or not.
///
/// # Errors
///
/// Those of `dup3`, as `EBADF` if the number is not open.
pub fn replace(number: RawFd, new: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = with(number, |fd| rustix::io::fcntl_getfd(fd).ok()).ok_or(Errno::BADF)?;
    let is_close_on_exec = flags.contains(rustix::io::FdFlags::CLOEXEC);
    let flags = if is_close_on_exec { libc::O_CLOEXEC } else { 0 };
    loop {
        // SAFETY: the call takes numbers only. The descriptor is the program's, in the call that is about it.
        let done = unsafe { libc::dup3(new.as_raw_fd(), number, flags) };
        if done >= 0 {
            return Ok(());
        }
        match last_error() {
            // EBUSY: another thread is about to open this number.
            Errno::INTR | Errno::BUSY => {}
            error => return Err(error),
        }
    }
}

/// Closes a descriptor of this library by its number.
pub fn close(number: RawFd) {
    // SAFETY: the caller's number is that of a descriptor that this library opened and keeps, which it has
    // checked to be the same still.
    drop(unsafe { OwnedFd::from_raw_fd(number) });
}
