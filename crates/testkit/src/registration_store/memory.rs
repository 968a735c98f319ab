//! A store in memory, which several users share. Its content ends with the last of them.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;

use hvsock_address::ServiceId;
use hvsock_registry::store::{Change, Entry, Loaded, Origin, RegistrationStore, StoreError, Watch};
use hvsock_registry::{Edit, Inherited, Registration, Registry};
use hvsock_sys::sync::lock;

use super::storage::{Capabilities, Storage};

/// The maximum number of registrations.
const LIMIT: usize = 100_000;

/// Registrations in memory. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct MemoryStorage {
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug, Default)]
struct Shared {
    registry: Registry,
    users: Vec<User>,
    next_user: u64,
}

/// A store that is open on the storage.
#[derive(Debug)]
struct User {
    number: u64,
    /// The changes that it has not taken yet, in order.
    changes: VecDeque<Change>,
    /// Wakes the thread of its watch.
    wake: Option<SyncSender<()>>,
}

/// One user's view of a [`MemoryStorage`].
#[derive(Debug)]
pub struct MemoryStore {
    storage: MemoryStorage,
    number: u64,
}

impl MemoryStorage {
    /// Opens a store on these registrations.
    pub fn store(&self) -> MemoryStore {
        let mut shared = self.lock();
        shared.next_user += 1;
        let number = shared.next_user;
        shared.users.push(User {
            number,
            changes: VecDeque::new(),
            wake: None,
        });
        MemoryStore {
            storage: self.clone(),
            number,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        lock(&self.shared)
    }
}

impl Storage for MemoryStorage {
    fn open(&self) -> Box<dyn RegistrationStore> {
        Box::new(self.store())
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            rules: true,
            leases: false,
        }
    }
}

fn entry(registration: Registration) -> Entry {
    Entry {
        origin: Origin::Stored(PathBuf::from(format!("memory/{}", registration.id))),
        registration,
    }
}

impl Shared {
    /// Records a change for every user, and wakes their watches.
    fn publish(&mut self, change: &Change) {
        for user in &mut self.users {
            user.changes.push_back(change.clone());
            if let Some(wake) = &user.wake {
                // A full queue holds a wakeup already.
                let _ = wake.try_send(());
            }
        }
    }

    fn user(&mut self, number: u64) -> Option<&mut User> {
        self.users.iter_mut().find(|user| user.number == number)
    }

    fn take_changes(&mut self, number: u64) -> Vec<Change> {
        let user = self.user(number);
        user.map_or_else(Vec::new, |user| user.changes.drain(..).collect())
    }
}

impl RegistrationStore for MemoryStore {
    fn load(&mut self) -> Result<Loaded, StoreError> {
        let mut shared = self.storage.lock();
        shared.take_changes(self.number);
        let registry = &shared.registry;
        Ok(Loaded {
            entries: registry.iter().cloned().map(entry).collect(),
            defaults: registry.defaults().clone(),
            problems: Vec::new(),
        })
    }

    fn put(&mut self, registration: Registration) -> Result<Vec<Change>, StoreError> {
        if registration.lease {
            let what = "it is a lease, which ends with its process";
            return Err(StoreError::Unstorable(what.to_owned()));
        }
        let mut shared = self.storage.lock();
        if shared.registry.len() >= LIMIT {
            return Err(StoreError::Limit(LIMIT));
        }
        shared.registry.insert(registration.clone())?;
        shared.publish(&Change::Added(Box::new(entry(registration))));
        Ok(shared.take_changes(self.number))
    }

    fn edit(&mut self, id: ServiceId, edit: &Edit) -> Result<Vec<Change>, StoreError> {
        let mut shared = self.storage.lock();
        let old = shared.registry.get(id).cloned();
        let old = old.ok_or(StoreError::NotRegistered(id))?;
        let mut new = old.clone();
        let inherited = Inherited {
            built_in: None,
            defaults: shared.registry.defaults(),
        };
        edit.apply(&mut new, inherited)?;
        if new != old {
            shared.registry.replace(new.clone())?;
            shared.publish(&Change::Updated(Box::new(entry(new))));
        }
        Ok(shared.take_changes(self.number))
    }

    fn remove(&mut self, id: ServiceId) -> Result<Vec<Change>, StoreError> {
        let mut shared = self.storage.lock();
        let removed = shared.registry.remove(id);
        removed.ok_or(StoreError::NotRegistered(id))?;
        shared.publish(&Change::Removed(id));
        Ok(shared.take_changes(self.number))
    }

    fn changes(&mut self) -> Vec<Change> {
        self.storage.lock().take_changes(self.number)
    }

    fn watch(&mut self, mut notify: Box<dyn FnMut() + Send>) -> io::Result<Watch> {
        let (wake, woken) = sync_channel(1);
        let _ = wake.try_send(());
        let thread = std::thread::Builder::new().spawn(move || {
            while woken.recv().is_ok() {
                notify();
            }
        })?;
        if let Some(user) = self.storage.lock().user(self.number) {
            user.wake = Some(wake);
        }
        Ok(Watch::new(MemoryWatch {
            storage: self.storage.clone(),
            number: self.number,
            thread: Some(thread),
        }))
    }
}

impl Drop for MemoryStore {
    fn drop(&mut self) {
        let number = self.number;
        self.storage
            .lock()
            .users
            .retain(|user| user.number != number);
    }
}

/// Ends the thread of a watch, and waits for it.
struct MemoryWatch {
    storage: MemoryStorage,
    number: u64,
    thread: Option<JoinHandle<()>>,
}

impl Drop for MemoryWatch {
    fn drop(&mut self) {
        // The thread ends when its sender is gone.
        if let Some(user) = self.storage.lock().user(self.number) {
            user.wake = None;
        }
        let _ = self.thread.take().map(JoinHandle::join);
    }
}
