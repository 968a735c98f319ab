//! Writes, also by several stores on one folder.

use std::fs;
use std::sync::Barrier;
use std::time::Duration;

use hvsock_registry::entry_folder::Changed;
use hvsock_registry::folder::Folder;
use hvsock_registry::lock::LockFile;
use hvsock_registry::store::{Options, StoreError};

use super::*;

#[test]
fn a_registration_is_loaded_by_the_next_store_on_the_folder() {
    let config = Config::new();
    let mut store = config.store();
    let mut demo = owned(2761, "HV Socket Demo", "alice", "hvsock 0.1");
    demo.purpose = Some("shows \"how\"".to_owned());
    demo.connect.partitions = Some(vec!["web".to_owned(), "@ci".to_owned()]);
    let changes = store.put(demo.clone()).unwrap();
    assert_eq!(changes, [added(&config, demo.clone())]);
    assert_eq!(store.get(demo.id), Some(&demo));
    assert_eq!(config.store().get(demo.id), Some(&demo));
    let changed = Changed::Files(vec![config.file(demo.id)]);
    assert_eq!(store.reload(&changed), [], "its own write is no change");
    assert_eq!(
        config.read(demo.id),
        "name = \"HV Socket Demo\"\nenabled = true\nowner = \"alice\"\ncreator = \"hvsock \
         0.1\"\npurpose = 'shows \"how\"'\n\n[connect]\npartitions = [\"web\", \"@ci\"]\n"
    );
    assert_eq!(store.remove(demo.id).unwrap(), [Change::Removed(demo.id)]);
    assert_eq!(config.names(), [""; 0]);
    let error = store.remove(demo.id).unwrap_err();
    assert!(matches!(error, StoreError::NotRegistered(id) if id == demo.id));
}

