//! A hostile peer: random attacks on the shared memory, and attacks on the doorbells.

mod script;

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use hvsock_ring::{Interest, Parts, RingEnd, RingError, RingSide, RingSize};
use hvsock_sys::doorbell;
use proptest::collection::vec;
use proptest::prelude::*;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

proptest! {
    #![proptest_config(ProptestConfig { cases: hvsock_testkit::cases(1000), ..ProptestConfig::default() })]

    #[test]
    fn an_end_survives_any_peer(script in vec(any::<u8>(), 0..600)) {
        script::run(&script);
    }
}

/// An end under attack, and the peer's doorbells and memory.
fn victim() -> (RingEnd, hvsock_ring::Doorbells, File) {
    let Parts {
        memory,
        first,
        second,
    } = Parts::new(RingSize::MIN).unwrap();
    let end = RingEnd::open(RingSide::First, &memory, first).unwrap();
    (end, second, File::from(memory))
}

fn store(memory: &File, at: u64, value: u64) {
    memory.write_all_at(&value.to_ne_bytes(), at).unwrap();
}

/// An honest end for the peer.
fn honest(second: hvsock_ring::Doorbells, memory: &File) -> RingEnd {
    RingEnd::open(RingSide::Second, memory, second).unwrap()
}

#[test]
fn no_call_blocks_on_a_full_doorbell_that_the_peer_made_blocking() {
    let (end, second, memory) = victim();
    for doorbell in [&second.own, &second.peer] {
        let flags = fcntl_getfl(doorbell).unwrap();
        fcntl_setfl(doorbell, flags - OFlags::NONBLOCK).unwrap();
    }
    let start = Instant::now();
    for written in 1..=100_000 {
        // Always requests a wakeup, and claims to have read everything.
        store(&memory, script::AWAKE, 0);
        assert_eq!(end.try_write(b"x"), Ok(1));
        store(&memory, script::TAIL, written);
    }
    assert_eq!(end.stats().notifications, 100_000);
    // Draining a doorbell without notifications does not block either.
    end.drain_notifications();
    assert!(end.arm(Interest::READ) && end.arm(Interest::READ));
    assert!(
        start.elapsed() < Duration::from_secs(20),
        "{:?}",
        start.elapsed()
    );
}

#[test]
fn spurious_notifications_at_full_rate_delay_no_call() {
    let (end, second, memory) = victim();
    let (over, doorbell_of_end) = (AtomicBool::new(false), second.peer.try_clone().unwrap());
    let peer = honest(second, &memory);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                doorbell::notify(&doorbell_of_end).unwrap();
            }
        });
        let start = Instant::now();
        for round in 0..50 {
            let deadline = Instant::now() + Duration::from_millis(1);
            while Instant::now() < deadline {
                end.wait(Interest::READ, None, Some(deadline)).unwrap();
            }
            assert_eq!(end.try_read(&mut [0; 9]), Err(RingError::WouldBlock));
            end.arm(Interest::READ);
            end.drain_notifications();
            assert_eq!(peer.try_write(&[round]), Ok(1));
            let mut got = [0];
            (&end).read_exact(&mut got).unwrap();
            assert_eq!(got, [round]);
        }
        over.store(true, Ordering::Relaxed);
        assert!(
            start.elapsed() < Duration::from_secs(10),
            "{:?}",
            start.elapsed()
        );
    });
}

#[test]
fn a_peer_that_steals_notifications_harms_its_own_stream_only() {
    let (end, second, memory) = victim();
    let path = format!(
        "/proc/self/fd/{}",
        std::os::fd::AsRawFd::as_raw_fd(&second.peer)
    );
    // The end's own doorbell, reopened for reading.
    let mut drain = File::options().read(true).open(path).unwrap();
    let over = AtomicBool::new(false);
    let doorbell_of_end = second.peer.try_clone().unwrap();
    let peer = honest(second, &memory);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let _ = drain.read(&mut [0; 64]);
            }
        });
        for _ in 0..200 {
            assert_eq!(peer.try_write(b"x"), Ok(1));
            let deadline = Instant::now() + Duration::from_millis(2);
            let _ = end.wait(Interest::READ, None, Some(deadline)).unwrap();
            end.drain_notifications();
            // The byte is readable, notified or not.
            assert_eq!(end.try_read(&mut [0; 9]), Ok(1));
            end.arm(Interest::READ);
        }
        over.store(true, Ordering::Relaxed);
        // So that the last blocking read returns.
        doorbell::notify(&doorbell_of_end).unwrap();
    });
}

#[test]
fn closed_doorbells_end_the_stream_with_an_error() {
    let (end, second, memory) = victim();
    assert_eq!(end.try_write(b"x"), Ok(1));
    drop(second.own);
    // A notification to a closed doorbell raises no SIGPIPE.
    store(&memory, script::AWAKE, 0);
    assert_eq!(end.try_write(b"x"), Ok(1));
    assert_eq!(end.try_write(b"x"), Err(RingError::PeerGone));
    assert_eq!(end.try_read(&mut [0; 9]), Err(RingError::PeerGone));
    let (end, second, _memory) = victim();
    drop(second.peer);
    let error = (&end).read(&mut [0; 9]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    // The hangup ends the first park.
    assert_eq!(end.stats().parks, 1);
}

#[test]
fn invalid_counters_are_detected_and_reset_the_connection() {
    for (at, value, writes) in [
        (script::HEAD + script::BACK, 4097, false),
        (script::HEAD + script::BACK, u64::MAX, false),
        // Less than was loaded before.
        (script::HEAD + script::BACK, 4, false),
        (script::TAIL, 3, true),
        (script::TAIL, u64::MAX, true),
    ] {
        let (end, second, memory) = victim();
        let peer = honest(second, &memory);
        assert_eq!(end.try_write(b"ab"), Ok(2));
        assert_eq!(peer.try_write(b"seen5"), Ok(5));
        assert_eq!(end.try_peek(&mut [0; 9]), Ok(5));
        store(&memory, at, value);
        let result = match writes {
            true => end.try_write(&[0; 4096]),
            false => end.try_read(&mut [0; 9]),
        };
        assert!(
            matches!(result, Err(RingError::ProtocolViolation(_))),
            "{at} {value} {result:?}"
        );
        assert!(matches!(
            end.try_read(&mut [0; 9]),
            Err(RingError::ProtocolViolation(_))
        ));
        assert!(matches!(
            end.try_write(b"x"),
            Err(RingError::ProtocolViolation(_))
        ));
        assert_eq!(peer.try_write(b"x"), Err(RingError::Reset));
    }
}

/// A reset stays even if the peer clears its bit.
#[test]
fn a_reset_cannot_be_undone() {
    let (end, second, memory) = victim();
    let peer = honest(second, &memory);
    store(&memory, script::STATE, 1);
    assert_eq!(end.try_read(&mut [0; 9]), Err(RingError::Reset));
    store(&memory, script::STATE, 0);
    assert_eq!(peer.try_write(b"more"), Ok(4));
    assert_eq!(end.try_read(&mut [0; 9]), Err(RingError::Reset));
    assert_eq!(end.try_write(b"x"), Err(RingError::Reset));
}
