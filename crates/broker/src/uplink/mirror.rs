//! What a guest is to know of the host's services, and what it has been told.

use std::collections::{BTreeMap, BTreeSet};

use hvsock_address::ServiceId;
use hvsock_endpoint::uplink::{HostFrame, MAX_SERVICES, Service};

/// The services of a host as a guest may know them. It holds the differences to what the guest has been told in
/// place of a queue of changes, so that it is bounded however fast the services change.
#[derive(Clone, Debug, Default)]
pub(crate) struct Mirror {
    wanted: BTreeMap<ServiceId, Service>,
    told: BTreeMap<ServiceId, Service>,
    /// The services that are wanted no longer, and of which the guest has been told.
    gone: BTreeSet<ServiceId>,
    /// The wanted services of which the guest has not been told, or has been told something else.
    changed: BTreeSet<ServiceId>,
}

impl Mirror {
    /// Sets what the guest is to know of one service. Beyond [`MAX_SERVICES`] it is told of no further one.
    /// Returns whether there was room.
    pub(crate) fn set(&mut self, id: ServiceId, settings: Option<Service>) -> bool {
        let has_room = self.wanted.len() < MAX_SERVICES || self.wanted.contains_key(&id);
        self.gone.remove(&id);
        self.changed.remove(&id);
        let is_wanted = match settings {
            Some(service) if has_room => {
                if self.told.get(&id) != Some(&service) {
                    self.changed.insert(id);
                }
                self.wanted.insert(id, service);
                return true;
            }
            Some(_) => true,
            None => false,
        };
        self.wanted.remove(&id);
        if self.told.contains_key(&id) {
            self.gone.insert(id);
        }
        !is_wanted
    }

    /// What the guest has been told.
    pub(crate) fn told(&self) -> impl Iterator<Item = &Service> {
        self.told.values()
    }

    /// The guest knows these services, and is to know them until it is [set](Self::set) otherwise. `None` if there
    /// are more than it may know.
    pub(crate) fn resume(told: impl IntoIterator<Item = Service>) -> Option<Self> {
        let told = told.into_iter().map(|service| (service.service, service));
        let told: BTreeMap<_, _> = told.take(MAX_SERVICES + 1).collect();
        (told.len() <= MAX_SERVICES).then(|| Self {
            wanted: told.clone(),
            told,
            ..Self::default()
        })
    }

    /// The services that the guest is to know.
    pub(crate) fn ids(&self) -> impl Iterator<Item = ServiceId> {
        self.wanted.keys().copied()
    }

    /// What to tell the guest next. It never knows of more than [`MAX_SERVICES`].
    pub(crate) fn next_frame(&mut self) -> Option<HostFrame> {
        if let Some(service) = self.gone.pop_first() {
            self.told.remove(&service);
            return Some(HostFrame::ServiceGone { service });
        }
        let id = self.changed.pop_first()?;
        let service = self.wanted.get(&id)?.clone();
        self.told.insert(id, service.clone());
        Some(HostFrame::Service(service))
    }
}

#[cfg(test)]
mod tests {
    use hvsock_endpoint::uplink::ServiceFlags;
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn service(id: u32, name: &str) -> Service {
        Service {
            service: ServiceId::from_port(id),
            flags: ServiceFlags::default(),
            name: name.to_owned(),
        }
    }

    /// What a guest knows that reads all frames.
    #[derive(Default)]
    struct Guest(BTreeMap<ServiceId, Service>);

    impl Guest {
        fn reads(&mut self, mirror: &mut Mirror, most: usize) {
            for _ in 0..most {
                match mirror.next_frame() {
                    Some(HostFrame::Service(service)) => {
                        let before = self.0.insert(service.service, service.clone());
                        assert_ne!(before, Some(service), "nothing new");
                    }
                    Some(HostFrame::ServiceGone { service }) => {
                        assert!(self.0.remove(&service).is_some(), "it was not known");
                    }
                    Some(other) => panic!("{other:?}"),
                    None => return,
                }
                assert!(self.0.len() <= MAX_SERVICES);
            }
        }
    }

    #[test]
    fn a_guest_is_never_told_of_more_services_than_it_may_keep() {
        let mut mirror = Mirror::default();
        let mut guest = Guest::default();
        let most = MAX_SERVICES as u32;
        for id in 0..most {
            assert!(mirror.set(ServiceId::from_port(id), Some(service(id, "a"))));
        }
        assert!(!mirror.set(ServiceId::from_port(most), Some(service(most, "a"))));
        guest.reads(&mut mirror, usize::MAX);
        assert_eq!(guest.0.len(), MAX_SERVICES);
        // All others in their place, while the guest does not read.
        for id in 0..most {
            assert!(mirror.set(ServiceId::from_port(id), None));
        }
        for id in most..2 * most {
            assert!(mirror.set(ServiceId::from_port(id), Some(service(id, "b"))));
        }
        guest.reads(&mut mirror, usize::MAX);
        assert!(guest.0.values().eq(mirror.wanted.values()));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_guest_knows_the_services_once_it_has_read_all(
            changes in vec((0..6_u32, proptest::option::of("[ab]"), 0..3_usize), 0..80)
        ) {
            let (mut mirror, mut guest) = (Mirror::default(), Guest::default());
            let mut now = BTreeMap::new();
            for (id, name, reads) in changes {
                let settings = name.map(|name| service(id, &name));
                let id = ServiceId::from_port(id);
                mirror.set(id, settings.clone());
                match settings {
                    Some(settings) => now.insert(id, settings),
                    None => now.remove(&id),
                };
                prop_assert!(mirror.ids().eq(now.keys().copied()));
                guest.reads(&mut mirror, reads);
                // As much as differs, and no more.
                prop_assert!(mirror.gone.len() + mirror.changed.len() <= 12);
            }
            guest.reads(&mut mirror, usize::MAX);
            prop_assert_eq!(&guest.0, &now);
        }
    }
}
