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
/// The kernel does not allow it.
pub const EPERM: i32 = libc::EPERM;
/// There is no memory for it.
pub const ENOMEM: i32 = libc::ENOMEM;
/// It takes a privilege.
pub const EACCES: i32 = libc::EACCES;
/// There is no device for it.
pub const ENODEV: i32 = libc::ENODEV;
/// The address is taken.
pub const EADDRINUSE: i32 = libc::EADDRINUSE;
/// The machine has no such address.
pub const EADDRNOTAVAIL: i32 = libc::EADDRNOTAVAIL;
/// Nothing leads there.
pub const ENETUNREACH: i32 = libc::ENETUNREACH;
/// The connection was reset.
pub const ECONNRESET: i32 = libc::ECONNRESET;
/// There is no buffer for it.
pub const ENOBUFS: i32 = libc::ENOBUFS;
/// The time limit has passed.
pub const ETIMEDOUT: i32 = libc::ETIMEDOUT;
/// Nobody listens there.
pub const ECONNREFUSED: i32 = libc::ECONNREFUSED;
/// Nothing leads to the machine.
pub const EHOSTUNREACH: i32 = libc::EHOSTUNREACH;
