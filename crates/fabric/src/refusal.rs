//! Why a connect or listen was turned down: one enum for everyone who has to say it.
//!
//! The library's errors, the command, the control API, metrics, logs and the endpoint's messages
//! all use these words and the numbers below.

use std::{error, fmt, io};

/// Why a connect or listen was turned down, or why a connection or listener was cut.
///
/// As the [source](error::Error::source) of an [`io::Error`] it can be found again with
/// `error.get_ref()` and `downcast_ref`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Refusal {
    /// The registry that decides has no such service.
    Unregistered,
    /// The service is registered and switched off.
    Disabled {
        /// The setting that switches it off, as it is spelled in the service's file.
        by: String,
    },
    /// An access rule does not allow it.
    Denied {
        /// The rule, as it is spelled in the service's file.
        rule: String,
    },
    /// No partition has this id. Only the root partition is told.
    PartitionUnknown,
    /// One of the two partitions is off.
    PartitionOff,
    /// One of the two partitions is paused.
    PartitionPaused,
    /// The partition, if there is one, is not for the asker to reach.
    NotReachable,
    /// The address means nothing where the asker is, such as the parent of the root partition.
    NotSupported,
    /// Nobody listens there for the asker.
    NoListener,
    /// The service may not be offered to every partition at once.
    WildcardNotAllowed,
    /// As many connections wait for the listener as it lets wait.
    BacklogFull,
    /// Somebody listens there already.
    AddressInUse,
    /// The address is no place to connect to or listen at.
    AddressNotAvailable,
    /// The other side did not answer in time.
    TimedOut,
    /// The service's GUID stands for no vsock port, and the other side knows ports only.
    ServiceNotMappable,
    /// A table is full.
    LimitReached {
        /// The limit's name.
        which: String,
    },
    /// The connection was broken off.
    Reset {
        /// By whom or what.
        cause: String,
    },
}

/// How one refusal is told to programs.
struct Spelling {
    label: &'static str,
    errno: i32,
    wsa: i32,
    kind: io::ErrorKind,
}

/// One row per refusal, in the order of the codes.
///
/// The errno numbers are those of Linux's `errno.h`, the same on every architecture that we build
/// for; the others are those of Windows' `winsock2.h`. Where Windows
/// has no such case, its nearest one is taken.
#[rustfmt::skip]
const SPELLINGS: [Spelling; 17] = {
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
    const fn row(label: &'static str, errno: i32, wsa: i32, kind: Kind) -> Spelling {
        Spelling { label, errno, wsa, kind }
    }
    [
        row("unregistered", ECONNREFUSED, WSAECONNREFUSED, Kind::ConnectionRefused),
        row("disabled", EPERM, WSAEINVAL, Kind::PermissionDenied),
        row("denied", EACCES, WSAEACCES, Kind::PermissionDenied),
        row("partition_unknown", EADDRNOTAVAIL, WSAEADDRNOTAVAIL, Kind::AddrNotAvailable),
        row("partition_off", EHOSTUNREACH, WSAENETUNREACH, Kind::HostUnreachable),
        row("partition_paused", EHOSTDOWN, WSAENETDOWN, Kind::NetworkDown),
        // As for an unknown partition: who may not reach one may not tell whether there is one.
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
    ]
};

impl Refusal {
    /// Every [label](Self::label), in the order of the codes, which begin at 1.
    pub const ALL_LABELS: [&'static str; SPELLINGS.len()] = {
        let mut labels = [""; SPELLINGS.len()];
        let mut at = 0;
        while at < labels.len() {
            labels[at] = SPELLINGS[at].label;
            at += 1;
        }
        labels
    };

