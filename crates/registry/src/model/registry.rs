//! The registrations of one partition, found by id, by name and by port.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use hvsock_address::{ElementName, ServiceId, ServiceRef};

use super::registration::IN_BOX;
use super::{Defaults, Registration};

/// The registrations of one partition. Ids are unique, and so are names whatever their case and
/// the ports by which guests reach services, be they the template's or aliases.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Registry {
    defaults: Defaults,
    by_id: HashMap<ServiceId, Registration>,
    /// By [`ElementName::folded`]; also what gives [`iter`](Self::iter) its order.
    by_name: BTreeMap<String, ServiceId>,
    /// By [`ServiceId::port_for_guests`].
    by_port: HashMap<u32, ServiceId>,
}

/// Why a registration cannot be taken in: something that must be unique is not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Clash {
    /// The GUID, of a service off the vsock template.
    Id {
        /// The entry that is there.
        existing: Box<Registration>,
        /// The entry that was to be added.
        new: Box<Registration>,
    },
    /// The vsock port: that of a GUID on the template, or the alias of another.
    Port {
        /// The port.
        port: u32,
        /// The entry that is there.
        existing: Box<Registration>,
        /// The entry that was to be added.
        new: Box<Registration>,
    },
    /// The friendly name, whatever its case.
    Name {
        /// The entry that is there.
        existing: Box<Registration>,
        /// The entry that was to be added.
        new: Box<Registration>,
    },
    /// The zero GUID, which stands for no service.
    Zero {
        /// The entry that was to be added.
        new: Box<Registration>,
    },
}

/// No registration is meant by this GUID, port or name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "no service {service} is registered here; `hvsock service list` shows those that are, \
     `hvsock service register` adds one"
)]
pub struct UnknownService {
    /// What was looked for.
    pub service: ServiceRef,
}

impl Registry {
    /// An empty registry with the built-in defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// What holds where a registration says nothing.
    pub fn defaults(&self) -> &Defaults {
        &self.defaults
    }

    /// Sets what holds where a registration says nothing.
    pub fn set_defaults(&mut self, defaults: Defaults) {
        self.defaults = defaults;
    }

    /// Whether [`insert`](Self::insert) would add an entry, and if not, why.
    pub fn check(&self, new: &Registration) -> Result<(), Clash> {
        match self.by_id.get(&new.id) {
            Some(existing) => Err(Clash::of_ids(existing.clone(), new.clone())),
            None => self.check_free(new, &new.name.folded()),
        }
    }

    /// Adds an entry, unless its id or its name is taken.
    pub fn insert(&mut self, new: Registration) -> Result<(), Clash> {
        if let Some(existing) = self.by_id.get(&new.id) {
            return Err(Clash::of_ids(existing.clone(), new));
        }
        self.replace(new).map(drop)
    }

    /// Puts an entry in place of the one with its id, and returns that one; or adds it.
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
        self.by_id.insert(new.id, new);
        Ok(old)
    }

    /// Takes an entry out.
    pub fn remove(&mut self, id: ServiceId) -> Option<Registration> {
        let old = self.by_id.remove(&id)?;
        self.by_name.remove(&old.name.folded());
        if let Some(port) = old.port_for_guests() {
            self.by_port.remove(&port);
        }
        Some(old)
    }

    /// The entry with this id.
    pub fn get(&self, id: ServiceId) -> Option<&Registration> {
        self.by_id.get(&id)
    }

    /// The entry with this friendly name, whatever its case.
    pub fn by_name(&self, name: &ElementName) -> Option<&Registration> {
        self.by_id.get(self.by_name.get(&name.folded())?)
    }

    /// The entry that guests reach by this vsock port: the template's, or an id's alias.
    pub fn by_port(&self, port: u32) -> Option<&Registration> {
        self.get(*self.by_port.get(&port)?)
    }

    /// The entry that a person means, be it by its name, its id or a port, which may be an alias.
    pub fn resolve(&self, service: &ServiceRef) -> Result<&Registration, UnknownService> {
        match service {
            ServiceRef::Id(id) => self.get(*id).or_else(|| self.by_port(id.port()?)),
            ServiceRef::Name(name) => self.by_name(name),
        }
        .ok_or_else(|| UnknownService {
            service: service.clone(),
        })
    }

    /// All entries, in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = &Registration> {
        self.by_name.values().filter_map(|id| self.by_id.get(id))
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// Whether `new` may be added or stand in place of the entry with its id.
    fn check_free(&self, new: &Registration, folded: &str) -> Result<(), Clash> {
        if new.id == ServiceId::ZERO {
            return Err(Clash::Zero {
                new: Box::new(new.clone()),
            });
        }
        for shipped in IN_BOX.iter() {
            if shipped.id == new.id {
                return Err(Clash::of_ids(shipped.clone(), new.clone()));
            }
            if shipped.port_for_guests() == new.port_for_guests() {
                return Err(Clash::of_ports(shipped.clone(), new.clone()));
            }
            // Names without letters outside of ASCII fold as ASCII does.
            if shipped.name.as_str().eq_ignore_ascii_case(folded) {
                return Err(Clash::of_names(shipped.clone(), new.clone()));
            }
        }
        let at_port = new.port_for_guests().and_then(|port| self.by_port(port));
        if let Some(existing) = at_port.filter(|existing| existing.id != new.id) {
            return Err(Clash::of_ports(existing.clone(), new.clone()));
        }
        match self.by_name.get(folded).and_then(|id| self.by_id.get(id)) {
            Some(existing) if existing.id != new.id => {
                Err(Clash::of_names(existing.clone(), new.clone()))
            }
            _ => Ok(()),
        }
    }
}

