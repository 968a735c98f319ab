//! Numbers for errors that a socket call gives by itself, as `io::Error::from_raw_os_error`
//! takes them; named as in POSIX.

/// The socket is not in the state that the call needs, or an argument is none that it takes.
pub const EINVAL: i32 = libc::EINVAL;
/// There is no such protocol for the address family.
pub const EPROTONOSUPPORT: i32 = libc::EPROTONOSUPPORT;
/// There is no such type of socket for the address family.
pub const ESOCKTNOSUPPORT: i32 = libc::ESOCKTNOSUPPORT;
/// The address family is not known here.
pub const EAFNOSUPPORT: i32 = libc::EAFNOSUPPORT;
/// The socket is connected already.
pub const EISCONN: i32 = libc::EISCONN;
/// The socket is not connected.
pub const ENOTCONN: i32 = libc::ENOTCONN;
