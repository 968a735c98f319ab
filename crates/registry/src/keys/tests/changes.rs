use super::*;
use crate::{AccessRule, Clash, Override};

fn full(n: u8, name: &str) -> Registration {
    Registration {
        owner: Some("CORP\\alice".to_owned()),
        creator: Some("hvsock".to_owned()),
        purpose: Some("an end: é".to_owned()),
        ..registration(n, name)
    }
}

#[test]
fn a_registration_is_listed_as_it_was_put() {
    let off = Registration {
        enabled: false,
        ..full(2, "Sauvegarde à chaud 🔌")
    };
    let mut store = Store::new(Fake::default());
    store.put(&full(1, "One")).unwrap();
    store.put(&off).unwrap();
    let listing = store.read().unwrap();
    assert_eq!(listing.registry.get(id(1)), Some(&full(1, "One")));
    assert_eq!(listing.registry.get(id(2)), Some(&off));
    assert_eq!(listing.problems, [""; 0]);
    let honoured = store.backend.honoured();
    assert_eq!(
        honoured.into_keys().collect::<Vec<_>>(),
        [id(1).to_string()]
    );
    let key = store.backend.at(KeyLocation::Services, &key_of(id(1)));
    assert_eq!(key.name, key_of(id(1)));
}

#[test]
fn a_taken_id_name_or_port_is_refused() {
    let mut store = Store::new(Fake::default().with(
        "00000400-FACB-11E6-BD58-64006A7986D3",
        &[("ToolName", "podman"), ("Purpose", "Network")],
    ));
    store.put(&full(1, "One")).unwrap();
    store.set_enabled(id(1), false).unwrap();
    let clash = |store: &mut Store<Fake>, new: &Registration| match store.put(new) {
        Err(KeyError::Clash(clash)) => clash,
        other => panic!("{other:?}"),
    };
    assert!(matches!(
        clash(&mut store, &full(1, "Two")),
        Clash::Id { .. }
    ));
    assert!(matches!(
        clash(&mut store, &full(2, "ONE")),
        Clash::Name { .. }
    ));
    let port = Registration::new(ServiceId::from_port(1024), full(2, "Port").name);
    let port = clash(&mut store, &port);
    let message = port.to_string();
    assert!(matches!(port, Clash::Port { port: 1024, .. }));
    assert!(
        message.contains("\"podman Network\" (owner unknown, creator podman)"),
        "{message}"
    );
    let alias = ServiceId::from_port(id(1).vsock_alias().unwrap());
    let alias = Registration::new(alias, full(2, "Alias").name);
    assert!(matches!(clash(&mut store, &alias), Clash::Port { .. }));
    let [shipped, _] = Registration::in_box();
    let mine = Registration::new(shipped.id, full(2, "Mine").name);
    let message = clash(&mut store, &mine).to_string();
    assert!(message.contains("Microsoft"), "{message}");
    let named = full(3, "VM Session Service-2");
    assert!(matches!(clash(&mut store, &named), Clash::Name { .. }));
    assert_eq!(names(&store.backend), ["One (off)", "podman Network"]);
}

#[test]
fn settings_that_windows_cannot_store_are_refused_not_dropped() {
    let deny_all = AccessRule {
        users: Some(Vec::new()),
        ..AccessRule::default()
    };
    let vm = ("web".parse().unwrap(), Override::default());
    let plain = full(1, "One");
    for (new, why) in [
        (
            Registration {
                bind: deny_all.clone(),
                ..plain.clone()
            },
            "access rules",
        ),
        (
            Registration {
                connect: deny_all,
                ..plain.clone()
            },
            "access rules",
        ),
        (
            Registration {
                allow_wildcard_binds: Some(true),
                ..plain.clone()
            },
            "wildcard",
        ),
        (
            Registration {
                vm: [vm].into(),
                ..plain.clone()
            },
            "virtual machine web",
        ),
        (
            Registration {
                lease: true,
                enabled: false,
                ..plain.clone()
            },
            "lease",
        ),
        (
            Registration {
                owner: Some("a\0b".to_owned()),
                ..plain.clone()
            },
            "Owner contains",
        ),
        (
            Registration {
                purpose: Some(String::new()),
                ..plain.clone()
            },
            "Purpose must not",
        ),
    ] {
        let (fake, result) = after(&Fake::default(), |store| store.put(&new));
        match result {
            Err(KeyError::Unstorable(message)) => assert!(message.contains(why), "{message}"),
            other => panic!("{why}: {other:?}"),
        }
        assert_eq!(fake, Fake::default());
        let there = after(&fake, |store| store.put(&plain)).0;
        let replaced = after(&there, |store| store.replace(&new));
        assert!(matches!(replaced.1, Err(KeyError::Unstorable(_))), "{why}");
        assert_eq!(replaced.0, there);
    }
}

