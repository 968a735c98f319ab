//! Plans a change as a list of steps.

use hvsock_address::ServiceId;

use super::inventory::{Inventory, ServiceKey};
use super::{
    KeyError, KeyLocation, KeyStep, LEASE_PROCESS, LEASE_STARTED, LeaseHolder, MAX_SERVICES,
    REG_DWORD, REG_QWORD, RawValue, STAGE,
};
use crate::entry::{CREATOR, ELEMENT_NAME, OWNER, PURPOSE, TOOL_NAME};
use crate::{AccessRule, Registration, text};

impl Inventory {
    /// The steps that register a service. `holder` is the process that holds it, if it is a lease.
    pub fn put(
        &self,
        new: &Registration,
        holder: Option<LeaseHolder>,
    ) -> Result<Vec<KeyStep>, KeyError> {
        check_storable(new)?;
        self.listing.registry.check(new)?;
        if let Some(found) = self.keys.get(&new.id) {
            return Err(KeyError::Broken(found.why_unlisted()));
        }
        if self.truncated || self.keys.len() >= MAX_SERVICES {
            return Err(KeyError::Limit(MAX_SERVICES));
        }
        let mut values = texts(new);
        values.extend(holder.into_iter().flat_map(lease_values));
        let mut steps = self.cleanup.clone();
        let name = key_name(new.id);
        push_create(
            &mut steps,
            location_for(new.enabled),
            &name,
            &values,
            new.lease,
        );
        Ok(steps)
    }

    /// The steps that replace a registration. A lease stays with its process.
    pub fn replace(&self, new: &Registration) -> Result<Vec<KeyStep>, KeyError> {
        let (found, old) = self.listed(new.id)?;
        check_storable(new)?;
        if new.lease != old.lease {
            let what = match old.lease {
                true => "it is a lease and cannot become a permanent service; unregister it first",
                false => "it is a permanent service and cannot become a lease; unregister it first",
            };
            return Err(KeyError::Unstorable(what.to_owned()));
        }
        self.listing.registry.clone().replace(new.clone())?;
        let mut steps = self.cleanup.clone();
        let changes = changes(old, new);
        if found.location != location_for(new.enabled) {
            let mut values = found.values_to_move()?;
            for (name, value) in changes {
                values.retain(|old| !old.is(name));
                values.extend(value);
            }
            found.move_to(&mut steps, location_for(new.enabled), &values);
            return Ok(steps);
        }
        let (location, name) = (found.location, found.key.name.clone());
        steps.extend(changes.into_iter().map(|(value, set)| match set {
            Some(value) => KeyStep::Set {
                location,
                name: name.clone(),
                value,
            },
            None => KeyStep::Unset {
                location,
                name: name.clone(),
                value: value.to_owned(),
            },
        }));
        Ok(steps)
    }

    /// The steps that enable or disable a service.
    pub fn set_enabled(&self, id: ServiceId, enabled: bool) -> Result<Vec<KeyStep>, KeyError> {
        let found = self.get(id)?;
        if found.location == location_for(enabled) {
            return Ok(Vec::new());
        }
        if let Some(holder) = found.lease {
            return Err(KeyError::Unstorable(format!(
                "it is a lease, which cannot be disabled; end the process {} that holds it",
                holder.process
            )));
        }
        let mut steps = self.cleanup.clone();
        found.move_to(&mut steps, location_for(enabled), &found.values_to_move()?);
        Ok(steps)
    }

    /// The steps that remove a service.
    pub fn remove(&self, id: ServiceId) -> Result<Vec<KeyStep>, KeyError> {
        let found = self.get(id)?;
        // The cleanup deletes a leftover key at the other location first: otherwise a crash between
        // the steps would bring the service back.
        let mut steps = self.cleanup.clone();
        found.delete(&mut steps);
        Ok(steps)
    }

    fn get(&self, id: ServiceId) -> Result<&ServiceKey, KeyError> {
        if let Some(shipped) = Registration::in_box().into_iter().find(|r| r.id == id) {
            return Err(KeyError::InBox(Box::new(shipped)));
        }
        self.keys.get(&id).ok_or(KeyError::NotRegistered(id))
    }

    fn listed(&self, id: ServiceId) -> Result<(&ServiceKey, &Registration), KeyError> {
        let found = self.get(id)?;
        let registration = self.listing.registry.get(id);
        let registration = registration.ok_or_else(|| KeyError::Broken(found.why_unlisted()))?;
        Ok((found, registration))
    }
}

