//! The start and the last error.

use std::ffi::{c_char, c_int, c_short};

use crate::last_error::{self, LastError};
use crate::numbers;

/// `WSADATA`.
#[allow(non_camel_case_types, reason = "the name in C")]
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct hvsock_ws_data {
    version: u16,
    high_version: u16,
    max_sockets: u16,
    max_udp: c_short,
    vendor_info: *mut c_char,
    description: [c_char; 257],
    system_status: [c_char; 129],
}

/// `WSAStartup`. Nothing has to be started; a program of Windows checks the version.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hvsock_ws_WSAStartup(version: u16, data: *mut hvsock_ws_data) -> c_int {
    let (major, minor) = (version & 0xff, version >> 8);
    if major == 0 {
        return numbers::WSAVERNOTSUPPORTED;
    }
    if data.is_null() {
        return numbers::WSAEFAULT;
    }
    let newest = 0x0202;
    let granted = if major > 2 || (major == 2 && minor > 2) {
        newest
    } else {
        version
    };
    let text = |text: &str, to: &mut [c_char]| {
        for (to, byte) in to.iter_mut().zip(text.bytes()) {
            *to = byte as c_char;
        }
    };
    let mut filled = hvsock_ws_data {
        version: granted,
        high_version: newest,
        max_sockets: 0,
        max_udp: 0,
        vendor_info: std::ptr::null_mut(),
        description: [0; 257],
        system_status: [0; 129],
    };
    text("hvsock", &mut filled.description);
    text("Running", &mut filled.system_status);
    // SAFETY: the program passes memory for it.
    unsafe { data.write_unaligned(filled) };
    0
}

/// `WSACleanup`. Sockets are closed by `closesocket` and by the end of the process.
#[unsafe(no_mangle)]
pub extern "C" fn hvsock_ws_WSACleanup() -> c_int {
    0
}

/// `WSAGetLastError`: of this thread.
#[unsafe(no_mangle)]
pub extern "C" fn hvsock_ws_WSAGetLastError() -> c_int {
    last_error::with(|last| last.wsa)
}

/// `WSASetLastError`.
#[unsafe(no_mangle)]
pub extern "C" fn hvsock_ws_WSASetLastError(error: c_int) {
    match error {
        0 => last_error::clear(),
        wsa => last_error::set(LastError::of_errno(numbers::errno_of_wsa(wsa)).with_wsa(wsa)),
    }
}
