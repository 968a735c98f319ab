//! What differs between the VMMs, and what follows from it.

use hvsock_address::ServiceId;
use hvsock_endpoint::HybridService;

use super::super::sockets::{MAX_SOCKETS, MAX_UNANSWERED};
use crate::guest_link::{Capabilities, OfferedService, Service};

/// What differs between the VMMs.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::hybrid) struct Style {
    /// How a connection to the guest is requested.
    pub(in crate::hybrid) connects: Connects,
    /// Whether services have GUIDs, beside ports.
    pub(in crate::hybrid) has_guids: bool,
    /// The end of one direction reaches the other end while the other direction continues, both ways.
    pub(in crate::hybrid) half_close: bool,
}

/// How a connection to the guest is requested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::hybrid) enum Connects {
    /// By a line, at the one socket of the VMM.
    ByLine,
    /// By a connect to the socket of the port, whose path is that of a host's socket. The VMM has no other
    /// socket, and does not say whether the guest has accepted.
    ByPath,
}

impl Style {
    /// What a link to such a VMM can do. None carries messages, reasons or users. The socket is one per
    /// connection, so the broker's relay moves the bytes.
    pub(in crate::hybrid) fn capabilities(&self) -> Capabilities {
        Capabilities {
            half_close: self.half_close,
            ..Capabilities::default()
        }
    }

    /// Under which names to request a service of the guest, in this order. None if it has no port.
    pub(in crate::hybrid) fn names_of(&self, service: Service) -> Vec<HybridService> {
        let port = service.port().map(HybridService::Port);
        match service {
            // The VMM knows the GUID of a Windows guest's service, and the alias of a Linux guest's.
            Service::Id(id) => self.guid(id).into_iter().chain(port).collect(),
            Service::Port(_) => port.into_iter().collect(),
        }
    }

    /// The sockets of the host by which the guest reaches a service.
    pub(in crate::hybrid) fn sockets_of(&self, offered: OfferedService) -> Vec<HybridService> {
        let port = offered.port.map(HybridService::Port);
        port.into_iter().chain(self.guid(offered.service)).collect()
    }

    /// The most descriptors for these services: their sockets, and the guest's connects that are accepted and
    /// not judged yet.
    pub(in crate::hybrid) fn descriptors_for(&self, services: &[OfferedService]) -> usize {
        let listening = services.iter().filter(|service| service.listening);
        match listening
            .map(|service| self.sockets_of(*service).len())
            .sum()
        {
            0 => 0,
            sockets => usize::min(sockets, MAX_SOCKETS) + MAX_UNANSWERED,
        }
    }

    /// The name of a service that has no port of its own.
    fn guid(&self, id: ServiceId) -> Option<HybridService> {
        (self.has_guids && id.port().is_none()).then_some(HybridService::Guid(id))
    }
}
