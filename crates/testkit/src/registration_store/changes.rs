//! Cases about following the changes of a store.

use std::collections::BTreeMap;
use std::sync::mpsc::channel;
use std::time::Instant;

use hvsock_address::ServiceId;
use hvsock_registry::Registry;
use hvsock_registry::store::{Change, Entry, RegistrationStore};

use super::case::{Case, open_empty};
use super::storage::{Storage, TIMEOUT, by_id, only_added, registration, stored};

pub(super) fn cases() -> Vec<Case> {
    let any = |name, body| Case {
        name,
        needs: |_| true,
        body,
    };
    vec![
        any("each_change_is_returned_once", once),
        any("changes_of_others_come_before_own_ones", in_order),
        any("a_load_contains_what_changed_before_it", load_again),
        any("a_watch_notifies_of_changes_by_others", watch),
        any("a_dropped_watch_does_not_notify", dropped_watch),
        any("a_copy_that_follows_the_changes_equals_the_store", follow),
    ]
}

/// The ids of the registrations that changes add.
fn added(changes: &[Change]) -> Vec<ServiceId> {
    let id = |change: &Change| match change {
        Change::Added(entry) => entry.registration.id,
        other => panic!("{other:?}"),
    };
    changes.iter().map(id).collect()
}

fn once(storage: &dyn Storage) {
    let mut store = open_empty(storage);
    assert_eq!(store.changes(), []);
    let changes = store.put(registration(1, "One")).unwrap();
    assert_eq!(only_added(&changes).name.as_str(), "One");
    assert_eq!(store.changes(), []);
    let mut other = storage.open();
    other.load().unwrap();
    other.put(registration(2, "Two")).unwrap();
    assert_eq!(only_added(&store.changes()).name.as_str(), "Two");
    assert_eq!(store.changes(), []);
}

fn in_order(storage: &dyn Storage) {
    let (mut one, mut other) = (open_empty(storage), open_empty(storage));
    other.put(registration(1, "One")).unwrap();
    let changes = one.put(registration(2, "Two")).unwrap();
    assert_eq!(added(&changes), [1, 2].map(ServiceId::from_port));
    other.remove(ServiceId::from_port(1)).unwrap();
    let changes = one.remove(ServiceId::from_port(2)).unwrap();
    let want = [1, 2].map(|port| Change::Removed(ServiceId::from_port(port)));
    assert_eq!(changes, want);
}

fn load_again(storage: &dyn Storage) {
    let (mut one, mut other) = (open_empty(storage), open_empty(storage));
    other.put(registration(1, "One")).unwrap();
    one.put(registration(2, "Two")).unwrap();
    assert_eq!(by_id(one.load().unwrap().entries).len(), 2);
    assert_eq!(one.changes(), []);
}

fn watch(storage: &dyn Storage) {
    let (mut store, mut other) = (open_empty(storage), open_empty(storage));
    let (notify, notified) = channel();
    let watch = store.watch(Box::new(move || {
        let _ = notify.send(());
    }));
    let _watch = watch.unwrap();
    notified.recv_timeout(TIMEOUT).expect("the first call");
    for port in 1..4 {
        let name = format!("s{port}");
        other.put(registration(port, &name)).unwrap();
        let deadline = Instant::now() + TIMEOUT;
        let mut changes = store.changes();
        while changes.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            notified.recv_timeout(left).expect("a notification");
            changes = store.changes();
        }
        assert_eq!(only_added(&changes).name.as_str(), name);
    }
}

fn dropped_watch(storage: &dyn Storage) {
    let mut store = open_empty(storage);
    let (notify, notified) = channel();
    let watch = store.watch(Box::new(move || {
        let _ = notify.send(());
    }));
    drop(watch.unwrap());
    while notified.try_recv().is_ok() {}
    store.put(registration(1, "One")).unwrap();
    // The callback, which owns the sender, is gone.
    assert!(notified.recv_timeout(TIMEOUT).is_err());
    let mut other = storage.open();
    other.load().unwrap();
    other.put(registration(2, "Two")).unwrap();
    assert_eq!(only_added(&store.changes()).name.as_str(), "Two");
}

/// A store, and a copy of its registrations that its changes update.
struct Follower {
    store: Box<dyn RegistrationStore>,
    copy: Registry,
    entries: BTreeMap<ServiceId, Entry>,
}

impl Follower {
    fn new(storage: &dyn Storage) -> Self {
        let mut store = storage.open();
        let mut copy = Registry::new();
        let entries = by_id(store.load().unwrap().entries);
        for entry in entries.values() {
            copy.insert(entry.registration.clone()).unwrap();
        }
        Self {
            store,
            copy,
            entries,
        }
    }

    fn follow(&mut self, changes: Vec<Change>) {
        for change in changes {
            match change {
                Change::Added(new) => {
                    self.copy.insert(new.registration.clone()).unwrap();
                    let before = self.entries.insert(new.registration.id, *new);
                    assert_eq!(before, None);
                }
                Change::Updated(new) => {
                    let old = self.copy.replace(new.registration.clone()).unwrap();
                    assert!(old.is_some());
                    self.entries.insert(new.registration.id, *new);
                }
                Change::Removed(id) => {
                    assert!(self.copy.remove(id).is_some());
                    self.entries.remove(&id);
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

/// Random writes by two users, who follow each other at random times.
fn follow(storage: &dyn Storage) {
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = |below: u64| {
        // xorshift64 (Marsaglia, 2003).
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % below
    };
    let mut users = [Follower::new(storage), Follower::new(storage)];
    for _ in 0..200 {
        let user = &mut users[usize::from(next(2) == 0)];
        let port = u32::try_from(next(4)).unwrap_or_default();
        let id = ServiceId::from_port(port);
        let result = match next(6) {
            0 | 1 => user.store.put(registration(port, &format!("n{}", next(3)))),
            2 => user.store.set_enabled(id, next(2) == 0, None),
            3 => user.store.remove(id),
            _ => Ok(user.store.changes()),
        };
        user.follow(result.unwrap_or_default());
    }
    for user in &mut users {
        let changes = user.store.changes();
        user.follow(changes);
        assert_eq!(user.entries, stored(storage));
        assert_eq!(user.copy.len(), user.entries.len());
    }
}
