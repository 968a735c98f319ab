//! A client, a server and a broker in one process.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use hvsock_ring::{
    ArenaClient, ArenaLimits, ArenaMonitor, ArenaMonitorSnapshot, ArenaParts, ArenaServer, Opened,
    RingEnd, RingSize, SlotId,
};

/// Both ends of an arena, and the broker's access.
pub struct Pair {
    pub client: ArenaClient,
    pub server: ArenaServer,
    pub monitor: ArenaMonitor,
    /// By which a hostile process writes anything.
    pub memory: File,
    /// Messages to the broker by dropped ends.
    pub told: Arc<AtomicU32>,
}

/// An arena with rings of the smallest size.
pub fn pair(slots: u32, granted: u32, backlog: u32) -> Pair {
    pair_at(slots, granted, backlog, 0)
}

/// As [`pair`], with counters that begin at `start`.
pub fn pair_at(slots: u32, granted: u32, backlog: u32, start: u64) -> Pair {
    let ring = RingSize::MIN;
    let ArenaParts {
        memory,
        grant,
        client,
        server,
        monitor,
        ..
    } = ArenaParts::new(ArenaLimits { slots, ring }, granted, backlog).unwrap();
    let told = Arc::new(AtomicU32::new(0));
    let tell = || {
        let told = Arc::clone(&told);
        Arc::new(move || {
            told.fetch_add(1, Ordering::Relaxed);
        })
    };
    Pair {
        client: ArenaClient::open_at(&memory, &grant, client, tell(), start).unwrap(),
        server: ArenaServer::open_at(&memory, &grant, server, tell(), start).unwrap(),
        monitor,
        memory: File::from(memory),
        told,
    }
}

impl Pair {
    /// Replaces the monitor by that of another broker, made from its snapshot.
    pub fn take_over(&mut self) {
        let text = serde_json::to_vec(&self.monitor.snapshot()).unwrap();
        let snapshot: ArenaMonitorSnapshot = serde_json::from_slice(&text).unwrap();
        let memory = self.monitor.memory().try_clone_to_owned().unwrap();
        let grant = self.monitor.grant_memory().try_clone_to_owned().unwrap();
        let restored = ArenaMonitor::restore(snapshot.clone(), memory, grant).unwrap();
        assert_eq!(restored.snapshot(), snapshot);
        self.monitor = restored;
    }

    /// Opens and accepts a connection.
    pub fn connect(&self) -> (RingEnd, RingEnd, SlotId) {
        let Opened { end, id, .. } = self.client.connect().unwrap();
        let accepted = self.server.accept().unwrap().unwrap();
        assert_eq!(accepted.id, id);
        (end, accepted.end, id)
    }
}
