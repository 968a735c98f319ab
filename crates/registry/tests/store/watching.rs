//! Change notification by inotify.

use std::fs;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use hvsock_registry::entry_folder::Changed;
use hvsock_registry::entry_folder::{FolderWatch, WatchHealth, watch};
use hvsock_registry::store::SERVICES;

use super::*;

const TIMEOUT: Duration = Duration::from_secs(30);

struct Watched {
    config: Config,
    store: FolderStore,
    events: Receiver<Changed>,
    _watch: FolderWatch,
}

impl Watched {
    fn new(config: Config) -> Self {
        let (store, _) = config.open();
        let (sender, events) = channel();
        let forward = move |changed| drop(sender.send(changed));
        let watch = watch(config.path(), &[SERVICES], &WatchHealth::default(), forward).unwrap();
        let first = events.recv_timeout(TIMEOUT);
        assert_eq!(first, Ok(Changed::Everything));
        Self {
            config,
            store,
            events,
            _watch: watch,
        }
    }

    /// Reloads after each event until there is a change, and returns the changes.
    fn changes(&mut self) -> Vec<Change> {
        let deadline = Instant::now() + TIMEOUT;
        while let Ok(changed) = self
            .events
            .recv_timeout(deadline.saturating_duration_since(Instant::now()))
        {
            let changes = self.store.reload(&changed);
            if !changes.is_empty() {
                return changes;
            }
        }
        panic!("no change within {TIMEOUT:?}");
    }

    /// Reloads after each event until `done`. Returns the events and the changes.
    fn reload_until(&mut self, done: impl Fn(&FolderStore) -> bool) -> (Vec<Changed>, Vec<Change>) {
        let (mut events, mut changes) = (Vec::new(), Vec::new());
        while !done(&self.store) {
            let changed = self.events.recv_timeout(TIMEOUT).unwrap();
            changes.extend(self.store.reload(&changed));
            events.push(changed);
        }
        (events, changes)
    }
}

#[test]
fn an_edit_is_notified_by_file() {
    let mut watched = Watched::new(Config::new());
    let file = watched.config.file(id(1));
    watched.config.write(id(1), "name = \"One\"\n");
    let (events, changes) = watched.reload_until(|store| names(store) == ["One"]);
    let added = added(&watched.config, registration(1, "One"));
    assert_eq!(changes.last(), Some(&added), "{changes:?}");
    // Only the file itself is reported, for its creation and its close: no rescan, no polling.
    let by_file = Changed::Files(vec![file]);
    assert!(
        events.len() <= 2 && events.iter().all(|event| *event == by_file),
        "{events:?}"
    );

    // Editors save by renaming a temporary file.
    let temporary = watched.config.services().join("4913");
    fs::write(&temporary, "name = \"Eins\"\n").unwrap();
    fs::rename(&temporary, watched.config.file(id(1))).unwrap();
    let updated = updated(&watched.config, registration(1, "Eins"));
    assert_eq!(watched.changes(), [updated]);

    let defaults = watched.config.path().join("defaults.toml");
    fs::write(defaults, "allow_wildcard_binds = false\n").unwrap();
    assert!(matches!(watched.changes()[..], [Change::Defaults(_)]));

    fs::remove_file(watched.config.file(id(1))).unwrap();
    assert_eq!(watched.changes(), [Change::Removed(id(1))]);
}

#[test]
fn a_change_of_permissions_is_notified() {
    use std::os::unix::fs::PermissionsExt;
    let config = Config::new();
    config.write(id(1), "name = \"One\"\n");
    let mode = fs::Permissions::from_mode;
    fs::set_permissions(config.file(id(1)), mode(0o666)).unwrap();
    let mut watched = Watched::new(config);
    assert_eq!(names(&watched.store), [""; 0]);
    fs::set_permissions(watched.config.file(id(1)), mode(0o644)).unwrap();
    watched.changes();
    assert_eq!(names(&watched.store), ["One"]);
}

