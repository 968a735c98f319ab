//! Machines that are paused while data flows.

use std::io::{self, ErrorKind, Read};
use std::net::Shutdown;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use hvsock::{HvListener, HvStream, ServiceId, VmId};
use hvsock_broker::model::PartitionState;
use hvsock_testkit::guest::{Driver, GuestStream};

use crate::world::{A_WHILE, PORT, World, accept, bounded, eventually, ping, read_all, write_all};

/// How many bytes go each way, if not the usual few.
const BYTES: &str = "HVSOCK_TEST_PAUSE_BYTES";

/// A reader whose bytes are counted.
struct Counted<'a, R>(R, &'a AtomicU64);

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.0.read(buffer)?;
        self.1.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

/// Waits until so many bytes have moved, for as long as they move.
fn eventually_moves(moved: &AtomicU64, bytes: u64) {
    loop {
        let before = moved.load(Ordering::Relaxed);
        if before >= bytes {
            return;
        }
        eventually("bytes move", || moved.load(Ordering::Relaxed) > before);
    }
}

/// A listener whose connections outlast a pause.
fn lasting(world: &World, shared_memory: bool) -> HvListener {
    let listener = HvListener::options()
        .endpoint(world.endpoint())
        .connected_suspend(true)
        .shared_memory(shared_memory)
        .listen((VmId::CHILDREN, ServiceId::from_port(PORT)));
    listener.expect("listening")
}

#[test]
fn a_pause_ends_connections_that_did_not_ask_to_last() {
    let world = World::new();
    let (listener, guest) = (world.listen(), world.guest());
    let (inside, mut outside) = world.pair(&guest, &listener);
    ping(&inside, &outside);
    guest
        .pause(|_| {
            world.is("web", PartitionState::Paused);
            let error = outside.read(&mut [0; 8]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        })
        .unwrap();
    world.is("web", PartitionState::Running);
    // The guest learns of it when it goes on.
    let error = (&inside).read(&mut [0; 8]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    let (inside, outside) = world.pair(&guest, &listener);
    ping(&inside, &outside);
}

#[test]
fn nothing_touches_a_paused_machine() {
    let world = World::new();
    let (listener, guest) = (lasting(&world, true), world.guest());
    let (inside, outside) = world.pair(&guest, &listener);
    ping(&inside, &outside);
    thread::scope(|scope| {
        let writer = scope.spawn(|| write_all(&outside, 1 << 20, 4096));
        let reader = scope.spawn(|| {
            let mut buffer = vec![0; 1 << 20];
            let mut from = &inside;
            from.read_exact(&mut buffer)
        });
        for _ in 0..5 {
            guest
                .pause(|driver| {
                    let before = used(driver);
                    thread::sleep(A_WHILE);
                    assert_eq!(used(driver), before);
                })
                .unwrap();
            thread::sleep(Duration::from_millis(5));
        }
        writer.join().unwrap().unwrap();
        reader.join().unwrap().unwrap();
    });
}

/// Both used rings.
fn used(driver: &mut Driver) -> [Vec<u8>; 2] {
    let copy = |shared: hvsock_sys::shared_memory::SharedBytes<'_>| {
        let mut bytes = vec![0; shared.len()];
        shared.get(0, &mut bytes);
        bytes
    };
    let rx = copy(driver.rx().used_ring());
    [rx, copy(driver.tx().used_ring())]
}

#[test]
fn not_a_byte_is_lost_while_a_machine_is_paused_and_resumed_a_hundred_times() {
    let bytes = std::env::var(BYTES).ok().and_then(|text| text.parse().ok());
    flows_through_pauses(true, bytes.unwrap_or(192 << 20));
}

#[test]
fn not_a_byte_is_lost_of_a_plain_descriptors_either() {
    flows_through_pauses(false, 64 << 20);
}

fn flows_through_pauses(shared_memory: bool, bytes: u64) {
    let world = World::new();
    let (listener, guest) = (lasting(&world, shared_memory), world.guest());
    let connected = bounded(guest.connect(PORT).unwrap());
    let (inside, outside): (&GuestStream, &HvStream) = (&connected, &accept(&listener));
    let moved = &AtomicU64::new(0);
    thread::scope(|scope| {
        let writers = [
            scope.spawn(move || {
                write_all(inside, bytes, 60_000)?;
                inside.shutdown(Shutdown::Write)
            }),
            scope.spawn(move || {
                write_all(outside, bytes, 100_000)?;
                outside.shutdown(Shutdown::Write)
            }),
        ];
        let readers = [
            scope.spawn(move || read_all(outside, 1 << 16)),
            scope.spawn(move || read_all(Counted(inside, moved), 1 << 16)),
        ];
        // As evenly as can be from the first byte to the last.
        for pause in 0..100 {
            eventually_moves(moved, pause * (bytes / 102));
            guest
                .pause(|_| thread::sleep(Duration::from_millis(2)))
                .unwrap();
        }
        for writer in writers {
            writer.join().unwrap().unwrap();
        }
        for reader in readers {
            assert_eq!(reader.join().unwrap().unwrap(), bytes);
        }
    });
    assert_eq!(guest.faults(), [""; 0]);
}
