//! The two address families, and the call `socket`.

use hvsock_address::{AF_HYPERV, AF_VSOCK, HV_PROTOCOL_RAW, SOCK_STREAM};

use super::Errno;

/// An address family that programs get through the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// `AF_VSOCK`, 40: addresses are a context id and a port.
    Vsock,
    /// `AF_HYPERV`, 34: addresses are two GUIDs.
    HyperV,
}

/// How a new descriptor is to be made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DescriptorFlags {
    /// `SOCK_NONBLOCK`.
    pub nonblocking: bool,
    /// `SOCK_CLOEXEC`.
    pub close_on_exec: bool,
}

/// The answer to `socket`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Creation {
    /// Not a socket of these families: the kernel answers.
    Native,
    /// A new emulated socket.
    Socket(Family, DescriptorFlags),
    /// The call fails.
    Error(Errno),
}

/// `SOCK_MAX` of the kernel: no socket type has this number or a higher one.
const SOCK_MAX: i32 = 11;

impl Family {
    /// Its number.
    pub const fn number(self) -> u16 {
        match self {
            Self::Vsock => AF_VSOCK,
            Self::HyperV => AF_HYPERV,
        }
    }

    /// The level of its socket options.
    pub const fn option_level(self) -> i32 {
        match self {
            Self::Vsock => AF_VSOCK as i32,
            Self::HyperV => HV_PROTOCOL_RAW,
        }
    }

    /// What `SO_PROTOCOL` answers.
    pub const fn protocol(self) -> i32 {
        match self {
            Self::Vsock => 0,
            Self::HyperV => HV_PROTOCOL_RAW,
        }
    }
}

impl DescriptorFlags {
    /// The flags of `socket` and `accept4`.
    ///
    /// # Errors
    ///
    /// `EINVAL` if there are others.
    pub fn parse(flags: i32) -> Result<Self, Errno> {
        if flags & !(libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC) != 0 {
            return Err(Errno::EINVAL);
        }
        Ok(Self {
            nonblocking: flags & libc::SOCK_NONBLOCK != 0,
            close_on_exec: flags & libc::SOCK_CLOEXEC != 0,
        })
    }
}

/// Decides the call `socket`.
///
/// 34 is also Linux's `AF_ISDN`, which has no streams: sockets of other types are the kernel's.
pub fn create(domain: i32, kind: i32, protocol: i32) -> Creation {
    const KIND: i32 = 0xf;
    let is = |family: Family| domain == i32::from(family.number());
    let (family, protocols) = if is(Family::Vsock) {
        (Family::Vsock, [0, i32::from(AF_VSOCK)])
    } else if is(Family::HyperV) && kind & KIND == SOCK_STREAM {
        (Family::HyperV, [0, HV_PROTOCOL_RAW])
    } else {
        return Creation::Native;
    };
    let flags = match DescriptorFlags::parse(kind & !KIND) {
        Ok(flags) => flags,
        Err(errno) => return Creation::Error(errno),
    };
    let kind = kind & KIND;
    if kind >= SOCK_MAX {
        Creation::Error(Errno::EINVAL)
    } else if !protocols.contains(&protocol) {
        Creation::Error(Errno::EPROTONOSUPPORT)
    } else if kind != SOCK_STREAM {
        // The broker has streams only.
        Creation::Error(Errno::ESOCKTNOSUPPORT)
    } else {
        Creation::Socket(family, flags)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: DescriptorFlags = DescriptorFlags {
        nonblocking: true,
        close_on_exec: true,
    };

    #[test]
    fn stream_sockets_of_both_families_are_emulated_with_their_flags() {
        let none = DescriptorFlags::default();
        for protocol in [0, 40] {
            let made = create(40, libc::SOCK_STREAM, protocol);
            assert_eq!(made, Creation::Socket(Family::Vsock, none));
        }
        for protocol in [0, 1] {
            let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
            let made = create(34, kind, protocol);
            assert_eq!(made, Creation::Socket(Family::HyperV, BOTH));
        }
    }

    #[test]
    fn other_families_and_isdn_are_the_kernels() {
        for domain in [-1, 0, 1, 2, 10, 16, 41, i32::MAX] {
            assert_eq!(create(domain, libc::SOCK_STREAM, 0), Creation::Native);
        }
        for kind in [libc::SOCK_DGRAM, libc::SOCK_RAW, 0, 15] {
            assert_eq!(create(34, kind, 0), Creation::Native);
        }
    }

    #[test]
    fn what_vsock_does_not_have_is_refused_as_by_the_kernel() {
        let error = |kind, protocol| create(40, kind, protocol);
        for kind in [libc::SOCK_DGRAM, libc::SOCK_SEQPACKET, libc::SOCK_RAW] {
            assert_eq!(error(kind, 0), Creation::Error(Errno::ESOCKTNOSUPPORT));
        }
        let unknown = error(libc::SOCK_STREAM, 6);
        assert_eq!(unknown, Creation::Error(Errno::EPROTONOSUPPORT));
        // The protocol is judged before the type.
        let both = error(libc::SOCK_DGRAM, 6);
        assert_eq!(both, Creation::Error(Errno::EPROTONOSUPPORT));
        for kind in [11, 15, 1 | 0x100, -1] {
            assert_eq!(error(kind, 0), Creation::Error(Errno::EINVAL), "{kind}");
        }
        assert_eq!(create(34, 1, 2), Creation::Error(Errno::EPROTONOSUPPORT));
    }
}
