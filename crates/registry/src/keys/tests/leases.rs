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
        current_pid: 4,
        ..Fake::default()
    }
}

#[test]
fn a_lease_expires_with_its_process() {
    let mut store = Store::new(two_processes());
    store.put(&leased(1, "One")).unwrap();
    let listing = store.read().unwrap();
    assert!(listing.registry.get(id(1)).unwrap().lease);
    assert!(matches!(
        store.put(&leased(2, "ONE")),
        Err(KeyError::Clash(_))
    ));

    // The process id is reused.
    store.backend.processes.insert(4, 300);
    assert_eq!(names(&store.backend), [""; 0]);
    assert!(matches!(
        store.remove(id(1)),
        Err(KeyError::NotRegistered(_))
    ));
    store.backend.processes.remove(&4);
    assert_eq!(names(&store.backend), [""; 0]);
    store.backend.current_pid = 8;
    store.put(&leased(1, "Other")).unwrap();
    assert_eq!(names(&store.backend), ["Other"]);
    assert_eq!(store.backend.keys.len(), 1);
}

#[test]
fn any_change_deletes_expired_leases() {
    let mut store = Store::new(two_processes());
    store.put(&leased(1, "One")).unwrap();
    store.backend.processes.remove(&4);
    store.put(&registration(2, "Two")).unwrap();
    assert_eq!(store.backend.honoured().len(), 1);
}

#[test]
fn a_process_of_unknown_start_time_keeps_its_lease() {
    let holder = LeaseHolder {
        process: 4,
        started: 100,
    };
    assert!(holder.is_running(ProcessState::Unknown));
    assert!(holder.is_running(ProcessState::StartedAt(100)));
    assert!(!holder.is_running(ProcessState::StartedAt(101)));
    assert!(!holder.is_running(ProcessState::Gone));
}

#[test]
fn dropping_a_lease_unregisters_it_unless_another_process_holds_it() {
    let lease = Store::new(two_processes()).lease(&registration(1, "One"));
    let lease = lease.unwrap();
    lease.check().unwrap();
    assert_eq!(lease.id(), id(1));
    drop(lease);

    let mut store = Store::new(two_processes());
    store.put(&leased(1, "One")).unwrap();
    store.backend.current_pid = 8;
    assert!(!store.is_held(id(1)).unwrap());
    store.end_lease(id(1)).unwrap();
    assert_eq!(names(&store.backend), ["One"]);
    store.backend.current_pid = 4;
    assert!(store.is_held(id(1)).unwrap());
    store.end_lease(id(1)).unwrap();
    assert_eq!(names(&store.backend), [""; 0]);
}

#[test]
fn a_lease_cannot_be_disabled_or_made_permanent() {
    let mut store = Store::new(two_processes());
    store.put(&leased(1, "One")).unwrap();
    store.put(&registration(2, "Two")).unwrap();
    let message = store.set_enabled(id(1), false).unwrap_err().to_string();
    assert!(message.contains("the process 4"), "{message}");
    for wrong in [registration(1, "One"), leased(2, "Two")] {
        let message = store.replace(&wrong).unwrap_err().to_string();
        assert!(message.contains("cannot become"), "{message}");
    }
    store.replace(&leased(1, "Renamed")).unwrap();
    assert!(store.is_held(id(1)).unwrap());
}

#[test]
fn a_lease_without_a_valid_holder_counts_as_permanent() {
    let mut fake = two_processes().with(
        &key_of(id(1)),
        &[("ElementName", "One"), ("LeaseProcess", "4")],
    );
    assert_eq!(names(&fake), ["One"]);
    let message = &problems(&fake)[0];
    assert!(message.contains("do not identify a process"), "{message}");
    fake.at(KeyLocation::Services, &key_of(id(1))).values.pop();
    assert_eq!(problems(&fake), [""; 0]);
}
