//! Listeners.

use std::ffi::{c_char, c_int, c_void};
use std::io;
use std::os::fd::AsRawFd;

use hvsock::{HvListener, ToHvAddr};

use super::connection::hvsock_connection;
use super::options::{Options, hvsock_options, names_and_options, timeout};
use super::{address, from_handle, guard, handle, into_handle, store};

/// A listener. Any number of threads may accept at a time. No thread may be in a call with it when it is closed.
#[allow(non_camel_case_types, reason = "the name in C")]
#[derive(Debug)]
pub struct hvsock_listener {
    inner: HvListener,
}

/// Listens for connections to a service and returns the listener, or NULL. Blocks up to 5 seconds for the broker.
///
/// `from` says whose: any, children, parent, loopback, a GUID or a name. `service` is as in hvsock_connect, `options` may
/// be NULL. A listener that could never get a connection is refused.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hvsock_listen(
    from: *const c_char,
    service: *const c_char,
    options: *const hvsock_options,
) -> *mut hvsock_listener {
    guard(std::ptr::null_mut(), || {
        // SAFETY: the program passes texts and options.
        let (at, options) = unsafe { names_and_options(from, service, options) }?;
        listening(&options, at)
    })
}

/// Listens at a SOCKADDR_HV, as hvsock_listen does. `length` is its size in bytes, at least 36.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hvsock_listen_address(
    at: *const c_void,
    length: usize,
    options: *const hvsock_options,
) -> *mut hvsock_listener {
    guard(std::ptr::null_mut(), || {
        // SAFETY: the program passes an address of that length, and options.
        let (at, options) = unsafe { (address(at, length)?, Options::read(options)?) };
        listening(&options, at)
    })
}

fn listening(options: &Options, at: impl ToHvAddr + Copy) -> io::Result<*mut hvsock_listener> {
    let options = options.to_listen();
    let inner = options.listen(at)?;
    Ok(into_handle(hvsock_listener { inner }))
}

/// Accepts a connection and returns it, or NULL. Waits at most `timeout_ms` (ETIMEDOUT); -1 is no limit. In non-blocking
/// mode it does not wait (EAGAIN).
///
/// After ECONNRESET the listener has ended, and the functions hvsock_error_... say why; other errors do not end it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hvsock_accept(
    listener: *const hvsock_listener,
    timeout_ms: c_int,
) -> *mut hvsock_connection {
    guard(std::ptr::null_mut(), || {
        // SAFETY: the program passes a handle.
        let listener = unsafe { handle(listener) }?;
        let (stream, _) = match timeout(timeout_ms) {
            Some(limit) => listener.inner.accept_timeout(limit)?,
            None => listener.inner.accept()?,
        };
        Ok(into_handle(hvsock_connection::new(stream)))
    })
}

/// Returns the descriptor for poll or epoll, readable when hvsock_accept does not block: watch it for POLLIN, since the
/// kernel does not wake a poll for POLLRDNORM alone. It is so while a connection waits, whether or not an accept has
/// failed with EAGAIN before; and it may be so without one, so set non-blocking mode. It belongs to the listener: do not
/// read or close it. -1 for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hvsock_listener_poll_fd(listener: *const hvsock_listener) -> c_int {
    guard(-1, || {
        // SAFETY: the program passes a handle.
        Ok(unsafe { handle(listener) }?.inner.as_raw_fd())
    })
}

/// Sets non-blocking mode if `on` is not 0. Accepted connections start in blocking mode. Returns 0, or -1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hvsock_listener_set_nonblocking(
    listener: *const hvsock_listener,
    on: c_int,
) -> c_int {
    guard(-1, || {
        // SAFETY: the program passes a handle.
        unsafe { handle(listener) }?
            .inner
            .set_nonblocking(on != 0)?;
        Ok(0)
    })
}

/// Stores the address that it listens at, with names resolved: a SOCKADDR_HV of 36 bytes. Returns 0, or -1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hvsock_listener_address(
    listener: *const hvsock_listener,
    to: *mut c_void,
) -> c_int {
    guard(-1, || {
        // SAFETY: the program passes a handle and 36 bytes.
        unsafe {
            let local = handle(listener)?.inner.local_addr()?;
            store(to.cast(), local.to_bytes(), "the address")?;
        }
        Ok(0)
    })
}

/// Closes the listener. Connections that were not accepted are reset; accepted ones go on. NULL is ignored.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hvsock_listener_close(listener: *mut hvsock_listener) {
    guard((), || {
        // SAFETY: the program passes a handle for the last time.
        if let Some(listener) = unsafe { from_handle(listener) } {
            drop(listener);
        }
        Ok(())
    });
}
