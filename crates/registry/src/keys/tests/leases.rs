use super::*;

fn leased(n: u8, name: &str) -> Registration {
    Registration {
        lease: true,
        ..registration(n, name)
    }
}

fn two_processes() -> Fake {
    Fake {
        processes: [(4, 100), (8, 200)].into(),
        myself: 4,
        ..Fake::default()
    }
}

#[test]
fn a_lease_lasts_as_long_as_its_process() {
    let mut store = Store::new(two_processes());
    store.put(&leased(1, "One")).unwrap();
    let listing = store.read().unwrap();
    assert!(listing.registry.get(id(1)).unwrap().lease);
    assert!(matches!(
        store.put(&leased(2, "ONE")),
        Err(KeyError::Clash(_))
    ));

    // Its id now belongs to another process.
    store.keys.processes.insert(4, 300);
    assert_eq!(names(&store.keys), [""; 0]);
    assert!(matches!(
        store.remove(id(1)),
        Err(KeyError::NotRegistered(_))
    ));
    store.keys.processes.remove(&4);
    assert_eq!(names(&store.keys), [""; 0]);
    store.keys.myself = 8;
    store.put(&leased(1, "Other")).unwrap();
    assert_eq!(names(&store.keys), ["Other"]);
    assert_eq!(store.keys.keys.len(), 1);
}

#[test]
fn any_change_clears_what_dead_processes_left() {
    let mut store = Store::new(two_processes());
    store.put(&leased(1, "One")).unwrap();
    store.keys.processes.remove(&4);
    store.put(&registration(2, "Two")).unwrap();
    assert_eq!(store.keys.honoured().len(), 1);
}

#[test]
fn a_process_that_may_not_be_asked_about_keeps_its_lease() {
    let holder = Holder {
        process: 4,
        started: 100,
    };
    assert!(holder.lives(Life::Unknown));
    assert!(holder.lives(Life::Since(100)));
    assert!(!holder.lives(Life::Since(101)));
    assert!(!holder.lives(Life::Gone));
}

#[test]
fn a_lease_is_given_back_when_dropped_unless_another_has_it() {
    let lease = Store::new(two_processes()).lease(&registration(1, "One"));
    let lease = lease.unwrap();
    lease.check().unwrap();
    assert_eq!(lease.id(), id(1));
    drop(lease);

    let mut store = Store::new(two_processes());
    store.put(&leased(1, "One")).unwrap();
    store.keys.myself = 8;
    assert!(!store.is_mine(id(1)).unwrap());
    store.end_lease(id(1)).unwrap();
    assert_eq!(names(&store.keys), ["One"]);
    store.keys.myself = 4;
    assert!(store.is_mine(id(1)).unwrap());
    store.end_lease(id(1)).unwrap();
    assert_eq!(names(&store.keys), [""; 0]);
}

#[test]
fn a_lease_is_neither_switched_off_nor_made_to_last() {
    let mut store = Store::new(two_processes());
    store.put(&leased(1, "One")).unwrap();
    store.put(&registration(2, "Two")).unwrap();
    let said = store.set_enabled(id(1), false).unwrap_err().to_string();
    assert!(said.contains("the process 4"), "{said}");
    for wrong in [registration(1, "One"), leased(2, "Two")] {
        let said = store.replace(&wrong).unwrap_err().to_string();
        assert!(said.contains("does not become"), "{said}");
    }
    store.replace(&leased(1, "Renamed")).unwrap();
    assert!(store.is_mine(id(1)).unwrap());
}

#[test]
fn what_does_not_say_whose_lease_it_is_lasts() {
    let mut fake = two_processes().with(
        &key_of(id(1)),
        &[("ElementName", "One"), ("LeaseProcess", "4")],
    );
    assert_eq!(names(&fake), ["One"]);
    let said = &problems(&fake)[0];
    assert!(said.contains("do not say whose lease it is"), "{said}");
    fake.at(Place::Services, &key_of(id(1))).values.pop();
    assert_eq!(problems(&fake), [""; 0]);
}
