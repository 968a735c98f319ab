//! What wakes a thread that is parked at an end in an arena.

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Wake, Waker};
use std::thread;
use std::time::{Duration, Instant};

use hvsock_ring::{Grant, Interest, OpenError, ResetCause, RingEnd, RingError, RingSide, Woken};
use hvsock_sys::event::Event;
use hvsock_sys::poll::{self, PollFd, PollFlags};

use crate::pair::{Pair, pair};

/// Parks a thread that reads at the server's end, and one that writes to the full ring of the other
/// direction. `wake` must wake both. Returns how the read and the write ended.
fn park_and(
    pair: &Pair,
    wake: impl FnOnce(RingEnd, hvsock_ring::SlotId),
) -> [Result<usize, RingError>; 2] {
    let (client, server, id) = pair.connect();
    server.set_spin(Duration::ZERO);
    while server.try_write(&[1; 4096]).is_ok() {}
    thread::scope(|scope| {
        let start = |interest: Interest| {
            let server = &server;
            scope.spawn(move || {
                loop {
                    let done = match interest.read {
                        true => server.try_read(&mut [0; 9]),
                        false => server.try_write(b"more"),
                    };
                    if done != Err(RingError::WouldBlock) {
                        return done;
                    }
                    server.wait(interest, None, None).unwrap();
                }
            })
        };
        let threads = [Interest::READ, Interest::WRITE].map(start);
        hvsock_testkit::wait::eventually("both threads park", || server.stats().parks >= 2);
        wake(client, id);
        threads.map(|thread| thread.join().unwrap())
    })
}

#[test]
fn data_and_free_space_wake_parked_threads() {
    let ended = park_and(&pair(1, 1, 1), |client, _| {
        (&client).read_exact(&mut [0; 4096]).unwrap();
        assert_eq!(client.try_write(b"data"), Ok(4));
        // The end stays open until both threads are done.
        let mut more = [0; 4];
        (&client).read_exact(&mut more).unwrap();
        assert_eq!(&more, b"more");
    });
    assert_eq!(ended, [Ok(4), Ok(4)]);
}

#[test]
fn the_close_of_the_peer_wakes_parked_threads() {
    let ended = park_and(&pair(1, 1, 1), |client, _| {
        client.shutdown_write();
        drop(client);
    });
    // The client closed without reading what it was sent. A thread may see that before the reset.
    let [read, write] = ended.map(Result::unwrap_err);
    let is_end = matches!(read, RingError::EndOfStream | RingError::UnreadData);
    assert!(is_end, "{read:?}");
    let is_closed = matches!(write, RingError::PeerClosed | RingError::Reset);
    assert!(is_closed, "{write:?}");
    let ended = park_and(&pair(1, 1, 1), |client, _| drop(client));
    assert_eq!(ended, [Err(RingError::Reset); 2]);
}

#[test]
fn orders_of_the_broker_wake_parked_threads() {
    for order in 0..4 {
        let pair = pair(1, 1, 1);
        let ended = park_and(&pair, |client, id| {
            let monitor = &pair.monitor;
            match order {
                0 => monitor.reset(id, ResetCause::Control),
                1 => monitor.reset_all(ResetCause::Control),
                2 => monitor.close_end(RingSide::First),
                _ => {
                    // A suspended end is parked until it is resumed.
                    monitor.suspend_all(true);
                    assert!(monitor.scan()[0].suspended);
                    assert_eq!(client.try_write(b"data"), Ok(4));
                    monitor.suspend(id, false);
                    (&client).read_exact(&mut [0; 4096]).unwrap();
                    (&client).read_exact(&mut [0; 4]).unwrap();
                }
            }
        });
        match order {
            3 => assert_eq!(ended, [Ok(4), Ok(4)]),
            _ => assert_eq!(ended, [Err(RingError::Reset); 2], "{order}"),
        }
    }
}

/// The processes have lost the broker.
#[test]
fn the_end_of_the_arena_wakes_parked_threads_and_refuses_new_connections() {
    let pair = pair(2, 2, 2);
    let ended = park_and(&pair, |client, _| {
        pair.server.mark_ended();
        // Only the process that has lost the broker sees it.
        assert_eq!(client.try_read(&mut [0; 9]), Ok(9));
    });
    assert_eq!(ended, [Err(RingError::Reset); 2]);
    assert!(pair.client.connect().is_ok());
    assert!(pair.server.accept().unwrap().is_none());
    pair.client.mark_ended();
    assert_eq!(pair.client.connect().unwrap_err(), OpenError::Revoked);
    assert!(!pair.client.is_granted());
}

#[test]
fn a_shutdown_by_another_thread_wakes_parked_threads() {
    let pair = pair(1, 1, 1);
    let (_client, server, _) = pair.connect();
    server.set_spin(Duration::ZERO);
    thread::scope(|scope| {
        let reads = scope.spawn(|| (&server).read(&mut [0; 9]).unwrap());
        hvsock_testkit::wait::eventually("the thread parks", || server.stats().parks >= 1);
        server.shutdown_read();
        assert_eq!(reads.join().unwrap(), 0);
    });
}

#[test]
fn a_park_ends_at_its_deadline_or_when_the_watched_descriptor_is_readable() {
    let pair = pair(1, 1, 1);
    let (client, _server, _) = pair.connect();
    let start = Instant::now();
    let deadline = start + Duration::from_millis(30);
    loop {
        match client.wait(Interest::READ, None, Some(deadline)).unwrap() {
            Woken::TimedOut => break,
            woken => assert_eq!(woken, Woken::Ready),
        }
    }
    assert!(start.elapsed() >= Duration::from_millis(30));
    let event = Event::new().unwrap();
    thread::scope(|scope| {
        let waits = scope.spawn(|| {
            loop {
                let woken = client.wait(Interest::READ, Some(event.as_fd()), None);
                if woken.unwrap() == Woken::Watched {
                    return;
                }
            }
        });
        let parks = client.stats().parks;
        hvsock_testkit::wait::eventually("the thread parks", || client.stats().parks > parks);
        event.set();
        waits.join().unwrap();
    });
}

