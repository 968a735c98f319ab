//! Cases about what a write does, and what it refuses.

use std::sync::Barrier;

use hvsock_address::{PartitionName, ServiceId};
use hvsock_registry::store::{Change, Origin, RegistrationStore, StoreError};
use hvsock_registry::{Clash, Registration};

use super::case::{Case, open_empty};
use super::storage::{Storage, only_added, only_updated, owned, registration, stored};

pub(super) fn cases() -> Vec<Case> {
    let any = |name, body| Case {
        name,
        needs: |_| true,
        body,
    };
    vec![
        any("a_registration_is_stored_with_its_texts", is_stored),
        any("each_id_name_and_port_is_unique", clashes),
        any(
            "a_clash_with_an_unread_registration_is_refused",
            unread_clash,
        ),
        any("reserved_names_and_ids_are_refused", reserved),
        any("disabling_and_enabling_is_one_change_each", set_enabled),
        any("a_removed_registration_is_gone", remove),
        any("a_removed_name_is_free_again", name_is_free),
        any("an_unknown_service_cannot_be_changed", unknown),
        any(
            "of_concurrent_writers_exactly_one_gets_a_name",
            concurrent_writers,
        ),
        Case {
            name: "access_rules_are_stored",
            needs: |has| has.rules,
            body: rules,
        },
        Case {
            name: "access_rules_are_refused",
            needs: |has| !has.rules,
            body: no_rules,
        },
        Case {
            name: "a_lease_is_stored",
            needs: |has| has.leases,
            body: lease,
        },
        Case {
            name: "a_lease_is_refused",
            needs: |has| !has.leases,
            body: no_lease,
        },
    ]
}

fn is_stored(storage: &dyn Storage) {
    let mut store = open_empty(storage);
    let mut new = owned(2761, "HV Socket Demo é 漢", "alice");
    new.purpose = Some("shows \"how\"".to_owned());
    let changes = store.put(new.clone()).unwrap();
    assert_eq!(only_added(&changes), &new);
    let found = &stored(storage)[&new.id];
    assert_eq!(found.registration, new);
    assert!(
        matches!(&found.origin, Origin::Stored(path) if !path.as_os_str().is_empty()),
        "{found:?}"
    );
    // A disabled one is stored as such.
    let mut off = registration(1, "Off");
    off.enabled = false;
    store.put(off.clone()).unwrap();
    assert_eq!(stored(storage)[&off.id].registration, off);
}

fn clashes(storage: &dyn Storage) {
    let mut store = open_empty(storage);
    let first = owned(1, "Backup", "alice");
    store.put(first.clone()).unwrap();
    let template_of_alias: ServiceId = "5ca1ab1e-0000-4000-8000-000000003367".parse().unwrap();
    let alias = template_of_alias.vsock_alias().unwrap();
    let aliased = Registration::new(template_of_alias, registration(0, "Alias").name);
    store.put(aliased).unwrap();
    let before = stored(storage);
    for new in [
        owned(1, "Other", "bob"),
        owned(2, "backup", "bob"),
        owned(alias, "Other", "bob"),
    ] {
        let error = store.put(new).unwrap_err();
        assert!(matches!(error, StoreError::Clash(_)), "{error:?}");
        let text = error.to_string();
        assert!(text.contains("bob") && text.contains("owner"), "{text}");
    }
    let by_name = store.put(owned(3, "BACKUP", "bob")).unwrap_err();
    let StoreError::Clash(Clash::Name { existing, .. }) = &by_name else {
        panic!("{by_name:?}");
    };
    assert_eq!(**existing, first);
    assert_eq!(stored(storage), before, "a refused write changes nothing");
    assert_eq!(store.changes(), []);
}

fn unread_clash(storage: &dyn Storage) {
    let (mut one, mut other) = (open_empty(storage), open_empty(storage));
    one.put(owned(1, "Backup", "alice")).unwrap();
    let error = other.put(owned(2, "Backup", "bob")).unwrap_err();
    assert!(error.to_string().contains("owner alice"), "{error}");
    let error = other.put(owned(1, "Other", "bob")).unwrap_err();
    assert!(error.to_string().contains("owner alice"), "{error}");
    // The change that the refused write found is not lost.
    assert_eq!(only_added(&other.changes()).name.as_str(), "Backup");
}

fn reserved(storage: &dyn Storage) {
    let mut store = open_empty(storage);
    let [shipped, _] = Registration::in_box();
    let mut same_name = registration(1, "x");
    same_name.name = shipped.name.clone();
    let zero = Registration::new(ServiceId::ZERO, registration(1, "Zero").name);
    for new in [shipped, same_name, zero] {
        let error = store.put(new).unwrap_err();
        assert!(matches!(error, StoreError::Clash(_)), "{error:?}");
    }
    assert!(stored(storage).is_empty());
}

