//! Snapshots of guests' arenas with the links' ends: connections that go on, damaged snapshots, and the committed
//! examples.

use hvsock_address::{ServiceId, VmId};
use hvsock_endpoint::ClientMessage;
use hvsock_ring::{ArenaParts, ArenaServer, RingEnd, RingError, RingSize};
use hvsock_sys::seqpacket;
use hvsock_testkit::json_edits::Edit;
use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::snapshot::{GUEST_ARENAS_SNAPSHOT_VERSION, GuestArenasSnapshot};
use super::*;
use crate::budget::{Budget, Owner, Shares};
use crate::callers::Caller;
use crate::data_path::ProcessSocket;
use crate::guest_link::{ArenaState, GuestArena, GuestArenaState, Peer, SharedArena, SlotState};
use crate::handover::testing::{Exported, kept};
use crate::handover::{HandoverError, Imports};

const ID: ConnectionId = ConnectionId::from_u64(1 << 20);
const VM: PartitionKey = PartitionKey::from_u64(3);
const SLOTS: u32 = 4;
const OWNER: Owner = Owner::Partition(VM);

/// A broker that has an arena of a guest, and its link.
struct Broker {
    arenas: GuestArenas,
    link: GuestArena,
    budget: Budget,
}

/// The listener's process.
struct Process {
    server: ArenaServer,
    control: std::os::fd::OwnedFd,
}

/// The two documents, and what they refer to.
struct Documents {
    core: Value,
    link: Value,
    exported: Exported,
}

fn budget() -> Budget {
    Budget::new(Shares::new(100, 0))
}

fn start() -> (Broker, Process) {
    let limits = ArenaLimits {
        slots: SLOTS,
        ring: RingSize::MIN,
    };
    let parts = ArenaParts::new(limits, SLOTS, SLOTS).unwrap();
    let (memory, grant, quiet) = (&parts.memory, &parts.grant, || Arc::new(|| {}));
    let client = hvsock_ring::ArenaClient::open(memory, grant, parts.client, quiet()).unwrap();
    let server = ArenaServer::open(memory, grant, parts.server, quiet()).unwrap();
    let (own, control) = seqpacket::pair().unwrap();
    let (monitor, unrecorded) = (Arc::new(parts.monitor), Unrecorded::default());
    let budget = budget();
    let record = ArenaRecord {
        vm: VM,
        port: 5000,
        address: SockAddrHv::new(VmId::PARENT, ServiceId::from_port(5000)),
        listener: ListenerId::from_u64(7),
        to: EndRecord {
            partition: PartitionKey::from_u64(0),
            caller: Caller {
                pid: 4321,
                uid: 7,
                gid: 8,
            },
        },
        limits,
        monitor: Arc::clone(&monitor),
        unrecorded: unrecorded.clone(),
        connections: BTreeMap::new(),
        is_orphaned: false,
        _charge: budget.charge(OWNER, 6).unwrap(),
    };
    let broker = Broker {
        arenas: GuestArenas {
            arenas: [(ID, record)].into(),
            acquainted: [(ListenerId::from_u64(7), VM)].into(),
        },
        link: GuestArena::new(
            ID,
            5000,
            client,
            ProcessSocket::from(own),
            monitor,
            unrecorded,
        ),
        budget,
    };
    (broker, Process { server, control })
}

impl Broker {
    fn record(&mut self) -> &mut ArenaRecord {
        self.arenas.arenas.get_mut(&ID).unwrap()
    }

    /// The guest connects: the slot, and the process's end.
    fn connect(&mut self, process: &Process) -> (SlotState, Peer, RingEnd) {
        let opened = self.link.connect().unwrap();
        let record = self.record();
        record.unrecorded.recorded();
        let slot = opened.opened.slot;
        record.connections.insert(opened.connection, slot);
        let accepted = process.server.accept().unwrap().unwrap();
        assert_eq!(accepted.id, slot);
        let state = opened.end.peer.slot_state().unwrap();
        (state, opened.end.peer, accepted.end)
    }

