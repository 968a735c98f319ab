//! The compute systems of the host compute service (HCS): containers, and virtual machines that Hyper-V
//! Manager does not show, such as WSL's.
//!
//! Source: learn.microsoft.com/virtualization/api/hcs/reference/hcsenumeratecomputesystems and the
//! pages of the other functions. `computecore.dll` is part of Windows 10 and Windows Server from
//! version 1809 on. It is loaded on first use, so that programs start without it.

use std::ffi::{OsString, c_void};
use std::io;
use std::os::windows::ffi::OsStringExt;
use std::ptr;
use std::sync::OnceLock;
use std::time::Duration;

use windows_sys::Win32::Foundation::{
    E_ACCESSDENIED, HCS_E_ACCESS_DENIED, HCS_E_CONNECTION_TIMEOUT, HCS_E_OPERATION_TIMEOUT,
    HCS_E_SERVICE_NOT_AVAILABLE, LocalFree,
};
use windows_sys::Win32::System::LibraryLoader::{
    GetProcAddress, LOAD_LIBRARY_SEARCH_SYSTEM32, LoadLibraryExW,
};
use windows_sys::core::{HRESULT, PCSTR, PCWSTR, PWSTR, s, w};

/// `HCS_OPERATION`.
type Operation = *mut c_void;

type Create = unsafe extern "system" fn(*const c_void, *const c_void) -> Operation;
type Enumerate = unsafe extern "system" fn(PCWSTR, Operation) -> HRESULT;
type Wait = unsafe extern "system" fn(Operation, u32, *mut PWSTR) -> HRESULT;
type Close = unsafe extern "system" fn(Operation);
/// The type that `GetProcAddress` returns.
type FarProc = unsafe extern "system" fn() -> isize;

/// The functions of `computecore.dll` that are called, with their signatures in `computecore.h`.
struct Functions {
    /// `HcsCreateOperation(context, callback)`
    create: Create,
    /// `HcsEnumerateComputeSystems(query, operation)`
    enumerate: Enumerate,
    /// `HcsWaitForOperationResult(operation, milliseconds, result)`
    wait: Wait,
    /// `HcsCloseOperation(operation)`
    close: Close,
}

/// Lists all compute systems, as the JSON text of the service.
///
/// # Errors
///
/// [`PermissionDenied`](io::ErrorKind::PermissionDenied) unless the caller is an administrator or in the
/// group `Hyper-V Administrators`; [`Unsupported`](io::ErrorKind::Unsupported) if there is no such service;
/// [`TimedOut`](io::ErrorKind::TimedOut) if it does not answer within `limit`.
pub fn compute_systems(limit: Duration) -> io::Result<String> {
    let functions = functions()?;
    // SAFETY: null context and callback are allowed; the result is waited for.
    let operation = unsafe { (functions.create)(ptr::null(), ptr::null()) };
    if operation.is_null() {
        return Err(io::Error::last_os_error());
    }
    let operation = Handle {
        operation,
        close: functions.close,
    };
    // SAFETY: a null query selects every system, and the operation is open.
    check(unsafe { (functions.enumerate)(ptr::null(), operation.operation) })?;
    let mut text = Text(ptr::null_mut());
    // `INFINITE` is u32::MAX.
    let limit = u32::try_from(limit.as_millis()).map_or(u32::MAX - 1, |ms| ms.min(u32::MAX - 1));
    // SAFETY: the operation is open. `Text` frees the result, also on failure.
    check(unsafe { (functions.wait)(operation.operation, limit, &mut text.0) })?;
    text.to_string()
}

/// An open operation.
struct Handle {
    operation: Operation,
    close: Close,
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: it is open, and nothing uses it afterwards.
        unsafe { (self.close)(self.operation) };
    }
}

/// Text allocated by the service, or null.
struct Text(PWSTR);

