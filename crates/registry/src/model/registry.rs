//! The registrations of one partition, indexed by id, by name and by port.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;

use hvsock_address::{ElementName, ServiceId, ServiceRef};

use super::registration::reserved;
use super::{Defaults, Registration};

/// The registrations of one partition. Ids are unique; so are names (ignoring case) and the ports by
/// which guests reach services, whether from the vsock template or an alias.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Registry {
    defaults: Defaults,
    by_id: HashMap<ServiceId, Arc<Registration>>,
    /// By [`ElementName::folded`]; defines the order of [`iter`](Self::iter).
    by_name: BTreeMap<String, ServiceId>,
    /// By [`ServiceId::port_for_guests`].
    by_port: HashMap<u32, ServiceId>,
    /// The built-in registrations, whether or not another one replaces them.
    built_in: BTreeMap<ServiceId, Arc<Registration>>,
}

/// Why a registration cannot be added: a key that must be unique is taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Clash {
    /// The GUID is taken, and it is not on the vsock template.
    Id {
        /// The registration that has the GUID.
        existing: Box<Registration>,
        /// The registration that was not added.
        new: Box<Registration>,
    },
    /// The vsock port is taken, by a GUID on the template or by an alias.
    Port {
        /// The port.
        port: u32,
        /// The registration that has the port.
        existing: Box<Registration>,
        /// The registration that was not added.
        new: Box<Registration>,
    },
    /// The friendly name is taken, ignoring case.
    Name {
        /// The registration that has the name.
        existing: Box<Registration>,
        /// The registration that was not added.
        new: Box<Registration>,
    },
    /// The registration has the zero GUID, which is not a service.
    Zero {
        /// The registration that was not added.
        new: Box<Registration>,
    },
}

/// No registration has this GUID, port or name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no service {service} is registered here")]
pub struct UnknownService {
    /// The GUID, port or name of the lookup.
    pub service: ServiceRef,
}

impl Registry {
    /// An empty registry with the built-in defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// The settings for what a registration leaves out.
    pub fn defaults(&self) -> &Defaults {
        &self.defaults
    }

    /// Sets the settings for what a registration leaves out.
    pub fn set_defaults(&mut self, defaults: Defaults) {
        self.defaults = defaults;
    }

    /// The built-in registration of a service: what a registration of the same service leaves out is
    /// inherited from it, and not from the [`Defaults`].
    pub fn built_in(&self, id: ServiceId) -> Option<&Registration> {
        self.built_in.get(&id).map(Arc::as_ref)
    }

    /// The built-in registrations.
    pub fn all_built_in(&self) -> impl Iterator<Item = &Registration> {
        self.built_in.values().map(Arc::as_ref)
    }

    /// Sets the built-in registrations. They are not in force by that: they are what registrations of
    /// the same services inherit, however these are made (a file, a lease, a request). So no
    /// registration opens a service by what it does not say.
    pub fn set_built_in(&mut self, built_in: impl IntoIterator<Item = Registration>) {
        let built_in = built_in.into_iter();
        self.built_in = built_in.map(|one| (one.id, Arc::new(one))).collect();
    }

    /// A registration with what it inherits from its built-in one.
    pub fn resolved(&self, registration: &Registration) -> Registration {
        match self.built_in(registration.id) {
            Some(built_in) => registration.clone().over(built_in),
            None => registration.clone(),
        }
    }

    /// Checks whether [`insert`](Self::insert) would add a registration. Changes nothing.
    ///
    /// # Errors
    /// The [`Clash`] that `insert` would return.
    pub fn check(&self, new: &Registration) -> Result<(), Clash> {
        match self.by_id.get(&new.id) {
            Some(existing) => Err(Clash::same_id((**existing).clone(), new.clone())),
            None => self.check_free(new, &new.name.folded()),
        }
    }

    /// Adds a registration.
    ///
    /// # Errors
    /// [`Clash`] if its id, name or port is taken or reserved, or its id is zero.
    pub fn insert(&mut self, new: Registration) -> Result<(), Clash> {
        if let Some(existing) = self.by_id.get(&new.id) {
            return Err(Clash::same_id((**existing).clone(), new));
        }
        self.replace(new).map(drop)
    }