#[test]
fn a_clash_shows_both_owners_and_writes_nothing() {
    let config = Config::new();
    let mut store = config.store();
    let alices = owned(1, "Backup", "alice", "a-tool");
    store.put(alices.clone()).unwrap();
    for bobs in [
        owned(1, "Other", "bob", "b-tool"),
        owned(2, "backup", "bob", "b-tool"),
    ] {
        let error = store.put(bobs).unwrap_err();
        assert!(matches!(error, StoreError::Clash(_)), "{error:?}");
        let text = error.to_string();
        for part in ["alice", "a-tool", "bob", "b-tool"] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
    let error = store.put(owned(0, "Zero", "bob", "b")).err();
    assert!(error.is_none(), "port 0 is valid");
    assert_eq!(names(&store), ["Backup", "Zero"]);
    assert_eq!(config.names().len(), 2);
    assert_eq!(store.get(id(1)), Some(&alices));
}

#[test]
fn disabling_and_enabling_keeps_comments_and_formatting() {
    let config = Config::new();
    let text = "# ask Alice first\nconnect.users = [ 'alice' ] # her only\nname = 'Demo'\n";
    config.write(id(1), text);
    let mut store = config.store();
    let changes = store.set_enabled(id(1), false, None).unwrap();
    assert!(matches!(&changes[..], [Change::Updated(off)] if !off.registration.enabled));
    let with_key = config.read(id(1));
    assert!(with_key.contains("enabled = false"), "{with_key}");
    for line in text.lines() {
        assert!(with_key.contains(line), "{line} in {with_key}");
    }
    store.set_enabled(id(1), true, None).unwrap();
    assert_eq!(config.read(id(1)), with_key.replace("false", "true"));

    let web = partition("web");
    store.set_enabled(id(1), false, Some(&web)).unwrap();
    let changed = Changed::Files(vec![config.file(id(1))]);
    assert_eq!(store.reload(&changed), []);
    let off = config.store();
    assert_eq!(off.get(id(1)).unwrap().vm[&web].enabled, Some(false));
    // To enable it again returns to what holds for all.
    store.set_enabled(id(1), true, Some(&web)).unwrap();
    assert_eq!(store.get(id(1)).unwrap().vm.get(&web), None);
    assert!(!config.read(id(1)).contains("vm"), "{}", config.read(id(1)));
    // No difference, so nothing is written.
    let before = config.read(id(1));
    store
        .set_enabled(id(1), true, Some(&partition("db")))
        .unwrap();
    assert_eq!(config.read(id(1)), before);
}

#[test]
fn a_change_applies_to_the_current_file() {
    let config = Config::new();
    config.write(id(1), "name = \"One\"\n");
    let mut store = config.store();
    config.write(id(1), "name = \"One\"\npurpose = \"new\"\n");
    let changes = store.set_enabled(id(1), false, None).unwrap();
    let [Change::Updated(seen), Change::Updated(now)] = &changes[..] else {
        panic!("{changes:?}");
    };
    let (seen, now) = (&seen.registration, &now.registration);
    assert!(seen.enabled && !now.enabled);
    assert_eq!(now.purpose.as_deref(), Some("new"));
    assert_eq!(store.reload(&Changed::Files(vec![])), []);

    config.write(id(1), "name = \"One\nenabled = false\n");
    let error = store.set_enabled(id(1), true, None).unwrap_err();
    assert!(error.to_string().contains(".toml:1:"), "{error}");
    assert_eq!(config.read(id(1)), "name = \"One\nenabled = false\n");
    let error = store.set_enabled(id(9), true, None).unwrap_err();
    assert!(matches!(error, StoreError::NotRegistered(_)));
}

#[test]
fn a_file_with_a_problem_is_not_overwritten_but_may_be_removed() {
    let config = Config::new();
    config.write(id(1), "nam = \"One\"\n");
    let (mut store, _) = config.open();
    let error = store.put(registration(1, "New")).unwrap_err();
    assert!(error.to_string().contains("unknown key `nam`"), "{error}");
    assert_eq!(config.read(id(1)), "nam = \"One\"\n");
    assert_eq!(
        store.remove(id(1)).unwrap(),
        [Change::Repaired(config.file(id(1)))]
    );
    store.put(registration(1, "New")).unwrap();
    assert_eq!(store.problems().count(), 0);
}

#[test]
fn replace_may_change_the_name_and_releases_the_old_one() {
    let config = Config::new();
    config.write(id(1), "name = \"One\" # the first\n");
    config.write(id(2), "name = \"Two\"\n");
    let mut store = config.store();
    config.write(id(3), "name = \"One\"\n");
    store.reload(&Changed::Everything);
    let error = store.replace(&registration(1, "Two")).unwrap_err();
    assert!(matches!(error, StoreError::Clash(_)));
    assert_eq!(names(&store), ["One", "Two"]);
    let changes = store.replace(&registration(1, "Uno")).unwrap();
    assert_eq!(config.read(id(1)), "name = \"Uno\" # the first\n");
    assert_eq!(names(&store), ["One", "Two", "Uno"]);
    assert_eq!(
        changes,
        [
            updated(&config, registration(1, "Uno")),
            Change::Repaired(config.file(id(3))),
            added(&config, registration(3, "One")),
        ]
    );
}

#[test]
fn a_registration_that_could_not_be_read_again_is_not_written() {
    let config = Config::new();
    let mut store = config.store();
    let mut lease = registration(1, "Lease");
    lease.lease = true;
    let mut escape = registration(2, "Escape");
    escape.owner = Some("\u{1b}[31m".to_owned());
    let mut rule = registration(3, "Rule");
    rule.bind.partitions = Some(vec!["a/b/c".to_owned()]);
    let mut large = registration(4, "Large");
    large.bind.users = Some(vec!["x".repeat(1000); 70]);
    for (bad, why) in [
        (lease, "is a lease"),
        (escape, "which is not a visible character"),
        (rule, "`a/b/c` in this list is not a partition"),
        (large, "the limit is 65536"),
    ] {
        let error = store.put(bad).unwrap_err();
        assert!(error.to_string().contains(why), "{error}");
    }
    assert_eq!(config.names(), [""; 0]);
}

#[test]
fn a_store_reads_the_other_stores_writes_before_it_writes() {
    let config = Config::new();
    let (mut a, mut b) = (config.store(), config.store());
    for round in 0..20 {
        let (one, other) = if round % 2 == 0 {
            (&mut a, &mut b)
        } else {
            (&mut b, &mut a)
        };
        let name = format!("s{round}");
        one.put(owned(100 + round, &name, "alice", "a-tool"))
            .unwrap();
        let error = other
            .put(owned(200 + round, &name, "bob", "b-tool"))
            .unwrap_err();
        assert!(
            error.to_string().contains("(owner alice, creator a-tool)"),
            "{error}"
        );
    }
    assert_eq!(a.len(), 20);
    assert_eq!(b.len(), 20);
    assert_eq!(
        a.reload(&Changed::Files(vec![])).len(),
        1,
        "the change found by the last refused write"
    );
}

#[test]
fn of_concurrent_writers_exactly_one_gets_a_name_and_no_write_is_lost() {
    let config = Config::new();
    const STORES: u32 = 8;
    let start = Barrier::new(STORES as usize);
    let (config, start) = (&config, &start);
    let won: u32 = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..STORES)
            .map(|n| {
                scope.spawn(move || {
                    let mut store = config.store();
                    start.wait();
                    for i in 0..5 {
                        let port = 1000 + n * 10 + i;
                        store
                            .put(registration(port, &format!("own {port}")))
                            .unwrap();
                    }
                    u32::from(store.put(registration(n, "shared")).is_ok())
                })
            })
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).sum()
    });
    assert_eq!(won, 1);
    assert_eq!(config.store().len() as u32, STORES * 5 + 1);
}

#[test]
fn waiting_for_a_locked_folder_times_out_with_the_holders_process() {
    let config = Config::new();
    let options = Options {
        lock_wait: Duration::from_millis(50),
        ..Options::default()
    };
    let (mut store, _) = FolderStore::open_with(config.path(), options).unwrap();
    let folder = Folder::open(&config.services()).unwrap();
    let file = LockFile::open(&folder, ".lock".as_ref()).unwrap();
    let held = file.lock(Duration::ZERO).unwrap();
    let error = store.put(registration(1, "One")).unwrap_err().to_string();
    let who = format!("is locked by process {} (store", std::process::id());
    assert!(error.contains(&who), "{error}");
    drop(held);
    store.put(registration(1, "One")).unwrap();
}

#[test]
fn put_detects_a_new_file_with_the_same_id() {
    let config = Config::new();
    let mut store = config.store();
    store.put(registration(9, "Nine")).unwrap();
    config.write(id(1), "name = \"By hand\"\nowner = \"carol\"\n");
    let error = store.put(owned(1, "One", "alice", "a")).unwrap_err();
    assert!(error.to_string().contains("carol"), "{error}");
    assert!(fs::metadata(config.file(id(1))).is_ok());
}
