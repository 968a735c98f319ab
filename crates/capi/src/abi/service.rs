//! Names, GUIDs, registrations and explanations.

use std::ffi::{CString, c_char, c_int, c_void};
use std::io;
use std::os::fd::AsRawFd;

use hvsock::{ElementName, Endpoint, Lease, PartitionName, ServiceId, VmId};

use super::options::{endpoint, hvsock_options, names_and_options};
use super::{from_handle, guard, handle, into_handle, invalid, optional_text, store, text};

/// A registration of a service, which ends with this handle or with the process.
#[allow(non_camel_case_types, reason = "the name in C")]
#[derive(Debug)]
pub struct hvsock_lease {
    inner: Lease,
}

/// The endpoint of the program, or that of the environment.
///
/// # Safety
///
/// `at` is NULL or a text.
unsafe fn endpoint_or_default(at: *const c_char) -> io::Result<Endpoint> {
    // SAFETY: as the caller promises.
    let at = unsafe { optional_text(at, "the endpoint") }?;
    Ok(at.map_or_else(Endpoint::from_env, endpoint))
}

/// Stores the GUID of the service with a friendly name, 16 bytes in the order of GUID in hvsocket.h. `at` is an endpoint,
/// as in hvsock_options, or NULL. Returns 0, or -1. Blocks up to 5 seconds.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hvsock_service_id(
    name: *const c_char,
    at: *const c_char,
    to: *mut c_void,
) -> c_int {
    guard(-1, || {
        // SAFETY: the program passes texts.
        let (name, endpoint) = unsafe { (text(name, "the name")?, endpoint_or_default(at)?) };
        let name: ElementName = name.parse().map_err(invalid)?;
        let id = endpoint.service_id(&name)?;
        // SAFETY: the program passes 16 bytes.
        unsafe { store(to.cast(), id.to_guid_bytes(), "the GUID") }?;
        Ok(0)
    })
}

/// Stores the GUID of the partition with a name, as hvsock_service_id does.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hvsock_partition_id(
    name: *const c_char,
    at: *const c_char,
    to: *mut c_void,
) -> c_int {
    guard(-1, || {
        // SAFETY: the program passes texts.
        let (name, endpoint) = unsafe { (text(name, "the name")?, endpoint_or_default(at)?) };
        let name: PartitionName = name.parse().map_err(invalid)?;
        let id = endpoint.vm_id(&name)?;
        // SAFETY: the program passes 16 bytes.
        unsafe { store(to.cast(), id.to_guid_bytes(), "the GUID") }?;
        Ok(0)
    })
}

/// Stores the GUID of a vsock port: the port in the first field of HV_GUID_VSOCK_TEMPLATE. Returns 0, or -1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hvsock_service_of_port(port: u32, to: *mut c_void) -> c_int {
    guard(-1, || {
        let id = ServiceId::from_port(port).to_guid_bytes();
        // SAFETY: the program passes 16 bytes.
        unsafe { store(to.cast(), id, "the GUID") }?;
        Ok(0)
    })
}

/// Stores the GUID of a text such as "{999e53d4-3d5c-4c3e-8779-bed06ec056e1}", with or without braces. Returns 0, or -1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hvsock_guid_parse(from: *const c_char, to: *mut c_void) -> c_int {
    guard(-1, || {
        // SAFETY: the program passes a text.
        let from = unsafe { text(from, "the GUID") }?;
        let id: VmId = from.parse().map_err(invalid)?;
        // SAFETY: the program passes 16 bytes.
        unsafe { store(to.cast(), id.to_guid_bytes(), "the GUID") }?;
        Ok(0)
    })
}

/// Stores the text of a GUID in lower case, 36 characters and a NUL. Returns 0, or -1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hvsock_guid_format(from: *const c_void, to: *mut c_char) -> c_int {
    guard(-1, || {
        // SAFETY: the program passes 16 bytes, of no alignment.
        let from = unsafe { super::bytes(from, 16) }?;
        let mut guid = [0; 16];
        guid.copy_from_slice(from);
        // A service: a partition's well-known ids are shown as words.
        let shown = ServiceId::from_guid_bytes(guid).to_string();
        let mut text = [0; 37];
        for (to, byte) in text.iter_mut().zip(shown.bytes().take(36)) {
            *to = byte;
        }
        // SAFETY: the program passes 37 bytes.
        unsafe { store(to.cast(), text, "the text") }?;
        Ok(0)
    })
}

