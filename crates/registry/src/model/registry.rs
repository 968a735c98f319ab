//! The registrations of one partition, found by id, by name and by port.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use hvsock_address::{ElementName, ServiceId, ServiceRef};

use super::{Defaults, Registration};

/// The registrations of one partition. Ids are unique, and so are names whatever their case.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    defaults: Defaults,
    by_id: HashMap<ServiceId, Registration>,
    /// By [`ElementName::folded`]; also what gives [`iter`](Self::iter) its order.
    by_name: BTreeMap<String, ServiceId>,
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
    /// The GUID, of a service that stands for a vsock port.
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
        self.by_id.insert(new.id, new);
        Ok(old)
    }

    /// Takes an entry out.
    pub fn remove(&mut self, id: ServiceId) -> Option<Registration> {
        let old = self.by_id.remove(&id)?;
        self.by_name.remove(&old.name.folded());
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

    /// The entry for this vsock port.
    pub fn by_port(&self, port: u32) -> Option<&Registration> {
        self.get(ServiceId::from_port(port))
    }

    /// The entry that a person means.
    pub fn resolve(&self, service: &ServiceRef) -> Result<&Registration, UnknownService> {
        match service {
            ServiceRef::Id(id) => self.get(*id),
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
        for shipped in Registration::in_box() {
            if shipped.id == new.id {
                return Err(Clash::of_ids(shipped, new.clone()));
            }
            if shipped.name.folded() == folded {
                return Err(Clash::of_names(shipped, new.clone()));
            }
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
        let (existing, new) = (Box::new(existing), Box::new(new));
        match new.port() {
            Some(port) => Clash::Port {
                port,
                existing,
                new,
            },
            None => Clash::Id { existing, new },
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
        match self {
            Clash::Id { existing, new } => write!(
                f,
                "{} has the GUID {} that {} asks for; choose another GUID, or `hvsock service \
                 unregister {}` first",
                Entry(existing),
                new.id,
                Entry(new),
                existing.id
            ),
            Clash::Port {
                port,
                existing,
                new,
            } => write!(
                f,
                "{} has the port {port} that {} asks for; choose another port, or `hvsock service \
                 unregister {port}` first",
                Entry(existing),
                Entry(new),
            ),
            Clash::Name { existing, new } => write!(
                f,
                "{} has the name that {} asks for; choose another name, or `hvsock service \
                 unregister {}` first",
                Entry(existing),
                Entry(new),
                existing.id
            ),
            Clash::Zero { new } => write!(
                f,
                "{} asks for the zero GUID, which stands for no service; choose another GUID",
                Entry(new)
            ),
        }
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
