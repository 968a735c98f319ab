//! The reasons for rejecting a connect or listen, or for closing a connection or listener.
//!
//! The library's errors, the command, the control API, metrics, logs and the endpoint protocol all use
//! these labels, codes and error numbers.

use std::{error, fmt, io};

/// Why a connect or listen was rejected, or why a connection or listener was closed.
///
/// Converted to an [`io::Error`], it can be recovered with `error.get_ref()` and `downcast_ref`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Refusal {
    /// The service is not registered in the registry that decides.
    Unregistered,
    /// The service is registered but disabled.
    Disabled {
        /// The setting that disables it, as spelled in the service's file.
        by: String,
    },
    /// An access rule denies it.
    Denied {
        /// The rule, as spelled in the service's file.
        rule: String,
    },
    /// No partition has this id. Only a request from the root partition gets this refusal.
    PartitionUnknown,
    /// One of the two partitions is off.
    PartitionOff,
    /// One of the two partitions is paused.
    PartitionPaused,
    /// The requester cannot reach a partition with this id. It may or may not exist.
    NotReachable,
    /// The address has no meaning in the requester's partition, such as the parent of the root.
    NotSupported,
    /// No listener at the target accepts the requester.
    NoListener,
    /// The service does not allow listeners at the wildcard.
    WildcardNotAllowed,
    /// The listener's backlog of pending connections is full.
    BacklogFull,
    /// Another listener has the address.
    AddressInUse,
    /// It is not possible to connect to, or listen at, the address.
    AddressNotAvailable,
    /// The peer did not answer in time.
    TimedOut,
    /// The service's GUID maps to no vsock port, and the peer uses vsock ports.
    ServiceNotMappable,
    /// A table is full.
    LimitReached {
        /// The limit's name.
        which: String,
    },
    /// The connection was reset.
    Reset {
        /// The cause.
        cause: String,
    },
    /// The guest of a virtual machine has not started its vsock driver.
    NoDriver,
    /// One of the two partitions is a container whose first process has ended.
    PartitionExited,
}

/// The codes of one refusal.
struct Codes {
    label: &'static str,
    errno: i32,
    wsa: i32,
    kind: io::ErrorKind,
}

/// One row per refusal, in the order of the codes.
///
/// The errno numbers are from Linux's `errno.h` and equal on all supported architectures. The WSA
/// numbers are from `winsock2.h`. Where Winsock has no matching error, the row has the nearest one.
#[rustfmt::skip]
const CODES: [Codes; 19] = {
    use io::ErrorKind as Kind;
    const EPERM: i32 = 1;
    const EACCES: i32 = 13;
    const EOPNOTSUPP: i32 = 95;
    const EADDRINUSE: i32 = 98;
    const EADDRNOTAVAIL: i32 = 99;
    const ECONNRESET: i32 = 104;
    const ENOBUFS: i32 = 105;
    const ETIMEDOUT: i32 = 110;
    const ECONNREFUSED: i32 = 111;
    const EHOSTDOWN: i32 = 112;
    const EHOSTUNREACH: i32 = 113;
    const WSAEACCES: i32 = 10013;
    const WSAEINVAL: i32 = 10022;
    const WSAEOPNOTSUPP: i32 = 10045;
    const WSAEADDRINUSE: i32 = 10048;
    const WSAEADDRNOTAVAIL: i32 = 10049;
    const WSAENETDOWN: i32 = 10050;
    const WSAENETUNREACH: i32 = 10051;
    const WSAECONNRESET: i32 = 10054;
    const WSAENOBUFS: i32 = 10055;
    const WSAETIMEDOUT: i32 = 10060;
    const WSAECONNREFUSED: i32 = 10061;
    const fn row(label: &'static str, errno: i32, wsa: i32, kind: Kind) -> Codes {
        Codes { label, errno, wsa, kind }
    }
    [
        row("unregistered", ECONNREFUSED, WSAECONNREFUSED, Kind::ConnectionRefused),
        row("disabled", EPERM, WSAEINVAL, Kind::PermissionDenied),
        row("denied", EACCES, WSAEACCES, Kind::PermissionDenied),
        row("partition_unknown", EADDRNOTAVAIL, WSAEADDRNOTAVAIL, Kind::AddrNotAvailable),
        row("partition_off", EHOSTUNREACH, WSAENETUNREACH, Kind::HostUnreachable),
        row("partition_paused", EHOSTDOWN, WSAENETDOWN, Kind::NetworkDown),
        // The same as for an unknown partition, so that the error does not reveal whether it exists.
        row("not_reachable", EADDRNOTAVAIL, WSAEADDRNOTAVAIL, Kind::AddrNotAvailable),
        row("not_supported", EOPNOTSUPP, WSAEOPNOTSUPP, Kind::Unsupported),
        row("no_listener", ECONNREFUSED, WSAECONNREFUSED, Kind::ConnectionRefused),
        row("wildcard_not_allowed", EACCES, WSAEACCES, Kind::PermissionDenied),
        row("backlog_full", ECONNREFUSED, WSAECONNREFUSED, Kind::ConnectionRefused),
        row("address_in_use", EADDRINUSE, WSAEADDRINUSE, Kind::AddrInUse),
        row("address_not_available", EADDRNOTAVAIL, WSAEADDRNOTAVAIL, Kind::AddrNotAvailable),
        row("timed_out", ETIMEDOUT, WSAETIMEDOUT, Kind::TimedOut),
        row("service_not_mappable", EADDRNOTAVAIL, WSAEADDRNOTAVAIL, Kind::AddrNotAvailable),
        row("limit_reached", ENOBUFS, WSAENOBUFS, Kind::QuotaExceeded),
        row("reset", ECONNRESET, WSAECONNRESET, Kind::ConnectionReset),
        row("no_driver", EHOSTUNREACH, WSAENETUNREACH, Kind::HostUnreachable),
        row("partition_exited", EHOSTUNREACH, WSAENETUNREACH, Kind::HostUnreachable),
    ]
};