#[test]
fn disabling_moves_the_key_with_all_its_values() {
    let braces = format!("{{{}}}", id(1));
    let mut fake = Fake::default().with(&braces, &[("ElementName", "One"), ("ToolName", "x")]);
    let unknown_type = RawValue {
        name: "Other".to_owned(),
        kind: 77,
        data: vec![1, 2, 3],
    };
    fake.at(KeyLocation::Services, &braces)
        .values
        .push(unknown_type);
    let before = fake.clone();
    let mut store = Store::new(fake);
    store.set_enabled(id(1), false).unwrap();
    assert_eq!(names(&store.backend), ["One (off)"]);
    assert!(store.backend.honoured().is_empty());
    store.set_enabled(id(1), false).unwrap();
    store.set_enabled(id(1), true).unwrap();
    assert_eq!(store.backend, before);
}

#[test]
fn a_key_that_cannot_be_copied_completely_is_not_moved() {
    let mut fake = Fake::default().with(&key_of(id(1)), &[("ElementName", "One")]);
    let stays = |fake: &Fake, why: &str| {
        let (same, result) = after(fake, |store| store.set_enabled(id(1), false));
        let message = result.unwrap_err().to_string();
        assert!(message.contains(why), "{message}");
        assert_eq!(same, *fake);
    };
    fake.at(KeyLocation::Services, &key_of(id(1))).subkeys = 1;
    stays(&fake, "it has subkeys");
    let left_out = &mut fake.at(KeyLocation::Services, &key_of(id(1))).left_out;
    left_out.push(skipped_value("Big", 1 << 20));
    stays(&fake, "the value \"Big\" of 1048576 bytes");
    assert_eq!(problems(&fake).len(), 1);
    let (fake, removed) = after(&fake, |store| store.remove(id(1)));
    removed.unwrap();
    assert_eq!(names(&fake), [""; 0]);
}

#[test]
fn replacing_changes_what_differs_and_keeps_the_rest() {
    let podman = [
        ("Purpose", "Network"),
        ("ToolName", "podman"),
        ("Other", "o"),
    ];
    let mut store = Store::new(Fake::default().with(&key_of(id(1)), &podman));
    let listed = |store: &Store<Fake>| {
        let listing = store.read().unwrap();
        listing.registry.get(id(1)).unwrap().clone()
    };
    let before = store.backend.clone();
    let mut new = listed(&store);
    store.replace(&new).unwrap();
    assert_eq!(store.backend, before, "nothing differs");
    for change in [
        (|new| new.name = ElementName::new("Named").unwrap()) as fn(&mut Registration),
        |new| new.owner = Some("alice".to_owned()),
        |new| new.purpose = None,
        |new| new.creator = Some("me".to_owned()),
        |new| new.enabled = false,
        |new| new.creator = None,
        |new| (new.enabled, new.owner) = (true, None),
    ] {
        change(&mut new);
        store.replace(&new).unwrap();
        assert_eq!(listed(&store), new);
    }
    let key = store.backend.at(KeyLocation::Services, &key_of(id(1)));
    let mut left: Vec<&str> = key.values.iter().map(|value| &*value.name).collect();
    left.sort_unstable();
    assert_eq!(left, ["ElementName", "Other"]);

    store.put(&full(2, "Two")).unwrap();
    let taken = Registration {
        name: full(2, "two").name,
        ..new
    };
    assert!(matches!(store.replace(&taken), Err(KeyError::Clash(_))));
    assert!(matches!(
        store.replace(&full(3, "x")),
        Err(KeyError::NotRegistered(_))
    ));
}

#[test]
fn in_box_and_missing_services_cannot_be_changed() {
    let mut store = Store::new(Fake::default());
    let [shipped, _] = Registration::in_box();
    for result in [
        store.remove(shipped.id),
        store.set_enabled(shipped.id, false),
        store.replace(&Registration {
            owner: None,
            ..shipped.clone()
        }),
    ] {
        let message = result.unwrap_err().to_string();
        assert!(message.contains("a service of Windows itself"), "{message}");
    }
    for result in [store.remove(id(1)), store.set_enabled(id(1), true)] {
        assert!(matches!(result, Err(KeyError::NotRegistered(_))));
    }
}

#[test]
fn the_error_for_denied_access_requires_an_administrator() {
    let fake = Fake {
        denied: true,
        ..Fake::default()
    };
    let (_, result) = after(&fake, |store| store.put(&full(1, "One")));
    let error = result.unwrap_err();
    assert!(matches!(error, KeyError::Denied { .. }));
    assert!(
        error.to_string().contains("run this as administrator"),
        "{error}"
    );
}

#[test]
fn a_truncated_snapshot_accepts_no_new_service() {
    let snapshot = Snapshot {
        truncated: true,
        ..Snapshot::default()
    };
    let inventory = inventory::Inventory::new(snapshot, |_| ProcessState::Gone);
    let full = inventory.put(&full(1, "One"), None);
    assert!(matches!(full, Err(KeyError::Limit(MAX_SERVICES))));
}
