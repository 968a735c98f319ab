//! The keys of Windows, over a plain map that stands in for its registry.

mod changes;
mod crashes;
mod leases;
mod meaning;
mod random;

use std::collections::{BTreeMap, HashMap};
use std::io;

use hvsock_address::{ElementName, ServiceId};

use super::*;
use crate::Registration;

/// A registry of Windows: keys by place and name, whose case does not count.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Fake {
    keys: BTreeMap<(Place, String), RawKey>,
    /// When each process that lives began.
    processes: HashMap<u32, u64>,
    myself: u32,
    /// How many steps are made before the process is killed.
    steps_left: Option<usize>,
    /// After how many steps one is refused.
    refuses: Option<usize>,
    denied: bool,
}

impl Fake {
    fn at(&mut self, place: Place, name: &str) -> &mut RawKey {
        let found = self.keys.get_mut(&(place, name.to_lowercase()));
        found.unwrap_or_else(|| panic!("no key {name}"))
    }

    /// What somebody else makes.
    fn add(&mut self, place: Place, name: &str, values: &[(&str, &str)]) {
        let key = RawKey {
            name: name.to_owned(),
            values: values.iter().map(|(n, v)| RawValue::text(n, v)).collect(),
            ..RawKey::default()
        };
        self.keys.insert((place, name.to_lowercase()), key);
    }

    fn with(mut self, name: &str, values: &[(&str, &str)]) -> Self {
        self.add(Place::Services, name, values);
        self
    }

    /// What Windows would let guests reach: GUIDs with their names.
    fn honoured(&self) -> BTreeMap<String, Option<RawValue>> {
        let live = self.keys.values().zip(self.keys.keys());
        live.filter(|(key, (place, _))| *place == Place::Services && key.name != STAGE)
            .map(|(key, (_, name))| {
                let mut values = key.values.iter();
                (name.clone(), values.find(|v| v.is("ElementName")).cloned())
            })
            .collect()
    }
}

impl Keys for Fake {
    type Turn = ();

    fn turn(&mut self) -> Result<(), KeyError> {
        Ok(())
    }

    fn read(&self) -> Result<Snapshot, KeyError> {
        let of = |wanted: Place| {
            let keys = self.keys.iter();
            let keys = keys.filter(|((place, _), _)| *place == wanted);
            keys.map(|(_, key)| key.clone()).collect()
        };
        Ok(Snapshot {
            services: of(Place::Services),
            disabled: of(Place::Disabled),
            ..Snapshot::default()
        })
    }

    fn apply(&mut self, step: &Step) -> Result<(), KeyError> {
        if self.denied {
            let denied = io::Error::from(io::ErrorKind::PermissionDenied);
            return Err(KeyError::from_system("write to", r"HKLM\x", denied));
        }
        if let Some(left) = &mut self.steps_left {
            *left = left.checked_sub(1).ok_or(KeyError::Busy(0))?;
        }
        if let Some(left) = self.refuses.take() {
            self.refuses = left.checked_sub(1);
            if left == 0 {
                return Err(KeyError::Busy(0));
            }
        }
        match step {
            Step::Create { place, name, .. } => {
                let there = (*place, name.to_lowercase());
                assert!(!self.keys.contains_key(&there), "{name} is there");
                self.add(*place, name, &[]);
            }
            Step::Set { place, name, value } => {
                let values = &mut self.at(*place, name).values;
                values.retain(|old| !old.is(&value.name));
                values.push(value.clone());
            }
            Step::Unset { place, name, value } => {
                let values = &mut self.at(*place, name).values;
                values.retain(|old| !old.is(value));
            }
            Step::Rename { place, from, to } => {
                let key = self.keys.remove(&(*place, from.to_lowercase()));
                let mut key = key.expect("a key to rename");
                key.name = to.clone();
                let old = self.keys.insert((*place, to.to_lowercase()), key);
                assert_eq!(old, None, "{to} is there");
            }
            Step::Delete { place, name } => {
                self.keys.remove(&(*place, name.to_lowercase()));
            }
        }
        Ok(())
    }

    fn life(&self, process: u32) -> Life {
        let started = self.processes.get(&process);
        started.map_or(Life::Gone, |started| Life::Since(*started))
    }

    fn myself(&self) -> Result<Holder, KeyError> {
        let process = self.myself;
        let started = self.processes.get(&process).copied().unwrap_or_default();
        Ok(Holder { process, started })
    }
}

fn id(n: u8) -> ServiceId {
    format!("0b2f1f0e-0000-4000-8000-0000000000{n:02x}")
        .parse()
        .unwrap()
}

fn key_of(id: ServiceId) -> String {
    id.to_string().to_uppercase()
}

fn registration(n: u8, name: &str) -> Registration {
    Registration::new(id(n), ElementName::new(name).unwrap())
}

/// The listed services as `name` or `name (off)`, in order.
fn names(fake: &Fake) -> Vec<String> {
    let listing = Store::new(fake.clone()).read().unwrap();
    let named = listing.registry.iter().map(|one| match one.enabled {
        true => one.name.to_string(),
        false => format!("{} (off)", one.name),
    });
    named.collect()
}

fn problems(fake: &Fake) -> Vec<String> {
    Store::new(fake.clone()).read().unwrap().problems
}

/// A change, made to a copy.
fn after<R>(fake: &Fake, change: impl FnOnce(&mut Store<Fake>) -> R) -> (Fake, R) {
    let mut store = Store::new(fake.clone());
    let result = change(&mut store);
    (store.keys, result)
}