#[test]
fn a_burst_of_changes_is_coalesced() {
    let mut watched = Watched::new(Config::new());
    for port in (0..6001).filter(|port| *port != 920) {
        watched
            .config
            .write(id(port), &format!("name = \"s{port}\"\n"));
    }
    let (mut calls, mut everything) = (0, 0);
    while watched.store.len() < 6000 {
        let changed = watched.events.recv_timeout(TIMEOUT).unwrap();
        everything += usize::from(changed == Changed::Everything);
        calls += 1;
        watched.store.reload(&changed);
    }
    assert!(calls < 100, "{calls}");
    eprintln!("6000 files: {calls} calls, {everything} of them for everything");
}

#[test]
fn the_stores_own_reads_and_writes_cause_no_changes() {
    let mut watched = Watched::new(Config::new());
    let [own, marker] = [1, 2].map(|port| watched.config.file(id(port)));
    watched.store.put(registration(1, "One")).unwrap();
    let first = watched.events.recv_timeout(TIMEOUT).unwrap();
    assert_eq!(first, Changed::Files(vec![own.clone()]));
    assert_eq!(watched.store.reload(&first), []);

    // The marker is written after that reload, so an event for the reload would arrive before it.
    watched.config.write(id(2), "name = \"Two\"\n");
    let mut calls = 1;
    loop {
        let changed = watched.events.recv_timeout(TIMEOUT).unwrap();
        calls += 1;
        let Changed::Files(files) = &changed else {
            panic!("{changed:?}");
        };
        if files.contains(&marker) {
            break;
        }
        assert_eq!(*files, std::slice::from_ref(&own));
        assert_eq!(watched.store.reload(&changed), []);
    }
    assert!(calls <= 3, "{calls}");
}

#[test]
fn a_recreated_folder_is_watched_again() {
    let config = Config::new();
    config.write(id(1), "name = \"One\"\n");
    let mut watched = Watched::new(config);
    fs::remove_dir_all(watched.config.services()).unwrap();
    let mut changes = watched.changes();
    if !matches!(changes[..], [Change::Broken(_)]) {
        // The removal of the file was reported before that of the directory.
        changes = watched.changes();
    }
    assert!(matches!(changes[..], [Change::Broken(_)]), "{changes:?}");

    fs::create_dir(watched.config.services()).unwrap();
    let changes = watched.changes();
    assert!(matches!(changes[0], Change::Repaired(_)), "{changes:?}");
    watched.config.write(id(2), "name = \"Two\"\n");
    watched.changes();
    assert_eq!(names(&watched.store), ["Two"]);

    // Configuration managers replace the directory by renaming.
    let other = watched.config.path().join("other");
    fs::create_dir(&other).unwrap();
    fs::write(other.join(format!("{}.toml", id(3))), "name = \"Three\"\n").unwrap();
    fs::rename(watched.config.services(), watched.config.path().join("old")).unwrap();
    fs::rename(&other, watched.config.services()).unwrap();
    while names(&watched.store) != ["Three"] {
        watched.changes();
    }
    watched.config.write(id(4), "name = \"Four\"\n");
    watched.changes();
    assert_eq!(names(&watched.store), ["Four", "Three"]);
}

#[test]
fn a_recreated_configuration_folder_is_watched_again() {
    let outer = tempfile::tempdir().unwrap();
    let path = outer.path().join("hvsock");
    let (mut store, _) = FolderStore::open(&path).unwrap();
    let (sender, events) = channel();
    let watch = watch(&path, &[SERVICES], &WatchHealth::default(), move |c| {
        drop(sender.send(c));
    })
    .unwrap();
    assert_eq!(events.recv_timeout(TIMEOUT), Ok(Changed::Everything));
    fs::rename(&path, outer.path().join("away")).unwrap();
    assert_eq!(events.recv_timeout(TIMEOUT), Ok(Changed::Everything));

    fs::create_dir_all(path.join(SERVICES)).unwrap();
    let file = path.join(SERVICES).join(format!("{}.toml", id(1)));
    fs::write(file, "name = \"One\"\n").unwrap();
    while names(&store) != ["One"] {
        store.reload(&events.recv_timeout(TIMEOUT).unwrap());
    }
    // Stops the thread, which owns the sender.
    drop(watch);
    while events.recv_timeout(TIMEOUT).is_ok() {}
    assert_eq!(
        events.recv_timeout(TIMEOUT),
        Err(RecvTimeoutError::Disconnected)
    );
}
