//! A client that another process goes on with: what it has in private memory comes again from its snapshot.

use std::collections::BTreeMap;
use std::sync::Arc;

use hvsock_ring::{
    ARENA_CLIENT_SNAPSHOT_VERSION, ArenaClient, ArenaClientSnapshot, ArenaLimits, ArenaMonitor,
    ArenaParts, ArenaServer, Doorbells, OpenError, Opened, RingEnd, RingEndSnapshot, RingError,
    RingSize, SlotId, SnapshotError,
};
use hvsock_testkit::json_edits::Edit;
use proptest::collection::vec;
use proptest::prelude::*;

const SLOTS: u32 = 4;

/// A client whose process is replaced now and then, and its server.
struct World {
    client: ArenaClient,
    server: ArenaServer,
    monitor: ArenaMonitor,
    doorbells: Doorbells,
    open: BTreeMap<u32, Connection>,
    next: u32,
}

struct Connection {
    id: SlotId,
    client: RingEnd,
    server: RingEnd,
    /// Bytes written and read, from the client and from the server.
    written: [u64; 2],
    read: [u64; 2],
}

fn copy(doorbells: &Doorbells) -> Doorbells {
    Doorbells {
        own: doorbells.own.try_clone().unwrap(),
        peer: doorbells.peer.try_clone().unwrap(),
    }
}

fn json<T: serde::Serialize + serde::de::DeserializeOwned>(value: &T) -> T {
    serde_json::from_str(&serde_json::to_string(value).unwrap()).unwrap()
}

impl World {
    fn new() -> Self {
        let limits = ArenaLimits {
            slots: SLOTS,
            ring: RingSize::MIN,
        };
        let parts = ArenaParts::new(limits, SLOTS, SLOTS).unwrap();
        let (memory, grant, nobody) = (&parts.memory, &parts.grant, || Arc::new(|| {}));
        let doorbells = copy(&parts.client);
        Self {
            client: ArenaClient::open(memory, grant, parts.client, nobody()).unwrap(),
            server: ArenaServer::open(memory, grant, parts.server, nobody()).unwrap(),
            monitor: parts.monitor,
            doorbells,
            open: BTreeMap::new(),
            next: 0,
        }
    }

    fn connect(&mut self) {
        let Opened { end, id, .. } = match self.client.connect() {
            Ok(opened) => opened,
            Err(error) => return assert_eq!(error, OpenError::NoSlot),
        };
        let accepted = self.server.accept().unwrap().unwrap();
        assert_eq!(accepted.id, id);
        self.open.insert(
            self.next,
            Connection {
                id,
                client: end,
                server: accepted.end,
                written: [0; 2],
                read: [0; 2],
            },
        );
        self.next += 1;
    }

    /// A copy of the client, as of the process that takes over, without its ends.
    fn restored(&self, snapshot: ArenaClientSnapshot) -> Result<ArenaClient, SnapshotError> {
        let (memory, grant) = (self.monitor.memory(), self.monitor.grant_memory());
        ArenaClient::restore(
            snapshot,
            memory,
            grant,
            copy(&self.doorbells),
            Arc::new(|| {}),
        )
    }

    /// As the client's process leaves to another one.
    fn hand_over(&mut self) {
        let client = self.restored(json(&self.client.snapshot())).unwrap();
        assert_eq!(client.has_all_ends(), self.open.is_empty());
        for connection in self.open.values_mut() {
            let snapshot = json(&connection.client.snapshot());
            let end = client.restore_end(connection.id, snapshot).unwrap();
            std::mem::forget(std::mem::replace(&mut connection.client, end));
        }
        assert!(client.has_all_ends());
        assert_eq!(client.snapshot(), self.client.snapshot());
        std::mem::forget(std::mem::replace(&mut self.client, client));
        for connection in self.open.values() {
            connection.client.wake();
        }
    }

    /// As [`hand_over`](Self::hand_over), but the other process fails.
    fn fail_to_hand_over(&self) {
        let client = self.restored(self.client.snapshot()).unwrap();
        for connection in self.open.values() {
            let snapshot = connection.client.snapshot();
            drop(client.restore_end(connection.id, snapshot).unwrap());
        }
    }
}

impl Connection {
    fn write(&mut self, side: usize, count: usize) {
        let end = [&self.client, &self.server][side];
        let bytes: Vec<u8> = (self.written[side]..)
            .take(count)
            .map(|at| at as u8)
            .collect();
        match end.try_write(&bytes) {
            Ok(written) => self.written[side] += written as u64,
            Err(error) => assert!(matches!(error, RingError::WouldBlock), "{error}"),
        }
    }

