//! Arenas that one broker hands over to another.

use hvsock_ring::{
    ARENA_MONITOR_SNAPSHOT_VERSION, ArenaMonitor, ArenaMonitorSnapshot, Grant, OpenError,
    RingError, RingSide, SnapshotError,
};
use hvsock_testkit::json_edits::Edit;
use proptest::collection::vec;
use proptest::prelude::*;

use crate::pair::{Pair, pair};

fn restore(pair: &Pair, snapshot: ArenaMonitorSnapshot) -> Result<ArenaMonitor, SnapshotError> {
    let [memory, grant] = [pair.monitor.memory(), pair.monitor.grant_memory()];
    let [memory, grant] = [memory, grant].map(|fd| fd.try_clone_to_owned().unwrap());
    ArenaMonitor::restore(snapshot, memory, grant)
}

#[test]
fn after_a_handover_what_is_open_or_queued_goes_on_and_a_connect_asks_the_broker() {
    let mut pair = pair(4, 4, 4);
    let (client, server, id) = pair.connect();
    let queued = pair.client.connect().unwrap();
    client.try_write(b"before").unwrap();
    pair.monitor.prepare_handover();
    pair.take_over();
    assert!(!pair.monitor.can_grant());
    assert_eq!(pair.client.connect().unwrap_err(), OpenError::Revoked);
    let accepted = pair.server.accept().unwrap().unwrap();
    assert_eq!(accepted.id, queued.id);
    assert!(pair.server.accept().unwrap().is_none());
    let mut buffer = [0; 8];
    assert_eq!(server.try_read(&mut buffer), Ok(6));
    server.try_write(b"after").unwrap();
    assert_eq!(client.try_read(&mut buffer), Ok(5));
    // The new broker's orders arrive, and its counts go on.
    pair.monitor.suspend(id, true);
    client.try_write(b"held").unwrap();
    assert_eq!(server.try_read(&mut buffer), Err(RingError::WouldBlock));
    pair.monitor.suspend(id, false);
    assert_eq!(server.try_read(&mut buffer), Ok(4));
    assert_eq!(pair.monitor.connection(id).unwrap().written, [10, 5]);
    pair.monitor.set_grant(Grant::Granted);
    assert_eq!(pair.client.connect().unwrap_err(), OpenError::Revoked);
    pair.monitor.close_end(RingSide::First);
    assert_eq!(server.try_read(&mut buffer), Err(RingError::Reset));
}

#[test]
fn a_handover_that_fails_leaves_the_arena_as_it_was() {
    let pair = pair(4, 4, 4);
    for _ in 0..2 {
        let queued = pair.client.connect().unwrap();
        pair.monitor.prepare_handover();
        assert_eq!(pair.client.connect().unwrap_err(), OpenError::Revoked);
        assert_eq!(pair.monitor.grant(), Grant::Granted);
        pair.monitor.keep();
        let more = pair.client.connect().unwrap();
        for id in [queued.id, more.id] {
            assert_eq!(pair.server.accept().unwrap().unwrap().id, id);
        }
    }
}

#[test]
fn what_happens_to_the_grant_while_a_handover_is_prepared_holds_afterwards() {
    let suspended = pair(4, 4, 4);
    suspended.monitor.prepare_handover();
    suspended.monitor.set_grant(Grant::Suspended);
    suspended.monitor.keep();
    assert_eq!(
        suspended.client.connect().unwrap_err(),
        OpenError::Suspended
    );

    // The client's process ends meanwhile: what it has connected before is accepted.
    let gone = pair(4, 4, 4);
    let _queued = gone.client.connect().unwrap();
    gone.monitor.prepare_handover();
    gone.monitor.close_end(RingSide::First);
    gone.monitor.set_grant(Grant::Revoked);
    gone.monitor.keep();
    assert!(gone.server.accept().unwrap().is_some());
}

#[test]
fn a_broker_that_took_over_can_forbid_what_is_in_the_queue() {
    let mut pair = pair(4, 4, 4);
    let _queued = pair.client.connect().unwrap();
    pair.monitor.prepare_handover();
    pair.take_over();
    pair.monitor.withdraw_left();
    assert!(pair.server.accept().unwrap().is_none());
}

#[test]
fn what_is_in_the_queue_of_a_revoked_arena_is_not_accepted_after_a_handover() {
    let mut pair = pair(4, 4, 4);
    let _queued = pair.client.connect().unwrap();
    pair.monitor.set_grant(Grant::Revoked);
    pair.monitor.prepare_handover();
    pair.take_over();
    assert!(pair.server.accept().unwrap().is_none());
}

