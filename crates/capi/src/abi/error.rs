//! Why the last call of this thread failed.

use std::ffi::{c_char, c_int};

use crate::last_error::{self, Text};

/// Returns the version of the library: major, minor and patch in the three bytes from bit 16 down.
#[unsafe(no_mangle)]
pub extern "C" fn hvsock_version() -> u32 {
    let part = |text: &str| text.parse::<u32>().unwrap_or(0);
    let [major, minor, patch] = [
        env!("CARGO_PKG_VERSION_MAJOR"),
        env!("CARGO_PKG_VERSION_MINOR"),
        env!("CARGO_PKG_VERSION_PATCH"),
    ];
    (part(major) << 16) | (part(minor) << 8) | part(patch)
}

/// Returns the code of the refusal that the last failed call of this thread got, from 1 (HVSOCK_REFUSAL_...); 0 if it
/// failed for another reason.
#[unsafe(no_mangle)]
pub extern "C" fn hvsock_error_code() -> u32 {
    last_error::with(|last| last.code)
}

/// Returns the number of errno.h for the last failed call of this thread; 0 before one fails. It does not change errno.
#[unsafe(no_mangle)]
pub extern "C" fn hvsock_error_errno() -> c_int {
    last_error::with(|last| last.errno)
}

/// Returns the number of winsock2.h for the last failed call of this thread; 0 before one fails.
#[unsafe(no_mangle)]
pub extern "C" fn hvsock_error_wsa() -> c_int {
    last_error::with(|last| last.wsa)
}

/// Returns the label of the refusal, such as "no_listener", or "". As all texts of an error it is valid until the next
/// call of this thread fails.
#[unsafe(no_mangle)]
pub extern "C" fn hvsock_error_label() -> *const c_char {
    last_error::text(Text::Label)
}

/// Returns what failed and why, as a sentence for people; "" before a call fails.
#[unsafe(no_mangle)]
pub extern "C" fn hvsock_error_text() -> *const c_char {
    last_error::text(Text::Message)
}

/// Returns what would help, as a sentence for people, or "" if that is not known. A refused request has one if it was
/// made with HVSOCK_EXPLAIN.
#[unsafe(no_mangle)]
pub extern "C" fn hvsock_error_fix() -> *const c_char {
    last_error::text(Text::Fix)
}

/// Returns the kind of that help, such as "start_listener", for a program that has commands of its own; "" if there is
/// none. docs/endpoint.md lists the kinds.
#[unsafe(no_mangle)]
pub extern "C" fn hvsock_error_fix_kind() -> *const c_char {
    last_error::text(Text::FixKind)
}

/// Returns why the request was refused, check by check, if it was made with HVSOCK_EXPLAIN; otherwise "".
#[unsafe(no_mangle)]
pub extern "C" fn hvsock_error_explanation() -> *const c_char {
    last_error::text(Text::Explanation)
}
