//! From changes to the steps that make them.

use hvsock_address::ServiceId;

use super::survey::{Found, Survey};
use super::{
    Holder, KeyError, LEASE_PROCESS, LEASE_STARTED, MAX_SERVICES, Place, REG_DWORD, REG_QWORD,
    RawValue, STAGE, Step,
};
use crate::entry::{CREATOR, ELEMENT_NAME, OWNER, PURPOSE, TOOL_NAME};
use crate::{AccessRule, Registration, text};

impl Survey {
    /// The steps that register a service; `holder` has it, if it is a lease.
    pub fn put(&self, new: &Registration, holder: Option<Holder>) -> Result<Vec<Step>, KeyError> {
        storable(new)?;
        self.listing.registry.check(new)?;
        if let Some(found) = self.found.get(&new.id) {
            return Err(KeyError::Broken(found.why_unlisted()));
        }
        if self.truncated || self.found.len() >= MAX_SERVICES {
            return Err(KeyError::Limit(MAX_SERVICES));
        }
        let mut values = texts(new);
        values.extend(holder.into_iter().flat_map(lease_values));
        let mut steps = self.sweep.clone();
        let name = key_name(new.id);
        make(&mut steps, place(new.enabled), &name, &values, new.lease);
        Ok(steps)
    }

    /// The steps that make a service's key say what `new` says. A lease stays with its process.
    pub fn replace(&self, new: &Registration) -> Result<Vec<Step>, KeyError> {
        let (found, old) = self.listed(new.id)?;
        storable(new)?;
        if new.lease != old.lease {
            let what = match old.lease {
                true => {
                    "it is a lease, which does not become a lasting service; unregister it first"
                }
                false => {
                    "it is a lasting service, which does not become a lease; unregister it first"
                }
            };
            return Err(KeyError::Unstorable(what.to_owned()));
        }
        self.listing.registry.clone().replace(new.clone())?;
        let mut steps = self.sweep.clone();
        let changes = changes(old, new);
        if found.place != place(new.enabled) {
            let mut values = found.values_to_move()?;
            for (name, value) in changes {
                values.retain(|old| !old.is(name));
                values.extend(value);
            }
            found.move_to(&mut steps, place(new.enabled), &values);
            return Ok(steps);
        }
        let (place, name) = (found.place, found.key.name.clone());
        steps.extend(changes.into_iter().map(|(value, set)| match set {
            Some(value) => Step::Set {
                place,
                name: name.clone(),
                value,
            },
            None => Step::Unset {
                place,
                name: name.clone(),
                value: value.to_owned(),
            },
        }));
        Ok(steps)
    }

    /// The steps that switch a service on or off.
    pub fn set_enabled(&self, id: ServiceId, enabled: bool) -> Result<Vec<Step>, KeyError> {
        let found = self.get(id)?;
        if found.place == place(enabled) {
            return Ok(Vec::new());
        }
        if let Some(holder) = found.lease {
            return Err(KeyError::Unstorable(format!(
                "it is a lease, which cannot be switched off; end the process {} that has it",
                holder.process
            )));
        }
        let mut steps = self.sweep.clone();
        found.move_to(&mut steps, place(enabled), &found.values_to_move()?);
        Ok(steps)
    }

    /// The steps that remove a service.
    pub fn remove(&self, id: ServiceId) -> Result<Vec<Step>, KeyError> {
        let found = self.get(id)?;
        // What is left of it elsewhere goes with the sweep, first, so that it never comes back.
        let mut steps = self.sweep.clone();
        found.delete(&mut steps);
        Ok(steps)
    }

    fn get(&self, id: ServiceId) -> Result<&Found, KeyError> {
        if let Some(shipped) = Registration::in_box().into_iter().find(|r| r.id == id) {
            return Err(KeyError::InBox(Box::new(shipped)));
        }
        self.found.get(&id).ok_or(KeyError::NotRegistered(id))
    }

    fn listed(&self, id: ServiceId) -> Result<(&Found, &Registration), KeyError> {
        let found = self.get(id)?;
        let registration = self.listing.registry.get(id);
        let registration = registration.ok_or_else(|| KeyError::Broken(found.why_unlisted()))?;
        Ok((found, registration))
    }
}

impl Found {
    fn why_unlisted(&self) -> String {
        let why = self.unlisted.as_deref().unwrap_or("is registered already");
        format!("{}\\{}: {why}", self.place.shown(), self.key.name)
    }

