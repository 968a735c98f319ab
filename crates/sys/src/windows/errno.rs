//! Numbers for errors that a socket call gives by itself, as `io::Error::from_raw_os_error`
//! takes them; named as in POSIX, with Winsock's values.

use windows_sys::Win32::Networking::WinSock as winsock;

/// The socket is not in the state that the call needs, or an argument is none that it takes.
pub const EINVAL: i32 = winsock::WSAEINVAL;
/// There is no such protocol for the address family.
pub const EPROTONOSUPPORT: i32 = winsock::WSAEPROTONOSUPPORT;
/// There is no such type of socket for the address family.
pub const ESOCKTNOSUPPORT: i32 = winsock::WSAESOCKTNOSUPPORT;
/// The address family is not known here.
pub const EAFNOSUPPORT: i32 = winsock::WSAEAFNOSUPPORT;
/// The option is not known to the protocol.
pub const ENOPROTOOPT: i32 = winsock::WSAENOPROTOOPT;
/// The call is none for this kind of socket.
pub const EOPNOTSUPP: i32 = winsock::WSAEOPNOTSUPP;
/// The socket is connected already.
pub const EISCONN: i32 = winsock::WSAEISCONN;
/// The socket is not connected.
pub const ENOTCONN: i32 = winsock::WSAENOTCONN;
/// Sending has been ended by this side.
pub const EPIPE: i32 = winsock::WSAESHUTDOWN;
/// The system does not allow it.
pub const EACCES: i32 = winsock::WSAEACCES;
/// The address is taken.
pub const EADDRINUSE: i32 = winsock::WSAEADDRINUSE;
/// The machine has no such address.
pub const EADDRNOTAVAIL: i32 = winsock::WSAEADDRNOTAVAIL;
/// What leads there is down.
pub const ENETDOWN: i32 = winsock::WSAENETDOWN;
/// Nothing leads there.
pub const ENETUNREACH: i32 = winsock::WSAENETUNREACH;
/// The connection was reset.
pub const ECONNRESET: i32 = winsock::WSAECONNRESET;
/// The connection was aborted.
pub const ECONNABORTED: i32 = winsock::WSAECONNABORTED;
/// There is no buffer for it.
pub const ENOBUFS: i32 = winsock::WSAENOBUFS;
/// The time limit has passed.
pub const ETIMEDOUT: i32 = winsock::WSAETIMEDOUT;
/// Nobody listens there.
pub const ECONNREFUSED: i32 = winsock::WSAECONNREFUSED;
/// The machine is down.
pub const EHOSTDOWN: i32 = winsock::WSAEHOSTDOWN;
/// Nothing leads to the machine.
pub const EHOSTUNREACH: i32 = winsock::WSAEHOSTUNREACH;
