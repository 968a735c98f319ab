//! Connections.

use std::ffi::{CString, c_char, c_int, c_void};
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, IntoRawFd};
use std::sync::Arc;

use hvsock::{HvStream, HvUrl, Interest, SockAddrHv, ToHvAddr};

use super::borrowed::Borrowed;
use super::options::{Options, hvsock_options, names_and_options, timeout};
use super::{
    address, buffer, bytes, from_handle, guard, handle, into_handle, invalid, store, text,
};

/// No more data comes from this end or is wanted by it: hvsock_shutdown.
pub const HVSOCK_SHUTDOWN_READ: c_int = 0;
/// The peer reads everything that was written, and then the end.
pub const HVSOCK_SHUTDOWN_WRITE: c_int = 1;
/// Both.
pub const HVSOCK_SHUTDOWN_BOTH: c_int = 2;

/// Reading does not block, or an accept: hvsock_poll.
pub const HVSOCK_READABLE: c_int = 1;
/// Writing does not block.
pub const HVSOCK_WRITABLE: c_int = 2;

/// A connection. Any number of threads may use one at a time: one reads while another writes. hvsock_close ends the use of
/// a handle; no other thread may be in a call with it then. hvsock_clone makes a handle for another thread.
#[allow(non_camel_case_types, reason = "the name in C")]
#[derive(Debug)]
pub struct hvsock_connection {
    pub(super) inner: Arc<Connection>,
}

/// What all handles of a connection share.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) stream: HvStream,
    pub(super) reading: Borrowed,
    pub(super) writing: Borrowed,
    partition: CString,
}

/// The process that connected.
#[allow(non_camel_case_types, reason = "the name in C")]
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct hvsock_peer {
    /// The name of its partition. It is valid as long as the connection.
    pub partition: *const c_char,
    /// Its process id; -1 if it has no meaning in this partition.
    pub pid: i64,
    /// Its user id; -1 likewise.
    pub uid: i64,
    /// Its group id; -1 likewise.
    pub gid: i64,
}

impl hvsock_connection {
    pub(super) fn new(stream: HvStream) -> Self {
        let partition = stream.peer().map(|peer| peer.partition().replace('\0', ""));
        Self {
            inner: Arc::new(Connection {
                partition: CString::new(partition.unwrap_or_default()).unwrap_or_default(),
                stream,
                reading: Borrowed::default(),
                writing: Borrowed::default(),
            }),
        }
    }
}

/// Connects to a service and returns the connection, or NULL.
///
/// `partition` is a keyword (parent, loopback, silohost), a GUID or a name; `service` is a GUID, a vsock port or a friendly
/// name. Blocks up to the timeout of the options, which may be NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hvsock_connect(
    partition: *const c_char,
    service: *const c_char,
    options: *const hvsock_options,
) -> *mut hvsock_connection {
    guard(std::ptr::null_mut(), || {
        // SAFETY: the program passes texts and options.
        let (to, options) = unsafe { names_and_options(partition, service, options) }?;
        connected(&options, to)
    })
}

/// Connects to the service of an hvsock:// URL, as hvsock_connect does.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hvsock_connect_url(
    url: *const c_char,
    options: *const hvsock_options,
) -> *mut hvsock_connection {
    guard(std::ptr::null_mut(), || {
        // SAFETY: the program passes a text and options.
        let (url, options) = unsafe { (text(url, "the URL")?, Options::read(options)?) };
        connected(&options, url.parse::<HvUrl>().map_err(invalid)?)
    })
}

/// Connects to the service at a SOCKADDR_HV, as hvsock_connect does. `length` is its size in bytes, at least 36.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hvsock_connect_address(
    to: *const c_void,
    length: usize,
    options: *const hvsock_options,
) -> *mut hvsock_connection {
    guard(std::ptr::null_mut(), || {
        // SAFETY: the program passes an address of that length, and options.
        let (to, options) = unsafe { (address(to, length)?, Options::read(options)?) };
        connected(&options, to)
    })
}

fn connected(options: &Options, to: impl ToHvAddr) -> io::Result<*mut hvsock_connection> {
    let stream = options.to_connect().connect(to)?;
    Ok(into_handle(hvsock_connection::new(stream)))
}

/// Returns another handle of the connection, or NULL. The connection lives until the last one is closed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hvsock_clone(
    connection: *const hvsock_connection,
) -> *mut hvsock_connection {
    guard(std::ptr::null_mut(), || {
        // SAFETY: the program passes a handle that it has not closed.
        let connection = unsafe { handle(connection) }?;
        let inner = Arc::clone(&connection.inner);
        Ok(into_handle(hvsock_connection { inner }))
    })
}

/// Closes a handle. With the last one the connection ends; the peer still reads everything that was written. NULL is
/// ignored.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hvsock_close(connection: *mut hvsock_connection) {
    guard((), || {
        // SAFETY: the program passes a handle for the last time.
        drop(unsafe { from_handle(connection) });
        Ok(())
    });
}

