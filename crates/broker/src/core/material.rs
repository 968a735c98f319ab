//! What a connection is made of: its descriptors, the processes' and the broker's own.
//!
//! A connection whose bytes the broker moves has two socket pairs for data. One whose ends share
//! memory has that memory and two bells, of which the broker keeps nothing but a view of the
//! words. Both have a control connection for the accepting process; the connecting one has its
//! endpoint connection for that.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use hvsock_endpoint::{Transport, Transports};
use hvsock_fabric::Refusal;
use hvsock_ring::{Monitor, Parts, RingSize};
use hvsock_sys::{seqpacket, set_nonblocking, stream};

use super::accept::out_of_descriptors;
use crate::pump::{Connection, Counters, RelayEnd};

/// What one of two processes wants of the connection between them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Offer {
    pub(super) transports: Transports,
    pub(super) plain: bool,
    /// The bytes that a ring should hold; 0 is for the broker to say.
    pub(super) ring_size: u32,
}

impl Offer {
    fn takes(self, transport: Transport) -> bool {
        let by_plain_programs = transport == Transport::Descriptor;
        self.transports.contains(transport) && (by_plain_programs || !self.plain)
    }

    fn ring_size(self) -> RingSize {
        match self.ring_size {
            0 => RingSize::DEFAULT,
            bytes => RingSize::at_least(bytes),
        }
    }
}

/// How the bytes of a connection are to move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Descriptor,
    Ring(RingSize),
}

impl Kind {
    /// What most connections ask for.
    pub(super) const USUAL: Kind = Kind::Ring(RingSize::DEFAULT);

    /// What suits both processes best, where they may share memory or may not.
    pub(super) fn between(connecting: Offer, listening: Offer, may_share: bool) -> Option<Kind> {
        let both = [connecting, listening];
        let all_take = |transport| both.iter().all(|offer| offer.takes(transport));
        if may_share && all_take(Transport::Ring) {
            let size = connecting.ring_size().max(listening.ring_size());
            Some(Kind::Ring(size))
        } else if all_take(Transport::Descriptor) {
            Some(Kind::Descriptor)
        } else {
            None
        }
    }

    pub(super) fn transport(self) -> Transport {
        match self {
            Kind::Descriptor => Transport::Descriptor,
            Kind::Ring(_) => Transport::Ring,
        }
    }
}

/// A connection that nobody has heard of yet.
pub(super) struct Material {
    pub(super) kind: Kind,
    /// The broker's.
    pub(super) kept: Kept,
    /// The processes'. To be closed here as soon as they have it: the kernel tells the ends of a
    /// ring from the bells that nobody else has them.
    given: Given,
    control_given: OwnedFd,
}

/// The broker's part of a connection, which does not block.
pub(super) struct Kept {
    /// The control connection of the accepting process.
    pub(super) control: OwnedFd,
    data: KeptData,
}

enum KeptData {
    Descriptor { client: OwnedFd, server: OwnedFd },
    Ring(Monitor),
}

enum Given {
    Descriptor { client: OwnedFd, server: OwnedFd },
    Ring(Parts),
}

impl Material {
    pub(super) fn new(kind: Kind) -> Result<Self, Refusal> {
        let (control, control_given) = seqpacket::pair().map_err(|e| out_of_descriptors(&e))?;
        let (data, given) = match kind {
            Kind::Descriptor => data_pairs().map_err(|error| out_of_descriptors(&error))?,
            Kind::Ring(size) => {
                let parts = Parts::new(size).map_err(|error| out_of_descriptors(&error))?;
                let monitor = Monitor::new(&parts.memory).map_err(|error| out_of_maps(&error))?;
                (KeptData::Ring(monitor), Given::Ring(parts))
            }
        };
        set_nonblocking(&control, true).map_err(|error| out_of_descriptors(&error))?;
        Ok(Self {
            kind,
            kept: Kept { control, data },
            given,
            control_given,
        })
    }

    /// The descriptors of the connecting process, in the protocol's order.
    pub(super) fn for_client(&self) -> Vec<BorrowedFd<'_>> {
        match &self.given {
            Given::Descriptor { client, .. } => vec![client.as_fd()],
            Given::Ring(parts) => vec![
                parts.memory.as_fd(),
                parts.first.own.as_fd(),
                parts.first.peer.as_fd(),
            ],
        }
    }

    /// The descriptors of the accepting process, in the protocol's order.
    pub(super) fn for_server(&self) -> Vec<BorrowedFd<'_>> {
        let control = self.control_given.as_fd();
        match &self.given {
            Given::Descriptor { server, .. } => vec![server.as_fd(), control],
            Given::Ring(parts) => vec![
                parts.memory.as_fd(),
                parts.second.own.as_fd(),
                parts.second.peer.as_fd(),
                control,
            ],
        }
    }
}

