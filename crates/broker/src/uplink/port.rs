//! The port of the host that is the broker's own.

use hvsock_address::{ServiceId, UPLINK_PORT, VmId};

use crate::guest_link::{Destination, GuestRequest, OfferedService};

/// Whether a guest requests the broker itself.
pub(crate) fn is_for_broker(request: &GuestRequest) -> bool {
    let at_host = match request.destination {
        Destination::Host => true,
        Destination::Partition(id) => id == VmId::PARENT,
        Destination::Cid(_) => false,
    };
    at_host && request.service.port() == Some(UPLINK_PORT)
}

/// The broker's own service, as links without refusals see it: always there.
pub(crate) fn offered() -> OfferedService {
    OfferedService {
        service: ServiceId::from_port(UPLINK_PORT),
        port: Some(UPLINK_PORT),
        listening: true,
    }
}
