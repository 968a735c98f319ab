//! The two ends of a connection between a process and a guest: the process's descriptors, and what
//! the guest's link moves bytes from and to.

use std::os::fd::{AsFd, OwnedFd};

use hvsock_endpoint::{Transport, Transports};
use hvsock_fabric::{PartitionKey, Refusal};
use hvsock_ring::{Parts, RingEnd, RingSide, RingSize};
use hvsock_sys::{set_nonblocking, stream};

use super::guest_shares::{DEFAULT_BUFFER, GUEST_RING, MIN_BUFFER, credit, share_of_buffers};
use super::limits::{descriptor_limit, mmap_limit};
use super::pending::ProcessPart;
use super::preference::{ChosenTransport, TransportPreference};
use super::state::Core;
use crate::guest_link::Peer;
use crate::kernel_vsock::raise_credit;

/// Creates both ends of a transport: the process's, the link's, and the buffer size in bytes for
/// data from the guest.
pub(super) fn make_ends(
    chosen: ChosenTransport,
    process: RingSide,
    raw_fd: bool,
) -> Result<(ProcessPart, Peer, u32), Refusal> {
    match chosen {
        ChosenTransport::Ring(size) => {
            let parts = Parts::new(size).map_err(|error| descriptor_limit(&error))?;
            let Parts {
                memory,
                first,
                second,
            } = parts;
            let (own, doorbells) = match process {
                RingSide::First => (second, first),
                RingSide::Second => (first, second),
            };
            let end = RingEnd::open(process.other(), &memory, own);
            let end = end.map_err(|error| mmap_limit(&error))?;
            let kept = memory.try_clone();
            let kept = kept.map_err(|error| descriptor_limit(&error))?;
            let part = ProcessPart::Ring { memory, doorbells };
            Ok((part, Peer::ring(end, kept), size.bytes()))
        }
        // A guest has no end of a socket pair.
        ChosenTransport::Descriptor | ChosenTransport::Direct | ChosenTransport::Attached => {
            let (process, data) = make_socket()?;
            let part = ProcessPart::Socket(process);
            Ok((part, Peer::socket(data, raw_fd), DEFAULT_BUFFER))
        }
    }
}

/// Creates a socket pair: the process's end, and the broker's.
pub(super) fn make_socket() -> Result<(OwnedFd, OwnedFd), Refusal> {
    let (data, process) = stream::pair().map_err(|error| descriptor_limit(&error))?;
    set_nonblocking(&data, true).map_err(|error| descriptor_limit(&error))?;
    Ok((process, data))
}

/// The broker's duplicate of a guest's socket that a process receives, which is put into blocking mode for
/// it. `connections` is how many the guest has.
pub(super) fn kept_duplicate(socket: &OwnedFd, connections: usize) -> Result<OwnedFd, Refusal> {
    raise_credit(socket.as_fd(), credit(connections));
    set_nonblocking(socket, false).map_err(|error| descriptor_limit(&error))?;
    socket.try_clone().map_err(|error| descriptor_limit(&error))
}

impl Core {
    /// The transport between a process and a guest whose link moves the bytes. The broker itself has
    /// the other end, so a ring is allowed even if processes may not share memory with each other.
    pub(super) fn transport_for(
        &self,
        vm: PartitionKey,
        preference: TransportPreference,
    ) -> Option<ChosenTransport> {
        let own = TransportPreference {
            transports: Transports::RING.union(Transports::DESCRIPTOR),
            raw_fd: false,
            ring_size: match preference.ring_size {
                0 => GUEST_RING,
                _ => RingSize::MIN.bytes(),
            },
        };
        match ChosenTransport::between(own, preference, false, true)? {
            ChosenTransport::Ring(size) => {
                let bytes = size.bytes().min(self.buffer_share(vm)).max(MIN_BUFFER);
                Some(ChosenTransport::Ring(RingSize::at_least(bytes)))
            }
            chosen => Some(chosen),
        }
    }

    /// The buffer bytes of one more connection of a VM, each way.
    pub(super) fn buffer_share(&self, vm: PartitionKey) -> u32 {
        share_of_buffers(self.connections.with_guests(vm))
    }
}

/// Whether a process can use the guest's socket itself, as the end of a direct connection.
pub(super) fn takes_hand_over(preference: TransportPreference) -> bool {
    preference.supports(Transport::Direct)
}

/// Whether a process can use a plain socket, which the broker relays.
pub(super) fn takes_socket(preference: TransportPreference) -> bool {
    let own = TransportPreference {
        transports: Transports::DESCRIPTOR,
        raw_fd: false,
        ring_size: 0,
    };
    ChosenTransport::between(own, preference, false, false).is_some()
}