#[test]
fn claims_that_were_read_are_not_taken_back_after_a_handover() {
    let mut pair = pair(4, 4, 4);
    let (client, _server, id) = pair.connect();
    client.try_write(&[0; 1000]).unwrap();
    client.shutdown_write();
    let before = pair.monitor.connection(id).unwrap();
    // The head and the end of the client's direction.
    let header = 0xF000 + 2048 * u64::from(id.slot);
    let file = std::os::unix::fs::FileExt::write_all_at;
    file(&pair.memory, &[0; 8], header + 128).unwrap();
    file(&pair.memory, &[0; 4], header + 128 + 512).unwrap();
    pair.monitor.prepare_handover();
    pair.take_over();
    assert_eq!(pair.monitor.connection(id).unwrap(), before);
}

/// As `snapshots_of_all_versions_can_be_restored` of `tests/snapshot.rs`.
#[test]
fn arena_snapshots_of_all_versions_can_be_restored() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/snapshots");
    let pair = pair(4, 4, 4);
    let _first = pair.connect();
    let (client, server, id) = pair.connect();
    client.try_write(&[1; 100]).unwrap();
    server.try_write(&[1; 7]).unwrap();
    server.shutdown_write();
    pair.monitor.scan();
    let _queued = pair.client.connect().unwrap();
    pair.monitor.totals();
    pair.monitor.prepare_handover();
    let written = serde_json::to_string_pretty(&pair.monitor.snapshot()).unwrap() + "\n";
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        let path = format!("{folder}/arena_monitor-{ARENA_MONITOR_SNAPSHOT_VERSION}.json");
        std::fs::write(path, &written).unwrap();
    }
    let mut last = String::new();
    for version in 1..=ARENA_MONITOR_SNAPSHOT_VERSION {
        last = std::fs::read_to_string(format!("{folder}/arena_monitor-{version}.json")).unwrap();
        let monitor = restore(&pair, serde_json::from_str(&last).unwrap()).unwrap();
        let view = monitor.connection(id).unwrap();
        assert_eq!((view.written, view.ended), ([100, 7], [false, true]));
        assert_eq!(monitor.totals().opened, 3);
    }
    // The format of the newest version does not change any more.
    assert_eq!(written, last);
}

#[test]
fn an_unknown_version_and_memory_that_is_no_arena_are_refused() {
    let text = r#"{"version": 2, "ends": []}"#;
    let error = serde_json::from_str::<ArenaMonitorSnapshot>(text).unwrap_err();
    let want = "the snapshot has version 2; this release reads version 1";
    assert!(error.to_string().starts_with(want), "{error}");
    let pair = pair(4, 4, 4);
    let other = || std::fs::File::open("/proc/self/exe").unwrap().into();
    let memory = || pair.monitor.memory().try_clone_to_owned().unwrap();
    let grant = || pair.monitor.grant_memory().try_clone_to_owned().unwrap();
    for [memory, grant] in [[other(), grant()], [memory(), other()], [grant(), memory()]] {
        let error = ArenaMonitor::restore(pair.monitor.snapshot(), memory, grant).unwrap_err();
        assert!(matches!(error, SnapshotError::Memory(_)), "{error}");
    }
}

proptest! {
    #[test]
    fn a_damaged_arena_snapshot_is_refused_or_harmless(
        edits in vec((any::<u32>(), any::<u8>(), any::<u64>()), 1..4),
    ) {
        let mut pair = pair(4, 4, 4);
        let (client, _server, id) = pair.connect();
        client.try_write(b"bytes").unwrap();
        pair.monitor.scan();
        pair.monitor.prepare_handover();
        let mut value = serde_json::to_value(pair.monitor.snapshot()).unwrap();
        for (node, kind, number) in edits {
            Edit { node, kind, value: number }.apply(&mut value);
        }
        let Ok(snapshot) = serde_json::from_value::<ArenaMonitorSnapshot>(value) else {
            return Ok(());
        };
        let Ok(monitor) = restore(&pair, snapshot) else {
            return Ok(());
        };
        pair.monitor = monitor;
        prop_assert!(pair.monitor.scan().len() <= 4);
        pair.monitor.totals();
        pair.monitor.suspend_all(true);
        pair.monitor.reset(id, hvsock_ring::ResetCause::Control);
        pair.take_over();
    }
}
