//! The registrations of the integration services, which the broker has built in.

use hvsock_address::{ElementName, InvalidName};
use hvsock_broker::{AccessRule, PARENT, Registration};
use hvsock_services::catalog::{self, Integration, ServiceSide};

/// The registrations of all integration services.
///
/// The services of guests control a guest completely. On the host only root and the broker's user
/// may connect to them, to whom no rule applies. An operator can allow others. In a container only its
/// root may offer them, as in a virtual machine, where their ports need root: whoever listens there
/// receives what the host sends.
///
/// In a virtual machine with a host to join, that host may connect, too: it controls the machine, and with
/// it the containers in it. An operator of the machine can deny it.
pub fn registrations(has_host: bool) -> Vec<Registration> {
    let registrations = catalog::ALL.into_iter();
    registrations
        .map(|service| registration(service, has_host))
        .collect::<Result<_, _>>()
        .expect("the names of the catalogue are valid")
}

fn registration(service: &Integration, has_host: bool) -> Result<Registration, InvalidName> {
    let none = || Some(Vec::new());
    let children = || Some(vec!["*".to_owned()]);
    let host = || has_host.then(|| vec![PARENT.to_owned()]).or_else(none);
    let (listen, connect) = match service.side {
        ServiceSide::Guest => (children(), host()),
        ServiceSide::Host => (none(), children()),
    };
    let of = |partitions| AccessRule {
        users: none(),
        groups: none(),
        partitions,
    };
    Ok(Registration {
        only_root_binds: Some(true),
        bind: of(listen),
        connect: of(connect),
        owner: Some("hvsock".to_owned()),
        creator: Some("hvsock".to_owned()),
        purpose: Some(service.purpose.to_owned()),
        ..Registration::new(service.id(), ElementName::new(service.name)?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_of_a_virtual_machine_may_use_the_services_of_containers_in_it() {
        for one in registrations(true) {
            let service = catalog::ALL
                .into_iter()
                .find(|service| service.id() == one.id);
            let from = match service.unwrap().side {
                ServiceSide::Guest => PARENT,
                ServiceSide::Host => "*",
            };
            assert_eq!(one.connect.partitions, Some(vec![from.to_owned()]));
            assert_eq!(one.connect.users, Some(Vec::new()));
        }
    }

    #[test]
    fn every_service_of_the_catalogue_is_built_in() {
        let registrations = registrations(false);
        assert_eq!(registrations.len(), catalog::ALL.len());
        let session = registrations
            .iter()
            .find(|one| one.id == catalog::SESSION.id());
        let session = session.unwrap();
        assert_eq!(session.connect.users, Some(Vec::new()));
        assert_eq!(session.connect.partitions, Some(Vec::new()));
        assert_eq!(session.bind.partitions, Some(vec!["*".to_owned()]));
        assert!(
            registrations
                .iter()
                .all(|one| one.only_root_binds == Some(true))
        );
    }
}