impl Refusal {
    /// Every [label](Self::label), in the order of the codes, which begin at 1.
    pub const ALL_LABELS: [&'static str; CODES.len()] = {
        let mut labels = [""; CODES.len()];
        let mut at = 0;
        while at < labels.len() {
            labels[at] = CODES[at].label;
            at += 1;
        }
        labels
    };

    /// The label for metrics and logs.
    pub fn label(&self) -> &'static str {
        self.codes().label
    }

    /// The code in the endpoint protocol, from 1.
    pub fn code(&self) -> u32 {
        match self {
            Refusal::Unregistered => 1,
            Refusal::Disabled { .. } => 2,
            Refusal::Denied { .. } => 3,
            Refusal::PartitionUnknown => 4,
            Refusal::PartitionOff => 5,
            Refusal::PartitionPaused => 6,
            Refusal::NotReachable => 7,
            Refusal::NotSupported => 8,
            Refusal::NoListener => 9,
            Refusal::WildcardNotAllowed => 10,
            Refusal::BacklogFull => 11,
            Refusal::AddressInUse => 12,
            Refusal::AddressNotAvailable => 13,
            Refusal::TimedOut => 14,
            Refusal::ServiceNotMappable => 15,
            Refusal::LimitReached { .. } => 16,
            Refusal::Reset { .. } => 17,
            Refusal::NoDriver => 18,
            Refusal::PartitionExited => 19,
        }
    }

    /// The detail that goes with the [code](Self::code): the rule, setting, limit or cause. Else empty.
    pub fn detail(&self) -> &str {
        match self {
            Refusal::Disabled { by } => by,
            Refusal::Denied { rule } => rule,
            Refusal::LimitReached { which } => which,
            Refusal::Reset { cause } => cause,
            _ => "",
        }
    }

    /// Decodes a refusal from its code and detail. An unknown code (of a newer sender) becomes a
    /// [`Refusal::Reset`] with the code in its cause.
    pub fn from_wire(code: u32, detail: &str) -> Refusal {
        let detail = || detail.to_owned();
        match code {
            1 => Refusal::Unregistered,
            2 => Refusal::Disabled { by: detail() },
            3 => Refusal::Denied { rule: detail() },
            4 => Refusal::PartitionUnknown,
            5 => Refusal::PartitionOff,
            6 => Refusal::PartitionPaused,
            7 => Refusal::NotReachable,
            8 => Refusal::NotSupported,
            9 => Refusal::NoListener,
            10 => Refusal::WildcardNotAllowed,
            11 => Refusal::BacklogFull,
            12 => Refusal::AddressInUse,
            13 => Refusal::AddressNotAvailable,
            14 => Refusal::TimedOut,
            15 => Refusal::ServiceNotMappable,
            16 => Refusal::LimitReached { which: detail() },
            17 => Refusal::Reset { cause: detail() },
            18 => Refusal::NoDriver,
            19 => Refusal::PartitionExited,
            unknown => Refusal::Reset {
                cause: match detail() {
                    text if text.is_empty() => format!("unknown reason {unknown}"),
                    text => format!("unknown reason {unknown}: {text}"),
                },
            },
        }
    }

    /// The Linux error number of the failed connect, bind or listen.
    pub fn errno(&self) -> i32 {
        self.codes().errno
    }

    /// The Winsock error number of the failed connect, bind or listen.
    #[doc(alias = "WSAGetLastError")]
    pub fn wsa(&self) -> i32 {
        self.codes().wsa
    }

    /// The [`io::ErrorKind`] of the failed connect, bind or listen.
    pub fn kind(&self) -> io::ErrorKind {
        self.codes().kind
    }

    /// The error of an established connection or listener that is closed for this reason. Its kind is
    /// always [`ConnectionReset`](io::ErrorKind::ConnectionReset), with the refusal inside.
    #[doc(alias = "ECONNRESET")]
    pub fn into_reset_error(self) -> io::Error {
        io::Error::new(io::ErrorKind::ConnectionReset, self)
    }

    fn codes(&self) -> &'static Codes {
        &CODES[self.code() as usize - 1]
    }
}

