//! Tests of the key store over a fake registry, which is a map.

mod changes;
mod crashes;
mod leases;
mod listing;
mod random;

use std::collections::{BTreeMap, HashMap};
use std::io;

use hvsock_address::{ElementName, ServiceId};

use super::*;
use crate::Registration;

/// A fake Windows registry: keys by location and lower-case name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Fake {
    keys: BTreeMap<(KeyLocation, String), RawKey>,
    /// The start times of running processes.
    processes: HashMap<u32, u64>,
    current_pid: u32,
    /// The number of steps before a crash: every later step fails.
    steps_left: Option<usize>,
    /// The number of steps before a single failing step.
    fail_at: Option<usize>,
    denied: bool,
}

impl Fake {
    fn at(&mut self, location: KeyLocation, name: &str) -> &mut RawKey {
        let found = self.keys.get_mut(&(location, name.to_lowercase()));
        found.unwrap_or_else(|| panic!("no key {name}"))
    }

    /// Adds a key as another program would.
    fn add(&mut self, location: KeyLocation, name: &str, values: &[(&str, &str)]) {
        let key = RawKey {
            name: name.to_owned(),
            values: values.iter().map(|(n, v)| RawValue::text(n, v)).collect(),
            ..RawKey::default()
        };
        self.keys.insert((location, name.to_lowercase()), key);
    }

    fn with(mut self, name: &str, values: &[(&str, &str)]) -> Self {
        self.add(KeyLocation::Services, name, values);
        self
    }

    /// The services that Windows would let guests reach: GUIDs with their names.
    fn honoured(&self) -> BTreeMap<String, Option<RawValue>> {
        let live = self.keys.values().zip(self.keys.keys());
        live.filter(|(key, (location, _))| *location == KeyLocation::Services && key.name != STAGE)
            .map(|(key, (_, name))| {
                let mut values = key.values.iter();
                (name.clone(), values.find(|v| v.is("ElementName")).cloned())
            })
            .collect()
    }
}

impl KeyBackend for Fake {
    type Guard = ();

    fn lock(&mut self) -> Result<(), KeyError> {
        Ok(())
    }

    fn read(&self) -> Result<Snapshot, KeyError> {
        let of = |wanted: KeyLocation| {
            let keys = self.keys.iter();
            let keys = keys.filter(|((location, _), _)| *location == wanted);
            keys.map(|(_, key)| key.clone()).collect()
        };
        Ok(Snapshot {
            services: of(KeyLocation::Services),
            disabled: of(KeyLocation::Disabled),
            ..Snapshot::default()
        })
    }

    fn apply(&mut self, step: &KeyStep) -> Result<(), KeyError> {
        if self.denied {
            let denied = io::Error::from(io::ErrorKind::PermissionDenied);
            return Err(KeyError::from_system("write to", r"HKLM\x", denied));
        }
        if let Some(left) = &mut self.steps_left {
            *left = left.checked_sub(1).ok_or(KeyError::Busy(0))?;
        }
        if let Some(left) = self.fail_at.take() {
            self.fail_at = left.checked_sub(1);
            if left == 0 {
                return Err(KeyError::Busy(0));
            }
        }
        match step {
            KeyStep::Create { location, name, .. } => {
                let there = (*location, name.to_lowercase());
                assert!(!self.keys.contains_key(&there), "{name} exists");
                self.add(*location, name, &[]);
            }
            KeyStep::Set {
                location,
                name,
                value,
            } => {
                let values = &mut self.at(*location, name).values;
                values.retain(|old| !old.is(&value.name));
                values.push(value.clone());
            }
            KeyStep::Unset {
                location,
                name,
                value,
            } => {
                let values = &mut self.at(*location, name).values;
                values.retain(|old| !old.is(value));
            }
            KeyStep::Rename { location, from, to } => {
                let key = self.keys.remove(&(*location, from.to_lowercase()));
                let mut key = key.expect("a key to rename");
                key.name = to.clone();
                let old = self.keys.insert((*location, to.to_lowercase()), key);
                assert_eq!(old, None, "{to} exists");
            }
            KeyStep::Delete { location, name } => {
                self.keys.remove(&(*location, name.to_lowercase()));
            }
        }
        Ok(())
    }

    fn process_state(&self, process: u32) -> ProcessState {
        let started = self.processes.get(&process);
        started.map_or(ProcessState::Gone, |started| {
            ProcessState::StartedAt(*started)
        })
    }

    fn current_process(&self) -> Result<LeaseHolder, KeyError> {
        let process = self.current_pid;
        let started = self.processes.get(&process).copied().unwrap_or_default();
        Ok(LeaseHolder { process, started })
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

/// Applies a change to a copy.
fn after<R>(fake: &Fake, change: impl FnOnce(&mut Store<Fake>) -> R) -> (Fake, R) {
    let mut store = Store::new(fake.clone());
    let result = change(&mut store);
    (store.backend, result)
}