impl ServiceKey {
    fn why_unlisted(&self) -> String {
        let why = self.unlisted.as_deref().unwrap_or("is already registered");
        format!("{}\\{}: {why}", self.location.label(), self.key.name)
    }

    /// All values of the key, for a copy. An error if the copy would be incomplete.
    fn values_to_move(&self) -> Result<Vec<RawValue>, KeyError> {
        let subkeys = (self.key.subkeys > 0).then_some("has subkeys, which would be lost");
        let what = self.key.left_out.first().map(String::as_str).or(subkeys);
        match what {
            None => Ok(self.key.values.clone()),
            Some(what) => Err(KeyError::Broken(format!(
                "{}\\{} cannot be moved: it {what}",
                self.location.label(),
                self.key.name
            ))),
        }
    }

    /// Creates the service's key at another location, and deletes the old one.
    fn move_to(&self, steps: &mut Vec<KeyStep>, location: KeyLocation, values: &[RawValue]) {
        push_create(steps, location, &self.key.name, values, false);
        self.delete(steps);
    }

    /// Deletes the key in every spelling, the effective one last.
    fn delete(&self, steps: &mut Vec<KeyStep>) {
        let names = self.duplicates.iter().chain([&self.key.name]);
        steps.extend(names.map(|name| KeyStep::Delete {
            location: self.location,
            name: name.clone(),
        }));
    }
}

/// Creates a key with its values atomically: writes it as [`STAGE`] and renames it.
fn push_create(
    steps: &mut Vec<KeyStep>,
    location: KeyLocation,
    name: &str,
    values: &[RawValue],
    volatile: bool,
) {
    steps.push(KeyStep::Create {
        location,
        name: STAGE.to_owned(),
        volatile,
    });
    steps.extend(values.iter().map(|value| KeyStep::Set {
        location,
        name: STAGE.to_owned(),
        value: value.clone(),
    }));
    steps.push(KeyStep::Rename {
        location,
        from: STAGE.to_owned(),
        to: name.to_owned(),
    });
}

/// The name of a service's key: upper case without braces, as Windows spells its own.
fn key_name(id: ServiceId) -> String {
    id.to_string().to_uppercase()
}

fn location_for(enabled: bool) -> KeyLocation {
    match enabled {
        true => KeyLocation::Services,
        false => KeyLocation::Disabled,
    }
}

fn lease_values(holder: LeaseHolder) -> [RawValue; 2] {
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

/// The texts of a registration by value name. The friendly name comes last: Windows reads it, so
/// writing it completes the change.
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

/// The differences between two registrations: values to set, or to remove if `None`.
fn changes(old: &Registration, new: &Registration) -> Vec<(&'static str, Option<RawValue>)> {
    let mut changes = Vec::new();
    for ((name, old), (_, new)) in fields(old).into_iter().zip(fields(new)) {
        if old == new {
            continue;
        }
        if name == CREATOR && new.is_none() {
            // A remaining ToolName would be read as the creator.
            changes.push((TOOL_NAME, None));
        }
        changes.push((name, new.map(|text| RawValue::text(name, text))));
    }
    changes
}

/// Checks that the Windows registry can represent the registration completely.
fn check_storable(registration: &Registration) -> Result<(), KeyError> {
    let unstorable = |what: String| Err(KeyError::Unstorable(what));
    let given = |rule: &AccessRule| *rule != AccessRule::default();
    if given(&registration.bind) || given(&registration.connect) {
        return unstorable(
            "it has access rules, which Windows does not store with a service; leave them out, and \
             set them for each virtual machine in its Hyper-V settings"
                .to_owned(),
        );
    }
    if registration.only_root_binds.is_some() {
        return unstorable(
            "it has `only_root_binds`, which Windows has no place for; leave it out".to_owned(),
        );
    }
    if registration.transport.is_some() {
        return unstorable(
            "it has `transport`, which Windows has no place for; leave it out".to_owned(),
        );
    }
    if registration.allow_wildcard_binds.is_some() {
        return unstorable(
            "it has `allow_wildcard_binds`, which Windows stores for each virtual machine; leave it \
             out"
                .to_owned(),
        );
    }
    if let Some(vm) = registration.vm.keys().next() {
        return unstorable(format!(
            "it has rules for the virtual machine {vm}, which Windows stores with the machine; leave \
             them out, and disable the service for that machine instead"
        ));
    }
    if registration.lease && !registration.enabled {
        return unstorable("a lease cannot be disabled".to_owned());
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
