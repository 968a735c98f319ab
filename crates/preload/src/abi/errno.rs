//! The error number of the C library.

use std::ffi::c_int;

use rustix::io::Errno;

/// The error of the last call of the C library.
pub fn last_error() -> Errno {
    match errno() {
        number @ 1..4096 => Errno::from_raw_os_error(number),
        _ => Errno::IO,
    }
}

/// The number of this thread.
pub fn errno() -> c_int {
    // SAFETY: the C library returns a valid pointer to this thread's number.
    unsafe { *libc::__errno_location() }
}

/// Sets the number of this thread.
pub fn set_errno(error: c_int) {
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = error };
}
