//! Built-in registrations, which have no files.

use std::fs;

use hvsock_registry::entry_folder::Changed;
use hvsock_registry::store::{Options, StoreError};

use super::*;

fn open_with(config: &Config, built_in: &[Registration]) -> (FolderStore, LoadReport) {
    let options = Options {
        built_in: built_in.to_vec(),
        ..Options::default()
    };
    FolderStore::open_with(config.path(), options).unwrap()
}

fn built_in_entry() -> Box<Entry> {
    Box::new(Entry {
        registration: built_in(),
        origin: Origin::BuiltIn,
    })
}

fn built_in_again() -> Change {
    Change::Updated(built_in_entry())
}

fn built_in() -> Registration {
    owned(911, "session", "hvsock", "hvsock")
}

#[test]
fn a_built_in_registration_is_in_force_without_a_file_and_cannot_be_removed() {
    let config = Config::new();
    let (mut store, report) = open_with(&config, &[built_in()]);
    assert_eq!(report.registrations, 1);
    assert!(store.is_built_in(id(911)));
    assert_eq!(store.get(id(911)), Some(&built_in()));
    assert_eq!(config.names(), [""; 0]);
    let error = store.remove(id(911)).unwrap_err();
    assert!(matches!(error, StoreError::BuiltIn(_)), "{error}");
    let error = store.put(registration(911, "mine")).unwrap_err();
    assert!(error.to_string().contains("hvsock"), "{error}");
}

#[test]
fn changing_a_built_in_registration_writes_a_file_and_removing_that_restores_it() {
    let config = Config::new();
    let (mut store, _) = open_with(&config, &[built_in()]);
    let mut off = built_in();
    off.enabled = false;
    let changes = store.set_enabled(off.id, false, None).unwrap();
    assert_eq!(changes, [updated(&config, off.clone())]);
    assert!(!store.is_built_in(off.id));
    let (again, _) = open_with(&config, &[built_in()]);
    assert_eq!(again.get(off.id), Some(&off));

    let changes = store.remove(off.id).unwrap();
    assert_eq!(changes, [built_in_again()]);
    assert!(store.is_built_in(off.id));
    assert_eq!(config.names(), [""; 0]);
}

#[test]
fn a_handwritten_file_replaces_a_built_in_registration_while_it_exists() {
    let config = Config::new();
    config.write(id(911), "name = \"session\"\nowner = \"carol\"\n");
    let (mut store, _) = open_with(&config, &[built_in()]);
    let owner = |store: &FolderStore| store.get(id(911)).unwrap().owner.clone();
    assert_eq!(owner(&store).as_deref(), Some("carol"));

    fs::remove_file(config.file(id(911))).unwrap();
    let changes = store.reload(&Changed::Files(vec![config.file(id(911))]));
    assert_eq!(changes, [built_in_again()]);
    assert_eq!(owner(&store).as_deref(), Some("hvsock"));
}

#[test]
fn an_invalid_file_does_not_enable_the_built_in_registration() {
    let config = Config::new();
    config.write(
        id(911),
        "name = \"session\"\n[connect]\nusers = [\"carol\"\n",
    );
    let (store, report) = open_with(&config, &[built_in()]);
    assert_eq!(report.problems.len(), 1);
    assert_eq!(store.get(id(911)), None);
}

#[test]
fn no_other_file_gets_the_name_of_a_built_in_registration_whatever_its_own_file_is() {
    let own = ["", "junk [", "name = \"shell\"\n", "enabled = false\n"];
    for own in own {
        let config = Config::new();
        config.write(id(9), "name = \"Session\"\nowner = \"carol\"\n");
        if !own.is_empty() {
            config.write(id(911), own);
        }
        let (mut store, report) = open_with(&config, &[built_in()]);
        assert_eq!(store.get(id(9)), None, "{own:?}");
        let mut problems = report.problems.iter().map(ToString::to_string);
        assert!(problems.any(|text| text.contains("hvsock")), "{own:?}");
        let error = store.put(registration(10, "SESSION")).unwrap_err();
        assert!(error.to_string().contains("hvsock"), "{error}");
        assert_eq!(store.get(id(911)).is_none(), own == "junk [");
        // A rescan neither clears the problem nor reports it again.
        assert_eq!(store.reload(&Changed::Everything), []);

        if !own.is_empty() {
            fs::remove_file(config.file(id(911))).unwrap();
            store.reload(&Changed::Files(vec![config.file(id(911))]));
        }
        assert_eq!(store.get(id(911)), Some(&built_in()), "{own:?}");
    }
}
