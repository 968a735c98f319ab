//! The VMMs that have such sockets, as data. A further one is a file here and a line in [`of`].

mod cloud_hypervisor;
mod features;
mod firecracker;
mod libkrun;
mod openvmm;

use hvsock_control::HybridStyle;

pub(super) use features::{Connects, Style};

/// What is so about a VMM with sockets of this style.
pub(super) fn of(style: HybridStyle) -> &'static Style {
    match style {
        HybridStyle::Firecracker => &firecracker::STYLE,
        HybridStyle::CloudHypervisor => &cloud_hypervisor::STYLE,
        HybridStyle::OpenVmm => &openvmm::STYLE,
        HybridStyle::Libkrun => &libkrun::STYLE,
    }
}

#[cfg(test)]
mod tests {
    use hvsock_address::ServiceId;
    use hvsock_endpoint::HybridService;

    use super::*;
    use crate::guest_link::{OfferedService, Service};

    const GUID: &str = "e0e16197-dd56-4a10-9195-5ee7a155a838";

    fn offered(service: ServiceId) -> OfferedService {
        OfferedService {
            service,
            port: service.port_for_guests(),
            listening: true,
        }
    }

    #[test]
    fn a_service_with_a_port_is_requested_and_offered_by_its_port_alone() {
        let id = ServiceId::from_port(5000);
        let port = vec![HybridService::Port(5000)];
        for style in [&firecracker::STYLE, &openvmm::STYLE] {
            assert_eq!(style.names_of(Service::Id(id)), port);
            assert_eq!(style.names_of(Service::Port(5000)), port);
            assert_eq!(style.sockets_of(offered(id)), port);
        }
    }

    #[test]
    fn only_openvmm_is_asked_for_a_guid_and_then_for_its_alias() {
        let id: ServiceId = GUID.parse().unwrap();
        let alias = HybridService::Port(id.vsock_alias().unwrap());
        let guid = HybridService::Guid(id);
        assert_eq!(firecracker::STYLE.names_of(Service::Id(id)), [alias]);
        assert_eq!(firecracker::STYLE.sockets_of(offered(id)), [alias]);
        assert_eq!(openvmm::STYLE.names_of(Service::Id(id)), [guid, alias]);
        assert_eq!(openvmm::STYLE.sockets_of(offered(id)), [alias, guid]);
    }

    #[test]
    fn a_vm_is_charged_for_all_sockets_of_its_services_and_for_connects_that_wait() {
        let (port, guid) = (
            offered(ServiceId::from_port(5000)),
            offered(GUID.parse().unwrap()),
        );
        let silent = OfferedService {
            listening: false,
            ..port
        };
        let count =
            |style: HybridStyle, services: &[OfferedService]| of(style).descriptors_for(services);
        assert_eq!(count(HybridStyle::OpenVmm, &[]), 0);
        assert_eq!(count(HybridStyle::OpenVmm, &[silent]), 0);
        assert_eq!(count(HybridStyle::OpenVmm, &[port]), 1 + 64);
        assert_eq!(count(HybridStyle::OpenVmm, &[port, guid, silent]), 3 + 64);
        assert_eq!(
            count(HybridStyle::Firecracker, &[port, guid, silent]),
            2 + 64
        );
        assert_eq!(count(HybridStyle::OpenVmm, &[guid; 600]), 1024 + 64);
    }

    #[test]
    fn half_close_is_claimed_only_for_vmms_that_have_it_both_ways() {
        use HybridStyle::{CloudHypervisor, Firecracker, Libkrun, OpenVmm};

        let has = |style| of(style).capabilities().half_close;
        assert_eq!(
            [Firecracker, CloudHypervisor, OpenVmm, Libkrun].map(has),
            [false, true, true, false]
        );
    }
}
