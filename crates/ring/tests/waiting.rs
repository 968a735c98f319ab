//! Waiting: nobody sleeps through what it waits for, and nobody runs while there is nothing.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::task::{Wake, Waker};
use std::thread;
use std::time::{Duration, Instant};

use hvsock_ring::{End, Interest, Parts, RingSize, Side, Stop, Woken, pair};
use hvsock_sys::poll::{self, PollFd, PollFlags};

/// Far more than anything here takes.
const LONG: Duration = Duration::from_secs(20);

fn small() -> (End, End) {
    pair(RingSize::MIN).unwrap()
}

fn is_ready(end: &End) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(end.bell(), PollFlags::IN)];
    poll::wait(&mut fds, Some(Instant::now())).unwrap()
}

fn in_(time: Duration) -> Option<Instant> {
    Some(Instant::now() + time)
}

/// Writes until there is no room.
fn fill(end: &End) {
    while end.try_write(&[1; 999]).is_ok() {}
}

/// Reads until there is nothing.
fn empty(end: &End) {
    while end.try_read(&mut [0; 999]).is_ok() {}
}

#[test]
fn threads_that_wait_at_one_end_in_both_directions_sleep() {
    let (a, b) = small();
    thread::scope(|scope| {
        // Once each has been woken before: the first wait is unlike the later ones.
        let reader = scope.spawn(|| (&a).read_exact(&mut [0; 2]));
        let writer = scope.spawn(|| (&a).write_all(&[7; 3 * 4096]));
        thread::sleep(Duration::from_millis(30));
        (&b).write_all(b"x").unwrap();
        (&b).read_exact(&mut [0; 4096]).unwrap();
        thread::sleep(Duration::from_millis(100));
        let before = a.stats();
        thread::sleep(Duration::from_millis(300));
        let after = a.stats();
        assert!(after.sleeps <= before.sleeps + 1, "{before:?} {after:?}");
        assert_eq!(after.rings, before.rings);
        (&b).write_all(b"x").unwrap();
        (&b).read_exact(&mut [0; 2 * 4096]).unwrap();
        reader.join().unwrap().unwrap();
        writer.join().unwrap().unwrap();
    });
}

#[test]
fn a_wait_ends_at_its_deadline_or_for_what_is_watched_beside() {
    let (a, _b) = small();
    let (mine, other) = std::os::unix::net::UnixStream::pair().unwrap();
    for _ in 0..3 {
        let start = Instant::now();
        let deadline = in_(Duration::from_millis(50));
        let woken = loop {
            match a
                .wait(Interest::READ, Some(mine.as_fd()), deadline)
                .unwrap()
            {
                Woken::Ready => {}
                woken => break woken,
            }
        };
        assert_eq!(woken, Woken::TimedOut);
        assert!(start.elapsed() >= Duration::from_millis(50));
    }
    assert!(a.stats().sleeps <= 5, "{:?}", a.stats());
    (&other).write_all(b"x").unwrap();
    let woken = a.wait(Interest::READ, Some(mine.as_fd()), in_(LONG));
    assert_eq!(woken.unwrap(), Woken::Watched);
}

#[test]
fn what_one_direction_is_rung_for_is_not_lost_when_the_other_asks() {
    let (a, b) = small();
    fill(&a);
    for round in 0..3 {
        // The reader's ring comes before the writer's wish, and the other way round.
        assert!(a.arm(Interest::READ));
        assert_eq!(b.try_write(b"x"), Ok(1));
        assert!(a.arm(Interest::WRITE));
        assert!(is_ready(&a), "{round}");
        empty(&a);
        assert!(a.arm(Interest::WRITE));
        empty(&b);
        assert!(a.arm(Interest::READ));
        assert!(is_ready(&a), "{round}");
        fill(&a);
        assert!(a.arm(Interest::READ));
        assert!(!is_ready(&a), "{round}");
    }
}

#[test]
fn a_bell_is_quiet_again_for_who_looks_at_it_without_hearing() {
    let (a, b) = small();
    for _ in 0..3 {
        assert!(a.arm(Interest::READ));
        assert!(!is_ready(&a));
        assert_eq!(b.try_write(b"x"), Ok(1));
        assert!(is_ready(&a));
        empty(&a);
        assert!(a.arm(Interest::READ));
        assert!(!is_ready(&a));
    }
}

#[test]
fn asking_again_for_nothing_wakes_nobody() {
    #[derive(Default)]
    struct Count(AtomicU32);
    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    let (a, b) = small();
    fill(&a);
    let [reads, writes] = [(); 2].map(|()| Arc::new(Count::default()));
    let wakers = [&reads, &writes].map(|count| Waker::from(Arc::clone(count)));
    for _ in 0..5 {
        assert!(a.arm_task(Interest::READ, &wakers[0]));
        assert!(a.arm_task(Interest::WRITE, &wakers[1]));
    }
    let counts = || [&reads, &writes].map(|count| count.0.load(Ordering::Relaxed));
    assert_eq!(counts(), [0, 0]);
    assert_eq!(b.try_write(b"x"), Ok(1));
    assert!(is_ready(&a));
    a.hear();
    assert_eq!(counts(), [1, 1]);
}

/// Two threads may read at one end, and find what the peer has written and not rung for yet. Who
/// takes note of it takes back the wish on which the other one sleeps, and then nobody rings.
#[test]
fn a_thread_that_reads_leaves_no_other_asleep_without_a_wish() {
    let parts = Parts::new(RingSize::MIN).unwrap();
    let end = End::open(Side::First, &parts.memory, parts.first).unwrap();
    end.set_spin(Duration::ZERO);
    let over = AtomicBool::new(false);
    let is_over = || over.load(Ordering::Relaxed);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut end = &end;
            end.read_exact(&mut [0; 1]).unwrap();
            over.store(true, Ordering::Relaxed);
        });
        while end.stats().sleeps == 0 {
            thread::yield_now();
        }
        thread::sleep(Duration::from_millis(20));
        // Two bytes of the second end's, whose count is at this place.
        let memory = File::from(parts.memory);
        memory.write_all_at(&2u64.to_ne_bytes(), 768).unwrap();
        assert_eq!(end.try_read(&mut [0; 1]), Ok(1));
        let start = Instant::now();
        while !is_over() && start.elapsed() < Duration::from_secs(5) {
            thread::yield_now();
        }
        let slept = !is_over();
        // So that the test ends in any case.
        end.hear();
        assert!(!slept, "it sleeps with a byte to read");
    });
}

#[test]
fn a_peer_that_rings_and_goes_is_known_to_be_gone_after_one_hearing() {
    let (a, b) = small();
    assert!(a.arm(Interest::READ));
    assert_eq!(b.try_write(b"x"), Ok(1));
    drop(b);
    // All that an edge-triggered loop is told.
    a.hear();
    assert_eq!(a.try_read(&mut [0; 9]), Ok(1));
    assert_eq!(a.try_read(&mut [0; 9]), Err(Stop::Gone));
    assert!(!a.arm(Interest::READ));
}

#[test]
fn a_peer_that_goes_is_noticed_by_who_looks_at_the_bell_without_hearing() {
    let (a, b) = small();
    assert!(a.arm(Interest::READ));
    drop(b);
    let start = Instant::now();
    let stop = loop {
        assert!(start.elapsed() < LONG);
        assert!(is_ready(&a));
        match a.try_read(&mut [0; 9]) {
            Err(Stop::WouldBlock) => a.arm(Interest::READ),
            stop => break stop,
        };
    };
    assert_eq!(stop, Err(Stop::Gone));
}
