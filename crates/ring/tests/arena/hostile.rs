//! One process of a pair violates the protocol: what the other one and the broker do.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use hvsock_ring::{
    ArenaClient, ArenaLimits, ArenaParts, ArenaServer, Doorbells, OpenError, RingEnd, RingError,
    RingSize, Violation,
};
use hvsock_sys::{doorbell, shared_memory};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::pair::{Pair, pair};
use crate::script;

/// The offsets of the words, from the table in the documentation of `arena`.
const PUBLISHED: u64 = 0;
const TAKEN: u64 = 128;
const ENTRIES: u64 = 0x1000;
const SERVER_TABLE: u64 = 0xB000;
const SLOTS: u64 = 0xF000;

proptest! {
    #![proptest_config(ProptestConfig { cases: hvsock_testkit::cases(60), ..ProptestConfig::default() })]

    #[test]
    fn both_ends_and_the_broker_survive_any_words_in_the_arena(script in vec(any::<u8>(), 0..600)) {
        script::run(&script);
    }
}

fn store(pair: &Pair, at: u64, value: u64) {
    pair.memory.write_all_at(&value.to_ne_bytes(), at).unwrap();
}

fn store_entry(pair: &Pair, number: u64, slot: u64, seq: u64) {
    store(pair, ENTRIES + number % 1024 * 8, seq << 32 | slot);
}

/// What a hostile client does in a pair with two connections, of which the first is accepted.
#[test]
fn a_client_that_violates_the_protocol_opens_no_more_connections() {
    type Attack = fn(&Pair);
    let attacks: [(&str, Attack, Violation); 10] = [
        (
            "jumps",
            |pair| store(pair, PUBLISHED, 5000),
            Violation::Queue,
        ),
        (
            "goes back",
            |pair| store(pair, PUBLISHED, 0),
            Violation::Queue,
        ),
        (
            "overflows",
            |pair| store(pair, PUBLISHED, u64::MAX),
            Violation::Queue,
        ),
        (
            "no such slot",
            |pair| store_entry(pair, 1, 9999, 2),
            Violation::Slot,
        ),
        (
            "slot not granted",
            |pair| store_entry(pair, 1, 3, 2),
            Violation::Slot,
        ),
        (
            "slot in use",
            |pair| store_entry(pair, 1, 0, 2),
            Violation::Slot,
        ),
        (
            "no number",
            |pair| store_entry(pair, 1, 1, 0),
            Violation::Sequence,
        ),
        (
            "number too large",
            |pair| store_entry(pair, 1, 1, 1 << 20),
            Violation::Sequence,
        ),
        (
            "number in the past",
            |pair| store_entry(pair, 1, 1, 1),
            Violation::Sequence,
        ),
        (
            "another's state",
            |pair| store(pair, SLOTS + 2048, 3 << 32),
            Violation::Sequence,
        ),
    ];
    for (name, attack, expected) in attacks {
        let pair = pair(4, 3, 4);
        let (client, server, _) = pair.connect();
        let _second = pair.client.connect().unwrap();
        attack(&pair);
        assert_eq!(pair.server.accept().unwrap_err(), expected, "{name}");
        assert_eq!(pair.server.accept().unwrap_err(), expected, "{name}");
        assert!(pair.server.has_pending() && !pair.server.arm_accept());
        still_works(&client, &server, name);
        assert!(pair.monitor.scan().len() <= 3, "{name}");
    }
}

#[test]
fn a_server_that_violates_the_protocol_gets_no_more_connections() {
    for (name, taken) in [("ahead", 9), ("goes back", 0), ("overflows", u64::MAX)] {
        let pair = pair(4, 4, 1);
        let (client, server, _) = pair.connect();
        let _waiting = pair.client.connect().unwrap();
        store(&pair, TAKEN, taken);
        no_more_connections(&pair, Violation::Queue, name);
        still_works(&client, &server, name);
    }
    for (name, done) in [
        ("a later number", 3),
        ("the other slot's", 1),
        ("none", u32::MAX),
    ] {
        let pair = pair(4, 4, 4);
        let (client, server, _) = pair.connect();
        let (closed, _kept, id) = pair.connect();
        assert_eq!((id.slot, id.seq), (1, 2));
        drop(closed);
        store(&pair, SERVER_TABLE + 16, u64::from(done) << 32 | 2);
        no_more_connections(&pair, Violation::Slot, name);
        still_works(&client, &server, name);
    }
}

fn no_more_connections(pair: &Pair, violation: Violation, name: &str) {
    for _ in 0..2 {
        let result = pair.client.connect().map(drop);
        assert_eq!(result, Err(OpenError::Violation(violation)), "{name}");
    }
}