/// Reads at most `length` bytes. Returns how many, 0 at the end of the data, or -1.
///
/// Blocks while there are none, unless the connection is in non-blocking mode (EAGAIN). The end is certain: a peer that
/// was killed is an error.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hvsock_read(
    connection: *const hvsock_connection,
    data: *mut c_void,
    length: usize,
) -> isize {
    guard(-1, || {
        // SAFETY: the program passes a handle and a buffer of that length.
        let (connection, data) = unsafe { (handle(connection)?, buffer(data, length)?) };
        connection.inner.reading.check()?;
        let count = (&connection.inner.stream).read(data)?;
        Ok(count.try_into().unwrap_or(isize::MAX))
    })
}

/// Reads as hvsock_read does, and leaves the bytes for the next read.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hvsock_peek(
    connection: *const hvsock_connection,
    data: *mut c_void,
    length: usize,
) -> isize {
    guard(-1, || {
        // SAFETY: as in `hvsock_read`.
        let (connection, data) = unsafe { (handle(connection)?, buffer(data, length)?) };
        connection.inner.reading.check()?;
        let count = connection.inner.stream.peek(data)?;
        Ok(count.try_into().unwrap_or(isize::MAX))
    })
}

/// Writes some of the `length` bytes. Returns how many, or -1. Blocks while there is no free space, unless the connection
/// is in non-blocking mode (EAGAIN). It raises no SIGPIPE.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hvsock_write(
    connection: *const hvsock_connection,
    data: *const c_void,
    length: usize,
) -> isize {
    guard(-1, || {
        // SAFETY: the program passes a handle and that many bytes.
        let (connection, data) = unsafe { (handle(connection)?, bytes(data, length)?) };
        connection.inner.writing.check()?;
        let count = (&connection.inner.stream).write(data)?;
        Ok(count.try_into().unwrap_or(isize::MAX))
    })
}

/// Writes all of the bytes. Returns 0, or -1; then some may have been written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hvsock_write_all(
    connection: *const hvsock_connection,
    data: *const c_void,
    length: usize,
) -> c_int {
    guard(-1, || {
        // SAFETY: as in `hvsock_write`.
        let (connection, data) = unsafe { (handle(connection)?, bytes(data, length)?) };
        connection.inner.writing.check()?;
        (&connection.inner.stream).write_all(data)?;
        Ok(0)
    })
}

/// Shuts down one direction or both: HVSOCK_SHUTDOWN_READ, HVSOCK_SHUTDOWN_WRITE (half-close), HVSOCK_SHUTDOWN_BOTH.
/// Returns 0, or -1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hvsock_shutdown(
    connection: *const hvsock_connection,
    how: c_int,
) -> c_int {
    guard(-1, || {
        // SAFETY: the program passes a handle.
        let connection = unsafe { handle(connection) }?;
        let how = match how {
            HVSOCK_SHUTDOWN_READ => Shutdown::Read,
            HVSOCK_SHUTDOWN_WRITE => Shutdown::Write,
            HVSOCK_SHUTDOWN_BOTH => Shutdown::Both,
            _ => return Err(invalid("no such direction")),
        };
        connection.inner.stream.shutdown(how)?;
        Ok(0)
    })
}

/// Waits until reading or writing does not block. `events` is HVSOCK_READABLE, HVSOCK_WRITABLE or both. Returns those
/// that are ready, 0 after `timeout_ms` (-1: no limit), or -1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hvsock_poll(
    connection: *const hvsock_connection,
    events: c_int,
    timeout_ms: c_int,
) -> c_int {
    guard(-1, || {
        // SAFETY: the program passes a handle.
        let connection = unsafe { handle(connection) }?;
        let interest = match events {
            HVSOCK_READABLE => Interest::READABLE,
            HVSOCK_WRITABLE => Interest::WRITABLE,
            3 => Interest::READABLE | Interest::WRITABLE,
            _ => return Err(invalid("no such event")),
        };
        if interest.is_readable() {
            connection.inner.reading.check()?;
        }
        if interest.is_writable() {
            connection.inner.writing.check()?;
        }
        let ready = connection
            .inner
            .stream
            .poll(interest, timeout(timeout_ms))?;
        let readable = if ready.is_readable() {
            HVSOCK_READABLE
        } else {
            0
        };
        let writable = if ready.is_writable() {
            HVSOCK_WRITABLE
        } else {
            0
        };
        Ok(readable | writable)
    })
}

/// Returns the descriptor for poll or epoll, which belongs to the connection: do not read, write or close it.
///
/// Watch it for POLLIN. In non-blocking mode call hvsock_read or hvsock_write until EAGAIN, then wait, then try again. Only
/// with the transport "descriptor" or "direct" watch for POLLOUT, to write. -1 for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hvsock_poll_fd(connection: *const hvsock_connection) -> c_int {
    guard(-1, || {
        // SAFETY: the program passes a handle.
        let connection = unsafe { handle(connection) }?;
        Ok(connection.inner.stream.as_raw_fd())
    })
}

/// Sets non-blocking mode if `on` is not 0, for every handle of the connection. Returns 0, or -1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hvsock_set_nonblocking(
    connection: *const hvsock_connection,
    on: c_int,
) -> c_int {
    guard(-1, || {
        // SAFETY: the program passes a handle.
        let connection = unsafe { handle(connection) }?;
        connection.inner.stream.set_nonblocking(on != 0)?;
        Ok(0)
    })
}

