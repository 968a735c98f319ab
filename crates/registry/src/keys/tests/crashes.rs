use super::*;

/// One change, by name.
type Change = (&'static str, fn(&mut Store<Fake>) -> Result<(), KeyError>);

/// Every kind of change, applied to the registry of [`before`].
const CHANGES: [Change; 10] = [
    ("put", |store| {
        store.put(&with_texts(registration(9, "Nine")))
    }),
    ("put off", |store| {
        let off = Registration {
            enabled: false,
            ..registration(9, "Nine")
        };
        store.put(&off)
    }),
    ("lease", |store| {
        let lease = Registration {
            lease: true,
            ..registration(9, "Nine")
        };
        store.put(&lease)
    }),
    ("disable", |store| store.set_enabled(id(1), false)),
    ("enable", |store| store.set_enabled(id(2), true)),
    ("remove", |store| store.remove(id(1))),
    ("remove off", |store| store.remove(id(2))),
    ("remove twice spelled", |store| store.remove(id(3))),
    ("replace and disable", |store| {
        let off = Registration {
            enabled: false,
            ..registration(1, "New")
        };
        store.replace(&off)
    }),
    ("replace and enable", |store| {
        store.replace(&registration(2, "New"))
    }),
];

fn with_texts(registration: Registration) -> Registration {
    Registration {
        owner: Some("alice".to_owned()),
        creator: Some("hvsock".to_owned()),
        purpose: Some("an end".to_owned()),
        ..registration
    }
}

/// An enabled service, a disabled one, one with two keys, an expired lease, a leftover disabled key of
/// an enabled service, and the staging keys of two crashed writers.
fn before() -> Fake {
    let mut fake = Fake {
        processes: [(4, 100)].into(),
        current_pid: 4,
        ..Fake::default()
    };
    let mut store = Store::new(fake);
    store.put(&with_texts(registration(1, "One"))).unwrap();
    store.put(&with_texts(registration(2, "Two"))).unwrap();
    store.set_enabled(id(2), false).unwrap();
    store.put(&registration(3, "Three")).unwrap();
    let lease = Registration {
        lease: true,
        ..registration(4, "Four")
    };
    store.put(&lease).unwrap();
    fake = store.backend;
    fake.processes = [(4, 101)].into();
    let braces = format!("{{{}}}", id(3));
    fake.add(KeyLocation::Services, &braces, &[("ElementName", "Twin")]);
    fake.add(
        KeyLocation::Disabled,
        &key_of(id(1)),
        &[("ElementName", "Old")],
    );
    for location in [KeyLocation::Services, KeyLocation::Disabled] {
        fake.add(location, STAGE, &[("Owner", "half")]);
    }
    fake
}

/// The listing, and the services that Windows honours without expired leases.
fn seen(fake: &Fake) -> (Vec<Registration>, Vec<(String, Option<RawValue>)>) {
    let listing = Store::new(fake.clone()).read().unwrap();
    let mut honoured = fake.honoured();
    honoured.remove(&id(4).to_string());
    honoured.remove(&format!("{{{}}}", id(3)));
    (
        listing.registry.iter().cloned().collect(),
        honoured.into_iter().collect(),
    )
}

#[test]
fn a_crash_after_any_step_leaves_the_old_or_the_new_state() {
    for (name, change) in CHANGES {
        let old = before();
        let (new, done) = after(&old, change);
        done.unwrap();
        assert!(new.keys.values().all(|key| key.name != STAGE), "{name}");
        let mut steps = 0;
        let mut was_new = false;
        loop {
            let mut crashing = old.clone();
            crashing.steps_left = Some(steps);
            let (mut crashed, result) = after(&crashing, change);
            crashed.steps_left = None;
            let now = seen(&crashed);
            let is_new = now == seen(&new);
            assert!(
                is_new || now == seen(&old),
                "{name}, {steps} steps: {now:?}"
            );
            assert!(is_new || !was_new, "{name}: undone by step {steps}");
            was_new = is_new;
            // The next attempt completes the change, or finds it complete.
            let (again, second) = after(&crashed, change);
            match second {
                Ok(()) => assert_eq!(seen(&again), seen(&new), "{name}, {steps} steps"),
                Err(_) => assert!(is_new, "{name}, {steps} steps: {second:?}"),
            }
            let (next, put) = after(&crashed, |store| store.put(&registration(20, "Next")));
            put.unwrap();
            assert!(next.keys.values().all(|key| key.name != STAGE), "{name}");
            assert!(!next.honoured().contains_key(&id(4).to_string()), "{name}");
            if result.is_ok() {
                break;
            }
            steps += 1;
        }
        assert!(was_new && steps > 1, "{name} took {steps} steps");
    }
}

#[test]
fn a_failed_step_leaves_no_staging_key() {
    for (name, change) in CHANGES {
        let (new, _) = after(&before(), change);
        for steps in 0.. {
            let mut refusing = before();
            refusing.fail_at = Some(steps);
            let (now, result) = after(&refusing, change);
            let seen_now = seen(&now);
            let right = seen_now == seen(&before()) || seen_now == seen(&new);
            assert!(right, "{name}, {steps} steps: {seen_now:?}");
            let left = now.keys.values().any(|key| key.name == STAGE);
            assert!(!left, "{name}, {steps} steps");
            if result.is_ok() {
                assert!(seen_now == seen(&new) && now.fail_at.is_some(), "{name}");
                break;
            }
        }
    }
}

#[test]
fn a_crash_during_replace_leaves_the_old_or_the_new_name() {
    let old = before();
    let new = Registration {
        owner: Some("bob".to_owned()),
        creator: None,
        ..registration(1, "New")
    };
    let mut steps = 0;
    loop {
        let mut crashing = old.clone();
        crashing.steps_left = Some(steps);
        let (mut crashed, result) = after(&crashing, |store| store.replace(&new));
        crashed.steps_left = None;
        let listing = Store::new(crashed.clone()).read().unwrap();
        let is = listing.registry.get(id(1)).unwrap();
        match is.name.as_str() {
            // The name is set last.
            "New" => assert_eq!(*is, new),
            name => assert_eq!(name, "One", "{steps} steps"),
        }
        let (again, second) = after(&crashed, |store| store.replace(&new));
        second.unwrap();
        let listing = Store::new(again).read().unwrap();
        assert_eq!(listing.registry.get(id(1)), Some(&new));
        if result.is_ok() {
            assert_eq!(*is, new);
            break;
        }
        steps += 1;
    }
    assert!(steps >= 4, "{steps}");
}
