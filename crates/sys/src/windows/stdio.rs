//! Standard output as something that can be closed.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::windows::io::{FromRawHandle, IntoRawHandle};

use windows_sys::Win32::Foundation::INVALID_HANDLE_VALUE;
use windows_sys::Win32::System::Console::{GetStdHandle, STD_OUTPUT_HANDLE, SetStdHandle};

/// Takes the process's standard output, which goes nowhere from then on. Whoever reads it sees
/// its end once the file is dropped, though the process goes on.
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
    // SAFETY: the handle is open, and nobody but the process's standard output owned it, whose
    // place another has now: the standard library asks for the handle each time that it writes.
    Ok(unsafe { File::from_raw_handle(output) })
}