    fn documents(&self) -> Documents {
        let ((core, link), exported) = kept(|exports| {
            let core = self.arenas.snapshot(exports).unwrap();
            let link = self.link.hand_over(exports).unwrap();
            let values = (serde_json::to_value(core), serde_json::to_value(link));
            (values.0.unwrap(), values.1.unwrap())
        });
        Documents {
            core,
            link,
            exported,
        }
    }
}

impl Documents {
    fn restore(self) -> Result<Broker, HandoverError> {
        fn read<T: serde::de::DeserializeOwned>(value: Value) -> Result<T, HandoverError> {
            serde_json::from_value(value).map_err(|error| HandoverError::damaged(error.to_string()))
        }
        let core: GuestArenasSnapshot = read(self.core)?;
        let link: GuestArenaState = read(self.link)?;
        let mut imports: Imports = self.exported.imports();
        let budget = budget();
        let (is_connection, is_vm) = (|id| id == ID, |vm| vm == VM);
        let arenas = GuestArenas::restore(core, &mut imports, &budget, is_connection, is_vm)?;
        let link = GuestArena::resume(link, &mut imports)?;
        let left = imports.kept::<SharedArena>(ID.as_u64());
        assert!(left.is_none());
        Ok(Broker {
            arenas,
            link,
            budget,
        })
    }
}

/// The other end of a connection as the link of the next broker gets it.
fn resumed(link: &GuestArena, slot: SlotState, peer: &Peer) -> Result<Peer, HandoverError> {
    let (state, exported) = kept(|exports| peer.hand_over(ID, exports).unwrap());
    Peer::resume(state, ID, &mut exported.imports(), |end| {
        link.resume_slot(slot, end)
    })
}

#[test]
fn a_connection_goes_on_in_another_broker_which_opens_no_others() {
    let (mut first, process) = start();
    let (slot, peer, end) = first.connect(&process);
    end.try_write(b"before").unwrap();
    let documents = first.documents();
    let mut next = documents.restore().unwrap();
    assert_eq!(next.budget.usage(OWNER).0, 6);
    assert!(!next.link.is_complete());
    let resumed = resumed(&next.link, slot, &peer).unwrap();
    assert!(next.link.is_complete());
    // The first broker ends without a trace.
    std::mem::forget((first, peer));
    resumed.wake();
    assert_eq!(
        (next.record().slots(), next.record().has_free_slots()),
        (1, false)
    );
    assert_eq!(
        next.arenas.granted_bytes(VM),
        u64::from(RingSize::MIN.bytes())
    );
    assert!(next.link.connect().is_err());
    end.try_write(b" and after").unwrap();
    let view = next
        .arenas
        .view(ConnectionId::from_u64(ID.as_u64() + 1))
        .unwrap();
    assert_eq!(view.1.unwrap().written, [0, 16]);
    // It sees the end of the process.
    drop((process.control, process.server));
    assert_eq!(next.link.read_control().1, ArenaState::Ended);
}

#[test]
fn a_broker_that_goes_on_grants_again_and_a_resumed_one_that_is_dropped_changes_nothing() {
    let (mut first, process) = start();
    let (slot, peer, end) = first.connect(&process);
    let next = first.documents().restore().unwrap();
    assert!(first.link.connect().is_err());
    drop(resumed(&next.link, slot, &peer).unwrap());
    drop(next);
    first.arenas.stay();
    let (_, _more, other) = first.connect(&process);
    for end in [&end, &other] {
        end.try_write(b"still there").unwrap();
        assert!(matches!(
            end.try_read(&mut [0; 4]),
            Err(RingError::WouldBlock)
        ));
    }
    let mut shutdown = Vec::new();
    ClientMessage::Shutdown.encode(&mut shutdown);
    hvsock_sys::message::send(&process.control, &shutdown, &[]).unwrap();
    assert_eq!(first.link.read_control().1, ArenaState::Open);
}

