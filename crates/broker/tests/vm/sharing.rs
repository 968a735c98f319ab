//! Fairness between the connections of one guest, and between machines. All bounds are counts of
//! bytes, so that they hold on a loaded machine as well.

use std::io::{ErrorKind, Read, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use hvsock::HvStream;
use hvsock_testkit::guest::{GuestStream, Options};

use crate::traffic::ping;
use hvsock_testkit::StopOnDrop;
use hvsock_testkit::wait::{TIMEOUT, eventually};
use hvsock_testkit::world::{PORT, World, accept, bounded};

/// Busy connections of one guest.
const BUSY: usize = 50;
/// The bytes that all busy connections together move before their shares are compared.
const TOTAL: u64 = BUSY as u64 * (4 << 20);

/// Asserts that the most that one connection has moved is at most twice the least.
#[track_caller]
fn is_fair(moved: &[u64]) {
    let most = moved.iter().max().copied().unwrap_or(0);
    let least = moved.iter().min().copied().unwrap_or(0);
    assert!(most <= 2 * least, "{moved:?}");
}

fn pairs(world: &World, guest: &hvsock_testkit::guest::Guest) -> Vec<(GuestStream, HvStream)> {
    let listener = world.listen();
    (0..BUSY).map(|_| world.pair(guest, &listener)).collect()
}

#[test]
fn busy_connections_to_a_guest_get_fair_shares() {
    let world = World::with_web(|_| ());
    let guest = world.guest();
    let pairs = pairs(&world, &guest);
    let done = &AtomicBool::new(false);
    let moved = thread::scope(|scope| {
        let _stop = StopOnDrop(done);
        for (_, outside) in &pairs {
            scope.spawn(move || {
                let mut to = outside;
                while to.write_all(&[7; 4096]).is_ok() {
                    if done.load(Ordering::Relaxed) {
                        break;
                    }
                }
            });
        }
        let mut moved = vec![0; BUSY];
        let mut buffer = vec![0; 16 << 10];
        let deadline = Instant::now() + 3 * TIMEOUT;
        while moved.iter().sum::<u64>() < TOTAL {
            assert!(Instant::now() < deadline, "{moved:?}");
            for ((inside, _), moved) in pairs.iter().zip(&mut moved) {
                match inside.try_read(&mut buffer) {
                    Ok(read) => *moved += read as u64,
                    Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
                }
            }
        }
        // Unblocks the writers.
        for (inside, _) in &pairs {
            inside.shutdown(std::net::Shutdown::Both).unwrap();
        }
        moved
    });
    is_fair(&moved);
}

#[test]
fn busy_connections_from_a_guest_get_fair_shares() {
    let world = World::with_web(|_| ());
    let guest = world.guest();
    let pairs = pairs(&world, &guest);
    let counts: Vec<_> = (0..BUSY).map(|_| AtomicU64::new(0)).collect();
    let moved = || counts.iter().map(|count| count.load(Ordering::Relaxed));
    let shares = thread::scope(|scope| {
        for ((_, outside), count) in pairs.iter().zip(&counts) {
            scope.spawn(move || {
                let mut from = outside;
                let mut buffer = vec![0; 16 << 10];
                while let Ok(read @ 1..) = from.read(&mut buffer) {
                    count.fetch_add(read as u64, Ordering::Relaxed);
                }
            });
        }
        // The first to write finds the most free slots in the queue, so the order rotates.
        let deadline = Instant::now() + 3 * TIMEOUT;
        for first in (0..BUSY).cycle() {
            if moved().sum::<u64>() >= TOTAL || Instant::now() > deadline {
                break;
            }
            for offset in 0..BUSY {
                let (inside, _) = &pairs[(first + offset) % BUSY];
                match inside.try_write(&[7; 4096]) {
                    Ok(_) => {}
                    Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
                }
            }
        }
        let shares: Vec<u64> = moved().collect();
        for (inside, _) in &pairs {
            inside.shutdown(std::net::Shutdown::Both).unwrap();
        }
        shares
    });
    assert!(shares.iter().sum::<u64>() >= TOTAL, "{shares:?}");
    is_fair(&shares);
}

#[test]
fn a_connection_that_is_not_read_blocks_no_other() {
    let world = World::with_web(|_| ());
    let (listener, guest) = (world.listen(), world.guest());
    let (stuck_inside, stuck_outside) = world.pair(&guest, &listener);
    let (inside, outside) = world.pair(&guest, &listener);
    // Fill both directions until writes time out.
    let (mut taken, mut to) = (0, &stuck_outside);
    stuck_outside
        .set_write_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    while let Ok(count) = to.write(&[7; 4096]) {
        taken += count;
        assert!(taken < 16 << 20, "no backpressure on the host");
    }
    let (mut taken, mut to) = (0, &stuck_inside);
    stuck_inside.set_write_timeout(Some(Duration::from_millis(200)));
    while let Ok(count) = to.write(&[7; 4096]) {
        taken += count;
        assert!(taken < 16 << 20, "no backpressure on the guest");
    }
    for _ in 0..100 {
        ping(&inside, &outside);
    }
    assert_eq!(guest.protocol_violations(), [""; 0]);
}

#[test]
fn a_busy_machine_does_not_starve_another() {
    /// The most that the busy machine may move during one exchange of the other.
    const MOST: u64 = 1 << 30;
    let world = World::with_web(|_| ());
    let (listener, guest) = (world.listen(), world.guest());
    world.vm("other", 77, &[]);
    let other = world.guest_of("other", Options::new(77));
    let (inside, outside) = world.pair(&guest, &listener);
    let busy = bounded(other.connect(PORT).unwrap());
    let drain = accept(&listener);
    let (done, count) = (AtomicBool::new(false), AtomicU64::new(0));
    let moved = || count.load(Ordering::Relaxed);
    thread::scope(|scope| {
        let _stop = StopOnDrop(&done);
        scope.spawn(|| {
            let mut to = &busy;
            while to.write_all(&[7; 16 << 10]).is_ok() {
                if done.load(Ordering::Relaxed) {
                    break;
                }
            }
            drop(busy.shutdown(std::net::Shutdown::Both));
        });
        scope.spawn(|| {
            let (mut from, mut buffer) = (&drain, vec![0; 64 << 10]);
            while let Ok(read @ 1..) = from.read(&mut buffer) {
                count.fetch_add(read as u64, Ordering::Relaxed);
            }
        });
        eventually("the busy machine has begun", || moved() > 0);
        let first = moved();
        for _ in 0..1000 {
            let before = moved();
            ping(&inside, &outside);
            let meanwhile = moved() - before;
            assert!(meanwhile < MOST, "{meanwhile} bytes during one exchange");
        }
        assert!(moved() > first, "the busy machine has stopped");
    });
}
