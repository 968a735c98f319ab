//! `AF_VSOCK` stream sockets, between a virtual machine and its host.
//!
//! Addresses are raw `sockaddr_vm` structures; `hvsock-address` encodes and decodes them. Sending,
//! timeouts and half-closes are those of every stream socket: see [`stream`](super::stream).

use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

/// A `sockaddr_vm`, 16 bytes.
pub type Address = [u8; 16];

/// The device of `AF_VSOCK`. It exists if the kernel has the family.
pub const DEVICE: &str = "/dev/vsock";

// From linux/vm_sockets.h; libc lacks them.
const SO_VM_SOCKETS_BUFFER_SIZE: i32 = 0;
const SO_VM_SOCKETS_BUFFER_MIN_SIZE: i32 = 1;
const SO_VM_SOCKETS_BUFFER_MAX_SIZE: i32 = 2;
const SO_VM_SOCKETS_CONNECT_TIMEOUT_OLD: i32 = 6;
const SO_VM_SOCKETS_CONNECT_TIMEOUT_NEW: i32 = 8;
const IOCTL_VM_SOCKETS_GET_LOCAL_CID: u32 = 0x7b9;

/// Creates a non-blocking stream socket.
///
/// # Errors
///
/// `EAFNOSUPPORT` if the kernel does not have the family.
pub fn socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::VSOCK, SocketType::STREAM, flags, None)?;
    Ok(socket)
}

/// Binds the socket to an address.
///
/// # Errors
///
/// `EADDRINUSE`, `EADDRNOTAVAIL` or `EACCES`, as `bind`.
pub fn bind(socket: impl AsFd, address: &Address) -> io::Result<()> {
    let (fd, address, len) = arguments(socket.as_fd(), address);
    // SAFETY: `address` points at `len` bytes, which the kernel only reads.
    check(unsafe { libc::bind(fd, address, len) })
}

/// Listens. About `backlog` connections may wait for [`accept`]; the kernel limits it to
/// `net.core.somaxconn`.
///
/// # Errors
///
/// `EINVAL` if the socket is not bound.
pub fn listen(socket: impl AsFd, backlog: u32) -> io::Result<()> {
    let backlog = i32::try_from(backlog).unwrap_or(i32::MAX);
    rustix::net::listen(socket, backlog).map_err(Into::into)
}

/// Accepts one waiting connection as a blocking socket, with the peer's address. `None` if none waits on
/// the non-blocking listener.
///
/// # Errors
///
/// Those of `accept4`, except `EAGAIN`, `EINTR`, `ECONNABORTED` and `ECONNRESET`; `InvalidData` if the
/// address is not a `sockaddr_vm`.
pub fn accept(listener: impl AsFd) -> io::Result<Option<(OwnedFd, Address)>> {
    let listener = listener.as_fd();
    loop {
        let mut socket = None;
        let address = address_by(|address, len| {
            let fd = listener.as_raw_fd();
            // SAFETY: the kernel writes at most `*len` bytes to `address`, which has that many.
            let accepted = unsafe { libc::accept4(fd, address, len, libc::SOCK_CLOEXEC) };
            if accepted >= 0 {
                // SAFETY: the kernel has just created it, and nothing else owns it.
                socket = Some(unsafe { OwnedFd::from_raw_fd(accepted) });
            }
            accepted.min(0)
        });
        match (address, socket) {
            (Ok(address), Some(socket)) => return Ok(Some((socket, address))),
            (Err(error), Some(_)) => return Err(error),
            (Ok(_), None) => return Err(io::ErrorKind::InvalidData.into()),
            (Err(error), None) => match Errno::from_io_error(&error) {
                Some(Errno::AGAIN) => return Ok(None),
                // This peer is gone; another may wait.
                Some(Errno::INTR | Errno::CONNABORTED | Errno::CONNRESET) => {}
                _ => return Err(error),
            },
        }
    }
}

/// Starts to connect the non-blocking socket. Once it is writable or has an error, [`connected`] returns
/// the result.
///
/// # Errors
///
/// Those of `connect`, except `EINPROGRESS`.
pub fn connect(socket: impl AsFd, address: &Address) -> io::Result<()> {
    let (fd, address, len) = arguments(socket.as_fd(), address);
    // SAFETY: `address` points at `len` bytes, which the kernel only reads.
    match check(unsafe { libc::connect(fd, address, len) }) {
        Err(error) if Errno::from_io_error(&error) == Some(Errno::INPROGRESS) => Ok(()),
        result => result,
    }
}

