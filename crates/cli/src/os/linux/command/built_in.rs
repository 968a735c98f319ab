//! The registrations of the integration services, which the broker has built in.

use hvsock_address::{ElementName, InvalidName};
use hvsock_broker::{AccessRule, Registration};
use hvsock_services::catalog::{self, Integration, ServiceSide};

/// The registrations of all integration services.
///
/// The services of guests control a guest completely. On the host only root and the broker's user
/// may connect to them, to whom no rule applies. An operator can allow others. In a container only its
/// root may offer them, as in a virtual machine, where their ports need root: whoever listens there
/// receives what the host sends.
pub fn registrations() -> Vec<Registration> {
    let registrations = catalog::ALL.into_iter().map(registration);
    registrations
        .collect::<Result<_, _>>()
        .expect("the names of the catalogue are valid")
}

fn registration(service: &Integration) -> Result<Registration, InvalidName> {
    let none = || Some(Vec::new());
    let children = || Some(vec!["*".to_owned()]);
    let (listen, connect) = match service.side {
        ServiceSide::Guest => (children(), none()),
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
    fn every_service_of_the_catalogue_is_built_in() {
        let registrations = registrations();
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
