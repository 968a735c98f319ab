//! The bytes of a connection in place, in the memory that is shared with the peer.
//!
//! A borrow is a lock guard of the ring with the connection that it borrows from. C has no lifetimes, so both are kept
//! together, and rules that Rust checks at compile time are checked at run time: a borrow ends in the thread that began
//! it, and that thread does nothing else with the same direction meanwhile.

use std::ffi::{c_int, c_void};
use std::io;
use std::sync::Arc;

use hvsock::{Bytes, Filled, Reserved};

use super::connection::{Connection, hvsock_connection};
use super::{from_handle, guard, handle, into_handle, store};

/// Bytes in memory that the peer shares, and may change at any time.
#[allow(non_camel_case_types, reason = "the name in C")]
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct hvsock_segment {
    /// The first byte.
    pub data: *mut c_void,
    /// The number of bytes; may be 0.
    pub length: usize,
}

/// Received bytes that are borrowed until hvsock_consume.
#[allow(non_camel_case_types, reason = "the name in C")]
#[derive(Debug)]
pub struct hvsock_filled {
    /// Borrows from `connection`; declared first, so that it is dropped first.
    bytes: Filled<'static>,
    connection: Arc<Connection>,
}

/// Free space that is reserved until hvsock_commit.
#[allow(non_camel_case_types, reason = "the name in C")]
#[derive(Debug)]
pub struct hvsock_reserved {
    /// Borrows from `connection`; declared first, so that it is dropped first.
    space: Reserved<'static>,
    connection: Arc<Connection>,
}

/// The connection with the lifetime that C manages.
///
/// # Safety
///
/// What is borrowed from the result is dropped before the `Arc`.
unsafe fn unbounded(connection: &Arc<Connection>) -> &'static Connection {
    // SAFETY: the value behind an `Arc` does not move, and lives as long as the caller promises.
    unsafe { &*Arc::as_ptr(connection) }
}

fn segments(bytes: [Bytes<'_>; 2]) -> [hvsock_segment; 2] {
    bytes.map(|bytes| hvsock_segment {
        data: bytes.as_ptr().cast_mut().cast(),
        length: bytes.len(),
    })
}

/// Borrows the received bytes in place. Stores a handle for hvsock_consume and the two segments that the bytes are in, in
/// order; the second may be empty. Returns 1, 0 at the end of the data (nothing is stored), or -1. It blocks as
/// hvsock_read does. ENOTSUP without shared memory (hvsock_transport is not "ring").
///
/// The peer can change the bytes while they are read: copy what a decision depends on, and decide on the copy. Until
/// hvsock_consume, other threads wait in hvsock_read; this one gets EDEADLK there.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hvsock_fill(
    connection: *const hvsock_connection,
    filled: *mut *mut hvsock_filled,
    to: *mut hvsock_segment,
) -> c_int {
    guard(-1, || {
        if filled.is_null() || to.is_null() {
            return Err(super::null("the result"));
        }
        // SAFETY: the program passes a handle.
        let connection = Arc::clone(&unsafe { handle(connection) }?.inner);
        connection.reading.check()?;
        // SAFETY: `hvsock_filled` drops the bytes before the connection.
        let Some(bytes) = unsafe { unbounded(&connection) }.stream.fill()? else {
            return Ok(0);
        };
        connection.reading.begin();
        let found = segments(bytes.segments());
        // SAFETY: the program passes memory for both.
        unsafe {
            store(to.cast(), found, "the segments")?;
            store(
                filled,
                into_handle(hvsock_filled { bytes, connection }),
                "the handle",
            )?;
        }
        Ok(1)
    })
}

/// Frees the first `count` of the borrowed bytes and ends the borrow; the rest is read next. Returns 0, or -1 if there
/// are not that many (EINVAL) or another thread has borrowed them (EPERM); then the borrow goes on. NULL is ignored.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hvsock_consume(filled: *mut hvsock_filled, count: usize) -> c_int {
    guard(-1, || {
        if filled.is_null() {
            return Ok(0);
        }
        // SAFETY: the program passes a handle of `hvsock_fill`.
        let borrowed = unsafe { handle(filled) }?;
        borrowed.connection.reading.check_own()?;
        if count > borrowed.bytes.len() {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        // SAFETY: as above, for the last time.
        let Some(borrowed) = (unsafe { from_handle(filled) }) else {
            return Ok(0);
        };
        let hvsock_filled { bytes, connection } = *borrowed;
        // Before the lock is free: the next thread to have it stores its own number.
        connection.reading.end();
        bytes.consume(count)?;
        Ok(0)
    })
}

/// Reserves free space in place for at most `wanted` bytes. Stores a handle for hvsock_commit and the two segments of
/// the space, in order; the second may be empty. Together they may be shorter than `wanted`, but have a byte. Returns
/// 1, or -1. It blocks as hvsock_write does. ENOTSUP without shared memory.
///
/// Do not read the space: the peer can change it. Until hvsock_commit, other threads wait in hvsock_write; this one gets
/// EDEADLK there.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hvsock_reserve(
    connection: *const hvsock_connection,
    wanted: usize,
    reserved: *mut *mut hvsock_reserved,
    to: *mut hvsock_segment,
) -> c_int {
    guard(-1, || {
        if reserved.is_null() || to.is_null() {
            return Err(super::null("the result"));
        }
        // SAFETY: the program passes a handle.
        let connection = Arc::clone(&unsafe { handle(connection) }?.inner);
        connection.writing.check()?;
        // SAFETY: `hvsock_reserved` drops the space before the connection.
        let space = unsafe { unbounded(&connection) }.stream.reserve(wanted)?;
        connection.writing.begin();
        let found = segments(space.segments());
        // SAFETY: the program passes memory for both.
        unsafe {
            store(to.cast(), found, "the segments")?;
            let space = hvsock_reserved { space, connection };
            store(reserved, into_handle(space), "the handle")?;
        }
        Ok(1)
    })
}

/// Sends the first `count` bytes of the reserved space and ends the reservation; 0 sends nothing. Returns 0, or -1: EINVAL
/// if there are not that many, EPERM if another thread has reserved it (then the reservation goes on), or the error of
/// a write. NULL is ignored.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hvsock_commit(reserved: *mut hvsock_reserved, count: usize) -> c_int {
    guard(-1, || {
        if reserved.is_null() {
            return Ok(0);
        }
        // SAFETY: the program passes a handle of `hvsock_reserve`.
        let borrowed = unsafe { handle(reserved) }?;
        borrowed.connection.writing.check_own()?;
        if count > borrowed.space.len() {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        // SAFETY: as above, for the last time.
        let Some(borrowed) = (unsafe { from_handle(reserved) }) else {
            return Ok(0);
        };
        let hvsock_reserved { space, connection } = *borrowed;
        connection.writing.end();
        if count > 0 {
            space.commit(count)?;
        }
        Ok(0)
    })
}
