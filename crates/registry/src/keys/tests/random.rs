use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// One operation, with few services and names to provoke clashes.
#[derive(Clone, Debug)]
enum Op {
    Put {
        n: u8,
        name: usize,
        enabled: bool,
        lease: bool,
    },
    Replace {
        n: u8,
        name: usize,
        enabled: bool,
    },
    SetEnabled(u8, bool),
    Remove(u8),
    /// The process ends, and a new one gets its id.
    Restart,
}

const NAMES: [&str; 4] = ["a", "A", "b", "É"];

fn op() -> impl Strategy<Value = Op> {
    let n = 1..5u8;
    let name = 0..NAMES.len();
    let on = any::<bool>();
    prop_oneof![
        4 => (n.clone(), name.clone(), on, on)
            .prop_map(|(n, name, enabled, lease)| Op::Put { n, name, enabled, lease }),
        2 => (n.clone(), name, on).prop_map(|(n, name, enabled)| Op::Replace { n, name, enabled }),
        2 => (n.clone(), on).prop_map(|(n, on)| Op::SetEnabled(n, on)),
        2 => n.prop_map(Op::Remove),
        1 => Just(Op::Restart),
    ]
}

fn entry(n: u8, name: usize, enabled: bool, lease: bool) -> Registration {
    Registration {
        enabled,
        lease,
        ..registration(n, NAMES[name])
    }
}

/// The reference model: a plain list. An error changes nothing.
fn reference(list: &mut BTreeMap<ServiceId, Registration>, op: &Op) -> Result<(), ()> {
    let taken = |list: &BTreeMap<ServiceId, Registration>, new: &Registration| {
        let mut others = list.values().filter(|other| other.id != new.id);
        others.any(|other| other.name.folded() == new.name.folded())
    };
    match *op {
        Op::Put {
            n,
            name,
            enabled,
            lease,
        } => {
            let new = entry(n, name, enabled, lease);
            if lease && !enabled || list.contains_key(&new.id) || taken(list, &new) {
                return Err(());
            }
            list.insert(new.id, new);
        }
        Op::Replace { n, name, enabled } => {
            let new = entry(n, name, enabled, false);
            let permanent = list.get(&new.id).is_some_and(|old| !old.lease);
            if !permanent || taken(list, &new) {
                return Err(());
            }
            list.insert(new.id, new);
        }
        Op::SetEnabled(n, enabled) => {
            let old = list.get_mut(&id(n)).ok_or(())?;
            if old.lease && !enabled {
                return Err(());
            }
            old.enabled = enabled;
        }
        Op::Remove(n) => drop(list.remove(&id(n)).ok_or(())?),
        Op::Restart => list.retain(|_, one| !one.lease),
    }
    Ok(())
}

fn perform(store: &mut Store<Fake>, op: &Op) -> Result<(), KeyError> {
    match *op {
        Op::Put {
            n,
            name,
            enabled,
            lease,
        } => store.put(&entry(n, name, enabled, lease)),
        Op::Replace { n, name, enabled } => store.replace(&entry(n, name, enabled, false)),
        Op::SetEnabled(n, enabled) => store.set_enabled(id(n), enabled),
        Op::Remove(n) => store.remove(id(n)),
        Op::Restart => {
            *store.backend.processes.entry(4).or_default() += 1;
            Ok(())
        }
    }
}

proptest! {
    /// Random operations in random order, with a crash after a random step.
    #[test]
    fn the_store_behaves_like_a_list(ops in vec((op(), proptest::option::of(0..8usize)), 0..40)) {
        let mut list = BTreeMap::new();
        let mut store = Store::new(Fake {
            processes: [(4, 100)].into(),
            current_pid: 4,
            ..Fake::default()
        });
        for (op, killed_after) in ops {
            let before = list.clone();
            let want = reference(&mut list, &op);
            store.backend.steps_left = killed_after;
            let got = perform(&mut store, &op);
            store.backend.steps_left = None;
            let killed = matches!(got, Err(KeyError::Busy(_)));
            if !killed {
                prop_assert_eq!(got.is_ok(), want.is_ok(), "{:?}: {:?}", op, got);
            }
            let listing = store.read().unwrap();
            let mut is: BTreeMap<_, _> = BTreeMap::new();
            is.extend(listing.registry.iter().map(|one| (one.id, one.clone())));
            if killed && is != list {
                prop_assert_eq!(&is, &before, "{:?}", op);
                list = before;
            }
            prop_assert_eq!(&is, &list, "{:?}", op);
            prop_assert_eq!(&listing.problems, &[""; 0]);
            // Windows honours the enabled services (and expired leases).
            let honoured = store.backend.honoured();
            for one in list.values() {
                let there = honoured.contains_key(&one.id.to_string());
                prop_assert_eq!(there, one.enabled, "{:?}", one);
            }
        }
    }
}

/// A key name, mostly one of few GUIDs in a random spelling.
fn name() -> impl Strategy<Value = String> {
    let [shipped, _] = Registration::in_box();
    prop_oneof![
        4 => (1..5u8).prop_map(|n| key_of(id(n))),
        1 => (1..5u8).prop_map(|n| format!("{{{}}}", id(n))),
        1 => Just(STAGE.to_owned()),
        1 => Just(shipped.id.to_string()),
        1 => any::<String>(),
    ]
}

fn value() -> impl Strategy<Value = RawValue> {
    let known = [
        "ElementName",
        "owner",
        "Creator",
        "ToolName",
        "LeaseProcess",
        "LeaseStarted",
    ];
    let name = prop_oneof![
        4 => (0..known.len()).prop_map(move |n| known[n].to_owned()),
        1 => any::<String>(),
    ];
    let text = |text: String| RawValue::text("", &text).data;
    let data = prop_oneof![
        "[abAB]{0,3}".prop_map(text),
        any::<String>().prop_map(text),
        vec(any::<u8>(), 0..12),
    ];
    (name, 0..12u32, data).prop_map(|(name, kind, data)| RawValue { name, kind, data })
}

fn keys() -> impl Strategy<Value = Vec<RawKey>> {
    let key = (name(), vec(value(), 0..6), 0..2usize).prop_map(|(name, values, subkeys)| RawKey {
        name,
        values,
        subkeys,
        left_out: Vec::new(),
    });
    vec(key, 0..8)
}

proptest! {
    /// Arbitrary keys cause no panic. A listed service cannot be added again, and removing it leaves
    /// no key behind.
    #[test]
    fn arbitrary_keys_are_listed_or_reported_and_can_be_removed(services in keys(), disabled in keys()) {
        let mut fake = Fake::default();
        for (location, keys) in [(KeyLocation::Services, services), (KeyLocation::Disabled, disabled)] {
            for key in keys {
                fake.keys.insert((location, key.name.to_lowercase()), key);
            }
        }
        let mut store = Store::new(fake);
        let listing = store.read().unwrap();
        for n in 1..5 {
            let mine = |key: &RawKey| key_name::service_id(&key.name) == Some(id(n));
            let there = store.backend.keys.values().any(mine);
            let new = Registration::new(id(n), ElementName::new("new").unwrap());
            let refused = after(&store.backend, |store| store.put(&new)).1.is_err();
            let listed = listing.registry.get(id(n)).is_some();
            prop_assert!(there || !listed);
            if listed {
                prop_assert!(refused);
                store.remove(id(n)).unwrap();
                prop_assert!(!store.backend.keys.values().any(mine));
            }
        }
    }
}
