//! Error numbers of socket calls, for `io::Error::from_raw_os_error`, with their POSIX names.

/// An argument is invalid, or the socket is in the wrong state.
pub const EINVAL: i32 = libc::EINVAL;
/// The address family does not have this protocol.
pub const EPROTONOSUPPORT: i32 = libc::EPROTONOSUPPORT;
/// The address family does not have this socket type.
pub const ESOCKTNOSUPPORT: i32 = libc::ESOCKTNOSUPPORT;
/// The system does not have this address family.
pub const EAFNOSUPPORT: i32 = libc::EAFNOSUPPORT;
/// The socket is already connected.
pub const EISCONN: i32 = libc::EISCONN;
/// The socket is not connected.
pub const ENOTCONN: i32 = libc::ENOTCONN;
/// The operation is not permitted.
pub const EPERM: i32 = libc::EPERM;
/// Out of memory.
pub const ENOMEM: i32 = libc::ENOMEM;
/// Permission denied: a privilege is missing.
pub const EACCES: i32 = libc::EACCES;
/// No such device.
pub const ENODEV: i32 = libc::ENODEV;
/// The address is in use.
pub const EADDRINUSE: i32 = libc::EADDRINUSE;
/// The machine does not have this address.
pub const EADDRNOTAVAIL: i32 = libc::EADDRNOTAVAIL;
/// The network is unreachable.
pub const ENETUNREACH: i32 = libc::ENETUNREACH;
/// The connection was reset.
pub const ECONNRESET: i32 = libc::ECONNRESET;
/// No buffer space is available.
pub const ENOBUFS: i32 = libc::ENOBUFS;
/// The operation timed out.
pub const ETIMEDOUT: i32 = libc::ETIMEDOUT;
/// No socket listens at the address.
pub const ECONNREFUSED: i32 = libc::ECONNREFUSED;
/// This process has as many descriptors as it may.
pub const EMFILE: i32 = libc::EMFILE;
/// The system has as many open files as it may.
pub const ENFILE: i32 = libc::ENFILE;
/// The host is unreachable.
pub const EHOSTUNREACH: i32 = libc::EHOSTUNREACH;
