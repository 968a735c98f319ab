//! Converts a snapshot of keys to registrations, problems and cleanup steps.

use std::collections::HashMap;
use std::path::Path;

use hvsock_address::{ElementName, ServiceId};

use super::key_name::service_id;
use super::{
    KeyLocation, KeyStep, LEASE_PROCESS, LEASE_STARTED, LeaseHolder, Listing, MAX_PROBLEMS,
    ProcessState, REG_DWORD, REG_EXPAND_SZ, REG_QWORD, REG_SZ, RawKey, RawValue, STAGE, Snapshot,
};
use crate::entry::{self, NameProblem, TextValues};
use crate::reg_file::decode;
use crate::store::Problem;
use crate::{Clash, Registration};

/// A snapshot of keys, converted.
#[derive(Debug, Default)]
pub(super) struct Inventory {
    pub listing: Listing,
    /// The keys of all services, including those that cannot be listed.
    pub keys: HashMap<ServiceId, ServiceKey>,
    /// The steps that delete expired leases and leftovers of crashed writers.
    pub cleanup: Vec<KeyStep>,
    /// Whether the snapshot does not contain all services.
    pub truncated: bool,
    /// The problems of the listing, each with the path of its key.
    pub problems: Vec<Problem>,
    more_problems: usize,
}

/// A service's key.
#[derive(Debug)]
pub(super) struct ServiceKey {
    pub location: KeyLocation,
    pub key: RawKey,
    /// The names of further keys for the same service.
    pub duplicates: Vec<String>,
    pub lease: Option<LeaseHolder>,
    /// Why the service is not in the listing, if it is not.
    pub unlisted: Option<String>,
}

impl Inventory {
    pub fn new(snapshot: Snapshot, process_state: impl Fn(u32) -> ProcessState) -> Self {
        let mut inventory = Self {
            truncated: snapshot.truncated,
            ..Self::default()
        };
        for problem in snapshot.problems {
            inventory.report(Problem::whole(Path::new(""), problem));
        }
        // Sorted by name, so that the choice between duplicates is deterministic.
        let mut order = Vec::new();
        for (location, mut keys) in [
            (KeyLocation::Services, snapshot.services),
            (KeyLocation::Disabled, snapshot.disabled),
        ] {
            keys.sort_by_key(|key| key.name.to_ascii_lowercase());
            for key in keys {
                order.extend(inventory.add_key(location, key, &process_state));
            }
        }
        inventory.list(&order);
        if inventory.more_problems > 0 {
            let more = format!("{} more problems are not listed", inventory.more_problems);
            inventory.problems.push(Problem::whole(Path::new(""), more));
        }
        let problems = inventory.problems.iter().map(Problem::to_string);
        inventory.listing.problems = problems.collect();
        inventory
    }

    /// Whether a process holds a service as a lease.
    pub fn is_leased_by(&self, id: ServiceId, holder: LeaseHolder) -> bool {
        let found = self.keys.get(&id);
        found.is_some_and(|found| found.lease == Some(holder))
    }

    /// Adds a key. Returns its id if this is the first key of the service.
    fn add_key(
        &mut self,
        location: KeyLocation,
        key: RawKey,
        process_state: &impl Fn(u32) -> ProcessState,
    ) -> Option<ServiceId> {
        let delete = |key: &RawKey| KeyStep::Delete {
            location,
            name: key.name.clone(),
        };
        if key.name.eq_ignore_ascii_case(STAGE) {
            self.cleanup.push(delete(&key));
            return None;
        }
        let Some(id) = service_id(&key.name) else {
            self.report_at(
                location,
                &key.name,
                "is not named after a service's GUID: left out",
            );
            return None;
        };
        if Registration::in_box()
            .iter()
            .any(|shipped| shipped.id == id)
        {
            return None;
        }
        for what in &key.left_out {
            self.report_at(location, &key.name, what);
        }
        let lease = match lease_holder(&key) {
            Ok(lease) => lease,
            Err(what) => {
                self.report_at(location, &key.name, &what);
                None
            }
        };
        if lease.is_some_and(|holder| !holder.is_running(process_state(holder.process))) {
            self.cleanup.push(delete(&key));
            return None;
        }
        match self.keys.get_mut(&id) {
            // The service was registered again, or a crash interrupted a move between locations. The
            // key that Windows reads (the first location) wins.
            Some(found) if found.location != location => {
                self.cleanup.push(delete(&key));
                return None;
            }
            Some(found) => {
                let what = format!("is the same service as {}: left out", found.key.name);
                let name = key.name.clone();
                found.duplicates.push(key.name);
                self.report_at(location, &name, &what);
                return None;
            }
            None => {}
        }
        let found = ServiceKey {
            location,
            key,
            duplicates: Vec::new(),
            lease,
            unlisted: None,
        };
        self.keys.insert(id, found);
        Some(id)
    }