    /// Replaces the registration with the same id and returns the old one, or adds a new one.
    ///
    /// # Errors
    /// [`Clash`] if another registration has its name or port, or its id is zero or reserved. The
    /// registry is then unchanged.
    pub fn replace(&mut self, new: Registration) -> Result<Option<Registration>, Clash> {
        let folded = new.name.folded();
        self.check_free(&new, &folded)?;
        let old = self.by_id.remove(&new.id);
        if let Some(old) = &old {
            self.by_name.remove(&old.name.folded());
        }
        self.by_name.insert(folded, new.id);
        let port = new.port_for_guests();
        self.by_port.extend(port.map(|port| (port, new.id)));
        self.by_id.insert(new.id, Arc::new(new));
        Ok(old.map(Arc::unwrap_or_clone))
    }

    /// Removes and returns a registration.
    pub fn remove(&mut self, id: ServiceId) -> Option<Registration> {
        let old = self.by_id.remove(&id)?;
        self.by_name.remove(&old.name.folded());
        if let Some(port) = old.port_for_guests() {
            self.by_port.remove(&port);
        }
        Some(Arc::unwrap_or_clone(old))
    }

    /// The registration with this id.
    pub fn get(&self, id: ServiceId) -> Option<&Registration> {
        self.by_id.get(&id).map(Arc::as_ref)
    }

    /// The registration with this friendly name, ignoring case.
    pub fn by_name(&self, name: &ElementName) -> Option<&Registration> {
        self.get(*self.by_name.get(&name.folded())?)
    }

    /// The registration that guests reach by this vsock port, from the template or an alias.
    pub fn by_port(&self, port: u32) -> Option<&Registration> {
        self.get(*self.by_port.get(&port)?)
    }

    /// The registration that a user names by friendly name, id or port; the port may be an alias.
    ///
    /// # Errors
    /// [`UnknownService`] if no registration matches.
    pub fn resolve(&self, service: &ServiceRef) -> Result<&Registration, UnknownService> {
        match service {
            ServiceRef::Id(id) => self.get(*id).or_else(|| self.by_port(id.port()?)),
            ServiceRef::Name(name) => self.by_name(name),
        }
        .ok_or_else(|| UnknownService {
            service: service.clone(),
        })
    }

    /// All registrations, ordered by name.
    pub fn iter(&self) -> impl Iterator<Item = &Registration> {
        self.shared().map(Arc::as_ref)
    }

    /// All registrations, ordered by name, as values that can be kept without a copy.
    pub fn shared(&self) -> impl Iterator<Item = &Arc<Registration>> {
        self.by_name.values().filter_map(|id| self.by_id.get(id))
    }

    /// The number of registrations.
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Whether the registry has no registrations.
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// Whether `new` may be added or replace the registration with its id.
    fn check_free(&self, new: &Registration, folded: &str) -> Result<(), Clash> {
        if new.id == ServiceId::ZERO {
            return Err(Clash::Zero {
                new: Box::new(new.clone()),
            });
        }
        for shipped in reserved() {
            if shipped.id == new.id {
                return Err(Clash::same_id(shipped.clone(), new.clone()));
            }
            if shipped.port_for_guests() == new.port_for_guests() {
                return Err(Clash::same_port(shipped.clone(), new.clone()));
            }
            // The reserved names are ASCII, so ASCII case folding is enough.
            if shipped.name.as_str().eq_ignore_ascii_case(folded) {
                return Err(Clash::same_name(shipped.clone(), new.clone()));
            }
        }
        // Nor may another service take a built-in one's place while that is not registered, for
        // instance because its file is faulty.
        for base in self.built_in.values().filter(|base| base.id != new.id) {
            if base.port_for_guests() == new.port_for_guests() {
                return Err(Clash::same_port((**base).clone(), new.clone()));
            }
            if base.name.folded() == folded {
                return Err(Clash::same_name((**base).clone(), new.clone()));
            }
        }
        let at_port = new.port_for_guests().and_then(|port| self.by_port(port));
        if let Some(existing) = at_port.filter(|existing| existing.id != new.id) {
            return Err(Clash::same_port(existing.clone(), new.clone()));
        }
        match self.by_name.get(folded).and_then(|id| self.get(*id)) {
            Some(existing) if existing.id != new.id => {
                Err(Clash::same_name(existing.clone(), new.clone()))
            }
            _ => Ok(()),
        }
    }
}

impl Clash {
    fn same_id(existing: Registration, new: Registration) -> Self {
        match new.port() {
            Some(_) => Clash::same_port(existing, new),
            None => Clash::Id {
                existing: Box::new(existing),
                new: Box::new(new),
            },
        }
    }

