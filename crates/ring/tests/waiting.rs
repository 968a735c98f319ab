//! Waiting: no wakeup is lost, and no thread runs while there is nothing to do.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::task::{Wake, Waker};
use std::thread;
use std::time::{Duration, Instant};

use hvsock_ring::{Interest, Parts, RingEnd, RingError, RingSide, RingSize, Woken, pair};
use hvsock_sys::poll::{self, PollFd, PollFlags};

/// A bound for hangs, far above the time of any test.
const LONG: Duration = Duration::from_secs(30);

fn small() -> (RingEnd, RingEnd) {
    pair(RingSize::MIN).unwrap()
}

fn is_ready(end: &RingEnd) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(end.doorbell(), PollFlags::IN)];
    poll::wait(&mut fds, Some(Instant::now())).unwrap()
}

fn after(time: Duration) -> Option<Instant> {
    Some(Instant::now() + time)
}

/// Writes until there is no free space.
fn fill(end: &RingEnd) {
    while end.try_write(&[1; 999]).is_ok() {}
}

/// Reads until there are no bytes.
fn drain(end: &RingEnd) {
    while end.try_read(&mut [0; 999]).is_ok() {}
}

/// Sends messages back and forth on another connection; each of them parks and wakes a thread.
fn exchange_messages(count: usize) {
    let (a, b) = small();
    for end in [&a, &b] {
        end.set_spin(Duration::ZERO);
    }
    thread::scope(|scope| {
        let (mut a, mut b) = (&a, &b);
        scope.spawn(move || {
            for _ in 0..count {
                b.read_exact(&mut [0]).unwrap();
                b.write_all(&[0]).unwrap();
            }
        });
        for _ in 0..count {
            a.write_all(&[0]).unwrap();
            a.read_exact(&mut [0]).unwrap();
        }
    });
}

/// Waits until the threads at this end have parked `count` times.
fn wait_for_parks(end: &RingEnd, count: u64) {
    let deadline = Instant::now() + LONG;
    while end.stats().parks < count {
        assert!(Instant::now() < deadline, "{:?}", end.stats());
        thread::yield_now();
    }
}

#[test]
fn two_threads_that_wait_at_one_end_in_both_directions_stay_parked() {
    let (a, b) = small();
    thread::scope(|scope| {
        // Each is woken once before: the first wait differs from the later ones.
        let reader = scope.spawn(|| (&a).read_exact(&mut [0; 2]));
        let writer = scope.spawn(|| (&a).write_all(&[7; 3 * 4096]));
        wait_for_parks(&a, 2);
        (&b).write_all(b"x").unwrap();
        (&b).read_exact(&mut [0; 4096]).unwrap();
        let notifications = a.stats().notifications;
        // Two threads that wake each other for nothing would park thousands of times meanwhile.
        exchange_messages(2000);
        let stats = a.stats();
        assert!(stats.parks <= 20, "{stats:?}");
        // The writer may be about to count the notification for the bytes that were read above.
        assert!(stats.notifications <= notifications + 1, "{stats:?}");
        (&b).write_all(b"x").unwrap();
        (&b).read_exact(&mut [0; 2 * 4096]).unwrap();
        reader.join().unwrap().unwrap();
        writer.join().unwrap().unwrap();
    });
}

#[test]
fn a_wait_ends_at_its_deadline_or_when_the_watched_descriptor_is_readable() {
    let (a, _b) = small();
    let (mine, other) = std::os::unix::net::UnixStream::pair().unwrap();
    for _ in 0..3 {
        let start = Instant::now();
        let deadline = after(Duration::from_millis(50));
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
    assert!(a.stats().parks <= 5, "{:?}", a.stats());
    (&other).write_all(b"x").unwrap();
    let woken = a.wait(Interest::READ, Some(mine.as_fd()), after(LONG));
    assert_eq!(woken.unwrap(), Woken::Watched);
}

#[test]
fn a_notification_for_one_direction_survives_a_request_of_the_other() {
    let (a, b) = small();
    fill(&a);
    for round in 0..3 {
        // The reader's notification comes before the writer's request, and the other way round.
        assert!(a.arm(Interest::READ));
        assert_eq!(b.try_write(b"x"), Ok(1));
        assert!(a.arm(Interest::WRITE));
        assert!(is_ready(&a), "{round}");
        drain(&a);
        assert!(a.arm(Interest::WRITE));
        drain(&b);
        assert!(a.arm(Interest::READ));
        assert!(is_ready(&a), "{round}");
        fill(&a);
        assert!(a.arm(Interest::READ));
        assert!(!is_ready(&a), "{round}");
    }
}

#[test]
fn a_doorbell_becomes_quiet_for_a_loop_that_never_drains_it() {
    let (a, b) = small();
    for _ in 0..3 {
        assert!(a.arm(Interest::READ));
        assert!(!is_ready(&a));
        assert_eq!(b.try_write(b"x"), Ok(1));
        assert!(is_ready(&a));
        drain(&a);
        assert!(a.arm(Interest::READ));
        assert!(!is_ready(&a));
    }
}

#[test]
fn repeated_wakeup_requests_wake_no_task() {
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
    a.drain_notifications();
    assert_eq!(counts(), [1, 1]);
}

/// Two threads may read at one end and find bytes for which the peer has not notified yet. The
/// thread that reads them withdraws the request on which the other one is parked, so the peer does
/// not notify. The reading thread must wake the other one.
#[test]
fn a_thread_that_withdraws_a_request_wakes_the_other_waiters() {
    let parts = Parts::new(RingSize::MIN).unwrap();
    let end = RingEnd::open(RingSide::First, &parts.memory, parts.first).unwrap();
    end.set_spin(Duration::ZERO);
    let over = AtomicBool::new(false);
    let is_over = || over.load(Ordering::Relaxed);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut end = &end;
            end.read_exact(&mut [0; 1]).unwrap();
            over.store(true, Ordering::Relaxed);
        });
        // Its last check comes before it counts the park.
        wait_for_parks(&end, 1);
        // Two bytes from the second end, whose `head` is at offset 768.
        let memory = File::from(parts.memory);
        memory.write_all_at(&2u64.to_ne_bytes(), 768).unwrap();
        assert_eq!(end.try_read(&mut [0; 1]), Ok(1));
        let start = Instant::now();
        while !is_over() && start.elapsed() < LONG {
            thread::yield_now();
        }
        let is_parked = !is_over();
        // Wakes it, so that the test ends in any case.
        end.drain_notifications();
        assert!(!is_parked, "it is parked with a byte to read");
    });
}

#[test]
fn one_drain_detects_a_peer_that_notified_and_hung_up() {
    let (a, b) = small();
    assert!(a.arm(Interest::READ));
    assert_eq!(b.try_write(b"x"), Ok(1));
    drop(b);
    // An edge-triggered loop gets one event only.
    a.drain_notifications();
    assert_eq!(a.try_read(&mut [0; 9]), Ok(1));
    assert_eq!(a.try_read(&mut [0; 9]), Err(RingError::PeerGone));
    assert!(!a.arm(Interest::READ));
}

#[test]
fn a_loop_that_never_drains_the_doorbell_detects_a_hangup() {
    let (a, b) = small();
    assert!(a.arm(Interest::READ));
    drop(b);
    let start = Instant::now();
    let stop = loop {
        assert!(start.elapsed() < LONG);
        assert!(is_ready(&a));
        match a.try_read(&mut [0; 9]) {
            Err(RingError::WouldBlock) => a.arm(Interest::READ),
            stop => break stop,
        };
    };
    assert_eq!(stop, Err(RingError::PeerGone));
}