/// Each version of the format has an example, which every later release reads.
///
/// A new version: make `restore` read the version before as well, and write the new example with
/// `UPDATE_SNAPSHOTS=1 cargo test -p hvsock-broker --lib core::guest_arenas`. The earlier examples stay.
#[test]
fn snapshots_of_all_versions_can_be_restored() {
    let folder = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/src/core/guest_arenas/snapshot_tests"
    );
    let (mut broker, process) = start();
    let _connections = [(); 2].map(|()| broker.connect(&process));
    broker.record().is_orphaned = true;
    let documents = broker.documents();
    let both = json!({ "core": documents.core, "link": documents.link });
    let written = serde_json::to_string_pretty(&both).unwrap() + "\n";
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        let path = format!("{folder}/example-{GUEST_ARENAS_SNAPSHOT_VERSION}.json");
        std::fs::write(path, &written).unwrap();
    }
    let mut last = String::new();
    for version in 1..=GUEST_ARENAS_SNAPSHOT_VERSION {
        last = std::fs::read_to_string(format!("{folder}/example-{version}.json")).unwrap();
        let both: Value = serde_json::from_str(&last).unwrap();
        let documents = Documents {
            core: both["core"].clone(),
            link: both["link"].clone(),
            exported: broker.documents().exported,
        };
        let mut next = documents.restore().unwrap();
        let record = next.record();
        assert!(record.is_orphaned && record.connections.len() == 2);
        assert!(!next.link.is_complete());
    }
    // The format of the newest version does not change any more.
    assert_eq!(written, last);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn damaged_snapshots_are_refused_or_harmless(
        edits in vec((any::<bool>(), any::<u32>(), any::<u8>(), any::<u64>()), 1..4),
    ) {
        let (mut broker, process) = start();
        let connections = [(); 2].map(|()| broker.connect(&process));
        let mut documents = broker.documents();
        for (of_core, node, kind, value) in edits {
            let document = if of_core { &mut documents.core } else { &mut documents.link };
            Edit { node, kind, value }.apply(document);
        }
        if let Ok(mut next) = documents.restore() {
            for (slot, peer, _) in &connections {
                let _ = resumed(&next.link, *slot, peer);
            }
            next.arenas.granted_bytes(VM);
            let Broker { arenas, link, budget } = &mut next;
            let _ = link.connect();
            for record in arenas.arenas.values() {
                prop_assert!(record.slots() <= SLOTS.max(record.limits.slots));
            }
            let _ = link.read_control();
            drop(std::mem::take(arenas));
            prop_assert_eq!(budget.usage(OWNER).0, 0);
        }
        // Whatever it was, the pair goes on with the broker that it had.
        broker.arenas.stay();
        for (_, _, end) in &connections {
            end.try_write(b"still there").unwrap();
        }
    }
}

#[test]
fn inconsistent_snapshots_are_refused() {
    let (mut broker, process) = start();
    let _connections = [(); 2].map(|()| broker.connect(&process));
    for (pointer, value) in [
        ("/core/version", json!(2)),
        ("/core/arenas", json!([])),
        ("/core/arenas/0/id", json!(5)),
        ("/core/arenas/0/vm", json!(4)),
        ("/core/arenas/0/ring", json!(5)),
        ("/core/arenas/0/slots", json!(0)),
        ("/core/arenas/0/slots", json!(u32::MAX)),
        ("/core/arenas/0/memory", json!(1)),
        ("/core/arenas/0/connections/1/slot", json!(0)),
        ("/core/arenas/0/connections/1/slot", json!(SLOTS)),
        ("/core/arenas/0/connections/1/seq", json!(0)),
        ("/core/arenas/0/connections/1/seq", json!(1)),
        ("/link/id", json!(5)),
        ("/link/client/version", json!(2)),
        ("/link/doorbells/0", json!(99)),
        ("/link/control/socket", json!(null)),
    ] {
        let documents = broker.documents();
        let mut both = json!({ "core": documents.core, "link": documents.link });
        *both.pointer_mut(pointer).expect(pointer) = value;
        let damaged = Documents {
            core: both["core"].take(),
            link: both["link"].take(),
            exported: documents.exported,
        };
        assert!(damaged.restore().is_err(), "{pointer}");
    }
    assert!(broker.documents().restore().is_ok());
}
