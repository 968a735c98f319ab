//! Access lists of registry keys.

use std::io;
use std::ptr::null_mut;

use windows_registry::Key;
use windows_sys::Win32::Foundation::{ERROR_SUCCESS, LocalFree};
use windows_sys::Win32::Security::Authorization::{
    ConvertStringSecurityDescriptorToSecurityDescriptorW, SDDL_REVISION_1,
};
use windows_sys::Win32::Security::DACL_SECURITY_INFORMATION;
use windows_sys::Win32::System::Registry::RegSetKeySecurity;

/// Replaces the access list (DACL) of a key that was opened with `WRITE_DAC`.
///
/// `sddl` is a security descriptor in Microsoft's Security Descriptor Definition Language, such as
/// `D:P(A;;KA;;;WD)`.
///
/// # Errors
///
/// `sddl` is invalid, or the key was opened without `WRITE_DAC`.
pub fn set(key: &Key, sddl: &str) -> io::Result<()> {
    let sddl: Vec<u16> = sddl.encode_utf16().chain([0]).collect();
    let mut descriptor = null_mut();
    // SAFETY: the text is NUL-terminated; the descriptor is freed below.
    let made = unsafe {
        ConvertStringSecurityDescriptorToSecurityDescriptorW(
            sddl.as_ptr(),
            SDDL_REVISION_1,
            &mut descriptor,
            null_mut(),
        )
    };
    if made == 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the key is open, and the descriptor is the one just made.
    let status = unsafe { RegSetKeySecurity(key.as_raw(), DACL_SECURITY_INFORMATION, descriptor) };
    // SAFETY: the system allocated it for the caller, and nothing else uses it.
    unsafe { LocalFree(descriptor) };
    match status {
        ERROR_SUCCESS => Ok(()),
        error => Err(io::Error::from_raw_os_error(error.cast_signed())),
    }
}
