//! The behaviour of both ends, on one thread.

use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::time::{Duration, Instant};

use hvsock_ring::{
    Bytes, Interest, Monitor, Parts, RingEnd, RingError, RingSide, RingSize, Woken, pair,
};

fn small() -> (RingEnd, RingEnd) {
    pair(RingSize::MIN).unwrap()
}

fn read(end: &RingEnd) -> Result<Vec<u8>, RingError> {
    let mut buffer = [0; 8192];
    end.try_read(&mut buffer)
        .map(|count| buffer[..count].to_vec())
}

#[test]
fn bytes_flow_both_ways_and_each_direction_ends_alone() {
    let (a, b) = small();
    assert_eq!(read(&b), Err(RingError::WouldBlock));
    assert_eq!(
        a.try_write_vectored(&[IoSlice::new(b"ab"), IoSlice::new(b"cde")]),
        Ok(5)
    );
    assert_eq!(b.try_peek(&mut [0; 9]), Ok(5));
    let (mut x, mut y) = ([0; 1], [0; 9]);
    let mut into = [IoSliceMut::new(&mut x), IoSliceMut::new(&mut y)];
    assert_eq!(b.try_read_vectored(&mut into), Ok(5));
    assert_eq!((&x, &y[..4]), (b"a", &b"bcde"[..]));
    assert_eq!(a.try_write(b"last"), Ok(4));
    a.shutdown_write();
    assert_eq!(a.try_write(b"x"), Err(RingError::WriteShutdown));
    assert_eq!(read(&b).unwrap(), b"last");
    assert_eq!(read(&b), Err(RingError::EndOfStream));
    assert_eq!(b.try_write(b"back"), Ok(4));
    assert_eq!(read(&a).unwrap(), b"back");
}

#[test]
fn a_full_ring_accepts_no_bytes_until_some_are_read() {
    let (a, b) = small();
    assert_eq!(a.try_write(&[7; 10_000]), Ok(4096));
    assert_eq!(a.try_write(b"x"), Err(RingError::WouldBlock));
    assert!(!a.is_writable() && b.is_readable());
    assert_eq!(b.try_read(&mut [0; 100]), Ok(100));
    assert_eq!(a.try_write(&[8; 200]), Ok(100));
    let got = read(&b).unwrap();
    assert_eq!((got.len(), got[3995], got[3996]), (4096, 7, 8));
}

#[test]
fn a_writer_detects_a_closed_reader_at_once() {
    let (a, b) = small();
    b.shutdown_read();
    assert_eq!(a.try_write(b"x"), Err(RingError::PeerClosed));
    assert_eq!(read(&b), Err(RingError::EndOfStream));
    let (a, b) = small();
    assert_eq!(a.try_write(b"unread"), Ok(6));
    b.shutdown_write();
    drop(b);
    assert_eq!(a.try_write(b"x"), Err(RingError::PeerClosed));
    // It shut down writing but did not read all bytes: that is no clean end.
    assert_eq!(read(&a), Err(RingError::UnreadData));
    let (a, b) = small();
    b.shutdown_write();
    drop(b);
    assert_eq!(read(&a), Err(RingError::EndOfStream));
}

#[test]
fn an_end_dropped_without_shutdown_leaves_its_bytes_and_then_an_error() {
    let (a, b) = small();
    assert_eq!(b.try_write(b"half a mess"), Ok(11));
    drop(b);
    let mut got = Vec::new();
    let error = (&a).read_to_end(&mut got).unwrap_err();
    assert_eq!(got, b"half a mess");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    let error = (&a).write(b"x").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
}

#[test]
fn a_reset_takes_effect_after_the_bytes_already_written() {
    let Parts {
        memory,
        first,
        second,
    } = Parts::new(RingSize::MIN).unwrap();
    let monitor = Monitor::new(&memory).unwrap();
    let a = RingEnd::open(RingSide::First, &memory, first).unwrap();
    let b = RingEnd::open(RingSide::Second, &memory, second).unwrap();
    assert_eq!(a.try_write(b"before"), Ok(6));
    assert_eq!(
        (
            monitor.written(RingSide::First),
            monitor.written(RingSide::Second)
        ),
        (6, 0)
    );
    assert!(monitor.leaves_unread(RingSide::Second) && !monitor.leaves_unread(RingSide::First));
    monitor.suspend(true);
    assert_eq!(read(&b), Err(RingError::WouldBlock));
    assert!(b.arm(Interest::READ));
    monitor.suspend(false);
    monitor.reset();
    assert_eq!(a.try_write(b"after"), Err(RingError::Reset));
    assert_eq!(b.try_read(&mut [0; 3]), Ok(3));
    assert_eq!(read(&b).unwrap(), b"ore");
    assert_eq!(read(&b), Err(RingError::Reset));
}

