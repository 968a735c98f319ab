//! The numbers of errors: of the system, and of Windows Sockets.

use std::io::{self, ErrorKind};

use hvsock::refusal_of;
use libc as c;

pub(crate) const WSAEFAULT: i32 = 10014;
pub(crate) const WSAEINVAL: i32 = 10022;
pub(crate) const WSAEWOULDBLOCK: i32 = 10035;
pub(crate) const WSAENOTSOCK: i32 = 10038;
pub(crate) const WSAESHUTDOWN: i32 = 10058;
pub(crate) const WSAECONNRESET: i32 = 10054;
pub(crate) const WSAETIMEDOUT: i32 = 10060;
pub(crate) const WSAVERNOTSUPPORTED: i32 = 10092;

/// Each number of `winsock2.h` that has one of `errno.h`. Of numbers with one value on Linux the first counts.
const TABLE: &[(i32, i32)] = &[
    (c::EINTR, 10004),
    (c::EBADF, WSAENOTSOCK),
    (c::EACCES, 10013),
    (c::EPERM, 10013),
    (c::EFAULT, WSAEFAULT),
    (c::EINVAL, WSAEINVAL),
    (c::EMFILE, 10024),
    (c::ENFILE, 10024),
    (c::EWOULDBLOCK, WSAEWOULDBLOCK),
    // What a connect in non-blocking mode returns.
    (c::EINPROGRESS, WSAEWOULDBLOCK),
    (c::EALREADY, 10037),
    (c::ENOTSOCK, WSAENOTSOCK),
    (c::EDESTADDRREQ, 10039),
    (c::EMSGSIZE, 10040),
    (c::EPROTOTYPE, 10041),
    (c::ENOPROTOOPT, 10042),
    (c::EPROTONOSUPPORT, 10043),
    (c::ESOCKTNOSUPPORT, 10044),
    (c::EOPNOTSUPP, 10045),
    (c::EPFNOSUPPORT, 10046),
    (c::EAFNOSUPPORT, 10047),
    (c::EADDRINUSE, 10048),
    (c::EADDRNOTAVAIL, 10049),
    (c::ENETDOWN, 10050),
    (c::ENETUNREACH, 10051),
    (c::ENETRESET, 10052),
    (c::ECONNABORTED, 10053),
    (c::ECONNRESET, WSAECONNRESET),
    // Windows has no broken pipe: sending to a peer that is gone is a reset.
    (c::EPIPE, WSAECONNRESET),
    (c::ENOBUFS, 10055),
    (c::ENOMEM, 10055),
    (c::EISCONN, 10056),
    (c::ENOTCONN, 10057),
    (c::ESHUTDOWN, WSAESHUTDOWN),
    (c::ETOOMANYREFS, 10059),
    (c::ETIMEDOUT, WSAETIMEDOUT),
    (c::ECONNREFUSED, 10061),
    (c::ELOOP, 10062),
    (c::ENAMETOOLONG, 10063),
    (c::EHOSTDOWN, 10064),
    (c::EHOSTUNREACH, 10065),
    (c::ENOTEMPTY, 10066),
    (c::EUSERS, 10068),
    (c::EDQUOT, 10069),
    (c::ESTALE, 10070),
    (c::EREMOTE, 10071),
    // No broker listens: the network subsystem is not there.
    (c::ENOENT, 10050),
];

/// The number of `WSAGetLastError` for one of `errno`. `WSAEINVAL` for those that Windows Sockets do not have.
pub(crate) fn wsa_of_errno(errno: i32) -> i32 {
    let found = TABLE.iter().find(|(known, _)| *known == errno);
    found.map_or(WSAEINVAL, |(_, wsa)| *wsa)
}

/// The number of `errno` for one of `WSAGetLastError`.
pub(crate) fn errno_of_wsa(wsa: i32) -> i32 {
    let found = TABLE.iter().find(|(_, known)| *known == wsa);
    found.map_or(c::EINVAL, |(errno, _)| *errno)
}

/// The number of `errno` for an error of the library.
pub(crate) fn errno_of(error: &io::Error) -> i32 {
    if error.kind() == ErrorKind::ConnectionReset {
        return c::ECONNRESET;
    }
    if let Some(refusal) = refusal_of(error) {
        return refusal.errno();
    }
    error.raw_os_error().unwrap_or(match error.kind() {
        ErrorKind::WouldBlock => c::EAGAIN,
        ErrorKind::TimedOut => c::ETIMEDOUT,
        ErrorKind::NotFound => c::ENOENT,
        ErrorKind::PermissionDenied => c::EACCES,
        ErrorKind::InvalidInput => c::EINVAL,
        ErrorKind::BrokenPipe => c::EPIPE,
        ErrorKind::Unsupported => c::EOPNOTSUPP,
        ErrorKind::QuotaExceeded => c::EMFILE,
        ErrorKind::InvalidData => c::EPROTO,
        ErrorKind::NotConnected => c::ENOTCONN,
        ErrorKind::Interrupted => c::EINTR,
        ErrorKind::OutOfMemory => c::ENOMEM,
        _ => c::EIO,
    })
}

#[cfg(test)]
mod tests {
    use hvsock::Refusal;

    use super::*;
    use crate::last_error::LastError;

    #[test]
    fn a_refusal_has_its_own_numbers_and_a_reset_those_of_a_reset() {
        let denied = Refusal::Denied { rule: "x".into() };
        let error = LastError::of(&denied.clone().into());
        assert_eq!((error.code, error.errno, error.wsa), (3, c::EACCES, 10013));
        let error = LastError::of(&denied.into_reset_error());
        assert_eq!(
            (error.code, error.errno, error.wsa),
            (3, c::ECONNRESET, WSAECONNRESET)
        );
    }

    #[test]
    fn every_number_of_winsock_is_one_of_the_header() {
        let header = include_str!("../include/winsock2.h");
        for (_, wsa) in TABLE {
            assert!(header.contains(&format!(" {wsa}\n")), "{wsa}");
        }
    }

    #[test]
    fn every_kind_of_an_error_without_a_number_has_one() {
        let text = |kind| errno_of(&io::Error::new(kind, "x"));
        assert_eq!(text(ErrorKind::WouldBlock), c::EAGAIN);
        assert_eq!(text(ErrorKind::Other), c::EIO);
        assert_eq!(
            errno_of(&io::Error::from_raw_os_error(c::EISCONN)),
            c::EISCONN
        );
        assert_eq!(wsa_of_errno(c::EIO), WSAEINVAL);
    }
}
