//! Standard output as something that can be closed.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::windows::io::{BorrowedHandle, FromRawHandle, IntoRawHandle};

use windows_sys::Win32::Foundation::INVALID_HANDLE_VALUE;
use windows_sys::Win32::System::Console::{
    GetStdHandle, STD_ERROR_HANDLE, STD_INPUT_HANDLE, STD_OUTPUT_HANDLE, SetStdHandle,
};

/// Takes the process's standard output, which goes nowhere from then on. Whoever reads it sees
/// its end once the file is dropped, though the process goes on.
///
/// Where the process was started with one handle for this and another of its streams, its end is
/// seen with that one's.
///
/// What has borrowed the handle of [`std::io::stdout`] before must be done with it. What is only
/// written to that goes nowhere, too.
pub fn take_output() -> io::Result<File> {
    let null = OpenOptions::new().write(true).open("NUL")?;
    // SAFETY: it takes a number and gives a handle, or one of two values that are none.
    let output = unsafe { GetStdHandle(STD_OUTPUT_HANDLE) };
    if output == INVALID_HANDLE_VALUE {
        return Err(io::Error::last_os_error());
    }
    if output.is_null() {
        // The process has none, so what is written goes nowhere already.
        return Ok(null);
    }
    // SAFETY: it takes any handle. It is for the process to keep, hence `into_raw_handle`.
    if unsafe { SetStdHandle(STD_OUTPUT_HANDLE, null.into_raw_handle()) } == 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: as above.
    let others = unsafe {
        [
            GetStdHandle(STD_ERROR_HANDLE),
            GetStdHandle(STD_INPUT_HANDLE),
        ]
    };
    if others.contains(&output) {
        // SAFETY: the other stream keeps the handle open.
        let shared = unsafe { BorrowedHandle::borrow_raw(output) };
        return shared.try_clone_to_owned().map(File::from);
    }
    // SAFETY: the handle is open, and nobody but the process's standard output owned it, whose
    // place another has now: the standard library asks for the handle each time that it writes.
    Ok(unsafe { File::from_raw_handle(output) })
}
