//! Error numbers of socket calls, for `io::Error::from_raw_os_error`: POSIX names, Winsock's values.

use windows_sys::Win32::Networking::WinSock as winsock;

/// An argument is invalid, or the socket is in the wrong state.
pub const EINVAL: i32 = winsock::WSAEINVAL;
/// The address family does not have this protocol.
pub const EPROTONOSUPPORT: i32 = winsock::WSAEPROTONOSUPPORT;
/// The address family does not have this socket type.
pub const ESOCKTNOSUPPORT: i32 = winsock::WSAESOCKTNOSUPPORT;
/// The system does not have this address family.
pub const EAFNOSUPPORT: i32 = winsock::WSAEAFNOSUPPORT;
/// The protocol does not have this option.
pub const ENOPROTOOPT: i32 = winsock::WSAENOPROTOOPT;
/// The socket type does not support the call.
pub const EOPNOTSUPP: i32 = winsock::WSAEOPNOTSUPP;
/// The socket is already connected.
pub const EISCONN: i32 = winsock::WSAEISCONN;
/// The socket is not connected.
pub const ENOTCONN: i32 = winsock::WSAENOTCONN;
/// This side has shut down sending.
pub const EPIPE: i32 = winsock::WSAESHUTDOWN;
/// Permission denied.
pub const EACCES: i32 = winsock::WSAEACCES;
/// The address is in use.
pub const EADDRINUSE: i32 = winsock::WSAEADDRINUSE;
/// The machine does not have this address.
pub const EADDRNOTAVAIL: i32 = winsock::WSAEADDRNOTAVAIL;
/// The network is down.
pub const ENETDOWN: i32 = winsock::WSAENETDOWN;
/// The network is unreachable.
pub const ENETUNREACH: i32 = winsock::WSAENETUNREACH;
/// The connection was reset.
pub const ECONNRESET: i32 = winsock::WSAECONNRESET;
/// The connection was aborted.
pub const ECONNABORTED: i32 = winsock::WSAECONNABORTED;
/// No buffer space is available.
pub const ENOBUFS: i32 = winsock::WSAENOBUFS;
/// The operation timed out.
pub const ETIMEDOUT: i32 = winsock::WSAETIMEDOUT;
/// No socket listens at the address.
pub const ECONNREFUSED: i32 = winsock::WSAECONNREFUSED;
/// The host is down.
pub const EHOSTDOWN: i32 = winsock::WSAEHOSTDOWN;
/// The host is unreachable.
pub const EHOSTUNREACH: i32 = winsock::WSAEHOSTUNREACH;
