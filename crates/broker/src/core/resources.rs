//! The resources of a connection between two processes: descriptors of the processes and of the
//! broker.
//!
//! A relayed connection has two socket pairs for data. A ring connection has shared memory and two
//! doorbells; the broker keeps only a [`Monitor`], which maps the control words of that memory. Both
//! kinds have a control connection for the accepting process. The connecting process uses its
//! endpoint connection as its control connection.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use hvsock_endpoint::{Transport, Transports};
use hvsock_fabric::Refusal;
use hvsock_ring::{Monitor, Parts, RingSize};
use hvsock_sys::{seqpacket, set_nonblocking, stream};

use super::accept::descriptor_limit;
use crate::data_path::ByteCounters;
use crate::pump::{Connection, RelayEnd};

/// The transports that one process of a connection supports.
#[derive(Clone, Copy, Debug)]
pub(super) struct TransportPreference {
    pub(super) transports: Transports,
    /// The process uses the data descriptor without the library (raw fd), so it needs
    /// [`Transport::Descriptor`].
    pub(super) raw_fd: bool,
    /// Requested ring capacity in bytes; 0 selects the broker's default.
    pub(super) ring_size: u32,
}

impl TransportPreference {
    fn supports(self, transport: Transport) -> bool {
        let works_with_raw_fd = transport == Transport::Descriptor;
        self.transports.contains(transport) && (works_with_raw_fd || !self.raw_fd)
    }

    fn ring_size(self) -> RingSize {
        match self.ring_size {
            0 => RingSize::DEFAULT,
            bytes => RingSize::at_least(bytes),
        }
    }
}

/// The transport of a connection, as the broker chose it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ChosenTransport {
    Descriptor,
    Ring(RingSize),
}

impl ChosenTransport {
    /// The most common choice.
    pub(super) const DEFAULT: ChosenTransport = ChosenTransport::Ring(RingSize::DEFAULT);

    /// The best transport that both processes support. `may_share` allows rings. `None` if they have
    /// no transport in common.
    pub(super) fn between(
        connecting: TransportPreference,
        listening: TransportPreference,
        may_share: bool,
    ) -> Option<ChosenTransport> {
        let both = [connecting, listening];
        let common = |transport| both.iter().all(|one| one.supports(transport));
        if may_share && common(Transport::Ring) {
            let size = connecting.ring_size().max(listening.ring_size());
            Some(ChosenTransport::Ring(size))
        } else if common(Transport::Descriptor) {
            Some(ChosenTransport::Descriptor)
        } else {
            None
        }
    }

    pub(super) fn transport(self) -> Transport {
        match self {
            ChosenTransport::Descriptor => Transport::Descriptor,
            ChosenTransport::Ring(_) => Transport::Ring,
        }
    }
}

/// The resources of a connection before its processes have received theirs.
pub(super) struct ConnectionResources {
    pub(super) transport: ChosenTransport,
    pub(super) broker: BrokerPart,
    /// The processes' descriptors. The broker closes its copies once they are sent: a ring end
    /// detects a dead peer by the hang-up of its doorbell, which needs all other copies closed.
    processes: ProcessPart,
    control_sent: OwnedFd,
}

/// The broker's part of a connection. Its descriptors are non-blocking.
pub(super) struct BrokerPart {
    /// The control connection of the accepting process.
    pub(super) control: OwnedFd,
    data: BrokerData,
}

enum BrokerData {
    Descriptor { client: OwnedFd, server: OwnedFd },
    Ring(Monitor),
}

enum ProcessPart {
    Descriptor { client: OwnedFd, server: OwnedFd },
    Ring(Parts),
}