impl Text {
    fn to_string(&self) -> io::Result<String> {
        if self.0.is_null() {
            return Ok(String::new());
        }
        // SAFETY: the text is NUL-terminated, and nothing writes to it any more.
        let wide = unsafe {
            let len = (0..).take_while(|at| *self.0.add(*at) != 0).count();
            std::slice::from_raw_parts(self.0, len)
        };
        let invalid = |_| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                "the host compute service returned invalid UTF-16",
            )
        };
        OsString::from_wide(wide).into_string().map_err(invalid)
    }
}

impl Drop for Text {
    fn drop(&mut self) {
        // SAFETY: the functions' documentation requires LocalFree for it; null is allowed.
        unsafe { LocalFree(self.0.cast()) };
    }
}

fn functions() -> io::Result<&'static Functions> {
    static FUNCTIONS: OnceLock<Option<Functions>> = OnceLock::new();
    let functions = FUNCTIONS.get_or_init(load).as_ref();
    functions.ok_or_else(|| {
        let text = "no host compute service on this machine (computecore.dll)";
        io::Error::new(io::ErrorKind::Unsupported, text)
    })
}

/// Loads the library until the process ends, from the system folder only.
fn load() -> Option<Functions> {
    let name = w!("computecore.dll");
    // SAFETY: the name is a constant, and the library is part of Windows.
    let library = unsafe { LoadLibraryExW(name, ptr::null_mut(), LOAD_LIBRARY_SEARCH_SYSTEM32) };
    if library.is_null() {
        return None;
    }
    // SAFETY: the library stays loaded, and the names are constants.
    let function = |name: PCSTR| unsafe { GetProcAddress(library, name) };
    let create = function(s!("HcsCreateOperation"))?;
    let enumerate = function(s!("HcsEnumerateComputeSystems"))?;
    let wait = function(s!("HcsWaitForOperationResult"))?;
    let close = function(s!("HcsCloseOperation"))?;
    // SAFETY: these are the functions' signatures.
    unsafe {
        Some(Functions {
            create: std::mem::transmute::<FarProc, Create>(create),
            enumerate: std::mem::transmute::<FarProc, Enumerate>(enumerate),
            wait: std::mem::transmute::<FarProc, Wait>(wait),
            close: std::mem::transmute::<FarProc, Close>(close),
        })
    }
}

fn check(result: HRESULT) -> io::Result<()> {
    if result >= 0 {
        return Ok(());
    }
    let kind = match result {
        E_ACCESSDENIED | HCS_E_ACCESS_DENIED => io::ErrorKind::PermissionDenied,
        HCS_E_OPERATION_TIMEOUT | HCS_E_CONNECTION_TIMEOUT => io::ErrorKind::TimedOut,
        HCS_E_SERVICE_NOT_AVAILABLE => io::ErrorKind::Unsupported,
        _ => io::ErrorKind::Other,
    };
    let text = format!("the host compute service failed with {:#010x}", result);
    Err(io::Error::new(kind, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_the_service_the_error_has_its_kind() {
        match compute_systems(Duration::from_secs(5)) {
            // A Windows with containers or virtual machines.
            Ok(list) => assert!(list.starts_with('[') || list == "null", "{list}"),
            Err(error) => assert!(
                matches!(
                    error.kind(),
                    io::ErrorKind::Unsupported
                        | io::ErrorKind::PermissionDenied
                        | io::ErrorKind::TimedOut
                ),
                "{error}"
            ),
        }
    }

    #[test]
    fn a_failure_has_its_kind_and_number() {
        for (number, kind) in [
            (0x8007_0005_u32, io::ErrorKind::PermissionDenied),
            (0x8037_011b, io::ErrorKind::PermissionDenied),
            (0x8037_0118, io::ErrorKind::TimedOut),
            (0x8037_0100, io::ErrorKind::Other),
        ] {
            let error = check(number.cast_signed()).unwrap_err();
            assert_eq!(error.kind(), kind);
            assert!(
                error.to_string().contains(&format!("{number:#010x}")),
                "{error}"
            );
        }
        assert!(check(0).is_ok());
    }
}
