//! Two stores and a person with an editor on one folder, in any order.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use hvsock_registry::Registry;
use hvsock_registry::store::{Change, Changed, FolderStore, StoreError};
use proptest::prelude::*;

use super::*;

const FILES: u32 = 4;
const NAMES: [&str; 4] = ["Backup", "BACKUP", "Clock", "VM Session Service"];

#[derive(Clone, Debug)]
enum Step {
    /// A person saves a file.
    Save(u32, usize, bool),
    Break(u32),
    Delete(u32),
    /// A store (0 or 1) writes.
    Put(usize, u32, usize),
    Rename(usize, u32, usize),
    Enable(usize, u32, bool),
    Remove(usize, u32),
    /// A store is told of the files touched since, or to look at everything.
    Tell(usize),
    TellEverything(usize),
    /// A store's process ends and another one starts.
    Restart(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let file = || 0..FILES;
    let name = || 0..NAMES.len();
    let store = || 0..2usize;
    prop_oneof![
        4 => (file(), name(), any::<bool>()).prop_map(|(f, n, e)| Step::Save(f, n, e)),
        2 => file().prop_map(Step::Break),
        2 => file().prop_map(Step::Delete),
        4 => (store(), file(), name()).prop_map(|(s, f, n)| Step::Put(s, f, n)),
        2 => (store(), file(), name()).prop_map(|(s, f, n)| Step::Rename(s, f, n)),
        2 => (store(), file(), any::<bool>()).prop_map(|(s, f, e)| Step::Enable(s, f, e)),
        2 => (store(), file()).prop_map(|(s, f)| Step::Remove(s, f)),
        3 => store().prop_map(Step::Tell),
        1 => store().prop_map(Step::TellEverything),
        1 => store().prop_map(Step::Restart),
    ]
}

/// A store with one who follows it by what it tells, as a broker does.
struct Follower {
    store: FolderStore,
    follows: Registry,
    problems: BTreeSet<PathBuf>,
    /// Files touched that the store was not told of.
    touched: BTreeSet<PathBuf>,
}

impl Follower {
    fn new(config: &Config) -> Self {
        let (store, report) = config.open();
        Self {
            follows: store.registry().clone(),
            problems: report.problems.into_iter().map(|p| p.path).collect(),
            touched: BTreeSet::new(),
            store,
        }
    }

    fn tell(&mut self, changed: &Changed) {
        let changes = self.store.reload(changed);
        self.follow(changes);
    }

    fn follow(&mut self, changes: Vec<Change>) {
        for change in changes {
            match change {
                Change::Added(new) => assert!(self.follows.insert(*new).is_ok()),
                Change::Updated(new) => assert!(self.follows.replace(*new).unwrap().is_some()),
                Change::Removed(id) => assert!(self.follows.remove(id).is_some()),
                Change::Broken(problem) => drop(self.problems.insert(problem.path)),
                Change::Repaired(path) => assert!(self.problems.remove(&path)),
                Change::Defaults(_) => panic!("nobody touched them"),
            }
        }
    }

    fn write(&mut self, work: impl FnOnce(&mut FolderStore) -> Result<Vec<Change>, StoreError>) {
        if let Ok(changes) = work(&mut self.store) {
            self.follow(changes);
        }
    }

    /// Tells what was touched and checks that all is as it must be then.
    fn settle(&mut self, config: &Config) {
        let touched = std::mem::take(&mut self.touched).into_iter().collect();
        self.tell(&Changed::Files(touched));
        self.check(config);
    }

    fn check(&self, config: &Config) {
        let by_id = |all: &Registry| -> BTreeMap<ServiceId, Registration> {
            all.iter().map(|r| (r.id, r.clone())).collect()
        };
        let in_force = by_id(self.store.registry());
        assert_eq!(
            by_id(&self.follows),
            in_force,
            "who follows knows what is in force"
        );
        let problems: BTreeSet<PathBuf> = self.store.problems().map(|p| p.path.clone()).collect();
        assert_eq!(self.problems, problems);
        let names: BTreeSet<String> = in_force.values().map(|r| r.name.folded()).collect();
        assert_eq!(names.len(), in_force.len(), "names are unique");
        for id in (0..FILES).map(id) {
            let (file, now) = (config.file(id), in_force.get(&id));
            let Ok(text) = fs::read_to_string(&file) else {
                assert_eq!(now, None, "without a file there is nothing in force");
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
                let now = now.expect("what is well is in force");
                let name = format!("name = \"{}\"", now.name);
                assert!(text.starts_with(&name), "{name}: {text}");
                assert_eq!(!text.contains("enabled = false"), now.enabled);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn in_any_order_the_stores_the_files_and_the_followers_agree(
        steps in proptest::collection::vec(step(), 1..40),
    ) {
        let config = Config::new_in(&scratch());
        let mut both = [Follower::new(&config), Follower::new(&config)];
        for step in steps {
            let mut touch = |port| {
                let file = config.file(id(port));
                for one in &mut both {
                    one.touched.insert(file.clone());
                }
            };
            match step {
                Step::Save(port, name, enabled) => {
                    touch(port);
                    let text = format!("name = \"{}\"\nenabled = {enabled}\n", NAMES[name]);
                    config.write(id(port), &text);
                }
                Step::Break(port) => {
                    touch(port);
                    config.write(id(port), "nonsense");
                }
                Step::Delete(port) => {
                    touch(port);
                    let _ = fs::remove_file(config.file(id(port)));
                }
                Step::Put(store, port, name) => {
                    touch(port);
                    let new = registration(port, NAMES[name]);
                    both[store].write(|store| store.put(new));
                }
                Step::Rename(store, port, name) => {
                    touch(port);
                    let new = registration(port, NAMES[name]);
                    both[store].write(|store| store.replace(&new));
                }
                Step::Enable(store, port, enabled) => {
                    touch(port);
                    both[store].write(|store| store.set_enabled(id(port), enabled, None));
                }
                Step::Remove(store, port) => {
                    touch(port);
                    both[store].write(|store| store.remove(id(port)));
                }
                Step::Tell(store) => both[store].settle(&config),
                Step::TellEverything(store) => {
                    both[store].touched.clear();
                    both[store].tell(&Changed::Everything);
                    both[store].check(&config);
                }
                Step::Restart(store) => both[store] = Follower::new(&config),
            }
        }
        for one in &mut both {
            one.settle(&config);
        }
    }
}