    /// The word for metrics and logs.
    pub fn label(&self) -> &'static str {
        self.spelling().label
    }

    /// The number for the endpoint's messages.
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
        }
    }

    /// What goes with the [code](Self::code): the rule, setting, limit or cause; or nothing.
    pub fn detail(&self) -> &str {
        match self {
            Refusal::Disabled { by } => by,
            Refusal::Denied { rule } => rule,
            Refusal::LimitReached { which } => which,
            Refusal::Reset { cause } => cause,
            _ => "",
        }
    }

    /// The refusal that was sent as a code and a detail. A code from a newer sender becomes a
    /// [`Refusal::Reset`] that names it.
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
            unknown => Refusal::Reset {
                cause: match detail() {
                    text if text.is_empty() => format!("an unknown reason ({unknown})"),
                    text => format!("an unknown reason ({unknown}): {text}"),
                },
            },
        }
    }

    /// The number that a Linux program gets from connect, bind or listen.
    pub fn errno(&self) -> i32 {
        self.spelling().errno
    }

    /// The number that a Windows program gets from connect, bind or listen.
    pub fn wsa(&self) -> i32 {
        self.spelling().wsa
    }

    /// What a Rust program gets from connect, bind or listen.
    pub fn kind(&self) -> io::ErrorKind {
        self.spelling().kind
    }

    /// The error for those who use an established connection or listener when it is cut for this
    /// reason: a reset, whatever the reason, with the refusal as its source.
    pub fn into_cut_error(self) -> io::Error {
        io::Error::new(io::ErrorKind::ConnectionReset, self)
    }

    fn spelling(&self) -> &'static Spelling {
        &SPELLINGS[self.code() as usize - 1]
    }
}

impl fmt::Display for Refusal {
    /// One sentence, without a full stop.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Unregistered => f.write_str("the service is not registered"),
            Refusal::Disabled { by } => write!(f, "the service is disabled by {by}"),
            Refusal::Denied { rule } => write!(f, "access is denied by {rule}"),
            Refusal::PartitionUnknown => f.write_str("no partition has this id"),
            Refusal::PartitionOff => f.write_str("the partition is off"),
            Refusal::PartitionPaused => f.write_str("the partition is paused"),
            Refusal::NotReachable => {
                f.write_str("no partition that can be reached from here has this id")
            }
            Refusal::NotSupported => f.write_str("this address has no meaning in this partition"),
            Refusal::NoListener => f.write_str("nobody listens for this service there"),
            Refusal::WildcardNotAllowed => {
                f.write_str("the service may not be offered to every partition at once")
            }
            Refusal::BacklogFull => {
                f.write_str("too many connections wait for the listener to accept them")
            }
            Refusal::AddressInUse => f.write_str("somebody listens at this address already"),
            Refusal::AddressNotAvailable => {
                f.write_str("nobody can connect to or listen at this address")
            }
            Refusal::TimedOut => f.write_str("the other side did not answer in time"),
            Refusal::ServiceNotMappable => f.write_str(
                "the service's GUID stands for no vsock port, and the other side knows ports only",
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
        (1..=17).map(|code| Refusal::from_wire(code, "x")).collect()
    }

    #[test]
    fn every_refusal_survives_the_wire() {
        for (at, refusal) in all().into_iter().enumerate() {
            assert_eq!(refusal.code() as usize, at + 1);
            assert_eq!(refusal.label(), Refusal::ALL_LABELS[at]);
            let again = Refusal::from_wire(refusal.code(), refusal.detail());
            assert_eq!(again, refusal);
        }
    }

    #[test]
    fn the_code_of_a_newer_sender_becomes_a_reset_that_names_it() {
        for (code, detail, want) in [
            (0, "", "an unknown reason (0)"),
            (18, "moon", "an unknown reason (18): moon"),
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
            let cut = refusal.clone().into_cut_error();
            assert_eq!(cut.kind(), io::ErrorKind::ConnectionReset);
            assert_eq!(cut.to_string(), refusal.to_string());
        }
    }

    // The standard library knows the numbers of the system that it runs on.
    #[cfg(target_os = "linux")]
    #[test]
    fn errno_and_kind_agree_as_far_as_the_standard_library_knows() {
        for refusal in all() {
            let kind = io::Error::from_raw_os_error(refusal.errno()).kind();
            // It gives these two numbers no stable kind.
            let unnamed = matches!(
                refusal,
                Refusal::LimitReached { .. } | Refusal::PartitionPaused
            );
            assert!(unnamed || kind == refusal.kind(), "{refusal}: {kind:?}");
        }
    }

    #[test]
    fn a_refusal_is_one_sentence() {
        for refusal in all() {
            let text = refusal.to_string();
            assert!(!text.ends_with('.') && !text.contains('\n'), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_code_and_detail_are_some_refusal(code: u32, detail in ".{0,40}") {
            let refusal = Refusal::from_wire(code, &detail);
            prop_assert!(Refusal::ALL_LABELS.contains(&refusal.label()));
        }
    }
}
