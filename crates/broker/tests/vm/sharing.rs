//! Whether connections, and machines, get the same.

use std::io::{ErrorKind, Read, Write};
use std::thread;
use std::time::{Duration, Instant};

use hvsock::HvStream;
use hvsock_testkit::guest::{GuestStream, Options};

use crate::world::{PORT, World, accept, bounded, ping};

const BUSY: usize = 50;
const TIME: Duration = Duration::from_millis(1500);

/// The most by the least, after everybody had its turn for a while.
fn most_by_least(moved: &[u64]) -> f64 {
    let most = moved.iter().max().copied().unwrap_or(0);
    let least = moved.iter().min().copied().unwrap_or(0);
    assert!(least > 0, "one got nothing: {moved:?}");
    most as f64 / least as f64
}

fn pairs(world: &World, guest: &hvsock_testkit::guest::Guest) -> Vec<(GuestStream, HvStream)> {
    let listener = world.listen();
    (0..BUSY).map(|_| world.pair(guest, &listener)).collect()
}

#[test]
fn many_busy_connections_to_a_guest_get_the_same() {
    let world = World::new();
    let guest = world.guest();
    let pairs = pairs(&world, &guest);
    let until = Instant::now() + TIME;
    let moved = thread::scope(|scope| {
        for (_, outside) in &pairs {
            scope.spawn(move || {
                outside.set_write_timeout(Some(TIME * 4)).unwrap();
                let mut to = outside;
                while Instant::now() < until && to.write_all(&[7; 4096]).is_ok() {}
            });
        }
        let mut moved = vec![0; BUSY];
        let mut buffer = vec![0; 16 << 10];
        while Instant::now() < until {
            for ((inside, _), moved) in pairs.iter().zip(&mut moved) {
                match inside.try_read(&mut buffer) {
                    Ok(read) => *moved += read as u64,
                    Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
                }
            }
        }
        // Lets the writers end.
        for (inside, _) in &pairs {
            inside.shutdown(std::net::Shutdown::Both).unwrap();
        }
        moved
    });
    assert!(most_by_least(&moved) <= 2.0, "{moved:?}");
}

#[test]
fn many_busy_connections_from_a_guest_get_the_same() {
    let world = World::new();
    let guest = world.guest();
    let pairs = pairs(&world, &guest);
    let until = Instant::now() + TIME;
    let moved = thread::scope(|scope| {
        let readers: Vec<_> = pairs
            .iter()
            .map(|(_, outside)| {
                scope.spawn(move || {
                    let (mut moved, mut from) = (0, outside);
                    let mut buffer = vec![0; 16 << 10];
                    while let Ok(read @ 1..) = from.read(&mut buffer) {
                        moved += read as u64;
                    }
                    moved
                })
            })
            .collect();
        // Who comes first finds the most room in the queue, so each does in its turn.
        for first in (0..BUSY).cycle().take_while(|_| Instant::now() < until) {
            for place in 0..BUSY {
                let (inside, _) = &pairs[(first + place) % BUSY];
                match inside.try_write(&[7; 4096]) {
                    Ok(_) => {}
                    Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
                }
            }
        }
        for (inside, _) in &pairs {
            inside.shutdown(std::net::Shutdown::Both).unwrap();
        }
        let moved = readers.into_iter().map(|reader| reader.join().unwrap());
        moved.collect::<Vec<u64>>()
    });
    assert!(most_by_least(&moved) <= 2.0, "{moved:?}");
}

#[test]
fn who_does_not_read_holds_back_nobody_else() {
    let world = World::new();
    let (listener, guest) = (world.listen(), world.guest());
    let (stuck_inside, stuck_outside) = world.pair(&guest, &listener);
    let (inside, outside) = world.pair(&guest, &listener);
    // Both directions are filled until nothing goes any more.
    let (mut taken, mut to) = (0, &stuck_outside);
    stuck_outside
        .set_write_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    while let Ok(count) = to.write(&[7; 4096]) {
        taken += count;
        assert!(taken < 16 << 20, "nothing holds the host back");
    }
    let (mut taken, mut to) = (0, &stuck_inside);
    stuck_inside.set_write_timeout(Some(Duration::from_millis(200)));
    while let Ok(count) = to.write(&[7; 4096]) {
        taken += count;
        assert!(taken < 16 << 20, "nothing holds the guest back");
    }
    for _ in 0..100 {
        ping(&inside, &outside);
    }
    assert_eq!(guest.faults(), [""; 0]);
}

#[test]
fn a_machine_that_is_busy_leaves_others_their_turn() {
    let world = World::new();
    let (listener, guest) = (world.listen(), world.guest());
    world.add("other", 77, &[]);
    let other = world.guest_of("other", Options::new(77));
    let (inside, outside) = world.pair(&guest, &listener);
    let busy = bounded(other.connect(PORT).unwrap());
    let drain = accept(&listener);
    let until = Instant::now() + TIME;
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut to = &busy;
            while Instant::now() < until && to.write_all(&[7; 16 << 10]).is_ok() {}
            drop(busy.shutdown(std::net::Shutdown::Both));
        });
        scope.spawn(|| {
            let (mut from, mut buffer) = (&drain, vec![0; 64 << 10]);
            while let Ok(1..) = from.read(&mut buffer) {}
        });
        let mut slowest = Duration::ZERO;
        while Instant::now() < until {
            let start = Instant::now();
            ping(&inside, &outside);
            slowest = slowest.max(start.elapsed());
        }
        assert!(slowest < Duration::from_millis(500), "{slowest:?}");
    });
}
