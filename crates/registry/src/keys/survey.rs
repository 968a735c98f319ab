//! What keys mean.

use std::collections::HashMap;

use hvsock_address::{ElementName, ServiceId};

use super::{
    Holder, LEASE_PROCESS, LEASE_STARTED, Life, Listing, MAX_PROBLEMS, Place, REG_DWORD,
    REG_EXPAND_SZ, REG_QWORD, REG_SZ, RawKey, RawValue, STAGE, Snapshot, Step,
};
use crate::entry::{self, Odd, Texts};
use crate::reg_file::decode;
use crate::text::shown;
use crate::{Clash, Registration};

/// The keys as they were read, and what they mean.
#[derive(Debug, Default)]
pub(super) struct Survey {
    pub listing: Listing,
    /// The services by their ids, those among them that cannot be listed.
    pub found: HashMap<ServiceId, Found>,
    /// Takes away what nobody needs any more.
    pub sweep: Vec<Step>,
    /// Whether there are more services than these.
    pub truncated: bool,
    more_problems: usize,
}

/// A service's key.
#[derive(Debug)]
pub(super) struct Found {
    pub place: Place,
    pub key: RawKey,
    /// The names of further keys that mean the same service.
    pub also: Vec<String>,
    pub lease: Option<Holder>,
    /// Why it is not in the listing, if it is not.
    pub unlisted: Option<String>,
}

impl Survey {
    pub fn of(snapshot: Snapshot, life: impl Fn(u32) -> Life) -> Self {
        let mut survey = Self {
            truncated: snapshot.truncated,
            ..Self::default()
        };
        for problem in snapshot.problems {
            survey.problem(problem);
        }
        // In the order of their names, so that which of two counts depends on nothing else.
        let mut order = Vec::new();
        for (place, mut keys) in [
            (Place::Services, snapshot.services),
            (Place::Disabled, snapshot.disabled),
        ] {
            keys.sort_by_key(|key| key.name.to_ascii_lowercase());
            for key in keys {
                order.extend(survey.take(place, key, &life));
            }
        }
        survey.list(&order);
        if survey.more_problems > 0 {
            let more = format!("{} more problems are not listed", survey.more_problems);
            survey.listing.problems.push(more);
        }
        survey
    }

    /// Whether a process has a service as a lease.
    pub fn is_leased_by(&self, id: ServiceId, holder: Holder) -> bool {
        let found = self.found.get(&id);
        found.is_some_and(|found| found.lease == Some(holder))
    }

