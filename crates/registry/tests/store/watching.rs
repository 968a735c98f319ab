//! Being told of changes.

use std::fs;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use hvsock_registry::store::{Change, Changed, FolderStore, SERVICES, Watch, watch};

use super::*;

const PATIENCE: Duration = Duration::from_secs(10);

struct Watched {
    config: Config,
    store: FolderStore,
    events: Receiver<Changed>,
    _watch: Watch,
}

impl Watched {
    fn new(config: Config) -> Self {
        let (store, _) = config.open();
        let (sender, events) = channel();
        let told = move |changed| drop(sender.send(changed));
        let watch = watch(config.path(), &[SERVICES], told).unwrap();
        let first = events.recv_timeout(PATIENCE);
        assert_eq!(first, Ok(Changed::Everything));
        Self {
            config,
            store,
            events,
            _watch: watch,
        }
    }

    /// Reloads when told until something changed.
    fn changes(&mut self) -> Vec<Change> {
        let deadline = Instant::now() + PATIENCE;
        while let Ok(changed) = self
            .events
            .recv_timeout(deadline.saturating_duration_since(Instant::now()))
        {
            let changes = self.store.reload(&changed);
            if !changes.is_empty() {
                return changes;
            }
        }
        panic!("nothing was heard");
    }
}

#[test]
fn an_edit_takes_effect_at_once() {
    let mut watched = Watched::new(Config::new());
    let begun = Instant::now();
    watched.config.write(id(1), "name = \"One\"\n");
    let added = Change::Added(Box::new(registration(1, "One")));
    assert_eq!(watched.changes(), [added]);
    assert!(
        begun.elapsed() < Duration::from_secs(1),
        "{:?}",
        begun.elapsed()
    );

    // As editors save: another file takes the name.
    let temporary = watched.config.services().join("4913");
    fs::write(&temporary, "name = \"Eins\"\n").unwrap();
    fs::rename(&temporary, watched.config.file(id(1))).unwrap();
    let updated = Change::Updated(Box::new(registration(1, "Eins")));
    assert_eq!(watched.changes(), [updated]);

    let defaults = watched.config.path().join("defaults.toml");
    fs::write(defaults, "allow_wildcard_binds = false\n").unwrap();
    assert!(matches!(watched.changes()[..], [Change::Defaults(_)]));

    fs::remove_file(watched.config.file(id(1))).unwrap();
    assert_eq!(watched.changes(), [Change::Removed(id(1))]);
}

#[test]
fn mending_permissions_is_an_edit_too() {
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
fn a_burst_is_told_in_few_calls_and_a_large_one_as_everything() {
    let mut watched = Watched::new(Config::new());
    for port in 0..6000 {
        watched
            .config
            .write(id(port), &format!("name = \"s{port}\"\n"));
    }
    let (mut calls, mut everything) = (0, 0);
    while watched.store.registry().len() < 6000 {
        let changed = watched.events.recv_timeout(PATIENCE).unwrap();
        everything += usize::from(changed == Changed::Everything);
        calls += 1;
        watched.store.reload(&changed);
    }
    assert!(calls < 100, "{calls}");
    eprintln!("6000 files: {calls} calls, {everything} of them for everything");
}

#[test]
fn reading_and_writing_by_the_store_itself_is_no_news() {
    let mut watched = Watched::new(Config::new());
    watched.store.put(registration(1, "One")).unwrap();
    // The file's name is told once or twice, and then there is quiet.
    let mut calls = 0;
    while let Ok(changed) = watched.events.recv_timeout(Duration::from_millis(300)) {
        assert_eq!(changed, Changed::Files(vec![watched.config.file(id(1))]));
        assert_eq!(watched.store.reload(&changed), []);
        calls += 1;
    }
    assert!(calls <= 2, "{calls}");
}

#[test]
fn a_folder_that_goes_and_comes_back_is_watched_again() {
    let config = Config::new();
    config.write(id(1), "name = \"One\"\n");
    let mut watched = Watched::new(config);
    fs::remove_dir_all(watched.config.services()).unwrap();
    let mut changes = watched.changes();
    if !matches!(changes[..], [Change::Broken(_)]) {
        // The file went before the folder did, and was heard of before it.
        changes = watched.changes();
    }
    assert!(matches!(changes[..], [Change::Broken(_)]), "{changes:?}");

    fs::create_dir(watched.config.services()).unwrap();
    let changes = watched.changes();
    assert!(matches!(changes[0], Change::Repaired(_)), "{changes:?}");
    watched.config.write(id(2), "name = \"Two\"\n");
    watched.changes();
    assert_eq!(names(&watched.store), ["Two"]);

    // Swapped for another one in one go, as configuration managers do.
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
fn even_the_folder_of_configuration_may_go_and_come_back() {
    let outer = tempfile::tempdir().unwrap();
    let path = outer.path().join("hvsock");
    let (mut store, _) = FolderStore::open(&path).unwrap();
    let (sender, events) = channel();
    let watch = watch(&path, &[SERVICES], move |c| drop(sender.send(c))).unwrap();
    fs::rename(&path, outer.path().join("away")).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    fs::create_dir_all(path.join(SERVICES)).unwrap();
    let deadline = Instant::now() + PATIENCE;
    let mut port = 0;
    while store.registry().is_empty() {
        assert!(Instant::now() < deadline);
        port += 1;
        let file = path.join(SERVICES).join(format!("{}.toml", id(port)));
        fs::write(file, format!("name = \"s{port}\"\n")).unwrap();
        while let Ok(changed) = events.recv_timeout(Duration::from_millis(300)) {
            store.reload(&changed);
        }
    }
    // Ends the thread; without that the sender would live on.
    drop(watch);
    assert!(events.recv_timeout(PATIENCE).is_err());
}