impl ConnectionResources {
    pub(super) fn new(transport: ChosenTransport) -> Result<Self, Refusal> {
        let (control, control_sent) = seqpacket::pair().map_err(|e| descriptor_limit(&e))?;
        let (data, processes) = match transport {
            ChosenTransport::Descriptor => {
                data_pairs().map_err(|error| descriptor_limit(&error))?
            }
            ChosenTransport::Ring(size) => {
                let parts = Parts::new(size).map_err(|error| descriptor_limit(&error))?;
                let monitor = Monitor::new(&parts.memory).map_err(|error| mmap_limit(&error))?;
                (BrokerData::Ring(monitor), ProcessPart::Ring(parts))
            }
        };
        set_nonblocking(&control, true).map_err(|error| descriptor_limit(&error))?;
        Ok(Self {
            transport,
            broker: BrokerPart { control, data },
            processes,
            control_sent,
        })
    }

    /// The descriptors for the connecting process, in the order of the endpoint protocol.
    pub(super) fn for_client(&self) -> Vec<BorrowedFd<'_>> {
        match &self.processes {
            ProcessPart::Descriptor { client, .. } => vec![client.as_fd()],
            ProcessPart::Ring(parts) => vec![
                parts.memory.as_fd(),
                parts.first.own.as_fd(),
                parts.first.peer.as_fd(),
            ],
        }
    }

    /// The descriptors for the accepting process, in the order of the endpoint protocol.
    pub(super) fn for_server(&self) -> Vec<BorrowedFd<'_>> {
        let control = self.control_sent.as_fd();
        match &self.processes {
            ProcessPart::Descriptor { server, .. } => vec![server.as_fd(), control],
            ProcessPart::Ring(parts) => vec![
                parts.memory.as_fd(),
                parts.second.own.as_fd(),
                parts.second.peer.as_fd(),
                control,
            ],
        }
    }
}

impl BrokerPart {
    /// Builds the connection and its counters. `client_control` is the connecting process's control
    /// connection, `raw_fd` the flag of the client and of the server.
    pub(super) fn connection(
        self,
        client_control: OwnedFd,
        raw_fd: [bool; 2],
    ) -> (Connection, Arc<ByteCounters>) {
        match self.data {
            BrokerData::Descriptor { client, server } => {
                let from = RelayEnd::new(client_control, client, raw_fd[0]);
                let to = RelayEnd::new(self.control, server, raw_fd[1]);
                (Connection::relay(from, to), Arc::default())
            }
            BrokerData::Ring(monitor) => {
                let monitor = Arc::new(monitor);
                let counters = ByteCounters::of_ring(Arc::clone(&monitor));
                let controls = [client_control, self.control];
                (Connection::ring(controls, monitor), Arc::new(counters))
            }
        }
    }

    /// Resets a ring for a process that has received its part and the reason.
    pub(super) fn reset(&self) {
        if let BrokerData::Ring(monitor) = &self.data {
            monitor.reset();
        }
    }
}

fn data_pairs() -> std::io::Result<(BrokerData, ProcessPart)> {
    let (client, client_sent) = stream::pair()?;
    let (server, server_sent) = stream::pair()?;
    for own in [&client, &server] {
        set_nonblocking(own, true)?;
    }
    let processes = ProcessPart::Descriptor {
        client: client_sent,
        server: server_sent,
    };
    Ok((BrokerData::Descriptor { client, server }, processes))
}

/// The refusal if the kernel permits the broker no more memory mappings.
pub(super) fn mmap_limit(error: &std::io::Error) -> Refusal {
    Refusal::LimitReached {
        which: format!("memory mapped by the broker ({error})"),
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
        ChosenTransport::between(connecting, listening, true)
    }

    #[test]
    fn rings_are_used_only_where_shared_memory_is_allowed() {
        let ring = Transports::RING;
        let both = ChosenTransport::between(preference(BOTH), preference(BOTH), false);
        assert_eq!(both, Some(ChosenTransport::Descriptor));
        assert_eq!(
            ChosenTransport::between(preference(ring), preference(BOTH), false),
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
            (0, 4096, RingSize::DEFAULT.bytes()),
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
