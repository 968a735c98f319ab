//! The keys of Windows as a [`RegistrationStore`], which remembers what it last read.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use hvsock_address::ServiceId;

use super::inventory::Inventory;
use super::{KeyBackend, KeyError, KeyLocation, Store};
use crate::store::{Change, Entry, Loaded, Origin, Problem, RegistrationStore, StoreError, Watch};
use crate::{Defaults, Edit, Registration};

/// How often the keys are read while they are watched.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// The registrations that keys define, with what changed since the last call.
///
/// Windows' keys have no access rules, no settings for single partitions and no defaults: such
/// registrations are [`StoreError::Unstorable`]. A lease is held by this process.
pub struct KeyRegistrations<K> {
    store: Store<K>,
    known: Known,
}

/// The content of the keys when they were last read.
#[derive(Clone, Debug, Default)]
struct Known {
    entries: BTreeMap<ServiceId, Entry>,
    problems: BTreeSet<Problem>,
}

impl<K: KeyBackend> KeyRegistrations<K> {
    /// A store over these keys.
    pub fn new(store: Store<K>) -> Self {
        Self {
            store,
            known: Known::default(),
        }
    }

    /// Reads the keys, and returns the differences.
    fn read_changes(&mut self) -> Vec<Change> {
        let mut now = match self.store.inventory() {
            Ok(inventory) => Known::of(&inventory),
            Err(error) => {
                let what = format!("{error}; the last good state stays in force");
                let path = PathBuf::from(KeyLocation::Services.label());
                let mut now = self.known.clone();
                now.problems.insert(Problem::whole(&path, what));
                now
            }
        };
        let changes = now.changes_since(&self.known);
        std::mem::swap(&mut self.known, &mut now);
        changes
    }

    fn written(&mut self, result: Result<(), KeyError>) -> Result<Vec<Change>, StoreError> {
        result?;
        Ok(self.read_changes())
    }
}

impl Known {
    fn of(inventory: &Inventory) -> Self {
        let origin = |registration: &Registration| match inventory.keys.get(&registration.id) {
            Some(found) if found.lease.is_none() => {
                Origin::Stored(found.location.path(&found.key.name))
            }
            _ => Origin::Lease,
        };
        let entries = inventory.listing.registry.iter().map(|registration| {
            let entry = Entry {
                origin: origin(registration),
                registration: registration.clone(),
            };
            (registration.id, entry)
        });
        Self {
            entries: entries.collect(),
            problems: inventory.problems.iter().cloned().collect(),
        }
    }

    /// The changes that lead from `old` to this content. Removals come first, so that each name is
    /// free before another registration gets it. A renamed registration is removed and added, since
    /// two may have swapped their names.
    fn changes_since(&self, old: &Self) -> Vec<Change> {
        let (mut removed, mut changed) = (Vec::new(), Vec::new());
        let name = |entry: &Entry| entry.registration.name.folded();
        for (id, was) in &old.entries {
            match self.entries.get(id) {
                Some(now) if now == was => {}
                Some(now) if name(now) == name(was) => {
                    changed.push(Change::Updated(Box::new(now.clone())));
                }
                _ => removed.push(Change::Removed(*id)),
            }
        }
        let is_new = |(id, now): &(&ServiceId, &Entry)| {
            let was = old.entries.get(*id);
            was.is_none_or(|was| name(was) != name(now))
        };
        let added = self.entries.iter().filter(is_new);
        let added = added.map(|(_, now)| Change::Added(Box::new(now.clone())));
        let mut changes: Vec<Change> = removed.into_iter().chain(changed).chain(added).collect();
        let broken = self.problems.difference(&old.problems).cloned();
        changes.extend(broken.map(Change::Broken));
        let paths = |known: &Self| -> BTreeSet<PathBuf> {
            let problems = known.problems.iter();
            problems.map(|problem| problem.path.clone()).collect()
        };
        let repaired = paths(old);
        changes.extend(
            repaired
                .difference(&paths(self))
                .cloned()
                .map(Change::Repaired),
        );
        changes
    }
}

impl<K: KeyBackend + Send> RegistrationStore for KeyRegistrations<K> {
    fn load(&mut self) -> Result<Loaded, StoreError> {
        self.known = Known::of(&self.store.inventory()?);
        Ok(Loaded {
            entries: self.known.entries.values().cloned().collect(),
            defaults: Defaults::default(),
            problems: self.known.problems.iter().cloned().collect(),
        })
    }

    fn put(&mut self, registration: Registration) -> Result<Vec<Change>, StoreError> {
        let result = self.store.put(&registration);
        self.written(result)
    }

    fn edit(&mut self, id: ServiceId, edit: &Edit) -> Result<Vec<Change>, StoreError> {
        let Edit::SetEnabled { enabled, .. } = edit else {
            let what = match edit.child() {
                Some(vm) => format!("Windows has no setting for {vm} alone"),
                None => "Windows keeps access rules with each virtual machine".to_owned(),
            };
            return Err(StoreError::Unstorable(what));
        };
        let result = self.store.set_enabled(id, *enabled);
        self.written(result)
    }

    fn remove(&mut self, id: ServiceId) -> Result<Vec<Change>, StoreError> {
        let result = self.store.remove(id);
        self.written(result)
    }

    fn changes(&mut self) -> Vec<Change> {
        self.read_changes()
    }

    /// Polls: reading the few keys costs little, and `RegNotifyChangeKeyValue` would need one more
    /// handle for each location, which may not exist yet.
    fn watch(&mut self, notify: Box<dyn FnMut() + Send>) -> io::Result<Watch> {
        Watch::polling(POLL_INTERVAL, notify)
    }
}

impl From<KeyError> for StoreError {
    fn from(error: KeyError) -> Self {
        match error {
            KeyError::Clash(clash) => Self::Clash(clash),
            KeyError::NotRegistered(id) => Self::NotRegistered(id),
            KeyError::Unstorable(why) => Self::Unstorable(why),
            KeyError::Limit(limit) => Self::Limit(limit),
            KeyError::Busy(_) => Self::Busy(error.into()),
            KeyError::Denied { .. }
            | KeyError::InBox(_)
            | KeyError::Broken(_)
            | KeyError::System { .. } => Self::Failed(error.into()),
        }
    }
}

impl<K> fmt::Debug for KeyRegistrations<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyRegistrations")
            .field("known", &self.known)
            .finish_non_exhaustive()
    }
}
