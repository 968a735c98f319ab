//! Calls that are the same for sockets of every family: create, bind, listen, connect.
//!
//! Addresses are bytes. [`hyperv`](super::hyperv) passes Hyper-V addresses; the tests pass TCP addresses,
//! because the test machine may have no Hyper-V.

use std::io;
use std::mem::size_of;
use std::os::windows::io::{AsRawSocket, AsSocket, BorrowedSocket, FromRawSocket, OwnedSocket};
use std::sync::OnceLock;
use std::time::Instant;

use windows_sys::Win32::Foundation::{HANDLE, HANDLE_FLAG_INHERIT, SetHandleInformation};
use windows_sys::Win32::Networking::WinSock as winsock;
use windows_sys::Win32::Networking::WinSock::{SOCKADDR, SOCKET};

use super::errno;
use super::poll::{self, PollFd, PollFlags};
use super::winsock_call::{check, last_error, raw};

/// Size of the largest address (`SOCKADDR_STORAGE`).
pub(super) const ANY_ADDRESS: usize = size_of::<winsock::SOCKADDR_STORAGE>();

/// A raw address of any family.
#[derive(Clone, Copy, Debug)]
pub(super) struct AnyAddress {
    bytes: Aligned,
    len: usize,
}

/// Winsock requires the family to be aligned as a `u16`.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(8))]
struct Aligned([u8; ANY_ADDRESS]);