#[test]
fn a_part_of_borrowed_space_or_bytes_can_be_handed_over_while_the_rest_is_kept() {
    let (a, b) = small();
    let mut reserved = a.try_reserve(4096).unwrap();
    reserved.put(0, &[1; 100]).unwrap();
    reserved.publish(100).unwrap();
    assert_eq!(reserved.len(), 3996);
    assert_eq!(read(&b).unwrap(), [1; 100]);
    // Offsets count from the first byte that is not published.
    reserved.put(0, &[2; 3996]).unwrap();
    assert!(reserved.put(1, &[2; 3996]).is_err());
    assert!(reserved.publish(3997).is_err());
    reserved.publish(3996).unwrap();
    assert_eq!(reserved.len(), 0);
    drop(reserved);
    assert_eq!(a.try_write(&[3; 200]), Ok(100));

    let mut filled = b.try_fill().unwrap();
    assert_eq!(filled.len(), 4096);
    filled.release(1000).unwrap();
    assert_eq!(filled.len(), 3096);
    assert_eq!(a.try_write(&[4; 2000]), Ok(1000));
    let mut last = [0; 101];
    filled.get(2995, &mut last).unwrap();
    assert_eq!(last[..2], [2, 3]);
    assert!(filled.release(3097).is_err());
    filled.consume(3096).unwrap();
    assert_eq!(read(&b).unwrap(), [4; 1000]);
}

#[test]
fn bytes_can_be_written_and_read_zero_copy() {
    let (a, b) = small();
    // So that the bytes wrap and both segments are used.
    assert_eq!(a.try_write(&[0; 4000]), Ok(4000));
    assert_eq!(b.try_read(&mut [0; 4000]), Ok(4000));
    let mut reserved = a.try_reserve(200).unwrap();
    assert_eq!(reserved.len(), 200);
    reserved.put(0, &[1; 150]).unwrap();
    assert!(reserved.put(190, &[1; 11]).is_err());
    reserved.put(150, &[2; 50]).unwrap();
    reserved.commit(160).unwrap();
    drop(a.try_reserve(1).unwrap());
    let filled = b.try_fill().unwrap();
    assert_eq!(filled.len(), 160);
    assert_eq!(filled.segments().map(Bytes::len), [96, 64]);
    let mut bytes = [0; 20];
    filled.get(140, &mut bytes).unwrap();
    assert_eq!(bytes, [[1; 10], [2; 10]].concat()[..]);
    assert!(filled.get(150, &mut bytes).is_err());
    let (from, to) = std::os::unix::net::UnixStream::pair().unwrap();
    assert_eq!(filled.write_to(&from, 0).unwrap(), 160);
    filled.consume(160).unwrap();
    assert_eq!(b.try_fill().unwrap_err(), RingError::WouldBlock);
    let mut reserved = a.try_reserve(9999).unwrap();
    assert_eq!(reserved.len(), 4096);
    assert_eq!(reserved.read_from(&to, 0).unwrap(), 160);
    reserved.commit(160).unwrap();
    let got = read(&b).unwrap();
    assert_eq!(got, [vec![1; 150], vec![2; 10]].concat());
}

#[test]
fn counters_wrap_around_without_effect() {
    for start in [u64::from(u32::MAX) - 5000, u64::MAX - 5000, u64::MAX] {
        let Parts {
            memory,
            first,
            second,
        } = Parts::new(RingSize::MIN).unwrap();
        let starts = [start, start.wrapping_add(17)];
        let a = RingEnd::open_at(RingSide::First, &memory, first, starts).unwrap();
        let b = RingEnd::open_at(RingSide::Second, &memory, second, starts).unwrap();
        let (mut sent, mut got) = (0u32, 0u32);
        for round in 0..64usize {
            for (from, to) in [(&a, &b), (&b, &a)] {
                let bytes: Vec<u8> = (0..700 + round)
                    .map(|i| (sent as usize + i) as u8)
                    .collect();
                assert_eq!(from.try_write(&bytes), Ok(bytes.len()));
                assert_eq!(read(to).unwrap(), bytes, "{start} {round}");
                got += bytes.len() as u32;
            }
            sent += 3;
        }
        assert!(got > 90_000);
        assert_eq!(a.try_write(&[1; 5000]), Ok(4096));
        assert_eq!(a.try_write(&[1]), Err(RingError::WouldBlock));
    }
}