/// Sets how long a read and a write may block, in milliseconds; 0 is no limit. Afterwards they fail with ETIMEDOUT.
/// Returns 0, or -1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hvsock_set_timeouts(
    connection: *const hvsock_connection,
    read_ms: u32,
    write_ms: u32,
) -> c_int {
    guard(-1, || {
        // SAFETY: the program passes a handle.
        let connection = unsafe { handle(connection) }?;
        let limit = |ms: u32| (ms != 0).then(|| std::time::Duration::from_millis(ms.into()));
        connection.inner.stream.set_read_timeout(limit(read_ms))?;
        connection.inner.stream.set_write_timeout(limit(write_ms))?;
        Ok(0)
    })
}

/// Stores the address of this end, a SOCKADDR_HV of 36 bytes. Returns 0, or -1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hvsock_local_address(
    connection: *const hvsock_connection,
    to: *mut c_void,
) -> c_int {
    guard(-1, || {
        // SAFETY: the program passes a handle and 36 bytes.
        unsafe {
            let local = handle(connection)?.inner.stream.local_addr()?;
            store(to.cast(), local.to_bytes(), "the address")?;
        }
        Ok(0)
    })
}

/// Stores the address of the peer, a SOCKADDR_HV of 36 bytes. Returns 0, or -1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hvsock_peer_address(
    connection: *const hvsock_connection,
    to: *mut c_void,
) -> c_int {
    guard(-1, || {
        // SAFETY: the program passes a handle and 36 bytes.
        unsafe {
            let peer: SockAddrHv = handle(connection)?.inner.stream.peer_addr()?;
            store(to.cast(), peer.to_bytes(), "the address")?;
        }
        Ok(0)
    })
}

/// Stores the process that connected, as the kernel and the broker know it. Returns 0, or -1 on the connecting end
/// (ENOTCONN).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hvsock_peer_of(
    connection: *const hvsock_connection,
    to: *mut hvsock_peer,
) -> c_int {
    guard(-1, || {
        // SAFETY: the program passes a handle.
        let connection = unsafe { handle(connection) }?;
        let Some(peer) = connection.inner.stream.peer() else {
            let text = "this end has connected: its peer is a service";
            return Err(io::Error::new(io::ErrorKind::NotConnected, text));
        };
        let number = |id: Option<u32>| id.map_or(-1, i64::from);
        let peer = hvsock_peer {
            partition: connection.inner.partition.as_ptr(),
            pid: number(peer.pid()),
            uid: number(peer.uid()),
            gid: number(peer.gid()),
        };
        // SAFETY: the program passes memory for it.
        unsafe { store(to, peer, "the peer") }?;
        Ok(0)
    })
}

/// Returns how the bytes are transferred: "ring", "descriptor", "direct" or "vsock". NULL for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hvsock_transport(connection: *const hvsock_connection) -> *const c_char {
    guard(std::ptr::null(), || {
        // SAFETY: the program passes a handle.
        let connection = unsafe { handle(connection) }?;
        let name = match connection.inner.stream.transport().name() {
            "ring" => c"ring",
            "descriptor" => c"descriptor",
            "direct" => c"direct",
            "vsock" => c"vsock",
            _ => c"other",
        };
        Ok(name.as_ptr())
    })
}

/// Returns the number of the connection in the broker's list (`hvsock connections`); 0 for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hvsock_connection_id(connection: *const hvsock_connection) -> u64 {
    guard(0, || {
        // SAFETY: the program passes a handle.
        Ok(unsafe { handle(connection) }?.inner.stream.connection_id())
    })
}

/// Returns 1 if the connection was reset, and then the functions hvsock_error_... say why; 0 if it was not; -1 for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hvsock_take_error(connection: *const hvsock_connection) -> c_int {
    guard(-1, || {
        // SAFETY: the program passes a handle.
        match unsafe { handle(connection) }?.inner.stream.take_error()? {
            Some(error) => {
                crate::last_error::set(crate::last_error::LastError::of(&error));
                Ok(1)
            }
            None => Ok(0),
        }
    })
}

/// Converts the connection to a descriptor of the program and closes the handle, which must be the only one. Returns
/// it, or -1; then the handle is still open.
///
/// It is a stream socket, close-on-exec and in blocking mode. Use a connection with HVSOCK_RAW_FD: for any other one two
/// threads copy the bytes as long as this process lives. Its end of file does not tell a clean end from a reset.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hvsock_into_fd(connection: *mut hvsock_connection) -> c_int {
    guard(-1, || {
        // SAFETY: the program passes a handle.
        let shared = unsafe { handle(connection) }?;
        if Arc::strong_count(&shared.inner) > 1 {
            return Err(invalid(
                "the connection has another handle or borrowed bytes",
            ));
        }
        let stream = shared.inner.stream.try_clone()?;
        let fds = stream.into_owned_fds()?;
        // SAFETY: as above, and no other call uses the handle.
        drop(unsafe { from_handle(connection) });
        Ok(fds.data.into_raw_fd())
    })
}
