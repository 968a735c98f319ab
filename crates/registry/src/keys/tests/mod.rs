//! Tests of the key store over a fake registry, which is a map.

mod changes;
mod crashes;
mod fake;
mod leases;
mod listing;
mod random;

use std::collections::BTreeMap;

use hvsock_address::{ElementName, ServiceId};

use super::*;
use crate::Registration;
use fake::Fake;

impl Fake {
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
