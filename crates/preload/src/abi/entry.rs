//! The way from a C function to an answer, and back.

use std::ffi::c_int;
use std::panic::{AssertUnwindSafe, catch_unwind};

use rustix::io::Errno;

use super::errno::{errno, set_errno};
use super::{descriptor, real};
use crate::socket::Socket;
use crate::{notice, registration, state};

/// Runs before the program's own code, with its environment and one thread.
extern "C" fn constructor() {
    let kept = errno();
    // A program without what this prepares still runs, without emulated sockets.
    let _ = catch_unwind(|| {
        real::prepare();
        state::prepare();
        notice::prepare();
        registration::prepare();
    });
    set_errno(kept);
}

// SAFETY: the section holds pointers to functions without arguments, which the loader calls once.
#[used]
#[cfg_attr(not(test), unsafe(link_section = ".init_array"))]
static CONSTRUCTOR: extern "C" fn() = constructor;

/// The result of `call` for the emulated socket behind `fd`; `None` if it is another kind of file, or the kernel
/// is to answer.
pub fn emulated(
    fd: c_int,
    call: impl FnOnce(Socket<'_>) -> Option<Result<c_int, Errno>>,
) -> Option<c_int> {
    let table = state::table().filter(|table| table.is_in_use())?;
    guarded(|| descriptor::with(fd, |fd| call(Socket::find(table, fd)?)))
}

/// The result of `call` as C functions have it. `None` leaves `errno` as it is.
pub fn guarded(call: impl FnOnce() -> Option<Result<c_int, Errno>>) -> Option<c_int> {
    let kept = errno();
    let result = catch_unwind(AssertUnwindSafe(call)).unwrap_or(Some(Err(Errno::IO)));
    set_errno(kept);
    result.map(|result| match result {
        Ok(value) => value,
        Err(error) => {
            set_errno(error.raw_os_error());
            -1
        }
    })
}