impl AnyAddress {
    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes.0[..self.len]
    }

    fn new(bytes: &[u8]) -> io::Result<Self> {
        let mut aligned = Aligned([0; ANY_ADDRESS]);
        let Some(start) = aligned.0.get_mut(..bytes.len()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        start.copy_from_slice(bytes);
        Ok(Self {
            bytes: aligned,
            len: bytes.len(),
        })
    }

    /// Pointer and length, as Winsock's arguments.
    fn as_arguments(&self) -> (*const SOCKADDR, i32) {
        // At most `ANY_ADDRESS`.
        (self.bytes.0.as_ptr().cast(), self.len as i32)
    }

    /// The address that `call` writes.
    fn by<T>(call: impl FnOnce(*mut SOCKADDR, *mut i32) -> io::Result<T>) -> io::Result<(T, Self)> {
        let mut bytes = Aligned([0; ANY_ADDRESS]);
        let mut len = ANY_ADDRESS as i32;
        let result = call(bytes.0.as_mut_ptr().cast(), &raw mut len)?;
        match usize::try_from(len) {
            Ok(len) if len <= ANY_ADDRESS => Ok((result, Self { bytes, len })),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

/// Sets the non-blocking mode of the socket and its duplicates.
///
/// # Errors
///
/// Those of `ioctlsocket`.
pub fn set_nonblocking(socket: impl AsSocket, nonblocking: bool) -> io::Result<()> {
    let mut mode = u32::from(nonblocking);
    // SAFETY: the call reads and writes one u32.
    check(unsafe { winsock::ioctlsocket(raw(&socket.as_socket()), winsock::FIONBIO, &mut mode) })
}

/// Returns and clears the socket's pending error (`SO_ERROR`).
///
/// # Errors
///
/// Those of `getsockopt`.
pub fn take_error(socket: impl AsSocket) -> io::Result<Option<io::Error>> {
    let error: i32 = option(socket.as_socket(), winsock::SOL_SOCKET, winsock::SO_ERROR)?;
    Ok((error != 0).then(|| io::Error::from_raw_os_error(error)))
}

/// Creates a non-blocking stream socket.
pub(super) fn stream(family: u16, protocol: i32) -> io::Result<OwnedSocket> {
    startup()?;
    let flags = winsock::WSA_FLAG_OVERLAPPED | winsock::WSA_FLAG_NO_HANDLE_INHERIT;
    // SAFETY: null protocol information is allowed; the other arguments are numbers.
    let socket = unsafe {
        let stream = winsock::SOCK_STREAM;
        winsock::WSASocketW(family.into(), stream, protocol, std::ptr::null(), 0, flags)
    };
    if socket == winsock::INVALID_SOCKET {
        return Err(last_error());
    }
    // SAFETY: it has just been created, and nothing else owns it.
    let socket = unsafe { owned(socket) };
    set_nonblocking(&socket, true)?;
    Ok(socket)
}

pub(super) fn bind(socket: BorrowedSocket<'_>, address: &[u8]) -> io::Result<()> {
    let address = AnyAddress::new(address)?;
    let (address, len) = address.as_arguments();
    // SAFETY: `address` points at `len` bytes, which the call only reads.
    check(unsafe { winsock::bind(raw(&socket), address, len) })
}

pub(super) fn listen(socket: BorrowedSocket<'_>, backlog: u32) -> io::Result<()> {
    let backlog = i32::try_from(backlog).unwrap_or(i32::MAX);
    // SAFETY: all arguments are numbers.
    check(unsafe { winsock::listen(raw(&socket), backlog) })
}

/// Accepts one waiting connection, with the peer's address; `None` if none waits.
pub(super) fn accept(
    listener: BorrowedSocket<'_>,
) -> io::Result<Option<(OwnedSocket, AnyAddress)>> {
    loop {
        let accepted = AnyAddress::by(|address, len| {
            // SAFETY: the call writes at most `*len` bytes to `address`, which has that many.
            let socket = unsafe { winsock::accept(raw(&listener), address, len) };
            if socket == winsock::INVALID_SOCKET {
                return Err(last_error());
            }
            // SAFETY: the system has just created it, and nothing else owns it.
            Ok(unsafe { owned(socket) })
        });
        let (socket, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => match error.raw_os_error() {
                Some(winsock::WSAEWOULDBLOCK) => return Ok(None),
                // This peer is gone; another may wait.
                Some(errno::ECONNRESET | errno::ECONNABORTED) => continue,
                _ => return Err(error),
            },
        };
        // Winsock has no accept that does this atomically: a process started with all handles at this
        // moment inherits it.
        clear_inherit_flag(&socket)?;
        // The socket inherits the listener's mode.
        set_nonblocking(&socket, true)?;
        return Ok(Some((socket, address)));
    }
}

/// Starts to connect.
pub(super) fn connect(socket: BorrowedSocket<'_>, address: &[u8]) -> io::Result<()> {
    set_nonblocking(socket, true)?;
    let address = AnyAddress::new(address)?;
    let (address, len) = address.as_arguments();
    // SAFETY: `address` points at `len` bytes, which the call only reads.
    match check(unsafe { winsock::connect(raw(&socket), address, len) }) {
        Err(error) if error.raw_os_error() == Some(winsock::WSAEWOULDBLOCK) => Ok(()),
        result => result,
    }
}

/// Waits until `deadline` for a connect to finish. Returns whether the socket is connected.
pub(super) fn wait_connected(socket: BorrowedSocket<'_>, deadline: Instant) -> io::Result<bool> {
    let mut fds = [PollFd::new(&socket, PollFlags::OUT)];
    if !poll::wait(&mut fds, Some(deadline))? {
        return Ok(false);
    }
    // A failed connect is never writable.
    match take_error(socket)? {
        Some(error) => Err(error),
        None if fds[0].revents().contains(PollFlags::OUT) => Ok(true),
        // It has failed, and the error was taken before.
        None => Err(io::Error::from_raw_os_error(errno::ECONNREFUSED)),
    }
}

pub(super) fn local_address(socket: BorrowedSocket<'_>) -> io::Result<AnyAddress> {
    AnyAddress::by(|address, len| {
        // SAFETY: the call writes at most `*len` bytes to `address`, which has that many.
        check(unsafe { winsock::getsockname(raw(&socket), address, len) })
    })
    .map(|((), address)| address)
}

pub(super) fn peer_address(socket: BorrowedSocket<'_>) -> io::Result<AnyAddress> {
    AnyAddress::by(|address, len| {
        // SAFETY: the call writes at most `*len` bytes to `address`, which has that many.
        check(unsafe { winsock::getpeername(raw(&socket), address, len) })
    })
    .map(|((), address)| address)
}

/// The value of a socket option. Every bit pattern must be valid.
pub(super) trait OptionValue: Copy + Default {}

impl OptionValue for i32 {}
impl OptionValue for u32 {}
impl OptionValue for [u16; 2] {}

pub(super) fn option<T: OptionValue>(
    socket: BorrowedSocket<'_>,
    level: i32,
    name: i32,
) -> io::Result<T> {
    let mut value = T::default();
    let mut len = size_of::<T>() as i32;
    let pointer = (&raw mut value).cast();
    // SAFETY: the call writes at most `len` bytes, the size of `value`, and every bit pattern is a
    // valid `T`.
    check(unsafe { winsock::getsockopt(raw(&socket), level, name, pointer, &mut len) })?;
    Ok(value)
}

pub(super) fn set_option<T: OptionValue>(
    socket: BorrowedSocket<'_>,
    level: i32,
    name: i32,
    value: T,
) -> io::Result<()> {
    let (pointer, len) = ((&raw const value).cast(), size_of::<T>() as i32);
    // SAFETY: the call reads `len` bytes at `pointer`, the size of `value`.
    check(unsafe { winsock::setsockopt(raw(&socket), level, name, pointer, len) })
}

/// # Safety
///
/// The socket is open and nothing else owns it.
unsafe fn owned(socket: SOCKET) -> OwnedSocket {
    // SAFETY: the same contract as this function's.
    unsafe { OwnedSocket::from_raw_socket(socket as _) }
}

fn clear_inherit_flag(socket: &OwnedSocket) -> io::Result<()> {
    let handle = socket.as_raw_socket() as HANDLE;
    // SAFETY: a socket of a system provider is a handle, and this one is open.
    if unsafe { SetHandleInformation(handle, HANDLE_FLAG_INHERIT, 0) } == 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Starts Winsock once for the lifetime of the process.
fn startup() -> io::Result<()> {
    static STARTED: OnceLock<i32> = OnceLock::new();
    const VERSION_2_2: u16 = 0x202;
    let code = *STARTED.get_or_init(|| {
        let mut data = winsock::WSADATA::default();
        // SAFETY: the call writes one `WSADATA`.
        unsafe { winsock::WSAStartup(VERSION_2_2, &mut data) }
    });
    match code {
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(code)),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::tcp;
    use super::*;

    #[test]
    fn a_connect_succeeds_and_both_ends_have_their_addresses() {
        let (listener, port) = tcp::listener();
        assert!(accept(listener.as_socket()).unwrap().is_none());
        let a = tcp::new();
        connect(a.as_socket(), &tcp::address(port)).unwrap();
        assert!(wait_connected(a.as_socket(), tcp::soon()).unwrap());
        let mut fds = [PollFd::new(&listener, PollFlags::IN)];
        assert!(poll::wait(&mut fds, Some(tcp::soon())).unwrap());
        let (b, from) = accept(listener.as_socket()).unwrap().unwrap();
        let own = local_address(a.as_socket()).unwrap();
        assert_eq!(from.as_bytes(), own.as_bytes());
        assert_eq!(
            peer_address(b.as_socket()).unwrap().as_bytes(),
            own.as_bytes()
        );
        assert_eq!(
            tcp::port(peer_address(a.as_socket()).unwrap().as_bytes()),
            port
        );
        let error = connect(a.as_socket(), &tcp::address(port)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(errno::EISCONN));
    }

    #[test]
    fn a_refused_connect_fails_with_its_reason() {
        let a = tcp::new();
        connect(a.as_socket(), &tcp::address(tcp::free_port())).unwrap();
        // Windows tries three times, half a second apart. The error comes before the deadline, which would
        // be `Ok(false)`.
        let error = wait_connected(a.as_socket(), tcp::soon()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(errno::ECONNREFUSED));
    }

    #[test]
    fn an_unanswered_connect_is_in_progress_until_the_deadline() {
        let (listener, port) = tcp::listener();
        // The backlog is full: the system does not answer further connects, or refuses them.
        let mut waiting = Vec::new();
        for _ in 0..400 {
            let a = tcp::new();
            connect(a.as_socket(), &tcp::address(port)).unwrap();
            let start = Instant::now();
            match wait_connected(a.as_socket(), start + Duration::from_millis(100)) {
                Ok(true) => waiting.push(a),
                Ok(false) => {
                    assert!(start.elapsed() >= Duration::from_millis(100));
                    assert!(!wait_connected(a.as_socket(), Instant::now()).unwrap());
                    let error = peer_address(a.as_socket()).unwrap_err();
                    assert_eq!(error.raw_os_error(), Some(errno::ENOTCONN));
                    drop(listener);
                    return;
                }
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
                    return;
                }
            }
        }
        panic!("{} connections waited for one accept", waiting.len());
    }

    #[test]
    fn an_address_in_use_cannot_be_bound() {
        let (_listener, port) = tcp::listener();
        let other = tcp::new();
        let error = local_address(other.as_socket()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(errno::EINVAL));
        let error = bind(other.as_socket(), &tcp::address(port)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        assert!(bind(other.as_socket(), &[0; 200]).is_err());
        assert!(take_error(&other).unwrap().is_none());
    }

    #[test]
    fn no_child_inherits_a_socket() {
        use windows_sys::Win32::Foundation::GetHandleInformation;

        let (a, b) = tcp::pair();
        for socket in [&a, &b] {
            let mut flags = 0;
            // SAFETY: the handle is open, and the call writes one number.
            let known = unsafe { GetHandleInformation(socket.as_raw_socket() as _, &mut flags) };
            assert_ne!(known, 0);
            assert_eq!(flags & HANDLE_FLAG_INHERIT, 0);
        }
    }
}
