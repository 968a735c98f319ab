//! A fake Windows registry, which is a map. An integration test uses this file too.

use std::collections::{BTreeMap, HashMap};
use std::io;

use super::{
    KeyBackend, KeyError, KeyLocation, KeyStep, LeaseHolder, ProcessState, RawKey, Snapshot,
};

/// A fake Windows registry: keys by location and lower-case name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Fake {
    pub(super) keys: BTreeMap<(KeyLocation, String), RawKey>,
    /// The start times of running processes.
    pub(super) processes: HashMap<u32, u64>,
    pub(super) current_pid: u32,
    /// The number of steps before a crash: every later step fails.
    pub(super) steps_left: Option<usize>,
    /// The number of steps before a single failing step.
    pub(super) fail_at: Option<usize>,
    pub(super) denied: bool,
}

impl Fake {
    pub(super) fn at(&mut self, location: KeyLocation, name: &str) -> &mut RawKey {
        let found = self.keys.get_mut(&(location, name.to_lowercase()));
        found.unwrap_or_else(|| panic!("no key {name}"))
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
                let key = RawKey {
                    name: name.clone(),
                    ..RawKey::default()
                };
                self.keys.insert(there, key);
            }
            KeyStep::Set {
                location,
                name,
                value,
            } => {
                let values = &mut self.at(*location, name).values;
                values.retain(|old| !old.name.eq_ignore_ascii_case(&value.name));
                values.push(value.clone());
            }
            KeyStep::Unset {
                location,
                name,
                value,
            } => {
                let values = &mut self.at(*location, name).values;
                values.retain(|old| !old.name.eq_ignore_ascii_case(value));
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