impl Clash {
    fn of_ids(existing: Registration, new: Registration) -> Self {
        match new.port() {
            Some(_) => Clash::of_ports(existing, new),
            None => Clash::Id {
                existing: Box::new(existing),
                new: Box::new(new),
            },
        }
    }

    /// Of two with one port for guests.
    fn of_ports(existing: Registration, new: Registration) -> Self {
        Clash::Port {
            port: new.port_for_guests().unwrap_or_default(),
            existing: Box::new(existing),
            new: Box::new(new),
        }
    }

    fn of_names(existing: Registration, new: Registration) -> Self {
        Clash::Name {
            existing: Box::new(existing),
            new: Box::new(new),
        }
    }
}

impl std::error::Error for Clash {}

impl fmt::Display for Clash {
    /// Says what clashes, who has it, who wants it, and what to do: one sentence.
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
                    "{} asks for the zero GUID, which stands for no service; choose another",
                    Entry(new)
                );
            }
        };
        write!(
            f,
            "{} has the {what} that {} asks for; choose another",
            Entry(existing),
            Entry(new)
        )?;
        if existing.is_in_box() {
            return Ok(());
        }
        let service = ServiceRef::Id(existing.id);
        write!(f, ", or `hvsock service unregister {service}` first")
    }
}

/// A registration with those who stand behind it: `"Backup" (owner alice, creator backupd)`.
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
    fn a_clash_names_both_owners_and_creators_and_the_next_step() {
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
            "\"Backup\" (owner alice, creator backupd) has the GUID \
             0b2f1f0e-0000-4000-8000-000000000001 that \"Restore\" (owner bob, creator restored) \
             asks for; choose another, or `hvsock service unregister \
             0b2f1f0e-0000-4000-8000-000000000001` first"
        );
        assert_eq!(
            clash(entry(port, "Restore", "bob", "restored")),
            "\"Echo\" (owner carol, creator echod) has the port 2761 that \"Restore\" (owner bob, \
             creator restored) asks for; choose another, or `hvsock service unregister 2761` first"
        );
        assert_eq!(
            clash(entry(ServiceId::from_port(1), "BACKUP", "bob", "restored")),
            "\"Backup\" (owner alice, creator backupd) has the name that \"BACKUP\" (owner bob, \
             creator restored) asks for; choose another, or `hvsock service unregister \
             0b2f1f0e-0000-4000-8000-000000000001` first"
        );
        let nobody = Registration::new(ServiceId::ZERO, ElementName::new("x").unwrap());
        assert_eq!(
            clash(nobody),
            "\"x\" (owner unknown, creator unknown) asks for the zero GUID, which stands for no \
             service; choose another"
        );
    }

    /// Two GUIDs whose aliases are one port.
    const ONE_ALIAS: [&str; 2] = [
        "5ca1ab1e-0000-4000-8000-000000003367",
        "5ca1ab1e-0000-4000-8000-00000000385b",
    ];

    #[test]
    fn an_alias_is_a_port_like_others() {
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
                    "\"Backup\" (owner alice, creator backupd) has the {words} that \"Restore\" \
                     (owner bob, creator restored) asks for; choose another, or `hvsock service \
                     unregister 5ca1ab1e-0000-4000-8000-000000003367` first"
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
    fn nobody_takes_what_windows_ships() {
        let mut registry = Registry::new();
        let [first, _] = Registration::in_box();
        let alias = ServiceId::from_port(first.port_for_guests().unwrap());
        let clash = registry.insert(entry(alias, "Mine", "alice", "me"));
        assert!(matches!(clash, Err(Clash::Port { .. })));
        let mine = entry(first.id, "Mine", "alice", "me");
        let clash = registry.insert(mine).unwrap_err().to_string();
        assert!(
            clash.starts_with("\"VM Session Service\" (owner Microsoft"),
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
    fn a_person_finds_a_service_by_name_id_or_port() {
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

    /// Few ids, so that they clash: some on the template, two with one alias, and that alias.
    fn few(n: usize) -> ServiceId {
        let [one, other] = ONE_ALIAS.map(|text| text.parse::<ServiceId>().unwrap());
        let alias = ServiceId::from_port(one.vsock_alias().unwrap());
        let port = ServiceId::from_port;
        [port(0), port(1), one, other, alias][n]
    }

    /// What may be done to a registry, with few ids and names so that they clash.
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
        /// Against a plain list, which is searched from end to end for everything.
        #[test]
        fn a_registry_is_a_list_without_clashes(ops in vec(op(), 0..40)) {
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
