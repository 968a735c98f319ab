//! The boundary to C: pointers become references here, results become numbers, and no panic passes.
//!
//! A pointer to memory of the program is used only while the call lasts. A handle is a pointer that this library
//! made by `into_handle`; the program gives it back once, to the function that closes it. What cannot be
//! checked (a pointer that points to nothing, a handle that was closed before) is undefined, as in any C library; NULL is
//! an error everywhere.
#![allow(
    unsafe_code,
    reason = "C passes pointers; each use of one says why it is valid"
)]
#![allow(
    clippy::missing_safety_doc,
    reason = "the functions are not called from Rust, and the header has the rules"
)]

mod borrowed;
pub mod connection;
pub mod error;
/// cbindgen:ignore
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
pub mod in_place;
pub mod listener;
pub mod options;
pub mod service;
pub(crate) mod system;
/// cbindgen:ignore
pub mod winsock;

use std::ffi::{CStr, c_char, c_void};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

use hvsock::SockAddrHv;

use crate::last_error::{self, LastError};

/// Runs the body of a function. Returns `failed` after an error or a panic, which the thread can ask for.
pub(crate) fn guard<T>(failed: T, body: impl FnOnce() -> io::Result<T>) -> T {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(value)) => value,
        Ok(Err(error)) => {
            // The conversion runs `Display` of the error's parts.
            let kept = catch_unwind(AssertUnwindSafe(|| LastError::of(&error)));
            last_error::set(kept.unwrap_or_else(|_| panicked()));
            failed
        }
        Err(_) => {
            last_error::set(panicked());
            failed
        }
    }
}

/// The error of a call that panicked, which is a bug of this library.
fn panicked() -> LastError {
    LastError::of_errno(libc::ENOTRECOVERABLE)
}

/// The error for an argument that has no meaning.
fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, error)
}

/// The error for an argument that is NULL.
fn null(what: &str) -> io::Error {
    invalid(format!("{what} is NULL"))
}

/// The handle of a value. [`from_handle`] takes it back.
fn into_handle<T>(value: T) -> *mut T {
    Box::into_raw(Box::new(value))
}

/// The value of a handle, for the length of a call.
///
/// # Safety
///
/// `handle` is NULL or was made by [`into_handle`] and not taken back.
unsafe fn handle<'a, T>(handle: *const T) -> io::Result<&'a T> {
    // SAFETY: as the caller promises. A value behind a handle is used by shared references only.
    unsafe { handle.as_ref() }.ok_or_else(|| null("the handle"))
}

/// Takes a handle back. `None` for NULL.
///
/// # Safety
///
/// As for [`handle`], and no other call uses it.
unsafe fn from_handle<T>(handle: *mut T) -> Option<Box<T>> {
    // SAFETY: as the caller promises: `into_handle` made it of a box.
    (!handle.is_null()).then(|| unsafe { Box::from_raw(handle) })
}

/// A text of the program.
///
/// # Safety
///
/// `text` is NULL or points to a string that ends with a NUL and lives as long as `'a`.
unsafe fn text<'a>(text: *const c_char, what: &str) -> io::Result<&'a str> {
    // SAFETY: as the caller promises.
    unsafe { optional_text(text, what) }?.ok_or_else(|| null(what))
}

/// A text of the program; `None` for NULL.
///
/// # Safety
///
/// As for [`text`].
unsafe fn optional_text<'a>(text: *const c_char, what: &str) -> io::Result<Option<&'a str>> {
    if text.is_null() {
        return Ok(None);
    }
    // SAFETY: as the caller promises.
    let text = unsafe { CStr::from_ptr(text) };
    let text = text.to_str().map(Some);
    text.map_err(|_| invalid(format!("{what} is no UTF-8")))
}

/// Stores a value where the program wants it.
///
/// # Safety
///
/// `to` is NULL or points to memory for a `T`, which may be uninitialised.
unsafe fn store<T>(to: *mut T, value: T, what: &str) -> io::Result<()> {
    if to.is_null() {
        return Err(null(what));
    }
    // SAFETY: as the caller promises. C's types may have a weaker alignment in a packed structure.
    unsafe { to.write_unaligned(value) };
    Ok(())
}

/// The bytes of the program to read.
///
/// # Safety
///
/// `bytes` is NULL, or points to `length` initialised bytes that nobody changes while `'a` lasts.
unsafe fn bytes<'a>(bytes: *const c_void, length: usize) -> io::Result<&'a [u8]> {
    match (bytes.is_null(), length) {
        (_, 0) => Ok(&[]),
        (true, _) => Err(null("the buffer")),
        (false, 1..=MAX_LENGTH) => {
            // SAFETY: as the caller promises.
            Ok(unsafe { std::slice::from_raw_parts(bytes.cast(), length) })
        }
        _ => Err(too_long()),
    }
}

/// The memory of the program to fill.
///
/// # Safety
///
/// `bytes` is NULL, or points to `length` bytes that nobody else uses while `'a` lasts.
unsafe fn buffer<'a>(bytes: *mut c_void, length: usize) -> io::Result<&'a mut [u8]> {
    match (bytes.is_null(), length) {
        (_, 0) => Ok(&mut []),
        (true, _) => Err(null("the buffer")),
        (false, 1..=MAX_LENGTH) => {
            // SAFETY: as the caller promises. The bytes are only ever written here; a program that has not initialised
            // them cannot tell the difference, since nothing reads them before.
            Ok(unsafe { std::slice::from_raw_parts_mut(bytes.cast(), length) })
        }
        _ => Err(too_long()),
    }
}

/// The longest object that Rust and C know.
const MAX_LENGTH: usize = isize::MAX as usize;

fn too_long() -> io::Error {
    invalid("the buffer is longer than any memory")
}

/// A `SOCKADDR_HV` of the program.
///
/// # Safety
///
/// As for [`bytes`].
unsafe fn address(from: *const c_void, length: usize) -> io::Result<SockAddrHv> {
    // SAFETY: as the caller promises.
    let from = unsafe { bytes(from, length) }?;
    SockAddrHv::from_bytes(from).map_err(invalid)
}

#[cfg(test)]
mod tests {
    use std::ffi::c_int;

    use super::*;

    #[test]
    fn a_panic_is_an_error_of_the_call_and_goes_no_further() {
        assert_eq!(guard(-1, || panic!("a bug")), -1);
        assert_eq!(last_error::with(|last| last.errno), libc::ENOTRECOVERABLE);
        assert_eq!(guard(-1, || Ok(5)), 5);
        let result: c_int = winsock::call(|| panic!("a bug"));
        assert_eq!(result, -1);
        assert_eq!(last_error::with(|last| last.errno), libc::ENOTRECOVERABLE);
    }
}