fn set_enabled(storage: &dyn Storage) {
    let mut store = open_empty(storage);
    let mut service = owned(1, "One", "alice");
    store.put(service.clone()).unwrap();
    for enabled in [false, true] {
        service.enabled = enabled;
        let changes = store.set_enabled(service.id, enabled, None).unwrap();
        assert_eq!(only_updated(&changes), &service);
        assert_eq!(stored(storage)[&service.id].registration, service);
        let again = store.set_enabled(service.id, enabled, None).unwrap();
        assert_eq!(again, [], "nothing changes");
    }
}

fn remove(storage: &dyn Storage) {
    let mut store = open_empty(storage);
    let service = registration(1, "One");
    store.put(service.clone()).unwrap();
    store.put(registration(2, "Two")).unwrap();
    let changes = store.remove(service.id).unwrap();
    assert_eq!(changes, [Change::Removed(service.id)]);
    let ids: Vec<ServiceId> = stored(storage).into_keys().collect();
    assert_eq!(ids, [ServiceId::from_port(2)]);
}

fn name_is_free(storage: &dyn Storage) {
    let mut store = open_empty(storage);
    store.put(registration(1, "One")).unwrap();
    store.remove(ServiceId::from_port(1)).unwrap();
    let mut other = storage.open();
    other.load().unwrap();
    other.put(registration(2, "one")).unwrap();
    assert_eq!(only_added(&store.changes()).name.as_str(), "one");
}

fn unknown(storage: &dyn Storage) {
    let mut store = open_empty(storage);
    let id = ServiceId::from_port(9);
    for result in [
        store.set_enabled(id, false, None),
        store.set_enabled(id, true, None),
        store.remove(id),
    ] {
        let error = result.unwrap_err();
        assert!(
            matches!(error, StoreError::NotRegistered(found) if found == id),
            "{error:?}"
        );
    }
}

fn concurrent_writers(storage: &dyn Storage) {
    const WRITERS: u32 = 4;
    const EACH: u32 = 5;
    let start = Barrier::new(WRITERS as usize);
    let won: u32 = std::thread::scope(|scope| {
        let write = |n: u32| {
            let (storage, start) = (&storage, &start);
            move || {
                let mut store = storage.open();
                store.load().unwrap();
                start.wait();
                for i in 0..EACH {
                    let port = 1000 + n * 10 + i;
                    let own = registration(port, &format!("own {port}"));
                    store.put(own).unwrap();
                }
                u32::from(store.put(registration(n, "shared")).is_ok())
            }
        };
        let threads: Vec<_> = (0..WRITERS).map(|n| scope.spawn(write(n))).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .sum()
    });
    assert_eq!(won, 1);
    assert_eq!(stored(storage).len() as u32, WRITERS * EACH + 1);
}

fn with_rules() -> Registration {
    let list = |list: &[&str]| Some(list.iter().map(|one| (*one).to_owned()).collect());
    let mut service = registration(1, "Rules");
    service.bind.users = list(&["alice", "1000"]);
    service.connect.partitions = list(&[]);
    service.allow_wildcard_binds = Some(false);
    service
}

fn rules(storage: &dyn Storage) {
    let mut store = open_empty(storage);
    let mut service = with_rules();
    store.put(service.clone()).unwrap();
    assert_eq!(stored(storage)[&service.id].registration, service);
    let web = PartitionName::new("web").unwrap();
    let changes = store.set_enabled(service.id, false, Some(&web)).unwrap();
    service.vm.entry(web.clone()).or_default().enabled = Some(false);
    assert_eq!(only_updated(&changes), &service);
    assert_eq!(stored(storage)[&service.id].registration, service);
    // What is enabled for all is enabled for each.
    let other = PartitionName::new("db").unwrap();
    let changes = store.set_enabled(service.id, true, Some(&other)).unwrap();
    assert_eq!(changes, []);
}

fn no_rules(storage: &dyn Storage) {
    let mut store = open_empty(storage);
    refused(&mut *store, with_rules());
    let plain = registration(1, "Plain");
    store.put(plain.clone()).unwrap();
    let web = PartitionName::new("web").unwrap();
    let error = store.set_enabled(plain.id, false, Some(&web)).unwrap_err();
    assert!(matches!(error, StoreError::Unstorable(_)), "{error:?}");
    assert_eq!(stored(storage)[&plain.id].registration, plain);
}

fn lease(storage: &dyn Storage) {
    let mut store = open_empty(storage);
    let mut service = registration(1, "Lease");
    service.lease = true;
    let changes = store.put(service.clone()).unwrap();
    assert_eq!(only_added(&changes), &service);
    let found = &stored(storage)[&service.id];
    assert_eq!(
        (&found.registration, &found.origin),
        (&service, &Origin::Lease)
    );
}

fn no_lease(storage: &dyn Storage) {
    let mut store = open_empty(storage);
    let mut service = registration(1, "Lease");
    service.lease = true;
    refused(&mut *store, service);
    assert!(stored(storage).is_empty());
}

fn refused(store: &mut dyn RegistrationStore, service: Registration) {
    let error = store.put(service).unwrap_err();
    assert!(matches!(error, StoreError::Unstorable(_)), "{error:?}");
    assert_eq!(store.changes(), []);
}
