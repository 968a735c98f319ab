//! What sockets of every family have in common: making, naming, listening and connecting.
//!
//! Addresses are bytes here. [`hyperv`](super::hyperv) gives them their length; the tests give
//! the same functions TCP's addresses, as the machine of a test may have no Hyper-V.

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

/// Room for an address of any family (`SOCKADDR_STORAGE`).
pub(super) const ANY_ADDRESS: usize = size_of::<winsock::SOCKADDR_STORAGE>();

/// An address as the system gave it.
#[derive(Clone, Copy, Debug)]
pub(super) struct AnyAddress {
    bytes: Aligned,
    len: usize,
}

/// Winsock takes a family to be aligned as the `u16` that it is.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(8))]
struct Aligned([u8; ANY_ADDRESS]);

impl AnyAddress {
    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes.0[..self.len]
    }

    fn new(bytes: &[u8]) -> io::Result<Self> {
        let mut aligned = Aligned([0; ANY_ADDRESS]);
        let Some(room) = aligned.0.get_mut(..bytes.len()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        room.copy_from_slice(bytes);
        Ok(Self {
            bytes: aligned,
            len: bytes.len(),
        })
    }

    /// The pointer and the length that Winsock takes.
    fn as_arguments(&self) -> (*const SOCKADDR, i32) {
        // At most `ANY_ADDRESS`.
        (self.bytes.0.as_ptr().cast(), self.len as i32)
    }

    /// What `call` writes to the address and the length that it is given.
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

/// Makes calls on this socket, and on every duplicate of it, return at once or wait.
pub fn set_nonblocking(socket: impl AsSocket, nonblocking: bool) -> io::Result<()> {
    let mut mode = u32::from(nonblocking);
    // SAFETY: the call reads and writes one u32.
    check(unsafe { winsock::ioctlsocket(raw(&socket.as_socket()), winsock::FIONBIO, &mut mode) })
}

/// Takes the socket's pending error (`SO_ERROR`).
pub fn take_error(socket: impl AsSocket) -> io::Result<Option<io::Error>> {
    let error: i32 = option(socket.as_socket(), winsock::SOL_SOCKET, winsock::SO_ERROR)?;
    Ok((error != 0).then(|| io::Error::from_raw_os_error(error)))
}

/// A non-blocking stream socket.
pub(super) fn stream(family: u16, protocol: i32) -> io::Result<OwnedSocket> {
    startup()?;
    let flags = winsock::WSA_FLAG_OVERLAPPED | winsock::WSA_FLAG_NO_HANDLE_INHERIT;
    // SAFETY: there is no protocol information to read, the rest are numbers.
    let socket = unsafe {
        let stream = winsock::SOCK_STREAM;
        winsock::WSASocketW(family.into(), stream, protocol, std::ptr::null(), 0, flags)
    };
    if socket == winsock::INVALID_SOCKET {
        return Err(last_error());
    }
    // SAFETY: it has just been made, and nobody else knows of it.
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
    // SAFETY: nothing but numbers.
    check(unsafe { winsock::listen(raw(&socket), backlog) })
}

/// Takes one waiting connection, with its other end's address; `None` if none waits.
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
            // SAFETY: the system has just made it, and nobody else knows of it.
            Ok(unsafe { owned(socket) })
        });
        let (socket, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => match error.raw_os_error() {
                Some(winsock::WSAEWOULDBLOCK) => return Ok(None),
                // The other end is gone again; the next one may be there.
                Some(errno::ECONNRESET | errno::ECONNABORTED) => continue,
                _ => return Err(error),
            },
        };
        // Winsock has no accept that could do so by itself: a process that is started with all
        // handles at this very moment inherits it.
        not_inherited(&socket)?;
        // It has the listener's mode, whatever that was.
        set_nonblocking(&socket, true)?;
        return Ok(Some((socket, address)));
    }
}

/// Begins to connect.
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

/// Waits until `deadline` for a connect to come to something; whether it is a connection.
pub(super) fn wait_connected(socket: BorrowedSocket<'_>, deadline: Instant) -> io::Result<bool> {
    let mut fds = [PollFd::new(&socket, PollFlags::OUT)];
    if !poll::wait(&mut fds, Some(deadline))? {
        return Ok(false);
    }
    // A failed connect is never writable.
    match take_error(socket)? {
        Some(error) => Err(error),
        None if fds[0].revents().contains(PollFlags::OUT) => Ok(true),
        // It has failed, and somebody else has taken the reason.
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

/// What an option of one 32-bit number, or of several, may hold: every pattern of bytes is one.
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
    let place = (&raw mut value).cast();
    // SAFETY: the call writes at most `len` bytes, which is what `value` has, and any of them
    // make a `T`.
    check(unsafe { winsock::getsockopt(raw(&socket), level, name, place, &mut len) })?;
    Ok(value)
}

pub(super) fn set_option<T: OptionValue>(
    socket: BorrowedSocket<'_>,
    level: i32,
    name: i32,
    value: T,
) -> io::Result<()> {
    let (place, len) = ((&raw const value).cast(), size_of::<T>() as i32);
    // SAFETY: the call reads `len` bytes at `place`, which is what `value` has.
    check(unsafe { winsock::setsockopt(raw(&socket), level, name, place, len) })
}

pub(super) fn raw(socket: &BorrowedSocket<'_>) -> SOCKET {
    // Both are the width of a pointer.
    socket.as_raw_socket() as SOCKET
}

/// The error for a call that says by `SOCKET_ERROR` that it failed.
pub(super) fn check(result: i32) -> io::Result<()> {
    match result {
        winsock::SOCKET_ERROR => Err(last_error()),
        _ => Ok(()),
    }
}

pub(super) fn last_error() -> io::Error {
    // SAFETY: it only reads what the thread's last call left.
    io::Error::from_raw_os_error(unsafe { winsock::WSAGetLastError() })
}

/// # Safety
///
/// The socket is open and nobody else closes it.
unsafe fn owned(socket: SOCKET) -> OwnedSocket {
    // SAFETY: the caller's promise is the same.
    unsafe { OwnedSocket::from_raw_socket(socket as _) }
}

fn not_inherited(socket: &OwnedSocket) -> io::Result<()> {
    let handle = socket.as_raw_socket() as HANDLE;
    // SAFETY: a socket of the system's own providers is a handle, and this one is open.
    if unsafe { SetHandleInformation(handle, HANDLE_FLAG_INHERIT, 0) } == 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Starts Winsock, once for the process, which has it until its end.
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
    fn a_connect_succeeds_and_both_ends_know_each_other() {
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
    fn a_connect_fails_with_its_reason_and_in_time() {
        let a = tcp::new();
        let start = Instant::now();
        connect(a.as_socket(), &tcp::address(tcp::free_port())).unwrap();
        // Windows asks three times, half a second apart, before it says so.
        let error = wait_connected(a.as_socket(), tcp::soon()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(errno::ECONNREFUSED));
        assert!(start.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn a_connect_that_nobody_answers_is_under_way_until_the_deadline() {
        let (listener, port) = tcp::listener();
        // A backlog that is full: the system answers no more of them, or refuses them.
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
    fn an_address_is_used_once_and_asked_for_when_there_is_one() {
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