    /// Takes a key in, and gives its id if there was none with that so far.
    fn take(
        &mut self,
        place: Place,
        key: RawKey,
        life: &impl Fn(u32) -> Life,
    ) -> Option<ServiceId> {
        let delete = |key: &RawKey| Step::Delete {
            place,
            name: key.name.clone(),
        };
        if key.name.eq_ignore_ascii_case(STAGE) {
            self.sweep.push(delete(&key));
            return None;
        }
        let Some(id) = service_id(&key.name) else {
            self.problem_of(
                place,
                &key.name,
                "is not named by a service's GUID: left out",
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
            self.problem_of(place, &key.name, what);
        }
        let lease = match lease(&key) {
            Ok(lease) => lease,
            Err(what) => {
                self.problem_of(place, &key.name, &what);
                None
            }
        };
        if lease.is_some_and(|holder| !holder.lives(life(holder.process))) {
            self.sweep.push(delete(&key));
            return None;
        }
        match self.found.get_mut(&id) {
            // It has been registered anew, or a crash came between the two halves of a move. The
            // one that Windows looks at counts.
            Some(found) if found.place != place => {
                self.sweep.push(delete(&key));
                return None;
            }
            Some(found) => {
                let what = format!("means the same service as {}: left out", found.key.name);
                let name = key.name.clone();
                found.also.push(key.name);
                self.problem_of(place, &name, &what);
                return None;
            }
            None => {}
        }
        let found = Found {
            place,
            key,
            also: Vec::new(),
            lease,
            unlisted: None,
        };
        self.found.insert(id, found);
        Some(id)
    }

    /// Lists services: first those whose keys name them, so that no made-up name takes theirs.
    fn list(&mut self, order: &[ServiceId]) {
        let mut unnamed = Vec::new();
        let mut clashing = Vec::new();
        for id in order {
            let texts = self.texts(*id);
            match texts.name() {
                Some(Ok(name)) => {
                    let registration = self.finished(texts.registration_named(*id, name));
                    if let Err(clash) = self.listing.registry.insert(registration) {
                        clashing.push((*id, clash));
                    }
                }
                _ => unnamed.push((*id, texts)),
            }
        }
        for (id, clash) in clashing {
            match clash {
                // Windows does not mind two services with one name.
                Clash::Name { existing, new } => {
                    let mut renamed = *new;
                    renamed.name = distinguished(&renamed);
                    self.problem_for(
                        id,
                        &format!(
                            "has the name of the service {}: named \"{}\" here",
                            existing.id, renamed.name
                        ),
                    );
                    self.insert_or_leave_out(renamed);
                }
                clash => self.leave_out(id, &clash),
            }
        }
        for (id, texts) in unnamed {
            let registry = &self.listing.registry;
            let free =
                |name: &ElementName| registry.check(&Registration::new(id, name.clone())).is_ok();
            let (registration, odd) = texts.registration(id, free);
            if let Some(Odd::Unusable(what)) = odd {
                self.problem_for(id, &what);
            }
            self.insert_or_leave_out(self.finished(registration));
        }
    }

    /// With what is known from elsewhere than the texts of the key.
    fn finished(&self, registration: Registration) -> Registration {
        let found = self.found.get(&registration.id);
        Registration {
            enabled: found.is_none_or(|found| found.place == Place::Services),
            lease: found.is_some_and(|found| found.lease.is_some()),
            ..registration
        }
    }

    fn insert_or_leave_out(&mut self, registration: Registration) {
        let id = registration.id;
        let Err(clash) = self.listing.registry.insert(registration) else {
            return;
        };
        match clash {
            // A mended name, which is as good as none.
            Clash::Name { new, .. } => {
                let mut renamed = *new;
                renamed.name = distinguished(&renamed);
                if let Err(clash) = self.listing.registry.insert(renamed) {
                    self.leave_out(id, &clash);
                }
            }
            clash => self.leave_out(id, &clash),
        }
    }

    fn leave_out(&mut self, id: ServiceId, clash: &Clash) {
        let what = format!("{clash}; left out");
        self.problem_for(id, &what);
        if let Some(found) = self.found.get_mut(&id) {
            found.unlisted = Some(what);
        }
    }

    /// The texts in a service's key.
    fn texts(&mut self, id: ServiceId) -> Texts {
        let mut texts = Texts::default();
        let Some(found) = self.found.get(&id) else {
            return texts;
        };
        let mut problems = Vec::new();
        for value in &found.key.values {
            let Some(known) = entry::known(&value.name) else {
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
            self.problem_for(id, &what);
        }
        texts
    }

    /// Notes a problem of a service's key.
    fn problem_for(&mut self, id: ServiceId, what: &str) {
        if let Some(Found { place, key, .. }) = self.found.get(&id) {
            let (place, name) = (*place, key.name.clone());
            self.problem_of(place, &name, what);
        }
    }

    fn problem_of(&mut self, place: Place, name: &str, what: &str) {
        self.problem(format!("{}\\{}: {what}", place.shown(), shown(name)));
    }

    fn problem(&mut self, problem: String) {
        match self.listing.problems.len() < MAX_PROBLEMS {
            true => self.listing.problems.push(problem),
            false => self.more_problems += 1,
        }
    }
}

/// The service that a key's name means: a GUID with hyphens, with braces or without.
pub(super) fn service_id(name: &str) -> Option<ServiceId> {
    const HYPHENATED: usize = 36;
    let bare = name
        .strip_prefix('{')
        .and_then(|name| name.strip_suffix('}'));
    let bare = bare.unwrap_or(name);
    let id = bare.parse().ok().filter(|id| *id != ServiceId::ZERO);
    id.filter(|_| bare.len() == HYPHENATED)
}

/// A name that no other service has, which still begins with the service's own.
fn distinguished(registration: &Registration) -> ElementName {
    let (name, id) = (&registration.name, registration.id);
    ElementName::new(format!("{name} {id}")).unwrap_or_else(|_| entry::unnamed(id))
}

/// Which process has this key as a lease, if it is one.
fn lease(key: &RawKey) -> Result<Option<Holder>, String> {
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
        (Some(process), Some(started)) => Ok(Some(Holder { process, started })),
        _ => Err(format!(
            "{LEASE_PROCESS} and {LEASE_STARTED} do not say whose lease it is: taken for a lasting \
             service"
        )),
    }
}
