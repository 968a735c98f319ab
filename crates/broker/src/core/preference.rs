//! Which transport a connection gets: what each process supports, and the choice.

use hvsock_endpoint::{Transport, Transports};
use hvsock_ring::RingSize;

/// The transports that one process of a connection supports.
#[derive(Clone, Copy, Debug)]
pub(super) struct TransportPreference {
    pub(super) transports: Transports,
    /// The process uses the data descriptor without the library (raw fd), so it needs
    /// [`Transport::Descriptor`] or [`Transport::Direct`].
    pub(super) raw_fd: bool,
    /// Requested ring capacity in bytes; 0 selects the broker's default.
    pub(super) ring_size: u32,
}

impl TransportPreference {
    pub(super) fn supports(self, transport: Transport) -> bool {
        let works_with_raw_fd = matches!(transport, Transport::Descriptor | Transport::Direct);
        self.transports.contains(transport) && (works_with_raw_fd || !self.raw_fd)
    }

    /// The size of the rings of a connection with `listening`.
    pub(super) fn ring_size_with(self, listening: Self) -> RingSize {
        match (self.ring_size(), listening.ring_size()) {
            (None, None) => RingSize::DEFAULT,
            (Some(size), None) | (None, Some(size)) => size.max(RingSize::SMALL),
            (Some(first), Some(second)) => first.max(second),
        }
    }

    /// Whether the process can open, or accept, connections in an arena.
    pub(super) fn takes_arenas(self) -> bool {
        self.supports(Transport::Arena)
    }

    /// The requested ring size.
    pub(super) fn ring_size(self) -> Option<RingSize> {
        match self.ring_size {
            0 => None,
            bytes => Some(RingSize::at_least(bytes)),
        }
    }
}

/// The transport of a connection, as the broker chose it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ChosenTransport {
    Descriptor,
    /// Only where the registry says so.
    Direct,
    Ring(RingSize),
    /// The connecting process's own socket. The accepting one has a descriptor.
    Attached,
}

impl ChosenTransport {
    /// The most common choice.
    pub(super) const DEFAULT: ChosenTransport = ChosenTransport::Ring(RingSize::DEFAULT);

    /// The best transport that both processes support. `direct` prefers that one, `may_share` allows
    /// rings. `None` if they have no transport in common.
    pub(super) fn between(
        connecting: TransportPreference,
        listening: TransportPreference,
        direct: bool,
        may_share: bool,
    ) -> Option<ChosenTransport> {
        let both = [connecting, listening];
        let common = |transport| both.iter().all(|one| one.supports(transport));
        if connecting.transports.contains(Transport::Attached) {
            listening
                .supports(Transport::Descriptor)
                .then_some(ChosenTransport::Attached)
        } else if direct && common(Transport::Direct) {
            Some(ChosenTransport::Direct)
        } else if may_share && common(Transport::Ring) {
            Some(ChosenTransport::Ring(connecting.ring_size_with(listening)))
        } else if common(Transport::Descriptor) {
            Some(ChosenTransport::Descriptor)
        } else {
            None
        }
    }

    /// The broker's descriptors of a connection, without the endpoint connection of the connecting
    /// process: the control connection of the accepting one, the data sockets that it relays or with
    /// which it can close the connection, and shared memory for a broker that takes the connection over.
    pub(super) fn descriptors(self) -> u64 {
        match self {
            ChosenTransport::Descriptor | ChosenTransport::Direct => 3,
            // The socket of the connecting process is charged with its attachment.
            ChosenTransport::Attached | ChosenTransport::Ring(_) => 2,
        }
    }

    /// The descriptors that the accepting process gets, which the broker has until it takes them.
    pub(super) fn offered_descriptors(self) -> u64 {
        match self {
            ChosenTransport::Descriptor | ChosenTransport::Direct | ChosenTransport::Attached => 2,
            ChosenTransport::Ring(_) => 4,
        }
    }