    fn same_port(existing: Registration, new: Registration) -> Self {
        Clash::Port {
            port: new.port_for_guests().unwrap_or_default(),
            existing: Box::new(existing),
            new: Box::new(new),
        }
    }

    fn same_name(existing: Registration, new: Registration) -> Self {
        Clash::Name {
            existing: Box::new(existing),
            new: Box::new(new),
        }
    }
}

impl Clash {
    /// The registration to remove, so that the new one can be added. `None` if it cannot be removed.
    pub fn removable(&self) -> Option<ServiceId> {
        match self {
            Clash::Id { existing, .. }
            | Clash::Port { existing, .. }
            | Clash::Name { existing, .. } => Some(existing.id).filter(|_| !existing.is_reserved()),
            Clash::Zero { .. } => None,
        }
    }
}

impl std::error::Error for Clash {}

impl fmt::Display for Clash {
    /// One sentence: the taken key, who has it, who wants it, and what to do.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (existing, new, what) = match self {
            Clash::Id { existing, new } => (existing, new, format!("GUID {}", new.id)),
            Clash::Port {
                port,
                existing,
                new,
            } => {
                let off = [existing, new].into_iter().find(|one| one.port().is_none());
                let alias = off.map(|one| format!(" (the alias of {})", one.id));
                let what = format!("port {port}{}", alias.unwrap_or_default());
                (existing, new, what)
            }
            Clash::Name { existing, new } => (existing, new, "name".to_owned()),
            Clash::Zero { new } => {
                return write!(
                    f,
                    "{} has the zero GUID, which is not a service; choose another",
                    Entry(new)
                );
            }
        };
        write!(
            f,
            "{} cannot be registered: {} already has the {what}; choose another",
            Entry(new),
            Entry(existing)
        )?;
        if existing.is_reserved() {
            return Ok(());
        }
        let service = ServiceRef::Id(existing.id);
        write!(f, ", or unregister {service} first")
    }
}

/// Displays a registration with its owner and creator: `"Backup" (owner alice, creator backupd)`.
struct Entry<'a>(&'a Registration);

