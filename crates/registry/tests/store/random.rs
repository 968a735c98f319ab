//! Model test: two stores and an editor on one folder, in random order.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use hvsock_registry::Registry;
use hvsock_registry::entry_folder::Changed;
use hvsock_registry::store::StoreError;
use proptest::prelude::*;

use super::*;

const FILES: u32 = 4;
const NAMES: [&str; 4] = ["Backup", "BACKUP", "Clock", "VM Session Service"];

#[derive(Clone, Debug)]
enum Op {
    /// An editor saves a file.
    Save(u32, usize, bool),
    Break(u32),
    Delete(u32),
    /// A store (0 or 1) writes.
    Put(usize, u32, usize),
    Rename(usize, u32, usize),
    Enable(usize, u32, bool),
    Remove(usize, u32),
    /// A store is notified of the touched files, or rescans everything.
    Notify(usize),
    NotifyAll(usize),
    /// A store's process restarts.
    Restart(usize),
}

fn op() -> impl Strategy<Value = Op> {
    let file = || 0..FILES;
    let name = || 0..NAMES.len();
    let store = || 0..2usize;
    prop_oneof![
        4 => (file(), name(), any::<bool>()).prop_map(|(f, n, e)| Op::Save(f, n, e)),
        2 => file().prop_map(Op::Break),
        2 => file().prop_map(Op::Delete),
        4 => (store(), file(), name()).prop_map(|(s, f, n)| Op::Put(s, f, n)),
        2 => (store(), file(), name()).prop_map(|(s, f, n)| Op::Rename(s, f, n)),
        2 => (store(), file(), any::<bool>()).prop_map(|(s, f, e)| Op::Enable(s, f, e)),
        2 => (store(), file()).prop_map(|(s, f)| Op::Remove(s, f)),
        3 => store().prop_map(Op::Notify),
        1 => store().prop_map(Op::NotifyAll),
        1 => store().prop_map(Op::Restart),
    ]
}

/// A store, and a copy of its registry that is updated by its changes, as a broker does.
struct Follower {
    store: FolderStore,
    copy: Registry,
    problems: BTreeSet<PathBuf>,
    /// Touched files that the store was not notified of.
    touched: BTreeSet<PathBuf>,
}

fn registry(store: &FolderStore) -> Registry {
    let mut registry = Registry::new();
    for one in store.registrations() {
        registry.insert(one.clone()).unwrap();
    }
    registry
}

impl Follower {
    fn new(config: &Config) -> Self {
        let (store, report) = config.open();
        Self {
            copy: registry(&store),
            problems: report.problems.into_iter().map(|p| p.path).collect(),
            touched: BTreeSet::new(),
            store,
        }
    }

    fn notify(&mut self, changed: &Changed) {
        let changes = self.store.reload(changed);
        self.follow(changes);
    }

    fn follow(&mut self, changes: Vec<Change>) {
        for change in changes {
            match change {
                Change::Added(new) => assert!(self.copy.insert(new.registration).is_ok()),
                Change::Updated(new) => {
                    assert!(self.copy.replace(new.registration).unwrap().is_some());
                }
                Change::Removed(id) => assert!(self.copy.remove(id).is_some()),
                Change::Broken(problem) => drop(self.problems.insert(problem.path)),
                Change::Repaired(path) => assert!(self.problems.remove(&path)),
                Change::Defaults(_) => panic!("the defaults did not change"),
            }
        }
    }

    fn write(&mut self, work: impl FnOnce(&mut FolderStore) -> Result<Vec<Change>, StoreError>) {
        if let Ok(changes) = work(&mut self.store) {
            self.follow(changes);
        }
    }

    /// Notifies the store of the touched files, and checks the invariants.
    fn settle(&mut self, config: &Config) {
        let touched = std::mem::take(&mut self.touched).into_iter().collect();
        self.notify(&Changed::Files(touched));
        self.check(config);
    }

    fn check(&self, config: &Config) {
        let by_id = |all: &Registry| -> BTreeMap<ServiceId, Registration> {
            all.iter().map(|r| (r.id, r.clone())).collect()
        };
        let in_force = by_id(&registry(&self.store));
        assert_eq!(
            by_id(&self.copy),
            in_force,
            "the copy has the registrations in force"
        );
        let problems: BTreeSet<PathBuf> = self.store.problems().map(|p| p.path.clone()).collect();
        assert_eq!(self.problems, problems);
        let names: BTreeSet<String> = in_force.values().map(|r| r.name.folded()).collect();
        assert_eq!(names.len(), in_force.len(), "names are unique");
        for id in (0..FILES).map(id) {
            let (file, now) = (config.file(id), in_force.get(&id));
            let Ok(text) = fs::read_to_string(&file) else {
                assert_eq!(now, None, "in force without a file");
                continue;
            };
            if problems.contains(&file) {
                let Some(name) = text.strip_prefix("name = \"") else {
                    continue;
                };
                let name = name.split('"').next().unwrap().to_lowercase();
                let holder = in_force.values().find(|r| r.name.folded() == name);
                let taken = holder.is_some_and(|holder| holder.id != id);
                assert!(taken || name == "vm session service", "{text}");
            } else {
                let now = now.expect("a valid file is in force");
                let name = format!("name = \"{}\"", now.name);
                assert!(text.starts_with(&name), "{name}: {text}");
                assert_eq!(!text.contains("enabled = false"), now.enabled);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(hvsock_testkit::cases(200)))]
    #[test]
    fn stores_files_and_copies_agree_in_any_order(
        ops in proptest::collection::vec(op(), 1..40),
    ) {
        let config = Config::new_in(&scratch());
        let mut both = [Follower::new(&config), Follower::new(&config)];
        for op in ops {
            let mut touch = |port| {
                let file = config.file(id(port));
                for one in &mut both {
                    one.touched.insert(file.clone());
                }
            };
            match op {
                Op::Save(port, name, enabled) => {
                    touch(port);
                    let text = format!("name = \"{}\"\nenabled = {enabled}\n", NAMES[name]);
                    config.write(id(port), &text);
                }
                Op::Break(port) => {
                    touch(port);
                    config.write(id(port), "nonsense");
                }
                Op::Delete(port) => {
                    touch(port);
                    let _ = fs::remove_file(config.file(id(port)));
                }
                Op::Put(store, port, name) => {
                    touch(port);
                    let new = registration(port, NAMES[name]);
                    both[store].write(|store| store.put(new));
                }
                Op::Rename(store, port, name) => {
                    touch(port);
                    let new = registration(port, NAMES[name]);
                    both[store].write(|store| store.replace(&new));
                }
                Op::Enable(store, port, enabled) => {
                    touch(port);
                    both[store].write(|store| store.set_enabled(id(port), enabled, None));
                }
                Op::Remove(store, port) => {
                    touch(port);
                    both[store].write(|store| store.remove(id(port)));
                }
                Op::Notify(store) => both[store].settle(&config),
                Op::NotifyAll(store) => {
                    both[store].touched.clear();
                    both[store].notify(&Changed::Everything);
                    both[store].check(&config);
                }
                Op::Restart(store) => both[store] = Follower::new(&config),
            }
        }
        for one in &mut both {
            one.settle(&config);
        }
    }
}