    /// Adds services to the listing. Those with a name come first, so that no generated name takes
    /// theirs.
    fn list(&mut self, order: &[ServiceId]) {
        let mut unnamed = Vec::new();
        let mut clashing = Vec::new();
        for id in order {
            let texts = self.texts(*id);
            match texts.name() {
                Some(Ok(name)) => {
                    let registration = self.with_state(texts.registration_named(*id, name));
                    if let Err(clash) = self.listing.registry.insert(registration) {
                        clashing.push((*id, clash));
                    }
                }
                _ => unnamed.push((*id, texts)),
            }
        }
        for (id, clash) in clashing {
            match clash {
                // Windows allows two services with one name.
                Clash::Name { existing, new } => {
                    let mut renamed = *new;
                    renamed.name = disambiguated(&renamed);
                    self.report_for(
                        id,
                        &format!(
                            "has the name of the service {}: named \"{}\" here",
                            existing.id, renamed.name
                        ),
                    );
                    self.insert_or_omit(renamed);
                }
                clash => self.omit(id, &clash),
            }
        }
        for (id, texts) in unnamed {
            let registry = &self.listing.registry;
            let free =
                |name: &ElementName| registry.check(&Registration::new(id, name.clone())).is_ok();
            let (registration, problem) = texts.registration(id, free);
            if let Some(NameProblem::Invalid(what)) = problem {
                self.report_for(id, &what);
            }
            self.insert_or_omit(self.with_state(registration));
        }
    }

    /// Adds the settings that are not in the texts of the key: its location and its lease.
    fn with_state(&self, registration: Registration) -> Registration {
        let found = self.keys.get(&registration.id);
        Registration {
            enabled: found.is_none_or(|found| found.location == KeyLocation::Services),
            lease: found.is_some_and(|found| found.lease.is_some()),
            ..registration
        }
    }

    fn insert_or_omit(&mut self, registration: Registration) {
        let id = registration.id;
        let Err(clash) = self.listing.registry.insert(registration) else {
            return;
        };
        match clash {
            // A repaired name has no precedence over others.
            Clash::Name { new, .. } => {
                let mut renamed = *new;
                renamed.name = disambiguated(&renamed);
                if let Err(clash) = self.listing.registry.insert(renamed) {
                    self.omit(id, &clash);
                }
            }
            clash => self.omit(id, &clash),
        }
    }

    fn omit(&mut self, id: ServiceId, clash: &Clash) {
        let what = format!("{clash}; left out");
        self.report_for(id, &what);
        if let Some(found) = self.keys.get_mut(&id) {
            found.unlisted = Some(what);
        }
    }

    /// The text values of a service's key.
    fn texts(&mut self, id: ServiceId) -> TextValues {
        let mut texts = TextValues::default();
        let Some(found) = self.keys.get(&id) else {
            return texts;
        };
        let mut problems = Vec::new();
        for value in &found.key.values {
            let Some(known) = entry::known_value(&value.name) else {
                continue;
            };
            let text = match value.kind {
                REG_SZ | REG_EXPAND_SZ => decode::string_value(&value.data, false),
                _ => Err("is not a string"),
            };
            if let Err(why) = texts.set(known, text) {
                problems.push(format!("{why}: left out"));
            }
        }
        for what in problems {
            self.report_for(id, &what);
        }
        texts
    }

    /// Reports a problem of a service's key.
    fn report_for(&mut self, id: ServiceId, what: &str) {
        if let Some(ServiceKey { location, key, .. }) = self.keys.get(&id) {
            let (location, name) = (*location, key.name.clone());
            self.report_at(location, &name, what);
        }
    }

    fn report_at(&mut self, location: KeyLocation, name: &str, what: &str) {
        self.report(Problem::whole(&location.path(name), what));
    }

    fn report(&mut self, problem: Problem) {
        match self.problems.len() < MAX_PROBLEMS {
            true => self.problems.push(problem),
            false => self.more_problems += 1,
        }
    }
}

/// A unique name that begins with the service's own and ends with its GUID.
fn disambiguated(registration: &Registration) -> ElementName {
    let (name, id) = (&registration.name, registration.id);
    ElementName::new(format!("{name} {id}")).unwrap_or_else(|_| entry::unnamed(id))
}

/// The process that holds this key as a lease, if the key is one.
fn lease_holder(key: &RawKey) -> Result<Option<LeaseHolder>, String> {
    let value = |name: &str| key.values.iter().find(|value| value.is(name));
    let (process, started) = match (value(LEASE_PROCESS), value(LEASE_STARTED)) {
        (None, None) => return Ok(None),
        values => values,
    };
    let number = |value: Option<&RawValue>, kind: u32, len: usize| {
        let value = value.filter(|value| value.kind == kind && value.data.len() == len)?;
        let mut bytes = [0; 8];
        bytes[..len].copy_from_slice(&value.data);
        Some(u64::from_le_bytes(bytes))
    };
    let process = number(process, REG_DWORD, 4).and_then(|process| u32::try_from(process).ok());
    let started = number(started, REG_QWORD, 8);
    match (process, started) {
        (Some(process), Some(started)) => Ok(Some(LeaseHolder { process, started })),
        _ => Err(format!(
            "{LEASE_PROCESS} and {LEASE_STARTED} do not identify a process: taken for a permanent \
             service"
        )),
    }
}