impl fmt::Display for Refusal {
    /// A sentence fragment without a full stop.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Unregistered => f.write_str("the service is not registered"),
            Refusal::Disabled { by } => write!(f, "the service is disabled by {by}"),
            Refusal::Denied { rule } => write!(f, "access is denied by {rule}"),
            Refusal::PartitionUnknown => f.write_str("no partition has this id"),
            Refusal::PartitionOff => f.write_str("the partition is off"),
            Refusal::NoDriver => f.write_str("the guest has not started its vsock driver"),
            Refusal::PartitionExited => f.write_str("the container has exited"),
            Refusal::PartitionPaused => f.write_str("the partition is paused"),
            Refusal::NotReachable => {
                f.write_str("no partition that can be reached from here has this id")
            }
            Refusal::NotSupported => f.write_str("this address has no meaning in this partition"),
            Refusal::NoListener => f.write_str("no listener accepts this service there"),
            Refusal::WildcardNotAllowed => {
                f.write_str("the service does not allow listening at the wildcard")
            }
            Refusal::BacklogFull => f.write_str("the listener's backlog is full"),
            Refusal::AddressInUse => f.write_str("another listener has this address"),
            Refusal::AddressNotAvailable => {
                f.write_str("this address is not valid for connecting or listening")
            }
            Refusal::TimedOut => f.write_str("timed out: the peer did not answer"),
            Refusal::ServiceNotMappable => f.write_str(
                "the service's GUID maps to no vsock port, and the peer uses vsock ports",
            ),
            Refusal::LimitReached { which } => write!(f, "the limit on {which} is reached"),
            Refusal::Reset { cause } => write!(f, "the connection was reset: {cause}"),
        }
    }
}

impl error::Error for Refusal {}

impl From<Refusal> for io::Error {
    fn from(refusal: Refusal) -> Self {
        io::Error::new(refusal.kind(), refusal)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all() -> Vec<Refusal> {
        (1..=19).map(|code| Refusal::from_wire(code, "x")).collect()
    }

    #[test]
    fn every_refusal_survives_encoding_and_decoding() {
        for (at, refusal) in all().into_iter().enumerate() {
            assert_eq!(refusal.code() as usize, at + 1);
            assert_eq!(refusal.label(), Refusal::ALL_LABELS[at]);
            let again = Refusal::from_wire(refusal.code(), refusal.detail());
            assert_eq!(again, refusal);
        }
    }

    #[test]
    fn an_unknown_code_becomes_a_reset_that_names_it() {
        for (code, detail, want) in [
            (0, "", "unknown reason 0"),
            (20, "moon", "unknown reason 20: moon"),
        ] {
            let cause = want.to_owned();
            assert_eq!(Refusal::from_wire(code, detail), Refusal::Reset { cause });
        }
    }

    #[test]
    fn an_io_error_keeps_the_refusal_as_its_source() {
        for refusal in all() {
            let error = io::Error::from(refusal.clone());
            assert_eq!(error.kind(), refusal.kind());
            let inner = error.get_ref().and_then(|e| e.downcast_ref::<Refusal>());
            assert_eq!(inner, Some(&refusal));
            let reset = refusal.clone().into_reset_error();
            assert_eq!(reset.kind(), io::ErrorKind::ConnectionReset);
            assert_eq!(reset.to_string(), refusal.to_string());
        }
    }

    // The standard library maps the error numbers of the target system only.
    #[cfg(target_os = "linux")]
    #[test]
    fn errno_and_kind_match_the_standard_librarys_mapping() {
        for refusal in all() {
            let kind = io::Error::from_raw_os_error(refusal.errno()).kind();
            // The standard library has no stable kind for these two numbers.
            let unnamed = matches!(
                refusal,
                Refusal::LimitReached { .. } | Refusal::PartitionPaused
            );
            assert!(unnamed || kind == refusal.kind(), "{refusal}: {kind:?}");
        }
    }

    #[test]
    fn a_refusal_is_a_single_line_without_a_full_stop() {
        for refusal in all() {
            let text = refusal.to_string();
            assert!(!text.ends_with('.') && !text.contains('\n'), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_code_and_detail_decode_to_a_refusal(code: u32, detail in ".{0,40}") {
            let refusal = Refusal::from_wire(code, &detail);
            prop_assert!(Refusal::ALL_LABELS.contains(&refusal.label()));
        }
    }
}