impl fmt::Display for Entry<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Registration {
            name,
            owner,
            creator,
            ..
        } = self.0;
        let or_unknown = |who: &Option<String>| who.clone().unwrap_or_else(|| "unknown".to_owned());
        let (owner, creator) = (or_unknown(owner), or_unknown(creator));
        write!(f, "\"{name}\" (owner {owner}, creator {creator})")
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn entry(id: ServiceId, name: &str, owner: &str, creator: &str) -> Registration {
        Registration {
            owner: Some(owner.to_owned()),
            creator: Some(creator.to_owned()),
            ..Registration::new(id, ElementName::new(name).unwrap())
        }
    }

    #[test]
    fn a_clash_shows_both_owners_and_creators_and_the_next_step() {
        let id: ServiceId = "0b2f1f0e-0000-4000-8000-000000000001".parse().unwrap();
        let mut registry = Registry::new();
        registry
            .insert(entry(id, "Backup", "alice", "backupd"))
            .unwrap();
        let port = ServiceId::from_port(2761);
        registry
            .insert(entry(port, "Echo", "carol", "echod"))
            .unwrap();

        let clash = |new| registry.clone().insert(new).unwrap_err().to_string();
        assert_eq!(
            clash(entry(id, "Restore", "bob", "restored")),
            "\"Restore\" (owner bob, creator restored) cannot be registered: \"Backup\" (owner \
             alice, creator backupd) already has the GUID 0b2f1f0e-0000-4000-8000-000000000001; \
             choose another, or unregister 0b2f1f0e-0000-4000-8000-000000000001 first"
        );
        assert_eq!(
            clash(entry(port, "Restore", "bob", "restored")),
            "\"Restore\" (owner bob, creator restored) cannot be registered: \"Echo\" (owner \
             carol, creator echod) already has the port 2761; choose another, or unregister 2761 \
             first"
        );
        assert_eq!(
            clash(entry(ServiceId::from_port(1), "BACKUP", "bob", "restored")),
            "\"BACKUP\" (owner bob, creator restored) cannot be registered: \"Backup\" (owner \
             alice, creator backupd) already has the name; choose another, or unregister \
             0b2f1f0e-0000-4000-8000-000000000001 first"
        );
        let zero = Registration::new(ServiceId::ZERO, ElementName::new("x").unwrap());
        assert_eq!(
            clash(zero),
            "\"x\" (owner unknown, creator unknown) has the zero GUID, which is not a service; \
             choose another"
        );
    }

    /// Two GUIDs that have the same alias port.
    const ONE_ALIAS: [&str; 2] = [
        "5ca1ab1e-0000-4000-8000-000000003367",
        "5ca1ab1e-0000-4000-8000-00000000385b",
    ];

    #[test]
    fn an_alias_occupies_its_port() {
        let mut registry = Registry::new();
        let [id, other] = ONE_ALIAS.map(|text| text.parse::<ServiceId>().unwrap());
        let port = id.vsock_alias().unwrap();
        registry
            .insert(entry(id, "Backup", "alice", "backupd"))
            .unwrap();
        assert_eq!(registry.by_port(port).map(|found| found.id), Some(id));
        for (id, words) in [
            (other, format!("port {port} (the alias of {id})")),
            (
                ServiceId::from_port(port),
                format!("port {port} (the alias of {id})"),
            ),
        ] {
            let new = entry(id, "Restore", "bob", "restored");
            let clash = registry.check(&new).unwrap_err();
            assert!(matches!(clash, Clash::Port { port: its, .. } if its == port));
            assert_eq!(
                clash.to_string(),
                format!(
                    "\"Restore\" (owner bob, creator restored) cannot be registered: \"Backup\" \
                     (owner alice, creator backupd) already has the {words}; choose another, or \
                     unregister 5ca1ab1e-0000-4000-8000-000000003367 first"
                )
            );
            assert_eq!(registry.replace(new), Err(clash));
        }
        registry.remove(id).unwrap();
        assert_eq!(registry.by_port(port), None);
        registry
            .insert(entry(other, "Restore", "bob", "restored"))
            .unwrap();
        assert_eq!(registry.by_port(port).map(|found| found.id), Some(other));
    }

    #[test]
    fn another_service_gets_neither_the_name_nor_the_port_of_a_built_in_one_that_is_not_registered()
    {
        let named = |id, text| Registration::new(id, ElementName::new(text).unwrap());
        let session = named(ServiceId::from_port(911), "hvsock session");
        let mut registry = Registry::new();
        registry.set_built_in([session.clone()]);
        let other = ServiceId::from_port(912);
        for text in ["hvsock session", "HVSOCK Session"] {
            let error = registry.insert(named(other, text)).unwrap_err();
            assert!(matches!(error, Clash::Name { .. }), "{error}");
        }
        registry.insert(named(other, "another")).unwrap();
        let renamed = registry.replace(named(other, "hvsock session"));
        assert!(renamed.is_err(), "{renamed:?}");
        // Its own file may give it another name, which does not free the first one.
        registry.insert(named(session.id, "shell")).unwrap();
        let error = registry.replace(named(other, "hvsock session"));
        assert!(error.is_err(), "{error:?}");
        registry.remove(session.id);
        registry.insert(session).unwrap();
    }

    #[test]
    fn the_ids_names_and_ports_of_in_box_services_are_reserved() {
        let mut registry = Registry::new();
        let [first, _] = Registration::in_box();
        let alias = ServiceId::from_port(first.port_for_guests().unwrap());
        let clash = registry.insert(entry(alias, "Mine", "alice", "me"));
        assert!(matches!(clash, Err(Clash::Port { .. })));
        let mine = entry(first.id, "Mine", "alice", "me");
        let clash = registry.insert(mine).unwrap_err().to_string();
        assert!(
            clash.contains("\"VM Session Service\" (owner Microsoft"),
            "{clash}"
        );
        assert!(clash.ends_with("choose another"), "{clash}");
        let same_name = entry(
            ServiceId::from_port(1),
            "vm session service-2",
            "alice",
            "me",
        );
        let clash = registry.replace(same_name);
        assert!(matches!(clash, Err(Clash::Name { .. })));
        assert!(registry.is_empty());
    }

    #[test]
    fn the_id_port_and_name_of_the_brokers_own_service_are_reserved() {
        let mut registry = Registry::new();
        let own = Registration::of_broker();
        for mine in [
            entry(own.id, "Mine", "alice", "me"),
            entry(ServiceId::from_port(1), "HVSOCK Broker", "alice", "me"),
        ] {
            let clash = registry.insert(mine).unwrap_err();
            assert_eq!(clash.removable(), None);
            let text = clash.to_string();
            assert!(text.contains("\"hvsock broker\" (owner hvsock"), "{text}");
            assert!(text.ends_with("choose another"), "{text}");
        }
        assert!(registry.is_empty());
    }

    #[test]
    fn a_service_is_resolved_by_name_id_or_port() {
        let mut registry = Registry::new();
        let id = ServiceId::from_port(2761);
        registry
            .insert(entry(id, "HV Socket Demo", "alice", "me"))
            .unwrap();
        for text in [
            "hv socket demo",
            "2761",
            "00000ac9-facb-11e6-bd58-64006a7986d3",
        ] {
            let service: ServiceRef = text.parse().unwrap();
            assert_eq!(registry.resolve(&service).unwrap().id, id, "{text}");
        }
        assert_eq!(registry.by_port(2761).map(|found| found.id), Some(id));
        let unknown = registry.resolve(&"demo".parse().unwrap()).unwrap_err();
        assert!(
            unknown
                .to_string()
                .starts_with("no service demo is registered here")
        );
    }

    /// Few ids, to provoke clashes: two on the template, two with one alias, and that alias.
    fn few(n: usize) -> ServiceId {
        let [one, other] = ONE_ALIAS.map(|text| text.parse::<ServiceId>().unwrap());
        let alias = ServiceId::from_port(one.vsock_alias().unwrap());
        let port = ServiceId::from_port;
        [port(0), port(1), one, other, alias][n]
    }

    /// One operation on a registry, with few ids and names to provoke clashes.
    #[derive(Clone, Debug)]
    enum Op {
        Insert(usize, usize),
        Replace(usize, usize),
        Remove(usize),
    }

    const NAMES: [&str; 5] = ["a", "A", "b", "É", "é"];

    fn op() -> impl Strategy<Value = Op> {
        let id = 0..5usize;
        let name = 0..NAMES.len();
        prop_oneof![
            (id.clone(), name.clone()).prop_map(|(id, name)| Op::Insert(id, name)),
            (id.clone(), name).prop_map(|(id, name)| Op::Replace(id, name)),
            id.prop_map(Op::Remove),
        ]
    }

    proptest! {
        /// Compares the registry with a plain list that is searched linearly.
        #[test]
        fn a_registry_behaves_like_a_list_without_clashes(ops in vec(op(), 0..40)) {
            let mut registry = Registry::new();
            let mut list: Vec<(ServiceId, &str)> = Vec::new();
            for op in ops {
                let (id, name) = match op {
                    Op::Insert(id, name) | Op::Replace(id, name) => (id, NAMES[name]),
                    Op::Remove(id) => (id, ""),
                };
                let id = few(id);
                let at = list.iter().position(|(other, _)| *other == id);
                let same_port = |other: ServiceId| other.port_for_guests() == id.port_for_guests();
                let taken = list.iter().any(|(other, its)| {
                    let same_name = its.to_lowercase() == name.to_lowercase();
                    *other != id && (same_name || same_port(*other))
                });
                match op {
                    Op::Insert(..) => {
                        let new = entry(id, name, "alice", "me");
                        let got = registry.insert(new).is_ok();
                        prop_assert_eq!(got, at.is_none() && !taken);
                        if got {
                            list.push((id, name));
                        }
                    }
                    Op::Replace(..) => {
                        let new = entry(id, name, "alice", "me");
                        let got = registry.replace(new);
                        prop_assert_eq!(got.is_ok(), !taken);
                        if let Ok(old) = got {
                            prop_assert_eq!(old.is_some(), at.is_some());
                            list.retain(|(other, _)| *other != id);
                            list.push((id, name));
                        }
                    }
                    Op::Remove(_) => {
                        prop_assert_eq!(registry.remove(id).is_some(), at.is_some());
                        list.retain(|(other, _)| *other != id);
                    }
                }
                list.sort_by_key(|(_, name)| name.to_lowercase());
                let got: Vec<_> = registry.iter().map(|e| (e.id, e.name.as_str())).collect();
                prop_assert_eq!(&got, &list);
                prop_assert_eq!(registry.len(), list.len());
                for n in 0..5 {
                    let port = few(n).port_for_guests();
                    let want = list.iter().find(|(id, _)| id.port_for_guests() == port);
                    let got = registry.by_port(port.unwrap()).map(|found| found.id);
                    prop_assert_eq!(got, want.map(|(id, _)| *id));
                }
                for name in NAMES {
                    let want = list.iter().find(|(_, n)| n.to_lowercase() == name.to_lowercase());
                    let name = ElementName::new(name).unwrap();
                    let got = registry.by_name(&name).map(|found| found.id);
                    prop_assert_eq!(got, want.map(|(id, _)| *id));
                }
            }
        }
    }
}