    /// All values of the key, for a copy of it.
    fn values_to_move(&self) -> Result<Vec<RawValue>, KeyError> {
        let subkeys = (self.key.subkeys > 0).then_some("has keys of its own, which would be lost");
        let what = self.key.left_out.first().map(String::as_str).or(subkeys);
        match what {
            None => Ok(self.key.values.clone()),
            Some(what) => Err(KeyError::Broken(format!(
                "{}\\{} cannot be moved: it {what}",
                self.place.shown(),
                self.key.name
            ))),
        }
    }

    /// Makes the service's key elsewhere, and takes it away where it is.
    fn move_to(&self, steps: &mut Vec<Step>, place: Place, values: &[RawValue]) {
        make(steps, place, &self.key.name, values, false);
        self.delete(steps);
    }

    /// Takes every spelling away, the one that counts last.
    fn delete(&self, steps: &mut Vec<Step>) {
        let names = self.also.iter().chain([&self.key.name]);
        steps.extend(names.map(|name| Step::Delete {
            place: self.place,
            name: name.clone(),
        }));
    }
}

/// Makes a key with its values, which is there all at once.
fn make(steps: &mut Vec<Step>, place: Place, name: &str, values: &[RawValue], volatile: bool) {
    steps.push(Step::Create {
        place,
        name: STAGE.to_owned(),
        volatile,
    });
    steps.extend(values.iter().map(|value| Step::Set {
        place,
        name: STAGE.to_owned(),
        value: value.clone(),
    }));
    steps.push(Step::Rename {
        place,
        from: STAGE.to_owned(),
        to: name.to_owned(),
    });
}

/// The name of a service's key: in upper case and without braces, as Windows' own are.
fn key_name(id: ServiceId) -> String {
    id.to_string().to_uppercase()
}

fn place(enabled: bool) -> Place {
    match enabled {
        true => Place::Services,
        false => Place::Disabled,
    }
}

fn lease_values(holder: Holder) -> [RawValue; 2] {
    [
        RawValue {
            name: LEASE_PROCESS.to_owned(),
            kind: REG_DWORD,
            data: holder.process.to_le_bytes().into(),
        },
        RawValue {
            name: LEASE_STARTED.to_owned(),
            kind: REG_QWORD,
            data: holder.started.to_le_bytes().into(),
        },
    ]
}

/// The texts of a registration, by the names of their values. The friendly name comes last: it is
/// what Windows looks at, and so what says that a change was made.
fn fields(registration: &Registration) -> [(&'static str, Option<&str>); 4] {
    [
        (OWNER, registration.owner.as_deref()),
        (CREATOR, registration.creator.as_deref()),
        (PURPOSE, registration.purpose.as_deref()),
        (ELEMENT_NAME, Some(registration.name.as_str())),
    ]
}

fn texts(registration: &Registration) -> Vec<RawValue> {
    let fields = fields(registration).into_iter();
    let values = fields.filter_map(|(name, text)| Some(RawValue::text(name, text?)));
    values.collect()
}

/// What is to be different: values to be set, or to be gone.
fn changes(old: &Registration, new: &Registration) -> Vec<(&'static str, Option<RawValue>)> {
    let mut changes = Vec::new();
    for ((name, old), (_, new)) in fields(old).into_iter().zip(fields(new)) {
        if old == new {
            continue;
        }
        if name == CREATOR && new.is_none() {
            // It would be read in its place.
            changes.push((TOOL_NAME, None));
        }
        changes.push((name, new.map(|text| RawValue::text(name, text))));
    }
    changes
}

/// Whether the registry of Windows has a place for all of this.
fn storable(registration: &Registration) -> Result<(), KeyError> {
    let unstorable = |what: String| Err(KeyError::Unstorable(what));
    let given = |rule: &AccessRule| *rule != AccessRule::default();
    if given(&registration.bind) || given(&registration.connect) {
        return unstorable(
            "it has access rules, and Windows keeps none beside a service; leave them out, and \
             give each virtual machine its own in its settings of Hyper-V"
                .to_owned(),
        );
    }
    if registration.allow_wildcard_binds.is_some() {
        return unstorable(
            "it says whether the wildcard may be bound to, and Windows keeps that for each virtual \
             machine; leave it out"
                .to_owned(),
        );
    }
    if let Some(vm) = registration.vm.keys().next() {
        return unstorable(format!(
            "it has rules for the virtual machine {vm}, and Windows keeps those with the machine; \
             leave them out, and use `hvsock service disable --vm`"
        ));
    }
    if registration.lease && !registration.enabled {
        return unstorable("a lease cannot be switched off".to_owned());
    }
    for (name, text) in fields(registration) {
        if name != ELEMENT_NAME
            && let Some(Err(why)) = text.map(text::check)
        {
            return unstorable(format!("{name} {why}"));
        }
    }
    Ok(())
}