    fn read(&mut self, side: usize, count: usize) {
        let end = [&self.server, &self.client][side];
        let mut bytes = vec![0; count];
        match end.try_read(&mut bytes) {
            Ok(read) => {
                for byte in &bytes[..read] {
                    assert_eq!(*byte, self.read[side] as u8);
                    self.read[side] += 1;
                }
            }
            Err(error) => {
                assert!(matches!(error, RingError::WouldBlock), "{error}");
                assert_eq!(self.read[side], self.written[side]);
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Connect,
    Write(usize, usize, usize),
    Read(usize, usize, usize),
    /// Closes the client's end, the server's end, or both.
    Close(usize, u8),
    HandOver,
    FailToHandOver,
}

fn step() -> impl Strategy<Value = Step> {
    let count = 1..6000_usize;
    let move_bytes = (any::<usize>(), 0..2_usize, count);
    prop_oneof![
        3 => Just(Step::Connect),
        4 => move_bytes.clone().prop_map(|(nth, side, count)| Step::Write(nth, side, count)),
        4 => move_bytes.prop_map(|(nth, side, count)| Step::Read(nth, side, count)),
        2 => (any::<usize>(), 1..4_u8).prop_map(|(nth, which)| Step::Close(nth, which)),
        2 => Just(Step::HandOver),
        1 => Just(Step::FailToHandOver),
    ]
}

proptest! {
    #[test]
    fn a_client_goes_on_in_another_process_as_if_nothing_had_been(steps in vec(step(), 1..80)) {
        let mut world = World::new();
        // Ends whose other end is closed.
        let mut left: Vec<RingEnd> = Vec::new();
        for step in steps {
            let nth = |world: &World, nth: usize| {
                world.open.keys().nth(nth % world.open.len().max(1)).copied()
            };
            match step {
                Step::Connect => world.connect(),
                Step::Write(at, side, count) => {
                    if let Some(key) = nth(&world, at) {
                        world.open.get_mut(&key).unwrap().write(side, count);
                    }
                }
                Step::Read(at, side, count) => {
                    if let Some(key) = nth(&world, at) {
                        world.open.get_mut(&key).unwrap().read(side, count);
                    }
                }
                Step::Close(at, which) => {
                    if let Some(connection) = nth(&world, at).and_then(|key| world.open.remove(&key)) {
                        // What is left of the client's is closed before the next handover.
                        let Connection { client, server, .. } = connection;
                        if which & 1 != 0 { drop(client) } else { drop(server); drop(client); continue }
                        if which & 2 != 0 { drop(server) } else { left.push(server) }
                    }
                }
                Step::HandOver => world.hand_over(),
                Step::FailToHandOver => world.fail_to_hand_over(),
            }
            let open = world.monitor.scan();
            prop_assert_eq!(open.len(), world.open.len() + left.len());
        }
        left.clear();
        for mut connection in std::mem::take(&mut world.open).into_values() {
            for side in [0, 1] {
                while connection.read[side] != connection.written[side] {
                    connection.read(side, 6000);
                }
            }
        }
        prop_assert_eq!(world.client.in_use(), 0);
        // All slots can be used again.
        (0..SLOTS).for_each(|_| world.connect());
        prop_assert_eq!(world.open.len(), SLOTS as usize);
    }

    #[test]
    fn a_damaged_client_snapshot_is_refused_or_harmless(
        edits in vec((any::<u32>(), any::<u8>(), any::<u64>()), 1..4),
    ) {
        let mut world = World::new();
        (0..3).for_each(|_| world.connect());
        world.open.remove(&1);
        let mut value = serde_json::to_value(world.client.snapshot()).unwrap();
        for (node, kind, number) in edits {
            Edit { node, kind, value: number }.apply(&mut value);
        }
        let Ok(snapshot) = serde_json::from_value::<ArenaClientSnapshot>(value) else {
            return Ok(());
        };
        let Ok(client) = world.restored(snapshot) else {
            return Ok(());
        };
        let mut ends = Vec::new();
        for Connection { id, client: end, .. } in world.open.values() {
            if let Ok(end) = client.restore_end(*id, end.snapshot()) {
                // A second one is refused.
                let again = client.restore_end(*id, end.snapshot());
                prop_assert!(again.is_err());
                end.wake();
                ends.push(end);
            }
        }
        std::mem::forget(std::mem::take(&mut world.open));
        ends.pop();
        let _ = client.connect();
        client.in_use();
        client.snapshot();
    }
}

#[test]
fn an_end_of_another_connection_or_side_is_refused() {
    let mut world = World::new();
    (0..2).for_each(|_| world.connect());
    let client = world.restored(world.client.snapshot()).unwrap();
    let Connection {
        id,
        client: end,
        server,
        ..
    } = &world.open[&0];
    let snapshot: RingEndSnapshot = end.snapshot();
    for other in [
        SlotId { slot: 3, ..*id },
        SlotId {
            slot: u32::MAX,
            ..*id
        },
        SlotId {
            seq: id.seq + 1,
            ..*id
        },
    ] {
        assert!(client.restore_end(other, snapshot).is_err());
    }
    let error = client.restore_end(*id, server.snapshot()).unwrap_err();
    assert!(
        matches!(error, SnapshotError::Inconsistent { .. }),
        "{error}"
    );
    assert!(!client.has_all_ends());
}

/// As `snapshots_of_all_versions_can_be_restored` of `tests/snapshot.rs`.
#[test]
fn client_snapshots_of_all_versions_can_be_restored() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/snapshots");
    let mut world = World::new();
    (0..3).for_each(|_| world.connect());
    world.open.get_mut(&0).unwrap().write(0, 100);
    // The slot of one is free again, and that of another is closed by the client only.
    world.open.remove(&1);
    let closing = world.open.remove(&2).unwrap();
    drop(closing.client);
    let _server = closing.server;
    let written = serde_json::to_string_pretty(&world.client.snapshot()).unwrap() + "\n";
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        let path = format!("{folder}/arena_client-{ARENA_CLIENT_SNAPSHOT_VERSION}.json");
        std::fs::write(path, &written).unwrap();
    }
    let mut last = String::new();
    for version in 1..=ARENA_CLIENT_SNAPSHOT_VERSION {
        last = std::fs::read_to_string(format!("{folder}/arena_client-{version}.json")).unwrap();
        let client = world
            .restored(serde_json::from_str(&last).unwrap())
            .unwrap();
        let end = world.open[&0].client.snapshot();
        assert!(client.restore_end(world.open[&0].id, end).is_ok());
        assert!(client.has_all_ends());
    }
    // The format of the newest version does not change any more.
    assert_eq!(written, last);
}