/// Registers a service for as long as the lease is open and returns that, or NULL. `id` is 16 bytes, or NULL for a random
/// GUID; `purpose` and `at` (an endpoint) may be NULL. Blocks up to 5 seconds.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hvsock_register(
    name: *const c_char,
    id: *const c_void,
    purpose: *const c_char,
    at: *const c_char,
) -> *mut hvsock_lease {
    guard(std::ptr::null_mut(), || {
        // SAFETY: the program passes texts, and 16 bytes of no alignment.
        let (name, id, purpose, endpoint) = unsafe {
            let id = (!id.is_null()).then(|| id.cast::<[u8; 16]>().read_unaligned());
            (
                text(name, "the name")?,
                id.map_or_else(ServiceId::random, ServiceId::from_guid_bytes),
                optional_text(purpose, "the purpose")?,
                endpoint_or_default(at)?,
            )
        };
        let inner = Lease::register_at(&endpoint, name, id, purpose.unwrap_or_default())?;
        Ok(into_handle(hvsock_lease { inner }))
    })
}

/// Stores the GUID of the registered service, 16 bytes. Returns 0, or -1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hvsock_lease_id(lease: *const hvsock_lease, to: *mut c_void) -> c_int {
    guard(-1, || {
        // SAFETY: the program passes a handle and 16 bytes.
        unsafe {
            let id = handle(lease)?.inner.id().to_guid_bytes();
            store(to.cast(), id, "the GUID")?;
        }
        Ok(0)
    })
}

/// Returns 0 while the registration exists, otherwise -1, and the functions hvsock_error_... say why. Does not block.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hvsock_lease_check(lease: *const hvsock_lease) -> c_int {
    guard(-1, || {
        // SAFETY: the program passes a handle.
        unsafe { handle(lease) }?.inner.check()?;
        Ok(0)
    })
}

/// Returns the descriptor for poll or epoll, readable when the registration has ended. It belongs to the lease. -1 for
/// NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hvsock_lease_poll_fd(lease: *const hvsock_lease) -> c_int {
    guard(-1, || {
        use std::os::fd::AsFd;
        // SAFETY: the program passes a handle.
        Ok(unsafe { handle(lease) }?.inner.as_fd().as_raw_fd())
    })
}

/// Ends the registration. NULL is ignored.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hvsock_lease_close(lease: *mut hvsock_lease) {
    guard((), || {
        // SAFETY: the program passes a handle for the last time.
        drop(unsafe { from_handle(lease) });
        Ok(())
    });
}

/// Explains what hvsock_connect would do, without connecting. Returns the text, for hvsock_text_free, or NULL. Stores 1
/// where `succeeds` points if it would succeed and 0 if not; `succeeds` and `options` may be NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hvsock_explain_connect(
    partition: *const c_char,
    service: *const c_char,
    options: *const hvsock_options,
    succeeds: *mut c_int,
) -> *mut c_char {
    guard(std::ptr::null_mut(), || {
        // SAFETY: the program passes texts and options.
        let (to, options) = unsafe { names_and_options(partition, service, options) }?;
        let explanation = options.to_connect().explain(to)?;
        // SAFETY: the program passes NULL or memory for the number.
        unsafe { explained(&explanation, succeeds) }
    })
}

/// Explains what hvsock_listen would do, as hvsock_explain_connect does.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hvsock_explain_listen(
    from: *const c_char,
    service: *const c_char,
    options: *const hvsock_options,
    succeeds: *mut c_int,
) -> *mut c_char {
    guard(std::ptr::null_mut(), || {
        // SAFETY: the program passes texts and options.
        let (at, options) = unsafe { names_and_options(from, service, options) }?;
        let explanation = options.to_listen().explain(at)?;
        // SAFETY: the program passes NULL or memory for the number.
        unsafe { explained(&explanation, succeeds) }
    })
}

/// The text of an explanation, for the program.
///
/// # Safety
///
/// `succeeds` is NULL or points to memory for the number.
unsafe fn explained(
    explanation: &hvsock::Explanation,
    succeeds: *mut c_int,
) -> io::Result<*mut c_char> {
    if !succeeds.is_null() {
        // SAFETY: as the caller promises.
        unsafe { store(succeeds, explanation.would_succeed().into(), "") }?;
    }
    let text = explanation.to_string().replace('\0', "");
    Ok(CString::new(text).map_err(invalid)?.into_raw())
}

/// Frees a text that a function of this header returned for it. NULL is ignored.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hvsock_text_free(text: *mut c_char) {
    guard((), || {
        if !text.is_null() {
            // SAFETY: the program passes a text that `CString::into_raw` made, for the last time.
            drop(unsafe { CString::from_raw(text) });
        }
        Ok(())
    });
}