fn is_readable(fd: &impl AsFd) -> bool {
    let mut fds = [PollFd::new(fd, PollFlags::IN)];
    poll::wait(&mut fds, Some(Instant::now())).unwrap()
}

fn drained(pair: &Pair) -> Vec<u32> {
    let mut slots = Vec::new();
    assert!(pair.server.drain_ready(|slot| slots.push(slot)));
    slots
}

#[derive(Default)]
struct Count(AtomicU32);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn ends_with_signals_are_ready_by_one_doorbell_and_wake_their_tasks() {
    let pair = pair(4, 4, 4);
    let connections: Vec<_> = (0..3).map(|_| pair.connect()).collect();
    let doorbell: OwnedFd = pair.server.doorbell().try_clone_to_owned().unwrap();
    let task = Arc::new(Count::default());
    for (_, server, _) in &connections[1..] {
        server.set_signals(true);
        assert!(server.arm_task(Interest::READ, &Waker::from(Arc::clone(&task))));
    }
    connections[0].0.try_write(b"no signals").unwrap();
    assert!(!is_readable(&doorbell));
    connections[1].0.try_write(b"x").unwrap();
    connections[2].0.try_write(b"x").unwrap();
    // The second one needs no notification, since the first is pending.
    let notifications = hvsock_sys::doorbell::pending(&doorbell).unwrap();
    assert_eq!(notifications.notifications, 1);
    assert_eq!(drained(&pair), [1, 2]);
    assert!(!is_readable(&doorbell));
    assert_eq!(task.0.load(Ordering::Relaxed), 0);
    connections[1].1.drain_notifications();
    connections[2].1.drain_notifications();
    assert_eq!(task.0.load(Ordering::Relaxed), 2);
    // An order of the broker sets the bits and rings no doorbell: the process gets a message, too.
    pair.monitor.reset(connections[1].2, ResetCause::Control);
    assert!(!is_readable(&doorbell));
    assert_eq!(drained(&pair), [1]);
    assert_eq!(connections[1].1.reset_cause(), ResetCause::Control);
    // After that, the next notification rings again.
    assert_eq!(connections[2].1.try_read(&mut [0; 9]), Ok(1));
    assert!(connections[2].1.arm(Interest::READ));
    connections[2].0.try_write(b"x").unwrap();
    assert!(is_readable(&doorbell));
}

#[test]
fn an_acceptor_is_notified_once_per_request() {
    let pair = pair(8, 8, 8);
    let doorbell: OwnedFd = pair.server.doorbell().try_clone_to_owned().unwrap();
    let mut open = vec![pair.client.connect().unwrap()];
    assert!(!is_readable(&doorbell));
    assert!(pair.server.has_pending() && !pair.server.arm_accept());
    let mut accepted = vec![pair.server.accept().unwrap().unwrap()];
    assert!(!pair.server.has_pending() && pair.server.arm_accept());
    for _ in 0..3 {
        open.push(pair.client.connect().unwrap());
    }
    let pending = hvsock_sys::doorbell::pending(&doorbell).unwrap();
    assert_eq!(pending.notifications, 1);
    pair.server.drain_accept();
    assert!(!is_readable(&doorbell));
    while let Some(next) = pair.server.accept().unwrap() {
        accepted.push(next);
    }
    assert_eq!(accepted.len(), open.len());
}

#[test]
fn the_doorbell_hangs_up_with_the_other_process() {
    let Pair { client, server, .. } = pair(1, 1, 1);
    assert!(client.drain_ready(|_| {}));
    drop(server);
    assert!(is_readable(&client.doorbell()));
    assert!(!client.drain_ready(|_| {}));
}

#[test]
fn a_grant_that_was_changed_is_seen_at_once() {
    let pair = pair(4, 4, 4);
    let waiting = pair.client.connect().unwrap();
    pair.monitor.set_grant(Grant::Suspended);
    assert_eq!(pair.client.connect().unwrap_err(), OpenError::Suspended);
    assert!(pair.server.accept().unwrap().is_none());
    pair.monitor.set_grant(Grant::Granted);
    let (client, server, _) = {
        let accepted = pair.server.accept().unwrap().unwrap();
        (waiting.end, accepted.end, accepted.id)
    };
    let late = pair.client.connect().unwrap();
    pair.monitor.set_grant(Grant::Revoked);
    assert_eq!(pair.client.connect().unwrap_err(), OpenError::Revoked);
    // What was not accepted is reset when the server finds it, and established connections stay.
    assert!(pair.server.accept().unwrap().is_none());
    assert_eq!(late.end.try_write(b"x"), Err(RingError::Reset));
    assert_eq!(client.try_write(b"x"), Ok(1));
    assert_eq!(server.try_read(&mut [0; 9]), Ok(1));
    assert_eq!(pair.monitor.scan().len(), 2);
    drop(late);
    assert_eq!(pair.monitor.scan().len(), 1);
    pair.monitor.set_grant(Grant::Granted);
    let (_a, _b, id) = pair.connect();
    pair.monitor.reset_unaccepted(ResetCause::Control);
    let unaccepted = pair.client.connect().unwrap();
    pair.monitor.reset_unaccepted(ResetCause::Control);
    assert_eq!(unaccepted.end.try_write(b"x"), Err(RingError::Reset));
    assert_eq!(_a.try_write(b"x"), Ok(1));
    assert!(pair.monitor.scan().iter().any(|view| view.id == id));
}
