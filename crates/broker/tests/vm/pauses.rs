//! Machines that their VMM pauses (GET_VRING_BASE) and resumes while data flows.

use std::io::{self, ErrorKind, Read};
use std::net::Shutdown;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use hvsock::{HvListener, HvStream, ServiceId, VmId};
use hvsock_broker::model::PartitionState;
use hvsock_testkit::guest::{Driver, GuestStream};

use crate::traffic::{ping, read_all, write_all};
use hvsock_testkit::wait::eventually;
use hvsock_testkit::world::{PORT, World, accept, bounded};

/// An environment variable that overrides the count of bytes sent each way.
const BYTES: &str = "HVSOCK_TEST_PAUSE_BYTES";

/// A reader that counts its bytes.
struct Counted<'a, R>(R, &'a AtomicU64);

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.0.read(buffer)?;
        self.1.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

/// Waits until `bytes` bytes have moved. Fails only if none move for [`TIMEOUT`](hvsock_testkit::wait::TIMEOUT).
fn eventually_moves(moved: &AtomicU64, bytes: u64) {
    loop {
        let before = moved.load(Ordering::Relaxed);
        if before >= bytes {
            return;
        }
        eventually("bytes move", || moved.load(Ordering::Relaxed) > before);
    }
}

/// A listener whose connections survive a pause.
fn listen_suspendable(world: &World, shared_memory: bool) -> HvListener {
    let listener = HvListener::options()
        .endpoint(world.host().endpoint())
        .connected_suspend(true)
        .shared_memory(shared_memory)
        .listen((VmId::CHILDREN, ServiceId::from_port(PORT)));
    listener.expect("listening")
}

#[test]
fn a_pause_resets_connections_without_connected_suspend() {
    let world = World::with_web(|_| ());
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
    // The guest receives the reset when it resumes.
    let error = (&inside).read(&mut [0; 8]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    let (inside, outside) = world.pair(&guest, &listener);
    ping(&inside, &outside);
}

#[test]
fn the_device_writes_to_no_used_ring_of_a_paused_machine() {
    let world = World::with_web(|_| ());
    let (listener, guest) = (listen_suspendable(&world, true), world.guest());
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
                    // Each reply comes from the data thread after a turn of its event loop, while
                    // bytes for the guest are waiting.
                    for _ in 0..100 {
                        let vmm = driver.vmm().unwrap();
                        vmm.stop_ring(0).unwrap();
                        vmm.stop_ring(1).unwrap();
                    }
                    assert_eq!(used(driver), before);
                })
                .unwrap();
            thread::sleep(Duration::from_millis(5));
        }
        writer.join().unwrap().unwrap();
        reader.join().unwrap().unwrap();
    });
}

/// A copy of both used rings.
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
fn a_hundred_pauses_lose_no_bytes_over_a_ring() {
    let bytes = std::env::var(BYTES).ok().and_then(|text| text.parse().ok());
    flows_through_pauses(true, bytes.unwrap_or(192 << 20));
}

#[test]
fn a_hundred_pauses_lose_no_bytes_over_a_descriptor() {
    flows_through_pauses(false, 64 << 20);
}

fn flows_through_pauses(shared_memory: bool, bytes: u64) {
    let world = World::with_web(|_| ());
    let (listener, guest) = (listen_suspendable(&world, shared_memory), world.guest());
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
        // Spread the pauses evenly over the bytes.
        for pause in 0..100 {
            eventually_moves(moved, pause * (bytes / 102));
            // Short ones are not reported, and suspend nothing.
            let is_short = pause % 10 != 0;
            guest
                .pause(|_| match is_short {
                    true => thread::sleep(Duration::from_millis(2)),
                    false => world.is("web", PartitionState::Paused),
                })
                .unwrap();
        }
        for writer in writers {
            writer.join().unwrap().unwrap();
        }
        for reader in readers {
            assert_eq!(reader.join().unwrap().unwrap(), bytes);
        }
    });
    assert_eq!(guest.protocol_violations(), [""; 0]);
}