/// An established connection is not affected.
fn still_works(client: &RingEnd, server: &RingEnd, name: &str) {
    assert_eq!(client.try_write(b"fine"), Ok(4), "{name}");
    assert_eq!(server.try_read(&mut [0; 9]), Ok(4), "{name}");
}

/// The state word is another connection's: the end reads as reset, and stays so.
#[test]
fn a_state_word_of_another_connection_is_a_reset() {
    let pair = pair(1, 1, 1);
    let (client, server, id) = pair.connect();
    store(&pair, SLOTS, u64::from(id.seq + 1) << 32);
    assert_eq!(client.try_read(&mut [0; 9]), Err(RingError::Reset));
    store(&pair, SLOTS, u64::from(id.seq) << 32);
    assert_eq!(client.try_read(&mut [0; 9]), Err(RingError::Reset));
    drop((client, server));
    pair.connect();
}

/// A hostile process can hide its connections from the broker, and cannot make it work without bound.
#[test]
fn the_broker_lists_no_more_connections_than_it_has_granted() {
    let pair = pair(8, 3, 8);
    let all = vec![0xFF; 0x20_F000];
    pair.memory.write_all_at(&all, 0).unwrap();
    assert!(pair.monitor.scan().len() <= 3);
    assert_eq!(pair.monitor.pending(), 0);
    let before = pair.monitor.totals();
    pair.memory.write_all_at(&vec![0; 0x20_F000], 0).unwrap();
    // A claim is not taken back.
    assert_eq!(pair.monitor.totals(), before);
    assert_eq!(pair.monitor.granted(), 3);
}

fn doorbells() -> Doorbells {
    let (own, peer) = doorbell::pair().unwrap();
    Doorbells { own, peer }
}

fn open(memory: &OwnedFd, grant: &OwnedFd) -> [io::Result<()>; 2] {
    let tell = || Arc::new(|| {});
    [
        ArenaClient::open(memory, grant, doorbells(), tell()).map(drop),
        ArenaServer::open(memory, grant, doorbells(), tell()).map(drop),
    ]
}

fn parts(slots: u32) -> ArenaParts {
    let ring = RingSize::MIN;
    ArenaParts::new(ArenaLimits { slots, ring }, slots, slots).unwrap()
}

#[test]
fn memory_and_grant_pages_that_are_not_an_arenas_are_refused() {
    let good = parts(4);
    for opened in open(&good.memory, &good.grant) {
        opened.unwrap();
    }
    let page = |words: [u32; 5], len: usize| {
        let (memory, mapping) = shared_memory::create_read_only(len).unwrap();
        let bytes: Vec<u8> = words.into_iter().flat_map(u32::to_ne_bytes).collect();
        mapping.bytes(0..len).put(0, &bytes);
        memory
    };
    let whole = shared_memory::checked_len(good.memory.as_fd()).unwrap();
    let unsealed = rustix::fs::memfd_create("open", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&unsealed, whole).unwrap();
    let memory = |len| shared_memory::create(len).unwrap();
    let good_page = || page([1, 4, 4, 4096, 4], 4096);
    for opened in open(&good.memory, &good_page()) {
        opened.unwrap();
    }
    let bad: [(OwnedFd, OwnedFd); 11] = [
        // Grant pages: writable, too short, and with limits that no arena has.
        (memory(whole), memory(4096)),
        (memory(whole), page([0; 5], 16)),
        (memory(whole), page([1, 4, 4, 4096, 0], 4096)),
        (memory(whole), page([1, 4, 4, 4096, 1025], 4096)),
        (memory(whole), page([1, 4, 4, 4097, 4], 4096)),
        (memory(whole), page([1, 4, 4, 0, 4], 4096)),
        (memory(whole), page([1, 4, 4, u32::MAX, u32::MAX], 4096)),
        // Memory of another length than the page says, or of a length that may change.
        (memory(whole - 4096), good_page()),
        (memory(whole + 4096), good_page()),
        (memory(4096), good_page()),
        (unsealed, good_page()),
    ];
    for (at, (memory, grant)) in bad.iter().enumerate() {
        for opened in open(memory, grant) {
            assert_eq!(
                opened.unwrap_err().kind(),
                io::ErrorKind::InvalidData,
                "{at}"
            );
        }
    }
    for slots in [0, 1025, u32::MAX] {
        let limits = ArenaLimits {
            slots,
            ring: RingSize::MIN,
        };
        let error = ArenaParts::new(limits, 1, 1).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