impl Kept {
    /// The connection, with the connecting process's control connection, and its counters.
    pub(super) fn connection(
        self,
        client_control: OwnedFd,
        plain: [bool; 2],
    ) -> (Connection, Arc<Counters>) {
        match self.data {
            KeptData::Descriptor { client, server } => {
                let from = RelayEnd::new(client_control, client, plain[0]);
                let to = RelayEnd::new(self.control, server, plain[1]);
                (Connection::relay(from, to), Arc::default())
            }
            KeptData::Ring(monitor) => {
                let monitor = Arc::new(monitor);
                let counters = Counters::of_ring(Arc::clone(&monitor));
                let controls = [client_control, self.control];
                (Connection::ring(controls, monitor), Arc::new(counters))
            }
        }
    }

    /// Ends it for a process that has its part already, and has been told why.
    pub(super) fn cut(&self) {
        if let KeptData::Ring(monitor) = &self.data {
            monitor.cut();
        }
    }
}

fn data_pairs() -> std::io::Result<(KeptData, Given)> {
    let (client, client_given) = stream::pair()?;
    let (server, server_given) = stream::pair()?;
    for own in [&client, &server] {
        set_nonblocking(own, true)?;
    }
    let given = Given::Descriptor {
        client: client_given,
        server: server_given,
    };
    Ok((KeptData::Descriptor { client, server }, given))
}

/// The system lets this process map no more memory.
pub(super) fn out_of_maps(error: &std::io::Error) -> Refusal {
    Refusal::LimitReached {
        which: format!("memory mapped by the broker ({error})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: Transports = Transports::DESCRIPTOR.union(Transports::RING);

    fn offer(transports: Transports) -> Offer {
        Offer {
            transports,
            plain: false,
            ring_size: 0,
        }
    }

    fn between(connecting: Offer, listening: Offer) -> Option<Kind> {
        Kind::between(connecting, listening, true)
    }

    #[test]
    fn memory_is_shared_only_where_it_may_be() {
        let ring = Transports::RING;
        let both = Kind::between(offer(BOTH), offer(BOTH), false);
        assert_eq!(both, Some(Kind::Descriptor));
        assert_eq!(Kind::between(offer(ring), offer(BOTH), false), None);
    }

    #[test]
    fn the_ring_is_used_where_both_can_and_neither_is_plain() {
        let (descriptor, ring) = (Transports::DESCRIPTOR, Transports::RING);
        let usual = Some(Kind::USUAL);
        for (a, b, want) in [
            (BOTH, BOTH, usual),
            (BOTH, ring, usual),
            (ring, ring, usual),
            (BOTH, descriptor, Some(Kind::Descriptor)),
            (descriptor, descriptor, Some(Kind::Descriptor)),
            (ring, descriptor, None),
        ] {
            assert_eq!(between(offer(a), offer(b)), want, "{a:?} {b:?}");
            assert_eq!(between(offer(b), offer(a)), want, "{b:?} {a:?}");
        }
        let plain = |transports| Offer {
            plain: true,
            ..offer(transports)
        };
        for other in [offer(BOTH), plain(BOTH), offer(descriptor)] {
            let kind = between(plain(BOTH), other);
            assert_eq!(kind, Some(Kind::Descriptor));
            assert_eq!(between(other, plain(BOTH)), kind);
        }
        assert_eq!(between(plain(ring), offer(BOTH)), None);
    }

    #[test]
    fn the_larger_wish_wins_within_bounds() {
        for (a, b, want) in [
            (0, 0, RingSize::DEFAULT.bytes()),
            (0, 4096, RingSize::DEFAULT.bytes()),
            (1, 4096, 4096),
            (5000, 1, 8192),
            (1 << 20, 0, 1 << 20),
            (u32::MAX, 1, RingSize::MAX.bytes()),
        ] {
            let of = |ring_size| Offer {
                ring_size,
                ..offer(BOTH)
            };
            for kind in [between(of(a), of(b)), between(of(b), of(a))] {
                assert!(
                    matches!(kind, Some(Kind::Ring(size)) if size.bytes() == want),
                    "{a} {b} {kind:?}"
                );
            }
        }
    }
}
