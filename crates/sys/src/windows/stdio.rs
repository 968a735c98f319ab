//! Standard output as a file that can be closed.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::windows::io::{BorrowedHandle, FromRawHandle, IntoRawHandle};

use windows_sys::Win32::Foundation::INVALID_HANDLE_VALUE;
use windows_sys::Win32::System::Console::{
    GetStdHandle, STD_ERROR_HANDLE, STD_INPUT_HANDLE, STD_OUTPUT_HANDLE, SetStdHandle,
};

/// Takes the process's standard output and replaces it by `NUL`. Its reader sees the end of the data once
/// the file is dropped, while the process continues.
///
/// If another standard stream has the same handle, the reader sees the end only when that is closed, too.
///
/// The caller must not use a handle borrowed from [`std::io::stdout`] afterwards. Later writes to
/// `stdout` are discarded.
///
/// # Errors
///
/// Those of opening `NUL`, `GetStdHandle`, `SetStdHandle` and `DuplicateHandle`.
pub fn take_output() -> io::Result<File> {
    let null = OpenOptions::new().write(true).open("NUL")?;
    // SAFETY: takes a number and returns a handle, null or INVALID_HANDLE_VALUE.
    let output = unsafe { GetStdHandle(STD_OUTPUT_HANDLE) };
    if output == INVALID_HANDLE_VALUE {
        return Err(io::Error::last_os_error());
    }
    if output.is_null() {
        // The process has no standard output, so writes are discarded already.
        return Ok(null);
    }
    // SAFETY: accepts any handle. The process keeps it, hence `into_raw_handle`.
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
    // SAFETY: the handle is open. Only the process's standard output owned it, which has another handle
    // now; the standard library reads the handle for each write.
    Ok(unsafe { File::from_raw_handle(output) })
}