#[test]
fn a_write_succeeds_if_all_its_bytes_were_read_before_the_close() {
    for _ in 0..2000 {
        let (a, b) = small();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                (&b).read_exact(&mut [0; 600]).unwrap();
                b.shutdown_write();
            });
            let slices = [IoSlice::new(&[1; 300]), IoSlice::new(&[2; 300])];
            assert_eq!(a.try_write_vectored(&slices), Ok(600));
            assert_eq!((&a).read(&mut [0]).unwrap(), 0);
        });
    }
}

#[test]
fn a_close_with_bytes_unread_is_never_seen_as_a_clean_end_first() {
    for round in 0..300 {
        let (a, b) = small();
        assert_eq!(a.try_write(&[1; 10]), Ok(10));
        // Some of the bytes are read, but not all.
        let mut some = vec![0; 1 + round % 9];
        assert_eq!(b.try_read(&mut some), Ok(some.len()));
        assert_eq!(b.try_write(b"last"), Ok(4));
        std::thread::scope(|scope| {
            scope.spawn(move || {
                b.finish();
                drop(b);
            });
            let mut last = [0; 8];
            assert_eq!(a.try_read(&mut last), Ok(4));
            let end = loop {
                match a.try_read(&mut last) {
                    Err(RingError::WouldBlock) => std::hint::spin_loop(),
                    end => break end,
                }
            };
            assert_eq!(end, Err(RingError::UnreadData), "{round}");
        });
    }
}

#[test]
fn a_close_wakes_a_reader_and_a_writer_that_are_parked() {
    for writes in [false, true] {
        let (a, b) = small();
        let interest = if writes {
            Interest::WRITE
        } else {
            Interest::READ
        };
        if writes {
            while a.try_write(&[1; 4096]).is_ok() {}
        }
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| {
                let until = Some(Instant::now() + Duration::from_secs(20));
                a.wait(interest, None, until).unwrap()
            });
            b.finish();
            assert_eq!(waits.join().unwrap(), Woken::Ready);
        });
        match writes {
            true => assert_eq!(a.try_write(&[1]), Err(RingError::PeerClosed)),
            false => assert_eq!(a.try_read(&mut [0]), Err(RingError::EndOfStream)),
        }
    }
}

#[test]
fn bytes_are_copied_between_a_ring_and_other_shared_memory() {
    let other = hvsock_sys::shared_memory::create(64 * 1024).unwrap();
    let other = hvsock_sys::shared_memory::Mapping::new(&other, 64 * 1024).unwrap();
    let (first, second) = pair(RingSize::MIN).unwrap();
    let text: Vec<u8> = (0..3000u32).map(|i| (i / 7) as u8).collect();
    other.bytes(1000..4000).put(0, &text);
    // In the second round the bytes wrap around the ring's end.
    for _ in 0..2 {
        let mut reserved = first.try_reserve(3000).unwrap();
        reserved.put_shared(1000, other.bytes(2000..4000)).unwrap();
        reserved.put_shared(0, other.bytes(1000..2000)).unwrap();
        assert!(reserved.put_shared(2999, other.bytes(0..2)).is_err());
        reserved.commit(3000).unwrap();
        let filled = second.try_fill().unwrap();
        filled.get_shared(0, other.bytes(10_000..12_500)).unwrap();
        filled
            .get_shared(2500, other.bytes(12_500..13_000))
            .unwrap();
        assert!(filled.get_shared(2999, other.bytes(0..2)).is_err());
        filled.consume(3000).unwrap();
        let mut back = vec![0; 3000];
        other.bytes(10_000..13_000).get(0, &mut back);
        assert!(back == text);
        other.bytes(10_000..13_000).put(0, &[0; 3000]);
    }
}

#[test]
fn a_writer_can_request_a_wakeup_at_a_low_watermark() {
    let (first, second) = pair(RingSize::MIN).unwrap();
    let size = u64::from(RingSize::MIN.bytes());
    assert!(!first.arm_free_space(size), "all of it is free");
    first.try_write(&[7; 1000]).unwrap();
    assert_eq!(first.read_by_peer(), Ok(0));
    assert!(first.arm_free_space(size - 500));
    let notifications = |end: &RingEnd| end.stats().notifications;
    let before = notifications(&second);
    second.try_read(&mut [0; 300]).unwrap();
    assert_eq!(
        (notifications(&second), first.read_by_peer()),
        (before, Ok(300))
    );
    second.try_read(&mut [0; 300]).unwrap();
    assert_eq!(
        (notifications(&second), first.read_by_peer()),
        (before + 1, Ok(600))
    );
    assert!(!first.arm_free_space(size - 500));
    assert!(first.arm_free_space(size));
    // A write withdraws the request.
    first.try_write(&[7; 10]).unwrap();
    second.try_read(&mut [0; 1000]).unwrap();
    assert_eq!(notifications(&second), before + 1);
}