/// Whether the socket is connected; `false` while the connect is in progress.
///
/// # Errors
///
/// The error of the connect, reported once.
pub fn connected(socket: impl AsFd) -> io::Result<bool> {
    if let Some(error) = super::take_error(&socket)? {
        return Err(error);
    }
    match peer_address(socket) {
        Ok(_) => Ok(true),
        Err(error) if Errno::from_io_error(&error) == Some(Errno::NOTCONN) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The socket's own address.
///
/// # Errors
///
/// `InvalidData` if the socket is not an `AF_VSOCK` socket.
pub fn local_address(socket: impl AsFd) -> io::Result<Address> {
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: the kernel writes at most `*len` bytes to `address`, which has that many.
    address_by(|address, len| unsafe { libc::getsockname(fd, address, len) })
}

/// The peer's address.
///
/// # Errors
///
/// `ENOTCONN` if the socket is not connected.
pub fn peer_address(socket: impl AsFd) -> io::Result<Address> {
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: the kernel writes at most `*len` bytes to `address`, which has that many.
    address_by(|address, len| unsafe { libc::getpeername(fd, address, len) })
}

/// Whether the socket is an `AF_VSOCK` stream socket, as opposed to any other descriptor.
pub fn is_vsock(socket: impl AsFd) -> bool {
    let domain = rustix::net::sockopt::socket_domain(&socket);
    let kind = rustix::net::sockopt::socket_type(&socket);
    domain == Ok(AddressFamily::VSOCK) && kind == Ok(SocketType::STREAM)
}

/// Whether the socket listens.
///
/// # Errors
///
/// `ENOTSOCK` if `socket` is not a socket.
pub fn is_listening(socket: impl AsFd) -> io::Result<bool> {
    rustix::net::sockopt::socket_acceptconn(socket).map_err(Into::into)
}

/// Sets the timeout of a connect, after which it fails with `ETIMEDOUT`. The default is 2 seconds.
///
/// # Errors
///
/// Those of `setsockopt`.
pub fn set_connect_timeout(socket: impl AsFd, timeout: Duration) -> io::Result<()> {
    // Where used, both are a pair of 64-bit numbers; older kernels have the old option only.
    let option = if size_of::<libc::c_long>() == 8 {
        SO_VM_SOCKETS_CONNECT_TIMEOUT_OLD
    } else {
        SO_VM_SOCKETS_CONNECT_TIMEOUT_NEW
    };
    let seconds = i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX);
    let value = [seconds, i64::from(timeout.subsec_micros())];
    set(socket.as_fd(), option, &value)
}

/// Sets the size of the receive buffer in bytes (`buf_alloc`).
///
/// # Errors
///
/// Those of `setsockopt`.
pub fn set_buffer_size(socket: impl AsFd, bytes: u64) -> io::Result<()> {
    let socket = socket.as_fd();
    set(socket, SO_VM_SOCKETS_BUFFER_MIN_SIZE, &bytes.min(128))?;
    set(
        socket,
        SO_VM_SOCKETS_BUFFER_MAX_SIZE,
        &bytes.max(256 * 1024),
    )?;
    set(socket, SO_VM_SOCKETS_BUFFER_SIZE, &bytes)
}

/// This machine's context id: the guest's CID in a virtual machine, 2 in a host, `VMADDR_CID_ANY` without
/// a transport.
///
/// # Errors
///
/// Those of opening [`DEVICE`], such as `ENOENT`.
pub fn local_cid() -> io::Result<u32> {
    let device = rustix::fs::open(DEVICE, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    // SAFETY: this request writes one u32, and nothing else.
    let getter = unsafe { rustix::ioctl::Getter::<IOCTL_VM_SOCKETS_GET_LOCAL_CID, u32>::new() };
    // SAFETY: as above; the kernel checks the type of the device first.
    unsafe { rustix::ioctl::ioctl(device, getter) }.map_err(Into::into)
}

fn arguments(
    socket: BorrowedFd<'_>,
    address: &Address,
) -> (i32, *const libc::sockaddr, libc::socklen_t) {
    let len = size_of::<Address>() as libc::socklen_t;
    (socket.as_raw_fd(), address.as_ptr().cast(), len)
}

/// The address that `call` writes. `InvalidData` if it is shorter than a `sockaddr_vm`.
fn address_by(
    call: impl FnOnce(*mut libc::sockaddr, *mut libc::socklen_t) -> i32,
) -> io::Result<Address> {
    let mut address = [0; size_of::<Address>()];
    let mut len = size_of::<Address>() as libc::socklen_t;
    check(call(address.as_mut_ptr().cast(), &raw mut len))?;
    if (len as usize) < address.len() {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(address)
}

fn set<T: Copy>(socket: BorrowedFd<'_>, option: i32, value: &T) -> io::Result<()> {
    let level = i32::from(AddressFamily::VSOCK.as_raw());
    // SAFETY: the kernel reads `size_of::<T>()` bytes at `value`, which has that many.
    check(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (value as *const T).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    })
}

fn check(result: i32) -> io::Result<()> {
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Connections need a transport, which the test machine may lack: the tests of `hvsock` make them in
    // a virtual machine.

    #[test]
    fn a_socket_of_another_family_fails_every_call() {
        let (a, _b) = crate::stream::pair().unwrap();
        let mut address = [0; 16];
        address[..2].copy_from_slice(&(libc::AF_VSOCK as u16).to_ne_bytes());
        assert!(bind(&a, &address).is_err());
        assert!(connect(&a, &address).is_err());
        assert!(accept(&a).is_err());
        // Its address is shorter than a `sockaddr_vm`.
        let error = local_address(&a).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert!(set_connect_timeout(&a, Duration::from_secs(1)).is_err());
        assert!(set_buffer_size(&a, 4096).is_err());
    }
}