    pub(super) fn transport(self) -> Transport {
        match self {
            ChosenTransport::Descriptor => Transport::Descriptor,
            ChosenTransport::Direct => Transport::Direct,
            ChosenTransport::Ring(_) => Transport::Ring,
            ChosenTransport::Attached => Transport::Attached,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: Transports = Transports::DESCRIPTOR.union(Transports::RING);

    fn preference(transports: Transports) -> TransportPreference {
        TransportPreference {
            transports,
            raw_fd: false,
            ring_size: 0,
        }
    }

    fn between(
        connecting: TransportPreference,
        listening: TransportPreference,
    ) -> Option<ChosenTransport> {
        ChosenTransport::between(connecting, listening, false, true)
    }

    #[test]
    fn the_peer_of_an_attached_socket_has_a_descriptor() {
        let attached = preference(Transports::ATTACHED);
        let chosen = |listening| ChosenTransport::between(attached, listening, true, true);
        for others in [BOTH, Transports::DESCRIPTOR, BOTH | Transports::ARENA] {
            let chosen = chosen(preference(others | Transports::DIRECT));
            assert_eq!(chosen, Some(ChosenTransport::Attached));
        }
        assert_eq!(chosen(preference(Transports::RING)), None);
        assert_eq!(chosen(preference(Transports::ATTACHED)), None);
        assert_eq!(between(preference(BOTH), attached), None);
    }

    #[test]
    fn a_direct_connection_needs_the_registry_and_both_processes() {
        let direct = Transports::DESCRIPTOR | Transports::DIRECT;
        let raw_fd = TransportPreference {
            raw_fd: true,
            ..preference(direct)
        };
        let all = preference(direct | Transports::RING);
        let chosen = |a, b, wanted| ChosenTransport::between(a, b, wanted, true);
        for (a, b) in [(all, all), (raw_fd, all), (all, raw_fd), (raw_fd, raw_fd)] {
            assert_eq!(chosen(a, b, true), Some(ChosenTransport::Direct));
            assert_ne!(chosen(a, b, false), Some(ChosenTransport::Direct));
        }
        // One that does not offer it does not get it.
        assert_eq!(
            chosen(all, preference(BOTH), true),
            Some(ChosenTransport::DEFAULT)
        );
        let old_raw_fd = TransportPreference {
            transports: Transports::DESCRIPTOR,
            ..raw_fd
        };
        assert_eq!(
            chosen(old_raw_fd, all, true),
            Some(ChosenTransport::Descriptor)
        );
    }

    #[test]
    fn rings_are_used_only_where_shared_memory_is_allowed() {
        let ring = Transports::RING;
        let both = ChosenTransport::between(preference(BOTH), preference(BOTH), false, false);
        assert_eq!(both, Some(ChosenTransport::Descriptor));
        assert_eq!(
            ChosenTransport::between(preference(ring), preference(BOTH), false, false),
            None
        );
    }

    #[test]
    fn the_ring_is_used_if_both_support_it_and_neither_uses_a_raw_fd() {
        let (descriptor, ring) = (Transports::DESCRIPTOR, Transports::RING);
        let ring_default = Some(ChosenTransport::DEFAULT);
        for (a, b, want) in [
            (BOTH, BOTH, ring_default),
            (BOTH, ring, ring_default),
            (ring, ring, ring_default),
            (BOTH, descriptor, Some(ChosenTransport::Descriptor)),
            (descriptor, descriptor, Some(ChosenTransport::Descriptor)),
            (ring, descriptor, None),
        ] {
            assert_eq!(between(preference(a), preference(b)), want, "{a:?} {b:?}");
            assert_eq!(between(preference(b), preference(a)), want, "{b:?} {a:?}");
        }
        let raw_fd = |transports| TransportPreference {
            raw_fd: true,
            ..preference(transports)
        };
        for other in [preference(BOTH), raw_fd(BOTH), preference(descriptor)] {
            let chosen = between(raw_fd(BOTH), other);
            assert_eq!(chosen, Some(ChosenTransport::Descriptor));
            assert_eq!(between(other, raw_fd(BOTH)), chosen);
        }
        assert_eq!(between(raw_fd(ring), preference(BOTH)), None);
    }

    #[test]
    fn the_larger_ring_size_request_wins_within_bounds() {
        for (a, b, want) in [
            (0, 0, RingSize::DEFAULT.bytes()),
            (0, 4096, RingSize::SMALL.bytes()),
            (1, 4096, 4096),
            (5000, 1, 8192),
            (1 << 20, 0, 1 << 20),
            (u32::MAX, 1, RingSize::MAX.bytes()),
        ] {
            let of = |ring_size| TransportPreference {
                ring_size,
                ..preference(BOTH)
            };
            for chosen in [between(of(a), of(b)), between(of(b), of(a))] {
                assert!(
                    matches!(chosen, Some(ChosenTransport::Ring(size)) if size.bytes() == want),
                    "{a} {b} {chosen:?}"
                );
            }
        }
    }
}
